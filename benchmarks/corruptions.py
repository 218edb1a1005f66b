"""Corrupts digits in fifteen ways, in the manner of MNIST-C: the digit stays readable, the pixels change.

After Mu and Gilmer 2019, "MNIST-C: A Robustness Benchmark for Computer Vision", arXiv:1906.02337. The kinds and their
strengths are theirs; the code and the random numbers are our own, so accuracies are near those on MNIST-C, not equal.

Every function takes and returns images (N, H, W) as float64 in [0, 1], 0 being the background, and draws what is random
for each image from the generator it is given. Results may exceed [0, 1]; `corrupt` clips them. Lengths are in pixels.

The images are the same on every machine: results come from operations that IEEE 754 rounds exactly, one at a time, and
constants from exp, sin or cos, whose last bit differs between processors, are rounded.
"""

import math
import zlib
from collections.abc import Callable, Sequence
from itertools import product

import numpy as np
import numpy.typing as npt
import torch
from numpy.random import PCG64, Generator
from scipy import ndimage
from torch import Tensor

Array = npt.NDArray[np.float64]

BATCH = 1000  # images at a time, which suits the processor's cache; random numbers are drawn for so many together


def corrupt(name: str, images: Tensor, seed: int = 0) -> Tensor:
    """Corrupt images, uint8 (N, 1, H, W), in the way that CORRUPTIONS calls `name`; the same shape and type.

    An image's corruption depends on its place, and on the other images of the same BATCH. ValueError for colour images.
    """
    if images.shape[1] != 1:
        raise ValueError(f"corruptions are for grey images, not for {images.shape[1]} channels.")
    rng = Generator(PCG64([seed, zlib.crc32(name.encode())]))
    parts = []
    for batch in torch.split(images[:, 0], BATCH):
        changed = CORRUPTIONS[name](batch.numpy() / 255, rng)
        parts.append(torch.from_numpy(np.rint(changed.clip(0, 1) * 255).astype(np.uint8)))
    return torch.cat(parts)[:, None]


def shot_noise(images: Array, rng: Generator) -> Array:
    """A pixel counts photons, 3 on average where it is white (Poisson)."""
    return rng.poisson(images * 3) / 3


def impulse_noise(images: Array, rng: Generator) -> Array:
    """17 % of the pixels turn black or white."""
    drawn = rng.random(images.shape)
    return np.where(drawn < 0.085, 0.0, np.where(drawn > 1 - 0.085, 1.0, images))


def glass_blur(images: Array, rng: Generator) -> Array:
    """Each pixel changes places with itself or one of its 8 neighbours, between two Gaussian blurs of σ = 0.7."""
    images = _blur(images, 0.7)
    count, height, width = images.shape
    each = np.arange(count)
    for row, column in product(range(1, height - 1), range(1, width - 1)):
        rows, columns = np.array([[row], [column]]) + rng.integers(-1, 2, (2, count))
        moved = images[each, rows, columns]
        images[each, rows, columns] = images[:, row, column]
        images[:, row, column] = moved
    return _blur(images, 0.7)


def motion_blur(images: Array, rng: Generator) -> Array:
    """Every point leaves a trail of 10 pixels to the left, at up to 45°, that fades as a Gaussian of σ = 3."""
    length = 10
    weights = [_rounded(math.exp(-((step / 3) ** 2) / 2)) for step in range(length + 1)]
    slope = _uniform(rng, -1, 1, images)
    across = 1 / np.sqrt(1 + slope**2)
    padded = np.pad(images, ((0, 0), (length, length), (0, length)))
    each, rows, columns = np.ogrid[tuple(map(slice, images.shape))]
    trail = np.zeros_like(images)
    for step, weight in enumerate(weights):
        y, x = np.rint(step * slope * across).astype(int), np.rint(step * across).astype(int)
        trail += weight * padded[each, rows + length + y, columns + x]
    return trail / sum(weights)


def shear(images: Array, rng: Generator) -> Array:
    """Rows move sideways by 0.4 of their distance from the middle, all to one side or to the other."""
    y, x = _from_centre(images)
    return _resampled(images, y, x + 0.4 * _sign(rng, images) * y)


def scale(images: Array, rng: Generator) -> Array:
    """The digit shrinks to 0.7 of its size."""
    y, x = _from_centre(images)
    return _resampled(images, y / 0.7, x / 0.7)


def rotate(images: Array, rng: Generator) -> Array:
    """The digit turns by 0.4 radians (23°), clockwise or against it."""
    y, x = _from_centre(images)
    cos, sin = _rounded(math.cos(0.4)), _rounded(math.sin(0.4)) * _sign(rng, images)
    return _resampled(images, cos * y + sin * x, cos * x - sin * y)


