"""Augmentation: pure functions of (key, image), vmapped inside the training step."""
