"""Words on a terminal: one module for each command. No other package imports this package."""
