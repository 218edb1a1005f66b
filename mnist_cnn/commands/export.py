"""`mnist-cnn export`: writes a trained network for another program."""

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mnist_cnn import quick_imports
from mnist_cnn.commands.arguments import add_checkpoint, add_data_files, add_json, check_output, data_files, file_path
from mnist_cnn.errors import ConfigError, DataError, one_line, unicode_text
from mnist_cnn.terminal import print_json

if TYPE_CHECKING:
    from mnist_cnn.export.check import Reference
    from mnist_cnn.inference.checkpoint import TrainedNetwork

DESCRIPTION = "Write a trained network as a file for another program."

# What a format's function returns: facts for JSON, and lines for people.
Written = tuple[dict[str, Any], list[str]]


class _Format(NamedTuple):
    suffix: str
    about: str
    write: Callable[[argparse.Namespace, Path, "TrainedNetwork", Path], Written]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_checkpoint(parser)
    about = "; ".join(f"{name}: {known.about}" for name, known in _FORMATS.items())
    parser.add_argument("--format", choices=tuple(_FORMATS), required=True, help=about)
    parser.add_argument(
        "-o", "--output", metavar="FILE", type=file_path,
        help="the file to write (MODEL.onnx, .pt2 or .keras in this folder)",
    )  # fmt: skip
    parser.add_argument("--int8", action="store_true", help="onnx: in 8 bits: smaller, often faster (docs/export.md)")
    add_data_files(parser)
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    with quick_imports():
        from mnist_cnn.files import check_is_new
        from mnist_cnn.inference import checkpoint

    if options.int8 and options.format != "onnx":
        raise ConfigError(f"--int8 goes with --format onnx, not {options.format}.")
    suffix, _, write = _FORMATS[options.format]
    if options.output:
        check_output("-o", options.output, suffix)
    file, trained = checkpoint.load_kept(options.checkpoint)
    # A model's name may have a slash in it, and would name another folder.
    name = re.sub(r"[^\w.-]+", "_", trained.model) + ("-int8" if options.int8 else "")
    output = options.output or Path(f"{name}{suffix}")
    check_is_new(output)
    facts, lines = write(options, file, trained, output)
    if options.json:
        print_json({"checkpoint": unicode_text(file), "file": unicode_text(output), **facts})
    else:
        size = output.stat().st_size
        print("\n".join([f"{trained.model}, {trained.provenance}", *lines]))
        print(f"written to {one_line(output)}, {size / 1000:,.0f} kB")
    return 0


def _keras(_: argparse.Namespace, _file: Path, trained: "TrainedNetwork", output: Path) -> Written:
    from mnist_cnn.keras.export import export_keras, input_shape

    export_keras(trained, output)
    shape, scaling = [None, *input_shape(trained)], trained.preprocessing.formula()
    line = f"takes images of shape {tuple(shape)}, scaled by {scaling}"
    return {"input_shape": shape, "input_scale": scaling}, [line]


def _onnx(options: argparse.Namespace, file: Path, trained: "TrainedNetwork", output: Path) -> Written:
    from mnist_cnn.export import card, onnx_file

    onnx_file.require_packages()
    reference = _reference(options, trained)
    calibration = _calibration(options, trained) if options.int8 else None
    about = card.text(trained, file)
    exported = onnx_file.export_onnx(trained, output, reference, card.facts(trained, file), about, calibration)
    facts = {**_shapes(trained), "opset": onnx_file.OPSET, **exported.to_dict()}
    return facts, [_takes_and_gives(trained), *exported.summary()]


def _pt2(options: argparse.Namespace, file: Path, trained: "TrainedNetwork", output: Path) -> Written:
    from mnist_cnn.export import card
    from mnist_cnn.export.pt2_file import export_pt2

    check = export_pt2(trained, output, _reference(options, trained), card.facts(trained, file))
    facts = {**_shapes(trained), "check": check.to_dict()}
    return facts, [_takes_and_gives(trained), f"checked with torch.export on {check.summary()}"]


_FORMATS = {
    "onnx": _Format(".onnx", "for ONNX Runtime and others, without PyTorch", _onnx),
    "pt2": _Format(".pt2", "for torch.export.load, without this package", _pt2),
    "keras": _Format(".keras", "for Keras 3", _keras),
}


def _shapes(trained: "TrainedNetwork") -> dict[str, Any]:
    from mnist_cnn.export.program import INPUT, OUTPUT, image_shape

    channels, *size = image_shape(trained)
    shape = [None, *size] if channels == 1 else [None, *size, channels]
    return {
        "input": {"name": INPUT, "dtype": "uint8", "shape": shape},
        "output": {"name": OUTPUT, "dtype": "float32", "shape": [None, len(trained.classes)]},
    }


def _takes_and_gives(trained: "TrainedNetwork") -> str:
    takes, gives = (
        f"{tensor['name']}, {tensor['dtype']} ({', '.join(map(str, ['N', *tensor['shape'][1:]]))})"
        for tensor in _shapes(trained).values()
    )
    return f"takes {takes}, returns {gives}"


def _reference(options: argparse.Namespace, trained: "TrainedNetwork") -> "Reference":
    from mnist_cnn.export.check import reference

    found = reference(trained, data_files(options, trained.dataset))
    if found.missing and options.int8:
        raise DataError(f"--int8 is calibrated on training images, but {found.missing}")
    if found.missing:
        said = (
            f"note: {one_line(found.missing)} The file is checked on random images, and its accuracy is not measured."
        )
        print(said, file=sys.stderr)
    return found


def _calibration(options: argparse.Namespace, trained: "TrainedNetwork") -> Any:
    """Training images, evenly spaced, to calibrate a file in 8 bits with."""
    from mnist_cnn.data import datasets
    from mnist_cnn.export.int8 import CALIBRATION
    from mnist_cnn.export.program import as_input, image_shape

    files = data_files(options, trained.dataset)
    source = datasets.source_of(files, image_shape(trained))
    images = datasets.load(files.name, files.root, source).train.images
    return as_input(images[:: max(1, len(images) // CALIBRATION)][:CALIBRATION]).numpy()
