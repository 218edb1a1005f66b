"""`mnist-cnn predict`: says what pictures show."""

import argparse
import sys
from pathlib import Path

from mnist_cnn import quick_imports
from mnist_cnn.commands.arguments import add_json, add_placing, check_output, file_path
from mnist_cnn.errors import ConfigError, one_line
from mnist_cnn.terminal import failed, print_json

_MOST_SHOWN = 400  # answers that `--show` keeps in memory and draws

DESCRIPTION = (
    "Say which digit or number each picture shows: a photograph or a drawing, dark on light or light on dark. A "
    "number is answered with the probability of each digit, and each line of several separately."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "paths", metavar="[CKPT_OR_RUN] PICTURE", nargs="+",
        help="pictures, folders of pictures, or - for one on standard input; before them, a checkpoint, a run folder, "
        "or a network that mnist-cnn models lists (default: accurate)",
    )  # fmt: skip
    add_placing(parser)
    parser.add_argument(
        "--show", metavar="FILE.png", type=file_path, help="write a picture of what the network saw, with the answers"
    )
    add_json(parser, "print one line of JSON for each picture, or for each line of digits in it")


def run(options: argparse.Namespace) -> int:
    with quick_imports():
        from mnist_cnn.inference import checkpoint
        from mnist_cnn.inference.predict import Prediction, predict

    if options.show:
        check_output("--show", options.show, ".png")
    first, *others = options.paths
    if not all(options.paths):
        raise ConfigError("the name of a picture is empty.")
    if checkpoint.is_meant(first):
        trained = checkpoint.load(first)
        if not others:
            raise ConfigError(f"no picture given: mnist-cnn predict {one_line(first)} PICTURE")
    else:
        others, (_, trained) = options.paths, checkpoint.load_or_default(None)
    any_failed, shown = False, list[Prediction]()
    for prediction in predict(trained, [Path(path) for path in others], options.placing):
        any_failed |= prediction.error is not None
        if options.show and len(shown) < _MOST_SHOWN:
            shown.append(prediction)
        if options.json:
            print_json(prediction.to_dict())
        elif prediction.error is None:
            print(prediction.summary(), flush=True)
        else:
            failed(prediction.error)
    if options.show:
        from mnist_cnn.inference.sheet import write_sheet

        if images := write_sheet(options.show, shown):
            print(f"what the network saw, {images} images, is in {one_line(options.show)}", file=sys.stderr)
    return 1 if any_failed else 0
