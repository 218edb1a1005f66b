"""Makes `python -m mnist_cnn …` the same as `mnist-cnn …`."""

import sys

from mnist_cnn.cli import main

sys.exit(main())
