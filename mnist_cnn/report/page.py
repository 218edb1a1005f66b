"""Writes the report of a run: `metrics.json`, figures, a table, and one HTML page that needs no other file."""

import base64
import csv
import html
import io
import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

from mnist_cnn.errors import CheckpointError
from mnist_cnn.export import page as drawing
from mnist_cnn.export.page_network import page_network
from mnist_cnn.files import write_file
from mnist_cnn.inference.evaluate import ClassScore
from mnist_cnn.report import figures
from mnist_cnn.report.run import Run


def write_report(run: Run) -> dict[str, Any]:
    """Write `metrics.json` and `report/` into the run folder; returns the content of `metrics.json`."""
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
    if run.augmented_images is not None:
        drawn["augmented_samples.png"] = figures.samples(run.augmented_images, run.test.classes)
    pngs = {name: figures.png(figure) for name, figure in drawn.items()}
    for name, png in pngs.items():
        write_file(folder / name, png)
    write_file(folder / "per_class.csv", _csv(ClassScore._fields, run.test.per_class).encode())
    # The name of a folder need not be Unicode.
    write_file(folder / "index.html", page(run, pngs).encode("utf-8", "backslashreplace"))
    write_file(run.folder / "metrics.json", (json.dumps(_finite(metrics), indent=2, allow_nan=False) + "\n").encode())
    return metrics


_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: var(--text); background: var(--page); margin: 0 auto;
       max-width: 68rem; padding: 1rem; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: .5rem 0; }
h2 { font-size: 1.15rem; margin: 0 0 .5rem; }
section { margin: 2rem 0; }
.pair { display: grid; gap: 2rem; margin: 2rem 0; }
.pair { grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); }
.pair section { margin: 0; min-width: 0; }
img { display: block; width: 100%; max-width: 34rem; height: auto; border-radius: .4rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .8rem .2rem 0; text-align: right; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; }
.facts td, .facts th { text-align: left; font-weight: normal; vertical-align: top; overflow-wrap: anywhere; }
.facts th { color: var(--muted); white-space: nowrap; }
.warning { background: var(--card); border-left: .4rem solid #d9730d; padding: .6rem 1rem; }
pre { overflow-x: auto; background: var(--card); padding: .8rem; border-radius: .4rem;
      font-size: .82rem; line-height: 1.4; }
small { color: var(--muted); }
@media (max-width: 30rem) { th, td { font-size: .85rem; padding-right: .4rem; } }
"""


def page(run: Run, pngs: dict[str, bytes]) -> str:
    """The report as one HTML page that contains its figures and loads nothing."""
    title = f"{run.trained.model} on {run.test.dataset}: {run.test.accuracy:.2%} test accuracy"

    def image(name: str, alt: str) -> str:
        return f'<img src="data:image/png;base64,{base64.b64encode(pngs[name]).decode()}" alt="{alt}">'

    facts = "".join(
        f"<tr><th>{html.escape(key)}</th><td>{html.escape(value)}</td></tr>"
        for key, value in run.results()
        if key != "report"  # which is this page
    )
    classes = "".join(
        f"<tr><td>{html.escape(score.name)}</td><td>{score.precision:.2%}</td><td>{score.recall:.2%}</td>"
        f"<td>{score.f1:.2%}</td><td>{score.support:,}</td></tr>"
        for score in run.test.per_class
    )
    warning = (
        '<p class="warning">MNIST is not available here, so this run used the 1,797 digits that come with '
        "scikit-learn. Its results say nothing about MNIST.</p>"
        if run.fallback
        else ""
    )
    augmented = (
        "<section><h2>Augmented training images</h2><p><small>The same images as the first epoch showed them; every "
        f"epoch varies them anew.</small></p>{image('augmented_samples.png', 'augmented training images')}</section>"
        if "augmented_samples.png" in pngs
        else ""
    )
    heading, field = _field(run)
    script = f"<script>{field.script}</script>" if field.script else ""
    wrong = run.test.total - run.test.correct
    versions = ", ".join(f"{html.escape(name)} {html.escape(number)}" for name, number in run.trained.versions.items())
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{drawing.policy(field.script)}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title>
<style>{field.style}{_STYLE}</style>
</head>
<body>
<h1>{html.escape(title)}</h1>
{warning}
<section><table class="facts">{facts}</table></section>
<section><h2>{heading}</h2>
{field.markup}</section>
<div class="pair">
<section><h2>Accuracy by epoch</h2>{image("accuracy.png", "accuracy by epoch, training and validation")}</section>
<section><h2>Loss by epoch</h2>{image("loss.png", "loss by epoch, training and validation")}</section>
</div>
<section><small>The training curves are averages over each epoch, while the weights change and any dropout is on. The
validation curves are measured at the end of each epoch, so they can look better.</small></section>
<div class="pair">
<section><h2>Confusion matrix (test images)</h2>
{image("confusion_matrix.png", "confusion matrix on the test images")}</section>
<section><h2>Results by class (test images)</h2><div class="wide"><table>
<tr><th>class</th><th>precision</th><th>recall</th><th>F1</th><th>images</th></tr>{classes}</table></div>
<p>Macro F1 {run.test.macro_f1:.2%}. Expected calibration error {run.test.calibration_error:.4f}.</p></section>
</div>
<div class="pair">
<section><h2>Most confident mistakes (test images)</h2>
<p><small>True class → predicted class and its probability; {min(wrong, figures.MISTAKES)} of {wrong:,}
mistakes.</small></p>
{image("mistakes.png", "misclassified test images with the highest probability")}</section>
<section><h2>Training images</h2>
<p><small>The first {min(len(run.train_images), figures.SAMPLES)} of {len(run.train_images):,}.</small></p>
{image("training_samples.png", "training images with their classes")}</section>
</div>
{augmented}
<section><h2>Network</h2><pre>{html.escape(run.trained.network.summary())}</pre></section>
<section><h2>Configuration</h2><pre>{html.escape(run.settings)}</pre><small>{versions}</small></section>
{script}
</body>
</html>
"""


def _field(run: Run) -> tuple[str, drawing.Field]:
    """A field to draw in, below a heading, or a line that says why there is none."""
    try:
        network = page_network(run.trained)
    except CheckpointError as error:
        reason = f"<p>There is no field to draw in here: {html.escape(str(error))}</p>\n"
        return "Draw a digit", drawing.Field(drawing.style(), reason, "")
    field = drawing.field(network)
    private = "<p><small>The network runs in this page, and nothing that you draw leaves it.</small></p>\n"
    return drawing.title(network), field._replace(markup=private + field.markup)


def _csv(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    stream = io.StringIO()
    csv.writer(stream).writerows([header, *rows])
    return stream.getvalue()


def _finite(value: Any) -> Any:
    """Replace NaN and infinity, which JSON does not have, by null."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
