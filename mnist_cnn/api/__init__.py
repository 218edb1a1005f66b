"""The Python interface: `mnist_cnn.load` and `mnist_cnn.train`, as docs/python.md shows them."""
