"""Arguments that several commands take."""

import argparse
import os
from pathlib import Path


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "checkpoint", metavar="CKPT_OR_RUN",
        help="a checkpoint, a run folder (its best one), or a network that mnist-cnn models lists",
    )  # fmt: skip


def add_data_files(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data-root", default="data", metavar="FOLDER", help="the folder of the image files (data)")
    parser.add_argument(
        "--mirror",
        metavar="ADDRESS",
        help="a folder or web address that has the image files, tried before all others (for mnist: the environment "
        "variable MNIST_MIRROR)",
    )


def mirror_of(options: argparse.Namespace, dataset: str) -> str | None:
    """The address of the mirror, or None; ConfigError in the user's words if it is not an address."""
    from mnist_cnn.data.download import mirror_address

    mirror, given_as = options.mirror, "--mirror "
    if not mirror and dataset == "mnist":
        mirror, given_as = os.environ.get("MNIST_MIRROR"), "MNIST_MIRROR="
    return mirror_address(mirror, given_as) if mirror else None


def add_json(parser: argparse.ArgumentParser, what: str = "print the result as one JSON object") -> None:
    parser.add_argument("--json", action="store_true", help=what)


def file_path(text: str) -> Path:
    """The type of an argument that is a path; an empty one is refused."""
    if not text:
        raise argparse.ArgumentTypeError("it is empty")
    return Path(text)
