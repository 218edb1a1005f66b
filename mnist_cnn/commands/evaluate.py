"""`mnist-cnn evaluate`: measures a trained network."""

import argparse
import sys

from mnist_cnn import quick_imports
from mnist_cnn.commands.arguments import add_checkpoint, add_data_files, add_json, check_output, data_files, file_path
from mnist_cnn.errors import DataError, one_line, unicode_text
from mnist_cnn.terminal import print_json

try:
    from mnist_cnn.data.sources import OWN, SOURCES

    NAMES = (*SOURCES, *OWN)
except ImportError:  # NumPy or tqdm is broken, which doctor must be able to say
    NAMES = ()

DESCRIPTION = "Measure a trained network: by default, on the test images of the data set that it was trained on."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_checkpoint(parser)
    parser.add_argument("--split", choices=("test", "val", "train"), default="test", help="which images (test)")
    parser.add_argument("--data", choices=NAMES, metavar="NAME", help=f"one of {', '.join(NAMES)}")
    add_data_files(parser)
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
        from mnist_cnn.data.datasets import MissingFilesError
        from mnist_cnn.files import write_file
        from mnist_cnn.inference import checkpoint
        from mnist_cnn.inference.evaluate import VIEWS, evaluate
        from mnist_cnn.inference.images import images_for

    if options.gif:
        check_output("--gif", options.gif, ".gif")
    file, trained = checkpoint.load_kept(options.checkpoint)
    files = data_files(options, options.data or trained.dataset)
    name = files.name
    try:
        images = images_for(trained, options.split, files)
    except MissingFilesError as error:
        way_out = "name a folder or web address that has them: --mirror ADDRESS"
        way_out += ", or MNIST_MIRROR=ADDRESS in the environment" if name == "mnist" else ""
        raise DataError(f"{error}\n  - {way_out}") from None
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
