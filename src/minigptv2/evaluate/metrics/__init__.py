"""Metrics as pure functions, each compared with the official implementation (`tests/evaluate/golden`)."""
