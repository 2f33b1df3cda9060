"""Stores of shards: a folder, or a URL that is read by ranges."""
