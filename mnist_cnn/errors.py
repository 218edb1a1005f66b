"""What can go wrong that the user can mend, each told in a line or two and an exit status.

Everything else is a fault of the program and keeps its traceback.
"""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Base of the errors whose message is all that the user needs. `exit_status` 1: could not."""

    exit_status = 1


class ConfigError(UserError, ValueError):
    """A setting that can't be: unknown, of the wrong type, out of range or contradicting another. Status 2."""

    exit_status = 2


class DataError(UserError, OSError):
    """Images that can't be had, or files of theirs that can't be written."""


class CheckpointError(UserError, ValueError):
    """A file that is no checkpoint of this project, or a damaged one."""


class KerasFileError(UserError, ValueError):
    """A Keras file that is damaged, is none, or holds what can't be brought over.

    Its message may quote the file, so it is kept to one printable line of a reasonable length.
    """

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message, 400))


class OutputError(UserError, OSError):
    """A file that can't be written, or that exists already."""


def one_line(text: str, most: int) -> str:
    """A text from a file, made safe to print: no control characters, and no longer than `most`."""
    line = "".join(character if character.isprintable() else "?" for character in text)
    return line if len(line) <= most else f"{line[: most - 1]}…"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """` Did you mean x?` with the nearest of the known names, or nothing where none is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" Did you mean {near[0]}?" if near else ""
