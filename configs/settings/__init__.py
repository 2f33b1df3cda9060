"""What a user may set: one file a section of the YAML."""
