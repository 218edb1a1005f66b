"""What a run starts from: another network, or a stopped run, whose settings and state are checked before use."""
