"""Reads files that somebody else names. Only regular files are read: opening a pipe would wait without end."""

import errno
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

import yaml

# More than any configuration of this project has.
_MAX_EVENTS, _MAX_DEPTH = 20_000, 40


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading, without waiting; OSError if it can't be read or is not a regular file."""
    # Windows has no O_NONBLOCK, and needs O_BINARY.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(path, flags)
    except ValueError as error:  # the path has a NUL
        raise OSError(errno.EINVAL, "no file can have this name") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "a folder, a pipe or a device, not a file")
    return os.fdopen(descriptor, "rb")


def read_regular(path: Path, most: int) -> bytes:
    """The content of a regular file; OSError if it can't be read or has more than `most` bytes."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        content = file.read(size) if size <= most else b""
    if size > most:
        raise OSError(errno.EFBIG, f"larger than the limit of {most:,} bytes")
    return content


def plain_yaml(text: str, loader: type[yaml.SafeLoader]) -> Any:
    """The values in a YAML text, which must be small enough to be parsed.

    ValueError if there are aliases, which can stand for any number of values, tags, which name types, or too many or
    too deep values. PyYAML raises nearly anything for a text that is not YAML.
    """
    depth = 0
    for number, event in enumerate(yaml.parse(text, Loader=loader)):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if isinstance(event, yaml.AliasEvent):
            raise ValueError("it has aliases")
        if getattr(event, "tag", None) is not None:
            raise ValueError("it has tags")
        if number > _MAX_EVENTS or depth > _MAX_DEPTH:  # PyYAML's time grows with the square of the depth
            raise ValueError("it has more values, or deeper ones, than any configuration")
    return yaml.load(text, Loader=loader)
