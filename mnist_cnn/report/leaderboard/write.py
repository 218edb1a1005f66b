"""Writes the leaderboard of some runs: `leaderboard.csv`, `.md` and `.html`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mnist_cnn.errors import OutputError, one_line, unicode_text
from mnist_cnn.files import write_file
from mnist_cnn.report.leaderboard import text
from mnist_cnn.report.leaderboard.page import page
from mnist_cnn.report.leaderboard.runs import read_runs
from mnist_cnn.report.leaderboard.table import Table, table


@dataclass(frozen=True)
class Leaderboard:
    """A leaderboard, and the files that it was written to."""

    table: Table
    files: list[Path]

    def text(self, width: int = 100, with_failed: bool = True) -> str:
        """What a terminal of so many columns shows, with or without the runs that have no result."""
        lines = [text.terminal(self.table, width, with_failed)]
        if self.files:
            lines.append(f"\nwritten to {', '.join(one_line(file) for file in self.files)}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values, for JSON."""
        return {**text.to_dict(self.table), "files": [unicode_text(file) for file in self.files]}


def leaderboard(folders: Sequence[Path]) -> Leaderboard:
    """The leaderboard of the runs in these folders, not written anywhere. UserError if a folder can't be read."""
    return Leaderboard(table(read_runs(folders)), [])


def write_leaderboard(folders: Sequence[Path], output: Path) -> Leaderboard:
    """Make the leaderboard and write it into the folder `output`, unless no run has finished.

    The folder is made if there is none; a leaderboard in it is replaced. OutputError if it can't be written.
    """
    made = leaderboard(folders)
    if not made.table.rows:
        return made
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{one_line(output)}: it can't be created: {error.strerror}.") from error
    contents = {
        "csv": text.csv_text(made.table),
        "md": text.markdown(made.table),
        "html": page(made.table, folders, output),
    }
    files = [output / f"leaderboard.{kind}" for kind in contents]
    for file, content in zip(files, contents.values(), strict=True):
        write_file(file, content.encode("utf-8", "backslashreplace"))
    return Leaderboard(made.table, files)
