"""Leaves out the pixels of an image that no output depends on.

A pooling drops the rows and columns that fill no window: of the 11×11 values of `baseline`'s second convolution it
takes 10×10, which depend on 26×26 of the image's 28×28 pixels. Cutting the image to them spares a seventh of a step.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, cast

from torch import nn


class Cut(NamedTuple):
    """The input of module `at` is cut to `height` and `width`; of none if the name is empty."""

    at: str
    height: int
    width: int


def unused_border(modules: Mapping[str, nn.Module], input_shape: Sequence[int]) -> Cut:
    """Where a chain of modules can cut images of `input_shape` (C, H, W), and to which size."""
    names = list(modules)
    if len(input_shape) != 3 or not names:
        return Cut("", 0, 0)
    height, width = input_shape[1:]
    if isinstance(pad := modules[names[0]], nn.ZeroPad2d):
        left, right, top, bottom = pad.padding
        height, width = height + top + bottom, width + left + right
        names.pop(0)
    used = _used(height, 0, modules, names), _used(width, 1, modules, names)
    return Cut("" if used == (height, width) else names[0], *used)


def _used(length: int, axis: int, modules: Mapping[str, nn.Module], names: Sequence[str]) -> int:
    """How much of a length, of the height (axis 0) or the width (axis 1), outputs depend on."""
    windows = []
    for name in names:
        window = _window(modules[name], axis)
        if window is None:
            break
        windows.append(window)
    for reach, stride in windows:
        length = (length - reach) // stride + 1
    for reach, stride in reversed(windows):
        length = (length - 1) * stride + reach
    return length


def _window(module: nn.Module, axis: int) -> tuple[int, int] | None:
    """How far a window reaches and how far away the next one is.

    None for a module that does more than look at windows: padding, or batch normalisation, for which all pixels count.
    """
    if type(module) is nn.ReLU:
        return 1, 1
    if type(module) is nn.Conv2d and module.padding == (0, 0):
        return (module.kernel_size[axis] - 1) * module.dilation[axis] + 1, module.stride[axis]
    if type(module) in (nn.MaxPool2d, nn.AvgPool2d):
        size, stride = cast(tuple[int, int], module.kernel_size), cast(tuple[int, int], module.stride)
        return size[axis], stride[axis]
    return None
