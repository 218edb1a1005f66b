"""The statistics of a few runs, against textbook values, scipy on the raw values, and simulated tables."""

import gc
from collections.abc import Iterator, Sequence
from itertools import combinations

import numpy as np
import pytest
from scipy.stats import binom, ttest_ind

from mnist_cnn.report.statistics import log_odds, not_separable, summary

TABLES = 1000
# A test at 5 % may call a few more than 50 of 1,000 equal tables different: in 1 of 1,000 simulations, more than these.
MOST_DIFFERENT = int(binom.isf(0.001, TABLES, 0.05))


@pytest.fixture(autouse=True, scope="module")
def _quick_collection() -> Iterator[None]:
    """Spare statsmodels' multipletests, which collects garbage at each call, all that was imported before."""
    gc.freeze()
    yield
    gc.unfreeze()


def tables_called_different(seeds: Sequence[int], apart: float = 0.0, tables: int = TABLES) -> int:
    """How many simulated tables have a setting that is told from the best. `apart` moves the first, in std."""
    rng, found = np.random.default_rng(0), 0
    for _ in range(tables):
        accuracies = [rng.normal(0.98, 0.0005, n) for n in seeds]
        accuracies[0] += 0.0005 * apart
        table = [[log_odds(value, 6000) for value in group] for group in accuracies]
        found += False in not_separable(table, int(np.argmax([np.mean(group) for group in table])))
    return found


def test_the_interval_of_a_mean_is_that_of_the_textbook() -> None:
    # The table of Student's t, 3 degrees of freedom, 97.5 %: 3.182. The values 1, 2, 3, 4 have a variance of 5/3.
    found = summary([1, 2, 3, 4])
    std = (5 / 3) ** 0.5
    assert found == pytest.approx((4, 2.5, std, 2.5 - 3.182446 * std / 2, 2.5 + 3.182446 * std / 2), abs=1e-6)


def test_one_value_has_no_spread_and_equal_values_an_interval_without_width() -> None:
    assert summary([0.99]) == (1, 0.99, None, None, None)
    assert summary([0.99] * 3) == (3, 0.99, 0.0, 0.99, 0.99)


def test_two_groups_are_told_apart_as_by_scipy_on_their_values() -> None:
    rng, answers = np.random.default_rng(1), set()
    for _ in range(100):
        one, other = rng.normal(0, 1, 4), rng.normal(rng.uniform(0, 4), rng.uniform(0.5, 2), 6)
        different = bool(ttest_ind(one, other, equal_var=False).pvalue <= 0.05)
        assert not_separable([one.tolist(), other.tolist()], 1) == [not different, True]
        answers.add(different)
    assert answers == {True, False}


def test_a_setting_that_is_far_worse_is_told_apart_though_its_seeds_spread_more() -> None:
    good, bad = [0.9772, 0.9793, 0.9814], [0.517, 0.551, 0.584]  # as `tiny` and `micro` after two epochs
    others = [[0.9600 + shift, 0.9629 + shift, 0.9658 + shift] for shift in (0, 1e-3, 2e-3, 3e-3, 4e-3, 5e-3, 6e-3)]
    odds = [[log_odds(accuracy, 6000) for accuracy in group] for group in (good, *others, bad)]
    assert not_separable(odds, 0)[-1] is False
    assert not_separable([good, *others, bad], 0)[-1] is True  # on the accuracies themselves


def test_log_odds_are_finite_and_those_of_the_answers() -> None:
    assert log_odds(0.99, 10**9) == pytest.approx(np.log(99), rel=1e-6)
    assert log_odds(1.0, 10) == pytest.approx(np.log(10.5 / 0.5))
    assert log_odds(0.0, 10) == pytest.approx(-log_odds(1.0, 10))


def test_holm_goes_over_all_pairs_of_groups() -> None:
    rng = np.random.default_rng(19)
    groups = [rng.normal(mean, 1, 5) for mean in (0, 0.5, 1.5, 2, 4)]
    p = {pair: ttest_ind(*(groups[i] for i in pair), equal_var=False).pvalue for pair in combinations(range(5), 2)}
    different, refused = {}, False
    for rank, (pair, value) in enumerate(sorted(p.items(), key=lambda item: item[1])):  # Holm 1979, step by step
        refused |= value > 0.05 / (len(p) - rank)
        different[pair] = not refused
    expected = [*(not different[pair] for pair in ((0, 4), (1, 4), (2, 4), (3, 4))), True]
    assert not_separable([group.tolist() for group in groups], 4) == expected
    assert set(expected) == {True, False}
    for limit in (0.05, 0.05 / 4, 0.05 / 10):  # uncorrected, only with the best, Bonferroni's
        assert expected[:4] != [p[pair] > limit for pair in ((0, 4), (1, 4), (2, 4), (3, 4))]


def test_where_no_test_is_possible_the_answer_is_none() -> None:
    three, other = [0.98, 0.981, 0.982], [0.99, 0.991, 0.993]
    assert not_separable([three, [0.5], [], other], 3) == [False, None, None, True]
    assert not_separable([[0.5], three], 0) == [True, None]  # the best has a single run
    assert not_separable([[0.98] * 3, [0.99] * 3], 1) == [None, True]  # neither varies
    assert not_separable([[0.98] * 3, other], 1) == [False, True]  # one does
    assert not_separable([three], 0) == [True]


@pytest.mark.parametrize("settings", [2, 9])
@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_equal_settings_are_called_different_in_no_more_than_five_percent_of_tables(settings: int, seeds: int) -> None:
    assert tables_called_different([seeds] * settings) <= MOST_DIFFERENT


def test_settings_that_differ_by_five_std_are_told_apart() -> None:
    assert tables_called_different([5] * 2, apart=5, tables=200) >= 195
    assert tables_called_different([5] * 9, apart=5, tables=200) >= 195
