"""Weights and state on disk: read, write, keep, resume, export."""
