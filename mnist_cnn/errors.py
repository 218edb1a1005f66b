"""Errors that a user can correct. The command line shows each as a line or two and an exit status.

Any other exception is a bug in the program and keeps its traceback.
"""

import difflib
import re
import signal
from collections.abc import Iterable

# The extra of pyproject.toml that brings a package which not every user needs, by the name that it is imported by.
EXTRAS = {
    "hydra": "train", "omegaconf": "train", "lightning": "train", "torchmetrics": "train", "sklearn": "train",
    "matplotlib": "train", "statsmodels": "train", "h5py": "keras",
    "onnx": "onnx", "onnxscript": "onnx", "onnxruntime": "onnx",
    "optuna": "search", "sqlalchemy": "search",
}  # fmt: skip


class UserError(Exception):
    """Base class of errors whose message is all that the user needs. Exit status 1 unless a subclass says otherwise."""

    exit_status = 1


class ConfigError(UserError, ValueError):
    """A setting that is unknown, of the wrong type, out of range or in conflict with another. Exit status 2."""

    exit_status = 2


class DataError(UserError, OSError):
    """Images that are not available or can't be used, or whose files can't be written."""


class CheckpointError(UserError, ValueError):
    """A file that is not a checkpoint of this project, is damaged, or has weights that can't be used."""


class KerasFileError(UserError, ValueError):
    """A file that is not a Keras file, is damaged, or contains something that can't be imported.

    Its message may quote the file, so it is reduced to one printable line of limited length.
    """

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message, 400))


class OutputError(UserError, OSError):
    """A file that exists already or can't be written."""


class Interrupted(KeyboardInterrupt):
    """A signal asked the run to stop. The exit status is that of shells, 128 + its number: 130 after Ctrl-C."""

    def __init__(self, number: int = signal.SIGINT) -> None:
        super().__init__()
        self.exit_status = 128 + number


def as_user_error(error: Exception) -> UserError | None:
    """The UserError to show for an exception: itself, or one for a lack of memory or of a package, or for an OSError.

    None for a bug.
    """
    if isinstance(error, UserError):
        return error
    if isinstance(error, ModuleNotFoundError) and str(error.name).partition(".")[0] in EXTRAS:
        return missing_package(str(error.name))
    if isinstance(error, OSError):
        where = f"{one_line(error.filename)}: " if error.filename else ""
        return UserError(f"{where}{error.strerror or one_line(flat(error))}.")
    # torch's own errors: on the CPU a RuntimeError, on a GPU an OutOfMemoryError, which is one too
    if isinstance(error, MemoryError) or re.search("DefaultCPUAllocator|out of memory|bad_alloc", str(error)):
        return UserError("there is not enough memory for this; a smaller data.batch_size or another machine may help.")
    return None


def missing_package(module: str) -> UserError:
    """What to install for a module of one of the EXTRAS."""
    package = module.partition(".")[0]
    return UserError(f"this needs {package}, which is not installed: pip install 'mnist-cnn[{EXTRAS[package]}]'")


def flat(error: BaseException) -> str:
    """The message of an exception on one line, or the name of its class if the message is empty."""
    return " ".join(str(error).split()) or type(error).__name__


def one_line(text: object, most: int = 300) -> str:
    """Make a text from elsewhere safe to print: control characters escaped, and at most `most` characters.

    File names, names in files, and answers of servers are such texts. A terminal obeys the control characters in them,
    and can't show what is not Unicode, such as the bytes of a file name that is not UTF-8 (`\\udcff`).
    """
    shown = str(text)
    line = "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in shown[: most + 1]
    )
    return line if len(line) <= most else f"{line[: most - 1]}…"


def printable(message: str) -> str:
    """Apply `one_line` to each line of a message, of at most 2,000 characters, before it goes to the terminal."""
    return "\n".join(one_line(line, 2000) for line in message.split("\n"))


def unicode_text(path: object) -> str:
    """A path as text for JSON: a byte that is not UTF-8 becomes the six characters `\\udcff`.

    As JSON's own escape, only Python would read it back; other readers refuse it.
    """
    return str(path).encode("utf-8", "backslashreplace").decode()


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """` Did you mean x?` with the most similar known name, or an empty string if none is similar."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" Did you mean {near[0]}?" if near else ""
