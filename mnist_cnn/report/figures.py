"""Draws the figures of a report, five inches wide so that they can be read on a phone too."""

import io
import math
from collections.abc import Sequence

import torch
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from torch import Tensor

from mnist_cnn.data.images import Images
from mnist_cnn.inference.evaluate import Answer, Evaluation
from mnist_cnn.report.run import EpochRow

# The most images that a gallery shows.
MISTAKES = 25
LEAST_CERTAIN = 25
SAMPLES = 50
# A confusion matrix names no more classes than this; of more, it names some, and shows no counts.
_NAMED = 60
INCHES = 5  # the width of a figure

BLUE, ORANGE, GREY = "#1f5fa8", "#d9730d", "#9aa7b5"


def curves(history: Sequence[EpochRow], what: str) -> Figure:
    """`accuracy` or `loss` by epoch, for training and validation."""
    figure = Figure(figsize=(INCHES, 3.4), layout="constrained")
    axes = figure.subplots()
    for part, colour, label in (("train", BLUE, "training"), ("val", ORANGE, "validation")):
        points = [(row["epoch"], row[f"{part}/{what}"]) for row in history if f"{part}/{what}" in row]
        if points:
            axes.plot(*zip(*points, strict=True), color=colour, marker="o", markersize=4, label=label)
    axes.set(xlabel="epoch", ylabel=what)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if what == "accuracy":
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.lines:
        axes.legend(frameon=False)
    return figure


def confusion_width(classes: int) -> float:
    """How many times as wide as other figures a confusion matrix is, so that the names of its classes can be read."""
    return max(1, 0.04 * min(classes, _NAMED))


def confusion_matrix(evaluation: Evaluation) -> Figure:
    """Counts by true class (row) and predicted class (column); the colour is the count's share of its row."""
    names = [_short(name, 20) for name in evaluation.classes]
    side = INCHES * confusion_width(len(names))
    figure = Figure(figsize=(side, side - 0.1), layout="constrained")
    axes = figure.subplots()
    counts = evaluation.confusion
    share = counts / counts.sum(1, keepdim=True).clamp(min=1)
    # A good network makes a few mistakes in a thousand; the power scale keeps them visible beside the diagonal.
    axes.imshow(share.numpy(), cmap="Blues", norm=PowerNorm(0.3, vmin=0, vmax=1))
    size = 9 if len(names) <= 12 else 6
    for row, column in counts.nonzero().tolist() if len(names) <= _NAMED else ():
        colour = "white" if share[row, column] > 0.15 else "black"
        axes.text(column, row, f"{counts[row, column]}", ha="center", va="center", fontsize=size, color=colour)
    shown = range(0, len(names), math.ceil(len(names) / _NAMED))
    axes.set_xticks(shown, names[:: shown.step], rotation=90 if _wordy(names) else 0, parse_math=False)
    axes.set_yticks(shown, names[:: shown.step], parse_math=False)
    axes.set(xlabel="predicted", ylabel="true")
    return figure


def reliability(evaluation: Evaluation) -> Figure:
    """How often answers of each probability are right, against the diagonal, above their number."""
    figure = Figure(figsize=(INCHES, 4.2))
    share, count = figure.subplots(2, sharex=True, height_ratios=(3, 1))
    figure.subplots_adjust(left=0.16, right=0.96, top=0.97, bottom=0.12)  # a layout engine would draw it twice
    bins = evaluation.confidence_bins
    total, _, right = torch.cat([bins[:14], bins[14:].sum(0, keepdim=True)]).unbind(1)  # the last has exactly 1 too
    there = total > 0
    middle = ((torch.arange(15) + 0.5) / 15)[there].numpy()
    share.bar(middle, (right / total)[there].numpy(), 1 / 15, color=BLUE, edgecolor="white")
    share.plot([0, 1], [0, 1], color=ORANGE, linestyle="--")
    share.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="right")
    share.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    count.bar(middle, total[there].numpy(), 1 / 15, color=GREY, edgecolor="white")
    for x, number in zip(middle, total[there].int().tolist(), strict=True):
        count.text(x, number, f"{number}", ha="center", va="bottom", fontsize=7)
    count.set(yscale="log", ylim=(0.7, 8 * float(total.max())), xlabel="probability of the answer", ylabel="images")
    count.minorticks_off()
    count.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    for axes in (share, count):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def mistakes(evaluation: Evaluation, images: Images) -> Figure:
    """The most confident mistakes: true class → predicted class, and the probability of the latter."""
    worst = evaluation.mistakes(MISTAKES)
    titles = [f"{_taken_for(one, evaluation.classes)}\n{one.probability:.1%}" for one in worst]
    return gallery(images.images[[mistake.index for mistake in worst]], titles, columns=5)


