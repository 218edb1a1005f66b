"""Translates the arguments of a Keras layer; refuses any that is unknown and might change what the layer computes."""

from collections.abc import Mapping
from typing import Any

from mnist_cnn.errors import ConfigError
from mnist_cnn.keras.model_config import KerasLayer
from mnist_cnn.network.layers.activations import ACTIVATIONS
from mnist_cnn.network.registry import parameters_of

# Arguments that change what a layer computes, with the only values that are supported.
_REQUIRED: dict[str, tuple[Any, ...]] = {
    "go_backwards": (False,), "stateful": (False,), "return_state": (False,), "time_major": (False,),
    "zero_output_for_mask": (False,), "noise_shape": (None,), "mode": (0,), "renorm": (False,), "groups": (1, None),
    "virtual_batch_size": (None,), "lora_rank": (None,), "quantization_mode": (None,), "data_format": (
        None, "channels_last", "channels_first", "th", "tf",
    ),
}  # fmt: skip

# Endings of arguments that don't: those of training, and those for names and ways of computing the same.
_IGNORED = (
    "initializer", "regularizer", "constraint", "_shape", "dtype", "dropout", "init", "input_dim", "input_length",
    "name", "trainable", "seed", "sparse", "ragged", "unit_forget_bias", "implementation", "unroll", "consume_less",
    "fused", "synchronized", "dropout_W", "dropout_U", "use_cudnn", "lora_alpha", "renorm_momentum",
)  # fmt: skip

# Keras 1's names for arguments of Keras 2 and 3.
_KERAS_1_NAMES = {
    "nb_filter": "filters", "subsample": "strides", "border_mode": "padding", "bias": "use_bias", "output_dim": "units",
    "p": "rate", "inner_activation": "recurrent_activation", "dim_ordering": "data_format",
    "atrous_rate": "dilation_rate",
}  # fmt: skip

# Activations of this project that no Keras has under these names.
_NOT_KERAS = ("log", "hard_sigmoid_keras2")


def translate_arguments(layer: KerasLayer, keras_major: int, is_chw: bool, rank: int) -> dict[str, Any]:
    """The arguments of the layer here, without those that have its default.

    `keras_major` is the major version of the Keras that wrote them, `is_chw` whether the input is an image in
    channels_first order, `rank` the number of its axes with the batch. An activation that is a layer itself stays a
    KerasLayer. ConfigError names an argument that is not supported.
    """
    given = _in_keras_2_names(layer.config) if keras_major == 1 else dict(layer.config)
    if layer.kind == "LeakyReLU" and "alpha" in given:
        given["negative_slope"] = given.pop("alpha")
    parameters = parameters_of(layer.kind)
    arguments = {}
    for key, value in given.items():
        if key in parameters and not key.endswith("initializer"):
            value = _translate(key, _plain(value), keras_major, is_chw, rank)
            default = parameters[key].default
            if value != default or type(value) is not type(default):
                arguments[key] = value
        elif key in _REQUIRED:
            if value not in _REQUIRED[key]:
                raise ConfigError(f"{key}={value!r} is not supported.")
        elif not (value is None or value is False or key.endswith(_IGNORED)):
            raise ConfigError(f"its option {key}={value!r} is not known.")
    if "pool_size" in parameters and arguments.get("strides") == arguments.get("pool_size", 2):
        arguments.pop("strides", None)  # a pooling's default
    return arguments


def _translate(key: str, value: Any, keras_major: int, is_chw: bool, rank: int) -> Any:
    if key.endswith("activation"):
        return _activation(value, keras_major)
    if key == "axis":
        value = value[0] if isinstance(value, list) and len(value) == 1 else value
        if is_chw and type(value) is int:
            value = {1: -1, -3: -1, 2: 1, -2: 1, 3: 2, -1: 2}.get(value, value)
        return -1 if value == rank - 1 else value
    pairs = ("kernel_size", "strides", "pool_size", "dilation_rate", "padding")
    if key in pairs and isinstance(value, list) and len(value) == 2 and value[0] == value[1]:
        return value[0]
    return value


def _activation(value: Any, keras_major: int) -> Any:
    if isinstance(value, Mapping):  # how Keras 3 writes a layer, or a user's function
        kind = value.get("class_name")
        if kind in ("ReLU", "LeakyReLU", "ELU", "Softmax") and isinstance(value.get("config"), Mapping):
            return KerasLayer(kind, kind, dict(value["config"]))
        value = value.get("config") if isinstance(value.get("config"), str) else kind or "a Python function"
    if value in (None, "linear"):
        return None
    if value == "hard_sigmoid" and keras_major < 3:
        return "hard_sigmoid_keras2"
    if value == "softmax_v2":  # TensorFlow's name for its function
        return "softmax"
    if not isinstance(value, str) or value not in ACTIVATIONS or value in _NOT_KERAS:
        raise ConfigError(f"its activation {value!r} is not supported; it may be a custom function.")
    return value


def _in_keras_2_names(config: Mapping[str, Any]) -> dict[str, Any]:
    new = {_KERAS_1_NAMES.get(key, key): value for key, value in config.items()}
    if "nb_row" in new:
        new["kernel_size"] = [new.pop("nb_row"), new.pop("nb_col", None)]
    return new


def _plain(value: Any) -> Any:
    """A number or a list instead of a tuple, or of the array as which Keras 2 sometimes writes alpha and max_value."""
    if isinstance(value, Mapping) and value.get("type") == "ndarray":
        return value.get("value")
    return list(value) if isinstance(value, tuple) else value
