"""Layers that move a window over an image: convolutions, poolings and padding."""

import math
from collections.abc import Sequence

from torch import nn

from mnist_cnn.errors import ConfigError, did_you_mean
from mnist_cnn.network.arguments import Shape, Size, image, number, pair, show
from mnist_cnn.network.layers.activations import activation_modules
from mnist_cnn.network.layers.initializers import initialize
from mnist_cnn.network.layers.modules import AveragePoolingSame, GlobalPooling
from mnist_cnn.network.registry import MAX_VALUES, Layer, layer

Pair = tuple[int, int]  # height and width


@layer("Conv2D")
def _conv2d(
    shape: Shape,
    filters: int,
    kernel_size: Size,
    strides: Size = 1,
    padding: str = "valid",
    dilation_rate: Size = 1,
    groups: int = 1,
    activation: str | None = None,
    use_bias: bool = True,
    kernel_initializer: str = "glorot_uniform",
    bias_initializer: str = "zeros",
) -> Layer:
    filters, groups = number("filters", filters), number("groups", groups)
    conv, pad, size = _convolution(shape, filters, kernel_size, strides, padding, dilation_rate, groups, use_bias)
    kernel = conv.kernel_size
    area = kernel[0] * kernel[1]
    initialize(conv, (area * shape[0] // groups, area * filters), kernel_initializer, bias_initializer)
    inputs = f"{shape[0]}/{groups}" if groups > 1 else str(shape[0])
    formula = f"{kernel[0]}·{kernel[1]}·{inputs}·{filters}" + (f" + {filters}" if use_bias else "")
    modules = {**pad, "Conv2D": conv, **activation_modules(activation, (filters, *size))}
    return Layer(modules, (filters, *size), formula)


@layer("DepthwiseConv2D")
def _depthwise_conv2d(
    shape: Shape,
    kernel_size: Size,
    strides: Size = 1,
    padding: str = "valid",
    depth_multiplier: int = 1,
    dilation_rate: Size = 1,
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
    fans = (area * channels, area * multiplier)
    initialize(conv, fans, depthwise_initializer, bias_initializer, argument="depthwise_initializer")
    formula = f"{kernel[0]}·{kernel[1]}·{channels}·{multiplier}" + (f" + {filters}" if use_bias else "")
    modules = {**pad, "DepthwiseConv2D": conv, **activation_modules(activation, (filters, *size))}
    return Layer(modules, (filters, *size), formula)


@layer("SeparableConv2D")
def _separable_conv2d(
    shape: Shape,
    filters: int,
    kernel_size: Size,
    strides: Size = 1,
    padding: str = "valid",
    dilation_rate: Size = 1,
    depth_multiplier: int = 1,
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
    return Layer(modules, pointwise.output_shape, f"{depthwise.formula} + {pointwise.formula.removeprefix('1·1·')}")


def _convolution(
    shape: Shape, filters: int, kernel_size: Size, strides: Size, padding: str, dilation_rate: Size, groups: int,
    use_bias: bool,
) -> tuple[nn.Conv2d, dict[str, nn.Module], Pair]:  # fmt: skip
    """A convolution, a module that pads its input where Conv2d itself can't, and the output's (height, width)."""
    channels, height, width = image(shape)
    kernel, stride = pair("kernel_size", kernel_size), pair("strides", strides)
    dilation = pair("dilation_rate", dilation_rate)
    if max(stride) > 1 and max(dilation) > 1:
        raise ConfigError("strides and dilation_rate above 1 can't go together.")
    if channels % groups or filters % groups:
        raise ConfigError(f"groups={groups} must divide both the {channels} input channels and the {filters} filters.")
    if channels * filters * kernel[0] * kernel[1] > MAX_VALUES * groups:
        raise ConfigError(f"its kernel, {show((*kernel, channels, filters))}, is too large.")
    size, (left, right, top, bottom) = conv_geometry((height, width), kernel, stride, padding, dilation)
    symmetric = left == right and top == bottom
    conv = nn.Conv2d(
        channels, filters, kernel, stride, (top, left) if symmetric else 0, dilation, groups, bias=use_bias
    )
    return conv, {} if symmetric else {"pad": nn.ZeroPad2d((left, right, top, bottom))}, size


@layer("MaxPooling2D")
def _max_pooling2d(shape: Shape, pool_size: Size = 2, strides: Size | None = None, padding: str = "valid") -> Layer:
    return _pooling("MaxPooling2D", shape, pool_size, strides, padding)


@layer("AveragePooling2D")
def _average_pooling2d(shape: Shape, pool_size: Size = 2, strides: Size | None = None, padding: str = "valid") -> Layer:
    return _pooling("AveragePooling2D", shape, pool_size, strides, padding)


def _pooling(kind: str, shape: Shape, pool_size: Size, strides: Size | None, padding: str) -> Layer:
    channels, height, width = image(shape)
    pool = pair("pool_size", pool_size)
    stride = pool if strides is None else pair("strides", strides)
    size, pad = conv_geometry((height, width), pool, stride, padding)
    modules: dict[str, nn.Module]
    if kind == "AveragePooling2D":
        modules = {kind: AveragePoolingSame(pool, stride, pad) if any(pad) else nn.AvgPool2d(pool, stride)}
    else:
        modules = {"pad": nn.ConstantPad2d(pad, -math.inf)} if any(pad) else {}
        modules[kind] = nn.MaxPool2d(pool, stride)
    return Layer(modules, (channels, *size))


@layer("GlobalAveragePooling2D")
def _global_average_pooling2d(shape: Shape, keepdims: bool = False) -> Layer:
    return _global_pooling("GlobalAveragePooling2D", "mean", shape, keepdims)


@layer("GlobalMaxPooling2D")
def _global_max_pooling2d(shape: Shape, keepdims: bool = False) -> Layer:
    return _global_pooling("GlobalMaxPooling2D", "max", shape, keepdims)


def _global_pooling(kind: str, reduce: str, shape: Shape, keepdims: bool) -> Layer:
    channels = image(shape)[0]
    return Layer({kind: GlobalPooling(reduce, keepdims)}, (channels, 1, 1) if keepdims else (channels,))


@layer("ZeroPadding2D")
def _zero_padding2d(shape: Shape, padding: int | Sequence[Size] = 1) -> Layer:
    channels, height, width = image(shape)
    sides = [*padding] if isinstance(padding, list | tuple) else [padding, padding]
    if len(sides) != 2:
        raise ConfigError(f"padding must be one number, two, or [[top, bottom], [left, right]], not {padding!r}.")
    (top, bottom), (left, right) = (pair("padding", side, least=0) for side in sides)
    output_shape = (channels, height + top + bottom, width + left + right)
    return Layer({"ZeroPadding2D": nn.ZeroPad2d((left, right, top, bottom))}, output_shape)


def conv_geometry(
    size: Pair, kernel: Pair, strides: Pair, padding: str, dilation: Pair = (1, 1)
) -> tuple[Pair, tuple[int, int, int, int]]:
    """The output's (height, width), and the padding (left, right, top, bottom) that gives it.

    With `same` padding and an odd number of pixels to add, the extra one goes to the right or the bottom.
    """
    if padding not in ("valid", "same"):
        near = did_you_mean(str(padding), ["valid", "same"])
        raise ConfigError(f"padding {padding!r} is not known: valid or same.{near}")
    out, pads = [], []
    for length, k, stride, step in zip(size, kernel, strides, dilation, strict=True):
        reach = (k - 1) * step + 1
        if padding == "valid":
            out.append((length - reach) // stride + 1)
            pads.append((0, 0))
        else:
            out.append(-(-length // stride))
            total = max((out[-1] - 1) * stride + reach - length, 0)
            pads.append((total // 2, total - total // 2))
    return (out[0], out[1]), (*pads[1], *pads[0])
