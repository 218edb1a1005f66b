"""Makes the page of a leaderboard: the table, plots, and the runs without a result."""

import html
import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from mnist_cnn.errors import one_line
from mnist_cnn.report.document import document, image
from mnist_cnn.report.figures import png
from mnist_cnn.report.leaderboard import plots, text
from mnist_cnn.report.leaderboard.runs import Run
from mnist_cnn.report.leaderboard.settings import DATA
from mnist_cnn.report.leaderboard.table import MEASURES, Row, Table

_MAX_ROWS = 40  # before the table is scrolled, so that the plots below it are found
_MAX_PLOTTED = 8  # settings that were varied
_MAX_DATA_SETS = 4  # that have plots
_STYLE = """
body { max-width: 84rem; }
table { font-size: .9rem; }
th { font-weight: normal; color: var(--muted); vertical-align: bottom; }
td { vertical-align: top; white-space: nowrap; }
td small { display: block; }
.setting { text-align: left; }
.long { white-space: normal; overflow-wrap: anywhere; min-width: 12rem; }
.tall { max-height: 90vh; overflow-y: auto; }
.tall th { position: sticky; top: 0; background: var(--page); }
.best td { font-weight: bold; }
.best small { font-weight: normal; }
.runs { white-space: normal; min-width: 4rem; max-width: 14rem; text-align: left; }
a { color: var(--accent); }
.failed { overflow-wrap: anywhere; }
"""


def page(table: Table, folders: Sequence[Path], output: Path) -> str:
    """The leaderboard of the runs in these folders as one HTML page in the folder `output`, which loads nothing."""
    head = "".join(f'<th class="setting">{_breakable(key)}</th>' for key in table.columns)
    measures = "".join(f"<th>{name.replace('/', ' ')}</th>" for name in MEASURES)
    rows = "".join(_row(table, number, row, output) for number, row in enumerate(table.rows, start=1))
    notes = "".join(f"<p>{html.escape(note)}</p>" for note in text.explanations(table))
    failed = "".join(f"<li>{html.escape(text.failure(one))}</li>" for one in table.failed)
    listed = f'<section class="failed"><h2>{text.failed_heading(table)}</h2><ul>{failed}</ul></section>'
    command = shlex.join(["mnist-cnn", "leaderboard", *map(str, folders), "-o", str(output)])
    body = f"""\
<section><div class="wide{" tall" if len(table.rows) > _MAX_ROWS else ""}"><table>
<tr><th>#</th>{head}<th>n</th>{measures}<th>best epoch</th><th>seconds</th><th>parameters</th>
<th class="runs">runs, by seed</th></tr>
{rows}</table></div></section>
<section>{notes}</section>
{"".join(_plots(table))}
{listed if table.failed else ""}
<section><h2>This page again</h2><pre>{html.escape(one_line(command, 10_000))}</pre></section>"""
    return document(f"Leaderboard: {text.heading(table)}", body, _STYLE)


def _row(table: Table, number: int, row: Row, output: Path) -> str:
    shown = [text.shown(row.setting.values[key], 80) for key in table.columns]
    values = "".join(
        f'<td class="setting{" long" if len(value) > 24 else ""}">{html.escape(value)}</td>' for value in shown
    )
    figures = "".join(
        f"<td>{text.spread(row, name)}<small>{text.interval(row, name).strip('–')}</small></td>" for name in MEASURES
    )
    mark = f" {text.MARK}" if text.is_marked(row) else ""
    runs = " ".join(_link(run, output) for run in row.runs)
    best = ' class="best"' if row.is_best else ""
    return (
        f"<tr{best}><td>{text.place(number, row)}{mark}</td>{values}<td>{len(row.runs)}</td>{figures}"
        f"<td>{text.epochs(row)}</td><td>{text.seconds(row)}</td><td>{row.parameters:,}</td>"
        f'<td class="runs">{runs}</td></tr>\n'
    )


def _breakable(key: str) -> str:
    """A key as HTML that is broken only after a dot or an underscore."""
    return re.sub("([._])", r"\1<wbr>", html.escape(one_line(key, 100)))


def _link(run: Run, output: Path) -> str:
    """The seed of a run, which links to its report if there is one."""
    report = run.folder / "report" / "index.html"
    if not report.is_file():
        return str(run.metrics.seed)
    try:
        path = Path(os.path.relpath(report.resolve(), output.resolve())).as_posix()
    except ValueError:  # on another drive of Windows
        return str(run.metrics.seed)
    return f'<a href="{quote(os.fsencode(path))}">{run.metrics.seed}</a>'


def _plots(table: Table) -> list[str]:
    """The plots of each data set, whose accuracies can't be compared with those of another."""
    ranked: dict[str, list[tuple[int, Row]]] = {}
    for number, row in enumerate(table.rows, start=1):
        if row.val_accuracy:
            ranked.setdefault(row.runs[0].metrics.dataset, []).append((number, row))
    sections = []
    for dataset, rows in list(ranked.items())[:_MAX_DATA_SETS]:
        if len(rows) > 1:
            title = f"<h2>{html.escape(one_line(dataset))}</h2>" if len(ranked) > 1 else ""
            sections.append(title + _plots_of(table, rows))
    return sections


def _plots_of(table: Table, numbered: Sequence[tuple[int, Row]]) -> str:
    rows = [row for _, row in numbered]
    keys = [
        key
        for key in table.columns
        if key != DATA and len({text.shown(row.setting.values[key], 1000) for row in rows}) > 1
    ][:_MAX_PLOTTED]
    shown = [
        _section(f"Validation accuracy by {key}", png(plots.by_value(rows, key)), _by_value_note(len(keys)))
        for key in keys
    ]
    if len(keys) > 1:
        width = plots.parallel_width(keys)
        lines = png(plots.parallel(rows, keys, text.short_names(keys)))
        note = "A line for each setting, through its values to its mean validation accuracy, which colours it."
        shown.append(_section("Which values go together", lines, note, width))
    drawn = png(plots.cost(rows, [number for number, _ in numbered]))
    others = " and those that can't be told from it" if any(text.is_marked(row) for row in rows) else ""
    note = (
        f"A dot for each setting; orange: the best{others}. Numbers, those of the table: no faster setting is better."
    )
    shown.append(_section("Validation accuracy and time", drawn, note))
    return f'<div class="pair">{"".join(shown)}</div>'


def _by_value_note(keys: int) -> str:
    others = ", whatever the other settings" if keys > 1 else ""
    return f"Blue: each run. Orange: the mean of the runs with this value{others}, and its 95 % interval."


def _section(title: str, drawn: bytes, note: str, width: float = 1) -> str:
    heading = html.escape(one_line(title))
    shown = image(drawn, heading, "drawn", width)
    return f'<section><h2>{heading}</h2><p><small>{note}</small></p><div class="wide">{shown}</div></section>\n'
