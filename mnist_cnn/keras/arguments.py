"""What are the arguments of a Keras layer in our words? What is unknown, and might change what it does, is refused."""

from collections.abc import Mapping
from typing import Any

from mnist_cnn.errors import ConfigError
from mnist_cnn.keras.config import KerasLayer
from mnist_cnn.network.activations import ACTIVATIONS
from mnist_cnn.network.registry import parameters_of

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

# Activations of ours that no Keras knows by these names.
_OURS = ("log", "hard_sigmoid_keras2")


def arguments_of(layer: KerasLayer, keras: int, is_chw: bool, rank: int) -> dict[str, Any]:
    """Those that our layer takes, as far as they are not its defaults.

    `keras` is the major version that wrote them; `is_chw` tells that the input is an image in channels_first order,
    `rank` its number of axes with the batch. An activation that is a layer itself comes as such. ConfigError names the
    argument that can't be.
    """
    given = _in_keras_2_words(layer.config) if keras == 1 else dict(layer.config)
    if layer.kind == "LeakyReLU" and "alpha" in given:
        given["negative_slope"] = given.pop("alpha")
    parameters = parameters_of(layer.kind)
    arguments = {}
    for key, value in given.items():
        if key in parameters and not key.endswith("initializer"):
            value = _value(key, _plain(value), keras, is_chw, rank)
            default = parameters[key].default
            if value != default or type(value) is not type(default):
                arguments[key] = value
        elif key in _MUST_BE:
            if value not in _MUST_BE[key]:
                raise ConfigError(f"{key}={value!r} is not supported.")
        elif not (value is None or value is False or key.endswith(_NO_MATTER)):
            raise ConfigError(f"its option {key}={value!r} is not known.")
    if "pool_size" in parameters and arguments.get("strides") == arguments.get("pool_size", 2):
        arguments.pop("strides", None)  # a pooling's default
    return arguments


def _value(key: str, value: Any, keras: int, is_chw: bool, rank: int) -> Any:
    if key.endswith("activation"):
        return _activation(value, keras)
    if key == "axis":
        value = value[0] if isinstance(value, list) and len(value) == 1 else value
        if is_chw and type(value) is int:
            value = {1: -1, -3: -1, 2: 1, -2: 1, 3: 2, -1: 2}.get(value, value)
        return -1 if value == rank - 1 else value
    pairs = ("kernel_size", "strides", "pool_size", "dilation_rate", "padding")
    if key in pairs and isinstance(value, list) and len(value) == 2 and value[0] == value[1]:
        return value[0]
    return value


def _activation(value: Any, keras: int) -> Any:
    if isinstance(value, Mapping):  # how Keras 3 writes a layer, or a function of one's own
        kind = value.get("class_name")
        if kind in ("ReLU", "LeakyReLU", "ELU", "Softmax") and isinstance(value.get("config"), Mapping):
            return KerasLayer(kind, kind, dict(value["config"]))
        value = value.get("config") if isinstance(value.get("config"), str) else kind or "a Python function"
    if value in (None, "linear"):
        return None
    if value == "hard_sigmoid" and keras < 3:
        return "hard_sigmoid_keras2"
    if value == "softmax_v2":  # how TensorFlow calls its function
        return "softmax"
    if not isinstance(value, str) or value not in ACTIVATIONS or value in _OURS:
        raise ConfigError(f"its activation {value!r} is not supported, or a function of somebody's own.")
    return value


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
