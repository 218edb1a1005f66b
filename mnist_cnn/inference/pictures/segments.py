"""Finds the digits in the ink of a picture, line by line, and keeps the pieces of a broken digit together."""

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage, sparse
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from mnist_cnn.errors import DataError
from mnist_cnn.inference.pictures.placing import STROKE_INK, stroke_width

MAX_DIGITS = 64  # in a picture
_MAX_PARTS = 500  # the heaviest connected parts of the ink; what is beyond them is noise
Mask, Counts, Values = NDArray[np.bool_], NDArray[np.int_], NDArray[np.floating[Any]]
_NEIGHBOURS = np.ones((3, 3), int)  # pixels that touch at a corner are connected too


class Segment(NamedTuple):
    """A digit: its ink (H, W) in [0, 1], without that of its neighbours, and left, top, right, bottom in the picture."""

    ink: Tensor
    box: tuple[int, int, int, int]


def find_digits(ink: Tensor) -> list[list[Segment]]:
    """The digits in ink (H, W): lines from top to bottom, and the digits of each from left to right.

    Digits that touch are one. Specks and marks that are much smaller than the digits are left out. DataError if more
    than MAX_DIGITS are found.
    """
    strokes = ink.numpy() > STROKE_INK
    labels, boxes, weights = _parts(ink.numpy(), strokes)
    group = _groups(boxes)
    boxes, weights = _united(boxes, weights, group)
    kept = _digits(boxes, weights)
    if len(kept) > MAX_DIGITS:
        raise DataError(f"more than {MAX_DIGITS} digits, or only noise; show fewer in a picture.")
    labels = np.concatenate([[-1], group])[labels]  # part 0 is the paper
    return [[_segment(ink, strokes, labels, one, boxes[one]) for one in line] for line in _lines(boxes, kept)]


def _parts(ink: Values, strokes: Mask) -> tuple[Counts, Counts, Values]:
    """The connected parts of the strokes: their numbers from 1 as labels (H, W), boxes (N, 4), and amounts of ink (N,).

    The strokes of a dashed or dotted pen are connected across larger and larger gaps, until most of the ink is in parts
    that are several times as long as a stroke is wide, as digits are.
    """
    width = stroke_width(strokes)
    rows, columns = (np.flatnonzero(strokes.any(axis)) for axis in (1, 0))
    gap = 0.03 * (rows[-1] - rows[0] + 1)
    for reach in (max(0.25 * width, gap), width, 2 * width, 3 * width):
        near = strokes if reach < 1 else ndimage.distance_transform_edt(~strokes) <= reach
        labels, count = ndimage.label(near, _NEIGHBOURS)
        labels *= strokes
        weights = np.bincount(labels.ravel(), ink.ravel(), count + 1)
        weights[0] = 0  # part 0 is the paper
        heaviest = np.sort(np.argsort(-weights)[: min(count, _MAX_PARTS)])
        number = np.zeros(count + 1, labels.dtype)
        number[heaviest] = np.arange(1, len(heaviest) + 1)
        labels, weights = number[labels], weights[heaviest]
        boxes = np.array([(x.start, y.start, x.stop, y.stop) for y, x in ndimage.find_objects(labels)])
        longer = np.maximum(boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1])
        if weights[longer >= 3.5 * width].sum() >= weights.sum() / 2:
            break
    return labels, boxes, weights


def _groups(boxes: Counts) -> Counts:
    """The group of each part (N,), counted from 0: pieces of one digit, by how they lie to each other."""
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    tallest = height.max()
    across, down = _overlaps(boxes)
    narrower, lower = np.minimum.outer(width, width), np.minimum.outer(height, height)
    small = np.logical_or.outer(height < 0.45 * tallest, height < 0.45 * tallest)
    rule = (height < 0.25 * tallest) & (width > 1.5 * tallest)  # under or over a whole number
    one_over_another = (across >= 0) & (-down <= np.where(small & (across >= 0.3 * narrower), 0.35 * tallest, 0.2 * lower))
    side_by_side = (down > 0) & np.where(small, -across <= 0.1 * tallest, across >= 0.7 * narrower)
    joined = np.where(down > 0, side_by_side, one_over_another) & ~np.logical_or.outer(rule, rule)
    return np.asarray(connected_components(sparse.csr_array(joined), directed=False)[1])


def _united(boxes: Counts, weights: Values, group: Counts) -> tuple[Counts, Values]:
    """The boxes and amounts of ink of the groups."""
    united = [boxes[group == one] for one in range(group.max() + 1)]
    return (
        np.array([(*part[:, :2].min(0), *part[:, 2:].max(0)) for part in united]),
        np.bincount(group, weights),
    )


def _digits(boxes: Counts, weights: Values) -> Counts:
    """The groups that are digits: neither specks, with less than an eighth of the ink of a digit, nor low marks."""
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    weights = weights / np.maximum(1, width / height)  # several digits that touch have the ink of one
    digits = weights >= weights.max() / 8
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


def _segment(ink: Tensor, strokes: Mask, labels: Counts, one: int, box: Counts) -> Segment:
    left, top, right, bottom = box.tolist()
    inside = np.s_[max(top - 1, 0) : bottom + 1, max(left - 1, 0) : right + 1]
    own = labels[inside] == one
    soft = ndimage.binary_dilation(own, _NEIGHBOURS) & ~(strokes[inside] & ~own)  # the edges of a stroke have less ink
    return Segment(ink[inside] * torch.from_numpy(soft), (left, top, right, bottom))
