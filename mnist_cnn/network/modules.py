"""What does Keras compute that torch does not have ready? Initialisers, activations, padding and a few modules.

Tensors are (N, C, H, W), (N, T, F) or (N, F). Sources: Keras 3, `keras/src/{initializers,activations,layers}`.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial, reduce
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


def channels_last(x: Tensor) -> Tensor:
    """An image batch (N, C, H, W) as Keras has it, (N, H, W, C); anything else as it is."""
    return x.permute(0, 2, 3, 1) if x.dim() == 4 else x


def channels_first(x: Tensor) -> Tensor:
    """And back."""
    return x.permute(0, 3, 1, 2) if x.dim() == 4 else x


class Flatten(nn.Module):
    """To (N, F), an image in Keras' order: H, W, C, in which channels vary fastest."""

    def forward(self, x: Tensor) -> Tensor:
        """Flatten all but the batch."""
        return channels_last(x).flatten(1)


class Reshape(nn.Module):
    """To a shape as Keras writes it, (F,), (T, F) or (H, W, C), read and written in Keras' order."""

    def __init__(self, target_shape: Sequence[int]) -> None:
        super().__init__()
        self.target_shape = tuple(target_shape)

    def forward(self, x: Tensor) -> Tensor:
        """Reshape all but the batch."""
        return channels_first(channels_last(x).reshape(-1, *self.target_shape))


class Permute(nn.Module):
    """Keras' axes, counted from 1 without the batch, in another order."""

    def __init__(self, dims: Sequence[int]) -> None:
        super().__init__()
        self.dims = tuple(dims)

    def forward(self, x: Tensor) -> Tensor:
        """Permute all but the batch."""
        return channels_first(channels_last(x).permute(0, *self.dims))


class ChannelLinear(nn.Linear):
    """A linear map of each pixel's channels: (N, C, H, W) → (N, C', H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        """Map every pixel."""
        return channels_first(super().forward(channels_last(x)))


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
    """Batch normalisation along `dim`, whose moving variance follows the batch's own, as in Keras.

    PyTorch's follows n/(n−1) times it.
    """

    def __init__(self, features: int, eps: float, momentum: float, dim: int = 1) -> None:
        super().__init__(features, eps=eps, momentum=momentum)
        self.dim = dim

        self.num_batches_tracked = None  # only PyTorch's cumulative average needs it; Keras has no such count

    def _load_from_state_dict(self, *args: Any) -> None:
        nn.Module._load_from_state_dict(self, *args)  # torch's own would add that count to what was saved without it

    def _check_input_dim(self, x: Tensor) -> None:
        pass

    def forward(self, x: Tensor) -> Tensor:
        """Normalise over all dimensions but `dim`."""
        if self.dim != 1:
            x = x.movedim(self.dim, 1)
        x = self._normalize(x)
        return x if self.dim == 1 else x.movedim(1, self.dim)

    def _normalize(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.momentum is not None
        with torch.no_grad():
            var, mean = torch.var_mean(x, [d for d in range(x.dim()) if d != 1], correction=0)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var, self.momentum)
        backends = torch.backends.cudnn.enabled
        return torch.batch_norm(x, self.weight, self.bias, None, None, True, 0.0, self.eps, backends)


class InstanceNorm(nn.Module):
    """keras-contrib's InstanceNormalization: (x − mean) / (std + epsilon) of each image, or of each slice along `dim`.

    Source: keras_contrib/layers/normalization/instancenormalization.py. Epsilon stands outside of the root there,
    unlike in every normalisation of Keras and PyTorch.
    """

    def __init__(self, shape: tuple[int, ...], dim: int | None, epsilon: float, center: bool, scale: bool) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.over = tuple(d for d in range(1, len(shape) + 1) if d != dim)
        size = [n if d == dim else 1 for d, n in enumerate(shape, start=1)] if dim else [1]
        self.gamma = nn.Parameter(torch.ones(size)) if scale else None
        self.beta = nn.Parameter(torch.zeros(size)) if center else None

    def forward(self, x: Tensor) -> Tensor:
        """Normalise each image."""
        std, mean = torch.std_mean(x, self.over, correction=0, keepdim=True)
        x = (x - mean) / (std + self.epsilon)
        x = x if self.gamma is None else x * self.gamma
        return x if self.beta is None else x + self.beta


class UnitNormalization(nn.Module):
    """To length 1 along `dim`."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        """Divide by the Euclidean norm; zeros stay zeros."""
        return F.normalize(x, dim=self.dim)


class LSTM(nn.Module):
    """Long short-term memory on (N, T, F), with Keras' weights: the gates i, f, c, o beside each other.

    torch's own has fixed activations and a second bias, which Keras' has not.
    """

    def __init__(
        self, features: int, units: int, activation: nn.Module, gate: nn.Module, use_bias: bool, return_sequences: bool
    ) -> None:
        super().__init__()
        self.activation, self.gate, self.return_sequences = activation, gate, return_sequences
        self.kernel = nn.Parameter(torch.empty(features, 4 * units))
        self.recurrent_kernel = nn.Parameter(torch.empty(units, 4 * units))
        nn.init.orthogonal_(self.recurrent_kernel)
        forget_open = torch.zeros(4, units).index_fill_(0, torch.tensor([1]), 1.0)  # Keras' unit_forget_bias
        self.bias = nn.Parameter(forget_open.flatten()) if use_bias else None

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, units) with `return_sequences`, else the last step's (N, units)."""
        inputs = x @ self.kernel
        if self.bias is not None:
            inputs = inputs + self.bias
        units = len(self.recurrent_kernel)
        state = cell = x.new_zeros(len(x), units)
        outputs = []
        for step in inputs.unbind(1):
            i, f, c, o = torch.split(step + state @ self.recurrent_kernel, units, dim=1)
            cell = self.gate(f) * cell + self.gate(i) * self.activation(c)
            state = self.gate(o) * self.activation(cell)
            outputs.append(state)
        return torch.stack(outputs, dim=1) if self.return_sequences else state


