"""Ranks settings by their mean validation accuracy, and says which can't be told from the best."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import NamedTuple

from mnist_cnn.report.leaderboard.runs import Failed, Found, Run, Value
from mnist_cnn.report.leaderboard.settings import DATA, Setting, settings_of
from mnist_cnn.report.statistics import Summary, log_odds, not_separable, summary

MEASURES = ("val/accuracy", "test/accuracy", "val/loss", "test/loss")
SEPARABLE = (
    "Welch's t-test on the log odds of validation accuracy, at 5 % in all, Holm-corrected for all pairs of settings"
)
# For runs of before `val/images` was recorded. It matters only near 0 and 100 %.
_VAL_IMAGES = 6000


class Row(NamedTuple):
    """A setting, and what its runs measured."""

    setting: Setting
    measured: dict[str, Summary | None]  # by MEASURES; None if a run has no such figure
    not_separable: bool | None  # from the best of its data set; None if that can't be tested
    is_best: bool  # of its data set

    @property
    def runs(self) -> list[Run]:
        return self.setting.runs

    @property
    def val_accuracy(self) -> Summary | None:
        return self.measured["val/accuracy"]

    @property
    def best_epochs(self) -> list[int]:
        """The best epochs of the runs, as far as they are known."""
        return [run.metrics.best_epoch for run in self.runs if run.metrics.best_epoch is not None]

    @property
    def seconds(self) -> float:
        """The mean time of all epochs."""
        return fmean(run.metrics.fit_seconds for run in self.runs)

    @property
    def parameters(self) -> int:
        return self.runs[0].metrics.parameters


@dataclass(frozen=True)
class Table:
    """All settings, the best one first; with different data sets, those of one after those of another."""

    columns: list[str]  # keys of settings, or DATA
    rows: list[Row]
    failed: list[Failed]
    notes: list[str]  # what a reader must know

    @property
    def is_marked(self) -> bool:
        """Whether a setting can't be told from a better one."""
        return any(row.not_separable and not row.is_best for row in self.rows)


def table(found: Found) -> Table:
    """The leaderboard of these runs. The test figures decide nothing."""
    columns, settings, notes = settings_of(found.runs)
    datasets: dict[str, list[Row]] = {}
    for setting in settings:
        measured = {name: _summary(setting.runs, name) for name in MEASURES}
        row = Row(setting, measured, None, False)
        datasets.setdefault(setting.runs[0].metrics.dataset, []).append(row)
    rows = [row for name in sorted(datasets) for row in _ranked(datasets[name])]
    return Table(columns, rows, found.failed, [*_warnings(columns, rows), *notes])


def _summary(runs: Sequence[Run], name: str) -> Summary | None:
    values = [getattr(run.metrics, name.replace("/", "_")) for run in runs]
    return None if None in values else summary(values)


def _ranked(rows: Sequence[Row]) -> list[Row]:
    """The settings of one data set by mean validation accuracy, then loss; those without validation images last."""

    def key(row: Row) -> tuple[float, float]:
        loss = row.measured["val/loss"]
        return -row.val_accuracy.mean if row.val_accuracy else math.inf, loss.mean if loss else math.inf

    ordered = sorted(rows, key=key)
    ranked = [row for row in ordered if row.val_accuracy]
    odds = [[_log_odds(run) for run in row.runs] for row in ranked]
    marks = not_separable(odds, 0) if ranked else []
    return [
        *(row._replace(not_separable=mark, is_best=row is ranked[0]) for row, mark in zip(ranked, marks, strict=True)),
        *ordered[len(ranked) :],
    ]


def _log_odds(run: Run) -> float:
    return log_odds(run.metrics.val_accuracy or 0.0, run.metrics.val_images or _VAL_IMAGES)


def _warnings(columns: Sequence[str], rows: Sequence[Row]) -> list[str]:
    warnings = []
    if DATA in columns:
        warnings.append("different data sets: their accuracies can't be compared, so each is ranked by itself")
    elif len({_validation(row) for row in rows if row.val_accuracy}) > 1:
        warnings.append("the settings were validated on different images (data.val_fraction, data.split)")
    if unranked := sum(row.val_accuracy is None for row in rows):
        which = "1 setting has" if unranked == 1 else f"{unranked} settings have"
        warnings.append(f"{which} no validation images and so no rank, and comes last: the test accuracy ranks nothing")
    untested = [row for row in rows if row.val_accuracy and row.not_separable is None]
    if any(len(row.runs) < 2 for row in rows) and untested:
        every = "each setting has one run" if all(len(row.runs) < 2 for row in rows) else "some settings have one run"
        warnings.append(f"{every}, so no difference from the best can be tested there: add seed=0,1,2")
    return warnings


def _validation(row: Row) -> tuple[Value, ...]:
    settings = row.runs[0].settings
    return settings.get("data.val_fraction"), settings.get("data.split")
