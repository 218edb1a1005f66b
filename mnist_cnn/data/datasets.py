"""Which images are there? Every data set by its name: fetched, checked whenever it is read, and as tensors."""

import zlib
from pathlib import Path

from filelock import FileLock

from mnist_cnn.data.download import mirror_address
from mnist_cnn.data.images import ImageSet
from mnist_cnn.data.sources import SOURCES
from mnist_cnn.errors import DataError

# Every data set here has as many classes.
CLASSES = 10


def input_shape(name: str) -> tuple[int, int, int]:
    """(C, H, W) of a data set's images, known without its files; `auto` is of MNIST's shape either way."""
    return (3, 32, 32) if name == "cifar10" else (1, 28, 28)


def fetch(name: str, root: str | Path, mirror: str | None = None) -> None:
    """Make sure that the files of a data set are in `root`, whole; DataError says what to do where they can't be had.

    Any number of processes may call it at once. A folder that already has them is only read.
    """
    source, addresses = SOURCES[name](), [mirror_address(mirror)] if mirror else []
    root = Path(root).expanduser()
    if source.present(root):
        return
    if root.exists() and not root.is_dir():
        raise DataError(f"data root {root}: it is a file, and should be a folder.")
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f".{name}.lock"):
            if not source.present(root):  # while waiting, another process may have brought them
                source.fetch(root, addresses)
    except DataError as error:
        raise DataError(source.advice(root, str(error))) from None
    except OSError as error:
        raise DataError(f"data root {root}: {name} can't be written there: {error.strerror or error}.") from error


def load(name: str, root: str | Path) -> ImageSet:
    """Read a data set; DataError where its files are missing or damaged. `auto` is MNIST if present, else `digits`."""
    root = Path(root).expanduser()
    if name == "auto":
        name = "mnist" if SOURCES["mnist"]().present(root) else "digits"
    try:
        return SOURCES[name]().load(root)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DataError(f"{name}: its files in {root} are missing or damaged ({error}).") from error


def image_shape(name: str) -> tuple[int, int, int]:
    return input_shape(name)


def class_count(name: str) -> int:
    return CLASSES


def is_present(name: str, root: str | Path) -> bool:
    return SOURCES["mnist" if name == "auto" else name]().present(Path(root))
