"""Data sets by name: fetch their files, and read them as tensors.

The names are those of `sources.SOURCES`; `folder` and `npz`, the user's own images; and `auto`: MNIST, but where MNIST
is not present, `load` takes `mnist_5k` instead, a part of it that comes with a package.
"""

import hashlib
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from filelock import FileLock, Timeout

from mnist_cnn.data.download import fetch_files, mirror_address
from mnist_cnn.data.folder import folder_source
from mnist_cnn.data.images import Images
from mnist_cnn.data.npz import keras_mnist, npz_source, read_npz
from mnist_cnn.data.sources import OWN, SOURCES, Array, Source, kind_of, own_name
from mnist_cnn.errors import ConfigError, DataError, OutputError, did_you_mean, one_line


@dataclass(frozen=True)
class Dataset:
    """Named images in the official training and test parts."""

    name: str
    classes: tuple[str, ...]
    train: Images
    test: Images

    def digest(self) -> dict[str, int | str]:
        """How many training images there are, and the SHA-256 of all images, labels and class names."""
        total = hashlib.sha256("\0".join(self.classes).encode())
        for part in (self.train, self.test):
            total.update(str(part.images.shape).encode())
            total.update(part.images.numpy().data)
            total.update(part.labels.numpy().data)
        return {"images": len(self.train), "sha256": total.hexdigest()}


class MissingFilesError(DataError):
    """Files are missing and can't be fetched: `reason`. The message goes on with suggestions, to which one may add."""

    def __init__(self, reason: str, suggestions: str = "") -> None:
        super().__init__(f"{reason} {suggestions}".rstrip())
        self.reason = reason


class DataFiles(NamedTuple):
    """A data set, and where it is: `file` is that of an `npz`; `root` the folder of a `folder`, or of all others.

    `mirror` is an address to fetch files from.
    """

    name: str
    root: str | Path = "data"
    mirror: str | None = None
    file: str | Path = ""


def data_files(
    name: str, root: str | Path | None, file: str | Path | None, mirror: str | None, options: Mapping[str, str]
) -> DataFiles:
    """Where the user says that a data set is; for MNIST, the environment variable MNIST_MIRROR may name a mirror.

    ConfigError if images of the user's own are nowhere, or if the mirror is no address; `options` says how the user
    gives `folder`, `npz` and `mirror`.
    """
    kind = kind_of(name)
    own = {"folder": root, "npz": file}
    if kind in own:
        if not (path := own[kind]):
            raise ConfigError(f"{name}: say where these images are: {options[kind]}")
        name = own_name(kind, Path(path))
    given_as = options["mirror"]
    if not mirror and name == "mnist":
        mirror, given_as = os.environ.get("MNIST_MIRROR"), "MNIST_MIRROR="
    return DataFiles(name, root or "data", mirror_address(mirror, given_as) if mirror else None, file or "")


def source_of(files: DataFiles, shape: tuple[int, int, int] = (1, 28, 28)) -> Source:
    """The source of a data set, which knows its classes and the shape of its images without reading them.

    The pictures of a `folder` are brought to `shape` (C, H, W); the file of an `npz` is read. DataError where they are
    not a data set.
    """
    kind = kind_of(files.name)
    if kind == "folder":
        return folder_source(Path(files.root).expanduser(), shape)
    if kind == "npz":
        return npz_source(Path(files.file).expanduser())
    return _source(files.name)


def is_present(name: str, root: str | Path) -> bool:
    """Whether a data set can be read without fetching it. Nothing is written."""
    return not _source(name).missing(Path(root).expanduser()) or _cached(name) is not None


def fetch(name: str, root: str | Path, mirror: str | None = None) -> None:
    """Make sure that the files of a data set are in `root`, undamaged; `mirror` is tried before the source's own.

    Any number of processes may call it at once. A folder that already has the files is only read. MissingFilesError
    where they can't be fetched, DataError where they can't be written, ConfigError where `mirror` is no address.
    MNIST is not fetched where Keras has it in its cache, which a line on standard error says.
    """
    if kind_of(name) in OWN:
        return
    name = "mnist" if name == "auto" else name
    source, root = _source(name), Path(root).expanduser()
    addresses = [*([mirror_address(mirror)] if mirror else []), *source.mirrors]
    if not source.missing(root):
        return
    if cached := _cached(name):
        print(f"note: {name} is taken from Keras' cache, {one_line(cached)}", file=sys.stderr)
        return
    if root.exists() and not root.is_dir():
        raise DataError(f"data root {root}: it is a file, and should be a folder.")
    try:
        (root / source.folder).mkdir(parents=True, exist_ok=True)
        with _lock(root / f".{name}.lock", name):
            # Look again: while this process waited, another may have fetched them.
            fetch_files(source.missing(root), root / source.folder, addresses)
    except DataError as error:
        reason = f"{name} is missing or damaged in {root}, and could not be downloaded."
        raise MissingFilesError(reason, _suggestions(source, root, str(error))) from None
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


def load(name: str, root: str | Path, source: Source | None = None) -> Dataset:
    """Read a data set; DataError where its files are missing or damaged. `source` is that of the user's own images."""
    root = Path(root).expanduser()
    if name == "auto":
        name = "mnist" if is_present("mnist", root) else "mnist_5k"
        source = None
    source = source or _source(name)
    files = [file for file in source.find(root) if file]
    read = partial(source.read, files)
    if len(files) < len(source.files):
        cached = _cached(name)
        if cached is None:
            names = ", ".join(file for file, _ in source.missing(root))
            raise DataError(f"{name}: files in {root / source.folder} are missing or damaged: {names}.")
        read = partial(read_npz, cached)
    try:
        arrays = read()
        if not isinstance(arrays, tuple) or [type(array) for array in arrays] != [np.ndarray] * 4:
            raise ValueError("its read function must return four NumPy arrays: images and labels, training and test")
        train_images, train_labels, test_images, test_labels = arrays
        train, test = _images(source, train_images, train_labels), _images(source, test_images, test_labels)
    except DataError:
        raise
    except (OSError, ValueError) as error:
        raise DataError(f"{name}: it can't be read: {error}.") from error
    return Dataset(source.title or name, source.classes, train, test)


def _cached(name: str) -> Path | None:
    """The file in Keras' cache that has the data set, undamaged."""
    return keras_mnist() if name == "mnist" else None


def _source(name: str) -> Source:
    name = "mnist" if name == "auto" else name
    if name not in SOURCES:
        known = (*SOURCES, *OWN)
        raise DataError(f"{name}: unknown data set.{did_you_mean(name, known)} There are: {', '.join(known)}.")
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
    images = np.require(images, requirements=["C", "W"])  # torch warns of what it can't write to
    return Images(torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64)))


def _suggestions(source: Source, root: Path, tried: str) -> str:
    names = "\n".join(f"      {file}" for file, _ in source.missing(root))
    attempts = "\n".join(f"    {line}" for line in tried.splitlines())
    return (
        f"Tried:\n{attempts}\n  To go on, do one of these:\n  - put these files into {root / source.folder}:\n{names}"
    )
