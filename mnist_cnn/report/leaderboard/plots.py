"""Draws how the validation accuracy depends on the settings that were varied, and on the time of training."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axis import Axis
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import LogLocator, NullFormatter

from mnist_cnn.report.figures import BLUE, GREY, INCHES, ORANGE
from mnist_cnn.report.leaderboard.scales import MAX_NAMED, WIDE, Scale, accuracy_scale, min_gap, scale
from mnist_cnn.report.leaderboard.table import Row
from mnist_cnn.report.statistics import summary

_GOLDEN = 0.618
_APART = 0.05  # of the width or the height, between two numbered dots


def by_value(rows: Sequence[Row], key: str) -> Figure:
    """Validation accuracy against a setting: a dot for each run, and for each value the mean of its runs."""
    across = scale([row.setting.values[key] for row in rows])
    runs: dict[float, list[float]] = {}
    for at, row in zip(across.places, rows, strict=True):
        runs.setdefault(at, []).extend(_accuracies(row))
    means = {at: summary(runs[at]) for at in sorted(runs)} if len(runs) <= 2 * MAX_NAMED else {}
    ends = [end for found in means.values() for end in (found.low, found.high) if end is not None]
    up = accuracy_scale([*ends, *(value for values in runs.values() for value in values)])
    figure = Figure(figsize=(INCHES, 3.4), layout="constrained")
    axes = figure.subplots()
    width = min(0.6 * min_gap(list(runs)), 0.12) if len(runs) <= MAX_NAMED else 0.0
    for at, values in runs.items():
        beside = np.arange(len(values)) * _GOLDEN % 1 - 0.5  # spread, without the order of the runs as a slope
        axes.plot(at + width * beside, up(values), "o", color=BLUE, markersize=4, alpha=0.55, markeredgewidth=0)
    if across.kind != "names":
        axes.plot(list(means), up([found.mean for found in means.values()]), "-", color=ORANGE, linewidth=1)
    for at, found in means.items():
        (mean,) = up([found.mean])
        axes.plot(at, mean, "D", color=ORANGE, markersize=5)
        if found.low is not None and found.high is not None:
            low, high = up([found.low, found.high])
            axes.errorbar(at, mean, [[mean - low], [high - mean]], color=ORANGE, capsize=4)
    _name(axes.xaxis, across.ticks)
    _name(axes.yaxis, up.ticks)
    if across.kind == "names" and sum(len(label) + 2 for _, label in across.ticks) > 50:
        axes.tick_params("x", rotation=90 if len(across.ticks) > 8 else 30)
    axes.set(xlim=(-0.1, 1.1), ylabel="validation accuracy")
    axes.set_xlabel(f"{key} (logarithmic)" if across.kind == "logarithmic" else key, parse_math=False)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def parallel(rows: Sequence[Row], keys: Sequence[str], names: Sequence[str]) -> Figure:
    """A line for each setting through its values, on axes with these names, to its mean validation accuracy."""
    means = [_mean(row) for row in rows]
    up = accuracy_scale(means)
    heights = np.array(up(means))
    low, high = heights.min(), max(heights.max(), heights.min() + 1e-9)
    heights = (heights - low) / (high - low)
    scales = [scale([row.setting.values[key] for row in rows]) for key in keys]
    scales.append(Scale(heights.tolist(), [((at - low) / (high - low), label) for at, label in up.ticks], "numbers"))
    colours = colormaps["viridis_r"](Normalize(-0.15, 1)(heights))
    figure = Figure(figsize=(INCHES * parallel_width(keys), 3.8), layout="constrained")
    axes = figure.subplots()
    for index in np.argsort(heights):  # the best on top
        axes.plot([found.places[index] for found in scales], color=colours[index], linewidth=1.6, alpha=0.85)
    for number, found in enumerate(scales):
        axes.axvline(number, color=GREY, linewidth=1, zorder=0)
        for at, label in found.ticks:
            left, side = (number - 0.04, "right") if number < len(keys) else (number + 0.04, "left")
            text = axes.text(left, at, label, fontsize=8, ha=side, va="center", zorder=9)
            text.set(parse_math=False, path_effects=[withStroke(linewidth=3, foreground="white")])
    below = "\n" if max(map(len, names)) > 12 else ""  # every other name on a second line
    heads = [below * (number % 2) + name for number, name in enumerate([*names, "val accuracy"])]
    axes.set_xticks(range(len(scales)), heads, parse_math=False)
    axes.tick_params(length=0)
    axes.set(xlim=(-0.5, len(keys) + 0.4), ylim=(-0.06, 1.06))
    axes.yaxis.set_visible(False)
    axes.spines[:].set_visible(False)
    return figure


def parallel_width(keys: Sequence[str]) -> float:
    """How many times as wide as other figures the parallel coordinates of these settings are."""
    return max(1.0, (len(keys) + 1) / 4)


def cost(rows: Sequence[Row], numbers: Sequence[int]) -> Figure:
    """Mean validation accuracy against mean seconds; settings that no faster one beats have their number."""
    seconds = [max(row.seconds, 1e-3) for row in rows]
    up = accuracy_scale([_mean(row) for row in rows])
    figure = Figure(figsize=(INCHES, 3.4), layout="constrained")
    axes = figure.subplots()
    for at, row in zip(seconds, rows, strict=True):
        colour = ORANGE if row.not_separable else BLUE
        axes.plot(at, *up([_mean(row)]), "o", color=colour, markersize=6, alpha=0.8, markeredgewidth=0)
    if max(seconds) >= WIDE * min(seconds):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
    _name(axes.yaxis, up.ticks)
    axes.margins(x=0.08, y=0.1)
    numbered = np.empty((0, 2))
    fastest = math.inf
    for at, row, number in zip(seconds, rows, numbers, strict=True):  # the best one first
        if at < fastest:
            fastest = at
            place = axes.transAxes.inverted().transform(axes.transData.transform((at, up.place(_mean(row)))))
            if not (np.abs(numbered - place) < _APART).all(1).any():
                numbered = np.vstack([numbered, place])
                axes.annotate(str(number), tuple(place), (5, 4), "axes fraction", "offset points", fontsize=9)
    axes.set(xlabel="seconds of training", ylabel="validation accuracy")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _accuracies(row: Row) -> list[float]:
    return [run.metrics.val_accuracy for run in row.runs if run.metrics.val_accuracy is not None]


def _mean(row: Row) -> float:
    assert row.val_accuracy, "only ranked settings are drawn"
    return row.val_accuracy.mean


def _name(axis: Axis, ticks: Sequence[tuple[float, str]]) -> None:
    axis.set_ticks([at for at, _ in ticks], [label for _, label in ticks], parse_math=False)