def wrong_answers(evaluation: Evaluation, images: Images, indices: Tensor) -> Figure:
    """The misclassified images at these indices: true class → predicted class."""
    titles = [_taken_for(answer, evaluation.classes) for answer in evaluation.answers(indices)]
    return gallery(images.images[indices], titles, columns=5)


def least_certain(evaluation: Evaluation, images: Images) -> Figure:
    """The least certain answers with their probability: a tick if it is right, else true class → answer in orange."""
    answers = evaluation.least_certain(LEAST_CERTAIN)
    titles, colours = [], []
    for answer in answers:
        right = answer.true == answer.predicted
        says = f"{_short(answer.true)} ✓" if right else _taken_for(answer, evaluation.classes)
        titles.append(f"{says}\n{answer.probability:.1%}")
        colours.append("black" if right else ORANGE)
    return gallery(images.images[[answer.index for answer in answers]], titles, columns=5, colours=colours)


def samples(images: Images, classes: Sequence[str]) -> Figure:
    """The first images with their classes."""
    titles = [_short(classes[label]) for label in images.labels[:SAMPLES]]
    return gallery(images.images[:SAMPLES], titles, columns=5 if _wordy(classes) else 10)


def gallery(images: Tensor, titles: Sequence[str], columns: int, colours: Sequence[str] | None = None) -> Figure:
    """Images (N, C, H, W) in rows, each under its title, in one Axes: fifty Axes would take seconds to lay out."""
    rows = max(math.ceil(len(images) / columns), 1)
    channels, height, width = images.shape[1:]
    text = 0.24 * columns / 5 * width * (1 + max((title.count("\n") for title in titles), default=0))
    cell, gap = int(height + text), width // 7  # in pixels of the images
    canvas = images.new_full((rows * cell, columns * (width + gap), channels), 0 if channels == 1 else 255)
    figure = Figure(figsize=(INCHES, INCHES * canvas.shape[0] / canvas.shape[1]))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    for index, (image, title) in enumerate(zip(images, titles, strict=True)):
        row, column = divmod(index, columns)
        left, bottom = column * (width + gap) + gap // 2, (row + 1) * cell
        canvas[bottom - height : bottom, left : left + width] = image.permute(1, 2, 0)
        label = axes.text(left + width / 2, bottom - height - 0.5, title, ha="center", va="bottom", fontsize=9)
        label.set_color(colours[index] if colours else "black")
        label.set_parse_math(False)  # the name of a class may have a $, which does not begin a formula
    axes.imshow(
        canvas.squeeze(-1).numpy(), cmap="gray_r", vmin=0, vmax=255
    )  # for colour images, cmap and limits are ignored
    return figure


def png(figure: Figure) -> bytes:
    """A figure as a PNG file."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=160)
    return stream.getvalue()


def _taken_for(answer: Answer, classes: Sequence[str]) -> str:
    """True class → answer; on two lines if the names of the classes are words."""
    arrow = " →\n" if _wordy(classes) else " → "
    return f"{_short(answer.true)}{arrow}{_short(answer.predicted)}"


def _short(name: str, most: int = 12) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"


def _wordy(classes: Sequence[str]) -> bool:
    return max(map(len, classes)) > 3
