"""How is a result written so that nothing is lost and nothing is left half-written?"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mnist_cnn.errors import OutputError


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A file beside `path` to write into, which takes its place once the block is left without an error.

    OutputError where `path` exists, before anything is done, or can't be written.
    """
    if not path.parent.is_dir():
        raise OutputError(f"{path}: there is no folder {path.parent}.")
    if path.exists():
        raise OutputError(f"{path}: it exists already; name another file with -o, or remove it.")
    try:
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
            part = Path(folder) / path.name
            yield part
            part.replace(path)
    except OSError as error:
        raise OutputError(f"{path}: it can't be written: {error.strerror or error}.") from error
