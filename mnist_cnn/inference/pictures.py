"""How does any picture become what a network was trained on?

MNIST's digits are light on black, 20 pixels tall or wide, with their centre of mass in the middle of 28×28 (LeCun et
al. 1998), and their strokes are two to three pixels wide. Photographs and drawings are brought to that.
"""

import warnings
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional as F

from mnist_cnn.errors import DataError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".pgm", ".ppm")
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
MAX_PIXELS = 50_000_000  # 200 MB as RGBA; more is a slip or an attack
MAX_BYTES = 100_000_000
_SIDE = 1024  # pixels; a digit of a larger picture is still far larger than what it is brought to

# Of the 28 pixels of an MNIST image: its digit's longer side, and a stroke's width. The second is a rough mean.
_DIGIT, _STROKE = 20 / 28, 2.2 / 28
_SEEN = 0.3  # of the full ink is a stroke
_FINE = 4  # how many times finer the digit is looked at before it is brought to its size


def find(path: Path) -> list[Path]:
    """The file itself, or the pictures in a folder in order of their names; DataError where there are none."""
    try:
        if not path.is_dir():
            return [path]
        found = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
    except OSError as error:
        raise DataError(f"{path}: it can't be read: {error.strerror}.") from error
    if not found:
        raise DataError(f"{path}: a folder without pictures ({', '.join(SUFFIXES)}).")
    return found


def read(file: Path | bytes, name: str) -> Image.Image:
    """A picture file, or its bytes, upright and as RGBA, made smaller if it is very large.

    DataError where it can't be read, named by `name`.
    """
    try:
        if isinstance(file, Path) and file.stat().st_size > MAX_BYTES:
            raise DataError(f"{name}: larger than {MAX_BYTES:,} bytes.")
        with (
            warnings.catch_warnings(action="ignore"),  # of sizes, for which there is an error here
            Image.open(BytesIO(file) if isinstance(file, bytes) else file, formats=_FORMATS) as picture,
        ):
            if picture.width * picture.height > MAX_PIXELS:
                raise DataError(f"{name}: {picture.width}×{picture.height} pixels are more than {MAX_PIXELS:,}.")
            upright = _eight_bits(ImageOps.exif_transpose(picture)).convert("RGBA")
    except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
        raise DataError(f"{name}: {(error.strerror or 'it can not be read').lower()}.") from error
    except Image.DecompressionBombError as error:
        raise DataError(f"{name}: more than {MAX_PIXELS:,} pixels.") from error
    except DataError:
        raise
    except Exception as error:  # Pillow's readers raise nearly anything for damaged files
        raise DataError(f"{name}: not a picture, or a damaged one.") from error
    upright.thumbnail((_SIDE, _SIDE))
    return upright


def _eight_bits(picture: Image.Image) -> Image.Image:
    if not picture.mode.startswith(("I", "F")):
        return picture
    values = np.asarray(picture, dtype=np.float32)
    brightest = float(values.max())
    white = next(most for most in (1.0, 255.0, 65535.0, brightest) if brightest <= most)
    return Image.fromarray((values * 255 / white).clip(0, 255).astype(np.uint8))


def as_trained(picture: Image.Image, shape: tuple[int, int, int], digits: bool) -> Tensor:
    """A picture, RGBA, as uint8 (C, H, W).

    In grey it is light on dark, whatever it was. With `digits` it is set as MNIST's are, otherwise brought to size as a
    whole. DataError where there is nothing to be seen.
    """
    channels, height, width = shape
    if channels != 1:
        resized = picture.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
        return torch.from_numpy(np.array(resized)).permute(2, 0, 1)
    grey = _grey(picture)
    if digits:
        return _set(_main_part(_ink(grey)), height, width)
    light_on_dark = grey if float(grey[_rim(grey)].median()) < 0.5 else 1 - grey
    return (255 * _resized(light_on_dark, height, width)).round().to(torch.uint8)[None]


def _grey(picture: Image.Image) -> Tensor:
    """(H, W) in [0, 1]. A transparent margin is cut off; any other transparency is the opposite of what is drawn."""
    alpha = torch.from_numpy(np.array(picture.getchannel("A"))).float() / 255
    box = picture.getchannel("A").getbbox()
    if box is not None and alpha[box[1] : box[3], box[0] : box[2]].mean() > 0.95:
        picture = picture.crop(box)
        alpha = torch.ones(picture.height, picture.width)
    values = torch.from_numpy(np.array(picture.convert("RGB"))).float() / 255
    grey = values @ torch.tensor([0.299, 0.587, 0.114])  # luma, ITU-R BT.601
    drawn = (grey * alpha).sum() / alpha.sum().clamp(min=1e-6)
    return grey * alpha + (1 - alpha) * (drawn < 0.5).float()


