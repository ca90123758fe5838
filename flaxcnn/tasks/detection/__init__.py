"""Detection: the classes of objects and the boxes around them."""
