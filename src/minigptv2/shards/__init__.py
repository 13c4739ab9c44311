"""Reads, writes, indexes and verifies shards: tar files with a manifest, a shard table and an index."""
