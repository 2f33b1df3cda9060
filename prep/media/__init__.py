"""Pictures before training: the source of their bytes, their size, and whether they are complete."""
