"""Where does each data set come from, and how are its files read?

File names, folders, mirrors and checksums are torchvision's, and so files that torchvision has fetched are used.
"""

import gzip
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch.nn import functional as F

from mnist_cnn.data.download import fetch_all, md5_of
from mnist_cnn.data.images import Images, ImageSet

DIGITS = tuple("0123456789")

_NAME_A_MIRROR = "name a folder or web address that has them: data.mirror=ADDRESS (mnist-cnn: --mirror ADDRESS)"
_TAKE_DIGITS = "train on the bundled digits, which need no network: data=digits"


class Source(Protocol):
    """How one data set is found, fetched and read. `root` is the folder of all data sets."""

    def present(self, root: Path) -> bool:
        """Whether every file is there and undamaged."""

    def fetch(self, root: Path, addresses: list[str]) -> None:
        """Bring what is missing, from the given addresses first; DataError lists what was tried."""

    def load(self, root: Path) -> ImageSet:
        """Read it all; OSError, EOFError, ValueError or zlib.error where that can't be."""

    def advice(self, root: Path, tried: str) -> str:
        """What to tell a user for whom the data set can't be had."""


@dataclass(frozen=True)
class _IdxFiles:
    """MNIST and its relatives: training images and labels, test images and labels, each a gzipped IDX file.

    The format is described at http://yann.lecun.com/exdb/mnist/. Unpacked files are taken too where their MD5 is known.
    """

    name: str
    classes: tuple[str, ...]
    folder: str
    files: list[tuple[str, str]]  # in the order above, with MD5
    mirrors: list[str]
    unpacked_md5: tuple[str, ...] = ()

    def present(self, root: Path) -> bool:
        return all(self._found(root / self.folder, index) for index in range(4))

    def fetch(self, root: Path, addresses: list[str]) -> None:
        missing = [file for index, file in enumerate(self.files) if not self._found(root / self.folder, index)]
        fetch_all(missing, root / self.folder, addresses + self.mirrors)

    def load(self, root: Path) -> ImageSet:
        train_images, train_labels, test_images, test_labels = (
            read_idx(self._read(root / self.folder, index)) for index in range(4)
        )
        train, test = _grey(train_images, train_labels), _grey(test_images, test_labels)
        return ImageSet(self.name, self.classes, train, test)

    def advice(self, root: Path, tried: str) -> str:
        missing = [name for index, (name, _) in enumerate(self.files) if not self._found(root / self.folder, index)]
        names = "\n".join(f"      {name}" for name in missing)
        return (
            f"{self.name} is missing or damaged in {root}, and could not be downloaded. Tried:\n{_indented(tried)}\n"
            f"  To go on, do one of these:\n"
            f"  - put these files into {root / self.folder}:\n{names}\n"
            f"  - {_NAME_A_MIRROR}"
            + (", or MNIST_MIRROR in the environment\n" if self.name == "mnist" else "\n")
            + f"  - {_TAKE_DIGITS}"
        )

    def _found(self, folder: Path, index: int) -> Path | None:
        """The undamaged file, packed or unpacked, or None."""
        name, md5 = self.files[index]
        packed, unpacked = folder / name, folder / name.removesuffix(".gz")
        if md5_of(packed) == md5:
            return packed
        if self.unpacked_md5 and md5_of(unpacked) == self.unpacked_md5[index]:
            return unpacked
        return None

    def _read(self, folder: Path, index: int) -> bytes:
        file = self._found(folder, index)
        if file is None:
            raise FileNotFoundError(f"{self.files[index][0]} is not there or damaged")
        return gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()


@dataclass(frozen=True)
class _EmnistDigits:
    """The `digits` part of EMNIST, read out of its one large archive. Its images lie on their side and are set upright.

    The archive's MD5 is checked when it comes; later on, the checksums that it holds of the four files that are read.
    """

    url: str
    md5: str

    def present(self, root: Path) -> bool:
        try:
            with zipfile.ZipFile(self._archive(root)) as archive:
                return all(archive.read(member) for member in self._members())
        except (OSError, zipfile.BadZipFile, zlib.error, KeyError):
            return False

    def fetch(self, root: Path, addresses: list[str]) -> None:
        base, _, name = self.url.rpartition("/")
        fetch_all([(name, self.md5)], self._archive(root).parent, [*addresses, base + "/"])

    def load(self, root: Path) -> ImageSet:
        try:
            with zipfile.ZipFile(self._archive(root)) as archive:
                train_images, train_labels, test_images, test_labels = (
                    read_idx(gzip.decompress(archive.read(member))) for member in self._members()
                )
        except (zipfile.BadZipFile, KeyError) as error:
            raise ValueError(f"{self._archive(root).name}: {error}") from error
        train, test = (
            _grey(images.transpose(0, 2, 1), labels)
            for images, labels in ((train_images, train_labels), (test_images, test_labels))
        )
        return ImageSet("emnist_digits", DIGITS, train, test)

    def advice(self, root: Path, tried: str) -> str:
        return _one_archive_advice("emnist_digits", root, self._archive(root), tried)

    def _archive(self, root: Path) -> Path:
        return root / "EMNIST" / "raw" / self.url.rpartition("/")[2]

    def _members(self) -> list[str]:
        return [
            f"gzip/emnist-digits-{part}-ubyte.gz"
            for part in ("train-images-idx3", "train-labels-idx1", "test-images-idx3", "test-labels-idx1")
        ]


