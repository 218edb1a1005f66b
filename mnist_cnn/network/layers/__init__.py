"""The layers that a list may name; importing this package registers them in LAYERS."""

from mnist_cnn.network.layers import basic, convolution  # noqa: F401
