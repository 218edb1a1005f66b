"""Converts a Keras model to a list of layers for `build_network`, or refuses it.

A model in channels_first order becomes a channels-last one that computes the same.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from mnist_cnn.errors import ConfigError
from mnist_cnn.keras.arguments import translate_arguments
from mnist_cnn.keras.model_config import (
    CONTAINERS,
    MAX_LAYERS,
    KerasLayer,
    Tensor,
    image_shape,
    input_shape,
    is_channels_first,
    snake_case,
)
from mnist_cnn.keras.weights import WEIGHTS
from mnist_cnn.network import LAYERS, MERGES
from mnist_cnn.network.arguments import Shape, keras_shape

# Layers that act in training only.
_TRAINING_ONLY = {
    "ActivityRegularization", "AlphaDropout", "AugMix", "CutMix", "GaussianDropout", "GaussianNoise", "MixUp",
    "RandAugment", "RandomBrightness", "RandomColorDegeneration", "RandomColorJitter", "RandomContrast",
    "RandomElasticTransform", "RandomErasing", "RandomFlip", "RandomGaussianBlur", "RandomGrayscale", "RandomHeight",
    "RandomHue", "RandomInvert", "RandomPerspective", "RandomPosterization", "RandomRotation", "RandomSaturation",
    "RandomSharpness", "RandomShear", "RandomTranslation", "RandomWidth", "RandomZoom",
}  # fmt: skip

_INPUT = -1


class _Value(NamedTuple):
    """A tensor of the model: the position of the entry whose output it is, and its number of axes with the batch."""

    source: int
    rank: int


class _Entry(NamedTuple):
    """A layer of the list to be written. The argument `layer` of a `Shared` one is a position, not yet a name."""

    kind: str
    arguments: dict[str, Any]
    sources: tuple[int, ...]


@dataclass(frozen=True)
class Converted:
    """A model as a list of `layers` for images of `image_shape` (C, H, W), which Keras' model takes as `keras_shape`.

    `positions` has, by the id of each KerasLayer with weights, its position in the list; `origins` has, for each entry
    of the list, the layer of the model that it comes from. `notes` are sentences for the user.
    """

    layers: list[Any]
    image_shape: Shape
    keras_shape: Shape
    positions: dict[int, int]
    origins: list[str]
    notes: list[str]


Prepended = Sequence[tuple[str, dict[str, Any]]]


def convert(model: KerasLayer, keras_major: int, prepended: Prepended = ()) -> Converted:
    """Convert a model that Keras of this major version wrote; ConfigError names a layer that is not supported.

    `prepended` are layers to put before it, on images in the shape that the model takes.
    """
    conversion = _Conversion(model, keras_major, prepended)
    output = conversion.convert_model(model, [_Value(_INPUT, 4)])
    notes = conversion.end_in_logits(output)
    if conversion.left_out:
        notes.append(f"left out, because they act in training only: {', '.join(dict.fromkeys(conversion.left_out))}")
    return Converted(
        conversion.to_list(), conversion.image, conversion.shape, conversion.positions, conversion.origins, notes
    )


class _Conversion:
    """The list of layers as it grows: one entry for each use of a layer."""

    def __init__(self, model: KerasLayer, keras_major: int, prepended: Prepended) -> None:
        self.keras_major = keras_major
        self.channels_first = is_channels_first(model)
        self.shape = input_shape(model)
        self.image = image_shape(self.shape, self.channels_first)
        self.prepended = prepended
        self.entries: list[_Entry] = []
        self.positions: dict[int, int] = {}
        self.left_out: list[str] = []
        self.calls = 0
        self.origins: list[str] = []
        self._input: _Value | None = None

    def convert_model(self, model: KerasLayer, values: list[_Value]) -> _Value:
        """Convert the layers of a model, which may be in another one; returns its output for these inputs."""
        if model.kind == "Sequential":
            value = values[0]
            for layer in model.layers:
                value = self._call(layer, [value])
            return value
        by_name = {layer.name: layer for layer in model.layers}
        output = model.outputs[0]
        done: dict[Tensor, _Value] = {(model.inputs[0], 0): values[0]}
        opened: set[Tensor] = set()
        waiting = [output]
        while waiting:
            tensor = waiting[-1]
            if tensor in done:
                waiting.pop()
                continue
            name, call = tensor
            if name not in by_name or not 0 <= call < len(by_name[name].calls):
                raise ConfigError(f"layer '{name}': another layer uses it, but it does not exist.")
            missing = [source for source in by_name[name].calls[call] if source not in done]
            if opened.intersection(missing):
                raise ConfigError(f"{by_name[name]}: it depends on its own output.")
            opened.add(tensor)
            waiting += missing
            if not missing:
                done[tensor] = self._call(by_name[name], [done[source] for source in by_name[name].calls[call]])
        return done[output]

    def _call(self, layer: KerasLayer, values: list[_Value]) -> _Value:
        self.calls += 1
        if self.calls > 100 * MAX_LAYERS:
            raise ConfigError(f"{layer}: the model uses its layers more often than any small network does.")
        if not values:
            raise ConfigError(f"{layer}: it has no input.")
        if layer.kind in CONTAINERS:
            if len(values) != 1:
                raise ConfigError(f"{layer}: it gets {len(values)} inputs; only models with one input can be imported.")
            return self.convert_model(layer, values)
        if layer.kind in _TRAINING_ONLY:
            self.left_out.append(layer.kind)
        if layer.kind in _TRAINING_ONLY or layer.kind == "InputLayer":
            return values[0]
        try:
            value = self._convert(layer, values)
        except ConfigError as error:
            raise ConfigError(f"{layer}: {error}") from None
        self.origins += [str(layer)] * (len(self.entries) - len(self.origins))
        return value

    def _convert(self, layer: KerasLayer, values: list[_Value]) -> _Value:
        if layer.kind not in LAYERS and layer.kind not in MERGES:
            raise ConfigError(_why_not(layer.kind))
        # Flatten and Reshape take the values in Keras' order, so that the image itself gives the same as any shape.
        any_shape = layer.kind in ("Flatten", "Reshape") and not self.prepended and not self.channels_first
        if not any_shape:
            values = [self._model_input() if value.source == _INPUT else value for value in values]
        if layer.kind in MERGES and len(values) < 2:
            raise ConfigError("an operation with a constant, which is not supported.")
        is_chw = self.channels_first and values[0].rank == 4
        arguments = translate_arguments(layer, self.keras_major, is_chw, values[0].rank)
        activation = arguments.get("activation")
        if isinstance(activation, KerasLayer):  # a layer instead of an activation's name
            if layer.kind == "Activation":
                return self._convert(activation, values)
            del arguments["activation"]
        if id(layer) in self.positions:
            value = self._add("Shared", {"layer": self.positions[id(layer)]}, values)
        else:
            value = self._first_use(layer, arguments, values, is_chw)
        return self._convert(activation, [value]) if isinstance(activation, KerasLayer) else value

    def _first_use(self, layer: KerasLayer, arguments: dict[str, Any], values: list[_Value], is_chw: bool) -> _Value:
        kind = layer.kind
        if is_chw and kind in ("Dense", "Permute", "UnitNormalization"):
            raise ConfigError("it is not supported on images in channels_first order.")
        # Flatten takes the values as they lie in memory, unless data_format (since Keras 2.2) says channels_first.
        in_memory_order = kind == "Flatten" and layer.config.get("data_format") != "channels_first"
        if is_chw and (in_memory_order or kind == "Reshape"):
            values = [self._add("Permute", {"dims": [3, 1, 2]}, values)]
        value = self._add(kind, arguments, values)
        if kind == "Reshape" and self.channels_first and value.rank == 4:
            return self._add("Permute", {"dims": [2, 3, 1]}, [value])
        if kind in WEIGHTS:  # a second use of any other layer is simply one more layer
            self.positions[id(layer)] = value.source
        return value

    def _model_input(self) -> _Value:
        """The image in the shape that the model takes, behind the prepended layers."""
        if self._input is None:
            value = _Value(_INPUT, 4)
            if len(self.shape) == 1:
                value = self._add("Flatten", {}, [value])
            elif self.shape != (self.image if self.channels_first else keras_shape(self.image)):
                if self.channels_first and len(self.shape) == 3:
                    raise ConfigError(f"its input, {list(self.shape)}, is not an image in channels_first order.")
                value = self._add("Reshape", {"target_shape": list(self.shape)}, [value])
            for kind, arguments in self.prepended:
                value = self._add(kind, arguments, [value])
            self._input = value
        return self._input

    def _add(self, kind: str, arguments: dict[str, Any], values: Sequence[_Value]) -> _Value:
        if len(self.entries) >= MAX_LAYERS:
            raise ConfigError("the model has more layers than any small network has.")
        self.entries.append(_Entry(kind, arguments, tuple(value.source for value in values)))
        used = self.entries[arguments["layer"] if kind == "Shared" else -1]
        return _Value(len(self.entries) - 1, _rank_after(used.kind, used.arguments, values[0].rank))

    def end_in_logits(self, output: _Value) -> list[str]:
        """Make the list end in logits, whose softmax are the model's probabilities; returns notes for the user.

        A softmax at the very end stays in the list: the builder leaves it out.
        """
        if output.source != len(self.entries) - 1 or output.source == _INPUT:
            raise ConfigError("its output is not that of its last layer.")
        entry = self.entries[output.source]
        activation = entry.arguments.get("activation")
        if entry.kind == "Softmax" or activation == "softmax":
            return []
        if activation == "sigmoid":
            self.entries[output.source] = entry._replace(arguments={**entry.arguments, "activation": "log_sigmoid"})
            return ["it ends in sigmoids, which are scaled to the sum of 1"]
        if not self._gives_probabilities(output.source):
            return ["it ends without a softmax; its outputs are taken for logits"]
        self._add("Activation", {"activation": "log"}, [output])
        return []

    def _gives_probabilities(self, position: int) -> bool:
        """Whether an output comes from softmaxes or sigmoids through layers that keep probabilities as they are."""
        kind, arguments, sources = self.entries[position]
        if kind == "Shared":
            kind, arguments, _ = self.entries[arguments["layer"]]
        if kind == "Softmax" or arguments.get("activation") in ("softmax", "sigmoid"):
            return True
        passing = ("Dropout", "SpatialDropout2D", "Flatten", "Reshape", "Permute", "Activation", "Average", "Add")
        return (
            kind in (*passing, "GlobalAveragePooling2D")
            and arguments.get("activation") is None
            and all(source != _INPUT and self._gives_probabilities(source) for source in sources)
        )

    def to_list(self) -> list[Any]:
        """The list for `build_network`. An entry has a name only if another than the next refers to it."""
        branches = [entry.sources for i, entry in enumerate(self.entries) if entry.sources != (i - 1,)]
        named = {source for sources in branches for source in sources}
        named |= {entry.arguments["layer"] for entry in self.entries if entry.kind == "Shared"}
        names = {i: f"{snake_case(self.entries[i].kind)}_{i}" for i in named if i != _INPUT} | {_INPUT: "input"}
        layers: list[Any] = []
        for i, (kind, given, sources) in enumerate(self.entries):
            arguments: dict[str, Any] = {"layer": names[given["layer"]]} if kind == "Shared" else dict(given)
            if sources != (i - 1,):
                arguments["inputs"] = [names[source] for source in sources]
            if i in names:
                arguments["name"] = names[i]
            layers.append({kind: arguments} if arguments else kind)
        return layers


def _why_not(kind: str) -> str:
    if kind == "Lambda":
        return "it holds Python code, which is never run; such a model can't be imported."
    if kind in ("TFOpLambda", "SlicingOpLambda", "TensorFlowOpLayer"):
        return "an operation of TensorFlow outside any layer, which is not supported."
    return "a custom class, or a layer that is not supported; docs/keras.md lists those that are."


def _rank_after(kind: str, arguments: Mapping[str, Any], rank: int) -> int:
    if kind == "Flatten" or (kind.startswith("Global") and not arguments.get("keepdims")):
        return 2
    if kind == "Reshape":
        target = arguments.get("target_shape")
        return len(target) + 1 if isinstance(target, list) else 2
    if kind == "LSTM":
        return 3 if arguments.get("return_sequences") else 2
    return rank
