"""Training: the LightningModule, its optimisers and callbacks, and a run from start to end."""
