"""Five small networks for MNIST in PyTorch Lightning: configure, train, evaluate, report."""

import os

__version__ = "0.1.0"

# An OpenMP thread that waits for work first spins, which keeps its core from other programs. Measured on two cores, one
# of them busy with something else: by default, a run takes up to 50 times as long as alone; with 1,000 spins, twice
# as long (10,000 helped networks with small steps only). On a quiet machine, small steps take a tenth longer with it.
# libgomp reads the variable when torch is imported.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
