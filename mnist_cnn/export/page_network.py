"""Describes a trained network as plain values, from which page_network.js computes the same without PyTorch."""

import base64
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.utils import _pair

from mnist_cnn.errors import CheckpointError
from mnist_cnn.inference.checkpoint import TrainedNetwork
from mnist_cnn.inference.pictures.prepare import MNIST_SIZE
from mnist_cnn.inference.predict import takes_whole_pictures
from mnist_cnn.network.arguments import Shape, keras_shape
from mnist_cnn.network.layers import activations, modules

MAX_PARAMETERS = 2_000_000  # 8 MB of weights, which are a third more in a page
MAX_OPERATIONS = 500_000_000  # for an image: more take longer than a tenth of a second
MAX_SIDE = 128  # pixels: placing a drawing in larger images takes too long

Operation = dict[str, Any]  # its `kind`, one of OPERATIONS in page_network.js, and its settings


def page_network(trained: TrainedNetwork) -> dict[str, Any]:
    """The operations of the network, its classes, and how a drawing is prepared for it, ready for JSON.

    CheckpointError if a page can't run the network: if it is too large, takes other images than grey ones, is not a
    chain of layers, or has a layer that is not known here.
    """
    network, scaling = trained.network, trained.preprocessing
    channels, *size = network.input_shape
    if channels != 1:
        raise CheckpointError(f"the network takes images with {channels} channels, and a drawing has one.")
    for count, most, what in (
        (max(size), MAX_SIDE, "pixels along a side of its images"),
        (network.parameter_count, MAX_PARAMETERS, "parameters"),
        (network.operations, MAX_OPERATIONS, "operations for an image"),
    ):
        if count > most:
            raise CheckpointError(f"the network has {count:,} {what}; the limit is {most:,}.")
    whole = takes_whole_pictures(trained)
    return {
        "classes": list(trained.classes),
        "placing": "whole" if whole else "digit",
        "drawn": size if whole or scaling.size is None else list(MNIST_SIZE),  # as in predict
        "input": size,
        "scale": scaling.scale,
        "mean": scaling.mean[0],
        "std": scaling.std[0],
        "operations": _operations(trained),
    }


def _operations(trained: TrainedNetwork) -> list[Operation]:
    operations: list[Operation] = []
    for index, node in enumerate(trained.network.nodes):
        if node.shared is not None or node.sources != (index,):
            raise CheckpointError(f"layer {index} ({node.kind}) does not simply follow the layer before it.")
        for part in node.parts:
            module = trained.network.get_submodule(part)
            # Exactly this type: a layer derived from one of these may compute something else.
            translate = _TRANSLATIONS.get(type(module))
            if translate is None:
                raise CheckpointError(f"layer {index} ({node.kind}) is not among the layers that a page can run.")
            operations += translate(module, node.output_shape)
    return operations


def _convolution(module: nn.Conv2d, shape: Shape) -> list[Operation]:
    top, left = _pair(module.padding)
    operation = {
        "kind": "convolution",
        "kernel": module.kernel_size,
        "strides": module.stride,
        "dilation": module.dilation,
        "filters": module.out_channels,
        "groups": module.groups,
        "weight": _array(module.weight.permute(0, 2, 3, 1)),
        "bias": None if module.bias is None else _array(module.bias),
    }
    return [*(_padding((left, left, top, top)) if top or left else []), operation]


def _dense(module: nn.Linear, shape: Shape) -> list[Operation]:
    bias = None if module.bias is None else _array(module.bias)
    return [{"kind": "dense", "units": module.out_features, "weight": _array(module.weight), "bias": bias}]


def _padding(sides: tuple[int, ...], value: float = 0) -> list[Operation]:
    """JSON has no infinity: null stands for the −∞ that pads the input of MaxPooling2D."""
    return [{"kind": "padding", "sides": sides, "value": value if np.isfinite(value) else None}]


def _pooling(reduce: str, size: Any, strides: Any, sides: tuple[int, ...] = (0, 0, 0, 0)) -> list[Operation]:
    return [{"kind": "pooling", "reduce": reduce, "size": _pair(size), "strides": _pair(strides), "sides": sides}]


def _batch_norm(module: modules.BatchNorm, shape: Shape) -> list[Operation]:
    assert module.running_mean is not None
    assert module.running_var is not None
    scale = (module.running_var.double() + module.eps).rsqrt()
    scale = scale if module.weight is None else scale * module.weight
    shift = -module.running_mean * scale
    shift = shift if module.bias is None else shift + module.bias
    return _affine(_axis(module.dim, shape), scale, shift)