class _Cifar10:
    """CIFAR-10 by torchvision's own class, which checks the MD5 of every unpacked file before it reads it."""

    def present(self, root: Path) -> bool:
        try:
            return bool(self._part(root, train=True) and self._part(root, train=False))
        except RuntimeError:
            return False

    def fetch(self, root: Path, addresses: list[str]) -> None:
        dataset = _torchvision("CIFAR10")
        base, _, name = dataset.url.rpartition("/")
        fetch_all([(name, dataset.tgz_md5)], root, [*addresses, base + "/"])
        with tarfile.open(root / name) as archive:
            archive.extractall(root, filter="data")  # nothing outside, no links, no devices

    def load(self, root: Path) -> ImageSet:
        try:
            parts = [self._part(root, train) for train in (True, False)]
        except RuntimeError as error:
            raise ValueError(str(error)) from error
        train, test = (
            Images(torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(part.targets))
            for part in parts
        )
        return ImageSet("cifar10", tuple(parts[0].classes), train, test)

    def advice(self, root: Path, tried: str) -> str:
        return _one_archive_advice("cifar10", root, root / _torchvision("CIFAR10").filename, tried)

    def _part(self, root: Path, train: bool) -> Any:
        return _torchvision("CIFAR10")(root, train=train)


class _BundledDigits:
    """scikit-learn's 1,797 handwritten digits (UCI, Alpaydin and Kaynak 1998), the last 360 of them for testing.

    They stand in writers' order, so the test digits are by other hands. 8×8 pixels of 0 … 16 become a 20×20 digit in
    the middle of 28×28 pixels of 0 … 255, as MNIST's digits stand.
    """

    TEST = 360

    def present(self, root: Path) -> bool:
        return True

    def fetch(self, root: Path, addresses: list[str]) -> None:
        pass

    def load(self, root: Path) -> ImageSet:
        from sklearn.datasets import load_digits

        bundled = load_digits()
        small = torch.from_numpy(bundled.images).float().unsqueeze(1) * (255 / 16)
        large = F.interpolate(small, size=(20, 20), mode="bicubic", align_corners=False).clamp_(0, 255)
        images = F.pad(large.round().to(torch.uint8), (4, 4, 4, 4))
        labels = torch.from_numpy(bundled.target).long()
        train = Images(images[: -self.TEST], labels[: -self.TEST])
        return ImageSet("digits", DIGITS, train, Images(images[-self.TEST :], labels[-self.TEST :]))

    def advice(self, root: Path, tried: str) -> str:
        return tried


def read_idx(data: bytes) -> np.ndarray[Any, np.dtype[Any]]:
    """The array in an IDX file; ValueError where the bytes are not one, whole."""
    kinds = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] not in kinds:
        raise ValueError("not an IDX file")
    dimensions = data[3]
    shape = tuple(np.frombuffer(data, ">u4", dimensions, offset=4))
    values = np.frombuffer(data, kinds[data[2]], offset=4 + 4 * dimensions)
    if len(values) != np.prod(shape, dtype=np.int64):
        raise ValueError(f"an IDX file of {shape} must hold {np.prod(shape)} values, not {len(values)}")
    return values.reshape(shape)


def _grey(images: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> Images:
    classes = labels[:, 0] if labels.ndim == 2 else labels  # QMNIST's labels have seven columns more
    if images.ndim != 3 or images.dtype != np.uint8 or len(images) != len(classes):
        raise ValueError(f"images {images.shape} and labels {labels.shape} don't go together")
    return Images(torch.from_numpy(images.copy()).unsqueeze(1), torch.from_numpy(classes.astype(np.int64)))


def _torchvision(name: str) -> Any:
    import torchvision.datasets  # takes seconds, and the bundled digits don't need it

    return getattr(torchvision.datasets, name)


def _one_archive_advice(name: str, root: Path, archive: Path, tried: str) -> str:
    return (
        f"{name} is missing or damaged in {root}, and could not be downloaded. Tried:\n{_indented(tried)}\n"
        f"  To go on, do one of these:\n  - put {archive.name} into {archive.parent}\n"
        f"  - {_NAME_A_MIRROR}\n  - {_TAKE_DIGITS}"
    )


def _indented(lines: str) -> str:
    return "\n".join(f"    {line}" for line in lines.splitlines())


def _mnist() -> Source:
    mnist = _torchvision("MNIST")
    classes = tuple(name.partition(" ")[0] for name in mnist.classes)
    unpacked = (
        "6bbc9ace898e44ae57da46a324031adb",
        "a25bea736e30d166cdddb491f175f624",
        "2646ac647ad5339dbf082846283269ea",
        "27ae3e4e09519cfbb04c329615203637",
    )
    return _IdxFiles("mnist", classes, "MNIST/raw", mnist.resources, mnist.mirrors, unpacked)


def _relative(name: str, torchvision_name: str) -> Source:
    dataset = _torchvision(torchvision_name)
    return _IdxFiles(name, tuple(dataset.classes), f"{torchvision_name}/raw", dataset.resources, dataset.mirrors)


def _qmnist() -> Source:
    resources = _torchvision("QMNIST").resources
    urls = [*resources["train"], *resources["test"]]
    files = [(url.rpartition("/")[2], md5) for url, md5 in urls]
    return _IdxFiles("qmnist", DIGITS, "QMNIST/raw", files, [urls[0][0].rpartition("/")[0] + "/"])


def _emnist_digits() -> Source:
    dataset = _torchvision("EMNIST")
    return _EmnistDigits(dataset.url, dataset.md5)


SOURCES: dict[str, Callable[[], Source]] = {
    "mnist": _mnist,
    "fashion_mnist": lambda: _relative("fashion_mnist", "FashionMNIST"),
    "kmnist": lambda: _relative("kmnist", "KMNIST"),
    "qmnist": _qmnist,
    "emnist_digits": _emnist_digits,
    "cifar10": _Cifar10,
    "digits": _BundledDigits,
}
