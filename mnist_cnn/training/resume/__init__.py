"""Continuing a stopped run: its settings, read as data, and its state."""
