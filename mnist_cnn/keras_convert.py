"""How does a Keras model read in our words? Its layers as a list that `network.build_network` takes.

Models in channels_first order become channels-last ones of the same function. What is not known is refused.
"""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from mnist_cnn.arguments import Shape, keras_shape
from mnist_cnn.errors import ConfigError
from mnist_cnn.keras_config import (
    CONTAINERS,
    MAX_LAYERS,
    KerasLayer,
    Tensor,
    image_shape,
    input_shape,
    is_channels_first,
    snake_case,
)
from mnist_cnn.keras_ops import ACTIVATIONS
from mnist_cnn.keras_weights import WEIGHTS
from mnist_cnn.layers import LAYERS, MERGES

# What these do, they do in training only.
_IDENTITIES = {
    "ActivityRegularization", "AlphaDropout", "AugMix", "CutMix", "GaussianDropout", "GaussianNoise", "MixUp",
    "RandAugment", "RandomBrightness", "RandomColorDegeneration", "RandomColorJitter", "RandomContrast",
    "RandomElasticTransform", "RandomErasing", "RandomFlip", "RandomGaussianBlur", "RandomGrayscale", "RandomHeight",
    "RandomHue", "RandomInvert", "RandomPerspective", "RandomPosterization", "RandomRotation", "RandomSaturation",
    "RandomSharpness", "RandomShear", "RandomTranslation", "RandomWidth", "RandomZoom",
}  # fmt: skip

# Arguments that would change what a layer computes, with the only values that are known here.
_MUST_BE: dict[str, tuple[Any, ...]] = {
    "go_backwards": (False,), "stateful": (False,), "return_state": (False,), "time_major": (False,),
    "zero_output_for_mask": (False,), "noise_shape": (None,), "mode": (0,), "renorm": (False,), "groups": (1, None),
    "virtual_batch_size": (None,), "lora_rank": (None,), "quantization_mode": (None,), "data_format": (
        None, "channels_last", "channels_first", "th", "tf",
    ),
}  # fmt: skip

# Arguments that do not: what only training looks at, and how things are called or computed.
_NO_MATTER = (
    "initializer", "regularizer", "constraint", "_shape", "dtype", "dropout", "init", "input_dim", "input_length",
    "name", "trainable", "seed", "sparse", "ragged", "unit_forget_bias", "implementation", "unroll", "consume_less",
    "fused", "synchronized", "dropout_W", "dropout_U", "use_cudnn", "lora_alpha", "renorm_momentum",
)  # fmt: skip

