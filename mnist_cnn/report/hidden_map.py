"""Draws a map of test images, placed by what the last hidden layer of a network makes of them."""

from collections.abc import Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray
from scipy.linalg import eigh
from torch import Tensor
from torch.nn import functional as F

from mnist_cnn.data.images import Images
from mnist_cnn.inference.checkpoint import TrainedNetwork

MAX_IMAGES = 1000
_MAX_VALUES = 2**24  # of the hidden layer, for all images together
_CANVAS, _THUMBNAIL, _APART = 800, 26, 24  # pixels: the figure's side, an image's, and from one image to the next
_MAX_NAMES = 20  # of classes, written on the map


class HiddenMap(NamedTuple):
    """The first N test images as points (N, 2): two principal components, with `explained` of the variance."""

    points: Tensor
    explained: float
    layer: str  # the points are made from its inputs
    values: int  # the number of its inputs


def hidden_map(trained: TrainedNetwork, images: Images) -> HiddenMap | None:
    """The inputs of the last dense layer, reduced to two principal components; None if too few for a map.

    In a network without a dense layer, they are the inputs of the last layer with weights.
    """
    nodes = trained.network.nodes
    last = max(range(len(nodes)), key=lambda index: (nodes[index].kind == "Dense", nodes[index].parameters > 0, index))
    hidden = _inputs(trained, images, last)
    points, explained = principal_components(hidden)
    if len(hidden) < 3 or explained == 0:
        return None
    return HiddenMap(points, explained, f"layer {last} ({nodes[last].kind})", hidden.shape[1])


def principal_components(values: Tensor) -> tuple[Tensor, float]:
    """Values (N, F) reduced to their first two principal components, (N, 2), and the share of the variance in these.

    The sign of a component is arbitrary; here, the largest of its coordinates is positive.
    """
    centred = (values - values.mean(0)).double().numpy()
    total = float((centred**2).sum())
    if min(centred.shape) < 2 or not 0 < total < np.inf:
        return torch.zeros(len(values), 2), 0.0
    wide = centred.shape[1] > centred.shape[0]  # then the products of rows are the smaller matrix
    products = centred @ centred.T if wide else centred.T @ centred
    size = len(products)
    variances, vectors = eigh(products, subset_by_index=(size - 2, size - 1))
    points = vectors * np.sqrt(variances.clip(0)) if wide else centred @ vectors
    points = points[:, ::-1]  # the larger one first
    signs = np.sign(points[np.abs(points).argmax(0), (0, 1)])
    return torch.from_numpy(points * signs), float(variances.sum()) / total


def draw(found: HiddenMap, images: Images, classes: Sequence[str]) -> Figure:
    """The map: a small image where there is room for one, elsewhere a dot in the colour of the class."""
    labels = images.labels[: len(found.points)].numpy()
    colours = _colours(len(classes))
    places = _places(found.points.numpy())
    canvas = np.full((_CANVAS, _CANVAS, 3), 255, np.uint8)
    shown = np.array(_with_room(places))
    half = _THUMBNAIL // 2
    for index, thumbnail in zip(shown, _thumbnails(images.images[shown], colours[labels[shown]]), strict=True):
        x, y = places[index] - half
        part = canvas[y : y + _THUMBNAIL, x : x + _THUMBNAIL]
        np.minimum(part, thumbnail, out=part)  # white paper does not cover a neighbour
    figure = Figure(figsize=(5, 5))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.imshow(canvas, interpolation="nearest")  # pixel by pixel
    dots = np.setdiff1d(np.arange(len(labels)), shown)
    axes.scatter(places[dots, 0], places[dots, 1], s=4, c=colours[labels[dots]], linewidths=0)
    for number, name in enumerate(classes if len(classes) <= _MAX_NAMES else ()):
        if (labels == number).any():
            middle, height = np.median(places[labels == number], axis=0)
            name = name if len(name) <= 20 else f"{name[:19]}…"
            size = 15 if len(name) == 1 else 10  # points
            margin = min(size * len(name), _CANVAS // 2)  # pixels, for half of a name
            text = axes.text(middle.clip(margin, _CANVAS - margin), height, name, fontsize=size, fontweight="bold")
            text.set(ha="center", va="center", parse_math=False, color=colours[number])
            text.set_path_effects([withStroke(linewidth=4, foreground="white")])
    return figure


@torch.inference_mode()
def _inputs(trained: TrainedNetwork, images: Images, node: int) -> Tensor:
    """What a node gets for the first images, (N, F)."""
    network, found, left = trained.network, list[Tensor](), min(MAX_IMAGES, len(images))
    source = network.nodes[node].sources[0]
    for start in range(0, left, network.evaluation_batch):
        values = trained.preprocessing(images.images[start : min(left, start + network.evaluation_batch)])
        for output in islice(network.outputs(values), source):
            values = output
        found.append(values.flatten(1))
        if sum(map(Tensor.numel, found)) > _MAX_VALUES:
            break
    return torch.cat(found)


def _places(points: NDArray[np.float64]) -> NDArray[np.int_]:
    """Points (N, 2) as pixels of the canvas, which they fill."""
    low, high = points.min(0), points.max(0)
    inside = (points - low) / np.maximum(high - low, 1e-12)
    places: NDArray[np.int_] = (_THUMBNAIL + inside * (_CANVAS - 2 * _THUMBNAIL)).round().astype(int)
    return places


def _with_room(places: NDArray[np.int_]) -> list[int]:
    """The places (N, 2) that are far enough from all chosen before them."""
    chosen = [0]
    for index in range(1, len(places)):
        if np.abs(places[chosen] - places[index]).max(1).min() >= _APART:
            chosen.append(index)
    return chosen


def _thumbnails(images: Tensor, colours: NDArray[np.uint8 | np.float64]) -> NDArray[np.uint8]:
    """Images, uint8 (N, C, H, W), as (N, _THUMBNAIL, _THUMBNAIL, 3): grey ones as ink of these colours (N, 3)."""
    values = F.interpolate(images.float() / 255, (_THUMBNAIL, _THUMBNAIL), mode="bilinear", antialias=True)
    if values.shape[1] == 1:
        ink = values.permute(0, 2, 3, 1).numpy()
        drawn = 1 - ink * (1 - colours[:, None, None])
    else:
        drawn = np.broadcast_to(colours[:, None, None], (len(images), _THUMBNAIL, _THUMBNAIL, 3)).copy()
        drawn[:, 2:-2, 2:-2] = values.permute(0, 2, 3, 1).numpy()[:, 2:-2, 2:-2]  # in a frame of the colour
    return (255 * drawn.clip(0, 1)).round().astype(np.uint8)


def _colours(count: int) -> NDArray[np.float64]:
    """A colour for each of so many classes, (count, 3) from 0 to 1."""
    names = colormaps["tab10" if count <= 10 else "tab20"]
    return np.array([names(number % names.N)[:3] for number in range(count)])
