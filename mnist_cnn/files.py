"""Writes files completely or not at all."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mnist_cnn.errors import OutputError


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A temporary file to write into, which becomes `path` when the block ends without an error.

    OutputError if `path` exists, before anything is written, or if it can't be written.
    """
    if not path.parent.is_dir():
        raise OutputError(f"{path}: there is no folder {path.parent}.")
    if path.exists():
        raise OutputError(f"{path}: the file exists already; remove it or choose another name.")
    try:
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
            part = Path(folder) / path.name
            yield part
            part.replace(path)
    except OSError as error:
        raise OutputError(f"{path}: can't be written: {error.strerror or error}.") from error


def replace_file(path: Path, content: bytes) -> None:
    """Write `path`, whether it exists or not; a reader sees the old content or the new."""
    part = path.with_name(path.name + ".part")
    part.write_bytes(content)
    os.replace(part, path)
