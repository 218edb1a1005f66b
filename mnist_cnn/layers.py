"""Which layers are there, and what does each take? Keras' names and arguments, torch modules underneath.

A function's signature is the list of arguments that its layer takes; it gets the shape that enters the layer, (C, H, W)
or (F,), and returns a Layer. ConfigError says what an argument can't be; `network.build_network` adds which layer.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from mnist_cnn import keras_ops
from mnist_cnn.errors import ConfigError, did_you_mean
from mnist_cnn.keras_ops import ACTIVATIONS, INITIALIZERS

Shape = tuple[int, ...]

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


def show(shape: Shape) -> str:
    """`32×26×26`."""
    return "×".join(map(str, shape))


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
    filters, groups = _number("filters", filters), _number("groups", groups)
    conv, pad, size = _convolution(shape, filters, kernel_size, strides, padding, dilation_rate, groups, use_bias)
    kernel = conv.kernel_size
    area = kernel[0] * kernel[1]
    _initialize(conv, (area * shape[0] // groups, area * filters), kernel_initializer, bias_initializer)
    inputs = f"{shape[0]}/{groups}" if groups > 1 else str(shape[0])
    count = f"{kernel[0]}·{kernel[1]}·{inputs}·{filters}" + (f" + {filters}" if use_bias else "")
    return Layer({**pad, "Conv2D": conv, **_activation(activation)}, (filters, *size), count)


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
    channels, multiplier = _image(shape)[0], _number("depth_multiplier", depth_multiplier)
    filters = channels * multiplier
    conv, pad, size = _convolution(shape, filters, kernel_size, strides, padding, dilation_rate, channels, use_bias)
    kernel = conv.kernel_size
    area = kernel[0] * kernel[1]
    # Keras' kernel is (height, width, channels, multiplier), and its fans are read off that shape.
    _initialize(
        conv, (area * channels, area * multiplier), depthwise_initializer, bias_initializer, "depthwise_initializer"
    )
    count = f"{kernel[0]}·{kernel[1]}·{channels}·{multiplier}" + (f" + {filters}" if use_bias else "")
    return Layer({**pad, "DepthwiseConv2D": conv, **_activation(activation)}, (filters, *size), count)


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
    channels, height, width = _image(shape)
    pool = _pair("pool_size", pool_size)
    stride = pool if strides is None else _pair("strides", strides)
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
    channels = _image(shape)[0]
    return Layer({kind: keras_ops.GlobalPooling(reduce, keepdims)}, (channels, 1, 1) if keepdims else (channels,))


def _global_average_pooling2d(shape: Shape, keepdims: bool = False) -> Layer:
    return _global_pooling("GlobalAveragePooling2D", "mean", shape, keepdims)


def _global_max_pooling2d(shape: Shape, keepdims: bool = False) -> Layer:
    return _global_pooling("GlobalMaxPooling2D", "max", shape, keepdims)


def _batch_normalization(
    shape: Shape, momentum: Any = 0.99, epsilon: Any = 1e-3, center: bool = True, scale: bool = True
) -> Layer:
    norm = keras_ops.BatchNorm(shape[0], eps=_real("epsilon", epsilon), momentum=1 - _fraction("momentum", momentum))
    norm.num_batches_tracked = None  # only PyTorch's cumulative average needs it; Keras has no such count
    if not scale:
        norm.register_parameter("weight", None)
    if not center:
        norm.register_parameter("bias", None)
    count = f"{2 + bool(center) + bool(scale)}·{shape[0]}, 2·{shape[0]} of them moving averages"
    return Layer({"BatchNormalization": norm}, shape, count)


def _dropout(shape: Shape, rate: Any) -> Layer:
    return Layer({"Dropout": nn.Dropout(_fraction("rate", rate))}, shape)


def _spatial_dropout2d(shape: Shape, rate: Any) -> Layer:
    _image(shape)
    return Layer({"SpatialDropout2D": nn.Dropout2d(_fraction("rate", rate))}, shape)


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
    units = _number("units", units)
    if len(shape) != 1:
        raise ConfigError(f"it needs a flat input, but gets {show(shape)}; put Flatten or a global pooling before it.")
    if units * shape[0] > MAX_VALUES * 4:
        raise ConfigError(f"its kernel, {show((shape[0], units))}, is too large.")
    dense = nn.Linear(shape[0], units, bias=bool(use_bias))
    _initialize(dense, (shape[0], units), kernel_initializer, bias_initializer)
    count = f"{shape[0]:,}·{units}" + (f" + {units}" if use_bias else "")
    return Layer({"Dense": dense, **_activation(activation)}, (units,), count)


def _activation_layer(shape: Shape, activation: str | None) -> Layer:
    return Layer(_activation(activation), shape)


def _relu(shape: Shape, max_value: Any = None, negative_slope: Any = 0.0) -> Layer:
    slope = _real("negative_slope", negative_slope)
    if max_value is not None:
        if max_value != 6 or slope:
            raise ConfigError("max_value can be 6, without a negative_slope, or left out.")
        return Layer({"ReLU": nn.ReLU6()}, shape)
    return Layer({"ReLU": nn.LeakyReLU(slope) if slope else nn.ReLU()}, shape)


def _leaky_relu(shape: Shape, negative_slope: Any = 0.3) -> Layer:
    return Layer({"LeakyReLU": nn.LeakyReLU(_real("negative_slope", negative_slope))}, shape)


def _elu(shape: Shape, alpha: Any = 1.0) -> Layer:
    return Layer({"ELU": nn.ELU(_real("alpha", alpha))}, shape)


def _softmax(shape: Shape) -> Layer:
    return Layer({"Softmax": nn.Softmax(dim=1)}, shape)


def _zero_padding2d(shape: Shape, padding: Any = 1) -> Layer:
    channels, height, width = _image(shape)
    sides = list(padding) if isinstance(padding, Sequence) and not isinstance(padding, str) else [padding, padding]
    if len(sides) != 2:
        raise ConfigError(f"padding must be one number, two, or [[top, bottom], [left, right]], not {padding!r}.")
    (top, bottom), (left, right) = (_pair("padding", side, least=0) for side in sides)
    output_shape = (channels, height + top + bottom, width + left + right)
    return Layer({"ZeroPadding2D": nn.ZeroPad2d((left, right, top, bottom))}, output_shape)


def _reshape(shape: Shape, target_shape: Any) -> Layer:
    target = list(target_shape) if isinstance(target_shape, Sequence) else [target_shape]
    total = math.prod(shape)
    if target.count(-1) == 1:
        rest = -math.prod(size for size in target)
        target[target.index(-1)] = total // rest if rest > 0 else 0
    target = [_number("target_shape", size) for size in target]
    if math.prod(target) != total or len(target) not in (1, 3):
        raise ConfigError(
            f"target_shape {list(target_shape)!r} must be (values) or (height, width, channels) and hold the "
            f"{total} values of the input."
        )
    output_shape = (target[2], target[0], target[1]) if len(target) == 3 else (target[0],)
    return Layer({"Reshape": keras_ops.Reshape(output_shape)}, output_shape)


def _rescaling(shape: Shape, scale: Any, offset: Any = 0.0) -> Layer:
    return Layer({"Rescaling": keras_ops.Rescaling(_real("scale", scale), _real("offset", offset))}, shape)


LAYERS: dict[str, Callable[..., Layer]] = {
    "Conv2D": _conv2d,
    "DepthwiseConv2D": _depthwise_conv2d,
    "SeparableConv2D": _separable_conv2d,
    "MaxPooling2D": _max_pooling2d,
    "AveragePooling2D": _average_pooling2d,
    "GlobalAveragePooling2D": _global_average_pooling2d,
    "GlobalMaxPooling2D": _global_max_pooling2d,
    "BatchNormalization": _batch_normalization,
    "Dropout": _dropout,
    "SpatialDropout2D": _spatial_dropout2d,
    "Flatten": _flatten,
    "Dense": _dense,
    "Activation": _activation_layer,
    "ReLU": _relu,
    "LeakyReLU": _leaky_relu,
    "ELU": _elu,
    "Softmax": _softmax,
    "ZeroPadding2D": _zero_padding2d,
    "Reshape": _reshape,
    "Rescaling": _rescaling,
}


# --- what the layers' arguments may be ---------------------------------------------------------------------------


def _number(name: str, value: Any, least: int = 1) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{name} must be a whole number of at least {least}, not {value!r}.")
    return value


def _pair(name: str, value: Any, least: int = 1) -> tuple[int, int]:
    values = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value, value]
    if len(values) != 2:
        raise ConfigError(f"{name} must be one number or two (height, width), not {value!r}.")
    return _number(name, values[0], least), _number(name, values[1], least)


def _fraction(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ConfigError(f"{name} must be the fraction to drop, between 0 and 1, not {value!r}.")
    return float(value)


def _real(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ConfigError(f"{name} must be a number, not {value!r}.")
    return float(value)


def _choice(name: str, value: Any, known: Mapping[Any, Any]) -> Any:
    if not (value is None or isinstance(value, str)) or value not in known:
        raise ConfigError(f"{name} {value!r} is not known.{did_you_mean(str(value), filter(None, known))}")
    return known[value]


def _image(shape: Shape) -> tuple[int, int, int]:
    if len(shape) != 3:
        raise ConfigError(f"it needs an image (C×H×W), but gets {show(shape)} values; it must stand before Flatten.")
    return shape


def _initialize(
    module: nn.Conv2d | nn.Linear, fans: tuple[int, int], kernel: str, bias: str, what: str = "kernel_initializer"
) -> None:
    with torch.no_grad():
        _choice(what, kernel, INITIALIZERS)(module.weight, *fans)
        fill_bias = _choice("bias_initializer", bias, INITIALIZERS)
        if module.bias is not None:
            fill_bias(module.bias, module.bias.numel(), module.bias.numel())


def _activation(name: Any) -> dict[str, nn.Module]:
    make = _choice("activation", name, ACTIVATIONS)
    return {name: make()} if make else {}


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
    channels, height, width = _image(shape)
    kernel, stride = _pair("kernel_size", kernel_size), _pair("strides", strides)
    dilation = _pair("dilation_rate", dilation_rate)
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
