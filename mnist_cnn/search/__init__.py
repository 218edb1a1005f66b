"""Searches for good settings with Optuna: many runs, chosen one after another by what the earlier ones reached."""
