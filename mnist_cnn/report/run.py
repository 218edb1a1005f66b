"""The facts of a finished run, as `metrics.json`, the terminal and the report show them."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mnist_cnn import plain_yaml
from mnist_cnn.data.images import Images
from mnist_cnn.errors import one_line
from mnist_cnn.inference.checkpoint import TrainedNetwork
from mnist_cnn.inference.evaluate import Evaluation
from mnist_cnn.terminal import train_command

# `epoch` (counted from 1), `train/loss`, `train/accuracy`, `val/loss`, `val/accuracy`, `lr`, and `seconds`.
EpochRow = dict[str, float]


@dataclass(frozen=True)
class Run:
    """A finished run, with the best checkpoint evaluated on the validation and test images."""

    folder: Path
    trained: TrainedNetwork
    history: list[EpochRow]  # one for each epoch
    interrupted: bool
    accelerator: str  # what it was trained on: cpu, cuda or mps
    images_per_epoch: int
    train_images: Images
    augmented_images: Images | None  # the first of them as the first epoch showed them; None: as they are
    test_images: Images
    val: Evaluation | None  # None: all training images were trained on
    test: Evaluation
    fallback: bool  # MNIST was wanted but is not available, so another data set took its place
    data_root: str
    data_file: str | None  # of the user's own images
    settings: str  # the configuration, as YAML
    overrides: list[str]  # what the command that started the run set, `key=value`

    @property
    def best_epoch(self) -> int | None:
        """The epoch of the best checkpoint, counted from 1; None if no epoch was finished."""
        return self.trained.epoch if self.history else None

    @property
    def seconds(self) -> float:
        """The time of all epochs, including validation."""
        return sum(row["seconds"] for row in self.history)

    @property
    def images_per_second(self) -> float:
        """Training images per second of that time; 0 if no epoch was finished."""
        return self.images_per_epoch * len(self.history) / self.seconds if self.history else 0.0

    @property
    def average(self) -> str:
        """What the weights are an average of, in words; empty if they are no average."""
        settings = self.trained.training.get("settings", {})
        for key, target in settings.items():
            if key.endswith("._target_") and str(target).endswith(".AveragedWeights"):
                name = key.removesuffix("._target_")
                first = settings.get(f"{name}.first_epoch", 1)
                if self.trained.epoch < first:  # the average had not begun
                    return ""
                decay = settings.get(f"{name}.decay", 0.999)
                kind = "mean" if decay is None else f"exponential average (decay {decay})"
                return f"{kind} over the steps from epoch {first}, in all results here"
        return ""

    def metrics(self) -> dict[str, Any]:
        """The content of `metrics.json`."""
        saved: dict[str, Any] = plain_yaml.load(self.settings)
        return {
            "dataset": self.test.dataset,
            "model": self.trained.model,
            "seed": self.trained.training["seed"],
            "epochs": len(self.history),
            "best_epoch": self.best_epoch,
            "interrupted": self.interrupted,
            "accelerator": self.accelerator,
            "parameters": self.trained.network.parameter_count,
            "val/images": self.val.total if self.val else 0,
            "val/accuracy": self.val and self.val.accuracy,
            "val/loss": self.val and self.val.loss,
            "test/accuracy": self.test.accuracy,
            "test/loss": self.test.loss,
            "test/macro_f1": self.test.macro_f1,
            "test/ece": self.test.calibration_error,
            "fit_seconds": round(self.seconds, 3),
            "train_images_per_second": round(self.images_per_second, 1),
            "history": self.history,
            "overrides": self.overrides,
            "settings": {key: value for key, value in saved.items() if key not in ("run_dir", "resume")},
        }

    def results(self) -> list[tuple[str, str]]:
        """The results as a table of (name, value), safe to print."""
        dataset = self.test.dataset + (" (NOT MNIST itself, which is not available here)" if self.fallback else "")
        best = f"{self.best_epoch} of {len(self.history)}" if self.history else "none was finished"
        if self.val is None and self.history:
            best += " (the last one: there are no validation images to choose by)"
        speed = f", {self.images_per_second:,.0f} images/s" if self.history else ""
        folder = shlex.quote(str(self.folder))
        images = "" if self.data_root == "data" else f" --data-root {shlex.quote(self.data_root)}"
        images += f" --data-file {shlex.quote(self.data_file)}" if self.data_file else ""
        rows = [
            ("dataset", dataset),
            ("model", f"{self.trained.model}, {self.trained.network.parameter_count:,} parameters"),
            ("best epoch", best),
            ("validation", _scores(self.val) if self.val else "none: all training images were trained on"),
            ("test", _scores(self.test)),
            *([("weights", self.average)] if self.average else []),
            ("training", f"{self.seconds:.1f} s{speed}"),
            ("run folder", str(self.folder)),
            ("report", str(self.folder / "report" / "index.html")),
            ("evaluate", f"mnist-cnn evaluate {folder}{images}"),
        ]
        if self.interrupted:
            rows.append(("interrupted", f"continue with: {resume_command(self.folder)}"))
        return [(name, one_line(value, 2000)) for name, value in rows]


def resume_command(folder: Path) -> str:
    """What to type to continue the run in this folder."""
    return f"{train_command()} resume={shlex.quote(str(folder))}"


def _scores(evaluation: Evaluation) -> str:
    return f"accuracy {evaluation.accuracy:.2%}   loss {evaluation.loss:.4f}   ({evaluation.total:,} images)"
