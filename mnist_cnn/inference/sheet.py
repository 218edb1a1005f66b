"""Draws what a network saw: each image enlarged, with the answer and the name of its file under it."""

import io
import math
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from mnist_cnn.data.reading import as_picture
from mnist_cnn.errors import one_line
from mnist_cnn.files import write_file
from mnist_cnn.inference.predict import Digit, Prediction

MAX_SHOWN = 1000  # images: 125 rows, together 24,000 pixels high
_COLUMNS = 8
_SIDE, _MARGIN, _LINE = 140, 8, 18  # pixels: the longer side of an image, around it, and from one line to the next


def write_sheet(path: Path, predictions: Sequence[Prediction]) -> int:
    """Write a PNG of these predictions' images, in rows, and return how many there are.

    At most MAX_SHOWN are drawn; if there are none, no file is written. OutputError if it exists or can't be written.
    """
    cells = [(found, digit) for found in predictions for digit in found.digits][:MAX_SHOWN]
    if not cells:
        return 0
    columns = min(_COLUMNS, len(cells))
    width, height = _SIDE + 2 * _MARGIN, _SIDE + 2 * _MARGIN + 2 * _LINE
    sheet = Image.new("RGB", (columns * width, math.ceil(len(cells) / columns) * height), "white")
    draw, font = ImageDraw.Draw(sheet), _font()
    for index, (found, digit) in enumerate(cells):
        left, top = index % columns * width + _MARGIN, index // columns * height + _MARGIN
        sheet.paste(_enlarged(digit.image), (left, top))
        for number, text in enumerate(_texts(found, digit)):
            draw.text((left, top + _SIDE + 2 + number * _LINE), _shortened(text, font), "black", font)
    content = io.BytesIO()
    sheet.save(content, "PNG")
    write_file(path, content.getvalue(), replace=False)
    return len(cells)


def _texts(found: Prediction, digit: Digit) -> tuple[str, str]:
    line = "" if found.line is None else f":{found.line}"
    return f"{digit.name}  {digit.probability:.1%}", f"{Path(found.file).name}{line}"


def _enlarged(image: Tensor) -> Image.Image:
    """An image, uint8 (C, H, W), as large as a cell allows; each of its pixels becomes a square if it is small."""
    picture = as_picture(image.numpy())
    scale = max(1, _SIDE // max(picture.size))
    picture = picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)
    picture.thumbnail((_SIDE, _SIDE))
    return picture


def _font() -> ImageFont.FreeTypeFont:
    """DejaVu Sans where matplotlib brings it, because it has more characters than Pillow's own font."""
    if find_spec("matplotlib") is None:
        return ImageFont.load_default(13)  # type: ignore[return-value]  # the other kind is for Pillow without FreeType
    import matplotlib

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", 13)


def _shortened(text: str, font: ImageFont.FreeTypeFont) -> str:
    """The text, without its middle if it is wider than an image."""
    text = one_line(text)
    line, kept = text, len(text)
    while font.getlength(line) > _SIDE:
        kept -= 1
        line = f"{text[: kept // 2]}…{text[len(text) - (kept - kept // 2) :]}"
    return line
