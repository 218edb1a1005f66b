"""Keras' initializers: how weights are drawn before training.

Source: Keras 3, `keras/src/initializers`.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mnist_cnn.network.arguments import choice


def _variance_scaling(scale: float, mode: str, normal: bool) -> Callable[[Tensor, int, int], None]:
    def draw(weight: Tensor, fan_in: int, fan_out: int) -> None:
        fan = {"in": fan_in, "out": fan_out, "average": (fan_in + fan_out) / 2}[mode]
        if normal:
            # Keras truncates at two standard deviations, and divides by the standard deviation that this leaves.
            std = math.sqrt(scale / fan) / 0.87962566103423978
            nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)
        else:
            limit = math.sqrt(3 * scale / fan)
            nn.init.uniform_(weight, -limit, limit)

    return draw


# By their names in keras.initializers. Each takes the weight, fan in and fan out.
INITIALIZERS: dict[str, Callable[[Tensor, int, int], Any]] = {
    "glorot_uniform": _variance_scaling(1, "average", normal=False),
    "glorot_normal": _variance_scaling(1, "average", normal=True),
    "he_uniform": _variance_scaling(2, "in", normal=False),
    "he_normal": _variance_scaling(2, "in", normal=True),
    "lecun_uniform": _variance_scaling(1, "in", normal=False),
    "lecun_normal": _variance_scaling(1, "in", normal=True),
    "random_uniform": lambda weight, *_: nn.init.uniform_(weight, -0.05, 0.05),
    "random_normal": lambda weight, *_: nn.init.normal_(weight, std=0.05),
    "truncated_normal": lambda weight, *_: nn.init.trunc_normal_(weight, std=0.05, a=-0.1, b=0.1),
    "zeros": lambda weight, *_: nn.init.zeros_(weight),
    "ones": lambda weight, *_: nn.init.ones_(weight),
}


def fill(argument: str, initializer: str, weight: Tensor, fans: tuple[int, int]) -> None:
    """Draw a weight by the initializer that `argument` names."""
    with torch.no_grad():
        choice(argument, initializer, INITIALIZERS)(weight, *fans)


def initialize(
    module: nn.Conv2d | nn.Linear, fans: tuple[int, int], kernel: str, bias: str, argument: str = "kernel_initializer"
) -> None:
    """Draw a module's weight and bias; `argument` is what the layer calls its weight's initializer."""
    fill(argument, kernel, module.weight, fans)
    values = module.weight.new_empty(0) if module.bias is None else module.bias  # a wrong name is refused in any case
    fill("bias_initializer", bias, values, (max(len(values), 1),) * 2)
