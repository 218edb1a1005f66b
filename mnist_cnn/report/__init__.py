"""The results of a finished run: `metrics.json`, figures and an HTML page."""
