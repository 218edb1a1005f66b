"""The table of many runs: what is one setting, how settings are ranked, and what folders of strangers can do."""

import copy
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

from mnist_cnn.cli import main
from mnist_cnn.report.leaderboard import Leaderboard
from tests.conftest import Outcome

# What a run's metrics.json holds, as far as it matters here.
SETTINGS: dict[str, Any] = {
    "seed": 0,
    "model": {"name": "tiny", "layers": ["Flatten", {"Dense": {"units": 10}}], "init_from": None},
    "data": {"name": "mnist", "root": "data", "mirror": None, "batch_size": 128, "val_fraction": 0.1, "split": "last"},
    "trainer": {"accelerator": "auto", "devices": 1, "compile": False, "max_epochs": 12},
    "optimizer": {"_target_": "mnist_cnn.training.optimizers.KerasAdam", "lr": 0.001, "betas": [0.9, 0.999]},
    "scheduler": {},
    "logger": {"csv": {"_target_": "mnist_cnn.training.log.CSVLog"}},
}
METRICS: dict[str, Any] = {
    "dataset": "mnist", "model": "tiny", "seed": 0, "epochs": 12, "best_epoch": 9, "interrupted": False,
    "parameters": 6320, "val/accuracy": 0.98, "val/loss": 0.06, "test/accuracy": 0.97, "test/loss": 0.07,
    "fit_seconds": 20.5, "history": [],
}  # fmt: skip
MODELS = {"tiny": 10, "mlp": 32, "deep": 64}  # units of the layer


def write_run(folder: Path | str, *overrides: str, hidden: Mapping[str, Any] | None = None, **results: Any) -> Path:
    """The folder of a run with these overrides; `hidden` are further settings, which nobody typed."""
    settings, folder = copy.deepcopy(SETTINGS), Path(folder)
    typed = dict(text.lstrip("+").split("=", 1) for text in overrides)
    for key, value in {**typed, **(hidden or {})}.items():
        if key == "model":
            settings["model"] |= {"name": value, "layers": ["Flatten", {"Dense": {"units": MODELS[value]}}]}
        elif "." in key or key == "seed":
            *groups, last = key.split(".")
            inner = settings
            for group in groups:
                inner = inner.setdefault(group, {})
            inner[last] = json.loads(value) if isinstance(value, str) and re.match(r"[\d\[]", value) else value
    results = {name.replace("_", "/", 1) if name[:4] in ("val_", "test") else name: results[name] for name in results}
    metrics = {**METRICS, "seed": settings["seed"], **results, "overrides": list(overrides), "settings": settings}
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return folder


def write_sweep(folder: Path | str, accuracies: Mapping[Sequence[str], Sequence[float]]) -> Path:
    """A folder with a run for each validation accuracy of each setting, by seed."""
    for number, (overrides, values) in enumerate(accuracies.items()):
        for seed, value in enumerate(values):
            write_run(Path(folder) / f"{number:02}_{seed}", *overrides, f"seed={seed}", val_accuracy=value)
    return Path(folder)


def rows(made: Leaderboard) -> list[dict[str, Any]]:
    """The values of the columns of every line, with `n` and `val`, the mean validation accuracy."""
    return [
        {**row.setting.values, "n": len(row.runs), "val": row.val_accuracy and round(row.val_accuracy.mean, 4)}
        for row in made.table.rows
    ]


def command(*arguments: str) -> Outcome:
    out, err = StringIO(), StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        status = main(["leaderboard", *arguments])
    return Outcome(status, out.getvalue(), err.getvalue())
