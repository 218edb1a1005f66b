"""Leaves out the pixels of an image that no output depends on.

A pooling drops the rows and columns that fill no window: of the 11×11 values of `baseline`'s second convolution it
takes 10×10, which depend on 26×26 of the image's 28×28 pixels. Cutting the image to those saves about a seventh of a
step (`benchmarks/parts.py`).
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import nn
from torch.nn.modules.utils import _pair


class Cut(NamedTuple):
    """The input of module `at` is cut from `size` to `used`, (height, width) each; if `at` is empty, nothing is cut."""

    at: str
    size: tuple[int, int]
    used: tuple[int, int]


def unused_border(modules: Mapping[str, nn.Module], input_shape: Sequence[int]) -> Cut:
    """Where a chain of modules can cut images of `input_shape` (C, H, W), and to which size."""
    names = list(modules)
    if len(input_shape) != 3 or not names:
        return Cut("", (0, 0), (0, 0))
    height, width = input_shape[1:]
    if isinstance(pad := modules[names[0]], nn.ZeroPad2d):
        left, right, top, bottom = pad.padding
        height, width = height + top + bottom, width + left + right
        names.pop(0)
    used = _used(height, 0, modules, names), _used(width, 1, modules, names)
    return Cut("" if used == (height, width) else names[0], (height, width), used)


def _used(length: int, axis: int, modules: Mapping[str, nn.Module], names: Sequence[str]) -> int:
    """How many of `length` rows (axis 0) or columns (axis 1) the outputs depend on."""
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

    None for a module that does more than look at windows: one that pads, or that normalises over all pixels.
    """
    if type(module) is nn.ReLU:
        return 1, 1
    if type(module) is nn.Conv2d and module.padding == (0, 0):
        return (module.kernel_size[axis] - 1) * module.dilation[axis] + 1, module.stride[axis]
    if type(module) in (nn.MaxPool2d, nn.AvgPool2d):
        is_plain = _pair(module.padding) == (0, 0) and not module.ceil_mode and getattr(module, "dilation", 1) == 1
        return (_pair(module.kernel_size)[axis], _pair(module.stride)[axis]) if is_plain else None
    return None
