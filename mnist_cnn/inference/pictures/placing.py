"""Places a digit in an image as MNIST does, and recognises an image where it is placed so already.

An MNIST digit is light on black, its longer side is 20 pixels, its centre of mass is in the middle of 28×28 pixels
(LeCun et al. 1998), and its strokes are two to three pixels wide.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

STROKE_INK = 0.3  # a pixel with more ink than this belongs to a stroke
# As fractions of an image's side: the longer side of a digit, and the width of a stroke (a rough mean over MNIST).
_DIGIT, _STROKE = 20 / 28, 2.2 / 28
_OVERSAMPLING = 4  # strokes are thickened at this multiple of the final resolution


def is_placed(grey: Tensor) -> bool:
    """Whether brightness (H, W), light on dark, is a digit that has MNIST's size, place and black background.

    It is of 58,000 … of MNIST's 60,000 training images.
    """
    edge = torch.cat([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    if float(edge.max()) > 0.1 or float(grey.max()) < 0.5:
        return False
    sides, centre = [], []
    for dim in (1, 0):
        drawn = (grey > 0.1).any(dim).nonzero().flatten()
        sides.append(int(drawn[-1] - drawn[0]) + 1)
        weights = grey.sum(dim)
        centre.append(float((weights * (torch.arange(len(weights)) + 0.5)).sum() / weights.sum()) / len(weights))
    longer = max(side / whole for side, whole in zip(sides, grey.shape, strict=True))
    return abs(longer - _DIGIT) <= 1.5 / 28 and all(abs(middle - 0.5) <= 1.01 / 28 for middle in centre)


def placed(ink: Tensor, height: int, width: int) -> Tensor:
    """An image, uint8 (1, `height`, `width`), of the digit in ink (H, W): MNIST's size, stroke width and place."""
    stroke = ink.numpy() > STROKE_INK
    rows, columns = (np.flatnonzero(stroke.any(axis)) for axis in (1, 0))
    digit = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    scale = round(_DIGIT * height) / max(digit.shape)
    size = [max(1, round(side * scale)) for side in digit.shape]
    fine = resized(digit, *(side * _OVERSAMPLING for side in size))
    scaled = resized(_thickened(fine, _STROKE * height * _OVERSAMPLING), *size).numpy()
    scaled = scaled / scaled.max()
    positions = (np.arange(size[0])[:, None], np.arange(size[1]))
    centre = [float((scaled * position).sum() / scaled.sum()) + 0.5 for position in positions]
    top, left = (
        min(max(0, round(whole / 2 - middle)), whole - part)
        for whole, middle, part in zip((height, width), centre, size, strict=True)
    )
    canvas = np.zeros((1, height, width), np.uint8)
    canvas[0, top : top + size[0], left : left + size[1]] = (255 * scaled).round()
    return torch.from_numpy(canvas)


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
    """Widen strokes thinner than `wanted` pixels."""
    grow = round((wanted - stroke_width(ink.numpy() > 0.5)) / 2)
    return torch.from_numpy(ndimage.grey_dilation(ink.numpy(), 2 * grow + 1, mode="constant")) if grow > 0 else ink
