"""Compares trained networks on the same images, and says what may be concluded."""
