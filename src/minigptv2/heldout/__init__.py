"""Evaluates the model on a held-out slice of each corpus during training."""
