"""What a run starts from: another network, or a stopped run, whose settings are read as data and whose state is checked."""
