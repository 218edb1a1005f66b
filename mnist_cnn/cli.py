"""The command line of trained networks: `mnist-cnn <command>`.

Each command imports what it needs when it runs, so that `--help` answers at once.
"""

import argparse
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from mnist_cnn import __version__, quick_imports
from mnist_cnn.errors import ConfigError, DataError, one_line, unicode_text
from mnist_cnn.terminal import allow_any_text, failed, print_json, run_command

try:
    from mnist_cnn.data.sources import SOURCES
except ImportError:  # NumPy or tqdm is broken, which doctor must be able to say
    SOURCES = {}

_MOST_SHOWN = 400  # answers that `predict --show` keeps in memory and draws

# What `mnist-cnn --help` lists.
_COMMANDS = """\
use a trained network
  evaluate      measure its accuracy on test, validation or training images
  predict       say which digit or number a picture shows
  models        list the trained networks that come with this package

exchange networks with Keras
  import-keras  make a checkpoint from a Keras model (.keras, .h5, .hdf5)
  export        write a Keras model (.keras) from a checkpoint

report a problem
  doctor        describe this installation and machine, with nothing private

mnist-cnn COMMAND --help describes the options of a command.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status: 0 done, 1 failed, 2 wrong usage."""
    allow_any_text()
    options = _parser().parse_args(arguments)
    return run_command(lambda: int(options.run(options)))


class _Parser(argparse.ArgumentParser):
    """Its errors quote arguments, which may hold anything."""

    def error(self, message: str) -> NoReturn:
        super().error(one_line(message, 1000))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="mnist-cnn",
        usage="mnist-cnn [-h] [--version] COMMAND ...",
        description="Use networks that were trained with train.py.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"mnist-cnn {__version__}")
    commands = parser.add_subparsers(
        title="commands",
        description=_COMMANDS,
        prog="mnist-cnn",
        required=True,
        metavar="COMMAND",
        help=argparse.SUPPRESS,
    )

    def command(name: str, run: Callable[[argparse.Namespace], int], description: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, description=description)
        added.set_defaults(run=run)
        return added

    evaluate = command(
        "evaluate",
        _evaluate,
        "Measure a trained network: by default, on the test images of the data set that it was trained on.",
    )
    _add_checkpoint(evaluate)
    evaluate.add_argument("--split", choices=("test", "val", "train"), default="test", help="which images (test)")
    evaluate.add_argument("--data", choices=tuple(SOURCES), metavar="NAME", help=f"one of {', '.join(SOURCES)}")
    evaluate.add_argument("--data-root", default="data", metavar="FOLDER", help="the folder of the image files (data)")
    evaluate.add_argument(
        "--mirror",
        metavar="ADDRESS",
        help="a folder or web address that has the image files, tried before all others (for mnist: the environment "
        "variable MNIST_MIRROR)",
    )
    evaluate.add_argument(
        "--tta", action="store_true", help="also average each image's answers over nine views, shifted by up to a pixel"
    )
    _add_json(evaluate)

    predict = command(
        "predict",
        _predict,
        "Say which digit or number each picture shows: a photograph or a drawing, dark on light or light on dark. A "
        "number is answered with the probability of each digit, and each line of several separately.",
    )
    predict.add_argument(
        "paths", metavar="[CKPT_OR_RUN] PICTURE", nargs="+",
        help="pictures, folders of pictures, or - for one on standard input; before them, a checkpoint, a run folder, "
        "or a network that mnist-cnn models lists (default: accurate)",
    )  # fmt: skip
    predict.set_defaults(placing="auto")
    placing = predict.add_mutually_exclusive_group()
    placing.add_argument(
        "--as-is", dest="placing", action="store_const", const="as-is",
        help="take every picture as a whole, only resized, and light on dark for a grey network",
    )  # fmt: skip
    placing.add_argument(
        "--fit", dest="placing", action="store_const", const="fit",
        help="cut out and centre every digit, even in an image of MNIST, which by default is taken as it is",
    )  # fmt: skip
    predict.add_argument(
        "--show", metavar="FILE.png", type=_path, help="write a picture of what the network saw, with the answers"
    )
    _add_json(predict, "print one line of JSON for each picture, or for each line of digits in it")

    models = command("models", _models, "List the trained networks that come with this package, or describe one.")
    models.add_argument("name", metavar="NAME", nargs="?", help="the network to describe: print its model card")
    _add_json(models)

    import_keras = command(
        "import-keras",
        _import_keras,
        "Make a checkpoint from a Keras model. This needs neither Keras nor TensorFlow and runs no code from the file.",
    )
    import_keras.add_argument("file", metavar="MODEL", type=_path, help="a .keras or HDF5 file from Keras 1, 2 or 3")
    import_keras.add_argument(
        "-o", "--output", metavar="OUT.ckpt", type=_path, help="the checkpoint to write (MODEL.ckpt in this folder)"
    )
    import_keras.add_argument(
        "--input-scale",
        choices=("1/255", "1", "mean-std", "1/127.5-1", "normalize"),
        help="how pixels (0 to 255) were scaled for the model: to [0, 1], not at all, to mean 0 and standard deviation "
        "1 ((x/255-0.1307)/0.3081), to [-1, 1], or by keras.utils.normalize(axis=1); without this option it is guessed "
        "and the guess is printed",
    )
    import_keras.add_argument(
        "--architecture", metavar="MODEL.json", type=_path, help="the model's architecture, if MODEL has weights only"
    )
    import_keras.add_argument(
        "--data-root", default="data", metavar="FOLDER", help="the folder of the image files used for the guess (data)"
    )
    _add_json(import_keras)

    export = command("export", _export, "Write a trained network as a file for another program.")
    _add_checkpoint(export)
    export.add_argument("--format", choices=("keras",), required=True, help="keras: a .keras file for Keras 3")
    export.add_argument(
        "-o", "--output", metavar="FILE", type=_path, help="the file to write (MODEL.keras in this folder)"
    )
    _add_json(export)

    doctor = command("doctor", _doctor, "Describe this installation and this machine, to be pasted into a bug report.")
    doctor.add_argument("--data-root", default="data", metavar="FOLDER", type=_path, help="where images are (data)")
    _add_json(doctor)
    return parser


