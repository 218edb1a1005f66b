"""Reads a data set of the user's own pictures: a folder with a folder of pictures for each class.

Which pictures become the test set, and the order of the others, depend on the file names alone.
"""

import hashlib
import math
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from mnist_cnn.data import reading
from mnist_cnn.data.sources import MAX_CLASSES, Array, Arrays, Source, own_name
from mnist_cnn.errors import DataError, one_line

MAX_BYTES = 2**31  # of all images in memory; 10,000 of 3×256×256 have 2·10⁹
_TEST_PART = 5  # one in five pictures of a class is a test image
_SHOWN = 3  # unreadable pictures that the warning names

Shape = tuple[int, int, int]
Pictures = Mapping[str, Sequence[Path]]  # the files of each class


def folder_source(root: Path, shape: Shape) -> Source:
    """The source of the pictures under `root`, resized to `shape` (C, H, W); each class is named after its folder.

    If `root` has the folders `train` and `test`, each of them has a folder for each class. Otherwise the class folders
    lie in `root` itself, and a fifth of each class becomes the test set. DataError if neither is the case; the files
    are only read later.
    """
    where = one_line(root)
    folders = _folders(root)
    if {"train", "test"} <= set(folders):
        train, test = (_pictures(root / part) for part in ("train", "test"))
        if different := sorted(set(train) ^ set(test)):
            raise DataError(f"{where}: train and test have different classes: {different[0]} is in only one of them.")
        if unused := [name for name in folders if name not in ("train", "test")]:
            left_out = one_line(", ".join(unused))
            print(f"note: {where}: only train and test are used, not {left_out}", file=sys.stderr)
    elif "train" in folders and _folders(root / "train"):
        raise DataError(f"{where}: there is a folder train but no test: add test, or name the folder train instead.")
    else:
        train, test = _pictures(root), {}
    files = [file for part in (train, test) for pictures in part.values() for file in pictures]
    if (size := len(files) * math.prod(shape)) > MAX_BYTES:
        shown = "×".join(map(str, shape))
        raise DataError(
            f"{where}: {len(files):,} pictures of {shown} take {size / 1e9:.1f} GB of memory; the limit is "
            f"{MAX_BYTES / 1e9:.1f} GB. Take smaller images (data.size), or fewer."
        )
    title = own_name("folder", root)
    return Source(tuple(train), shape, lambda _: _read_parts(root, train, test, shape), title=title)


def _pictures(folder: Path) -> Pictures:
    """The pictures in each folder of a folder, in natural order: class 10 comes after class 9."""
    where, classes = one_line(folder), sorted(_folders(folder), key=_natural)
    if len(classes) < 2:
        only = f"only one, {classes[0]}" if classes else "none"
        raise DataError(f"{where}: at least 2 class folders are needed; found {only}.")
    if len(classes) > MAX_CLASSES:
        raise DataError(f"{where}: {len(classes):,} folders; the limit is {MAX_CLASSES:,} classes.")
    for name in classes:
        if one_line(name, 200) != name:
            raise DataError(
                f"{where}: its folder {one_line(name, 60)} must be renamed: the name of a class has at most 200 "
                "characters, all of them printable."
            )
    return {name: reading.find(folder / name) for name in classes}


def _folders(folder: Path) -> list[str]:
    """The names of the folders in a folder, without hidden ones, which programs leave behind."""
    try:
        return [path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith((".", "__"))]
    except OSError as error:
        raise DataError(f"{one_line(folder)}: {(error.strerror or 'not readable').lower()}.") from error


def _natural(name: str) -> tuple[list[str | int], str]:
    parts = re.split(r"(\d+)", name, flags=re.ASCII)
    return [int(part) if index % 2 else part for index, part in enumerate(parts)], name


def _read_parts(root: Path, train: Pictures, test: Pictures, shape: Shape) -> Arrays:
    if test:
        return *_read(root / "train", train, shape), *_read(root / "test", test, shape)
    images, labels = _read(root, train, shape)
    is_test = np.zeros(len(labels), bool)
    for label, name in enumerate(train):
        (places,) = np.nonzero(labels == label)
        if len(places) < 2:
            raise DataError(f"{one_line(root / name)}: one picture; at least 2 are needed, one of them for testing.")
        is_test[places[: max(1, len(places) // _TEST_PART)]] = True
    return images[~is_test], labels[~is_test], images[is_test], labels[is_test]


def _read(folder: Path, pictures: Pictures, shape: Shape) -> tuple[Array, Array]:
    """Images, uint8 (N, C, H, W), and labels (N,), ordered by the hashes of the file names.

    This mixes the classes, and an added picture hardly changes the order. Pictures that can't be read are left out, and
    a line on standard error says so; DataError if a class has no others.
    """
    files = [(label, file) for label, name in enumerate(pictures) for file in pictures[name]]
    files.sort(key=lambda item: hashlib.sha256(os.fsencode(item[1].relative_to(folder))).digest())
    images, labels = np.empty((len(files), *shape), np.uint8), list[int]()
    failed = list[tuple[int, str]]()
    for label, file in tqdm(files, "reading pictures", leave=False, disable=None):
        try:
            picture = reading.read(file, str(file.relative_to(folder)))
        except DataError as error:
            failed.append((label, str(error).rstrip(".")))
        else:
            images[len(labels)] = reading.as_image(picture, shape)
            labels.append(label)
    if failed:
        shown = "; ".join(why for _, why in failed[:_SHOWN])
        more = f"; and {len(failed) - _SHOWN:,} more" if len(failed) > _SHOWN else ""
        many = f"{len(failed):,} of {len(files):,} pictures can't be read and are left out"
        print(f"warning: {one_line(folder)}: {many}: {shown}{more}", file=sys.stderr)
    readable = set(labels)
    for label, name in enumerate(pictures):
        if label not in readable:
            why = next(why for other, why in failed if other == label)
            raise DataError(f"{one_line(folder / name)}: none of its pictures can be read: {why}.")
    return images[: len(labels)], np.array(labels)
