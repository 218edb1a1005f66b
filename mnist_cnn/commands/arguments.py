"""Arguments that several commands take."""

import argparse
from pathlib import Path


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "checkpoint", metavar="CKPT_OR_RUN",
        help="a checkpoint, a run folder (its best one), or a network that mnist-cnn models lists",
    )  # fmt: skip


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
