"""The weights of each layer: their order and layout in Keras, and their keys in the state_dict of a network."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from mnist_cnn.network.arguments import Shape
from mnist_cnn.network.network import Network, Node


@dataclass(frozen=True)
class Variable:
    """One of a layer's weights: its key in the network's state_dict, and its shape and layout in Keras."""

    name: str
    key: str
    shape: Shape
    layout: str

    @property
    def trainable(self) -> bool:
        """Whether gradients train it."""
        return self.layout != "moving"

    def to_torch(self, value: Tensor, like: Tensor) -> Tensor:
        """A value of Keras in the layout of `like`, the same weight here."""
        if self.layout == "transposed":  # (in, out), or (height, width, in, out)
            value = value.permute(3, 2, 0, 1) if value.dim() == 4 else value.t()
        elif self.layout == "depthwise":  # (height, width, in, multiplier)
            value = value.permute(2, 3, 0, 1)
        return value.reshape(like.shape).contiguous()

    def to_keras(self, value: Tensor) -> Tensor:
        """A value from here in Keras' layout."""
        if self.layout == "transposed":
            value = _transposed(value)
        elif self.layout == "depthwise":
            height, width, channels, multiplier = self.shape
            value = value.reshape(channels, multiplier, height, width).permute(2, 3, 0, 1)
        return value.reshape(self.shape).contiguous()


# For each layer with weights, in Keras' order: Keras' name, the key behind the layer's position (`Layer.modules`), and
# the layout. A layer that is not here is imported and exported without weights.
WEIGHTS = {
    "Conv2D": [("kernel", "Conv2D.weight", "transposed"), ("bias", "Conv2D.bias", "")],
    "DepthwiseConv2D": [
        ("depthwise_kernel", "DepthwiseConv2D.weight", "depthwise"),
        ("bias", "DepthwiseConv2D.bias", ""),
    ],
    "SeparableConv2D": [
        ("depthwise_kernel", "depthwise.weight", "depthwise"),
        ("pointwise_kernel", "pointwise.weight", "transposed"),
        ("bias", "pointwise.bias", ""),
    ],
    "Dense": [("kernel", "Dense.weight", "transposed"), ("bias", "Dense.bias", "")],
    "BatchNormalization": [
        ("gamma", "BatchNormalization.weight", ""),
        ("beta", "BatchNormalization.bias", ""),
        ("moving_mean", "BatchNormalization.running_mean", "moving"),
        ("moving_variance", "BatchNormalization.running_var", "moving"),
    ],
    "InstanceNormalization": [
        ("gamma", "InstanceNormalization.gamma", ""),
        ("beta", "InstanceNormalization.beta", ""),
    ],
    "LSTM": [
        ("kernel", "LSTM.kernel", ""),
        ("recurrent_kernel", "LSTM.recurrent_kernel", ""),
        ("bias", "LSTM.bias", ""),
    ],
}


def variables(network: Network, index: int) -> Iterator[Variable]:
    """The weights of node `index`, in Keras' order; a `Shared` node has none of its own."""
    node = network.nodes[index]
    values = network.state_dict(keep_vars=True)
    for name, place, layout in WEIGHTS.get(node.kind, ()):
        key = f"{index}_{place}"
        if key in values:
            yield Variable(name, key, _keras_shape(node, values[key], layout), layout)


def _transposed(value: Tensor) -> Tensor:
    """(out, in, height, width) → (height, width, in, out), or (out, in) → (in, out)."""
    return value.permute(2, 3, 1, 0) if value.dim() == 4 else value.t()


def _keras_shape(node: Node, value: Tensor, layout: str) -> Shape:
    if layout == "transposed":
        value = _transposed(value)
    elif layout == "depthwise":
        out, _, height, width = value.shape
        multiplier = int(node.arguments.get("depth_multiplier", 1))
        return (height, width, out // multiplier, multiplier)
    elif node.kind == "InstanceNormalization":
        return (value.numel(),)
    return tuple(value.shape)
