"""How often does a leaderboard, or a comparison, call equal settings different, and miss different ones?

    python benchmarks/simulated_tables.py

Accuracies are drawn around 98 % with a standard deviation of 0.05 points over seeds. A table is called different if any
setting in it is told from the best one. With 1,000 tables, a share of 5 % is known to within 1.4 points.
"""

import gc
from collections.abc import Sequence

import numpy as np
from scipy.stats import ttest_ind
from statsmodels.stats.multitest import multipletests

from mnist_cnn.report.statistics import log_odds, not_separable

TABLES = 1000
MEAN, STD, IMAGES = 0.98, 0.0005, 6000


def tables(settings: int, seeds: int, apart: float = 0) -> list[list[list[float]]]:
    """Log odds of `TABLES` tables; the first setting of each is `apart` standard deviations better than the others."""
    draws = np.random.default_rng(0).normal(MEAN, STD, (TABLES, settings, seeds))
    draws[:, 0] += apart * STD
    return [[[log_odds(value, IMAGES) for value in row] for row in table] for table in draws.tolist()]


def best(table: Sequence[Sequence[float]]) -> int:
    """The place of the setting with the highest mean."""
    return int(np.argmax([np.mean(row) for row in table]))


def called_different(settings: int, seeds: int) -> float:
    """The share of tables of equal settings that a leaderboard calls different."""
    return float(np.mean([False in not_separable(table, best(table)) for table in tables(settings, seeds)]))


def with_the_best_only(settings: int, seeds: int) -> float:
    """The same, if Holm's method counted only the pairs with the best setting."""
    found = 0
    for table in tables(settings, seeds):
        first, others = table[best(table)], [row for place, row in enumerate(table) if place != best(table)]
        p = [ttest_ind(first, row, equal_var=False).pvalue for row in others]
        found += bool(multipletests(p, 0.05, method="holm")[0].any())
    return found / TABLES


def told_apart(settings: int, seeds: int, apart: float) -> float:
    """The share of the other settings that are told from one that is so many standard deviations better."""
    marks = [not_separable(table, 0)[1:] for table in tables(settings, seeds, apart)]
    return float(np.mean([mark is False for row in marks for mark in row]))


def pairs(one: int, other: int) -> float:
    """The share of 100,000 pairs of equal settings, with so many seeds each, that Welch's test calls different."""
    rng = np.random.default_rng(0)
    draws = rng.normal(MEAN, STD, (one, 100_000)), rng.normal(MEAN, STD, (other, 100_000))
    return float(np.mean(ttest_ind(*draws, equal_var=False).pvalue <= 0.05))


def main() -> None:
    """Print the shares."""
    gc.freeze()  # multipletests collects garbage at each call
    for settings in (2, 9):
        for seeds in (3, 5, 10):
            print(f"{settings} equal settings, {seeds} seeds: {called_different(settings, seeds):.1%} called different")
    print(f"27 equal settings, 10 seeds, only pairs with the best counted: {with_the_best_only(27, 10):.1%}")
    for seeds in (3, 5, 10):
        print(f"9 settings, {seeds} seeds, one 5 std better: {told_apart(9, seeds, 5):.1%} of the pairs told apart")
    for one, other in ((3, 3), (5, 5), (10, 10), (3, 10)):
        print(f"two equal settings, {one} and {other} seeds, Welch's test: {pairs(one, other):.1%} called different")


if __name__ == "__main__":
    main()
