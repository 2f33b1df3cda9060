"""Words on a terminal: one file a command. Nothing imports this package."""
