"""Reads the configuration of a Keras model (Keras 1 to 3, Sequential or Functional) into plain KerasLayer objects.

`convert` turns them into layers of this project. Class names are only compared with fixed lists, never imported.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from mnist_cnn.errors import ConfigError
from mnist_cnn.network.arguments import Shape

CONTAINERS = ("Sequential", "Functional", "Model")
MAX_LAYERS = 1000
_MAX_DEPTH = 8

_OTHER_NAMES = {
    "AvgPool2D": "AveragePooling2D", "MaxPool2D": "MaxPooling2D", "GlobalAvgPool2D": "GlobalAveragePooling2D",
    "GlobalMaxPool2D": "GlobalMaxPooling2D", "Convolution2D": "Conv2D", "SeparableConvolution2D": "SeparableConv2D",
    "BatchNormalizationV1": "BatchNormalization", "BatchNormalizationV2": "BatchNormalization",
}  # fmt: skip

# A tensor of a Functional model: the name of the layer that gives it, and the number of its call.
Tensor = tuple[str, int]


@dataclass
class KerasLayer:
    """A layer of the configuration, or a model with `layers` of its own, in the order of the file.

    `config` has the layer's arguments and the shape that it was built for. In a Functional model, `calls` has the
    inputs of each use of the layer; `inputs` and `outputs` are those of such a model. `place` is the position in a list
    of layers of this project, if the layer comes from one.
    """

    kind: str
    name: str
    config: dict[str, Any]
    layers: list["KerasLayer"] = field(default_factory=list)
    calls: list[list[Tensor]] = field(default_factory=list)
    inputs: list[str] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)
    place: int | None = None

    def leaves(self) -> Iterator["KerasLayer"]:
        """The layers in it, at any depth, that are not models."""
        if self.kind not in CONTAINERS:
            yield self
        for layer in self.layers:
            yield from layer.leaves()

    def __str__(self) -> str:
        return f"layer {self.kind} '{self.name}'" if self.place is None else f"layer {self.place} ({self.kind})"


def parse(config: Any, depth: int = 0) -> KerasLayer:
    """Read a model's configuration, a mapping with class_name and config; ConfigError says what is not supported."""
    model = _layer(config)
    if model.kind not in CONTAINERS:
        raise ConfigError(f"its class is {model.kind}; only Sequential and Functional models can be imported.")
    entries = config["config"] if isinstance(config["config"], list) else model.config.get("layers")
    if not isinstance(entries, list) or not 0 < len(entries) <= MAX_LAYERS or depth > _MAX_DEPTH:
        raise ConfigError(f"{model}: it has no layers, or more than any small network has.")
    for entry in entries:
        layer = _layer(entry)
        if layer.kind in CONTAINERS:
            layer = parse(entry, depth + 1)
        if model.kind != "Sequential":
            nodes = entry.get("inbound_nodes")
            layer.calls = [_tensors(node) for node in nodes] if isinstance(nodes, list) else []
        model.layers.append(layer)
    if model.kind != "Sequential":
        model.inputs = [name for name, _ in _tensors(model.config.get("input_layers"))]
        model.outputs = _tensors(model.config.get("output_layers"))
        if len(model.inputs) != 1 or len(model.outputs) != 1:
            count = f"{len(model.inputs)} inputs and {len(model.outputs)} outputs"
            raise ConfigError(f"{model}: it has {count}; only models with one of each can be imported.")
    return model


def input_shape(model: KerasLayer) -> Shape:
    """The shape of the model's input as Keras writes it, without the batch; an open height or width counts as 28."""
    entrance, path = model, [model]  # the first layer, and the models around it
    while entrance.layers:
        entrance = next((layer for layer in entrance.layers if layer.name in entrance.inputs), entrance.layers[0])
        path.insert(0, entrance)
    for layer in path:
        for key, batch in (("batch_shape", 1), ("batch_input_shape", 1), ("input_shape", 0), ("build_input_shape", 1)):
            shape = layer.config.get(key)
            if isinstance(shape, list | tuple) and len(shape) > batch:
                sizes = list(shape)[batch:]
                if len(sizes) == 3:
                    sizes = [28 if size is None else size for size in sizes]
                if not all(type(size) is int and 0 < size <= 4096 for size in sizes) or len(sizes) > 3:
                    raise ConfigError(f"{layer}: its input, {sizes}, is not an image.")
                return tuple(sizes)
        if type(layer.config.get("input_dim")) is int:
            return (layer.config["input_dim"],)
    raise ConfigError(f"{entrance}: the configuration does not say what shape its input has.")


def is_channels_first(model: KerasLayer) -> bool:
    """Whether the model's images are (C, H, W); ConfigError if its layers differ in this."""
    windowed = [layer.config for layer in model.leaves() if re.search("Conv|Pool|Padding", layer.kind)]
    orders = {str(config.get("data_format", config.get("dim_ordering"))) for config in windowed}
    channels_first = bool(orders & {"channels_first", "th"})
    if channels_first and orders & {"channels_last", "tf"}:
        raise ConfigError("some of its layers have data_format channels_first and others channels_last.")
    return channels_first


def image_shape(shape: Shape, channels_first: bool) -> Shape:
    """The shape (C, H, W) of the image whose values the model takes, in whatever shape it takes them."""
    if len(shape) == 3:
        channels, height, width = shape if channels_first else (shape[2], *shape[:2])
        if channels in (1, 3):
            return channels, height, width
    side = math.isqrt(math.prod(shape))
    if side * side != math.prod(shape):
        raise ConfigError(f"its input, {list(shape)}, is not a square grey image.")
    return 1, side, side


def snake_case(name: str) -> str:
    """The name that Keras gives a layer after its class: `conv2d`, `max_pooling2d`, `batch_normalization`."""
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", re.sub(r"\W+", "", name))
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()


def _layer(entry: Any) -> KerasLayer:
    if not isinstance(entry, Mapping) or not isinstance(entry.get("class_name"), str) or "config" not in entry:
        raise ConfigError("its configuration has an entry without class_name and config; is it a Keras model?")
    config = dict(entry["config"]) if isinstance(entry["config"], Mapping) else {}
    build = entry.get("build_config")
    if isinstance(build, Mapping):
        config.setdefault("build_input_shape", build.get("input_shape"))
    name = entry.get("name", config.get("name"))
    kind = str(entry["class_name"])
    if "module" in entry and not str(entry["module"]).startswith(("keras", "tf_keras", "tensorflow")):
        # `.keras` files name the module of each class; HDF5 files don't.
        raise ConfigError(f"layer {kind} '{name}': a custom class, which can't be imported.")
    kind = _OTHER_NAMES.get(kind, kind)
    return KerasLayer(kind, name if isinstance(name, str) else "", config)


def _tensors(node: Any) -> list[Tensor]:
    """Every tensor that a node names: in Keras 3's `keras_history`, or in the nested lists of Keras 1 and 2."""
    if isinstance(node, Mapping):
        return [found for value in node.values() for found in _tensors(value)]
    if not isinstance(node, list | tuple):
        return []
    if len(node) in (3, 4) and isinstance(node[0], str) and all(type(number) is int for number in node[1:3]):
        if node[2] != 0:
            raise ConfigError(f"layer '{node[0]}': one of its several outputs is used, which is not supported.")
        return [(node[0], node[1])]
    return [found for item in node for found in _tensors(item)]
