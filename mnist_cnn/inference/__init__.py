"""Uses trained networks: reads checkpoints, evaluates them and classifies pictures. Nothing here imports Lightning."""
