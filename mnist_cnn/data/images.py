"""Image tensors with their classes, and the preprocessing that scales them for a network."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Images:
    """Images, uint8 (N, C, H, W), and their classes, int64 (N,)."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: Tensor) -> "Images":
        """The images at these rising indices; where they are consecutive, a view of the same memory."""
        if not len(indices):
            return Images(self.images[:0], self.labels[:0])
        first, last = int(indices[0]), int(indices[-1])
        part = slice(first, last + 1) if last - first == len(indices) - 1 else indices
        return Images(self.images[part], self.labels[part])

    def to(self, device: torch.device) -> "Images":
        return Images(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True)
class Preprocessing:
    """(pixel / scale − mean) / std, per channel. The default gives pixels in [0, 1].

    With a `size`, images of another height and width are first brought to it: padded with the background (0) where it
    is a little larger, as LeNet's 32×32 is, and resampled otherwise.
    """

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    scale: float = 255.0
    size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        """Raise ValueError for numbers that can't scale an image."""
        if len(self.mean) != len(self.std) or not self.mean:
            raise ValueError("mean and std must be of one length")
        if not all(map(math.isfinite, (*self.mean, *self.std, self.scale))) or not all((*self.std, self.scale)):
            raise ValueError("mean, std and scale must be finite, and no std or scale zero")
        if self.size is not None and min(self.size) < 1:
            raise ValueError("size must be positive")

    @classmethod
    def standard(cls, images: Tensor) -> "Preprocessing":
        """The one that gives these images, uint8 (N, C, H, W), zero mean and unit variance in each channel.

        A channel that is the same everywhere only gets zero mean.
        """
        std, mean = zip(*(torch.std_mean(channel.float() / 255) for channel in images.unbind(1)), strict=True)
        return cls(tuple(map(float, mean)), tuple(float(value) or 1.0 for value in std))

    def to_dict(self) -> dict[str, Any]:
        """As lists and numbers, for a checkpoint."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    def undo(self, scaled: Tensor) -> Tensor:
        """The values 0 … 255 that images (N, C, H, W) had before they were scaled; their size stays as it is."""
        std, mean = (scaled.new_tensor(values).view(-1, 1, 1) for values in (self.std, self.mean))
        return (scaled * std + mean) * self.scale

    def formula(self) -> str:
        """`x / 255`, or `(x / 255 − 0.1307) / 0.3081`, with a number for each channel, to be printed."""
        scaled = "x" if self.scale == 1 else f"x / {self.scale:g}"
        if not any(self.mean) and all(std == 1 for std in self.std):
            return scaled
        mean, std = (", ".join(f"{value:g}" for value in values) for values in (self.mean, self.std))
        return f"({scaled} - {mean}) / {std}"

    def __call__(self, images: Tensor) -> Tensor:
        """Scale images (N, C, H, W) with values 0 … 255; the result is float32, on the same device."""
        scaled = images.to(torch.float32)
        if self.size is not None and self.size != tuple(images.shape[2:]):
            scaled = _fit(scaled, self.size)
        if self.scale != 1:
            scaled = scaled.div_(self.scale)
        if any(self.mean) or any(std != 1 for std in self.std):
            scaled.sub_(scaled.new_tensor(self.mean).view(-1, 1, 1)).div_(scaled.new_tensor(self.std).view(-1, 1, 1))
        return scaled


def _fit(images: Tensor, size: tuple[int, int]) -> Tensor:
    missing = [want - have for want, have in zip(size, images.shape[2:], strict=True)]
    if all(0 <= gap <= 8 for gap in missing):
        (top, left), (bottom, right) = ([gap // 2 for gap in missing], [gap - gap // 2 for gap in missing])
        return F.pad(images, (left, right, top, bottom))
    return F.interpolate(images, size, mode="bilinear", antialias=True)
