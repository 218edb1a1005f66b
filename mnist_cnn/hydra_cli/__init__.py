"""The command line of training: Hydra composes the settings of a run, or of every run of a sweep."""
