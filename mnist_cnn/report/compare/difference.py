"""Tests whether two sides differ, and says so in a sentence that a paper may hold.

Two networks are compared image by image, by McNemar's test. Its answer is about these two networks only; with another
seed, both would be others. Two settings are compared over their seeds, by Welch's t-test, whose answer is about the
settings. Welch's is the only test for seeds, chosen beforehand, so that nobody picks a test by its result. Runs are not
paired by seed: where only the optimiser differs, the same seed gives the same initial weights, and pairing might find
smaller differences.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import CompareMeans, DescrStatsW
from torch import Tensor

from mnist_cnn.inference.box import Spread, percent
from mnist_cnn.report.compare.sides import EvaluatedSide
from mnist_cnn.report.statistics import CONFIDENCE, summary


class ClassChange(NamedTuple):
    """How many images of a class only one of two networks classifies correctly."""

    name: str
    images: int
    only_one: int
    only_other: int


@dataclass(frozen=True)
class Difference:
    """The accuracy of `other` minus that of `one`, from -1 to 1, with its 95 % interval and the p-value of a test.

    Where the values have no spread that a test needs, `low`, `high` and `p` are None.
    """

    one: EvaluatedSide
    other: EvaluatedSide
    value: float
    low: float | None
    high: float | None
    p: float | None
    tests: int = 1  # how many tests Holm's method corrected p for

    @property
    def significant(self) -> bool:
        return self.p is not None and self.p <= 1 - CONFIDENCE

    @property
    def over_seeds(self) -> bool:
        return len(self.one.results) > 1

    @property
    def total(self) -> int:
        """The number of images."""
        return self.one.results[0].total

    @property
    def test(self) -> str:
        return "Welch's t-test" if self.over_seeds else "McNemar's exact test"

    @property
    def interval(self) -> str:
        """`0.35 to 0.71`, in percentage points."""
        return "not known" if self.low is None or self.high is None else f"{points(self.low)} to {points(self.high)}"

    @property
    def sentence(self) -> str:
        """What a paper may say: the difference with its interval, the test, n and p.

        A difference that is not significant is never called none: the interval says how large it may be.
        """
        if self.value < 0:  # the better one comes first
            low, high = (None if end is None else -end for end in (self.high, self.low))
            return replace(self, one=self.other, other=self.one, value=-self.value, low=low, high=high).sentence
        result = self.one.results[0]
        images = {"test": "test images", "val": "validation images", "train": "training images"}[result.split]
        better, worse = map(_with_accuracy, (self.other, self.one))
        where, by = f"On the {self.total:,} {images} of {result.dataset}", f"{points(self.value)} percentage points"
        if self.p is None:
            return f"{where}, {better} is {by} above {worse}; neither varies over its runs, so no test is possible."
        spread = "mean ± standard deviation over n runs; " if self.over_seeds else ""
        n = "" if self.over_seeds else f", n = {self.total:,}"
        holm = f" after Holm's correction for {self.tests} tests" if self.tests > 1 else ""
        how = f"({spread}95 % interval of the difference {self.interval}; {self.test}{n}, {p_value(self.p)}{holm})"
        if self.significant:
            return f"{where}, {better} is more accurate than {worse} by {by} {how}."
        return f"{where}, we found no significant difference in accuracy between {better} and {worse}: {by} {how}."

    @property
    def notes(self) -> list[str]:
        """Notes on the test, one line each."""
        found = []
        if not self.over_seeds:
            found.append(
                "This is about these two networks. With other seeds, the same settings give other accuracies: to "
                "compare settings, give several runs for each side."
            )
        if self.low is not None and self.high is not None and self.significant == (self.low <= 0 <= self.high):
            found.append("The test and the interval disagree, as they may near the limit; the test decides.")
        return found

    @cached_property
    def only_one(self) -> Tensor:
        """The indices of the images that only `one`, a single network, classifies correctly."""
        return (self.one.right & ~self.other.right).nonzero().flatten()

    @cached_property
    def only_other(self) -> Tensor:
        """Those that only `other` classifies correctly."""
        return (self.other.right & ~self.one.right).nonzero().flatten()

    @property
    def table(self) -> list[list[int]]:
        """Numbers of images: in the rows, `one` is right and wrong; in the columns, `other` is."""
        right, wrong = self.one.right, ~self.one.right
        return [
            [int((row & column).sum()) for column in (self.other.right, ~self.other.right)] for row in (right, wrong)
        ]

    def by_class(self) -> list[ClassChange]:
        """The classes of images that only one of two single networks classifies correctly."""
        labels, classes = self.one.results[0].labels, self.one.results[0].classes
        chosen = (labels, labels[self.only_one], labels[self.only_other])
        counts = [torch.bincount(some, minlength=len(classes)).tolist() for some in chosen]
        rows = map(ClassChange, classes, *counts)
        return [row for row in rows if row.only_one or row.only_other]


def differences(sides: Sequence[EvaluatedSide]) -> list[Difference]:
    """Each side compared with the first.

    The p-values of several are corrected together (Holm 1979). It is enough to count these: which side is the first was
    said beforehand. Each interval stays one of 95 % by itself.
    """
    first, *others = sides
    single = len(first.results) == 1
    found = [_between_networks(first, other) if single else _over_seeds(first, other) for other in others]
    tested = [each.p for each in found if each.p is not None]
    if len(tested) < 2:
        return found
    corrected = iter(multipletests(tested, method="holm")[1].tolist())
    return [each if each.p is None else replace(each, p=next(corrected), tests=len(tested)) for each in found]


def points(difference: float) -> str:
    """A difference of accuracies in percentage points: `−0.53`."""
    rounded = round(100 * difference, 2) + 0.0  # not -0.0
    return f"{rounded:.2f}".replace("-", "−")


def p_value(p: float) -> str:
    """`p = 0.043`, `p < 0.001`; with more digits where `p = 0.050` would not say on which side of the limit it is."""
    if p < 0.001:
        return "p < 0.001"
    return f"p = {p:.5f}" if round(p, 3) == 0.05 else f"p = {p:.3f}"


def _between_networks(one: EvaluatedSide, other: EvaluatedSide) -> Difference:
    """McNemar's exact test, and Student's interval for the mean of the differences: -1, 0 or 1 for each image."""
    by_image = summary((other.right.long() - one.right.long()).tolist())
    difference = Difference(one, other, by_image.mean, by_image.low, by_image.high, None)
    return replace(difference, p=float(mcnemar(difference.table, exact=True).pvalue))


def _over_seeds(one: EvaluatedSide, other: EvaluatedSide) -> Difference:
    """Welch's t-test and its interval."""
    value = other.accuracy.mean - one.accuracy.mean
    if not one.accuracy.std and not other.accuracy.std:
        return Difference(one, other, value, None, None, None)
    means = CompareMeans(*(DescrStatsW([result.accuracy for result in side.results]) for side in (other, one)))
    _, p, _ = means.ttest_ind(usevar="unequal")
    low, high = means.tconfint_diff(alpha=1 - CONFIDENCE, usevar="unequal")
    return Difference(one, other, value, float(low), float(high), float(p))


def _with_accuracy(side: EvaluatedSide) -> str:
    found = side.accuracy
    if found.std is None:
        return f"{side.name} ({percent(found.mean)})"
    return f"{side.name} ({Spread(found.mean, found.std)}, n = {found.n})"
