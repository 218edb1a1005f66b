"""Reads a user's picture and turns it into an image like those that a network was trained on.

An MNIST digit is light on black, its longer side is 20 pixels, its centre of mass is in the middle of 28×28 pixels
(LeCun et al. 1998), and its strokes are two to three pixels wide. Photographs and drawings are converted to that.
"""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from mnist_cnn.errors import DataError, one_line
from mnist_cnn.inference.regular_file import read_regular

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".pgm", ".ppm")
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
MAX_PIXELS = 50_000_000  # 200 MB as RGBA; more is a mistake or an attack
MAX_BYTES = 100_000_000
_MAX_SIDE = 1024  # pixels; even a small digit in a picture of this size has more pixels than the image made from it

# As fractions of an image's side: the longer side of a digit, and the width of a stroke (a rough mean over MNIST).
_DIGIT, _STROKE = 20 / 28, 2.2 / 28
_STROKE_INK = 0.3  # a pixel with more ink than this belongs to a stroke
_OVERSAMPLING = 4  # strokes are thickened at this multiple of the final resolution
_NEIGHBOURS = np.ones((3, 3))  # pixels that touch at a corner are connected too
_LUMA = torch.tensor([0.299, 0.587, 0.114])  # of red, green and blue, ITU-R BT.601


def find(path: Path) -> list[Path]:
    """The file itself, or the pictures in a folder, sorted by name; DataError if the folder has none."""
    try:
        if not path.is_dir():
            return [path]
        found = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
    except OSError as error:
        raise DataError(f"{one_line(path)}: can't be read: {error.strerror}.") from error
    if not found:
        raise DataError(f"{one_line(path)}: a folder without pictures ({', '.join(SUFFIXES)}).")
    return found


def read(file: Path | bytes, name: str) -> Image.Image:
    """Read a picture file, or its bytes, as upright RGBA; a very large picture is reduced.

    DataError if it can't be read; the message calls it `name`, made printable.
    """
    name = one_line(name)
    try:
        content = read_regular(file, MAX_BYTES) if isinstance(file, Path) else file
    except OSError as error:
        raise DataError(f"{name}: {(error.strerror or 'not readable').lower()}.") from error
    if len(content) > MAX_BYTES:
        raise DataError(f"{name}: larger than the limit of {MAX_BYTES:,} bytes.")
    try:
        with (
            warnings.catch_warnings(action="ignore"),  # about large pictures, which are refused below
            Image.open(BytesIO(content), formats=_FORMATS) as picture,
        ):
            if picture.width * picture.height > MAX_PIXELS:
                raise DataError(f"{name}: {picture.width}×{picture.height} pixels; the limit is {MAX_PIXELS:,}.")
            with _silenced() if picture.format == "TIFF" else nullcontext():
                picture.load()
            upright = _eight_bits(ImageOps.exif_transpose(picture)).convert("RGBA")
    except Image.DecompressionBombError as error:
        raise DataError(f"{name}: more than {MAX_PIXELS:,} pixels.") from error
    except (DataError, MemoryError):
        raise
    except Exception as error:  # Pillow's readers raise nearly anything for damaged files
        raise DataError(f"{name}: not a picture, or damaged.") from error
    upright.thumbnail((_MAX_SIDE, _MAX_SIDE))
    return upright


@contextmanager
def _silenced() -> Iterator[None]:
    """Drop what libtiff says about damaged files: it writes to standard error by itself, a line for each fault."""
    try:
        kept = os.dup(2)
    except OSError:  # standard error is closed
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _eight_bits(picture: Image.Image) -> Image.Image:
    if not picture.mode.startswith(("I", "F")):
        return picture
    values = np.asarray(picture, dtype=np.float32)
    brightest = float(values.max())
    white = next(most for most in (1.0, 255.0, 65535.0, brightest) if brightest <= most)
    return Image.fromarray((values * 255 / white).clip(0, 255).astype(np.uint8))


def to_image(picture: Image.Image, shape: tuple[int, int, int], digits: bool) -> Tensor:
    """Convert an RGBA picture to an image, uint8 (C, H, W), for a network that takes `shape`.

    A grey image is always light on dark. With `digits`, the digit is found, scaled and centred as in MNIST; otherwise
    the picture is resized as a whole. DataError if a digit is wanted and the picture is blank.
    """
    channels, height, width = shape
    if channels != 1:
        resized = picture.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
        return torch.from_numpy(np.array(resized)).permute(2, 0, 1)
    grey = _grey(picture)
    if digits:
        return _centred(_without_specks(_ink(grey)), height, width)
    light_on_dark = grey if float(grey[_border(grey)].median()) < 0.5 else 1 - grey
    return (255 * _resized(light_on_dark, height, width)).round().to(torch.uint8)[None]


def _grey(picture: Image.Image) -> Tensor:
    """(H, W) in [0, 1]. A transparent margin is cropped; elsewhere transparent means paper, the opposite of the ink."""
    values = torch.from_numpy(np.array(picture)).float() / 255
    grey, alpha = values[..., :3] @ _LUMA, values[..., 3]
    box = picture.getchannel("A").getbbox()
    if box is not None:
        inside = np.s_[box[1] : box[3], box[0] : box[2]]
        if alpha[inside].mean() > 0.95:
            return grey[inside]
    drawn = (grey * alpha).sum() / alpha.sum().clamp(min=1e-6)
    return grey * alpha + (1 - alpha) * (drawn < 0.5).float()


