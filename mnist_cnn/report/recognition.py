"""Draws an animation of test images being recognised one after another, as a GIF."""

import io
from collections.abc import Iterator

from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor

from mnist_cnn.data.images import Images
from mnist_cnn.data.reading import as_picture
from mnist_cnn.errors import one_line
from mnist_cnn.inference.evaluate import Answer, Evaluation

# The images are not hand-picked: the first ones of the test set, and the first ones that the network gets wrong.
FIRST, FIRST_MISTAKES = 20, 4
MILLISECONDS = 900  # that each image is shown
SIZE = (480, 240)

_MAX_BARS = 10
_TILE, _LEFT, _TOP = 196, 16, 16  # pixels: the image's side, and its place
_BARS, _ROW = 74, 14  # pixels: the top of the bars, and from one to the next
_COLUMN, _RIGHT = 236, 464  # pixels: where the answer begins and ends
_PAGE, _TEXT, _QUIET = "#14181d", "#e3e8ee", "#9aa7b5"
_BLUE, _ORANGE, _TRACK = "#6fb1f2", "#f0953c", "#262d35"


def recognition(evaluation: Evaluation, images: Images, model: str) -> bytes:
    """A GIF in an endless loop: each image enlarged, the probabilities, and whether the answer is right."""
    frames = [_frame(evaluation, images, *shown) for shown in _chosen(evaluation, model)]
    film = Image.new("RGB", (SIZE[0], SIZE[1] * len(frames)))
    for number, frame in enumerate(frames):
        film.paste(frame, (0, number * SIZE[1]))
    # One palette for all frames, so that what does not change between them takes no space.
    palette = film.quantize(64 if images.images.shape[1] == 1 else 256, dither=Image.Dither.NONE)
    first, *others = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    stream = io.BytesIO()
    first.save(stream, "GIF", save_all=True, append_images=others, duration=MILLISECONDS, loop=0, optimize=True)
    return stream.getvalue()


def _chosen(evaluation: Evaluation, model: str) -> Iterator[tuple[Answer, str]]:
    """The answers that are shown, each with a line that says which image it is."""
    every = f"{evaluation.total:,} {evaluation.split} images"
    for answer in evaluation.answers(evaluation.labels.new_tensor(range(min(FIRST, evaluation.total)))):
        yield answer, f"{model}: number {answer.index + 1} of {every}"
    for number, answer in enumerate(evaluation.answers(evaluation.wrong[:FIRST_MISTAKES]), 1):
        yield answer, f"{model}: mistake {number} of {len(evaluation.wrong):,} in {every} (number {answer.index + 1:,})"


def _frame(evaluation: Evaluation, images: Images, answer: Answer, line: str) -> Image.Image:
    frame = Image.new("RGB", SIZE, _PAGE)
    draw = ImageDraw.Draw(frame)
    frame.paste(_enlarged(images.images[answer.index]), (_LEFT, _TOP))
    right = answer.predicted == answer.true
    colour = _BLUE if right else _ORANGE
    large = _fitting(draw, answer.predicted, _RIGHT - _COLUMN - 110, 40)
    draw.text((_COLUMN, 56), one_line(answer.predicted), colour, large, "ls")
    draw.text((_RIGHT, 36), f"{answer.probability:.1%}", _TEXT, _font(17), "rs")
    verdict = "right" if right else f"wrong: it is {one_line(answer.true)}"
    draw.text((_RIGHT, 56), verdict, colour, _fitting(draw, verdict, 110, 14), "rs")
    _bars(draw, evaluation, answer, colour)
    draw.text((_LEFT, 231), one_line(line), _QUIET, _fitting(draw, line, _RIGHT - _LEFT, 11), "ls")
    return frame


def _bars(draw: ImageDraw.ImageDraw, evaluation: Evaluation, answer: Answer, colour: str) -> None:
    """A bar for each class, or for the most probable ones if there are more than ten."""
    probabilities = evaluation.probabilities[answer.index]
    count = min(_MAX_BARS, len(probabilities))
    shown = probabilities.topk(count).indices if count < len(probabilities) else range(count)
    names = [(one_line(evaluation.classes[index]), float(probabilities[index])) for index in shown]
    font = _font(12)
    left = _COLUMN + min(90, max(round(draw.textlength(name, font)) for name, _ in names)) + 8
    for row, (name, probability) in enumerate(names):
        top = _BARS + row * _ROW
        draw.text((left - 8, top + 10), name, _TEXT, _fitting(draw, name, 90, 12), "rs")
        draw.rectangle((left, top + 2, _RIGHT, top + 10), _TRACK)
        length = round(probability * (_RIGHT - left))
        if length:
            draw.rectangle((left, top + 2, left + length, top + 10), colour if name == answer.predicted else _QUIET)


def _enlarged(image: Tensor) -> Image.Image:
    """An image, uint8 (C, H, W), enlarged to a square tile without blurring."""
    return ImageOps.pad(as_picture(image.numpy()).convert("RGB"), (_TILE, _TILE), Image.Resampling.NEAREST)


def _fitting(draw: ImageDraw.ImageDraw, text: str, width: int, size: int) -> ImageFont.FreeTypeFont:
    """The font at the largest size, at most `size`, at which the text is at most `width` wide; 6 at least."""
    return next((font for font in map(_font, range(size, 6, -1)) if draw.textlength(text, font) <= width), _font(6))


def _font(size: int) -> ImageFont.FreeTypeFont:
    """Pillow's own font, so that no other package is needed."""
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)  # Pillow's wheels have FreeType
    return font
