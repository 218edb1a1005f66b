"""The source of each data set: which files it has, where they are fetched, and how they are read.

File names, folders, mirrors, checksums and class names are torchvision's, so files that torchvision fetched are used.
"""

import gzip
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from mnist_cnn import quick_imports
from mnist_cnn.data.download import md5_of

Array = np.ndarray[Any, np.dtype[Any]]
# Training images, training labels, test images, test labels. Images are uint8 (N, C, H, W), or (N, H, W) where they are
# grey; labels are integers (N,) that count the classes from 0.
Arrays = tuple[Array, Array, Array, Array]

DIGITS = tuple("0123456789")


@dataclass(frozen=True)
class Source:
    """The files of one data set and how they are read; one without files makes its images, or has them in memory.

    `read` is given the paths of `files` in their order, verified, and raises ValueError where it can't read them.
    """

    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]  # (C, H, W)
    read: Callable[[list[Path]], Arrays]
    files: Sequence[tuple[str, str]] = ()  # names with MD5
    folder: str = "."  # of the files, in the folder of all data sets
    mirrors: Sequence[str] = ()  # base addresses that end in /
    unpacked_md5: Sequence[str] = ()  # of the same files without .gz, where those are accepted too

    def find(self, root: Path) -> list[Path | None]:
        """The path of each file in the folder of all data sets; None where it is missing or damaged."""
        found: list[Path | None] = []
        for (name, md5), unpacked_md5 in zip_longest(self.files, self.unpacked_md5):
            file = root / self.folder / name
            versions = {file.with_name(name.removesuffix(".gz")): unpacked_md5, file: md5}
            found.append(next((path for path, wanted in versions.items() if wanted and md5_of(path) == wanted), None))
        return found

    def missing(self, root: Path) -> list[tuple[str, str]]:
        """Name and MD5 of each file that is missing or damaged."""
        return [file for file, path in zip(self.files, self.find(root), strict=True) if path is None]


def read_idx(data: bytes) -> Array:
    """The array in an IDX file (http://yann.lecun.com/exdb/mnist/); ValueError where the bytes are not one, whole."""
    kinds = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] not in kinds:
        raise ValueError("not an IDX file")
    dimensions = data[3]
    shape = tuple(np.frombuffer(data, ">u4", dimensions, offset=4))
    values = np.frombuffer(data, kinds[data[2]], offset=4 + 4 * dimensions)
    if len(values) != np.prod(shape, dtype=np.int64):
        raise ValueError(f"an IDX file of {shape} must hold {np.prod(shape)} values, not {len(values)}")
    return values.reshape(shape)


def _read_mnist(files: list[Path]) -> Arrays:
    def read(file: Path) -> Array:
        return read_idx(gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes())

    train_images, train_labels, test_images, test_labels = map(read, files)
    return train_images, train_labels, test_images, test_labels


def _read_qmnist(files: list[Path]) -> Arrays:
    train_images, train_labels, test_images, test_labels = _read_mnist(files)
    return train_images, train_labels[:, 0], test_images, test_labels[:, 0]  # the other columns say who wrote it


def _read_emnist_digits(files: list[Path]) -> Arrays:
    def read(part: str) -> Array:
        return read_idx(gzip.decompress(archive.read(f"gzip/emnist-digits-{part}-ubyte.gz")))

    with zipfile.ZipFile(files[0]) as archive:
        train_labels, test_labels = read("train-labels-idx1"), read("test-labels-idx1")
        # EMNIST stores its images transposed.
        train_images, test_images = (read(f"{part}-images-idx3").transpose(0, 2, 1) for part in ("train", "test"))
    return train_images, train_labels, test_images, test_labels


