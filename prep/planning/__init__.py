"""Samples -> which of them share a pack."""