def brightness(images: Array, rng: Generator) -> Array:
    """Every pixel becomes lighter by half the range; the background is grey, and strokes are white."""
    return images + 0.5


def translate(images: Array, rng: Generator) -> Array:
    """The digit moves by 3 pixels up or down, and by 3 to the left or right."""
    y, x = _from_centre(images)
    return _resampled(images, y + 3 * _sign(rng, images), x + 3 * _sign(rng, images))


def stripe(images: Array, rng: Generator) -> Array:
    """The outer quarters of the image, left and right, are inverted."""
    quarter = images.shape[2] // 4
    inverted = 1 - images
    inverted[:, :, quarter:-quarter] = images[:, :, quarter:-quarter]
    return inverted


def fog(images: Array, rng: Generator) -> Array:
    """Three parts of a random cloud on one part of the image.

    The cloud is made by midpoint displacement: a coarse grid is refined by interpolation, and after each refinement all
    points change a little at random, half as much as before. Clouds differ in their mean brightness.
    """
    count, height, width = images.shape
    amplitude = 0.2
    cloud = rng.random((count, 1, 1)) / 2 + rng.random((count, 1, 1)) / 2 + np.zeros((1, 2, 2))
    while True:
        cloud = cloud + amplitude * (2 * rng.random(cloud.shape) - 1)
        if cloud.shape[1] >= max(height, width):
            break
        cloud, amplitude = _refined(_refined(cloud).transpose(0, 2, 1)).transpose(0, 2, 1), amplitude / 2
    return images / 4 + 0.75 * cloud[:, :height, :width].clip(0, 1)


