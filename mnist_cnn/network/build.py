"""The builder: from a list of layers, as `conf/model/*.yaml` hold, to the network."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from mnist_cnn.errors import ConfigError, did_you_mean
from mnist_cnn.network.arguments import Shape, boolean, show
from mnist_cnn.network.graph import GraphNetwork, place, share
from mnist_cnn.network.keras_hints import argument_hint, layer_hint
from mnist_cnn.network.network import Network, Node
from mnist_cnn.network.registry import LAYERS, MAX_VALUES, MERGES, Layer, parameters_of


def build_network(layers: Sequence[Any], input_shape: Shape, classes: int | None = None) -> Network:
    """Build a list of layers for images of `input_shape` (C, H, W).

    A layer is `{Name: {argument: value, …}}`, or only `Name` where it needs no argument. Its input is the output of the
    layer before, or, with `inputs: [a, b]`, of the layers with these `name`s (`input` is the network's input). The
    layers of MERGES take several inputs; `Shared: {layer: a}` is layer a once more, with the same weights.

    With `classes`, the last layer must give that many values; `Dense: {units: classes}` does, whatever their number.
    A softmax at the very end is left out, because the loss applies it: the output is the logits. Raises ConfigError,
    which names the layer.
    """
    if not layers:
        raise ConfigError("the list of layers is empty: a network needs at least one layer.")
    if classes is not None:
        layers = with_class_count(layers, classes)
    nodes: list[Node] = []
    modules: dict[str, nn.Module] = {}
    shapes = [tuple(input_shape)]  # of the network's input, then of each node's output
    positions = {"input": 0}  # in `shapes`, by name
    for index, entry in enumerate(layers):
        kind, arguments = _parse(index, entry)
        try:
            name, sources = place(arguments, positions, index, kind in MERGES)
            if kind == "Shared":
                nodes.append(share(nodes, arguments, positions, name, sources, shapes))
            else:
                layer = _build(kind, arguments, [shapes[i] for i in sources], last=index == len(layers) - 1)
                parts = {f"{index}_{key}": module for key, module in layer.modules.items()}
                modules |= parts
                counted = (layer.parameter_count, layer.formula)
                nodes.append(Node(kind, arguments, name, sources, tuple(parts), layer.output_shape, *counted))
        except ConfigError as error:
            raise ConfigError(f"layer {index} ({kind}): {error}") from None
        shapes.append(nodes[-1].output_shape)
        if name is not None:
            positions[name] = index + 1
    if classes is not None and shapes[-1] != (classes,):
        raise ConfigError(
            f"layer {len(layers) - 1} ({kind}): the network ends in {show(shapes[-1])} values, but there are "
            f"{classes} classes; end it with Flatten and Dense: {{units: classes}}."
        )
    is_chain = all(node.shared is None and node.sources == (index,) for index, node in enumerate(nodes))
    network = Network if is_chain else GraphNetwork
    return network(layers, shapes[0], _pool_before_relu(nodes, modules), modules)


def with_class_count(layers: Sequence[Any], classes: int) -> list[Any]:
    """The layers with the number of classes in the place of the word `classes`, as `units` or `filters`."""

    def counted(arguments: Any) -> Any:
        if not isinstance(arguments, Mapping):
            return arguments
        return {
            key: classes if key in ("units", "filters") and value == "classes" else value
            for key, value in arguments.items()
        }

    return [
        {kind: counted(arguments) for kind, arguments in layer.items()} if isinstance(layer, Mapping) else layer
        for layer in layers
    ]


def _parse(index: int, entry: Any) -> tuple[str, dict[str, Any]]:
    if isinstance(entry, str):
        entry = {entry: {}}
    if not isinstance(entry, Mapping) or len(entry) != 1:
        raise ConfigError(f"layer {index}: {entry!r} is not a layer; write one as {{Dense: {{units: 10}}}} or Flatten.")
    ((kind, arguments),) = entry.items()
    known = [*LAYERS, *MERGES, "Shared"]
    if kind not in known:
        hint = layer_hint(str(kind)) or did_you_mean(str(kind), known)
        raise ConfigError(f"layer {index}: no layer is called {kind}.{hint}")
    if not isinstance(arguments or {}, Mapping):
        raise ConfigError(f"layer {index} ({kind}): its arguments must be written {{argument: value}}.")
    return kind, dict(arguments or {})


def _build(kind: str, arguments: dict[str, Any], shapes: Sequence[Shape], last: bool) -> Layer:
    _check_arguments(kind, arguments)
    if last and kind == "Softmax":
        return Layer({}, shapes[0])
    if last and arguments.get("activation") == "softmax":
        arguments = {**arguments, "activation": None}
    layer = MERGES[kind](shapes, **arguments) if kind in MERGES else LAYERS[kind](shapes[0], **arguments)
    if min(layer.output_shape) < 1:
        raise ConfigError(
            f"nothing is left of its input, {show(shapes[0])}; leave it out, or take a smaller kernel or padding: same."
        )
    if math.prod(layer.output_shape) > MAX_VALUES:
        raise ConfigError(f"its output, {show(layer.output_shape)}, is too large.")
    return layer


def _check_arguments(kind: str, arguments: Mapping[str, Any]) -> None:
    parameters = parameters_of(kind)
    for argument in arguments:
        if argument not in parameters:
            known = f" Its arguments: {', '.join(parameters) or 'none'}, and name, inputs."
            hint = argument_hint(str(argument)) or did_you_mean(str(argument), parameters) + known
            raise ConfigError(f"it has no argument '{argument}'.{hint}")
    for name, parameter in parameters.items():
        if parameter.default is parameter.empty and name not in arguments:
            raise ConfigError(f"{name} is missing.")
        if parameter.annotation is bool and name in arguments:
            boolean(name, arguments[name])


def _pool_before_relu(nodes: Sequence[Node], modules: Mapping[str, nn.Module]) -> list[Node]:
    """Move a ReLU that MaxPooling2D follows behind it, where it has a quarter of the values to compute.

    Both orders give the same: the largest value stays the largest, and where none is above zero no gradient passes
    either way. A ReLU stays where it is if other layers may use its output, or share the pooling: if one has a name.
    """
    nodes = list(nodes)
    for index in range(1, len(nodes)):
        before, pooling = nodes[index - 1 : index + 1]
        if pooling.kind != "MaxPooling2D" or pooling.sources != (index,) or pooling.name or before.name:
            continue
        if before.shared is None and before.parts and isinstance(modules[before.parts[-1]], nn.ReLU):
            nodes[index - 1] = replace(before, parts=before.parts[:-1])
            nodes[index] = replace(pooling, parts=(*pooling.parts, before.parts[-1]))
    return nodes
