"""The records of a source that are taken: filter, first records, repeats, and the part for evaluation."""
