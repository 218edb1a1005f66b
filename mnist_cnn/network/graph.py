"""Networks that are not a chain: layers with other inputs than the one before, with several, or used several times.

The networks of `conf/model` are chains and need none of this. It is here for imported Keras models, whose lists of
layers name such inputs: `name`, `inputs`, the layers of MERGES, and `Shared`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor, nn

from mnist_cnn.errors import ConfigError, did_you_mean
from mnist_cnn.network.arguments import Shape, axis_dim, show
from mnist_cnn.network.network import Network, Node
from mnist_cnn.network.registry import MERGES, Layer


class GraphNetwork(Network):
    """A network whose layers take their inputs from any layers before them."""

    def forward(self, x: Tensor) -> Tensor:
        *_, last = self.outputs(x)
        return last

    def outputs(self, x: Tensor) -> Iterator[Tensor]:
        values = [x]
        for node in self.nodes:
            value: Any = [values[source] for source in node.sources] if node.kind in MERGES else values[node.sources[0]]
            for part in node.parts:
                value = self.get_submodule(part)(value)
            values.append(value)
            yield value


def place(
    arguments: dict[str, Any], positions: Mapping[str, int], index: int, merges: bool
) -> tuple[str | None, tuple[int, ...]]:
    """Take `name` and `inputs` out of layer `index`'s arguments; returns the name and the Node's `sources`.

    `positions` has, for each name so far, the position that `sources` count by.
    """
    name, inputs = arguments.pop("name", None), arguments.pop("inputs", None)
    if name is not None and (not isinstance(name, str) or not name):
        raise ConfigError(f"name must be a word, not {name!r}.")
    if name in positions:
        raise ConfigError(f"name {name!r} is taken.")
    if inputs is None:
        if merges:
            raise ConfigError("inputs is missing: the names of the layers that it merges.")
        return name, (index,)
    inputs = [inputs] if isinstance(inputs, str) else inputs
    if not isinstance(inputs, Sequence) or not all(isinstance(item, str) for item in inputs):
        raise ConfigError(f"inputs must be a list of layers' names, not {inputs!r}.")
    for item in inputs:
        if item not in positions:
            raise ConfigError(f"inputs: no layer before it has the name {item!r}.{did_you_mean(item, positions)}")
    if len(inputs) < 2 if merges else len(inputs) != 1:
        raise ConfigError(f"it takes {'several inputs' if merges else 'one input'}, not {len(inputs)}.")
    return name, tuple(positions[item] for item in inputs)


def share(
    nodes: Sequence[Node],
    arguments: Mapping[str, Any],
    positions: Mapping[str, int],
    name: str | None,
    sources: tuple[int, ...],
    shapes: Sequence[Shape],
) -> Node:
    """A `Shared` node: a layer once more, with the same weights, on an input of the same shape.

    `shapes` are those of all values so far: of the network's input, then of each node's output.
    """
    layer = arguments.get("layer")
    if len(arguments) != 1 or not isinstance(layer, str):
        raise ConfigError("it has one argument, layer: the name of a layer before it, whose weights it uses.")
    if not positions.get(layer):
        raise ConfigError(
            f"no layer before it has the name {layer!r}.{did_you_mean(layer, set(positions) - {'input'})}"
        )
    index = positions[layer] - 1
    original = nodes[index]
    takes, gets = ([shapes[i] for i in where] for where in (original.sources, sources))
    if original.shared is not None or takes != gets:
        raise ConfigError(f"{layer} must not be a Shared itself, and takes {show(takes[0])}, not {show(gets[0])}.")
    formula = f"the weights of {layer}"
    return Node("Shared", {"layer": layer}, name, sources, original.parts, original.output_shape, 0, formula, index)


# Keras' layers that merge tensors of one shape value by value.
ELEMENTWISE: dict[str, Callable[[Sequence[Tensor]], Tensor]] = {
    "Add": lambda x: reduce(torch.add, x),
    "Subtract": lambda x: reduce(torch.sub, x),
    "Multiply": lambda x: reduce(torch.mul, x),
    "Average": lambda x: reduce(torch.add, x) / len(x),
    "Maximum": lambda x: reduce(torch.maximum, x),
    "Minimum": lambda x: reduce(torch.minimum, x),
}


class Elementwise(nn.Module):
    """One of ELEMENTWISE."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Sequence[Tensor]) -> Tensor:
        return ELEMENTWISE[self.kind](x)


class Concatenate(nn.Module):
    """Several tensors side by side, along `dim`."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(x), self.dim)


def _elementwise(kind: str, shapes: Sequence[Shape]) -> Layer:
    if len(set(shapes)) > 1:
        raise ConfigError(f"its inputs must have one shape, not {', '.join(map(show, shapes))}.")
    return Layer({kind: Elementwise(kind)}, shapes[0])


def _concatenate(shapes: Sequence[Shape], axis: int = -1) -> Layer:
    dim = axis_dim(axis, shapes[0])
    rest = {(*shape[: dim - 1], *shape[dim:]) for shape in shapes}
    if len(rest) > 1:
        raise ConfigError(f"its inputs, {', '.join(map(show, shapes))}, differ in more than axis {axis}.")
    output_shape = list(shapes[0])
    output_shape[dim - 1] = sum(shape[dim - 1] for shape in shapes)
    return Layer({"Concatenate": Concatenate(dim)}, tuple(output_shape))


MERGES |= {"Concatenate": _concatenate, **{kind: partial(_elementwise, kind) for kind in ELEMENTWISE}}