def _instance_norm(module: modules.InstanceNorm, shape: Shape) -> list[Operation]:
    kept = [dim for dim in range(1, len(shape) + 1) if dim not in module.over]
    axis = _axis(kept[0], shape) if kept else None
    count = shape[kept[0] - 1] if kept else 1
    gamma = torch.ones(count) if module.gamma is None else module.gamma.flatten()
    beta = torch.zeros(count) if module.beta is None else module.beta.flatten()
    return [{"kind": "standardize", "axis": axis, "epsilon": module.epsilon}, *_affine(axis, gamma, beta)]


def _affine(axis: int | None, scale: Tensor, shift: Tensor) -> list[Operation]:
    return [{"kind": "affine", "axis": axis, "scale": _array(scale), "shift": _array(shift)}]


def _relu(slope: float = 0.0, threshold: float = 0.0, most: float | None = None) -> list[Operation]:
    return [{"kind": "relu", "slope": slope, "threshold": threshold, "most": most}]


def _along(kind: str) -> Callable[[Any, Shape], list[Operation]]:
    return lambda module, shape: [{"kind": kind, "axis": _axis(module.dim, shape)}]


def _plain(kind: str, **settings: float) -> Callable[[Any, Shape], list[Operation]]:
    return lambda module, shape: [{"kind": kind, **settings}]


def _nothing(module: nn.Module, shape: Shape) -> list[Operation]:
    return []


# What a module computes; the shape is that of its layer's output, without the batch.
_TRANSLATIONS: dict[type[nn.Module], Callable[[Any, Shape], list[Operation]]] = {
    nn.Conv2d: _convolution,
    nn.Linear: _dense,
    modules.ChannelLinear: _dense,
    nn.MaxPool2d: lambda module, shape: _pooling("max", module.kernel_size, module.stride),
    nn.AvgPool2d: lambda module, shape: _pooling("mean", module.kernel_size, module.stride),
    modules.AveragePoolingSame: lambda module, shape: _pooling("mean", module.pool_size, module.strides, module.pad),
    modules.GlobalPooling: lambda module, shape: [
        {"kind": "globalPooling", "reduce": module.reduce, "shape": keras_shape(shape)}
    ],
    nn.ZeroPad2d: lambda module, shape: _padding(module.padding),
    nn.ConstantPad2d: lambda module, shape: _padding(module.padding, module.value),
    modules.Flatten: lambda module, shape: [{"kind": "reshape", "shape": shape}],
    modules.Reshape: lambda module, shape: [{"kind": "reshape", "shape": keras_shape(shape)}],
    modules.Rescaling: lambda module, shape: _affine(
        None, torch.tensor([module.scale], dtype=torch.float64), torch.tensor([module.offset], dtype=torch.float64)
    ),
    modules.BatchNorm: _batch_norm,
    modules.InstanceNorm: _instance_norm,
    modules.UnitNormalization: _along("unitLength"),
    nn.Dropout: _nothing,
    nn.Dropout2d: _nothing,
    nn.ReLU: lambda module, shape: _relu(),
    nn.ReLU6: lambda module, shape: _relu(most=6),
    nn.LeakyReLU: lambda module, shape: _relu(module.negative_slope),
    activations.CappedReLU: lambda module, shape: _relu(module.negative_slope, module.threshold, module.max_value),
    nn.ELU: lambda module, shape: [{"kind": "elu", "alpha": module.alpha}],
    nn.SELU: _plain("selu"),
    nn.GELU: _plain("gelu"),
    nn.SiLU: _plain("silu"),
    nn.Mish: _plain("mish"),
    nn.Sigmoid: _plain("sigmoid"),
    nn.LogSigmoid: _plain("logSigmoid"),
    nn.Hardsigmoid: _plain("hardSigmoid", slope=1 / 6),
    activations.HardSigmoidKeras2: _plain("hardSigmoid", slope=0.2),
    nn.Hardswish: _plain("hardSilu"),
    nn.Tanh: _plain("tanh"),
    nn.Softplus: _plain("softplus"),
    nn.Softsign: _plain("softsign"),
    activations.Exponential: _plain("exponential"),
    activations.Log: _plain("log"),
    nn.Softmax: _along("softmax"),
    nn.LogSoftmax: _along("logSoftmax"),
}


def _axis(dim: int, shape: Shape) -> int:
    """The axis, counted from 0 with the channels last and without the batch, that is `dim` in torch."""
    return {1: 2, 2: 0, 3: 1}[dim] if len(shape) == 3 else dim - 1


def _array(values: Tensor) -> dict[str, str]:
    """Numbers in base64, as float32, or as float16, half as long, if that holds them exactly, as in the box."""
    array = values.detach().numpy().astype("<f4")
    with np.errstate(over="ignore"):
        half = array.astype("<f2")
    kind, kept = ("float16", half) if np.array_equal(half, array) else ("float32", array)
    return {kind: base64.b64encode(kept.tobytes()).decode()}
