"""Finds the digits in the ink of a picture, line by line, and keeps the pieces of a broken digit together."""

from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage, sparse
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from mnist_cnn.errors import DataError
from mnist_cnn.inference.pictures.placing import STROKE_INK, stroke_width

MAX_DIGITS = 64  # in a picture
_FAINT_INK = 0.05  # what a pencil leaves where it slides over the paper; it connects strokes
_MAX_PARTS = 500  # the heaviest connected parts of the ink; what is beyond them is noise
Mask: TypeAlias = NDArray[np.bool_]
Counts: TypeAlias = NDArray[np.int_]
Values: TypeAlias = NDArray[np.floating[Any]]
_NEIGHBOURS = np.ones((3, 3), int)  # pixels that touch at a corner are connected too


class Segment(NamedTuple):
    """A digit: its ink (H, W) in [0, 1] without that of others, and its box (left, top, right, bottom) in pixels."""

    ink: Tensor
    box: tuple[int, int, int, int]


def find_digits(ink: Tensor) -> list[list[Segment]]:
    """The digits in ink (H, W): lines from top to bottom, and the digits of each from left to right.

    Digits that touch are one. Specks and marks that are much smaller than the digits are left out. DataError if more
    than MAX_DIGITS are found.
    """
    strokes = ink.numpy() > STROKE_INK
    parts = _parts(ink.numpy(), strokes)
    while (group := _groups(parts)).max() + 1 < len(parts.boxes):  # united parts may be near further ones
        parts = _united(parts, group)
    kept = _digits(parts)
    if len(kept) > MAX_DIGITS:
        raise DataError(f"more than {MAX_DIGITS} digits, or only noise; show fewer in a picture.")
    return [[_segment(ink, parts, one) for one in line] for line in _lines(parts.boxes, kept)]


class _Parts(NamedTuple):
    """Parts of the strokes: their numbers from 1 as labels (H, W), boxes (N, 4), and amounts of ink (N,)."""

    labels: Counts
    boxes: Counts
    weights: Values

    @property
    def sizes(self) -> Counts:
        """The widths and heights of the boxes (2, N)."""
        return (self.boxes[:, 2:] - self.boxes[:, :2]).T


def _parts(ink: Values, strokes: Mask) -> _Parts:
    """The parts that strokes (H, W) consist of, across the small gaps that a pen leaves.

    Where most of the ink is in parts that are not several times as long as a stroke is wide, as digits are, the pen is
    dashed or dotted. Its strokes are connected across larger and larger gaps, until nearly all parts are long.
    """
    width, distance = stroke_width(strokes), None
    faint = ink > _FAINT_INK
    parts = _connected(ink, strokes, faint)
    enough = 0.5
    for reach in (max(0.25 * width, 0.04 * parts.sizes[1].max()), width, 1.5 * width, 2 * width, 3 * width):
        if reach >= 1:
            distance = ndimage.distance_transform_edt(~strokes) if distance is None else distance
            parts = _connected(ink, strokes, faint | (distance <= reach))
        if parts.weights[parts.sizes.max(0) >= 3.5 * width].sum() >= enough * parts.weights.sum():
            break
        enough = 0.9
    return parts


def _connected(ink: Values, strokes: Mask, near: Mask) -> _Parts:
    """The strokes (H, W) by the connected areas of `near` that they lie in."""
    labels, count = ndimage.label(near, _NEIGHBOURS)
    labels *= strokes
    weights = np.bincount(labels.ravel(), ink.ravel(), count + 1).astype(float)
    weights[0] = 0  # part 0 is the paper
    heaviest = np.sort(np.argsort(-weights)[: min(np.count_nonzero(weights), _MAX_PARTS)])
    number = np.zeros(count + 1, labels.dtype)
    number[heaviest] = np.arange(1, len(heaviest) + 1)
    labels = number[labels]
    boxes = [(x.start, y.start, x.stop, y.stop) for y, x in ndimage.find_objects(labels)]
    return _Parts(labels, np.array(boxes), weights[heaviest])


def _groups(parts: _Parts) -> Counts:
    """The group of each part (N,), counted from 0: pieces of one digit, by how they lie to each other."""
    width, height = parts.sizes
    tallest = height.max()
    across, down = _overlaps(parts.boxes)
    narrower, lower = np.minimum.outer(width, width), np.minimum.outer(height, height)
    piece = np.logical_or.outer(height < 0.45 * tallest, height < 0.45 * tallest)  # one of the two, such as a 5's bar
    gap = np.where(piece & (across >= 0.3 * narrower), 0.35 * tallest, 0.2 * lower)
    stacked = (across >= 0) & (down < 0.5 * lower) & (-down <= gap)
    # Two parts as tall as digits are two digits, unless one stands within the other, as may the last stroke of a 4.
    beside = (down > 0) & np.where(piece, -across <= 0.1 * tallest, across >= 0.7 * narrower)
    rule = (height < 0.25 * tallest) & (width > 1.5 * tallest)  # a line under a number, or through a form
    joined = (stacked | beside) & ~np.logical_or.outer(rule, rule)
    return np.asarray(connected_components(sparse.csr_array(joined), directed=False)[1])


def _united(parts: _Parts, group: Counts) -> _Parts:
    """The groups as parts."""
    united = [parts.boxes[group == one] for one in range(group.max() + 1)]
    boxes = np.array([(*boxes[:, :2].min(0), *boxes[:, 2:].max(0)) for boxes in united])
    return _Parts(
        np.concatenate([[0], group + 1])[parts.labels], boxes, np.bincount(group, parts.weights).astype(float)
    )


def _digits(parts: _Parts) -> Counts:
    """The parts (N,) that are digits: neither specks, with less than an eighth of the ink of a digit, nor low marks."""
    width, height = parts.sizes
    largest = (parts.weights / np.maximum(1, width / height)).max()  # several digits that touch are not that large
    digits = parts.weights >= largest / 8
    return np.flatnonzero(digits & (height >= 0.25 * height[digits].max()))


def _lines(boxes: Counts, kept: Counts) -> list[list[int]]:
    """The groups of each line, from top to bottom and from left to right."""
    across, down = _overlaps(boxes[kept])
    height = boxes[kept, 3] - boxes[kept, 1]
    beside = (down >= 0.5 * np.minimum.outer(height, height)) & (-across <= 3 * height.max())
    count, line = connected_components(sparse.csr_array(beside), directed=False)
    middle = (boxes[:, :2] + boxes[:, 2:]) / 2
    lines = [sorted(kept[line == one].tolist(), key=lambda digit: float(middle[digit, 0])) for one in range(count)]
    return sorted(lines, key=lambda line: float(middle[line, 1].mean()))


def _overlaps(boxes: Counts) -> tuple[Counts, Counts]:
    """How many pixels each two boxes share across and down (N, N); the gap between them is negative."""
    left, top, right, bottom = boxes.T
    return (
        np.minimum.outer(right, right) - np.maximum.outer(left, left),
        np.minimum.outer(bottom, bottom) - np.maximum.outer(top, top),
    )


def _segment(ink: Tensor, parts: _Parts, one: int) -> Segment:
    left, top, right, bottom = parts.boxes[one].tolist()
    edge = max(1, max(right - left, bottom - top) // 28)  # pixels, in which the ink of a blurred stroke fades
    inside = np.s_[max(top - edge, 0) : bottom + edge, max(left - edge, 0) : right + edge]
    own = parts.labels[inside] == one + 1
    near = ndimage.binary_dilation(own, _NEIGHBOURS, edge)
    return Segment(ink[inside] * torch.from_numpy(near), (left, top, right, bottom))
