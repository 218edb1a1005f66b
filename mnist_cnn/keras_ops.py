"""What does Keras compute that torch does not have ready? Initialisers, activations, padding and a few modules.

Tensors are (N, C, H, W) or (N, F). Sources: Keras 3, `keras/src/{initializers,activations,layers}`.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mnist_cnn.errors import ConfigError, did_you_mean

# --- initialisation as Keras does it -----------------------------------------------------------------------------


def _variance_scaling(scale: float, mode: str, normal: bool) -> Callable[[Tensor, int, int], None]:
    def fill(weight: Tensor, fan_in: int, fan_out: int) -> None:
        fan = {"in": fan_in, "out": fan_out, "average": (fan_in + fan_out) / 2}[mode]
        if normal:
            # Keras cuts at two standard deviations and divides by that distribution's own one, to keep the variance.
            std = math.sqrt(scale / fan) / 0.87962566103423978
            nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)
        else:
            limit = math.sqrt(3 * scale / fan)
            nn.init.uniform_(weight, -limit, limit)

    return fill


# keras.initializers, by their names
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


# --- modules that torch lacks ------------------------------------------------------------------------------------


class Flatten(nn.Module):
    """(N, C, H, W) → (N, H·W·C): Keras' order, in which channels vary fastest."""

    def forward(self, x: Tensor) -> Tensor:
        """Flatten all but the batch."""
        return x.permute(0, 2, 3, 1).flatten(1) if x.dim() == 4 else x.flatten(1)


class Reshape(nn.Module):
    """To a shape given as (F,) or (C, H, W), read and written in Keras' order, height, width, channel."""

    def __init__(self, output_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.output_shape = output_shape

    def forward(self, x: Tensor) -> Tensor:
        """Reshape all but the batch."""
        x = Flatten()(x)
        if len(self.output_shape) == 1:
            return x
        channels, height, width = self.output_shape
        return x.reshape(-1, height, width, channels).permute(0, 3, 1, 2)


class GlobalPooling(nn.Module):
    """(N, C, H, W) → (N, C), or (N, C, 1, 1) with `keepdims`: the mean or the maximum of each channel."""

    def __init__(self, reduce: str, keepdims: bool) -> None:
        super().__init__()
        self.reduce, self.keepdims = reduce, keepdims

    def forward(self, x: Tensor) -> Tensor:
        """Reduce height and width."""
        reduce = torch.mean if self.reduce == "mean" else torch.amax
        return reduce(x, dim=(2, 3), keepdim=self.keepdims)


class AveragePoolingSame(nn.Module):
    """Average pooling with `same` padding: the mean of the pixels that are there, as in Keras."""

    def __init__(self, pool_size: tuple[int, int], strides: tuple[int, int], pad: tuple[int, int, int, int]) -> None:
        super().__init__()
        self.pool_size, self.strides, self.pad = pool_size, strides, pad

    def forward(self, x: Tensor) -> Tensor:
        """Divide the sum of each window by the number of pixels that it really covers."""
        pool = partial(F.avg_pool2d, kernel_size=self.pool_size, stride=self.strides)
        return pool(F.pad(x, self.pad)) / pool(F.pad(torch.ones_like(x[:1, :1]), self.pad))


class Rescaling(nn.Module):
    """x · scale + offset."""

    def __init__(self, scale: float, offset: float) -> None:
        super().__init__()
        self.scale, self.offset = scale, offset

    def forward(self, x: Tensor) -> Tensor:
        """Rescale every value."""
        return x * self.scale + self.offset


class BatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch normalisation whose moving variance follows that of the batch, as in Keras; PyTorch's n/(n−1) times it."""

    def _check_input_dim(self, x: Tensor) -> None:
        pass

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (N, C, H, W) or (N, C) over all but C."""
        if not self.training:
            return super().forward(x)
        assert self.running_var is not None
        assert self.momentum is not None
        before = self.running_var * (1 - self.momentum)
        result = super().forward(x)
        n = x.numel() // x.shape[1]
        with torch.no_grad():
            self.running_var.copy_(before + (self.running_var - before) * ((n - 1) / n))
        return result


class Exponential(nn.Module):
    """e to the power of x."""

    def forward(self, x: Tensor) -> Tensor:
        """Take the exponential of every value."""
        return x.exp()


# keras.activations, by their names; `linear` is no module at all
ACTIVATIONS: dict[str | None, Callable[[], nn.Module] | None] = {
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
    "hard_sigmoid": nn.Hardsigmoid,
    "hard_silu": nn.Hardswish,
    "tanh": nn.Tanh,
    "softplus": nn.Softplus,
    "softsign": nn.Softsign,
    "exponential": Exponential,
    "softmax": partial(nn.Softmax, dim=1),
    "log_softmax": partial(nn.LogSoftmax, dim=1),
}


# --- padding and the shapes that convolutions and poolings leave -----------------------------------------------------


def windows(
    size: tuple[int, int], kernel: tuple[int, int], strides: tuple[int, int], padding: Any, dilation: tuple[int, int]
) -> tuple[tuple[int, int], tuple[int, int, int, int]]:
    """The output's (height, width), and the padding (left, right, top, bottom) that leads to it."""
    if padding not in ("valid", "same"):
        raise ConfigError(
            f"padding {padding!r} is not known: valid or same.{did_you_mean(str(padding), ['valid', 'same'])}"
        )
    out, pads = [], []
    for length, k, stride, step in zip(size, kernel, strides, dilation, strict=True):
        reach = (k - 1) * step + 1
        if padding == "valid":
            out.append((length - reach) // stride + 1)
            pads.append((0, 0))
        else:
            out.append(-(-length // stride))
            total = max((out[-1] - 1) * stride + reach - length, 0)
            pads.append((total // 2, total - total // 2))  # the odd pixel goes to the end
    return (out[0], out[1]), (*pads[1], *pads[0])
