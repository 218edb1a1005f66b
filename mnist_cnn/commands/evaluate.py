"""`mnist-cnn evaluate`: measures a trained network."""

import argparse
import sys

from mnist_cnn import quick_imports
from mnist_cnn.commands.arguments import (
    add_checkpoint,
    add_images,
    add_json,
    check_output,
    data_files,
    file_path,
    images_of,
)
from mnist_cnn.errors import one_line, unicode_text
from mnist_cnn.terminal import print_json

DESCRIPTION = "Measure a trained network: by default, on the test images of the data set that it was trained on."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_checkpoint(parser)
    add_images(parser)
    parser.add_argument(
        "--tta", action="store_true", help="also average each image's answers over nine views, shifted by up to a pixel"
    )
    parser.add_argument(
        "--gif", metavar="FILE.gif", type=file_path,
        help="write an animation of the first images being recognised, then of the first mistakes",
    )  # fmt: skip
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    with quick_imports():
        from mnist_cnn.files import write_file
        from mnist_cnn.inference import checkpoint
        from mnist_cnn.inference.evaluate import VIEWS, evaluate

    if options.gif:
        check_output("--gif", options.gif, ".gif")
    file, trained = checkpoint.load_kept(options.checkpoint)
    files = data_files(options, options.data or trained.dataset)
    name = files.name
    images = images_of(trained, options.split, files)
    result = evaluate(trained, images, name, options.split)
    if options.gif:
        from mnist_cnn.report.recognition import recognition

        write_file(options.gif, recognition(result, images, trained.model), replace=False)
        print(f"the animation is in {one_line(options.gif)}", file=sys.stderr)
    views = evaluate(trained, images, name, options.split, VIEWS) if options.tta else None
    if options.json:
        averaged = {"tta": {"views": len(VIEWS), "accuracy": views.accuracy, "loss": views.loss}} if views else {}
        print_json({"checkpoint": unicode_text(file), "model": trained.model, **result.to_dict(), **averaged})
        return 0
    print(f"{trained.model}, {trained.provenance}, from {one_line(file)}\n{result.summary()}")
    if views:
        print(f"\nwith test-time augmentation, the mean over {len(VIEWS)} views shifted by up to a pixel:")
        print(f"accuracy  {views.accuracy:.2%}\nloss      {views.loss:.4f}")
    return 0
