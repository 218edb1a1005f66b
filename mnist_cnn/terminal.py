"""Prints what any terminal can show, and turns errors into a line and an exit status."""

import io
import json
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from mnist_cnn.errors import Interrupted, UserError, as_user_error, printable


def run_command(command: Callable[[], int]) -> int:
    """Run a command and return its exit status: its own, that of an Interrupted, or of an error `as_user_error` knows.

    Such an error is printed without a traceback. Any other exception is a bug in the program and is not caught.
    """
    try:
        status = command()
        sys.stdout.flush()  # here, where a failure is still reported
    except KeyboardInterrupt as stop:
        print("interrupted", file=sys.stderr)
        return int(getattr(stop, "exit_status", Interrupted().exit_status))
    except BrokenPipeError:  # the program that reads our output has ended, as `head` does
        _drop_output()
        return 1
    except Exception as error:
        told = as_user_error(error)
        if told is None:
            raise
        if not isinstance(error, UserError):
            _drop_output()
        return failed(str(told), told.exit_status)
    return status


def allow_any_text() -> None:
    """Make standard output and error escape characters that their encoding lacks, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def failed(message: str, status: int = 1) -> int:
    """Print an error, its control characters escaped, and return the exit status."""
    print(f"error: {printable(message)}", file=sys.stderr)
    return status


def train_command() -> str:
    """How this program is told to train: `python train.py` if it is that script, otherwise `mnist-cnn train`."""
    return "python train.py" if Path(sys.argv[0]).name == "train.py" else "mnist-cnn train"


def command_line() -> str:
    """What was typed to start this program."""
    program = ["python", "train.py"] if Path(sys.argv[0]).name == "train.py" else ["mnist-cnn"]
    return shlex.join([*program, *sys.argv[1:]])


def columns() -> int:
    """The width of the terminal; 100 where there is none."""
    return shutil.get_terminal_size((100, 24)).columns


def print_json(fields: Mapping[str, Any]) -> None:
    """Print one line of JSON; ValueError for NaN and infinity, which JSON does not have."""
    print(json.dumps(fields, allow_nan=False), flush=True)


def _drop_output() -> None:
    """Discard what could not be written; otherwise Python tries again, and fails, when it exits."""
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
