"""What is an image here, and what does a network see of it?"""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Images:
    """Images, uint8 (N, C, H, W), and their classes, int64 (N,)."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class ImageSet:
    """A data set with its official cut into training and test images."""

    name: str
    classes: tuple[str, ...]
    train: Images
    test: Images


@dataclass(frozen=True)
class Preprocessing:
    """(pixel / 255 − mean) / std, per channel. The default gives pixels in [0, 1]."""

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    @classmethod
    def standard(cls, images: Tensor) -> "Preprocessing":
        """Zero mean and unit variance on these images, uint8 (N, C, H, W)."""
        std, mean = zip(*(torch.std_mean(channel.float() / 255) for channel in images.unbind(1)), strict=True)
        return cls(tuple(map(float, mean)), tuple(map(float, std)))

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> "Preprocessing":
        """Read what `plain` wrote; ValueError, TypeError or KeyError where it can't be that."""
        mean, std = (tuple(float(value) for value in plain[key]) for key in ("mean", "std"))
        if len(mean) != len(std) or not all(std):
            raise ValueError("mean and std must be of one length, and no std zero")
        return cls(mean, std)

    def plain(self) -> dict[str, Any]:
        """As primitives, for a checkpoint."""
        return {key: list(values) for key, values in asdict(self).items()}

    def __call__(self, images: Tensor) -> Tensor:
        """Turn uint8 (N, C, H, W) with values 0 … 255 into float32 of the same shape and device."""
        scaled = images.to(torch.float32).div_(255)
        if any(self.mean) or any(std != 1 for std in self.std):
            scaled.sub_(scaled.new_tensor(self.mean).view(-1, 1, 1)).div_(scaled.new_tensor(self.std).view(-1, 1, 1))
        return scaled
