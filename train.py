"""Train a network: `python train.py --help` says how, and mnist_cnn/training/run.py is a run from start to end."""

import sys

from mnist_cnn.commands.train import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
