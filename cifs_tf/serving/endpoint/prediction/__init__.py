"""From tensors to a prediction, for all protocols alike: limits, and batches of several requests."""
