"""A raw record -> a typed Record, or a Reject with its reason and place."""
