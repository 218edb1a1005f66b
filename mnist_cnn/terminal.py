"""What a command prints and how it ends: text that any terminal can show, errors as a line and an exit status."""

import io
import json
import os
import re
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from mnist_cnn.errors import UserError, flat, one_line, printable


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


def as_user_error(error: Exception) -> UserError | None:
    """The error as a user may be told it, if it is no bug: a UserError itself, a failing disk, or a lack of memory."""
    if isinstance(error, UserError):
        return error
    if isinstance(error, OSError):
        where = f"{one_line(error.filename)}: " if error.filename else ""
        return UserError(f"{where}{error.strerror or one_line(flat(error))}.")
    # torch's own errors: on the CPU a RuntimeError, on a GPU an OutOfMemoryError, which is one too
    if isinstance(error, MemoryError) or re.search("DefaultCPUAllocator|out of memory|bad_alloc", str(error)):
        return UserError("there is not enough memory for this; a smaller data.batch_size or another machine may help.")
    return None


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
