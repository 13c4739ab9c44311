"""Data sets to shards, at build time."""
