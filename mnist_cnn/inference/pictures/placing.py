"""Places a digit in an image as MNIST does, and recognises an image in which it is already placed so.

An MNIST digit is light on black, its longer side is 20 pixels, its centre of mass is in the middle of 28×28 pixels
(LeCun et al. 1998), and its strokes are two to three pixels wide.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

STROKE_INK = 0.3  # a pixel with more ink than this belongs to a stroke
# As fractions of an image's side: the longer side of a digit, and the width of a stroke (a rough mean over MNIST).
_DIGIT, _STROKE = 20 / 28, 2.2 / 28
_CENTRE = 14.5 / 28  # of mass: MNIST's digits have it half a pixel below and to the right of the middle, ± 0.5
_OVERSAMPLING = 4  # strokes are thickened at this multiple of the final resolution
# Pixels; a larger image is enlarged from one of this side, because thickening takes time as its 4th power.
_LARGEST = 256


def is_placed(grey: Tensor) -> bool:
    """Whether brightness (H, W), light on dark, is a digit on black that has MNIST's size, place and soft edges.

    It is for 59,867 of MNIST's 60,000 training images.
    """
    drawn = grey > 0.1
    if not drawn.any() or not 0.4 < float(grey[drawn].mean()) < 0.9:
        return False
    sides = []
    for dim, whole in ((1, grey.shape[0]), (0, grey.shape[1])):
        weights = grey.sum(dim)
        centre = float((weights * (torch.arange(whole) + 0.5)).sum() / weights.sum())
        if abs(centre / whole - _CENTRE) > 0.75 / 28:
            return False
        sides.append(int(drawn.any(dim).sum()) / whole)
    return abs(max(sides) - _DIGIT) <= 1.01 / 28


class Placed(NamedTuple):
    """A digit on its way from a picture into an image: ink in [0, 1], and the image, uint8 (1, height, width)."""

    cut: Tensor  # (H, W): as in the picture
    scaled: Tensor  # (h, w): in the image's pixels, its strokes thickened
    image: Tensor


def place(ink: Tensor, height: int, width: int) -> Placed:
    """Place the digit in ink (H, W) in an image of `height` × `width` with MNIST's size, stroke width and place."""
    side, largest = min(height, width), max(height, width)
    if largest > _LARGEST:
        small = place(ink, *(max(1, round(length * _LARGEST / largest)) for length in (height, width)))
        enlarged = resized(small.image[0] / 255, height, width)
        return small._replace(image=(255 * enlarged).round().to(torch.uint8)[None])
    stroke = ink.numpy() > STROKE_INK
    rows, columns = (np.flatnonzero(stroke.any(axis)) for axis in (1, 0))
    digit = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    scale = round(_DIGIT * side) / max(digit.shape)
    size = [max(1, round(length * scale)) for length in digit.shape]
    fine = resized(digit, *(length * _OVERSAMPLING for length in size))
    scaled = resized(_thickened(fine, _STROKE * side * _OVERSAMPLING), *size).numpy()
    scaled /= scaled.max()
    positions = (np.arange(size[0])[:, None], np.arange(size[1]))
    centre = [float((scaled * position).sum() / scaled.sum()) + 0.5 for position in positions]
    top, left = (
        min(max(0, round(_CENTRE * whole - middle)), whole - part)
        for whole, middle, part in zip((height, width), centre, size, strict=True)
    )
    canvas = np.zeros((1, height, width), np.uint8)
    canvas[0, top : top + size[0], left : left + size[1]] = (255 * scaled).round()
    return Placed(digit, torch.from_numpy(scaled), torch.from_numpy(canvas))


def stroke_width(stroke: NDArray[np.bool_]) -> float:
    """The mean width of the strokes (H, W) in pixels, estimated as twice the area over the outline."""
    inside = stroke[:-2] & stroke[1:-1] & stroke[2:]
    inside = inside[:, :-2] & inside[:, 1:-1] & inside[:, 2:]  # and so are all eight neighbours
    return 2 * int(stroke.sum()) / max(1, int(stroke.sum() - inside.sum()))


def resized(values: Tensor, height: int, width: int) -> Tensor:
    """Values (H, W) in [0, 1], resampled to another height and width."""
    sized = F.interpolate(values[None, None], (height, width), mode="bilinear", antialias=True, align_corners=False)
    return sized[0, 0].clamp(0, 1)


def _thickened(ink: Tensor, wanted: float) -> Tensor:
    """Widen strokes thinner than `wanted` pixels, as a pen with a round tip would."""
    grow = (wanted - stroke_width(ink.numpy() > 0.5)) / 2
    if grow < 0.5:
        return ink
    y, x = np.indices((2 * math.ceil(grow) + 1,) * 2) - math.ceil(grow)
    tip = np.hypot(y, x) <= grow + 0.3
    return torch.from_numpy(ndimage.grey_dilation(ink.numpy(), footprint=tip, mode="constant"))
