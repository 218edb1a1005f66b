"""What is a network? A list of layers in Keras' words, built here into a torch module of the same function."""

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import nn

from mnist_cnn.errors import ConfigError, did_you_mean
from mnist_cnn.layers import LAYERS, MAX_VALUES, Layer, Shape, show


class SummaryRow(NamedTuple):
    """A line of the model summary."""

    layer: str
    output_shape: Shape
    parameters: int
    how: str  # how the parameters come about, e.g. 3·3·1·32 + 32


class Network(nn.Sequential):
    """What `build_network` returns: (N, *input_shape) in, the logits (N, *output_shape) out.

    Submodules are named by position and kind, `0_Conv2D`, `0_relu`, `1_MaxPooling2D`, …; so are the keys of its
    state_dict. `layers` is the list it was built from, plain values that a checkpoint can hold.
    """

    def __init__(self, layers: Sequence[Any], input_shape: Shape) -> None:
        super().__init__()
        self.layers = list(layers)
        self.input_shape = self.output_shape = input_shape
        self.rows: list[SummaryRow] = []

    def append_layer(self, name: str, layer: Layer) -> None:
        """Add a built layer at the end."""
        for part, module in layer.modules.items():
            self.add_module(f"{len(self.rows)}_{part}", module)
        self.rows.append(SummaryRow(name, layer.output_shape, layer.parameter_count, layer.count))
        self.output_shape = layer.output_shape

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

    A layer is `{Name: {argument: value, …}}`, or `Name` alone where no argument is needed. With `classes`, the last
    layer must give that many values. A softmax at the very end is left out: the output is the logits, and the loss
    applies the softmax. Raises ConfigError that names the layer.
    """
    if not layers:
        raise ConfigError("model.layers is empty: a network needs at least one layer.")
    network = Network(layers, tuple(input_shape))
    for index, entry in enumerate(layers):
        name, arguments = _parse(index, entry)
        try:
            layer = _build(name, arguments, network.output_shape, last=index == len(layers) - 1)
        except ConfigError as error:
            raise ConfigError(f"layer {index} ({name}): {error}") from None
        network.append_layer(name, layer)
    if classes is not None and network.output_shape != (classes,):
        raise ConfigError(
            f"layer {len(layers) - 1} ({name}): the network ends in {show(network.output_shape)} values, but there are "
            f"{classes} classes; end it with Flatten and Dense: {{units: {classes}}}."
        )
    return network


def _parse(index: int, entry: Any) -> tuple[str, dict[str, Any]]:
    if isinstance(entry, str):
        entry = {entry: {}}
    if not isinstance(entry, Mapping) or len(entry) != 1:
        raise ConfigError(f"layer {index}: {entry!r} is not a layer; write one as {{Dense: {{units: 10}}}} or Flatten.")
    ((name, arguments),) = entry.items()
    if name not in LAYERS:
        raise ConfigError(f"layer {index}: no layer is called {name}.{did_you_mean(str(name), LAYERS)}")
    if not isinstance(arguments or {}, Mapping):
        raise ConfigError(f"layer {index} ({name}): its arguments must be written {{argument: value}}.")
    return name, dict(arguments or {})


def _build(name: str, arguments: dict[str, Any], shape: Shape, last: bool) -> Layer:
    parameters = dict(inspect.signature(LAYERS[name]).parameters)
    del parameters["shape"]
    for argument in arguments:
        if argument not in parameters:
            takes = ", ".join(parameters) or "none"
            raise ConfigError(
                f"it has no argument '{argument}'.{did_you_mean(str(argument), parameters)} Its arguments: {takes}."
            )
    for argument, parameter in parameters.items():
        if parameter.default is parameter.empty and argument not in arguments:
            raise ConfigError(f"{argument} is missing.")
    if last and name == "Softmax":
        return Layer({}, shape)
    if last and arguments.get("activation") == "softmax":
        arguments = {**arguments, "activation": None}
    layer = LAYERS[name](shape, **arguments)
    if min(layer.output_shape) < 1:
        raise ConfigError(
            f"nothing is left of its input, {show(shape)}; leave it out, or take a smaller kernel or padding: same."
        )
    if math.prod(layer.output_shape) > MAX_VALUES:
        raise ConfigError(f"its output, {show(layer.output_shape)}, is too large.")
    return layer
