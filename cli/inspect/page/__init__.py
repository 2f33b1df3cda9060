"""The page that `lmms inspect run --html` writes."""