def _border(grey: Tensor) -> Tensor:
    """(H, W) bool: the pixels near the edge, which are probably paper."""
    border = torch.ones_like(grey, dtype=torch.bool)
    width = max(1, min(grey.shape) // 20)
    border[width:-width, width:-width] = False
    return border


def _ink(grey: Tensor) -> Tensor:
    """(H, W) in [0, 1]: how much a pixel differs from the paper, whose brightness may change across the picture."""
    difference = grey - _paper(grey)
    is_light = difference.clamp(min=0).square().sum() > difference.clamp(max=0).square().sum()
    ink = difference if is_light else -difference
    outliers = min(20, ink.numel() // 400)  # so many pixels may be stronger than full ink
    full = float(ink.flatten().topk(outliers + 1).values[-1])
    if full < 0.08:
        raise DataError("nothing to see: the whole picture is about as bright as its edge.")
    # Below a quarter of full ink is paper; above 95 % is full ink.
    clear: Tensor = ((ink - 0.25 * full) / (0.7 * full)).clamp(0, 1)
    return clear


def _paper(grey: Tensor) -> Tensor:
    """The brightness of the paper at each pixel, (H, W), fitted to pixels near the edge; 0 if those are all black."""
    border = _border(grey)
    values = grey[border]
    if not values.any():  # as in every image of MNIST; the fit would find nothing else
        return values.new_zeros(())
    y, x = torch.meshgrid(*(torch.linspace(-1, 1, side) for side in grey.shape), indexing="ij")
    plane = torch.stack([torch.ones_like(x), x, y], -1)
    positions = plane[border]
    fitted = torch.linalg.lstsq(positions, values[:, None]).solution
    for _ in range(2):  # these fits leave out what is not paper, such as a stroke that reaches the edge
        distance = (values - (positions @ fitted)[:, 0]).abs()
        paper = distance <= 2 * distance.median() + 0.02
        values, positions = values[paper], positions[paper]
        fitted = torch.linalg.lstsq(positions, values[:, None]).solution
    paper_plane: Tensor = (plane @ fitted)[..., 0]
    return paper_plane


def _without_specks(ink: Tensor) -> Tensor:
    """The ink without specks: connected parts that have less than an eighth of the ink of the largest part."""
    # On a coarse grid, where the pieces of a broken stroke are connected.
    size = (min(ink.shape[0], 96), min(ink.shape[1], 96))
    if size == ink.shape:
        return ink * _large_parts(ink, ink)
    kept = _large_parts(F.adaptive_max_pool2d(ink[None], size)[0], F.adaptive_avg_pool2d(ink[None], size)[0])
    return ink * F.interpolate(kept[None, None].float(), ink.shape)[0, 0]


def _large_parts(darkest: Tensor, mean: Tensor) -> Tensor:
    """(H, W) bool: the pixels in parts that have enough ink, from the most and the mean ink of each pixel."""
    parts, count = ndimage.label(darkest.numpy() > _STROKE_INK, _NEIGHBOURS)
    weights = np.bincount(parts.ravel(), mean.numpy().ravel(), count + 1)
    weights[0] = 0  # part 0 is the paper
    return torch.from_numpy(((weights > 0) & (weights >= weights.max() / 8))[parts])


def _centred(ink: Tensor, height: int, width: int) -> Tensor:
    """Scale a digit to MNIST's size and stroke width, and place its centre of mass in the middle of the image."""
    stroke = ink.numpy() > _STROKE_INK
    rows, columns = (np.flatnonzero(stroke.any(axis)) for axis in (1, 0))
    digit = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    scale = round(_DIGIT * height) / max(digit.shape)
    size = [max(1, round(side * scale)) for side in digit.shape]
    fine = _resized(digit, *(side * _OVERSAMPLING for side in size))
    scaled = _resized(_thickened(fine, _STROKE * height * _OVERSAMPLING), *size).numpy()
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


def _thickened(ink: Tensor, wanted: float) -> Tensor:
    """Widen strokes thinner than `wanted` pixels. Their width is estimated as twice the area over the outline."""
    stroke = ink.numpy() > 0.5
    inside = stroke[:-2] & stroke[1:-1] & stroke[2:]
    inside = inside[:, :-2] & inside[:, 1:-1] & inside[:, 2:]  # and so are all eight neighbours
    missing = wanted - 2 * int(stroke.sum()) / max(1, int(stroke.sum() - inside.sum()))
    grow = round(missing / 2)
    return torch.from_numpy(ndimage.grey_dilation(ink.numpy(), 2 * grow + 1, mode="constant")) if grow > 0 else ink


def _resized(values: Tensor, height: int, width: int) -> Tensor:
    sized = F.interpolate(values[None, None], (height, width), mode="bilinear", antialias=True, align_corners=False)
    return sized[0, 0].clamp(0, 1)
