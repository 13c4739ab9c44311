"""Shards to batches: writer, index, plan, packing, collator. Knows records and batches, nothing of models."""
