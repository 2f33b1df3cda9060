"""The ground floor: what prep and train must agree on, and what a user may set. Imports nothing of ours above it."""
