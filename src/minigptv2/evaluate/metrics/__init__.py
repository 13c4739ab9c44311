"""Metrics as pure functions, each checked against the official implementation's numbers (`tests/evaluate/golden`)."""
