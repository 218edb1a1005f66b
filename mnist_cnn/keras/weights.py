"""Which weights has a layer in Keras, in which order and layout, and where are they here?"""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from mnist_cnn.network.arguments import Shape
from mnist_cnn.network.network import Network, Node


@dataclass(frozen=True)
class Variable:
    """One of a layer's weights. `key` is its place in the network's state_dict, `shape` the one that Keras gives it."""

    name: str
    key: str
    shape: Shape
    layout: str

    @property
    def trainable(self) -> bool:
        """Whether training moves it by gradients."""
        return self.layout != "moving"

    def to_torch(self, value: Tensor, like: Tensor) -> Tensor:
        """From Keras' layout to ours."""
        if self.layout == "transposed":  # (in, out), or (height, width, in, out)
            value = value.permute(3, 2, 0, 1) if value.dim() == 4 else value.t()
        elif self.layout == "depthwise":  # (height, width, in, multiplier)
            value = value.permute(2, 3, 0, 1)
        return value.reshape(like.shape).contiguous()

    def to_keras(self, value: Tensor) -> Tensor:
        """And back."""
        if self.layout == "transposed":
            value = _transposed(value)
        elif self.layout == "depthwise":
            height, width, channels, multiplier = self.shape
            value = value.reshape(channels, multiplier, height, width).permute(2, 3, 0, 1)
        return value.reshape(self.shape).contiguous()


# For each layer with weights: Keras' name of each, in Keras' order, its submodule and name there, and its layout.
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
    """The weights of node `index`, in Keras' order; none for a `Shared` one, whose weights are another's."""
    node = network.nodes[index]
    values = network.state_dict(keep_vars=True)
    for name, place, layout in WEIGHTS.get(node.kind, ()):
        key = f"{index}_{place}"
        if key in values:
            yield Variable(name, key, _keras_shape(node, values[key], layout), layout)


def _transposed(value: Tensor) -> Tensor:
    """From (out, in, height, width) or (out, in) to Keras' order."""
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
