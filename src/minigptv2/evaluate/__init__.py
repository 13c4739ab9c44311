"""Evaluates models on the benchmarks of the paper and on held-out shards."""
