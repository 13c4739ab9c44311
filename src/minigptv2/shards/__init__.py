"""The shard format on disk: tar files with a manifest, a table and an index; reading, writing, verifying."""
