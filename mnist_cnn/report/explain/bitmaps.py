"""Small bitmaps as PNG files: images as they are, and signed values in colour."""

import io
import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from mnist_cnn.data.reading import as_picture

# The RGB colours of some values from −1 to 1: orange is negative, black zero, blue positive. They change faster near
# zero, so that weak values are visible.
_KNOTS = (-1, -0.3, 0, 0.3, 1)
_COLOURS = np.array([(255, 232, 205), (217, 115, 13), (10, 13, 18), (52, 124, 208), (236, 245, 255)])
_GAP = 255  # the number of the transparent colour in the palette; the others are 0 for −1 to 254 for 1
_RAMP = np.stack([np.interp(np.linspace(-1, 1, 255), _KNOTS, part) for part in _COLOURS.T], 1)
_PALETTE = _RAMP.round().astype(np.uint8).tobytes() + bytes(3)


def picture(shown: Image.Image, most: int) -> bytes:
    """A picture, reduced to at most `most` pixels a side."""
    small = shown.copy()
    small.thumbnail((most, most))
    return _png(small)


def grey(values: Tensor, most: int) -> bytes:
    """Values (H, W) from 0 to 1, black to white, reduced to at most `most` pixels a side."""
    return picture(Image.fromarray((255 * values.clamp(0, 1)).round().byte().numpy()), most)


def pixels(image: Tensor) -> bytes:
    """An image, uint8 (C, H, W), grey or in colour, pixel by pixel."""
    return _png(as_picture(image.numpy()))


def signed(tiles: Tensor, columns: int, most: float | None = None) -> bytes:
    """Tiles (N, H, W) of values in rows: 0 is black, `most` blue to white, −`most` orange to white.

    By default, `most` is the largest absolute value.
    """
    scaled = tiles / (most or float(tiles.abs().max()) or 1.0)
    numbers = (127 + 127 * scaled).round().byte().numpy()
    image = Image.fromarray(_in_rows(numbers, columns, _GAP))
    image.putpalette(_PALETTE)
    return _png(image, transparency=_GAP)


def coloured(tiles: Tensor, columns: int) -> bytes:
    """Tiles (N, 3, H, W) of red, green and blue in rows: 0 is grey; the largest value of a tile is full colour."""
    scaled = 0.5 + 0.5 * tiles / tiles.abs().amax((1, 2, 3), keepdim=True).clamp(min=1e-12)
    opaque = F.pad(scaled, (0, 0, 0, 0, 0, 1), value=1.0)
    return _png(Image.fromarray(_in_rows((255 * opaque).round().byte().permute(0, 2, 3, 1).numpy(), columns, 0)))


def _in_rows(tiles: NDArray[np.uint8], columns: int, empty: int) -> NDArray[np.uint8]:
    """Tiles (N, H, W, …) side by side on a canvas that is `empty` elsewhere, enlarged if they are very small."""
    scale = max(1, 28 // max(tiles.shape[1:3]))
    tiles = tiles.repeat(scale, 1).repeat(scale, 2)
    count, height, width, *rest = tiles.shape
    columns, gap = min(columns, count), 2
    rows = math.ceil(count / columns)
    canvas = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, *rest), empty, np.uint8)
    for index, tile in enumerate(tiles):
        top, left = index // columns * (height + gap), index % columns * (width + gap)
        canvas[top : top + height, left : left + width] = tile
    return canvas


def _png(image: Image.Image, **options: int) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG", optimize=True, **options)
    return stream.getvalue()
