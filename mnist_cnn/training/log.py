"""The log of a run as a CSV file."""

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

# What a row of History has that is not logged: it differs from run to run, or LearningRateMonitor logs it.
_NOT_LOGGED = ("epoch", "step", "lr", "seconds")


class CSVLog(Logger):
    """Writes one line for every step at which something was logged to `file`, with a column for every metric.

    Lightning's CSVLogger starts another file when a run is resumed. This one goes on with the same, which ends as if
    the run had not been stopped.
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
        """Nothing: `config.yaml` has them all."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self._add(int(step or 0), metrics)
        self._has_news = True

    def _add(self, step: int, metrics: Mapping[str, float]) -> None:
        self._lines.setdefault(step, {}).update(metrics)

    @rank_zero_only
    def save(self) -> None:
        """Write the file; a resumed run leaves it alone until it has something to add."""
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
        """Take over the lines of the run up to its last whole epoch, which may not be in the file yet."""
        if not epochs:
            return
        last = int(epochs[-1]["step"]) - 1
        try:
            for line in csv.DictReader(self._file.read_text().splitlines()):
                step = int(line.pop("step"))
                if step <= last:
                    self._lines[step] = {name: _number(value) for name, value in line.items() if value}
        except FileNotFoundError:
            pass
        except (ValueError, KeyError, TypeError, csv.Error):
            print(
                f"warning: {self._file} is damaged; it is written anew, without what callbacks logged", file=sys.stderr
            )
            self._lines.clear()
        for row in epochs:
            metrics = {name: value for name, value in row.items() if name not in _NOT_LOGGED}
            self._add(int(row["step"]) - 1, {"epoch": int(row["epoch"]) - 1, **metrics})


def _number(text: str) -> float:
    return int(text) if text.isdigit() else float(text)
