"""What a run starts from: another network, or a stopped run, whose settings are data and whose state is checked."""
