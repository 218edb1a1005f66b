"""Writes a leaderboard as text: for the terminal, as Markdown, CSV and JSON."""

import csv
import io
import re
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any, NamedTuple

from mnist_cnn.errors import one_line, unicode_text
from mnist_cnn.report.columns import aligned
from mnist_cnn.report.leaderboard.runs import Failed, Value
from mnist_cnn.report.leaderboard.settings import DATA
from mnist_cnn.report.leaderboard.table import MEASURES, SEPARABLE, Row, Table

MARK = "≈"  # a setting that can't be told from the best
_MAX_ROWS, _MAX_FAILED = 40, 20  # in the terminal
_SUMMARY = ("mean", "std", "low", "high")


class Figure(NamedTuple):
    """A column with a figure of every setting."""

    title: str
    text: Callable[[Row], str]
    rank: int  # the narrower the terminal, the more are left out, the highest first


FIGURES = (
    Figure("n", lambda row: str(len(row.runs)), 0),
    Figure("val accuracy", lambda row: spread(row, "val/accuracy"), 0),
    Figure("95 % interval", lambda row: interval(row, "val/accuracy"), 2),
    Figure("test accuracy", lambda row: spread(row, "test/accuracy"), 1),
    Figure("95 % interval", lambda row: interval(row, "test/accuracy"), 8),
    Figure("val loss", lambda row: spread(row, "val/loss"), 5),
    Figure("95 % interval", lambda row: interval(row, "val/loss"), 9),
    Figure("test loss", lambda row: spread(row, "test/loss"), 6),
    Figure("95 % interval", lambda row: interval(row, "test/loss"), 10),
    Figure("best epoch", lambda row: epochs(row), 7),
    Figure("seconds", lambda row: seconds(row), 3),
    Figure("parameters", lambda row: f"{row.parameters:,}", 4),
)


def terminal(table: Table, width: int = 100, with_failed: bool = True) -> str:
    """The table in columns, at most `width` characters wide if its settings leave room for that, and what to know."""
    rows = list(enumerate(table.rows[:_MAX_ROWS], start=1))
    head = ["", *short_names(table.columns)]
    kept = list(FIGURES)
    while True:
        body = [
            [
                f"{place(number, row)}{MARK if is_marked(row) else ' '}",
                *(shown(row.setting.values[key]) for key in table.columns),
                *(figure.text(row) for figure in kept),
            ]
            for number, row in rows
        ]
        lines = aligned([[*head, *(figure.title for figure in kept)], *body], left=range(1, 1 + len(table.columns)))
        worst = max(kept, key=lambda figure: figure.rank)
        if max(map(len, lines)) <= width or not worst.rank:
            break
        kept.remove(worst)
    if len(table.rows) > _MAX_ROWS:
        lines.append(f"… and {len(table.rows) - _MAX_ROWS:,} more settings")
    if len(kept) < len(FIGURES):
        missing = dict.fromkeys(figure.title for figure in FIGURES if figure not in kept)
        lines.append(f"\nno room here for: {', '.join(missing).replace('95 % interval', 'further intervals')}")
    lines += ["", *explanations(table)]
    failed = [f"  {line}" for line in map(failure, table.failed[:_MAX_FAILED])]
    if len(table.failed) > _MAX_FAILED:
        failed.append(f"  … and {len(table.failed) - _MAX_FAILED:,} more")
    if failed and with_failed:
        lines += [f"\n{failed_heading(table)}:", *failed]
    return "\n".join([f"{heading(table)}\n", *lines] if table.rows else [heading(table), *lines[1:]])


def markdown(table: Table) -> str:
    """The table in GitHub's Markdown, and what to know."""
    head = ["", *(_escaped(one_line(key)) for key in table.columns), *(figure.title for figure in FIGURES)]
    rule = ["---", *("---" for _ in table.columns), *("---:" for _ in FIGURES)]
    rows = [
        [
            f"{place(number, row)} {MARK if is_marked(row) else ''}".strip(),
            *(_escaped(shown(row.setting.values[key])) for key in table.columns),
            *(figure.text(row) for figure in FIGURES),
        ]
        for number, row in enumerate(table.rows, start=1)
    ]
    lines = [f"| {' | '.join(cells)} |" for cells in (head, rule, *rows)]
    parts = [f"# {_escaped(heading(table))}", "\n".join(lines), *map(_escaped, explanations(table))]
    if table.failed:
        failed = "\n".join(f"- {_escaped(failure(one))}" for one in table.failed)
        parts.append(f"## {failed_heading(table)}\n\n{failed}")
    return "\n\n".join(parts) + "\n"


