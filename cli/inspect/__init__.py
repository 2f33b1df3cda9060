"""`lmms inspect`: shards, order, steps and runs, as tables, charts and pages."""
