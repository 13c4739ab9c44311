"""Turns shards into batches: mixture, plan, packing, collation, loading. Independent of models."""
