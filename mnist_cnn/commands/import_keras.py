"""`mnist-cnn import-keras`: makes a checkpoint from a Keras model."""

import argparse
from pathlib import Path

from mnist_cnn import quick_imports
from mnist_cnn.commands.arguments import add_json, file_path
from mnist_cnn.errors import ConfigError, one_line, unicode_text
from mnist_cnn.terminal import print_json

DESCRIPTION = (
    "Make a checkpoint from a Keras model. This needs neither Keras nor TensorFlow and runs no code from the file."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="MODEL", type=file_path, help="a .keras or HDF5 file from Keras 1, 2 or 3")
    parser.add_argument(
        "-o", "--output", metavar="OUT.ckpt", type=file_path, help="the checkpoint to write (MODEL.ckpt in this folder)"
    )
    parser.add_argument(
        "--input-scale",
        choices=("1/255", "1", "mean-std", "1/127.5-1", "normalize"),
        help="how pixels (0 to 255) were scaled for the model: to [0, 1], not at all, to mean 0 and standard deviation "
        "1 ((x/255-0.1307)/0.3081), to [-1, 1], or by keras.utils.normalize(axis=1); without this option it is guessed "
        "and the guess is printed",
    )
    parser.add_argument(
        "--architecture",
        metavar="FILE",
        type=file_path,
        help="the model's architecture, if MODEL has weights only: the JSON of model.to_json(), or a YAML file with a "
        "list of layers, such as those in conf/model",
    )
    parser.add_argument(
        "--data-root", default="data", metavar="FOLDER", help="the folder of the image files used for the guess (data)"
    )
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    with quick_imports():
        from mnist_cnn.inference import checkpoint
        from mnist_cnn.keras.importer import images_to_guess_on, import_model

    output = options.output or Path(f"{options.file.stem}.ckpt")
    if output.suffix in checkpoint.KERAS_SUFFIXES:
        raise ConfigError(f"-o {output}: the output is a checkpoint, not a Keras file; name it {output.stem}.ckpt")
    images, guessed_on = None, None
    if options.input_scale is None:
        guessed_on, images = images_to_guess_on(options.data_root)
    imported = import_model(options.file, options.architecture, options.input_scale, images)
    checkpoint.save(output, imported.trained)
    if options.json:
        print_json({"checkpoint": unicode_text(output), "guessed_on": guessed_on, **imported.to_dict()})
    else:
        print(f"{imported.summary(guessed_on)}\nwritten to {one_line(output)}")
    return 0
