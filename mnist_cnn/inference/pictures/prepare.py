"""Turns a picture into the images that a network classifies: one for each digit, or one of the whole picture."""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from mnist_cnn.data.reading import as_image
from mnist_cnn.inference.pictures.ink import find_ink, grey_on_paper, light_on_dark
from mnist_cnn.inference.pictures.placing import Placed, is_placed, place, resized
from mnist_cnn.inference.pictures.segments import find_digits

# Whether digits are cut out and placed as in MNIST: always, never, or except where a picture is such an image already.
Placing = Literal["fit", "as-is", "auto"]
# `unchanged`: the whole picture, not inverted, for networks trained on the user's own pictures.
Preparing = Placing | Literal["unchanged"]
Box = tuple[int, int, int, int]

MNIST_SIZE = (28, 28)
# Larger pictures are reduced to this; even a small digit in them still has more pixels than the image made from it.
_WORKING_PIXELS, _WORKING_SIDE = 1024 * 1024, 8192


class Seen(NamedTuple):
    """What a network sees: an image, uint8 (C, H, W), and what it was made of, (left, top, right, bottom) in pixels."""

    image: Tensor
    box: Box


class Preparation(NamedTuple):
    """How a picture becomes images: line by line what the network sees, and what leads to it where digits are cut out.

    `ink` is (H, W) in [0, 1], of the picture, which is reduced if it is very large; `placed` has every digit in turn.
    """

    seen: list[list[Seen]]
    ink: Tensor | None = None  # None: the picture is taken as a whole
    placed: Sequence[Placed] = ()


def to_images(picture: Image.Image, shape: tuple[int, int, int], how: Preparing) -> list[list[Seen]]:
    """The images of `prepare` without the steps, which take more memory."""
    return prepare(picture, shape, how).seen


def prepare(picture: Image.Image, shape: tuple[int, int, int], how: Preparing) -> Preparation:
    """Convert an RGBA picture to images of `shape`, for a network of digits: line by line, each from left to right.

    A grey image is light on dark, unless it is `unchanged`. For a colour network, with that, and with `as-is`, there is
    one image: the whole picture, resized. DataError if digits are to be found and the picture is blank or has too many.
    """
    channels, height, width = shape
    whole = (0, 0, *picture.size)
    if channels != 1 or how == "unchanged":
        return Preparation([[Seen(torch.from_numpy(as_image(picture, shape)), whole)]])
    picture, scale = _reduced(picture)
    if how == "as-is" or (how == "auto" and picture.size[::-1] in (MNIST_SIZE, (height, width))):
        grey = light_on_dark(grey_on_paper(picture))
        if how == "as-is" or is_placed(grey):
            return Preparation([[Seen((255 * resized(grey, height, width)).round().to(torch.uint8)[None], whole)]])
    ink = find_ink(picture)
    placed = [[(digit.box, place(digit.ink, height, width)) for digit in line] for line in find_digits(ink)]
    seen = [[Seen(steps.image, _scaled(box, scale, whole)) for box, steps in line] for line in placed]
    return Preparation(seen, ink, [steps for line in placed for _, steps in line])


def _reduced(picture: Image.Image) -> tuple[Image.Image, float]:
    """The picture, reduced if it is very large, and by how much."""
    scale = max(1.0, math.sqrt(picture.width * picture.height / _WORKING_PIXELS), max(picture.size) / _WORKING_SIDE)
    if scale == 1:
        return picture, scale
    width, height = (max(1, round(side / scale)) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=2.0), scale


def _scaled(box: Box, scale: float, whole: Box) -> Box:
    left, top, right, bottom = (round(side * scale) for side in box)
    return left, top, min(right, whole[2]), min(bottom, whole[3])
