"""Writes the report of a run: `metrics.json`, figures, a table, and one HTML page that needs no other file."""

import csv
import html
import io
import json
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from mnist_cnn.errors import CheckpointError
from mnist_cnn.export import drawing_page
from mnist_cnn.export.page_network import page_network
from mnist_cnn.files import write_file
from mnist_cnn.inference.evaluate import ClassScore
from mnist_cnn.report import document, figures
from mnist_cnn.report.hidden_map import HiddenMap, draw, hidden_map
from mnist_cnn.report.run import Run

_CHARTS = ("accuracy.png", "loss.png", "confusion_matrix.png", "reliability.png")  # the other figures are of images


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
        "least_certain.png": figures.least_certain(run.test, run.test_images),
        "reliability.png": figures.reliability(run.test),
        "training_samples.png": figures.samples(run.train_images, run.test.classes),
    }
    if run.augmented_images is not None:
        drawn["augmented_samples.png"] = figures.samples(run.augmented_images, run.test.classes)
    if found_map := hidden_map(run.trained, run.test_images):
        drawn["hidden_map.png"] = draw(found_map, run.test_images, run.test.classes)
    pngs = {name: figures.png(figure) for name, figure in drawn.items()}
    for name, png in pngs.items():
        write_file(folder / name, png)
    write_file(folder / "per_class.csv", _csv(ClassScore._fields, run.test.per_class).encode())
    # The name of a folder need not be Unicode.
    write_file(folder / "index.html", page(run, pngs, found_map).encode("utf-8", "backslashreplace"))
    write_file(run.folder / "metrics.json", (json.dumps(_finite(metrics), indent=2, allow_nan=False) + "\n").encode())
    return metrics


def page(run: Run, pngs: dict[str, bytes], found_map: HiddenMap | None) -> str:
    """The report as one HTML page that contains its figures and loads nothing."""
    title = f"{run.trained.model} on {run.test.dataset}: {run.test.accuracy:.2%} test accuracy"

    def image(name: str, alt: str, wider: float = 1) -> str:
        pictures = len(run.test_images.images[0]) == 3 and name not in _CHARTS  # in colour, so they are not inverted
        return document.image(pngs[name], alt, "" if pictures else "drawn", wider)

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
        f'<p class="warning">MNIST is not available here, so this run used {html.escape(run.test.dataset)} instead. '
        "Its accuracy is not one on MNIST's test images.</p>"
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
    wider = figures.confusion_width(len(run.test.classes))  # many classes: scrolled, not shrunk
    curves = "training and validation" if run.val else "training"
    validation = (
        " The validation curves are measured at the end of each epoch, so they can look better." if run.val else ""
    )
    wrong = run.test.total - run.test.correct
    versions = ", ".join(f"{html.escape(name)} {html.escape(number)}" for name, number in run.trained.versions.items())
    body = f"""\
{warning}
<section><table class="facts">{facts}</table></section>
<section><h2>{heading}</h2>
{field.markup}</section>
<div class="pair">
<section><h2>Accuracy by epoch</h2>{image("accuracy.png", f"accuracy by epoch, {curves}")}</section>
<section><h2>Loss by epoch</h2>{image("loss.png", f"loss by epoch, {curves}")}</section>
</div>
<section><small>The training curves are averages over each epoch, while the weights change and any dropout is
on.{validation}</small></section>
<div class="pair">
<section><h2>Confusion matrix (test images)</h2>
<div class="wide">{image("confusion_matrix.png", "confusion matrix on the test images", wider)}</div></section>
<section><h2>Results by class (test images)</h2><div class="wide"><table>
<tr><th>class</th><th>precision</th><th>recall</th><th>F1</th><th>images</th></tr>{classes}</table></div>
<p>Macro F1 {run.test.macro_f1:.2%}. Expected calibration error {run.test.calibration_error:.4f}.</p></section>
</div>
<div class="pair">
<section><h2>Most confident mistakes (test images)</h2>
<p><small>True class → predicted class and its probability; {min(wrong, figures.MISTAKES)} of {wrong:,}
mistakes.</small></p>
{image("mistakes.png", "misclassified test images with the highest probability")}</section>
{_least_certain(run, image)}
</div>
<div class="pair">
{_reliability(run, image)}
{_hidden_map(found_map, image)}
</div>
<div class="pair">
<section><h2>Training images</h2>
<p><small>The first {min(len(run.train_images), figures.SAMPLES)} of {len(run.train_images):,}.</small></p>
{image("training_samples.png", "training images with their classes")}</section>
{augmented}
</div>
<section><h2>Network</h2><pre>{html.escape(run.trained.network.summary())}</pre></section>
<section><h2>Configuration</h2><pre>{html.escape(run.settings)}</pre><small>{versions}</small></section>"""
    return document.document(title, body, field.style, field.script)


def _least_certain(run: Run, image: Callable[[str, str], str]) -> str:
    shown = run.test.least_certain(figures.LEAST_CERTAIN)
    wrong = sum(answer.true != answer.predicted for answer in shown)
    return f"""<section><h2>Least certain (test images)</h2>
<p><small>The {len(shown)} answers with the lowest probability; {wrong} of them are wrong: true class → answer, in
orange.</small></p>
{image("least_certain.png", "the test images whose answers have the lowest probability")}</section>"""


def _reliability(run: Run, image: Callable[[str, str], str]) -> str:
    return f"""<section><h2>Reliability (test images)</h2>
<p><small>How often answers of each probability are right. Above the dashed line the network is more often right than it
says, below it less often; a bar of few images says little. Expected calibration error
{run.test.calibration_error:.4f}.</small></p>
{image("reliability.png", "share of right answers by their probability, and number of images")}</section>"""


def _hidden_map(found: HiddenMap | None, image: Callable[[str, str], str]) -> str:
    if found is None:
        return ""
    return f"""<section><h2>Map of the last hidden layer</h2>
<p><small>The first {len(found.points):,} test images, placed by the inputs of {html.escape(found.layer)},
{found.values:,} values each, reduced to two principal components (PCA) with {found.explained:.0%} of the variance.
Images far apart differ; images close together may differ in what is not shown. The colour is the true
class.</small></p>
{image("hidden_map.png", "test images at their place on the first two principal components")}</section>"""


def _field(run: Run) -> tuple[str, drawing_page.Field]:
    """The heading and the drawing area, or a line that says why there is none."""
    try:
        network = page_network(run.trained)
    except CheckpointError as error:
        reason = f"<p>There is no drawing area here: {html.escape(str(error))}</p>\n"
        return "Draw a digit", drawing_page.Field("", reason, "")
    return drawing_page.title(network), drawing_page.field(network)


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
