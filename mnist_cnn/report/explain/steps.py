"""Shows the steps from a picture to the images that a network gets, as HTML."""

from collections.abc import Iterator, Sequence

from PIL import Image

from mnist_cnn.inference.checkpoint import TrainedNetwork
from mnist_cnn.inference.pictures.placing import Placed
from mnist_cnn.inference.pictures.prepare import Preparation, Preparing
from mnist_cnn.inference.predict import Digit
from mnist_cnn.report.document import figure, image
from mnist_cnn.report.explain import bitmaps

MAX_EXPLAINED = 8  # digits of a picture that are explained one by one
_LARGE, _SMALL = 480, 160  # pixels: the longer side of the picture, and of a digit that is cut out of it


def preparation(picture: Image.Image, prepared: Preparation, how: Preparing, digits: Sequence[Digit]) -> str:
    """How the images that the network takes were found in the picture."""
    if prepared.ink is not None:
        text = (
            "The ink is what stands out from the paper. Each digit is cut out, scaled until its longer side has the "
            "length that MNIST&rsquo;s digits have, its strokes widened if they are thinner than in MNIST, and placed "
            "by its centre of mass."
        )
    elif how in ("as-is", "unchanged"):
        grey = ", in grey and light on dark" if how == "as-is" and len(digits[0].image) == 1 else ""
        text = f"The picture is taken as a whole and only resized{grey}."
    else:
        text = "The picture shows a digit that is placed as in MNIST already, so it is taken as it is."
    shown = [figure(_boxed(picture, digits, prepared.ink is not None), "the picture as read")]
    if prepared.ink is not None:
        ink = image(bitmaps.grey(prepared.ink, _LARGE), "the ink that was found")
        shown.append(figure(ink, "the ink that was found"))
    if len(digits) > MAX_EXPLAINED:
        text += f" The picture has {len(digits)} digits; this page explains the first {MAX_EXPLAINED}."
    return (
        f"<section><h2>From the picture to the network</h2><p>{text}</p>"
        f'<div class="steps">{"".join(shown)}</div></section>'
    )


def steps(trained: TrainedNetwork, digit: Digit, placed: Placed | None) -> Iterator[str]:
    """One figure for each step from the picture to what the network gets."""
    if placed is not None:
        sizes = [f"{values.shape[1]}×{values.shape[0]} pixels" for values in (placed.cut, placed.scaled)]
        yield figure(image(bitmaps.grey(placed.cut, _SMALL), "the digit, cut out", "pixels"), f"cut out, {sizes[0]}")
        scaled = image(bitmaps.grey(placed.scaled, _SMALL), "the digit, scaled", "pixels")
        yield figure(scaled, f"scaled, and thickened where it was thin, {sizes[1]}")
    height, width = digit.image.shape[1:]
    what = "placed, " if placed is not None else ""
    seen = image(bitmaps.pixels(digit.image), "the image that the network takes", "pixels")
    yield figure(seen, f"{what}{width}×{height} pixels: the image that the network takes")
    x = trained.preprocessing(digit.image[None])
    if x.shape[2:] != digit.image.shape[1:]:
        brought = trained.preprocessing.undo(x)[0].clamp(0, 255).round().byte()
        size = f"{x.shape[3]}×{x.shape[2]} pixels"
        yield figure(image(bitmaps.pixels(brought), "the same at the network's size", "pixels"), f"brought to {size}")


def _boxed(picture: Image.Image, digits: Sequence[Digit], with_boxes: bool) -> str:
    """The picture, with a box around each digit that was cut out, and its number if there are several."""
    size = max(picture.size) / 14
    marks = ""
    for number, digit in enumerate(digits if with_boxes else (), 1):
        left, top, right, bottom = digit.box
        marks += f'<rect x="{left}" y="{top}" width="{right - left}" height="{bottom - top}"/>'
        if len(digits) > 1:
            marks += f'<text x="{left}" y="{top - size / 4:.1f}" font-size="{size:.1f}">{number}</text>'
    kind = "pixels" if max(picture.size) < _SMALL else ""
    shown = image(bitmaps.picture(picture, _LARGE), "the picture", kind)
    width, height = picture.size
    return f'<div class="boxed">{shown}<svg viewBox="0 0 {width} {height}" aria-hidden="true">{marks}</svg></div>'
