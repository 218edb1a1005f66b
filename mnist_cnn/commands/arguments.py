"""Arguments that several commands take."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from mnist_cnn.errors import ConfigError, DataError
from mnist_cnn.files import check_is_new

try:
    from mnist_cnn.data.sources import OWN, SOURCES

    _DATASETS = (*SOURCES, *OWN)
except ImportError:  # NumPy or tqdm is broken, which doctor must be able to say
    _DATASETS = ()

if TYPE_CHECKING:
    from mnist_cnn.data.datasets import DataFiles
    from mnist_cnn.data.images import Images
    from mnist_cnn.inference.checkpoint import TrainedNetwork


def add_checkpoint(parser: argparse.ArgumentParser, optional: bool = False) -> None:
    about = "a checkpoint, a run folder (its best one), or a network that mnist-cnn models lists"
    if optional:
        parser.add_argument("checkpoint", metavar="CKPT_OR_RUN", nargs="?", help=f"{about} (default: accurate)")
    else:
        parser.add_argument("checkpoint", metavar="CKPT_OR_RUN", help=about)


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


def data_files(options: argparse.Namespace, dataset: str) -> "DataFiles":
    """The data set and its place, from the options; ConfigError, naming the option, if one is missing or wrong."""
    from mnist_cnn.data import datasets

    words = {"folder": "--data-root FOLDER", "npz": "--data-file FILE.npz", "mirror": "--mirror "}
    return datasets.data_files(dataset, options.data_root, options.data_file, options.mirror, words)


def add_images(parser: argparse.ArgumentParser) -> None:
    """Which images to measure a network on, and where their files are."""
    parser.add_argument("--split", choices=("test", "val", "train"), default="test", help="which images (test)")
    parser.add_argument("--data", choices=_DATASETS, metavar="NAME", help=f"one of {', '.join(_DATASETS)}")
    add_data_files(parser)


def images_of(trained: "TrainedNetwork", split: str, files: "DataFiles") -> "Images":
    """What `images_for` gives; if files are missing, the error also says which option could name them."""
    from mnist_cnn.data.datasets import MissingFilesError
    from mnist_cnn.inference.images import images_for

    try:
        return images_for(trained, split, files)
    except MissingFilesError as error:
        way_out = "name a folder or web address that has them: --mirror ADDRESS"
        way_out += ", or MNIST_MIRROR=ADDRESS in the environment" if files.name == "mnist" else ""
        raise DataError(f"{error}\n  - {way_out}") from None


def add_json(parser: argparse.ArgumentParser, what: str = "print the result as one JSON object") -> None:
    parser.add_argument("--json", action="store_true", help=what)


def file_path(text: str) -> Path:
    """The type of an argument that is a path; an empty one is refused."""
    if not text:
        raise argparse.ArgumentTypeError("it is empty")
    return Path(text)


def check_output(option: str, path: Path, *suffixes: str) -> None:
    """Raise ConfigError if a file to write has none of these suffixes, OutputError if it exists or has no folder."""
    if path.suffix.lower() not in suffixes:
        raise ConfigError(f"{option} {path}: the name must end in {suffixes[0]}; name it {path.stem}{suffixes[0]}")
    check_is_new(path)


def add_page_output(parser: argparse.ArgumentParser, name: str) -> None:
    parser.add_argument(
        "-o", "--output", metavar="FILE.html", type=file_path, default=Path(name),
        help=f"the page to write ({name} in this folder)",
    )  # fmt: skip


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