class CappedReLU(nn.Module):
    """Keras' ReLU in full: `max_value` at the top, x from `threshold` on, and `negative_slope` below that."""

    def __init__(self, max_value: float | None, negative_slope: float, threshold: float) -> None:
        super().__init__()
        self.max_value, self.negative_slope, self.threshold = max_value, negative_slope, threshold

    def forward(self, x: Tensor) -> Tensor:
        """Cap every value."""
        x = torch.where(x >= self.threshold, x, self.negative_slope * (x - self.threshold))
        return x if self.max_value is None else x.clamp(max=self.max_value)


class Concatenate(nn.Module):
    """Several tensors beside each other, along `dim`."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: Sequence[Tensor]) -> Tensor:
        """Concatenate."""
        return torch.cat(list(x), self.dim)


# Keras' layers that merge tensors of one shape value by value
ELEMENTWISE: dict[str, Callable[[Sequence[Tensor]], Tensor]] = {
    "Add": lambda x: reduce(torch.add, x),
    "Subtract": lambda x: reduce(torch.sub, x),
    "Multiply": lambda x: reduce(torch.mul, x),
    "Average": lambda x: reduce(torch.add, x) / len(x),
    "Maximum": lambda x: reduce(torch.maximum, x),
    "Minimum": lambda x: reduce(torch.minimum, x),
}


class Elementwise(nn.Module):
    """One of ELEMENTWISE."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Sequence[Tensor]) -> Tensor:
        """Merge."""
        return ELEMENTWISE[self.kind](x)


class HardSigmoidKeras2(nn.Module):
    """0.2·x + 0.5 between 0 and 1: what Keras 1 and 2 called hard_sigmoid. Keras 3's, and torch's, has slope 1/6."""

    def forward(self, x: Tensor) -> Tensor:
        """Squash every value."""
        return (0.2 * x + 0.5).clamp(0, 1)


class Exponential(nn.Module):
    """e to the power of x."""

    def forward(self, x: Tensor) -> Tensor:
        """Take the exponential of every value."""
        return x.exp()


class Log(nn.Module):
    """The natural logarithm: of probabilities, logits that a softmax turns back into them, brought to the sum of 1."""

    def forward(self, x: Tensor) -> Tensor:
        """Take the logarithm of every value, 0 being the smallest positive number."""
        return x.clamp(min=torch.finfo(x.dtype).tiny).log()


# keras.activations, by their names, and `log`; `linear` is no module at all
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