def _read_cifar10(files: list[Path]) -> Arrays:
    # Read in one pass: going back in a compressed archive means unpacking it again.
    with tarfile.open(files[0], "r|gz") as archive:
        contents = {member.name: part.read() for member in archive if (part := archive.extractfile(member))}

    def read(*names: str) -> tuple[Array, Array]:
        data = b"".join(contents[f"cifar-10-batches-bin/{name}.bin"] for name in names)
        records = np.frombuffer(data, np.uint8).reshape(-1, 1 + 3 * 32 * 32)  # the class, then red, green and blue
        return records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0]

    return *read(*(f"data_batch_{number}" for number in range(1, 6))), *read("test_batch")


def _read_bundled_digits(files: list[Path]) -> Arrays:
    """scikit-learn's 1,797 handwritten digits (UCI, Alpaydin and Kaynak 1998), the last 360 of them for testing.

    They are in the order of their writers, so the test digits are by other hands. 8×8 pixels of 0 … 16 become a 20×20
    digit in the middle of 28×28 pixels of 0 … 255, as in MNIST.
    """
    import torch  # takes seconds, and a list of the data sets' names doesn't need it
    from sklearn.datasets import load_digits
    from torch.nn import functional as F

    bundled = load_digits()
    small = torch.from_numpy(bundled.images).float().unsqueeze(1) * (255 / 16)
    large = F.interpolate(small, size=(20, 20), mode="bicubic", align_corners=False).clamp_(0, 255)
    images = F.pad(large.round().to(torch.uint8), (4, 4, 4, 4)).numpy()
    return images[:-360], bundled.target[:-360], images[-360:], bundled.target[-360:]


def _torchvision(name: str) -> Any:
    with quick_imports():  # they take seconds, and the bundled digits don't need them
        import torchvision.datasets

    return getattr(torchvision.datasets, name)


def _like_mnist(name: str) -> Source:
    facts = _torchvision(name)
    classes = tuple(text.partition(" - ")[0] for text in facts.classes)  # "0 - zero"
    return Source(classes, (1, 28, 28), _read_mnist, facts.resources, f"{name}/raw", facts.mirrors)


def _mnist() -> Source:
    unpacked = (
        "6bbc9ace898e44ae57da46a324031adb",
        "a25bea736e30d166cdddb491f175f624",
        "2646ac647ad5339dbf082846283269ea",
        "27ae3e4e09519cfbb04c329615203637",
    )
    return replace(_like_mnist("MNIST"), unpacked_md5=unpacked)


def _qmnist() -> Source:
    resources = _torchvision("QMNIST").resources
    addresses = [(url.rpartition("/"), md5) for url, md5 in [*resources["train"], *resources["test"]]]
    files = [(name, md5) for (_, _, name), md5 in addresses]
    return Source(DIGITS, (1, 28, 28), _read_qmnist, files, "QMNIST/raw", [addresses[0][0][0] + "/"])


def _emnist_digits() -> Source:
    facts = _torchvision("EMNIST")
    base, _, name = facts.url.rpartition("/")
    return Source(DIGITS, (1, 28, 28), _read_emnist_digits, [(name, facts.md5)], "EMNIST/raw", [base + "/"])


def _cifar10() -> Source:
    # Not the archive that torchvision reads: its files are pickles, which may name code to run. The binary version has
    # the same images in the same order; its MD5 is from https://www.cs.toronto.edu/~kriz/cifar.html.
    return Source(
        classes=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
        image_shape=(3, 32, 32),
        read=_read_cifar10,
        files=[("cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530")],
        mirrors=["https://www.cs.toronto.edu/~kriz/"],
    )


# Every data set by its name; to add one, add an entry. Functions, where torchvision is needed: it is slow to import.
SOURCES: dict[str, Source | Callable[[], Source]] = {
    "mnist": _mnist,
    "fashion_mnist": lambda: _like_mnist("FashionMNIST"),
    "kmnist": lambda: _like_mnist("KMNIST"),
    "qmnist": _qmnist,
    "emnist_digits": _emnist_digits,
    "cifar10": _cifar10,
    "digits": Source(DIGITS, (1, 28, 28), _read_bundled_digits),
}
