"""Data sets by name: fetch their files, and read them as tensors.

The names are those of `sources.SOURCES`, and `auto`: MNIST, but where MNIST is not present, `load` takes `mnist_5k`
instead, a part of it that comes with a package.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock, Timeout

from mnist_cnn.data.download import fetch_files, mirror_address
from mnist_cnn.data.images import Images
from mnist_cnn.data.sources import SOURCES, Array, Source
from mnist_cnn.errors import DataError, OutputError, did_you_mean


@dataclass(frozen=True)
class Dataset:
    """Named images in the official training and test parts."""

    name: str
    classes: tuple[str, ...]
    train: Images
    test: Images


class MissingFilesError(DataError):
    """Files are missing and can't be fetched. The message ends in a list of suggestions, to which a caller may add."""


def image_shape(name: str) -> tuple[int, int, int]:
    """(C, H, W) of a data set's images, known without its files."""
    return _source(name).image_shape


def class_count(name: str) -> int:
    """The number of a data set's classes, known without its files."""
    return len(_source(name).classes)


def is_present(name: str, root: str | Path) -> bool:
    """Whether every file of a data set is in `root`, undamaged. Nothing is written."""
    return not _source(name).missing(Path(root).expanduser())


def fetch(name: str, root: str | Path, mirror: str | None = None) -> None:
    """Make sure that the files of a data set are in `root`, undamaged; `mirror` is tried before the source's own.

    Any number of processes may call it at once. A folder that already has the files is only read. MissingFilesError
    where they can't be fetched, DataError where they can't be written, ConfigError where `mirror` is no address.
    """
    name = "mnist" if name == "auto" else name
    source, root = _source(name), Path(root).expanduser()
    addresses = [*([mirror_address(mirror)] if mirror else []), *source.mirrors]
    if not source.missing(root):
        return
    if root.exists() and not root.is_dir():
        raise DataError(f"data root {root}: it is a file, and should be a folder.")
    try:
        (root / source.folder).mkdir(parents=True, exist_ok=True)
        with _lock(root / f".{name}.lock", name):
            # Look again: while this process waited, another may have fetched them.
            fetch_files(source.missing(root), root / source.folder, addresses)
    except DataError as error:
        raise MissingFilesError(_suggestions(name, source, root, str(error))) from None
    except OutputError:
        raise
    except OSError as error:
        raise DataError(f"data root {root}: {name} can't be written there: {error.strerror or error}.") from error


@contextmanager
def _lock(file: Path, name: str) -> Iterator[None]:
    """Keep other processes from fetching the same files; say so if that means to wait."""
    lock = FileLock(file)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        print(f"waiting for another process that is fetching {name}", file=sys.stderr)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def load(name: str, root: str | Path) -> Dataset:
    """Read a data set; DataError where its files are missing or damaged."""
    root = Path(root).expanduser()
    if name == "auto":
        name = "mnist" if is_present("mnist", root) else "mnist_5k"
    source = _source(name)
    files = [file for file in source.find(root) if file]
    if len(files) < len(source.files):
        names = ", ".join(file for file, _ in source.missing(root))
        raise DataError(f"{name}: files in {root / source.folder} are missing or damaged: {names}.")
    try:
        arrays = source.read(files)
        if not isinstance(arrays, tuple) or [type(array) for array in arrays] != [np.ndarray] * 4:
            raise ValueError("its read function must return four NumPy arrays: images and labels, training and test")
        train_images, train_labels, test_images, test_labels = arrays
        train, test = _images(source, train_images, train_labels), _images(source, test_images, test_labels)
    except (OSError, ValueError) as error:
        raise DataError(f"{name}: it can't be read: {error}.") from error
    return Dataset(name, source.classes, train, test)


def _source(name: str) -> Source:
    name = "mnist" if name == "auto" else name
    if name not in SOURCES:
        raise DataError(f"{name}: unknown data set.{did_you_mean(name, SOURCES)} There are: {', '.join(SOURCES)}.")
    return SOURCES[name]


def _images(source: Source, images: Array, labels: Array) -> Images:
    if images.ndim == 3:
        images = images[:, np.newaxis]
    if images.dtype != np.uint8 or images.shape != (len(labels), *source.image_shape) or labels.ndim != 1:
        wanted = f"uint8 (N, {', '.join(map(str, source.image_shape))}) with labels (N,)"
        raise ValueError(f"images are {images.dtype} {images.shape} with labels {labels.shape}, not {wanted}")
    if labels.dtype.kind not in "iu":
        raise ValueError(f"labels are {labels.dtype}, not whole numbers that count the classes from 0")
    if not 0 <= labels.min() <= labels.max() < len(source.classes):
        raise ValueError(f"labels are {labels.min()} … {labels.max()}, with {len(source.classes)} classes")
    return Images(torch.from_numpy(np.array(images, order="C")), torch.from_numpy(labels.astype(np.int64)))


def _suggestions(name: str, source: Source, root: Path, tried: str) -> str:
    names = "\n".join(f"      {file}" for file, _ in source.missing(root))
    attempts = "\n".join(f"    {line}" for line in tried.splitlines())
    return (
        f"{name} is missing or damaged in {root}, and could not be downloaded. Tried:\n{attempts}\n"
        f"  To go on, do one of these:\n  - put these files into {root / source.folder}:\n{names}"
    )
