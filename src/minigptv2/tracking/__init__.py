"""The log of a run and its experiment trackers."""
