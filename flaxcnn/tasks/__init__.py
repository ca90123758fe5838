"""What a batch, a loss, a metric and a picture mean."""
