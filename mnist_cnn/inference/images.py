"""Finds the images to measure a trained network on, and checks that they suit it."""

import sys
from dataclasses import replace

import torch

from mnist_cnn.data import datasets
from mnist_cnn.data.datasets import DataFiles, Dataset
from mnist_cnn.data.images import Images
from mnist_cnn.data.sources import Source, kind_of
from mnist_cnn.data.split import split_indices
from mnist_cnn.errors import DataError, one_line
from mnist_cnn.inference.checkpoint import TrainedNetwork
from mnist_cnn.network.arguments import image, show


def images_for(trained: TrainedNetwork, split: str, files: DataFiles) -> Images:
    """The images of `test`, `val` or `train` of a data set, downloaded if necessary and split as they were in training.

    The user's own pictures are brought to the size of the network; a line on standard error says if their images have
    changed. DataError if the images are not available or don't suit the network.
    """
    name = files.name
    channels, height, width = image(trained.network.input_shape)
    source = datasets.source_of(files, (3 if channels == 3 else 1, height, width))
    check_suits(trained, name, source)
    if split != "test" and not trained.split:
        raise DataError(f"{split}: not known for an imported network; evaluate it on the test images.")
    if split == "val" and not trained.split["val_fraction"]:
        raise DataError("val: the network was trained on all training images, so none are left for validation.")
    datasets.fetch(name, files.root, files.mirror)
    dataset = datasets.load(name, files.root, source)
    if kind_of(name) == "folder":
        dataset = _with_classes_of(trained, dataset)
    elif other := [pair for pair in zip(dataset.classes, trained.classes, strict=False) if pair[0] != pair[1]]:
        its, own = map(one_line, other[0])
        print(f"note: classes are matched by position, not by name: {its} of {name} counts as {own}", file=sys.stderr)
    if kind_of(name) == kind_of(trained.dataset) and (changed := change_of(trained, dataset)):
        print(f"note: the images have changed since the network was trained ({changed})", file=sys.stderr)
    if split == "test":
        return dataset.test
    how = trained.split
    try:
        train, val = split_indices(dataset.train.labels, how["val_fraction"], how["method"], how["seed"])
    except ValueError as error:
        raise DataError(f"{name}: it can't be split as in training, with a validation part of {error}.") from error
    return dataset.train.subset(val if split == "val" else train)


def check_suits(trained: TrainedNetwork, name: str, source: Source) -> None:
    """Raise DataError if the network can't take the images of a data set or lacks classes for them."""
    shape, wanted, classes = source.image_shape, trained.network.input_shape, len(source.classes)
    resized = trained.preprocessing.size is not None and shape[0] == wanted[0]
    if not (resized or shape == wanted) or len(trained.classes) < classes:
        raise DataError(
            f"{name} has {classes} classes and images of {show(shape)}, "
            f"the network takes {show(wanted)} and has {len(trained.classes)} classes."
        )


def change_of(trained: TrainedNetwork, dataset: Dataset) -> str | None:
    """What has changed in the user's own images since the network was trained on them, in words; None if nothing."""
    before = trained.training.get("data")  # not known of other data sets, whose files are verified
    if not isinstance(before, dict) or before == (now := dataset.digest()):
        return None
    count = one_line(before.get("images"), 20)
    return "as many, but others" if count == str(now["images"]) else f"{now['images']} to train on, not {count}"


def _with_classes_of(trained: TrainedNetwork, dataset: Dataset) -> Dataset:
    """A data set with the classes of the network, of which it may lack some; DataError if it has others."""
    if unknown := [name for name in dataset.classes if name not in trained.classes]:
        raise DataError(f"{dataset.name}: the network does not know its class {unknown[0]}.")
    numbers = torch.tensor([trained.classes.index(name) for name in dataset.classes])
    train, test = (Images(part.images, numbers[part.labels]) for part in (dataset.train, dataset.test))
    return replace(dataset, classes=trained.classes, train=train, test=test)
