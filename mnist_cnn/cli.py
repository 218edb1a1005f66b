"""`mnist-cnn <command>`: parse, call the command's module, print.

A command's module is imported inside it, so that `--help` answers at once.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from mnist_cnn import __version__
from mnist_cnn.data.sources import SOURCES
from mnist_cnn.errors import ConfigError, DataError, UserError


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
    names = tuple(SOURCES)
    evaluate.add_argument("--data", choices=names, metavar="NAME", help=f"another data set: {', '.join(names)}")
    evaluate.add_argument("--data-root", default="data", metavar="FOLDER", help="where the image files are kept (data)")
    evaluate.add_argument(
        "--mirror",
        metavar="ADDRESS",
        help="a folder or address that has the files, tried first (MNIST_MIRROR, for mnist)",
    )
    evaluate.add_argument("--json", action="store_true", help="print one JSON object")
    evaluate.set_defaults(run=_evaluate)

    predict = commands.add_parser(
        "predict",
        help="say which digit a picture shows",
        description="Say which digit each picture shows: a photograph or a drawing, dark on light or light on dark.",
    )
    predict.add_argument(
        "paths", metavar="[CKPT_OR_RUN] PICTURE", nargs="+",
        help="pictures, folders of them, or - for one on standard input; before them a checkpoint or run folder, "
        "or else the newest run in runs/",
    )  # fmt: skip
    predict.add_argument("--json", action="store_true", help="print one JSON object for each picture, on a line each")
    predict.set_defaults(run=_predict)

    bring = commands.add_parser(
        "import-keras",
        help="make a checkpoint of a Keras model (.keras, .h5, .hdf5)",
        description="Make a checkpoint of a Keras model. Neither Keras nor TensorFlow is needed; nothing in it is run.",
    )
    bring.add_argument("file", metavar="MODEL", type=_path, help="a .keras or HDF5 file, of Keras 1, 2 or 3")
    bring.add_argument(
        "-o", "--output", metavar="OUT.ckpt", type=_path, help="the checkpoint to write (MODEL.ckpt, here)"
    )
    bring.add_argument(
        "--input-scale",
        choices=("1/255", "1", "mean-std", "1/127.5-1", "normalize"),
        help="how pictures were scaled for it: to [0, 1], not at all (0 to 255), to mean 0 and deviation 1 "
        "((x/255-0.1307)/0.3081), to [-1, 1], or by keras.utils.normalize(axis=1); guessed, and said, if not given",
    )
    bring.add_argument(
        "--architecture", metavar="MODEL.json", type=_path, help="its configuration, where MODEL has weights only"
    )
    bring.add_argument("--data-root", default="data", metavar="FOLDER", help="where the guess looks for images (data)")
    bring.add_argument("--json", action="store_true", help="print one JSON object")
    bring.set_defaults(run=_import_keras)

    export = commands.add_parser(
        "export",
        help="write a trained network for other programs",
        description="Write a trained network for other programs.",
    )
    export.add_argument("checkpoint", metavar="CKPT_OR_RUN", help="a checkpoint, or a run folder (its best checkpoint)")
    export.add_argument("--format", choices=("keras",), required=True, help="keras: a .keras file for Keras 3")
    export.add_argument("-o", "--output", metavar="FILE", type=_path, help="the file to write (MODEL.keras, here)")
    export.add_argument("--json", action="store_true", help="print one JSON object")
    export.set_defaults(run=_export)
    return parser


def _path(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("it is empty")
    return Path(text)


def _evaluate(options: argparse.Namespace) -> int:
    from mnist_cnn.data.datasets import MissingFilesError
    from mnist_cnn.data.download import mirror_address
    from mnist_cnn.inference import checkpoint
    from mnist_cnn.inference.evaluate import evaluate, images_for

    file = checkpoint.find(options.checkpoint)
    trained = checkpoint.load(file)
    name = options.data or trained.dataset
    from_environment = os.environ.get("MNIST_MIRROR") if name == "mnist" else None
    mirror = options.mirror or from_environment
    if mirror:
        mirror_address(mirror, "--mirror " if options.mirror else "MNIST_MIRROR=")
    try:
        images = images_for(trained, options.split, name, options.data_root, mirror)
    except MissingFilesError as error:
        way_out = "name a folder or web address that has them: --mirror ADDRESS"
        way_out += ", or MNIST_MIRROR=ADDRESS in the environment" if name == "mnist" else ""
        raise DataError(f"{error}\n  - {way_out}") from None
    result = evaluate(trained, images, name, options.split)
    if options.json:
        print(json.dumps({"checkpoint": str(file), "model": trained.model, **result.to_dict()}))
    else:
        print(f"{trained.model}, {trained.origin}, from {file}\n{result.summary()}")
    return 0


def _predict(options: argparse.Namespace) -> int:
    from mnist_cnn.inference import checkpoint
    from mnist_cnn.inference.predict import predict

    first, *others = options.paths
    if first.endswith(".ckpt") or (Path(first) / "checkpoints").is_dir():
        file = checkpoint.find(first)
        if not others:
            raise ConfigError(f"no picture was named: mnist-cnn predict {first} PICTURE")
    else:
        file, others = checkpoint.newest(Path("runs")), options.paths
        print(f"by {file}", file=sys.stderr)
    trained = checkpoint.load(file)
    failed = False
    for found in predict(trained, [Path(path) for path in others]):
        failed |= found.error is not None
        if options.json:
            print(json.dumps(found.to_dict()), flush=True)
        elif found.error is None:
            print(found.summary(), flush=True)
        else:
            print(f"error: {found.error}", file=sys.stderr)
    return 1 if failed else 0


def _import_keras(options: argparse.Namespace) -> int:
    from mnist_cnn.data import datasets
    from mnist_cnn.data.images import Images
    from mnist_cnn.inference import checkpoint
    from mnist_cnn.keras.importer import import_model

    output = options.output or Path(f"{options.file.stem}.ckpt")
    if output.suffix in checkpoint.KERAS_SUFFIXES:
        raise ConfigError(f"-o {output}: a checkpoint is written, which Keras can't read; name it {output.stem}.ckpt")
    images, guessed_on = None, None
    if options.input_scale is None:
        known = datasets.load("auto", options.data_root)
        guessed_on, images = known.name, Images(known.train.images[:1000], known.train.labels[:1000])
    imported = import_model(options.file, options.architecture, options.input_scale, images)
    checkpoint.save(output, imported.trained)
    if options.json:
        print(json.dumps({"checkpoint": str(output), "guessed_on": guessed_on, **imported.to_dict()}))
    else:
        print(f"{imported.summary(guessed_on)}\nwritten to {output}")
    return 0


def _export(options: argparse.Namespace) -> int:
    from mnist_cnn.inference import checkpoint
    from mnist_cnn.keras.export import export_keras, input_shape

    file = checkpoint.find(options.checkpoint)
    trained = checkpoint.load(file)
    output = options.output or Path(f"{trained.model}.keras")
    if output.suffix != ".keras":
        raise ConfigError(f"-o {output}: Keras reads such a file only if its name ends in .keras")
    export_keras(trained, output)
    shape, scaling = [None, *input_shape(trained)], trained.preprocessing.formula()
    if options.json:
        print(json.dumps({"checkpoint": str(file), "file": str(output), "input_shape": shape, "input_scale": scaling}))
    else:
        print(f"{trained.model}, {trained.origin}\nit takes pictures of shape {tuple(shape)}, scaled by {scaling}")
        print(f"written to {output}")
    return 0
