"""Which packs come when, and from where. No torch."""
