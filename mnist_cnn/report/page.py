"""What does a run leave to look at? `metrics.json`, figures, tables, and one page that shows them all by itself."""

import base64
import csv
import html
import io
import json
import math
import os
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mnist_cnn.data.images import Images
from mnist_cnn.inference.checkpoint import TrainedNetwork
from mnist_cnn.inference.evaluate import ClassScore, Evaluation
from mnist_cnn.report import figures
from mnist_cnn.training.callbacks import Row


@dataclass(frozen=True)
class Run:
    """A finished run, with the kept checkpoint's evaluations on validation and test images."""

    folder: Path
    trained: TrainedNetwork
    history: list[Row]
    interrupted: bool
    images_per_epoch: int
    train_images: Images
    test_images: Images
    val: Evaluation
    test: Evaluation
    fallback: bool  # digits in place of the MNIST that was wanted
    data_root: str
    settings: str  # the configuration, as YAML

    @property
    def best_epoch(self) -> int | None:
        """The epoch whose weights were kept, counted from 1; None where none was finished."""
        return self.trained.epoch if self.history else None

    @property
    def seconds(self) -> float:
        """The time of all epochs, validation included."""
        return sum(row["seconds"] for row in self.history)

    @property
    def images_per_second(self) -> float:
        """Training images by that time; 0 where no epoch was finished."""
        return self.images_per_epoch * len(self.history) / self.seconds if self.history else 0.0

    def metrics(self) -> dict[str, Any]:
        """What `metrics.json` holds."""
        return {
            "dataset": self.test.dataset,
            "model": self.trained.model,
            "seed": self.trained.training["seed"],
            "epochs": len(self.history),
            "best_epoch": self.best_epoch,
            "interrupted": self.interrupted,
            "parameters": self.trained.network.parameter_count,
            "val/accuracy": self.val.accuracy,
            "val/loss": self.val.loss,
            "test/accuracy": self.test.accuracy,
            "test/loss": self.test.loss,
            "test/macro_f1": self.test.macro_f1,
            "test/ece": self.test.calibration_error,
            "fit_seconds": round(self.seconds, 3),
            "train_images_per_second": round(self.images_per_second, 1),
            "history": self.history,
        }

    def results(self) -> list[tuple[str, str]]:
        """The run in a short table, as (what, value)."""
        speed = f", {self.images_per_second:,.0f} images/s" if self.history else ""
        root = "" if self.data_root == "data" else f" --data-root {shlex.quote(self.data_root)}"
        folder = shlex.quote(str(self.folder))
        best = f"{self.best_epoch} of {len(self.history)}" if self.history else "none was finished"
        go_on = [("interrupted", f"python train.py resume={folder}   to go on")] if self.interrupted else []
        return [
            ("dataset", self.test.dataset + (" — NOT MNIST, which could not be had" if self.fallback else "")),
            ("model", f"{self.trained.model}, {self.trained.network.parameter_count:,} parameters"),
            ("best epoch", best),
            (
                "validation",
                f"accuracy {self.val.accuracy:.2%}   loss {self.val.loss:.4f}   ({self.val.total:,} images)",
            ),
            ("test", f"accuracy {self.test.accuracy:.2%}   loss {self.test.loss:.4f}   ({self.test.total:,} images)"),
            ("training", f"{self.seconds:.1f} s{speed}"),
            ("run folder", str(self.folder)),
            ("report", str(self.folder / "report" / "index.html")),
            ("evaluate", f"mnist-cnn evaluate {folder}{root}"),
            *go_on,
        ]


def write_report(run: Run) -> dict[str, Any]:
    """Write `metrics.json` and `report/` into the run's folder; returns what `metrics.json` holds."""
    metrics = run.metrics()
    folder = run.folder / "report"
    folder.mkdir(exist_ok=True)
    drawn = {
        "accuracy.png": figures.curves(run.history, "accuracy"),
        "loss.png": figures.curves(run.history, "loss"),
        "confusion_matrix.png": figures.confusion_matrix(run.test),
        "mistakes.png": figures.mistakes(run.test, run.test_images),
        "training_samples.png": figures.samples(run.train_images, run.test.classes),
    }
    pictures = {name: figures.png(figure) for name, figure in drawn.items()}
    for name, picture in pictures.items():
        _write(folder / name, picture)
    _write(folder / "per_class.csv", _csv(ClassScore._fields, run.test.per_class).encode())
    _write(folder / "index.html", page(run, pictures).encode())
    _write(run.folder / "metrics.json", (json.dumps(_finite(metrics), indent=2) + "\n").encode())
    return metrics


# --- the page ------------------------------------------------------------------------------------------------------

_STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1c2430; background: #fff; margin: 0 auto; max-width: 68rem;
       padding: 1rem; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: .5rem 0; }
h2 { font-size: 1.15rem; margin: 0 0 .5rem; }
section { margin: 2rem 0; }
.pair { display: grid; gap: 2rem; margin: 2rem 0; }
.pair { grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); }
.pair section { margin: 0; min-width: 0; }
img { display: block; width: 100%; max-width: 34rem; height: auto; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .8rem .2rem 0; text-align: right; border-bottom: 1px solid #dde3ea; }
th:first-child, td:first-child { text-align: left; }
.facts td, .facts th { text-align: left; font-weight: normal; vertical-align: top; overflow-wrap: anywhere; }
.facts th { color: #5a6675; white-space: nowrap; }
.warning { background: #fff1df; border-left: .4rem solid #d9730d; padding: .6rem 1rem; }
pre { overflow-x: auto; background: #f4f6f9; padding: .8rem; font-size: .82rem; line-height: 1.4; }
small { color: #5a6675; }
@media (max-width: 30rem) { th, td { font-size: .85rem; padding-right: .4rem; } }
"""


def page(run: Run, pictures: dict[str, bytes]) -> str:
    """The whole report as one HTML page that loads nothing from elsewhere."""
    title = f"{run.trained.model} on {run.test.dataset}: {run.test.accuracy:.2%} on the test images"

    def image(name: str, alt: str) -> str:
        return f'<img src="data:image/png;base64,{base64.b64encode(pictures[name]).decode()}" alt="{alt}">'

    facts = "".join(
        f"<tr><th>{html.escape(key)}</th><td>{html.escape(value)}</td></tr>"
        for key, value in run.results()
        if key != "report"  # the reader is here
    )
    classes = "".join(
        f"<tr><td>{html.escape(score.name)}</td><td>{score.precision:.2%}</td><td>{score.recall:.2%}</td>"
        f"<td>{score.f1:.2%}</td><td>{score.support:,}</td></tr>"
        for score in run.test.per_class
    )
    warning = (
        '<p class="warning">MNIST could not be had, so this run used the 1,797 digits that come with scikit-learn. '
        "Its figures say nothing about MNIST.</p>"
        if run.fallback
        else ""
    )
    wrong = run.test.total - run.test.correct
    versions = ", ".join(f"{html.escape(name)} {html.escape(number)}" for name, number in run.trained.versions.items())
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>{html.escape(title)}</h1>
{warning}
<section><table class="facts">{facts}</table></section>
<div class="pair">
<section><h2>Accuracy by epoch</h2>{image("accuracy.png", "accuracy by epoch, training and validation")}</section>
<section><h2>Loss by epoch</h2>{image("loss.png", "loss by epoch, training and validation")}</section>
</div>
<section><small>The training curves are the mean over an epoch while the weights move, with dropout on; the validation
curves are taken at the epoch's end. So validation can look better than training.</small></section>
<div class="pair">
<section><h2>Confusion matrix (test)</h2>
{image("confusion_matrix.png", "confusion matrix on the test images")}</section>
<section><h2>Classes (test)</h2><div class="wide"><table>
<tr><th>class</th><th>precision</th><th>recall</th><th>F1</th><th>images</th></tr>{classes}</table></div>
<p>Macro F1 {run.test.macro_f1:.2%}. Expected calibration error {run.test.calibration_error:.4f}.</p></section>
</div>
<div class="pair">
<section><h2>Most confident mistakes (test)</h2>
<p><small>True → predicted, with its probability; {min(wrong, figures.MISTAKES)} of {wrong:,} mistakes.</small></p>
{image("mistakes.png", "test images that were misclassified with the highest probability")}</section>
<section><h2>Training images</h2>
<p><small>The first of {len(run.train_images):,}.</small></p>
{image("training_samples.png", "training images with their classes")}</section>
</div>
<section><h2>Network</h2><pre>{html.escape(run.trained.network.summary())}</pre></section>
<section><h2>Configuration</h2><pre>{html.escape(run.settings)}</pre><small>{versions}</small></section>
</body>
</html>
"""


# --- files -----------------------------------------------------------------------------------------------------------


def _csv(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    stream = io.StringIO()
    csv.writer(stream).writerows([header, *rows])
    return stream.getvalue()


def _write(path: Path, content: bytes) -> None:
    """All of it or nothing."""
    part = path.with_name(path.name + ".part")
    part.write_bytes(content)
    os.replace(part, path)


def _finite(value: Any) -> Any:
    """JSON has no NaN: a figure that is no number is null."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