def _rim(grey: Tensor) -> Tensor:
    """Which pixels lie along the edge."""
    edge = torch.ones_like(grey, dtype=torch.bool)
    width = max(1, min(grey.shape) // 20)
    edge[width:-width, width:-width] = False
    return edge


def _ink(grey: Tensor) -> Tensor:
    """How much ink there is, (H, W) in [0, 1]: how far a pixel is from the paper, which may be darker to one side."""
    height, width = grey.shape
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    plane, edge = torch.stack([torch.ones_like(x), x, y], -1), _rim(grey)
    seen, of = grey[edge], plane[edge]
    for _ in range(2):  # the second time without what is no paper, such as a stroke that reaches the edge
        paper = of @ torch.linalg.lstsq(of, seen[:, None]).solution
        near = (seen - paper[:, 0]).abs() <= 2 * (seen - paper[:, 0]).abs().median() + 0.02
        coefficients = torch.linalg.lstsq(of[near], seen[near][:, None]).solution
        seen, of = seen[near], of[near]
    far = grey - (plane @ coefficients)[..., 0]
    ink = far if far.clamp(min=0).square().sum() > far.clamp(max=0).square().sum() else -far
    few = min(20, ink.numel() // 400)  # pixels that may be darker than ink
    top = float(ink.flatten().kthvalue(ink.numel() - few).values)
    if top < 0.08:
        raise DataError("nothing to be seen: all of it is about as bright as its edge.")
    # What is fainter than a quarter is paper, what is nearly as dark as the darkest is ink.
    clear: Tensor = ((ink - 0.25 * top) / (0.7 * top)).clamp(0, 1)
    return clear


def _main_part(ink: Tensor) -> Tensor:
    """The ink without specks: of what hangs together, only what has an eighth of the largest part's ink at least."""
    size = (min(ink.shape[0], 96), min(ink.shape[1], 96))
    coarse, mass = F.adaptive_max_pool2d(ink[None], size), F.adaptive_avg_pool2d(ink[None], size)[0]
    inked = (coarse > _SEEN).float()
    labels = inked * (1 + torch.arange(inked.numel()).view_as(inked))
    while not torch.equal(labels, spread := F.max_pool2d(labels, 3, 1, 1) * inked):
        labels = spread
    weights = torch.zeros(inked.numel() + 1).index_add(0, labels.long().flatten(), mass.flatten())
    weights[0] = 0
    keep = (weights >= weights.max() / 8).float()
    keep[0] = 0
    return ink * F.interpolate(keep[labels.long()][None], ink.shape)[0, 0]


def _set(ink: Tensor, height: int, width: int) -> Tensor:
    rows, columns = ((ink > _SEEN).any(dim).nonzero().flatten() for dim in (1, 0))
    digit = ink[int(rows[0]) : int(rows[-1]) + 1, int(columns[0]) : int(columns[-1]) + 1]
    longer = round(_DIGIT * height)
    scale = longer / max(digit.shape)
    size = [max(1, round(side * scale)) for side in digit.shape]
    fine = _resized(digit, *(side * _FINE for side in size))
    fine = _thickened(fine, _STROKE * height * _FINE)
    digit = _resized(fine, *size)
    digit = digit / digit.max()
    weight = digit.sum()
    centre = [float((digit.sum(1 - dim) * (torch.arange(n) + 0.5)).sum() / weight) for dim, n in enumerate(digit.shape)]
    canvas = torch.zeros(height, width)
    tops = [
        min(max(0, round(whole / 2 - middle)), whole - part)
        for whole, middle, part in zip((height, width), centre, digit.shape, strict=True)
    ]
    canvas[tops[0] : tops[0] + digit.shape[0], tops[1] : tops[1] + digit.shape[1]] = digit
    return (255 * canvas).round().to(torch.uint8)[None]


def _thickened(ink: Tensor, wanted: float) -> Tensor:
    """Strokes thinner than `wanted` pixels made that wide. The width is twice the area by the length of the outline."""
    inked = F.pad((ink > 0.5).float(), (1, 1, 1, 1))[None, None]
    inside = -F.max_pool2d(-inked, 3, 1, 1)
    outline = float((inked - inside).sum())
    missing = wanted - 2 * float(inked.sum()) / max(1.0, outline)
    grow = round(missing / 2)
    return F.max_pool2d(ink[None, None], 2 * grow + 1, 1, grow)[0, 0] if grow > 0 else ink


def _resized(values: Tensor, height: int, width: int) -> Tensor:
    sized = F.interpolate(values[None, None], (height, width), mode="bilinear", antialias=True, align_corners=False)
    return sized[0, 0].clamp(0, 1)
