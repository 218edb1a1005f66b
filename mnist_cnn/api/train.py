"""`mnist_cnn.train`: one run, with the settings of the command line, as an object with its results."""

import base64
import html
import json
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mnist_cnn import quick_imports
from mnist_cnn.api.model import Model, load
from mnist_cnn.errors import ConfigError, missing_package


def train(*settings: str) -> "TrainingRun":
    """Train a network, and return the finished run.

    `settings` are those of `mnist-cnn train`, one string each: `"model=tiny", "trainer.max_epochs=1"`. The run gets a
    folder of its own, as always. ConfigError for a wrong setting; Interrupted, a KeyboardInterrupt, if the training is
    interrupted: `train("resume=FOLDER")` continues it.
    """
    if find_spec("hydra") is None:
        raise missing_package("hydra")
    from mnist_cnn.hydra_cli.configure import configured

    if not all(isinstance(setting, str) for setting in settings):
        raise ConfigError('settings are strings, one for each: train("model=tiny", "trainer.max_epochs=1").')
    config, command = configured(settings)
    if config.trainer.strategy == "ddp":
        raise ConfigError("trainer.strategy=ddp: mnist_cnn.train trains in this process; use mnist-cnn train.")
    with quick_imports():
        from mnist_cnn.training.run import train as train_network
    run = train_network(config, command)
    assert run is not None, "a run of one process that was not interrupted has results"
    return TrainingRun(run.folder.absolute())


@dataclass(frozen=True)
class TrainingRun:
    """A finished run, read from its folder. A notebook shows its results and curves."""

    folder: Path

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """The content of `metrics.json`: `test/accuracy`, `val/loss`, `parameters` and more."""
        content: dict[str, Any] = json.loads((self.folder / "metrics.json").read_text(encoding="utf-8"))
        return content

    @property
    def history(self) -> list[dict[str, float]]:
        """A row for each epoch, with `epoch`, `train/loss`, `train/accuracy`, `val/loss`, `val/accuracy` and `lr`."""
        rows: list[dict[str, float]] = self.metrics["history"]
        return rows

    @cached_property
    def model(self) -> Model:
        """The network of the best epoch."""
        return load(self.folder)

    @property
    def report(self) -> Path:
        """The report, an HTML page."""
        return self.folder / "report" / "index.html"

    def _repr_html_(self) -> str:
        """The results, and accuracy and loss by epoch, for a notebook."""
        names = ("dataset", "model", "best_epoch", "val/accuracy", "test/accuracy", "test/loss", "fit_seconds")
        rows = "".join(f"<tr><th>{name}</th><td>{html.escape(_shown(self.metrics[name]))}</td></tr>" for name in names)
        curves = "".join(
            f'<img width="400" alt="{what} by epoch" src="data:image/png;base64,'
            f'{base64.b64encode((self.report.parent / f"{what}.png").read_bytes()).decode()}">'
            for what in ("accuracy", "loss")
        )
        return f"<table>{rows}</table><div>{curves}</div>"


def _shown(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)
