"""Measured claims about the data."""
