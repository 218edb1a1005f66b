"""Writes a comparison as one HTML page, with the images that changed sides or the accuracy of every run."""

import html
from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from torch import Tensor

from mnist_cnn.data.images import Images
from mnist_cnn.errors import one_line
from mnist_cnn.report import document, figures
from mnist_cnn.report.compare.comparison import Comparison, Row, by_class, contingency
from mnist_cnn.report.compare.difference import Difference
from mnist_cnn.report.compare.sides import EvaluatedSide

MAX_IMAGES = 25  # shown of those that only one network classifies correctly

_STYLE = """
.answer { background: var(--card); border-left: .4rem solid var(--accent); padding: .6rem 1rem; margin: 1rem 0; }
h2, .answer, li { overflow-wrap: anywhere; }
td { white-space: nowrap; }
.members th, .members td { text-align: left; }
"""


def page(comparison: Comparison, images: Images) -> str:
    """The results and figures; `images` are those that all sides were evaluated on."""
    result = comparison.sides[0].results[0]
    *names, last = (one_line(side.name, 60) for side in comparison.sides)
    single = len(comparison.sides[0].results) == 1
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in comparison.notes)
    body = [
        *(f'<p class="answer">{html.escape(each.sentence)}</p>' for each in comparison.differences),
        f"<section><small><ul>{notes}</ul></small></section>" if notes else "",
        f"<section><h2>{html.escape(comparison.images)}</h2>{_table(comparison.sides_table(), 'members')}</section>",
        *(_changes(each, images) for each in comparison.differences if single),
        "" if single else _runs(comparison.sides),
    ]
    return document.document(f"{', '.join(names)} and {last} on {result.dataset}", "\n".join(body), _STYLE)


def _changes(difference: Difference, images: Images) -> str:
    """Which images only one of two networks classifies correctly."""
    one, other = (html.escape(side.name) for side in (difference.one, difference.other))
    changed = by_class(difference)
    classes = f"<section><h2>By class</h2>{_table(changed)}</section>" if changed else ""
    return f"""<div class="pair">
<section><h2>{one} and {other}, image by image</h2>{_table(contingency(difference))}</section>
{classes}
</div>
<div class="pair">
{_gallery(difference.other, difference.one, difference.only_other, images)}
{_gallery(difference.one, difference.other, difference.only_one, images)}
</div>"""


def _gallery(right: EvaluatedSide, wrong: EvaluatedSide, indices: Tensor, images: Images) -> str:
    heading = f"<h2>Right only by {html.escape(right.name)}</h2>"
    if not len(indices):
        return f"<section>{heading}<p>No image.</p></section>"
    figure = figures.wrong_answers(wrong.results[0], images, indices[:MAX_IMAGES])
    count = f"The first {MAX_IMAGES} of {len(indices):,}" if len(indices) > MAX_IMAGES else f"All {len(indices)}"
    kind = "" if images.images.shape[1] == 3 else "drawn"
    shown = document.image(figures.png(figure), f"images that only {right.name} classifies correctly", kind)
    return f"""<section>{heading}
<p><small>{count}: true class → answer of {html.escape(wrong.name)}.</small></p>
{shown}</section>"""


def _runs(sides: Sequence[EvaluatedSide]) -> str:
    shown = document.image(figures.png(_accuracies(sides)), "accuracy of every run, by side", "drawn")
    return f"""<section><h2>Every run</h2>
<p><small>A dot is the accuracy of a run. The bar is the mean of the side with its 95 % interval.</small></p>
{shown}</section>"""


def _accuracies(sides: Sequence[EvaluatedSide]) -> Figure:
    """A line for each side: its runs as dots, its mean with the interval below them."""
    figure = Figure(figsize=(figures.INCHES, 0.8 + 0.6 * len(sides)), layout="constrained")
    axes = figure.subplots()
    for row, side in enumerate(sides):
        _, mean, _, low, high = side.accuracy
        values = [100 * result.accuracy for result in side.results]
        axes.plot(values, [row - 0.12] * len(values), "o", color=figures.BLUE, alpha=0.6, markersize=5, linewidth=0)
        if low is not None and high is not None:
            axes.plot([100 * low, 100 * high], [row + 0.15] * 2, color=figures.ORANGE, linewidth=2)
        axes.plot(100 * mean, row + 0.15, "|", color=figures.ORANGE, markersize=12, markeredgewidth=2)
    names = [one_line(side.name, 30) for side in sides]
    axes.set_yticks(range(len(sides)), names, parse_math=False)
    axes.set(ylim=(len(sides) - 0.5, -0.5), xlabel="accuracy")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} %"))
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _table(rows: Sequence[Row], kind: str = "") -> str:
    """An HTML table with a header; wide ones are scrolled."""
    cells = [
        "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row)
        for tag, row in zip(("th", *("td" for _ in rows[1:])), rows, strict=True)
    ]
    lines = "".join(f"<tr>{line}</tr>" for line in cells)
    return f'<div class="wide"><table class="{kind}">{lines}</table></div>'
