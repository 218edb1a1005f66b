"""A comparison as text for the terminal and as JSON."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from mnist_cnn.errors import one_line, unicode_text
from mnist_cnn.inference.box import Spread, percent
from mnist_cnn.report.columns import aligned
from mnist_cnn.report.compare.difference import Difference, differences
from mnist_cnn.report.compare.sides import EvaluatedSide, notes

_NAME = 40  # characters of a side's name in a table
Row = Sequence[str]


@dataclass(frozen=True)
class Comparison:
    """Two or more sides that were evaluated on the same images."""

    sides: Sequence[EvaluatedSide]

    @cached_property
    def differences(self) -> list[Difference]:
        """Each side compared with the first."""
        return differences(self.sides)

    @cached_property
    def notes(self) -> list[str]:
        """What a reader must know, one line each."""
        found = [*notes(self.sides), *(note for each in self.differences for note in each.notes)]
        if any(each.tests > 1 for each in self.differences):
            found.append("Holm's method corrects the p-values together; each interval is one of 95 % by itself.")
        return list(dict.fromkeys(found))

    @property
    def images(self) -> str:
        """`mnist, test: 10,000 images`."""
        result = self.sides[0].results[0]
        return f"{result.dataset}, {result.split}: {result.total:,} images"

    def sides_table(self) -> list[Row]:
        """The accuracy of each side, below a header."""
        if len(self.sides[0].members) == 1:
            rows: list[Row] = [("", "accuracy", "network", "checkpoint")]
            for side in self.sides:
                (member,) = side.members
                network = f"{member.trained.model}, {member.trained.provenance}"
                network += "" if member.seed is None else f", seed {one_line(member.seed, 20)}"
                rows.append((side.name, percent(side.accuracy.mean), network, one_line(member.file)))
            return rows
        rows = [("", "runs", "mean ± std", "95 % interval of the mean")]
        for side in self.sides:
            n, mean, std, low, high = side.accuracy
            interval = f"{percent(low)} to {percent(high)}" if low is not None and high is not None else ""
            rows.append((side.name, str(n), str(Spread(mean, std)), interval))
        return rows

    def to_text(self) -> str:
        """The results for the terminal."""
        parts = [self.images, _table(self.sides_table())]
        for each in self.differences:
            if not each.over_seeds:
                parts += [_table(contingency(each)), _table(by_class(each))]
            parts.append(each.sentence)
        parts += [f"note: {note}" for note in self.notes]
        return "\n\n".join(part for part in parts if part)

    def to_dict(self) -> dict[str, Any]:
        """The results for JSON; accuracies and their differences are from -1 to 1."""
        result = self.sides[0].results[0]
        return {
            "dataset": result.dataset,
            "split": result.split,
            "total": result.total,
            "sides": [_side(side) for side in self.sides],
            "differences": [_difference(each) for each in self.differences],
            "notes": [unicode_text(note) for note in self.notes],
        }


def contingency(difference: Difference) -> list[Row]:
    """The 2×2 table of two networks, below a header."""
    one, other = difference.one.name, difference.other.name
    right, wrong = ([f"{count:,}" for count in row] for row in difference.table)
    return [("", f"{other}: right", f"{other}: wrong"), (f"{one}: right", *right), (f"{one}: wrong", *wrong)]


def by_class(difference: Difference) -> list[Row]:
    """The images that changed sides, by class, below a header; empty if none has."""
    rows = [(row.name, f"{row.images:,}", f"{row.only_one:,}", f"{row.only_other:,}") for row in difference.by_class()]
    header = ("class", "images", f"right only by {difference.one.name}", f"right only by {difference.other.name}")
    return [header, *rows] if rows else []


def _table(rows: Sequence[Row]) -> str:
    """A table for the terminal: the first column to the left, numbers to the right, and other text to the left."""
    cut = [[one_line(cell, 200 if column else _NAME) for column, cell in enumerate(row)] for row in rows]
    left = {column for row in rows[1:2] for column, cell in enumerate(row) if column == 0 or not cell[:1].isdigit()}
    return "\n".join(aligned(cut, left))


def _side(side: EvaluatedSide) -> dict[str, Any]:
    members = [
        {
            "checkpoint": unicode_text(member.file),
            "model": member.trained.model,
            "seed": member.seed,
            "correct": result.correct,
            "accuracy": result.accuracy,
        }
        for member, result in zip(side.members, side.results, strict=True)
    ]
    return {"name": unicode_text(side.name), **side.accuracy._asdict(), "runs": members}


def _difference(difference: Difference) -> dict[str, Any]:
    found = {
        "one": unicode_text(difference.one.name),
        "other": unicode_text(difference.other.name),
        "test": difference.test,
        "difference": difference.value,
        "low": difference.low,
        "high": difference.high,
        "p": difference.p,
        "significant": difference.significant,
        "tests": difference.tests,
        "sentence": unicode_text(difference.sentence),
    }
    if difference.over_seeds:
        return found
    return {
        **found,
        "table": difference.table,
        "by_class": [row._asdict() for row in difference.by_class()],
        "only_one": difference.only_one.tolist(),
        "only_other": difference.only_other.tolist(),
    }
