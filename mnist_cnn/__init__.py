"""Five small networks for MNIST in PyTorch Lightning: configure, train, evaluate, report."""

__version__ = "0.1.0"