def csv_text(table: Table) -> str:
    """A line for each setting; docs/sweeps.md describes the columns."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    named = [f"{name}/{part}" for name in MEASURES for part in _SUMMARY]
    last = ("best_epoch", "seconds", "parameters", "not_separable_from_best")
    writer.writerow([*map(_cell, table.columns), "n", *named, *last])
    for row in table.rows:
        figures = [getattr(row.measured[name], part, None) for name in MEASURES for part in _SUMMARY]
        best = fmean(row.best_epochs) if row.best_epochs else None
        mark = None if row.not_separable is None else str(row.not_separable).lower()
        values = [_cell(row.setting.values[key]) for key in table.columns]
        writer.writerow([*values, len(row.runs), *figures, best, row.seconds, row.parameters, mark])
    return stream.getvalue()


def to_dict(table: Table) -> dict[str, Any]:
    """The leaderboard as plain values, for JSON."""
    return {
        "settings": [
            {
                "values": row.setting.values,
                "n": len(row.runs),
                **{name: found and found._asdict() for name, found in row.measured.items()},
                "best_epochs": row.best_epochs,
                "seconds": row.seconds,
                "parameters": row.parameters,
                "not_separable_from_best": row.not_separable,
                "runs": [{"seed": run.metrics.seed, "folder": unicode_text(run.folder)} for run in row.runs],
            }
            for row in table.rows
        ],
        "failed": [
            {"folder": unicode_text(one.folder), "overrides": one.overrides, "error": one.why} for one in table.failed
        ],
        "notes": table.notes,
    }


def heading(table: Table) -> str:
    """How many runs and settings there are, in one line."""
    runs = sum(len(row.runs) for row in table.rows)
    if not runs:
        return "no finished run"
    what = "1 setting" if len(table.rows) == 1 else f"{len(table.rows):,} settings"
    where = "" if DATA in table.columns else f" on {one_line(table.rows[0].runs[0].metrics.dataset, 40)}"
    return f"{what}, {runs:,} {'run' if runs == 1 else 'runs'}{where}"


def failed_heading(table: Table) -> str:
    """How many runs have no result."""
    return f"{len(table.failed):,} {'run has' if len(table.failed) == 1 else 'runs have'} no result"


def failure(failed: Failed) -> str:
    """A run without a result, its overrides and what went wrong, in one line."""
    overrides = f" ({one_line(', '.join(failed.overrides), 200)})" if failed.overrides else ""
    return f"{one_line(failed.folder, 200)}{overrides}: {failed.why}"


def explanations(table: Table) -> list[str]:
    """What the figures and the mark mean, and what to know about these runs."""
    if not table.rows:
        return []
    order = "Ranked by mean validation accuracy."
    if any(len(row.runs) > 1 for row in table.rows):
        order += " ± is the standard deviation over the n runs; the interval is that of the mean."
    marked = [f"{MARK} can't be told from the best; with more seeds it may be. {SEPARABLE}."] if table.is_marked else []
    return [order, *marked, *(f"{note[0].upper()}{note[1:]}." for note in table.notes)]


def is_marked(row: Row) -> bool:
    """Whether a setting has the mark: only those below the best."""
    return bool(row.not_separable) and not row.is_best


def place(number: int, row: Row) -> str:
    """The number of a line, counted from 1, or a dash if it is not ranked."""
    return str(number) if row.val_accuracy else "–"


def shown(value: Value, most: int = 24) -> str:
    """A value of a setting in one short printable line; a long one is cut in the middle."""
    text = one_line(_text(value), 10_000)
    return text if len(text) <= most else f"{text[: most // 2]}…{text[1 - most // 2 :]}"


def short_names(keys: Sequence[str]) -> list[str]:
    """`lr` for `optimizer.lr`: the last words of each key, as many as tell it from the others."""
    names = []
    for key in keys:
        words = key.split(".")
        count = next(
            count
            for count in range(1, len(words) + 1)
            if count == len(words)
            or (words[-count][0].isalpha() and not any(_ends(other, words[-count:]) for other in keys if other != key))
        )
        names.append(one_line(".".join(words[-count:]), 40))
    return names


def spread(row: Row, name: str) -> str:
    """Mean ± standard deviation, accuracies in percent."""
    found = row.measured[name]
    if found is None:
        return "–"
    scale, unit, digits = (100, " %", 2) if name.endswith("accuracy") else (1, "", 4)
    deviation = "" if found.std is None else f" ± {_rounded(scale * found.std, digits)}"
    return f"{_rounded(scale * found.mean, digits)}{deviation}{unit}"


def interval(row: Row, name: str) -> str:
    """The 95 % interval of the mean, accuracies in percent; it ends where the measure does."""
    found = row.measured[name]
    if found is None or found.low is None or found.high is None:
        return "–"
    low, high = max(found.low, 0), found.high
    if name.endswith("accuracy"):
        return f"{100 * low:.2f}–{100 * min(high, 1):.2f}"
    return f"{_rounded(low, 4)}–{_rounded(high, 4)}"


def epochs(row: Row) -> str:
    """The best epoch, or the first and the last of those of all runs."""
    found = row.best_epochs
    return "–" if not found else str(found[0]) if min(found) == max(found) else f"{min(found)}–{max(found)}"


def seconds(row: Row) -> str:
    """The mean time, to a tenth of a second if it is short."""
    return f"{row.seconds:,.1f}" if row.seconds < 100 else _rounded(row.seconds, 0)


def _rounded(value: float, digits: int) -> str:
    return f"{value:,.{digits}f}" if abs(value) < 1e6 else f"{value:.3g}"


def _ends(key: str, words: Sequence[str]) -> bool:
    return key.split(".")[-len(words) :] == list(words)


def _text(value: Value) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{','.join(map(_text, value))}]"
    return "–" if value is None else str(value)


def _cell(value: Value) -> object:
    """A value for CSV. A text that a spreadsheet would take for a formula gets a ' in front."""
    if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
        return value
    text = one_line(_text(value), 10_000)
    return f"'{text}" if re.match(r"\s*[=+\-@]", text) else text


def _escaped(text: str) -> str:
    """Text in Markdown, without any meaning as markup or as the end of a cell."""
    return re.sub(r"([\\`*\[\]<>|&~$#])", r"\\\1", text)
