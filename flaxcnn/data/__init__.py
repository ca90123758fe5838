"""From a named source to batches of uint8 images: splits, their order, and how they are fed."""
