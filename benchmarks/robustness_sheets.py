"""Draws what the robustness benchmark looks at: corrupted digits, digits that are always wrong, pictures that fail."""

import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from corruptions import BATCH, CORRUPTIONS, corrupt
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from mnist_cnn.data.images import Images
from mnist_cnn.data.reading import read
from mnist_cnn.errors import DataError
from mnist_cnn.inference.pictures.prepare import to_images
from mnist_cnn.report.figures import gallery, png

_MOST = 60  # images on a sheet
_DOTS = 160 / 3  # pixels of the digits to an inch, so that each is 3×3 pixels of the sheet
_SIDE = 84  # of a picture on the sheet of failures, in pixels


def answers(given: Iterable[str], most: int | None = None) -> str:
    """`7 ×2, 1`: the `most` frequent answers, in descending order, with how many networks gave each."""
    counts = Counter(given).most_common()
    shown = [f"{answer} ×{count}" if count > 1 else answer for answer, count in counts[:most]]
    return ", ".join([*shown, "…"] if len(shown) < len(counts) else shown)


def grey_png(figure: Figure) -> bytes:
    """A figure as a PNG file in grey, half as large as in colour."""
    stream = io.BytesIO()
    Image.open(io.BytesIO(png(figure))).convert("L").save(stream, "PNG", optimize=True)
    return stream.getvalue()


def corruption_sheet(images: Images) -> Figure:
    """The first image of each class by rows, one corruption by columns, as the network sees them."""
    labels = images.labels[:BATCH]
    first = [labels.tolist().index(label) for label in sorted(set(labels.tolist()))]
    batch = images.images[:BATCH]  # whose random numbers are those of the measurement
    columns = {"none": batch, **{name: corrupt(name, batch) for name in CORRUPTIONS}}
    height, width, gap = *images.images.shape[2:], 2
    canvas = torch.full((len(first) * (height + gap) - gap, len(columns) * (width + gap) - gap), 200, dtype=torch.uint8)
    with_names = canvas.shape[0] + 16
    figure = Figure(figsize=(canvas.shape[1] / _DOTS, with_names / _DOTS))
    axes = figure.add_axes((0, 0, 1, canvas.shape[0] / with_names))
    axes.set_axis_off()
    for column, (name, changed) in enumerate(columns.items()):
        left = column * (width + gap)
        for row, index in enumerate(first):
            top = row * (height + gap)
            canvas[top : top + height, left : left + width] = changed[index, 0]
        axes.text(left + width / 2, -gap, name.replace("_", "\n"), ha="center", va="bottom", fontsize=6)
    axes.imshow(canvas.numpy(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    return figure


def wrong_sheet(images: Images, given: Mapping[int, Sequence[str]], classes: Sequence[str]) -> Figure:
    """The images at these indices, each under its label and the answers that were given."""
    shown = list(given)[:_MOST]
    titles = [f"{classes[int(images.labels[index])]} → {answers(given[index], 2)}" for index in shown]
    return gallery(images.images[shown], titles, columns=5)


def failures_sheet(folder: Path, given: Mapping[str, Sequence[str]]) -> Figure:
    """Pictures beside the 28×28 images made of them, under their names and the answers that were given."""
    shown = list(given)[:_MOST]
    titles = [f"{Path(name).stem}\n→ {answers(given[name], 2)}" for name in shown]
    return gallery(torch.stack([_beside(folder / name) for name in shown]), titles, columns=3)


def _beside(file: Path) -> Tensor:
    """A picture, and beside it the image made of it; of a number, that of its first digit."""
    picture = read(file, str(file))
    try:
        seen = to_images(picture, (1, 28, 28), "auto")[0][0].image
    except DataError:  # no digit was found
        seen = torch.zeros(1, 1, 1)
    grey = to_images(picture, (1, _SIDE, _SIDE), "as-is")[0][0].image
    return torch.cat([grey, F.interpolate(seen[None].float(), (_SIDE, _SIDE))[0].to(torch.uint8)], 2)
