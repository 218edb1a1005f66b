"""The commands of `mnist-cnn`, a module each: a DESCRIPTION, `add_arguments`, and `run`, which returns the exit status.

Each imports what it needs when it runs, so that `--help` answers at once. Only `train` has a `main` instead, because
Hydra reads its arguments.
"""
