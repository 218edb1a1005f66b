"""Says how sure the mean of a few runs is, and which settings it tells apart.

A run is one draw: with another seed, the same settings have another accuracy. So the spread over seeds decides.
"""

from collections.abc import Sequence
from itertools import combinations
from statistics import mean as average
from statistics import stdev
from typing import NamedTuple

import numpy as np
from scipy.special import logit
from scipy.stats import t, ttest_ind_from_stats
from statsmodels.stats.multitest import multipletests

CONFIDENCE = 0.95  # of intervals; a difference that has a p-value below 1 - CONFIDENCE is called significant


class Summary(NamedTuple):
    """What n values say. `std` is the sample standard deviation (n - 1), `low` to `high` the 95 % interval of the mean.

    Of one value, these three are None.
    """

    n: int
    mean: float
    std: float | None
    low: float | None
    high: float | None


def summary(values: Sequence[float]) -> Summary:
    """Summarise at least one finite value, with Student's t-interval. Where all are equal, it has no width."""
    n, mean = len(values), average(values)
    if n < 2:
        return Summary(n, mean, None, None, None)
    std = stdev(values)
    low, high = t.interval(CONFIDENCE, n - 1, mean, std / n**0.5) if std else (mean, mean)
    return Summary(n, mean, std, float(low), float(high))


def log_odds(accuracy: float, images: int) -> float:
    """The logarithm of right against wrong answers, half an answer added to both so that it is finite (Haldane 1956).

    Near 100 %, accuracies are squeezed together: seeds of a setting at 98 % spread far less than those of one at 60 %.
    On this scale the spread depends less on the accuracy, so Welch's test has more degrees of freedom where a poor
    setting meets a good one.
    """
    return float(logit((accuracy * images + 0.5) / (images + 1)))


def not_separable(groups: Sequence[Sequence[float]], best: int) -> list[bool | None]:
    """For each group of finite values, whether its mean can't be told from that of `groups[best]`.

    Welch's t-test decides, at 5 % over all groups together (Holm 1979). None where it can't: one of the two groups has
    fewer than two values, or neither varies. The best group can't be told from itself.

    The correction counts all pairs of groups, not only those with the best one. The same values decided which group is
    the best, and the highest of many equal means is far from most others by chance: as if all pairs had been tried.
    """
    n = np.array([len(group) for group in groups])
    mean = np.array([average(group) if group else 0 for group in groups])
    std = np.array([stdev(group) if len(group) > 1 else 0 for group in groups])
    pairs = [pair for pair in combinations(range(len(groups)), 2) if min(n[[*pair]]) > 1 and any(std[[*pair]])]
    found: dict[tuple[int, int], bool] = {}
    if pairs:
        one, other = np.array(pairs).T
        p = ttest_ind_from_stats(mean[one], std[one], n[one], mean[other], std[other], n[other], equal_var=False).pvalue
        different = multipletests(p, 1 - CONFIDENCE, method="holm")[0]
        found = {pair: not is_different for pair, is_different in zip(pairs, different.tolist(), strict=True)}
    return [True if group == best else found.get((min(group, best), max(group, best))) for group in range(len(groups))]
