"""What prep and train agree on: a pack, the manifest, the MDS format, media, model folders."""