def _add_checkpoint(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "checkpoint", metavar="CKPT_OR_RUN",
        help="a checkpoint, a run folder (its best one), or a network that mnist-cnn models lists",
    )  # fmt: skip


def _add_json(command: argparse.ArgumentParser, what: str = "print the result as one JSON object") -> None:
    command.add_argument("--json", action="store_true", help=what)


def _path(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("it is empty")
    return Path(text)


def _evaluate(options: argparse.Namespace) -> int:
    with quick_imports():
        from mnist_cnn.data.datasets import MissingFilesError
        from mnist_cnn.inference import checkpoint
        from mnist_cnn.inference.evaluate import VIEWS, evaluate, images_for

    file, trained = checkpoint.load_kept(options.checkpoint)
    name = options.data or trained.dataset
    try:
        images = images_for(trained, options.split, name, options.data_root, _mirror(options.mirror, name))
    except MissingFilesError as error:
        way_out = "name a folder or web address that has them: --mirror ADDRESS"
        way_out += ", or MNIST_MIRROR=ADDRESS in the environment" if name == "mnist" else ""
        raise DataError(f"{error}\n  - {way_out}") from None
    result = evaluate(trained, images, name, options.split)
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


def _mirror(option: str | None, dataset: str) -> str | None:
    """The address of the mirror, or None; ConfigError in the user's words if it is not an address."""
    from mnist_cnn.data.download import mirror_address

    mirror, given_as = option, "--mirror "
    if not mirror and dataset == "mnist":
        mirror, given_as = os.environ.get("MNIST_MIRROR"), "MNIST_MIRROR="
    return mirror_address(mirror, given_as) if mirror else None


def _predict(options: argparse.Namespace) -> int:
    with quick_imports():
        from mnist_cnn.files import check_is_new
        from mnist_cnn.inference import box, checkpoint
        from mnist_cnn.inference.predict import Prediction, predict

    if options.show:
        if options.show.suffix.lower() != ".png":
            raise ConfigError(f"--show {options.show}: the picture is a PNG; name it {options.show.stem}.png")
        check_is_new(options.show)
    first, *others = options.paths
    if not all(options.paths):
        raise ConfigError("the name of a picture is empty.")
    if checkpoint.is_meant(first):
        _, trained = checkpoint.load_kept(first)
        if not others:
            raise ConfigError(f"no picture given: mnist-cnn predict {one_line(first)} PICTURE")
    else:
        others = options.paths
        trained = checkpoint.load(box.find(box.DEFAULT))
        print(f"using {box.DEFAULT}, a network that comes with this package", file=sys.stderr)
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


def _models(options: argparse.Namespace) -> int:
    from mnist_cnn.inference import box

    if options.name is not None:
        card = box.card(options.name)
        if options.json:
            print_json(card.to_dict())
        else:
            print(box.text(options.name))
    elif options.json:
        print_json({name: box.card(name).to_dict() for name in box.names()})
    else:
        print(box.table())
    return 0


def _import_keras(options: argparse.Namespace) -> int:
    with quick_imports():
        from mnist_cnn.data import datasets
        from mnist_cnn.data.images import Images
        from mnist_cnn.inference import checkpoint
        from mnist_cnn.keras.importer import import_model

    output = options.output or Path(f"{options.file.stem}.ckpt")
    if output.suffix in checkpoint.KERAS_SUFFIXES:
        raise ConfigError(f"-o {output}: the output is a checkpoint, not a Keras file; name it {output.stem}.ckpt")
    images, guessed_on = None, None
    if options.input_scale is None:
        known = datasets.load("auto", options.data_root)
        guessed_on, images = known.name, Images(known.train.images[:1000], known.train.labels[:1000])
    imported = import_model(options.file, options.architecture, options.input_scale, images)
    checkpoint.save(output, imported.trained)
    if options.json:
        print_json({"checkpoint": unicode_text(output), "guessed_on": guessed_on, **imported.to_dict()})
    else:
        print(f"{imported.summary(guessed_on)}\nwritten to {one_line(output)}")
    return 0


def _export(options: argparse.Namespace) -> int:
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


def _doctor(options: argparse.Namespace) -> int:
    from mnist_cnn.doctor import examine

    diagnosis = examine(options.data_root)
    if options.json:
        print_json(diagnosis.to_dict())
    else:
        print(diagnosis.summary())
    return 1 if diagnosis.problems else 0