# Keras 1's words.
_KERAS_1 = {
    "nb_filter": "filters", "subsample": "strides", "border_mode": "padding", "bias": "use_bias", "output_dim": "units",
    "p": "rate", "inner_activation": "recurrent_activation", "dim_ordering": "data_format",
    "atrous_rate": "dilation_rate",
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


def convert(model: KerasLayer, version: str, first: Sequence[tuple[str, dict[str, Any]]] = ()) -> Converted:
    """Turn a model into our words. `first` are layers to put before it, which get the image in the model's own shape.

    ConfigError names the layer that can't be brought over.
    """
    conversion = _Conversion(model, version, first)
    last = conversion.run(model, [_Value(_INPUT, 4)])
    notes = conversion.end_in_logits(last)
    if conversion.left_out:
        notes.append(f"left out, for they act in training only: {', '.join(dict.fromkeys(conversion.left_out))}")
    return Converted(
        conversion.written(), conversion.image, conversion.shape, conversion.places, conversion.origins, notes
    )


class _Conversion:
    """The list as it grows, one entry for every time that a layer is used."""

    def __init__(self, model: KerasLayer, version: str, first: Sequence[tuple[str, dict[str, Any]]]) -> None:
        self.keras_1, self.before_keras_3 = version.split(".")[0] == "1", version.split(".")[0] in ("1", "2")
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
            (value,) = values
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
        arguments = self._arguments(layer, values[0].rank)
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

    def _arguments(self, layer: KerasLayer, rank: int) -> dict[str, Any]:
        """Those that our layer takes, in our words, as far as they are not its defaults."""
        given = _in_keras_2_words(layer.config) if self.keras_1 else dict(layer.config)
        if layer.kind == "LeakyReLU" and "alpha" in given:
            given["negative_slope"] = _plain(given.pop("alpha"))
        parameters = inspect.signature(LAYERS.get(layer.kind) or MERGES[layer.kind]).parameters
        arguments = {}
        for key, value in given.items():
            if key in parameters and not key.endswith("initializer"):
                value = self._value(key, value, rank)
                default = parameters[key].default
                if value != default or type(value) is not type(default):
                    arguments[key] = value
            elif key in _MUST_BE:
                if value not in _MUST_BE[key]:
                    raise ConfigError(f"{key}={value!r} is not supported.")
            elif not (value is None or value is False or key.endswith(_NO_MATTER)):
                raise ConfigError(f"its option {key}={value!r} is not known.")
        if arguments.get("strides") == arguments.get("pool_size", 2) and "pool_size" in parameters:
            arguments.pop("strides", None)  # a pooling's default
        return arguments

    def _value(self, key: str, value: Any, rank: int) -> Any:
        value = _plain(value)
        if key.endswith("activation"):
            return self._activation(value)
        if key == "axis":
            value = value[0] if isinstance(value, list) and len(value) == 1 else value
            if self.channels_first and rank == 4:
                value = {1: -1, -3: -1, 2: 1, -2: 1, 3: 2, -1: 2}.get(value, value) if type(value) is int else value
            return -1 if value == rank - 1 else value
        pairs = ("kernel_size", "strides", "pool_size", "dilation_rate", "padding")
        if key in pairs and isinstance(value, list) and len(value) == 2 and value[0] == value[1]:
            return value[0]
        return value

    def _activation(self, value: Any) -> Any:
        if isinstance(value, Mapping):  # how Keras 3 writes a layer, or a function of one's own
            kind = value.get("class_name")
            if kind in ("ReLU", "LeakyReLU", "ELU", "Softmax") and isinstance(value.get("config"), Mapping):
                return KerasLayer(kind, kind, dict(value["config"]))
            value = value.get("config") if isinstance(value.get("config"), str) else kind or "a Python function"
        if value in (None, "linear"):
            return None
        if value == "hard_sigmoid" and self.before_keras_3:
            return "hard_sigmoid_keras2"
        value = {"softmax_v2": "softmax"}.get(value, value) if isinstance(value, str) else value
        if not isinstance(value, str) or value not in ACTIVATIONS:
            raise ConfigError(f"its activation {value!r} is not supported, or a function of somebody's own.")
        return value


def _why_not(kind: str) -> str:
    if kind == "Lambda":
        return "it holds Python code, which is never run; such a model can't be brought over."
    if kind in ("TFOpLambda", "SlicingOpLambda", "TensorFlowOpLayer"):
        return "an operation of TensorFlow outside of any layer, which is not supported."
    return "a custom class, or a layer that is not supported; docs/keras.md lists those that are."


def _in_keras_2_words(config: Mapping[str, Any]) -> dict[str, Any]:
    new = {_KERAS_1.get(key, key): value for key, value in config.items()}
    if "nb_row" in new:
        new["kernel_size"] = [new.pop("nb_row"), new.pop("nb_col", None)]
    return new


def _plain(value: Any) -> Any:
    """An array of Keras 2 as a number or a list, as its `alpha` and `max_value` are sometimes written."""
    if isinstance(value, Mapping) and value.get("type") == "ndarray":
        return value.get("value")
    return list(value) if isinstance(value, tuple) else value


def _rank_after(kind: str, arguments: Mapping[str, Any], rank: int) -> int:
    if kind == "Flatten" or (kind.startswith("Global") and not arguments.get("keepdims")):
        return 2
    if kind == "Reshape":
        target = arguments.get("target_shape")
        return len(target) + 1 if isinstance(target, list) else 2
    if kind == "LSTM":
        return 3 if arguments.get("return_sequences") else 2
    return rank
