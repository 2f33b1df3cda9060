"""The view of `lmms train` during a run, and train.log."""
