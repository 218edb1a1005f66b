"""Arguments that several commands take."""

import argparse
import os
from pathlib import Path
from typing import NamedTuple

from mnist_cnn.errors import ConfigError


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "checkpoint", metavar="CKPT_OR_RUN",
        help="a checkpoint, a run folder (its best one), or a network that mnist-cnn models lists",
    )  # fmt: skip


class DataFiles(NamedTuple):
    """A data set, and where its files are."""

    name: str
    root: str
    mirror: str | None
    file: str


def add_data_files(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data-root", metavar="FOLDER", help="the folder of the image files (data), or of your own pictures"
    )
    parser.add_argument("--data-file", metavar="FILE.npz", help="a .npz file with your images")
    parser.add_argument(
        "--mirror",
        metavar="ADDRESS",
        help="a folder or web address that has the image files, tried before all others (for mnist: the environment "
        "variable MNIST_MIRROR)",
    )


def data_files(options: argparse.Namespace, dataset: str) -> DataFiles:
    """The data set and its place, from the options; ConfigError, naming the option, if one is missing or wrong."""
    from mnist_cnn.data.download import mirror_address
    from mnist_cnn.data.sources import kind_of, name_of

    needed = {"folder": (options.data_root, "--data-root FOLDER"), "npz": (options.data_file, "--data-file FILE.npz")}
    given, option = needed.get(kind_of(dataset), ("", ""))
    if option and not given:
        raise ConfigError(f"{dataset}: say where these images are: {option}")
    mirror, given_as = options.mirror, "--mirror "
    if not mirror and dataset == "mnist":
        mirror, given_as = os.environ.get("MNIST_MIRROR"), "MNIST_MIRROR="
    address = mirror_address(mirror, given_as) if mirror else None
    root, file = options.data_root or "data", options.data_file or ""
    return DataFiles(name_of(dataset, root, file), root, address, file)


def add_json(parser: argparse.ArgumentParser, what: str = "print the result as one JSON object") -> None:
    parser.add_argument("--json", action="store_true", help=what)


def file_path(text: str) -> Path:
    """The type of an argument that is a path; an empty one is refused."""
    if not text:
        raise argparse.ArgumentTypeError("it is empty")
    return Path(text)


def add_placing(parser: argparse.ArgumentParser) -> None:
    """`placing`, as `predict` takes it: auto, fit or as-is."""
    parser.set_defaults(placing="auto")
    placing = parser.add_mutually_exclusive_group()
    placing.add_argument(
        "--as-is", dest="placing", action="store_const", const="as-is",
        help="take every picture as a whole, only resized, and light on dark for a grey network",
    )  # fmt: skip
    placing.add_argument(
        "--fit", dest="placing", action="store_const", const="fit",
        help="cut out and centre every digit, even in an image of MNIST, which by default is taken as it is",
    )  # fmt: skip
