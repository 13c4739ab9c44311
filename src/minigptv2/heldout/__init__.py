"""Evaluation during training, on a held-out slice of each corpus."""
