"""Places the values of settings, and accuracies, on the axes of plots."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from matplotlib.ticker import LogLocator, MaxNLocator

from mnist_cnn.report.leaderboard.runs import Value
from mnist_cnn.report.leaderboard.settings import canonical
from mnist_cnn.report.leaderboard.text import shown

WIDE = 20  # numbers whose largest is so many times the smallest are placed by their logarithm
MAX_NAMED = 12  # values of a setting that are all named on its axis
_APART = 0.06  # of an axis, between two named values
_ACCURACIES = (0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9995, 1)

Ticks = list[tuple[float, str]]


class Scale(NamedTuple):
    """Where values stand on an axis from 0 to 1."""

    places: list[float]
    ticks: Ticks
    kind: str  # numbers, logarithmic, or names: in order, evenly spaced


class AccuracyScale(NamedTuple):
    """How accuracies from 0 to 1 are placed: as they are, or by the logarithm of the error."""

    place: Callable[[float], float]
    ticks: Ticks

    def __call__(self, accuracies: Sequence[float]) -> list[float]:
        return [self.place(min(max(accuracy, 0), 1)) for accuracy in accuracies]


def scale(values: Sequence[Value]) -> Scale:
    """Place the values of a setting: numbers by size or logarithm; others, and numbers too close to name, by order."""
    distinct = {canonical(value): value for value in values}
    numbers = [_number(value) for value in distinct.values()]
    known = [number for number in numbers if number is not None]
    if len(known) == len(numbers):
        found = _numeric([_number(value) or 0.0 for value in values])
        if len(known) > MAX_NAMED or min_gap([at for at, _ in found.ticks]) >= _APART:
            return found

    def order(key: str) -> tuple[bool, float, str]:
        number = _number(distinct[key])
        return number is None, number or 0.0, shown(distinct[key])

    places = {key: index / max(len(distinct) - 1, 1) for index, key in enumerate(sorted(distinct, key=order))}
    named = sorted(places, key=lambda key: places[key])[:: math.ceil(len(places) / (2 * MAX_NAMED))]
    ticks = [(places[key], shown(distinct[key], 14)) for key in named]
    return Scale([places[canonical(value)] for value in values], ticks, "names")


def accuracy_scale(accuracies: Sequence[float]) -> AccuracyScale:
    """A scale for these accuracies.

    Where the worst has many times the error of the best, a plain scale would show all good ones as one. Then 90 %, 99 %
    and 99.9 % are evenly spaced.
    """
    low, high = max(min(accuracies), 0), min(max(accuracies), 1)
    least = max(min((1 - accuracy for accuracy in accuracies if accuracy < 1), default=1) / 2, 1e-6)
    is_wide = 1 - low >= WIDE * max(1 - high, 2 * least)

    def place(accuracy: float) -> float:
        return -math.log10(max(1 - accuracy, least)) if is_wide else accuracy

    candidates = [low] if low == high else _ACCURACIES if is_wide else MaxNLocator(6).tick_values(low, high)
    return AccuracyScale(place, [(place(at), f"{100 * at:.6g} %") for at in candidates if low <= at <= high])


def min_gap(places: Sequence[float]) -> float:
    """The smallest distance between neighbours; 1 if there are none."""
    ordered = sorted(places)
    return min((after - before for before, after in pairwise(ordered)), default=1.0)


def _numeric(values: Sequence[float]) -> Scale:
    low, high = min(values), max(values)
    is_wide = low > 0 and high >= WIDE * low

    def place(value: float) -> float:
        if is_wide:
            return math.log(value / low) / math.log(high / low)
        return (value - low) / (high - low) if high > low else 0.5

    named = sorted(set(values))
    if len(named) > MAX_NAMED:
        locator: Any = LogLocator(numticks=6) if is_wide else MaxNLocator(5)
        named = [float(at) for at in locator.tick_values(low, high) if low <= at <= high]
    ticks = [(place(at), f"{at:g}") for at in named]
    return Scale([place(value) for value in values], ticks, "logarithmic" if is_wide else "numbers")


def _number(value: Value) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e100
    return float(value) if is_number else None  # type: ignore[arg-type]  # which mypy does not follow
