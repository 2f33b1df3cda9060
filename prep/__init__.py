"""source -> record -> sample -> plan -> pack -> shard. Needs no GPU, no torch, no transformers."""