def spatter(images: Array, rng: Generator) -> Array:
    """Drops of mud, of grey 0.25, cover an eighth of the image."""
    wetness = _blur(rng.random(images.shape), 1.5)
    driest = np.sort(wetness.reshape(len(images), -1))[:, -(wetness[0].size // 8)]
    return np.where(wetness >= driest[:, None, None], 0.25, images)


def dotted_line(images: Array, rng: Generator) -> Array:
    """A white dotted line across the whole image, 1.6 pixels thick, at up to 27°; dots and gaps are 2 pixels long."""
    row, line, column = _line(images, rng, 0.5)
    dots = (column + rng.integers(0, 4, (len(images), 1, 1))) % 4 < 2
    changed: Array = np.maximum(images, dots * (1.3 - np.abs(row - line)).clip(0, 1))
    return changed


def zigzag(images: Array, rng: Generator) -> Array:
    """A white zigzag across the whole image, 1.1 pixels thick, at up to 17°, with 4 pixels to a stroke of its own."""
    row, line, column = _line(images, rng, 0.3)
    wave = np.abs((column + rng.integers(0, 8, (len(images), 1, 1))) % 8 - 4) - 2
    distance = np.abs(row - line - wave) * _rounded(math.sqrt(0.5))  # at right angles to strokes of 45°
    changed: Array = np.maximum(images, (1.05 - distance).clip(0, 1))
    return changed


def canny_edges(images: Array, rng: Generator) -> Array:
    """White edges on black, one pixel wide (Canny 1986): blur of σ = 1, thresholds 0.025 and 0.05 of white a pixel."""
    # Whole numbers throughout, so that symmetric strokes have exact ties: 16² from the blur, 8 from Sobel's kernels.
    smooth = _convolved(np.rint(images * 255), (1, 4, 6, 4, 1), (1, 4, 6, 4, 1))
    across, down = _convolved(smooth, (1, 2, 1), (-1, 0, 1)), _convolved(smooth, (-1, 0, 1), (1, 2, 1))
    strength = np.sqrt(across**2 + down**2)
    unit = 255 * 16**2 * 8
    edges = np.zeros(images.shape, bool)
    tan = _rounded(math.tan(math.pi / 8))
    flat, steep = np.abs(down) <= tan * np.abs(across), np.abs(across) < tan * np.abs(down)
    falling = ~flat & ~steep & (across * down > 0)
    directions = {(0, 1): flat, (1, 0): steep, (1, 1): falling, (1, -1): ~flat & ~steep & ~falling}
    for (y, x), is_direction in directions.items():  # the edge is where the gradient is steepest along its direction
        ahead, behind = _shifted(strength, y, x, "edge"), _shifted(strength, -y, -x, "edge")
        edges |= is_direction & (strength > ahead) & (strength >= behind)
    edges &= strength >= 0.025 * unit
    # Weak edges stay where they touch strong ones of the same image.
    labels, _ = ndimage.label(edges, np.pad(np.ones((1, 3, 3)), ((1, 1), (0, 0), (0, 0))))
    strong = np.unique(labels[edges & (strength >= 0.05 * unit)])
    return np.isin(labels, strong).astype(np.float64)


# In the order of the paper.
CORRUPTIONS: dict[str, Callable[[Array, Generator], Array]] = {
    function.__name__: function
    for function in (
        shot_noise, impulse_noise, glass_blur, motion_blur, shear, scale, rotate, brightness, translate, stripe, fog,
        spatter, dotted_line, zigzag, canny_edges,
    )
}  # fmt: skip


def _rounded(constant: float) -> float:
    return round(constant, 6)


def _uniform(rng: Generator, low: float, high: float, images: Array) -> Array:
    """A number for each image, (N, 1, 1)."""
    return low + (high - low) * rng.random((len(images), 1, 1))


def _sign(rng: Generator, images: Array) -> Array:
    """−1 or 1 for each image, (N, 1, 1)."""
    return np.where(rng.random((len(images), 1, 1)) < 0.5, -1.0, 1.0)


def _from_centre(images: Array) -> tuple[Array, Array]:
    """The distances of every pixel from the middle of the image, downwards (1, H, 1) and to the right (1, 1, W)."""
    _, height, width = images.shape
    return np.arange(height)[None, :, None] - (height - 1) / 2, np.arange(width)[None, None] - (width - 1) / 2


def _resampled(images: Array, y: Array, x: Array) -> Array:
    """The images at these distances from their middle, (N, H, W) after broadcasting; bilinear, and black outside."""
    count, height, width = images.shape
    y, x = y + (height - 1) / 2, x + (width - 1) / 2
    top, left = np.floor(y).astype(int), np.floor(x).astype(int)
    padded, each = np.pad(images, ((0, 0), (1, 1), (1, 1))), np.arange(count)[:, None, None]
    result = np.zeros_like(images)
    for down, right in product((0, 1), (0, 1)):
        weight = (1 - np.abs(y - top - down)) * (1 - np.abs(x - left - right))
        rows, columns = (top + down + 1).clip(0, height + 1), (left + right + 1).clip(0, width + 1)
        result += weight * padded[each, rows, columns]
    return result


def _shifted(images: Array, y: int, x: int, mode: str) -> Array:
    """The images, in which each pixel is replaced by the one that is y below and x to the right of it."""
    _, height, width = images.shape
    around = max(abs(y), abs(x))
    padded = np.pad(images, ((0, 0), (around, around), (around, around)), mode)  # type: ignore[call-overload]
    shifted: Array = padded[:, around + y : around + y + height, around + x : around + x + width]
    return shifted


def _convolved(images: Array, down: Sequence[float], across: Sequence[float], mode: str = "edge") -> Array:
    """Cross-correlation with a kernel that is the product of two of odd length; `mode` is that of np.pad."""
    for kernel, (y, x) in ((down, (1, 0)), (across, (0, 1))):
        steps = enumerate(kernel, -(len(kernel) // 2))
        images = sum((weight * _shifted(images, step * y, step * x, mode) for step, weight in steps), np.zeros(1))
    return images


def _blur(images: Array, sigma: float) -> Array:
    """A Gaussian blur; images go on as a mirror image beyond their border."""
    reach = math.ceil(3 * sigma)
    weights = [_rounded(math.exp(-((step / sigma) ** 2) / 2)) for step in range(-reach, reach + 1)]
    kernel = [weight / sum(weights) for weight in weights]
    return _convolved(images, kernel, kernel, "symmetric")


def _refined(grids: Array) -> Array:
    """Grids (N, K, W) with a row of means between any two rows, (N, 2K − 1, W)."""
    count, rows, columns = grids.shape
    fine = np.empty((count, 2 * rows - 1, columns))
    fine[:, ::2] = grids
    fine[:, 1::2] = (grids[:, :-1] + grids[:, 1:]) / 2
    return fine


def _line(images: Array, rng: Generator, steepest: float) -> tuple[Array, Array, Array]:
    """A straight line for each image: rows (1, H, 1), the line's row in each column (N, 1, W), columns (1, 1, W)."""
    _, height, width = images.shape
    y, x = _from_centre(images)
    middle = _uniform(rng, 0.1, 0.9, images) * (height - 1)
    return y + (height - 1) / 2, middle + _uniform(rng, -steepest, steepest, images) * x, x + (width - 1) / 2
