"""Builds shards from data sets: readers of original files, drafts of samples, statistics and previews."""
