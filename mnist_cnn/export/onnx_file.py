"""Exports a network as an `.onnx` file, which ONNX Runtime and many others run without PyTorch."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.export import ExportedProgram

from mnist_cnn.data.sources import Array
from mnist_cnn.errors import missing_package
from mnist_cnn.export import card
from mnist_cnn.export.check import Check, Reference, Runtime, compare, require_equal
from mnist_cnn.export.program import INPUT, OUTPUT, converted
from mnist_cnn.files import check_is_new, write_file
from mnist_cnn.inference.checkpoint import TrainedNetwork

if TYPE_CHECKING:
    import onnx

# The version of ONNX's operators that torch's exporter writes by itself.
OPSET = 18
_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True)
class Exported:
    """What was checked of an `.onnx` file and, if it is in 8 bits, of the same network in float32 beside it."""

    check: Check
    in_float: Check | None = None

    def to_dict(self) -> dict[str, Any]:
        beside = {} if self.in_float is None else {"float32": self.in_float.to_dict()}
        return {"check": self.check.to_dict(), **beside}

    def summary(self) -> list[str]:
        """What was checked, in a line, or one for each precision."""
        if self.in_float is None:
            return [f"checked in ONNX Runtime on {self.check.summary()}"]
        return [
            f"in float32, checked in ONNX Runtime on {self.in_float.summary()}",
            f"in 8 bits, on {self.check.summary()}",
        ]


def require_packages() -> None:
    """Raise UserError if a package that writes or runs ONNX files is not installed."""
    for name in _PACKAGES:
        if find_spec(name) is None:
            raise missing_package(name)


def export_onnx(
    trained: TrainedNetwork,
    path: Path,
    reference: Reference,
    facts: Mapping[str, str],
    about: str,
    calibration: Array | None = None,
) -> Exported:
    """Write an `.onnx` file that gives PyTorch's answers in ONNX Runtime; it holds the model card `facts` and `about`.

    With `calibration`, images as the file takes them, it is written in 8 bits. Its answers then differ a little from
    PyTorch's; only those of the same network in float32 must be equal.

    UserError if they are not, or if a layer can't be exported; OutputError if the file exists or can't be written.
    """
    check_is_new(path)
    model = converted(trained, _to_onnx)
    exported = Exported(require_equal(compare(session(model), reference), "ONNX Runtime"))
    if calibration is not None:
        from mnist_cnn.export import int8

        in_float, model = model, int8.quantize(model, calibration)
        rate, float_rate = int8.rates(session(model, threads=1), session(in_float, threads=1), reference)
        exported = Exported(
            replace(compare(session(model), reference), images_per_second=rate),
            replace(exported.check, images_per_second=float_rate),
        )
    for key, value in {**facts, **card.measured(exported.check, exported.to_dict(), _PACKAGES)}.items():
        model.metadata_props.add(key=key, value=value)
    model.doc_string = about
    write_file(path, model.SerializeToString(), replace=False)
    return exported


def session(model: "onnx.ModelProto", threads: int = 0) -> Runtime:
    """The model in ONNX Runtime, on this number of threads; 0: one for each core."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors only
    running = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def answers(images: Array) -> Array:
        found: Array = running.run([OUTPUT], {INPUT: images})[0]
        return found

    return answers


def _to_onnx(program: ExportedProgram) -> "onnx.ModelProto":
    written = torch.onnx.export(
        program, dynamo=True, opset_version=OPSET, input_names=[INPUT], output_names=[OUTPUT], verbose=False
    )
    assert written is not None
    model = written.model_proto
    for node in model.graph.node:
        del node.metadata_props[:]  # of no use to a runtime, and half of a small file
    del model.graph.value_info[:]  # runtimes infer it
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "N"
    return model
