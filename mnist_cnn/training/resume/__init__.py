"""Resume a stopped run: read its settings as data, and check its state."""
