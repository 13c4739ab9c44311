"""Runs the demonstrations with the commands a user types: the toy world, and small pretrained models."""
