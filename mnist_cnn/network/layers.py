"""Which layers are there, and what does each take? Keras' names and arguments, torch modules underneath.

A function's signature is the list of arguments that its layer takes; it gets the shape that enters the layer (for one
of MERGES: the shapes) and returns a Layer. ConfigError says what an argument can't be; `network.build_network` adds
which layer.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mnist_cnn.errors import ConfigError
from mnist_cnn.network import modules as keras_ops
from mnist_cnn.network.arguments import (
    Shape,
    axis_dim,
    choice,
    fraction,
    image,
    keras_shape,
    number,
    pair,
    real,
    show,
    torch_shape,
)
from mnist_cnn.network.modules import ACTIVATIONS, INITIALIZERS

# A kernel or an output larger than this is a slip or an attack, not a network for small pictures.
MAX_VALUES = 2**26


@dataclass(frozen=True)
class Layer:
    """One built layer: its modules in order, the shape that leaves it, and how its parameters are counted."""

    modules: Mapping[str, nn.Module]
    output_shape: Shape
    count: str = ""

    @property
    def parameter_count(self) -> int:
        """As Keras counts: the moving averages of BatchNormalization included."""
        return sum(t.numel() for module in self.modules.values() for t in (*module.parameters(), *module.buffers()))


# --- the layers, under Keras' names and with Keras' arguments ------------------------------------------------------
# Each function's signature is the list of arguments that the layer takes.


def _conv2d(
    shape: Shape,
    filters: Any,
    kernel_size: Any,
    strides: Any = 1,
    padding: str = "valid",
    dilation_rate: Any = 1,
    groups: Any = 1,
    activation: str | None = None,
    use_bias: bool = True,
    kernel_initializer: str = "glorot_uniform",
    bias_initializer: str = "zeros",
) -> Layer:
    filters, groups = number("filters", filters), number("groups", groups)
    conv, pad, size = _convolution(shape, filters, kernel_size, strides, padding, dilation_rate, groups, use_bias)
    kernel = conv.kernel_size
    area = kernel[0] * kernel[1]
    _initialize(conv, (area * shape[0] // groups, area * filters), kernel_initializer, bias_initializer)
    inputs = f"{shape[0]}/{groups}" if groups > 1 else str(shape[0])
    count = f"{kernel[0]}·{kernel[1]}·{inputs}·{filters}" + (f" + {filters}" if use_bias else "")
    return Layer({**pad, "Conv2D": conv, **_activation(activation, (filters, *size))}, (filters, *size), count)


def _depthwise_conv2d(
    shape: Shape,
    kernel_size: Any,
    strides: Any = 1,
    padding: str = "valid",
    depth_multiplier: Any = 1,
    dilation_rate: Any = 1,
    activation: str | None = None,
    use_bias: bool = True,
    depthwise_initializer: str = "glorot_uniform",
    bias_initializer: str = "zeros",
) -> Layer:
    channels, multiplier = image(shape)[0], number("depth_multiplier", depth_multiplier)
    filters = channels * multiplier
    conv, pad, size = _convolution(shape, filters, kernel_size, strides, padding, dilation_rate, channels, use_bias)
    kernel = conv.kernel_size
    area = kernel[0] * kernel[1]
    # Keras' kernel is (height, width, channels, multiplier), and its fans are read off that shape.
    _initialize(
        conv, (area * channels, area * multiplier), depthwise_initializer, bias_initializer, "depthwise_initializer"
    )
    count = f"{kernel[0]}·{kernel[1]}·{channels}·{multiplier}" + (f" + {filters}" if use_bias else "")
    return Layer({**pad, "DepthwiseConv2D": conv, **_activation(activation, (filters, *size))}, (filters, *size), count)


def _separable_conv2d(
    shape: Shape,
    filters: Any,
    kernel_size: Any,
    strides: Any = 1,
    padding: str = "valid",
    dilation_rate: Any = 1,
    depth_multiplier: Any = 1,
    activation: str | None = None,
    use_bias: bool = True,
    depthwise_initializer: str = "glorot_uniform",
    pointwise_initializer: str = "glorot_uniform",
    bias_initializer: str = "zeros",
) -> Layer:
    depthwise = _depthwise_conv2d(
        shape, kernel_size, strides, padding, depth_multiplier, dilation_rate,
        use_bias=False, depthwise_initializer=depthwise_initializer,
    )  # fmt: skip
    pointwise = _conv2d(
        depthwise.output_shape, filters, 1, activation=activation, use_bias=use_bias,
        kernel_initializer=pointwise_initializer, bias_initializer=bias_initializer,
    )  # fmt: skip
    modules = {"depthwise" if key == "DepthwiseConv2D" else key: module for key, module in depthwise.modules.items()}
    modules |= {"pointwise" if key == "Conv2D" else key: module for key, module in pointwise.modules.items()}
    return Layer(modules, pointwise.output_shape, f"{depthwise.count} + {pointwise.count.removeprefix('1·1·')}")


def _pooling(kind: str, shape: Shape, pool_size: Any = 2, strides: Any = None, padding: str = "valid") -> Layer:
    channels, height, width = image(shape)
    pool = pair("pool_size", pool_size)
    stride = pool if strides is None else pair("strides", strides)
    size, pad = keras_ops.windows((height, width), pool, stride, padding, (1, 1))
    modules: dict[str, nn.Module]
    if kind == "AveragePooling2D":
        modules = {kind: keras_ops.AveragePoolingSame(pool, stride, pad) if any(pad) else nn.AvgPool2d(pool, stride)}
    else:
        modules = {"pad": nn.ConstantPad2d(pad, -math.inf)} if any(pad) else {}
        modules[kind] = nn.MaxPool2d(pool, stride)
    return Layer(modules, (channels, *size))


def _max_pooling2d(shape: Shape, pool_size: Any = 2, strides: Any = None, padding: str = "valid") -> Layer:
    return _pooling("MaxPooling2D", shape, pool_size, strides, padding)


def _average_pooling2d(shape: Shape, pool_size: Any = 2, strides: Any = None, padding: str = "valid") -> Layer:
    return _pooling("AveragePooling2D", shape, pool_size, strides, padding)


def _global_pooling(kind: str, reduce: str, shape: Shape, keepdims: bool) -> Layer:
    channels = image(shape)[0]
    return Layer({kind: keras_ops.GlobalPooling(reduce, keepdims)}, (channels, 1, 1) if keepdims else (channels,))


def _global_average_pooling2d(shape: Shape, keepdims: bool = False) -> Layer:
    return _global_pooling("GlobalAveragePooling2D", "mean", shape, keepdims)


def _global_max_pooling2d(shape: Shape, keepdims: bool = False) -> Layer:
    return _global_pooling("GlobalMaxPooling2D", "max", shape, keepdims)


def _batch_normalization(
    shape: Shape, axis: Any = -1, momentum: Any = 0.99, epsilon: Any = 1e-3, center: bool = True, scale: bool = True
) -> Layer:
    dim = axis_dim(axis, shape)
    features = shape[dim - 1]
    norm = keras_ops.BatchNorm(features, real("epsilon", epsilon), 1 - fraction("momentum", momentum), dim=dim)
    if not scale:
        norm.register_parameter("weight", None)
    if not center:
        norm.register_parameter("bias", None)
    count = f"{2 + bool(center) + bool(scale)}·{features}, 2·{features} of them moving averages"
    return Layer({"BatchNormalization": norm}, shape, count)


def _instance_normalization(
    shape: Shape, axis: Any = None, epsilon: Any = 1e-3, center: bool = True, scale: bool = True
) -> Layer:
    dim = None if axis is None else axis_dim(axis, shape)
    norm = keras_ops.InstanceNorm(shape, dim, real("epsilon", epsilon), bool(center), bool(scale))
    return Layer({"InstanceNormalization": norm}, shape)


def _unit_normalization(shape: Shape, axis: Any = -1) -> Layer:
    return Layer({"UnitNormalization": keras_ops.UnitNormalization(axis_dim(axis, shape))}, shape)


def _dropout(shape: Shape, rate: Any) -> Layer:
    return Layer({"Dropout": nn.Dropout(fraction("rate", rate))}, shape)


def _spatial_dropout2d(shape: Shape, rate: Any) -> Layer:
    image(shape)
    return Layer({"SpatialDropout2D": nn.Dropout2d(fraction("rate", rate))}, shape)


def _flatten(shape: Shape) -> Layer:
    return Layer({"Flatten": keras_ops.Flatten()}, (math.prod(shape),))


def _dense(
    shape: Shape,
    units: Any,
    activation: str | None = None,
    use_bias: bool = True,
    kernel_initializer: str = "glorot_uniform",
    bias_initializer: str = "zeros",
) -> Layer:
    units, features = number("units", units), keras_shape(shape)[-1]
    _check_size(features, units)
    # Like Keras, it works on the last axis, which is where an image's channels are for Keras only.
    linear = nn.Linear if len(shape) < 3 else keras_ops.ChannelLinear
    dense = linear(features, units, bias=bool(use_bias))
    _initialize(dense, (features, units), kernel_initializer, bias_initializer)
    output_shape = torch_shape((*keras_shape(shape)[:-1], units))
    count = f"{features:,}·{units}" + (f" + {units}" if use_bias else "")
    return Layer({"Dense": dense, **_activation(activation, output_shape)}, output_shape, count)


def _lstm(
    shape: Shape,
    units: Any,
    activation: str | None = "tanh",
    recurrent_activation: str | None = "sigmoid",
    use_bias: bool = True,
    return_sequences: bool = False,
) -> Layer:
    if len(shape) != 2:
        raise ConfigError(f"it needs a sequence (T×F), but gets {show(shape)}; put a Reshape before it.")
    units, (steps, features) = number("units", units), shape
    _check_size(features + units, 4 * units)
    gate, cell = (
        _activation(name, (units,), what)
        for what, name in (("recurrent_activation", recurrent_activation), ("activation", activation))
    )
    lstm = keras_ops.LSTM(
        features,
        units,
        nn.Sequential(*cell.values()),
        nn.Sequential(*gate.values()),
        bool(use_bias),
        bool(return_sequences),
    )
    _fill("kernel_initializer", "glorot_uniform", lstm.kernel, (features, 4 * units))
    count = f"4·{units}·({features} + {units}" + (" + 1)" if use_bias else ")")
    return Layer({"LSTM": lstm}, (steps, units) if return_sequences else (units,), count)


def _activation_layer(shape: Shape, activation: str | None) -> Layer:
    return Layer(_activation(activation, shape), shape)


def _relu(shape: Shape, max_value: Any = None, negative_slope: Any = 0.0, threshold: Any = 0.0) -> Layer:
    slope, threshold = real("negative_slope", negative_slope), real("threshold", threshold)
    top = None if max_value is None else real("max_value", max_value)
    module: nn.Module
    if top is not None or threshold:
        module = nn.ReLU6() if (top, slope, threshold) == (6, 0, 0) else keras_ops.CappedReLU(top, slope, threshold)
    else:
        module = nn.LeakyReLU(slope) if slope else nn.ReLU()
    return Layer({"ReLU": module}, shape)


def _leaky_relu(shape: Shape, negative_slope: Any = 0.3) -> Layer:
    return Layer({"LeakyReLU": nn.LeakyReLU(real("negative_slope", negative_slope))}, shape)


def _elu(shape: Shape, alpha: Any = 1.0) -> Layer:
    return Layer({"ELU": nn.ELU(real("alpha", alpha))}, shape)


def _softmax(shape: Shape, axis: Any = -1) -> Layer:
    return Layer({"Softmax": nn.Softmax(axis_dim(axis, shape))}, shape)


def _zero_padding2d(shape: Shape, padding: Any = 1) -> Layer:
    channels, height, width = image(shape)
    sides = list(padding) if isinstance(padding, Sequence) and not isinstance(padding, str) else [padding, padding]
    if len(sides) != 2:
        raise ConfigError(f"padding must be one number, two, or [[top, bottom], [left, right]], not {padding!r}.")
    (top, bottom), (left, right) = (pair("padding", side, least=0) for side in sides)
    output_shape = (channels, height + top + bottom, width + left + right)
    return Layer({"ZeroPadding2D": nn.ZeroPad2d((left, right, top, bottom))}, output_shape)


def _reshape(shape: Shape, target_shape: Any) -> Layer:
    target = list(target_shape) if isinstance(target_shape, Sequence) else [target_shape]
    total = math.prod(shape)
    if target.count(-1) == 1:
        rest = -math.prod(size for size in target)
        target[target.index(-1)] = total // rest if rest > 0 else 0
    target = [number("target_shape", size) for size in target]
    if math.prod(target) != total or not 1 <= len(target) <= 3:
        raise ConfigError(
            f"target_shape {list(target_shape)!r} must be (values), (steps, values) or (height, width, channels) and "
            f"hold the {total} values of the input."
        )
    return Layer({"Reshape": keras_ops.Reshape(target)}, torch_shape(tuple(target)))


def _permute(shape: Shape, dims: Any) -> Layer:
    order, before = list(dims) if isinstance(dims, Sequence) else [dims], keras_shape(shape)
    if sorted(order) != list(range(1, len(shape) + 1)):
        raise ConfigError(f"dims must be the axes 1 to {len(shape)} in another order, not {dims!r}.")
    return Layer({"Permute": keras_ops.Permute(order)}, torch_shape(tuple(before[axis - 1] for axis in order)))


def _rescaling(shape: Shape, scale: Any, offset: Any = 0.0) -> Layer:
    return Layer({"Rescaling": keras_ops.Rescaling(real("scale", scale), real("offset", offset))}, shape)


def _concatenate(shapes: Sequence[Shape], axis: Any = -1) -> Layer:
    dim = axis_dim(axis, shapes[0])
    rest = {(*shape[: dim - 1], *shape[dim:]) for shape in shapes}
    if len(rest) > 1:
        raise ConfigError(f"its inputs, {', '.join(map(show, shapes))}, differ in more than axis {axis}.")
    output_shape = list(shapes[0])
    output_shape[dim - 1] = sum(shape[dim - 1] for shape in shapes)
    return Layer({"Concatenate": keras_ops.Concatenate(dim)}, tuple(output_shape))


def _elementwise(kind: str, shapes: Sequence[Shape]) -> Layer:
    if len(set(shapes)) > 1:
        raise ConfigError(f"its inputs must have one shape, not {', '.join(map(show, shapes))}.")
    return Layer({kind: keras_ops.Elementwise(kind)}, shapes[0])


LAYERS: dict[str, Callable[..., Layer]] = {
    "Conv2D": _conv2d,
    "DepthwiseConv2D": _depthwise_conv2d,
    "SeparableConv2D": _separable_conv2d,
    "MaxPooling2D": _max_pooling2d,
    "AveragePooling2D": _average_pooling2d,
    "GlobalAveragePooling2D": _global_average_pooling2d,
    "GlobalMaxPooling2D": _global_max_pooling2d,
    "BatchNormalization": _batch_normalization,
    "InstanceNormalization": _instance_normalization,  # of keras-contrib
    "UnitNormalization": _unit_normalization,
    "Dropout": _dropout,
    "SpatialDropout2D": _spatial_dropout2d,
    "Flatten": _flatten,
    "Dense": _dense,
    "LSTM": _lstm,
    "Activation": _activation_layer,
    "ReLU": _relu,
    "LeakyReLU": _leaky_relu,
    "ELU": _elu,
    "Softmax": _softmax,
    "ZeroPadding2D": _zero_padding2d,
    "Reshape": _reshape,
    "Permute": _permute,
    "Rescaling": _rescaling,
}

# Those that take several inputs.
MERGES: dict[str, Callable[..., Layer]] = {
    "Concatenate": _concatenate,
    **{kind: partial(_elementwise, kind) for kind in keras_ops.ELEMENTWISE},
}


# --- what several of them stand on -----------------------------------------------------------------------------------


def _fill(what: str, initializer: Any, weight: Tensor, fans: tuple[int, int]) -> None:
    with torch.no_grad():
        choice(what, initializer, INITIALIZERS)(weight, *fans)


def _initialize(
    module: nn.Conv2d | nn.Linear, fans: tuple[int, int], kernel: str, bias: str, what: str = "kernel_initializer"
) -> None:
    _fill(what, kernel, module.weight, fans)
    values = module.weight.new_empty(0) if module.bias is None else module.bias  # a wrong name is refused in any case
    _fill("bias_initializer", bias, values, (max(len(values), 1),) * 2)


def _activation(name: Any, shape: Shape, what: str = "activation") -> dict[str, nn.Module]:
    make = choice(what, name, ACTIVATIONS)
    if make is None:
        return {}
    # A softmax looks across values: along the last axis in Keras, which is an image's channels.
    return {name: make(dim=axis_dim(-1, shape)) if name.endswith("softmax") else make()}


def _check_size(inputs: int, outputs: int) -> None:
    if inputs * outputs > MAX_VALUES:
        raise ConfigError(f"its kernel, {show((inputs, outputs))}, is too large.")


def _convolution(
    shape: Shape,
    filters: int,
    kernel_size: Any,
    strides: Any,
    padding: Any,
    dilation_rate: Any,
    groups: int,
    use_bias: bool,
) -> tuple[nn.Conv2d, dict[str, nn.Module], tuple[int, int]]:
    """A convolution, the module that pads its input where Conv2d itself can't, and the output's (height, width)."""
    channels, height, width = image(shape)
    kernel, stride = pair("kernel_size", kernel_size), pair("strides", strides)
    dilation = pair("dilation_rate", dilation_rate)
    if max(stride) > 1 and max(dilation) > 1:
        raise ConfigError("strides and dilation_rate above 1 can't go together.")
    if channels % groups or filters % groups:
        raise ConfigError(f"groups={groups} must divide both the {channels} input channels and the {filters} filters.")
    if channels * filters * kernel[0] * kernel[1] > MAX_VALUES * groups:
        raise ConfigError(f"its kernel, {show((*kernel, channels, filters))}, is too large.")
    size, (left, right, top, bottom) = keras_ops.windows((height, width), kernel, stride, padding, dilation)
    symmetric = left == right and top == bottom
    conv = nn.Conv2d(
        channels, filters, kernel, stride, (top, left) if symmetric else 0, dilation, groups, bias=bool(use_bias)
    )
    return conv, {} if symmetric else {"pad": nn.ZeroPad2d((left, right, top, bottom))}, size
