"""Quantizes an ONNX model to 8 bits, and measures whether that makes it faster."""

import logging
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from mnist_cnn.data.sources import Array
from mnist_cnn.export.check import Reference, Runtime
from mnist_cnn.export.program import INPUT

if TYPE_CHECKING:
    import onnx

CALIBRATION = 1000  # training images from which the range of each layer's values is taken
_BATCH = 100
# Everything between these stays in float: in ONNX Runtime, poolings and activations are slower in 8 bits (`strong` and
# `accurate` would be 1.5 and 1.4 times as fast as in float, instead of 1.8 and 2.0 times).
_QUANTIZED = ["Conv", "Gemm", "MatMul"]
# So do convolutions with fewer input channels per filter, the first one and depthwise ones: in 8 bits, `baseline` and
# `tiny` would take 0.9 and 2.2 times as long as in float, instead of 0.8 and 1.0 times.
_LEAST_CHANNELS = 4


def quantize(model: "onnx.ModelProto", calibration: Array) -> "onnx.ModelProto":
    """The model in 8 bits, weights and activations. Its input and output stay as they are.

    `calibration` holds training images as the model takes them, uint8 (N, H, W) or (N, H, W, C).
    """
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as folder, _without_advice():
        written, merged, quantized = (str(Path(folder) / f"{name}.onnx") for name in ("written", "merged", "int8"))
        onnx.save(model, written)
        quant_pre_process(written, merged, skip_symbolic_shape=True)  # merges BatchNormalization into convolutions
        quantize_static(
            merged,
            quantized,
            _Batches(calibration),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=_QUANTIZED,
            nodes_to_exclude=_with_few_channels(onnx.load(merged)),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        return onnx.load(quantized)


def rates(one: Runtime, other: Runtime, reference: Reference) -> tuple[float, float]:
    """Images per second of each: the medians of five rounds, in which they take turns."""
    images = reference.images[: 8 * reference.batch]
    taken: dict[Runtime, list[float]] = {one: [], other: []}
    for _ in range(5):
        for answers, seconds in taken.items():
            start = time.perf_counter()
            for first in range(0, len(images), reference.batch):
                answers(images[first : first + reference.batch])
            seconds.append(time.perf_counter() - start)
    return len(images) / statistics.median(taken[one]), len(images) / statistics.median(taken[other])


def _with_few_channels(model: "onnx.ModelProto") -> list[str]:
    kernels = {weight.name: weight.dims for weight in model.graph.initializer}
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    return [node.name for node in convolutions if kernels[node.input[1]][1] < _LEAST_CHANNELS]


class _Batches:
    """Images as ONNX Runtime asks for them when it calibrates (its CalibrationDataReader)."""

    def __init__(self, images: Array) -> None:
        self.batches = ({INPUT: images[start : start + _BATCH]} for start in range(0, len(images), _BATCH))

    def get_next(self) -> dict[str, Array] | None:
        return next(self.batches, None)


@contextmanager
def _without_advice() -> Iterator[None]:
    """Silence ONNX Runtime's advice on quantizing by hand, which it sends to the root logger."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)
