"""What is a network? A list of layers in Keras' words, built here into a torch module of the same function."""

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from torch import Tensor, nn

from mnist_cnn.errors import ConfigError, did_you_mean
from mnist_cnn.network.arguments import Shape, show
from mnist_cnn.network.layers import LAYERS, MAX_VALUES, MERGES, Layer


class SummaryRow(NamedTuple):
    """A line of the model summary."""

    layer: str
    output_shape: Shape
    parameters: int
    how: str  # how the parameters come about, e.g. 3·3·1·32 + 32


@dataclass(frozen=True)
class Node:
    """One entry of the list of layers, built: what it is, which outputs go into it, and which modules compute it.

    `sources` are positions in the list of all values so far: 0 is the network's input, i + 1 what node i gives.
    `arguments` are the layer's own, without `name` and `inputs`. `parts` are names of submodules, in order; a `Shared`
    node has those of `shared`, the position of the node whose weights it uses.
    """

    kind: str
    arguments: dict[str, Any]
    name: str | None
    sources: tuple[int, ...]
    parts: tuple[str, ...]
    output_shape: Shape
    shared: int | None = None


class Network(nn.Sequential):
    """What `build_network` returns: (N, *input_shape) in, the logits (N, *output_shape) out.

    Submodules are named by position and kind, `0_Conv2D`, `0_relu`, `1_MaxPooling2D`, …; so are the keys of its
    state_dict. `layers` is the list it was built from, plain values that a checkpoint can hold.

    A ReLU that MaxPooling2D follows is computed after it, on a quarter of the values. Both orders give the same: the
    largest value stays the largest, and where none is above zero no gradient passes either way.
    """

    def __init__(self, layers: Sequence[Any], input_shape: Shape) -> None:
        super().__init__()
        self.layers = list(layers)
        self.input_shape = input_shape
        self.nodes: list[Node] = []
        self.rows: list[SummaryRow] = []
        self.is_chain = True

    @property
    def output_shape(self) -> Shape:
        """What leaves it, without the batch."""
        return self.nodes[-1].output_shape if self.nodes else self.input_shape

    def forward(self, x: Tensor) -> Tensor:
        """Compute the logits."""
        if self.is_chain:
            logits: Tensor = super().forward(x)  # type: ignore[no-untyped-call]  # torch leaves it untyped
            return logits
        values = [x]
        for node in self.nodes:
            value: Any = [values[source] for source in node.sources] if node.kind in MERGES else values[node.sources[0]]
            for part in node.parts:
                value = self.get_submodule(part)(value)
            values.append(value)
        return values[-1]

    def append_layer(
        self, kind: str, arguments: dict[str, Any], name: str | None, sources: tuple[int, ...], layer: Layer
    ) -> None:
        """Add a built layer at the end."""
        index = len(self.nodes)
        parts = {f"{index}_{part}": module for part, module in layer.modules.items()}
        if kind == "MaxPooling2D" and sources == (index,) and name is None:  # a name would let it be shared
            parts |= self._take_relu()
        for part, module in parts.items():
            self.add_module(part, module)
        self.is_chain &= sources == (index,)
        self.nodes.append(Node(kind, arguments, name, sources, tuple(parts), layer.output_shape))
        self.rows.append(SummaryRow(kind, layer.output_shape, layer.parameter_count, layer.count))

    def _take_relu(self) -> dict[str, nn.Module]:
        """Take the ReLU away from the end of the last node, unless others may ask for what it gives."""
        last = self.nodes[-1] if self.nodes else None
        if last is None or last.name is not None or last.shared is not None or not last.parts:
            return {}
        name = last.parts[-1]
        module = self.get_submodule(name)
        if not isinstance(module, nn.ReLU):
            return {}
        del self._modules[name]
        self.nodes[-1] = replace(last, parts=last.parts[:-1])
        return {name: module}

    def append_shared(self, name: str | None, sources: tuple[int, ...], node: int) -> None:
        """Add a layer that is there already once more."""
        first = self.nodes[node]
        self.is_chain = False
        self.nodes.append(Node("Shared", {"layer": first.name}, name, sources, first.parts, first.output_shape, node))
        self.rows.append(SummaryRow("Shared", first.output_shape, 0, f"the weights of {first.name}"))

    @property
    def largest_output(self) -> int:
        """The most values that a layer gives for one image."""
        return max(math.prod(node.output_shape) for node in self.nodes)

    @property
    def evaluation_batch(self) -> int:
        """How many images are best computed at once where no gradients are wanted.

        Larger batches leave the caches: 6,000 images took `baseline` 250 ms in batches of 250 and 430 ms in batches of
        1,000, on two cores. A large network gets fewer, so that no layer gives more than 2²⁷ values.
        """
        return max(1, min(250, 2**27 // self.largest_output))

    @property
    def operations(self) -> int:
        """About how many floating-point operations one image takes; a training step takes three times as many.

        A multiplication and an addition for each weight at every position it is used at.
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
        """All parameters, as Keras counts them: the moving averages of BatchNormalization included."""
        return sum(row.parameters for row in self.rows)

    def summary(self) -> str:
        """A table of the layers: output shape (C×H×W), parameters, and how each count comes about."""
        cells = [
            ("", "layer", "output", "parameters", "how they are counted"),
            ("", "input", show(self.input_shape), "", ""),
        ]
        for index, row in enumerate(self.rows):
            cells.append((str(index), row.layer, show(row.output_shape), f"{row.parameters:,}", row.how))
        fixed = self.parameter_count - sum(parameter.numel() for parameter in self.parameters())
        cells.append(("", "total", "", f"{self.parameter_count:,}", f"{fixed:,} of them not trained" if fixed else ""))
        width = [max(len(line[column]) for line in cells) for column in range(4)]
        lines = [
            f"{number:>{width[0]}}  {name:<{width[1]}}  {shape:>{width[2]}}  {count:>{width[3]}}  {how}".rstrip()
            for number, name, shape, count, how in cells
        ]
        rule = "─" * max(map(len, lines))
        return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])


def build_network(layers: Sequence[Any], input_shape: Shape, classes: int | None = None) -> Network:
    """Build a list of layers, such as `conf/model/*.yaml` hold, for images of `input_shape` (C, H, W).

    A layer is `{Name: {argument: value, …}}`, or `Name` alone where no argument is needed. It takes what the one before
    gives, or, with `inputs: [a, b]`, what the layers of these `name`s give (`input` is the network's own). A layer of
    MERGES takes several, and `Shared: {layer: a}` is layer a once more, with the same weights.

    With `classes`, the last layer must give that many values. A softmax at the very end is left out: the output is the
    logits, and the loss applies the softmax. Raises ConfigError that names the layer.
    """
    if not layers:
        raise ConfigError("model.layers is empty: a network needs at least one layer.")
    network = Network(layers, tuple(input_shape))
    values = {"input": 0}
    for index, entry in enumerate(layers):
        kind, arguments = _parse(index, entry)
        try:
            name, sources = _place(arguments, values, index, kind in MERGES)
            shapes = [network.nodes[i - 1].output_shape if i else network.input_shape for i in sources]
            if kind == "Shared":
                network.append_shared(name, sources, _shared(network, arguments, values, shapes[0]))
            else:
                layer = _build(kind, arguments, shapes, last=index == len(layers) - 1)
                network.append_layer(kind, arguments, name, sources, layer)
        except ConfigError as error:
            raise ConfigError(f"layer {index} ({kind}): {error}") from None
        if name is not None:
            values[name] = index + 1
    if classes is not None and network.output_shape != (classes,):
        raise ConfigError(
            f"layer {len(layers) - 1} ({kind}): the network ends in {show(network.output_shape)} values, but there are "
            f"{classes} classes; end it with Flatten and Dense: {{units: {classes}}}."
        )
    return network


def _parse(index: int, entry: Any) -> tuple[str, dict[str, Any]]:
    if isinstance(entry, str):
        entry = {entry: {}}
    if not isinstance(entry, Mapping) or len(entry) != 1:
        raise ConfigError(f"layer {index}: {entry!r} is not a layer; write one as {{Dense: {{units: 10}}}} or Flatten.")
    ((kind, arguments),) = entry.items()
    known = [*LAYERS, *MERGES, "Shared"]
    if kind not in known:
        raise ConfigError(f"layer {index}: no layer is called {kind}.{did_you_mean(str(kind), known)}")
    if not isinstance(arguments or {}, Mapping):
        raise ConfigError(f"layer {index} ({kind}): its arguments must be written {{argument: value}}.")
    return kind, dict(arguments or {})


def _place(
    arguments: dict[str, Any], values: Mapping[str, int], index: int, merges: bool
) -> tuple[str | None, tuple[int, ...]]:
    """Take `name` and `inputs` out of the arguments: where in the network the layer stands."""
    name, inputs = arguments.pop("name", None), arguments.pop("inputs", None)
    if name is not None and (not isinstance(name, str) or not name):
        raise ConfigError(f"name must be a word, not {name!r}.")
    if name in values:
        raise ConfigError(f"name {name!r} is taken.")
    if inputs is None:
        if merges:
            raise ConfigError("inputs is missing: the names of the layers that it merges.")
        return name, (index,)
    inputs = [inputs] if isinstance(inputs, str) else inputs
    if not isinstance(inputs, Sequence) or not all(isinstance(item, str) for item in inputs):
        raise ConfigError(f"inputs must be a list of layers' names, not {inputs!r}.")
    for item in inputs:
        if item not in values:
            raise ConfigError(f"inputs: no layer before it has the name {item!r}.{did_you_mean(item, values)}")
    if len(inputs) < 2 if merges else len(inputs) != 1:
        raise ConfigError(f"it takes {'several inputs' if merges else 'one input'}, not {len(inputs)}.")
    return name, tuple(values[item] for item in inputs)


def _shared(network: Network, arguments: Mapping[str, Any], values: Mapping[str, int], shape: Shape) -> int:
    layer = arguments.get("layer")
    if len(arguments) != 1 or not isinstance(layer, str):
        raise ConfigError("it has one argument, layer: the name of a layer before it, whose weights it uses.")
    if not values.get(layer):
        raise ConfigError(f"no layer before it has the name {layer!r}.{did_you_mean(layer, set(values) - {'input'})}")
    position = values[layer] - 1
    first = network.nodes[position]
    before = [network.nodes[i - 1].output_shape if i else network.input_shape for i in first.sources]
    if first.shared is not None or before != [shape]:
        raise ConfigError(f"{layer} must be no Shared itself, and takes {show(before[0])}, not {show(shape)}.")
    return position


def _build(kind: str, arguments: dict[str, Any], shapes: Sequence[Shape], last: bool) -> Layer:
    make = LAYERS.get(kind) or MERGES[kind]
    _check_arguments(arguments, list(inspect.signature(make).parameters.values())[1:])
    shape = shapes[0]
    if last and kind == "Softmax":
        return Layer({}, shape)
    if last and arguments.get("activation") == "softmax":
        arguments = {**arguments, "activation": None}
    layer = make(shapes if kind in MERGES else shape, **arguments)
    if min(layer.output_shape) < 1:
        raise ConfigError(
            f"nothing is left of its input, {show(shape)}; leave it out, or take a smaller kernel or padding: same."
        )
    if math.prod(layer.output_shape) > MAX_VALUES:
        raise ConfigError(f"its output, {show(layer.output_shape)}, is too large.")
    return layer


def _check_arguments(arguments: Mapping[str, Any], parameters: Sequence[inspect.Parameter]) -> None:
    known = [parameter.name for parameter in parameters]
    for argument in arguments:
        if argument not in known:
            near = did_you_mean(str(argument), known)
            raise ConfigError(
                f"it has no argument '{argument}'.{near} Its arguments: {', '.join(known) or 'none'}, and name, inputs."
            )
    for parameter in parameters:
        if parameter.default is parameter.empty and parameter.name not in arguments:
            raise ConfigError(f"{parameter.name} is missing.")
