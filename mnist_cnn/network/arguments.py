"""Checks of layers' arguments, which come from YAML or a file, and the shapes that go in and out of layers.

A check returns the value in the type that the layer needs, or raises ConfigError.
"""

import sys
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from mnist_cnn.errors import ConfigError, did_you_mean

# The input or output of a layer, without the batch: an image (C, H, W), a sequence (T, F), or values (F,).
Shape = tuple[int, ...]
# One number for height and width, or both.
Size = int | Sequence[int]
T = TypeVar("T")


def show(shape: Shape) -> str:
    """`32×26×26`."""
    return "×".join(map(str, shape))


def keras_shape(shape: Shape) -> Shape:
    """In Keras' order, with the channels last: (C, H, W) → (H, W, C)."""
    return (*shape[1:], shape[0]) if len(shape) == 3 else shape


def torch_shape(shape: Shape) -> Shape:
    """In torch's order, with the channels first: (H, W, C) → (C, H, W)."""
    return (shape[2], *shape[:2]) if len(shape) == 3 else shape


def image(shape: Shape) -> tuple[int, int, int]:
    """The shape (C, H, W) of an image."""
    if len(shape) != 3:
        raise ConfigError(f"it needs an image (C×H×W), but gets {show(shape)} values; it must stand before Flatten.")
    return shape


def boolean(name: str, value: object) -> bool:
    """True or false, and nothing that Python takes for it."""
    if not isinstance(value, bool):
        raise ConfigError(f"{name} must be true or false, not {value!r}.")
    return value


def number(name: str, value: object, least: int = 1) -> int:
    """A whole number."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{name} must be a whole number of at least {least}, not {value!r}.")
    return value


def pair(name: str, value: object, least: int = 1) -> tuple[int, int]:
    """Two whole numbers, for height and width; one stands for both."""
    values = value if isinstance(value, Sequence) and not isinstance(value, str) else [value, value]
    if len(values) != 2:
        raise ConfigError(f"{name} must be one number or two (height, width), not {value!r}.")
    return number(name, values[0], least), number(name, values[1], least)


def numbers(name: str, value: object, least: int = 1) -> list[int]:
    """Any number of whole numbers; one may stand without a list."""
    values = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    return [number(name, item, least) for item in values]


def fraction(name: str, value: object) -> float:
    """A number from 0 to 1."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ConfigError(f"{name} must be a fraction between 0 and 1, not {value!r}.")
    return float(value)


def real(name: str, value: object) -> float:
    """A finite number."""
    largest = sys.float_info.max
    if isinstance(value, bool) or not isinstance(value, int | float) or not -largest <= value <= largest:
        raise ConfigError(f"{name} must be a number, not {value!r}.")
    return float(value)


def choice(name: str, value: object, known: Mapping[Any, T]) -> T:
    """What `known` has under the name `value`."""
    if not (value is None or isinstance(value, str)) or value not in known:
        raise ConfigError(f"{name} {value!r} is not known.{did_you_mean(str(value), filter(None, known))}")
    return known[value]


def axis_dim(axis: object, shape: Shape) -> int:
    """The torch dimension of Keras' axis, which counts from 0 for the batch and has the channels last."""
    rank = len(shape) + 1
    if isinstance(axis, list | tuple) and len(axis) == 1:
        (axis,) = axis
    if isinstance(axis, bool) or not isinstance(axis, int) or not -rank < axis < rank or axis == 0:
        raise ConfigError(f"axis must be from 1 to {rank - 1} or from {1 - rank} to -1, not {axis!r}.")
    axis %= rank
    return {1: 2, 2: 3, 3: 1}[axis] if rank == 4 else axis
