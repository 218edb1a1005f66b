"""Keras' activations as torch modules.

Source: Keras 3, `keras/src/activations`.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from mnist_cnn.network.arguments import Shape, axis_dim, choice


class HardSigmoidKeras2(nn.Module):
    """0.2·x + 0.5, clamped to [0, 1]: the hard_sigmoid of Keras 1 and 2. Keras 3's and torch's has a slope of 1/6."""

    def forward(self, x: Tensor) -> Tensor:
        return (0.2 * x + 0.5).clamp(0, 1)


class Exponential(nn.Module):
    """e to the power of x."""

    def forward(self, x: Tensor) -> Tensor:
        return x.exp()


class Log(nn.Module):
    """The natural logarithm, which turns probabilities into logits; 0 counts as the smallest positive number."""

    def forward(self, x: Tensor) -> Tensor:
        return x.clamp(min=torch.finfo(x.dtype).tiny).log()


class CappedReLU(nn.Module):
    """Keras' ReLU with all its arguments: x from `threshold` on, at most `max_value`; below, a line of some slope."""

    def __init__(self, max_value: float | None, negative_slope: float, threshold: float) -> None:
        super().__init__()
        self.max_value, self.negative_slope, self.threshold = max_value, negative_slope, threshold

    def forward(self, x: Tensor) -> Tensor:
        x = torch.where(x >= self.threshold, x, self.negative_slope * (x - self.threshold))
        return x if self.max_value is None else x.clamp(max=self.max_value)


# By their names in keras.activations, and two that only imported models have: `log` and `hard_sigmoid_keras2`.
ACTIVATIONS: dict[str | None, Callable[..., nn.Module] | None] = {
    None: None,
    "linear": None,
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "leaky_relu": partial(nn.LeakyReLU, 0.2),
    "elu": nn.ELU,
    "selu": nn.SELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "swish": nn.SiLU,
    "mish": nn.Mish,
    "sigmoid": nn.Sigmoid,
    "log_sigmoid": nn.LogSigmoid,
    "hard_sigmoid": nn.Hardsigmoid,
    "hard_sigmoid_keras2": HardSigmoidKeras2,
    "hard_silu": nn.Hardswish,
    "tanh": nn.Tanh,
    "softplus": nn.Softplus,
    "softsign": nn.Softsign,
    "exponential": Exponential,
    "softmax": nn.Softmax,
    "log_softmax": nn.LogSoftmax,
    "log": Log,
}


def activation_modules(name: str | None, shape: Shape, argument: str = "activation") -> dict[str, nn.Module]:
    """The module of an activation under its name; none for `linear`. `argument` is what the layer calls it."""
    make = choice(argument, name, ACTIVATIONS)
    if name is None or make is None:
        return {}
    # A softmax looks across values: along Keras' last axis, which holds an image's channels.
    return {name: make(dim=axis_dim(-1, shape)) if name.endswith("softmax") else make()}
