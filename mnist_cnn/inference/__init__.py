"""Trained networks: read from a checkpoint, evaluated, and asked about pictures. Nothing here imports Lightning."""
