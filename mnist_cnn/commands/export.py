"""`mnist-cnn export`: writes a trained network for another program."""

import argparse
import re
from pathlib import Path

from mnist_cnn import quick_imports
from mnist_cnn.commands.arguments import add_checkpoint, add_json, file_path
from mnist_cnn.errors import ConfigError, one_line, unicode_text
from mnist_cnn.terminal import print_json

DESCRIPTION = "Write a trained network as a file for another program."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_checkpoint(parser)
    parser.add_argument("--format", choices=("keras",), required=True, help="keras: a .keras file for Keras 3")
    parser.add_argument(
        "-o", "--output", metavar="FILE", type=file_path, help="the file to write (MODEL.keras in this folder)"
    )
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    with quick_imports():
        from mnist_cnn.inference import checkpoint
        from mnist_cnn.keras.export import export_keras, input_shape

    file, trained = checkpoint.load_kept(options.checkpoint)
    # A model's name may have a slash in it, and would name another folder.
    output = options.output or Path(re.sub(r"[^\w.-]+", "_", f"{trained.model}.keras"))
    if output.suffix != ".keras":
        raise ConfigError(f"-o {output}: Keras requires a name that ends in .keras")
    export_keras(trained, output)
    shape, scaling = [None, *input_shape(trained)], trained.preprocessing.formula()
    if options.json:
        paths = {"checkpoint": unicode_text(file), "file": unicode_text(output)}
        print_json({**paths, "input_shape": shape, "input_scale": scaling})
    else:
        print(f"{trained.model}, {trained.provenance}\ntakes images of shape {tuple(shape)}, scaled by {scaling}")
        print(f"written to {one_line(output)}")
    return 0
