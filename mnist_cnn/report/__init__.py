"""Reports: what a finished run leaves to look at."""
