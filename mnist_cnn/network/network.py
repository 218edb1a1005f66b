"""The network: a torch Sequential that knows the layers it was built from, and describes and measures itself."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mnist_cnn.errors import ConfigError
from mnist_cnn.network import blocked
from mnist_cnn.network.arguments import Shape, show
from mnist_cnn.network.cut import unused_border


@dataclass(frozen=True)
class Node:
    """A built layer of the list.

    `arguments` are the layer's own, without `name` and `inputs`. `sources` are where its inputs come from: 0 is the
    network's input, i + 1 the output of node i. `parts` are the names of its submodules, in order; a `Shared` node has
    those of `shared`, the position of the node whose weights it uses.
    """

    kind: str
    arguments: dict[str, Any]
    name: str | None
    sources: tuple[int, ...]
    parts: tuple[str, ...]
    output_shape: Shape
    parameters: int  # as Keras counts them: with the moving averages of BatchNormalization
    formula: str  # of this number, e.g. 3·3·1·32 + 32
    shared: int | None = None


class Network(nn.Sequential):
    """A chain of layers, from images (N, *input_shape) to logits (N, *output_shape); `build_network` makes it.

    Submodules, and with them the keys of the state_dict, are named by position and kind: `0_Conv2D`, `0_relu`,
    `1_MaxPooling2D`, … `layers` is the list it was built from, as plain values that a checkpoint can hold. A
    convolution or pooling that is put in later must look at the same windows as the one that it replaces.
    """

    def __init__(
        self, layers: Sequence[Any], input_shape: Shape, nodes: Sequence[Node], modules: Mapping[str, nn.Module]
    ) -> None:
        super().__init__()
        self.layers = list(layers)
        self.input_shape = input_shape
        self.nodes = list(nodes)
        for node in nodes:
            for part in node.parts if node.shared is None else ():
                self.add_module(part, modules[part])
        self._cut = unused_border(dict(self.named_children()), input_shape)
        self._blocked = blocked.worth_blocking(dict(self.named_children()))

    def forward(self, x: Tensor) -> Tensor:
        """The last of `outputs`, apart from rounding: faster, without unused pixels and in oneDNN's layout."""
        dtype = blocked.usable_dtype(x, self._modules) if self._blocked else None
        for name, module in self._modules.items():
            if name == self._cut.at and x.shape[2:] == self._cut.size:
                x = x[..., : self._cut.used[0], : self._cut.used[1]]
            if dtype and self._blocked.get(name) is type(module):
                x = blocked.call(module, x, dtype)
            else:
                x = module(x.to_dense() if x.is_mkldnn else x)
        return x.to_dense() if x.is_mkldnn else x

    @property
    def output_shape(self) -> Shape:
        """Without the batch."""
        return self.nodes[-1].output_shape

    def check_shapes(self) -> None:
        """Compute one empty image; raise ConfigError for a layer that gives another shape than it declares."""
        was_training = self.training
        self.eval()
        with torch.no_grad():
            outputs = self.outputs(torch.zeros(1, *self.input_shape))
            for index, (node, output) in enumerate(zip(self.nodes, outputs, strict=True)):
                if tuple(output.shape[1:]) != node.output_shape:
                    shapes = f"{show(tuple(output.shape[1:]))}, but declares {show(node.output_shape)}"
                    raise ConfigError(f"layer {index} ({node.kind}): it gives an output of {shapes}.")
        self.train(was_training)

    def outputs(self, x: Tensor) -> Iterator[Tensor]:
        """The output of each node in turn, computed layer by layer, as the list says."""
        for node in self.nodes:
            for part in node.parts:
                x = self.get_submodule(part)(x)
            yield x

    @property
    def largest_output(self) -> int:
        """The most values that a layer gives for one image."""
        return max(math.prod(node.output_shape) for node in self.nodes)

    @property
    def evaluation_batch(self) -> int:
        """How many images to compute at once where no gradients are needed.

        Larger batches take new memory from the kernel each time: 6,000 images take `baseline` 0.76 s in batches of 250
        and 1.56 s in batches of 1,000, on one core. A large network gets fewer, so that no layer gives more than 2²⁷
        values.
        """
        return max(1, min(250, 2**27 // self.largest_output))

    @property
    def operations(self) -> int:
        """About how many floating-point operations one image takes; a training step takes three times as many.

        Counts a multiplication and an addition for each weight at every position where it is used, including those that
        `forward` cuts off.
        """
        return 2 * sum(
            weight.numel() * (math.prod(node.output_shape) // weight.shape[0] or 1)
            for node in self.nodes
            for part in node.parts
            for weight in self.get_submodule(part).parameters()
            if weight.dim() > 1
        )

    @property
    def parameter_count(self) -> int:
        """All parameters, as Keras counts them: with the moving averages of BatchNormalization."""
        return sum(node.parameters for node in self.nodes)

    def summary(self) -> str:
        """A table of the layers: output shape (C×H×W), number of parameters, and its formula."""
        cells = [
            ("", "layer", "output", "parameters", "formula"),
            ("", "input", show(self.input_shape), "", ""),
        ]
        for index, node in enumerate(self.nodes):
            cells.append((str(index), node.kind, show(node.output_shape), f"{node.parameters:,}", node.formula))
        fixed = self.parameter_count - sum(parameter.numel() for parameter in self.parameters())
        cells.append(("", "total", "", f"{self.parameter_count:,}", f"{fixed:,} of them not trained" if fixed else ""))
        width = [max(len(line[column]) for line in cells) for column in range(4)]
        lines = [
            f"{number:>{width[0]}}  {name:<{width[1]}}  {shape:>{width[2]}}  {count:>{width[3]}}  {formula}".rstrip()
            for number, name, shape, count, formula in cells
        ]
        rule = "─" * max(map(len, lines))
        return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])
