"""Where shards are: a folder, or a URL that is read by ranges."""
