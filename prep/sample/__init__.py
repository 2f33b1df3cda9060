"""Record -> samples."""
