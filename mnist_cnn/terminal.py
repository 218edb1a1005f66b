"""What a command prints and how it ends: text that any terminal can show, errors as a line and an exit status."""

import io
import json
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from mnist_cnn.errors import UserError, as_user_error, printable


def run_command(command: Callable[[], int]) -> int:
    """Run a command and return its exit status; what a user can correct, and a lack of memory, becomes a line.

    Any other exception is a bug in the program and is not caught.
    """
    try:
        status = command()
        sys.stdout.flush()  # here, where an error is still told
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
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
    """Let standard output and error show what their encoding lacks as an escape, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def failed(message: str, status: int = 1) -> int:
    """Print an error, its control characters escaped, and return the exit status."""
    print(f"error: {printable(message)}", file=sys.stderr)
    return status


def print_json(fields: Mapping[str, Any]) -> None:
    """Print one line of JSON; ValueError for NaN and infinity, which JSON does not have."""
    print(json.dumps(fields, allow_nan=False), flush=True)


def _drop_output() -> None:
    """Lose what could not be written, or Python would try once more when it ends."""
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
