"""Settings of a user: one module for each section of the YAML."""
