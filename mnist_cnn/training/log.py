"""Logs the metrics of a run to one CSV file, which a resumed run continues."""

import csv
import io
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from mnist_cnn.files import write_file
from mnist_cnn.report.run import EpochRow

# What a row of History holds but the log does not: seconds differ from run to run, and LearningRateMonitor logs `lr`.
_NOT_LOGGED = ("epoch", "step", "lr", "seconds")


class CSVLog(Logger):
    """Writes `file`: a line for every step at which something was logged, a column for every metric.

    Lightning's CSVLogger starts another file when a run is resumed. This one continues the same file, so that the log
    is the same as if the run had not been stopped.
    """

    def __init__(self, file: str) -> None:
        super().__init__()
        self._file = Path(file)
        self._lines: dict[int, dict[str, float]] = {}  # by step, counted from 0 as Lightning does
        self._has_news = False

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Log nothing: `config.yaml` holds all settings."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self._add(int(step or 0), metrics)
        self._has_news = True

    def _add(self, step: int, metrics: Mapping[str, float]) -> None:
        self._lines.setdefault(step, {}).update(metrics)

    @rank_zero_only
    def save(self) -> None:
        """Write the file if something was logged since; OutputError if it can't be written."""
        if not self._has_news:
            return
        names = {name for line in self._lines.values() for name in line} - {"epoch"}
        text = io.StringIO()
        writer = csv.DictWriter(text, ["step", "epoch", *sorted(names)], lineterminator="\n")
        writer.writeheader()
        writer.writerows({"step": step, **line} for step, line in sorted(self._lines.items()))
        write_file(self._file, text.getvalue().encode())
        self._has_news = False

    @rank_zero_only
    def go_on_after(self, epochs: Sequence[EpochRow]) -> None:
        """Take over the lines of a stopped run up to its last whole epoch. `epochs` has a row for each whole epoch.

        The file may lack the last of them, and then gets them from these rows.
        """
        if not epochs:
            return
        last = int(epochs[-1]["step"]) - 1
        try:
            for line in csv.DictReader(self._file.read_text(encoding="utf-8").splitlines()):
                step = int(line.pop("step"))
                if step <= last:
                    self._lines[step] = {name: _number(value) for name, value in line.items() if value}
        except FileNotFoundError:
            pass
        except (ValueError, KeyError, TypeError, AttributeError, csv.Error):
            print(
                f"warning: {self._file} is damaged; it is written anew, without what callbacks logged", file=sys.stderr
            )
            self._lines.clear()
        for row in epochs:
            metrics = {name: value for name, value in row.items() if name not in _NOT_LOGGED}
            self._add(int(row["step"]) - 1, {"epoch": int(row["epoch"]) - 1, **metrics})


def _number(text: str) -> float:
    return int(text) if text.isdigit() else float(text)
