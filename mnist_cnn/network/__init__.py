"""Networks: a list of layers, named as in Keras, becomes a torch module.

`build_network` builds one; `@layer` adds a layer to those that a list may name.
"""

from mnist_cnn.network import graph, layers  # noqa: F401  # importing them fills LAYERS and MERGES
from mnist_cnn.network.build import build_network
from mnist_cnn.network.network import Network
from mnist_cnn.network.registry import LAYERS, MERGES, Layer, layer

__all__ = ["LAYERS", "MERGES", "Layer", "Network", "build_network", "layer"]
