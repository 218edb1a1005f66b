"""The other layers: dense, reshaping, activating, dropping, normalising and recurrent ones."""

import math

from torch import nn

from mnist_cnn.errors import ConfigError
from mnist_cnn.network.arguments import (
    Shape,
    Size,
    axis_dim,
    fraction,
    image,
    keras_shape,
    number,
    numbers,
    real,
    show,
    torch_shape,
)
from mnist_cnn.network.layers import modules
from mnist_cnn.network.layers.activations import CappedReLU, activation_modules
from mnist_cnn.network.layers.initializers import fill, initialize
from mnist_cnn.network.registry import MAX_VALUES, Layer, layer


@layer("Dense")
def _dense(
    shape: Shape,
    units: int,
    activation: str | None = None,
    use_bias: bool = True,
    kernel_initializer: str = "glorot_uniform",
    bias_initializer: str = "zeros",
) -> Layer:
    units, features = number("units", units), keras_shape(shape)[-1]
    _check_size(features, units)
    # As in Keras it maps the last axis, which holds an image's channels; in torch the second one does.
    linear = nn.Linear if len(shape) < 3 else modules.ChannelLinear
    dense = linear(features, units, bias=use_bias)
    initialize(dense, (features, units), kernel_initializer, bias_initializer)
    output_shape = torch_shape((*keras_shape(shape)[:-1], units))
    formula = f"{features:,}·{units}" + (f" + {units}" if use_bias else "")
    return Layer({"Dense": dense, **activation_modules(activation, output_shape)}, output_shape, formula)


@layer("Flatten")
def _flatten(shape: Shape) -> Layer:
    return Layer({"Flatten": modules.Flatten()}, (math.prod(shape),))


@layer("Reshape")
def _reshape(shape: Shape, target_shape: Size) -> Layer:
    target, total = numbers("target_shape", target_shape, least=-1), math.prod(shape)
    if target.count(-1) == 1:
        rest = -math.prod(target)
        target[target.index(-1)] = total // rest if rest > 0 else 0
    if min(target, default=0) < 1 or math.prod(target) != total or len(target) > 3:
        raise ConfigError(
            f"target_shape {target_shape!r} must be (values), (steps, values) or (height, width, channels) and "
            f"hold the {total} values of the input."
        )
    return Layer({"Reshape": modules.Reshape(target)}, torch_shape(tuple(target)))


@layer("Permute")
def _permute(shape: Shape, dims: Size) -> Layer:
    order, before = numbers("dims", dims), keras_shape(shape)
    if sorted(order) != list(range(1, len(shape) + 1)):
        raise ConfigError(f"dims must be the axes 1 to {len(shape)} in another order, not {dims!r}.")
    return Layer({"Permute": modules.Permute(order)}, torch_shape(tuple(before[axis - 1] for axis in order)))


@layer("Rescaling")
def _rescaling(shape: Shape, scale: float, offset: float = 0.0) -> Layer:
    return Layer({"Rescaling": modules.Rescaling(real("scale", scale), real("offset", offset))}, shape)


@layer("Activation")
def _activation(shape: Shape, activation: str | None) -> Layer:
    return Layer(activation_modules(activation, shape), shape)


@layer("ReLU")
def _relu(shape: Shape, max_value: float | None = None, negative_slope: float = 0.0, threshold: float = 0.0) -> Layer:
    slope, threshold = real("negative_slope", negative_slope), real("threshold", threshold)
    top = None if max_value is None else real("max_value", max_value)
    module: nn.Module
    if top is not None or threshold:
        module = nn.ReLU6() if (top, slope, threshold) == (6, 0, 0) else CappedReLU(top, slope, threshold)
    else:
        module = nn.LeakyReLU(slope) if slope else nn.ReLU()
    return Layer({"ReLU": module}, shape)


@layer("LeakyReLU")
def _leaky_relu(shape: Shape, negative_slope: float = 0.3) -> Layer:
    return Layer({"LeakyReLU": nn.LeakyReLU(real("negative_slope", negative_slope))}, shape)


@layer("ELU")
def _elu(shape: Shape, alpha: float = 1.0) -> Layer:
    return Layer({"ELU": nn.ELU(real("alpha", alpha))}, shape)


@layer("Softmax")
def _softmax(shape: Shape, axis: int = -1) -> Layer:
    return Layer({"Softmax": nn.Softmax(axis_dim(axis, shape))}, shape)


@layer("Dropout")
def _dropout(shape: Shape, rate: float) -> Layer:
    return Layer({"Dropout": nn.Dropout(fraction("rate", rate))}, shape)


@layer("SpatialDropout2D")
def _spatial_dropout2d(shape: Shape, rate: float) -> Layer:
    image(shape)
    return Layer({"SpatialDropout2D": nn.Dropout2d(fraction("rate", rate))}, shape)


@layer("BatchNormalization")
def _batch_normalization(
    shape: Shape, axis: int = -1, momentum: float = 0.99, epsilon: float = 1e-3, center: bool = True, scale: bool = True
) -> Layer:
    dim = axis_dim(axis, shape)
    features = shape[dim - 1]
    norm = modules.BatchNorm(features, real("epsilon", epsilon), 1 - fraction("momentum", momentum), dim=dim)
    if not scale:
        norm.register_parameter("weight", None)
    if not center:
        norm.register_parameter("bias", None)
    formula = f"{2 + center + scale}·{features}, 2·{features} of them moving averages"
    return Layer({"BatchNormalization": norm}, shape, formula)


@layer("InstanceNormalization")
def _instance_normalization(
    shape: Shape, axis: int | None = None, epsilon: float = 1e-3, center: bool = True, scale: bool = True
) -> Layer:
    dim = None if axis is None else axis_dim(axis, shape)
    norm = modules.InstanceNorm(shape, dim, real("epsilon", epsilon), center, scale)
    return Layer({"InstanceNormalization": norm}, shape)


@layer("UnitNormalization")
def _unit_normalization(shape: Shape, axis: int = -1) -> Layer:
    return Layer({"UnitNormalization": modules.UnitNormalization(axis_dim(axis, shape))}, shape)


@layer("LSTM")
def _lstm(
    shape: Shape,
    units: int,
    activation: str | None = "tanh",
    recurrent_activation: str | None = "sigmoid",
    use_bias: bool = True,
    return_sequences: bool = False,
) -> Layer:
    if len(shape) != 2:
        raise ConfigError(f"it needs a sequence (T×F), but gets {show(shape)}; put a Reshape before it.")
    units, (steps, features) = number("units", units), shape
    _check_size(features + units, 4 * units)
    gate = nn.Sequential(*activation_modules(recurrent_activation, (units,), "recurrent_activation").values())
    cell = nn.Sequential(*activation_modules(activation, (units,)).values())
    lstm = modules.LSTM(features, units, cell, gate, use_bias, return_sequences)
    fill("kernel_initializer", "glorot_uniform", lstm.kernel, (features, 4 * units))
    formula = f"4·{units}·({features} + {units}" + (" + 1)" if use_bias else ")")
    return Layer({"LSTM": lstm}, (steps, units) if return_sequences else (units,), formula)


def _check_size(inputs: int, outputs: int) -> None:
    if inputs * outputs > MAX_VALUES:
        raise ConfigError(f"its kernel, {show((inputs, outputs))}, is too large.")
