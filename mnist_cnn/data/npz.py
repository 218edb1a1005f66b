"""Reads npz files in the layout of Keras' data sets: the user's own file, and MNIST in Keras' cache."""

import hashlib
import os
import zipfile
from pathlib import Path

import numpy as np

from mnist_cnn.data.sources import MAX_CLASSES, Array, Arrays, Source, own_name
from mnist_cnn.errors import DataError, one_line
from mnist_cnn.files import open_regular, read_regular

KEYS = ("x_train", "y_train", "x_test", "y_test")
MAX_BYTES = 2**32  # of the four arrays, unpacked; MNIST as float64 takes a tenth of it
_PACKED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # what NumPy writes; others may take any amount of memory
# Published by Keras, in keras/src/datasets/mnist.py.
_KERAS_MNIST = "731c5ac602752760c8e48fbffcf8c3b850d9dc2a2aedcf2cc48468fc17b673d1"


def npz_source(file: Path) -> Source:
    """The source of the user's own images in an npz file; its classes are the labels, `0`, `1`, and so on.

    DataError if the file does not hold a data set.
    """
    try:
        arrays = read_npz(file)
    except OSError as error:
        raise DataError(f"{one_line(file)}: {(error.strerror or 'not readable').lower()}.") from error
    except ValueError as error:
        raise DataError(f"{one_line(file)}: {one_line(error)}.") from error
    x_train, y_train, _, _ = arrays
    shape = x_train.shape[1:] if x_train.ndim == 4 else (1, *x_train.shape[1:])
    classes = tuple(map(str, range(int(y_train.max()) + 1)))
    return Source(classes, shape, lambda _: arrays, title=own_name("npz", file))


def keras_mnist() -> Path | None:
    """The MNIST file that Keras downloaded; None if missing or damaged."""
    home = os.environ.get("KERAS_HOME")
    file = (Path(home) if home else Path("~/.keras").expanduser()) / "datasets" / "mnist.npz"
    try:
        return file if hashlib.sha256(read_regular(file, 2**24)).hexdigest() == _KERAS_MNIST else None
    except OSError:
        return None


def read_npz(file: Path) -> Arrays:
    """The arrays that KEYS names, checked. Nothing in the file is run, and at most MAX_BYTES are unpacked.

    Images are (N, H, W) or, in colour, (N, H, W, 3), as whole numbers 0 … 255 or fractions 0 … 1; labels are (N,) and
    count the classes from 0. OSError if the file can't be opened, ValueError if it holds anything else.
    """
    try:
        with open_regular(file) as stream, zipfile.ZipFile(stream) as archive:
            members = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}
            if missing := [key for key in KEYS if key not in members]:
                has = ", ".join(sorted(members)[:8]) or "nothing"
                raise ValueError(f"it has {has}, but no {', '.join(missing)}; a data set is {', '.join(KEYS)}")
            wanted = [members[key] for key in KEYS]
            if sum(member.file_size for member in wanted) > MAX_BYTES:
                raise ValueError(f"its arrays are larger than the limit of {MAX_BYTES:,} bytes")
            if any(member.compress_type not in _PACKED for member in wanted):
                raise ValueError("it is compressed in a way that NumPy does not write")
            x_train, y_train, x_test, y_test = (_read(archive, member) for member in wanted)
    except (OSError, ValueError):
        raise
    except Exception as error:  # for a damaged file zipfile and NumPy raise nearly anything
        raise ValueError("not an npz file, or damaged") from error
    images = _images("x_train", x_train), _images("x_test", x_test)
    if images[0].shape[1:] != images[1].shape[1:]:
        raise ValueError(f"x_train has the shape {x_train.shape}, x_test {x_test.shape}; their images must be alike")
    labels = _labels("y_train", y_train, len(x_train)), _labels("y_test", y_test, len(x_test))
    have, most = set(labels[0].tolist()), int(labels[0].max())
    if without := sorted(set(range(most)) - have):
        shown = ", ".join(map(str, without[:5]))
        raise ValueError(f"y_train has labels up to {most}, but none of {shown}; every class needs a training image")
    if len(have) < 2:
        raise ValueError("y_train has one class only; at least 2 are needed")
    if labels[1].max() > most:
        raise ValueError(f"y_test has labels up to {labels[1].max()}, y_train only up to {most}")
    return images[0], labels[0], images[1], labels[1]


def _read(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Array:
    with archive.open(member) as stream:
        try:
            array: Array = np.lib.format.read_array(stream, allow_pickle=False)
        except ValueError as error:
            why = "it holds Python objects, which could run code" if "bject arrays" in str(error) else one_line(error)
            raise ValueError(f"{member.filename}: {why}") from error
        except MemoryError as error:
            raise ValueError(f"{member.filename}: too large for this machine's memory, or damaged") from error
    return array


def _images(key: str, array: Array) -> Array:
    """Images of an npz file as uint8 (N, H, W), or (N, 3, H, W)."""
    if array.ndim == 4 and array.shape[3] == 1:
        array = array[..., 0]
    if not (array.ndim == 3 or (array.ndim == 4 and array.shape[3] == 3)):
        raise ValueError(f"{key} has the shape {array.shape}; images are (N, H, W), (N, H, W, 1) or (N, H, W, 3)")
    if not array.size:
        raise ValueError(f"{key} has no images: its shape is {array.shape}")
    if array.dtype.kind not in "iuf":
        raise ValueError(f"{key} holds {array.dtype}; pixels are uint8, or floats from 0 to 1")
    low, high = array.min(), array.max()
    if array.dtype.kind == "f" and low >= 0 and high <= 1:
        array = np.rint(array * 255)
    elif array.dtype.kind == "f" or not 0 <= low <= high <= 255:
        raise ValueError(f"{key} holds {array.dtype} from {low} to {high}; pixels are uint8, or floats from 0 to 1")
    array = array.astype(np.uint8, copy=False)
    return array if array.ndim == 3 else array.transpose(0, 3, 1, 2)


def _labels(key: str, array: Array, count: int) -> Array:
    """Labels of `count` images as whole numbers (N,)."""
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise ValueError(f"{key} is {array.dtype} {array.shape}; labels are whole numbers (N,), the first class is 0")
    if len(array) != count:
        raise ValueError(f"{key} has {len(array):,} labels for {count:,} images")
    if array.min() < 0 or array.max() >= MAX_CLASSES:
        raise ValueError(f"{key} has labels from {array.min()} to {array.max()}; they must be 0 to {MAX_CLASSES - 1}")
    return array.astype(np.int64)
