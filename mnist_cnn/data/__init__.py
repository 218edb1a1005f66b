"""Data sets: fetched, verified, read, split and handed out in batches."""
