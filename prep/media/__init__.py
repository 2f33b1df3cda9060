"""Pictures before training: where their bytes come from, how large they are, whether they are whole."""
