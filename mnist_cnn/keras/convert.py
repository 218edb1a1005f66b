"""How does a Keras model read in our words? Its layers as a list that `network.build_network` takes.

Models in channels_first order become channels-last ones of the same function. What is not known is refused.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from mnist_cnn.errors import ConfigError
from mnist_cnn.keras.arguments import arguments_of
from mnist_cnn.keras.config import (
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

# What these do, they do in training only.
_IDENTITIES = {
    "ActivityRegularization", "AlphaDropout", "AugMix", "CutMix", "GaussianDropout", "GaussianNoise", "MixUp",
    "RandAugment", "RandomBrightness", "RandomColorDegeneration", "RandomColorJitter", "RandomContrast",
    "RandomElasticTransform", "RandomErasing", "RandomFlip", "RandomGaussianBlur", "RandomGrayscale", "RandomHeight",
    "RandomHue", "RandomInvert", "RandomPerspective", "RandomPosterization", "RandomRotation", "RandomSaturation",
    "RandomSharpness", "RandomShear", "RandomTranslation", "RandomWidth", "RandomZoom",
}  # fmt: skip

_INPUT = -1


class _Value(NamedTuple):
    """A tensor on its way: the position in our list of what gives it, and its rank with the batch."""

    source: int
    rank: int


class _Entry(NamedTuple):
    """An entry of our list to be; a `Shared` one has the position of the other as its argument `layer`."""

    kind: str
    arguments: dict[str, Any]
    sources: tuple[int, ...]


@dataclass(frozen=True)
class Converted:
    """A model as our list of `layers` for images of `image_shape` (C, H, W), which it takes as `keras_shape`.

    `places` says which entry of the list a leaf of the model with weights became, by its id, and `origins` which layer
    of the model each entry comes from; `notes` are sentences for the user.
    """

    layers: list[Any]
    image_shape: Shape
    keras_shape: Shape
    places: dict[int, int]
    origins: list[str]
    notes: list[str]


def convert(model: KerasLayer, keras: int, first: Sequence[tuple[str, dict[str, Any]]] = ()) -> Converted:
    """Turn a model into our words.

    `keras` is the major version that wrote it; `first` are layers to put before it, which get the image in the model's
    own shape.
    ConfigError names the layer that can't be brought over.
    """
    conversion = _Conversion(model, keras, first)
    last = conversion.run(model, [_Value(_INPUT, 4)])
    notes = conversion.end_in_logits(last)
    if conversion.left_out:
        notes.append(f"left out, for they act in training only: {', '.join(dict.fromkeys(conversion.left_out))}")
    return Converted(
        conversion.written(), conversion.image, conversion.shape, conversion.places, conversion.origins, notes
    )


class _Conversion:
    """The list as it grows, one entry for every time that a layer is used."""

    def __init__(self, model: KerasLayer, keras: int, first: Sequence[tuple[str, dict[str, Any]]]) -> None:
        self.keras = keras
        self.channels_first = is_channels_first(model)
        self.shape = input_shape(model)
        self.image = image_shape(self.shape, self.channels_first)
        self.first = first
        self.entries: list[_Entry] = []
        self.places: dict[int, int] = {}
        self.left_out: list[str] = []
        self.calls = 0
        self.origins: list[str] = []
        self._seen: _Value | None = None

    def run(self, model: KerasLayer, values: list[_Value]) -> _Value:
        """The output of a model, nested ones included, for these inputs."""
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
                raise ConfigError(f"layer '{name}': another one uses it, but it is not there.")
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
            raise ConfigError(f"{layer}: the model uses its layers more often than any small network.")
        if not values:
            raise ConfigError(f"{layer}: it has no input.")
        if layer.kind in CONTAINERS:
            if len(values) != 1:
                raise ConfigError(f"{layer}: it gets {len(values)} inputs; only models with one can be brought over.")
            return self.run(layer, values)
        if layer.kind in _IDENTITIES:
            self.left_out.append(layer.kind)
        if layer.kind in _IDENTITIES or layer.kind == "InputLayer":
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
        # Flatten and Reshape read the values in Keras' order, whatever shape they have; so an image will do.
        any_shape = layer.kind in ("Flatten", "Reshape") and not self.first and not self.channels_first
        if not any_shape:
            values = [self._as_keras_sees_it() if value.source == _INPUT else value for value in values]
        if layer.kind in MERGES and len(values) < 2:
            raise ConfigError("an operation with a constant, which is not supported.")
        arguments = arguments_of(layer, self.keras, self.channels_first and values[0].rank == 4, values[0].rank)
        activation = arguments.get("activation")
        if isinstance(activation, KerasLayer):  # a layer in the place of an activation's name
            if layer.kind == "Activation":
                return self._convert(activation, values)
            del arguments["activation"]
        place = self.places.get(id(layer))
        if place is not None:
            value = self._add("Shared", {"layer": place}, values)
        else:
            value = self._first_time(layer, arguments, values)
        return self._convert(activation, [value]) if isinstance(activation, KerasLayer) else value

    def _first_time(self, layer: KerasLayer, arguments: dict[str, Any], values: list[_Value]) -> _Value:
        kind, is_chw = layer.kind, self.channels_first and values[0].rank == 4
        if is_chw and kind in ("Dense", "Permute", "UnitNormalization"):
            raise ConfigError("on images in channels_first order it is not supported.")
        # Flatten takes the values as they lie, unless it was told (Keras 2.2 on) that channels come first.
        as_they_lie = kind == "Flatten" and layer.config.get("data_format") != "channels_first"
        if is_chw and (as_they_lie or kind == "Reshape"):
            values = [self._add("Permute", {"dims": [3, 1, 2]}, values)]
        value = self._add(kind, arguments, values)
        if kind == "Reshape" and self.channels_first and value.rank == 4:
            return self._add("Permute", {"dims": [2, 3, 1]}, [value])
        if kind in WEIGHTS:  # only these are any different from a second one
            self.places[id(layer)] = value.source
        return value

    def _as_keras_sees_it(self) -> _Value:
        """The image in the shape that the model takes it, behind the layers that come first."""
        if self._seen is None:
            value = _Value(_INPUT, 4)
            if len(self.shape) == 1:
                value = self._add("Flatten", {}, [value])
            elif self.shape != (self.image if self.channels_first else keras_shape(self.image)):
                if self.channels_first and len(self.shape) == 3:
                    raise ConfigError(f"its input, {list(self.shape)}, is not a picture in channels_first order.")
                value = self._add("Reshape", {"target_shape": list(self.shape)}, [value])
            for kind, arguments in self.first:
                value = self._add(kind, arguments, [value])
            self._seen = value
        return self._seen

    def _add(self, kind: str, arguments: dict[str, Any], values: Sequence[_Value]) -> _Value:
        if len(self.entries) >= MAX_LAYERS:
            raise ConfigError("the model has more layers than any small network.")
        said = self.entries[arguments["layer"]] if kind == "Shared" else _Entry(kind, arguments, ())
        self.entries.append(_Entry(kind, arguments, tuple(value.source for value in values)))
        return _Value(len(self.entries) - 1, _rank_after(said.kind, said.arguments, values[0].rank))

    def end_in_logits(self, last: _Value) -> list[str]:
        """Make the last layer give what a softmax turns into the model's probabilities; returns what to know of it.

        The builder itself leaves out a softmax that is the very last thing.
        """
        if last.source != len(self.entries) - 1 or last.source == _INPUT:
            raise ConfigError("its output is not that of its last layer.")
        entry = self.entries[last.source]
        activation = entry.arguments.get("activation")
        if entry.kind == "Softmax" or activation == "softmax":
            return []
        if activation == "sigmoid":
            self.entries[last.source] = entry._replace(arguments={**entry.arguments, "activation": "log_sigmoid"})
        elif self._gives_probabilities(last.source):
            self._add("Activation", {"activation": "log"}, [last])
        else:
            return ["it ends without a softmax; its outputs are taken for logits"]
        return [] if activation != "sigmoid" else ["it ends in sigmoids, which are brought to the sum of 1"]

    def _gives_probabilities(self, position: int) -> bool:
        """Whether an output comes from softmaxes or sigmoids, by layers that leave probabilities what they are."""
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

    def written(self) -> list[Any]:
        """The list, with names where an output goes to another layer than the next."""
        branches = [entry.sources for i, entry in enumerate(self.entries) if entry.sources != (i - 1,)]
        asked = {source for sources in branches for source in sources}
        asked |= {entry.arguments["layer"] for entry in self.entries if entry.kind == "Shared"}
        names = {i: f"{snake_case(self.entries[i].kind)}_{i}" for i in asked if i != _INPUT} | {_INPUT: "input"}
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
        return "it holds Python code, which is never run; such a model can't be brought over."
    if kind in ("TFOpLambda", "SlicingOpLambda", "TensorFlowOpLayer"):
        return "an operation of TensorFlow outside of any layer, which is not supported."
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
