"""Held-out figures, pictures and the report."""
