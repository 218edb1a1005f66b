"""Finds and reads the picture files that a user names, and turns them into images."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from mnist_cnn.errors import DataError, one_line
from mnist_cnn.files import read_regular

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".pgm", ".ppm")
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
MAX_PIXELS = 50_000_000  # 200 MB as RGBA; more is a mistake or an attack
MAX_BYTES = 100_000_000


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
    """Read a picture file, or its bytes, as upright RGBA.

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
            return upright(picture)
    except Image.DecompressionBombError as error:
        raise DataError(f"{name}: more than {MAX_PIXELS:,} pixels.") from error
    except (DataError, MemoryError):
        raise
    except Exception as error:  # Pillow's readers raise nearly anything for damaged files
        raise DataError(f"{name}: not a picture, or damaged.") from error


def upright(picture: Image.Image) -> Image.Image:
    """A picture as RGBA, turned as its camera says."""
    return _eight_bits(ImageOps.exif_transpose(picture)).convert("RGBA")


def as_image(picture: Image.Image, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """A whole RGBA picture as an image, uint8 (C, H, W), stretched to its height and width.

    It is grey if C is 1, and in colour if C is 3. What is transparent becomes white.
    """
    channels, height, width = shape
    if picture.getchannel("A").getextrema() != (255, 255):
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    picture = picture.convert("L" if channels == 1 else "RGB")
    if picture.size != (width, height):
        picture = picture.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0)
    return np.array(picture).reshape(height, width, channels).transpose(2, 0, 1)


def as_picture(image: NDArray[np.uint8]) -> Image.Image:
    """An image, uint8 (C, H, W), as a picture of the same pixels, grey or in colour."""
    return Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0))


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
