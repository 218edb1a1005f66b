"""`mnist-cnn <command>`: parse, call the command's module, print.

A command's module is imported inside it, so that `--help` answers at once.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence

from mnist_cnn import __version__
from mnist_cnn.config import DATASETS
from mnist_cnn.errors import UserError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0 done, 1 could not, 2 asked wrongly."""
    options = _parser().parse_args(arguments)
    try:
        status: int = options.run(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mnist-cnn", description="Use networks that train.py has trained.")
    parser.add_argument("--version", action="version", version=f"mnist-cnn {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    evaluate = commands.add_parser(
        "evaluate",
        help="measure a trained network on test, validation or training images",
        description="Measure a trained network; with no option, on the test images of the data set it was trained on.",
    )
    evaluate.add_argument(
        "checkpoint", metavar="CKPT_OR_RUN", help="a checkpoint, or a run folder (its best checkpoint)"
    )
    evaluate.add_argument("--split", choices=("test", "val", "train"), default="test", help="which images (test)")
    evaluate.add_argument("--data", choices=DATASETS, metavar="NAME", help=f"another data set: {', '.join(DATASETS)}")
    evaluate.add_argument("--data-root", default="data", metavar="FOLDER", help="where the image files are kept (data)")
    evaluate.add_argument(
        "--mirror",
        metavar="ADDRESS",
        help="a folder or address that has the files, tried first (MNIST_MIRROR, for mnist)",
    )
    evaluate.add_argument("--json", action="store_true", help="print one JSON object")
    evaluate.set_defaults(run=_evaluate)
    return parser


def _evaluate(options: argparse.Namespace) -> int:
    from mnist_cnn import checkpoint
    from mnist_cnn.evaluate import evaluate, images_for

    file = checkpoint.find(options.checkpoint)
    trained = checkpoint.load(file)
    name = options.data or trained.dataset
    mirror = options.mirror or (os.environ.get("MNIST_MIRROR") if name == "mnist" else None)
    images = images_for(trained, options.split, name, options.data_root, mirror)
    result = evaluate(trained, images, name, options.split)
    if options.json:
        print(json.dumps({"checkpoint": str(file), "model": trained.model, **result.plain()}))
    else:
        print(f"{trained.model}, epoch {trained.epoch}, from {file}\n{result.text()}")
    return 0
