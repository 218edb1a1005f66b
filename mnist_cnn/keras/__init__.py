"""Keras files: read into a checkpoint and written from one, without Keras."""
