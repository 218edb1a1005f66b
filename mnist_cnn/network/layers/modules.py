"""Torch modules for what Keras computes and torch has no module for.

Tensors are (N, C, H, W), (N, T, F) or (N, F). Source: Keras 3, `keras/src/layers`, unless a class names another.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def channels_last(x: Tensor) -> Tensor:
    """Images (N, C, H, W) in Keras' order, (N, H, W, C); any other tensor unchanged."""
    return x.permute(0, 2, 3, 1) if x.dim() == 4 else x


def channels_first(x: Tensor) -> Tensor:
    """Images (N, H, W, C) in torch's order, (N, C, H, W); any other tensor unchanged."""
    return x.permute(0, 3, 1, 2) if x.dim() == 4 else x


class Flatten(nn.Module):
    """To (N, F), with an image's values in Keras' order: height, width, channel, the last varying fastest."""

    def forward(self, x: Tensor) -> Tensor:
        return channels_last(x).flatten(1)


class Reshape(nn.Module):
    """To a shape as Keras writes it: (F,), (T, F) or (H, W, C), with the values in Keras' order."""

    def __init__(self, target_shape: Sequence[int]) -> None:
        super().__init__()
        self.target_shape = tuple(target_shape)

    def forward(self, x: Tensor) -> Tensor:
        return channels_first(channels_last(x).reshape(-1, *self.target_shape))


class Permute(nn.Module):
    """Reorder the axes, which Keras counts from 1, without the batch and with the channels last."""

    def __init__(self, dims: Sequence[int]) -> None:
        super().__init__()
        self.dims = tuple(dims)

    def forward(self, x: Tensor) -> Tensor:
        return channels_first(channels_last(x).permute(0, *self.dims))


class ChannelLinear(nn.Linear):
    """A linear map of the channels of each pixel: (N, C, H, W) → (N, C', H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return channels_first(super().forward(channels_last(x)))


class GlobalPooling(nn.Module):
    """(N, C, H, W) → (N, C), or (N, C, 1, 1) with `keepdims`: the mean or the maximum of each channel."""

    def __init__(self, reduce: str, keepdims: bool) -> None:
        super().__init__()
        self.reduce, self.keepdims = reduce, keepdims

    def forward(self, x: Tensor) -> Tensor:
        reduce = torch.mean if self.reduce == "mean" else torch.amax
        return reduce(x, dim=(2, 3), keepdim=self.keepdims)


class AveragePoolingSame(nn.Module):
    """Average pooling with `same` padding: as in Keras, the mean of the pixels in a window, without the padding."""

    def __init__(self, pool_size: tuple[int, int], strides: tuple[int, int], pad: tuple[int, int, int, int]) -> None:
        super().__init__()
        self.pool_size, self.strides, self.pad = pool_size, strides, pad

    def forward(self, x: Tensor) -> Tensor:
        # The padding's zeros count in both means, and cancel out.
        pool = partial(F.avg_pool2d, kernel_size=self.pool_size, stride=self.strides)
        return pool(F.pad(x, self.pad)) / pool(F.pad(torch.ones_like(x[:1, :1]), self.pad))


class Rescaling(nn.Module):
    """x · scale + offset."""

    def __init__(self, scale: float, offset: float) -> None:
        super().__init__()
        self.scale, self.offset = scale, offset

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.offset


class BatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch normalisation along `dim`. As in Keras, the moving variance follows the biased variance of the batch.

    PyTorch's follows the unbiased one, n/(n−1) times as large.
    """

    def __init__(self, features: int, eps: float, momentum: float, dim: int = 1) -> None:
        super().__init__(features, eps=eps, momentum=momentum)
        self.dim = dim
        self.num_batches_tracked = None  # only PyTorch's cumulative average needs this count; Keras has none

    def _load_from_state_dict(self, *args: Any) -> None:
        nn.Module._load_from_state_dict(self, *args)  # torch's would add that count to a state_dict without it

    def _check_input_dim(self, x: Tensor) -> None:
        pass

    def forward(self, x: Tensor) -> Tensor:
        if self.dim != 1:
            x = x.movedim(self.dim, 1)
        x = self._normalize(x)
        return x if self.dim == 1 else x.movedim(1, self.dim)

    def follow(self, mean: Tensor, var: Tensor) -> None:
        """Move the moving averages towards a batch's mean and biased variance, both (features,)."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.momentum is not None
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(var, self.momentum)

    def _normalize(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        # What normalises the batch gives its mean and deviation as well; to compute them again takes twice as long.
        # As in Keras, they are in float32 also where x is bfloat16.
        weight: Tensor | None = self.weight  # None where scale is false
        if weight is None and self.bias is not None:  # the gradient of that pair has a wrong shape on GPUs (torch 2.11)
            weight = torch.ones_like(self.bias)
        x, mean, inverse = torch.native_batch_norm(x, weight, self.bias, None, None, True, 0.0, self.eps)
        self.follow(mean.detach(), (inverse.detach().pow(-2) - self.eps).clamp_(min=0))
        return x


class InstanceNorm(nn.Module):
    """keras-contrib's InstanceNormalization: (x − mean) / (std + epsilon) of each image, or of each slice along `dim`.

    Epsilon is added to the standard deviation, not to the variance as in every normalisation of Keras and PyTorch.
    Source: keras_contrib/layers/normalization/instancenormalization.py.
    """

    def __init__(self, shape: tuple[int, ...], dim: int | None, epsilon: float, center: bool, scale: bool) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.over = tuple(d for d in range(1, len(shape) + 1) if d != dim)
        size = [n if d == dim else 1 for d, n in enumerate(shape, start=1)] if dim else [1]
        self.gamma = nn.Parameter(torch.ones(size)) if scale else None
        self.beta = nn.Parameter(torch.zeros(size)) if center else None

    def forward(self, x: Tensor) -> Tensor:
        std, mean = torch.std_mean(x, self.over, correction=0, keepdim=True)
        x = (x - mean) / (std + self.epsilon)
        x = x if self.gamma is None else x * self.gamma
        return x if self.beta is None else x + self.beta


class UnitNormalization(nn.Module):
    """Scale to Euclidean length 1 along `dim`; zeros stay zeros."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=self.dim)


class LSTM(nn.Module):
    """Long short-term memory on (N, T, F): gives (N, T, units) with `return_sequences`, else the last (N, units).

    The weights are Keras': the gates i, f, c, o side by side. torch's LSTM has fixed activations and a second bias.
    Only imported models use it.
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
        inputs = x @ self.kernel
        if self.bias is not None:
            inputs = inputs + self.bias
        units = len(self.recurrent_kernel)
        state = cell = x.new_zeros(x.shape[0], units)
        outputs = []
        for step in inputs.unbind(1):
            i, f, c, o = torch.split(step + state @ self.recurrent_kernel, units, dim=1)
            cell = self.gate(f) * cell + self.gate(i) * self.activation(c)
            state = self.gate(o) * self.activation(cell)
            outputs.append(state)
        return torch.stack(outputs, dim=1) if self.return_sequences else state
