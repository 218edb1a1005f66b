"""What happens inside a network: its first filters, its feature maps of an image, and the saliency of the pixels."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mnist_cnn.network import Network
from mnist_cnn.network.network import Node
from mnist_cnn.network.registry import MERGES

MAX_MAPS = 32  # of a layer
MAX_SIDE = 64  # pixels of a map; larger ones are reduced
COPIES = 32  # noisy copies of the image, over which a saliency map is averaged
NOISE = 0.15  # their standard deviation, as a fraction of the range of the image's values

_WINDOWS = ("Conv2D", "DepthwiseConv2D", "SeparableConv2D", "MaxPooling2D", "AveragePooling2D")


class Filters(NamedTuple):
    """The weights of the first layer that has any, as images: (filters, C, height, width)."""

    layer: str
    weights: Tensor


class FeatureMaps(NamedTuple):
    """The output of a layer for an image, after its normalisation and activation: at most MAX_MAPS maps."""

    layers: str
    maps: Tensor  # (C, H, W), at most MAX_SIDE high and wide
    shape: tuple[int, ...]  # of the whole output, (C, H, W)


def first_filters(network: Network) -> Filters | None:
    """The filters of the first convolution, or the weights of a first dense layer, which sees the whole image.

    None if the first layer with weights is of another kind, or if the inputs of a dense layer are not the values of the
    image in their order.
    """
    for index, node in enumerate(network.nodes):
        modules = [network.get_submodule(part) for part in node.parts]
        weighted = next((module for module in modules if isinstance(module, nn.Conv2d | nn.Linear)), None)
        if isinstance(weighted, nn.Conv2d):
            return Filters(_name(index, node), weighted.weight)
        if isinstance(weighted, nn.Linear):
            channels, height, width = network.input_shape
            flat = network.nodes[index - 1].kind == "Flatten" and weighted.in_features == channels * height * width
            # Flatten has the channel vary fastest, as Keras does.
            images = weighted.weight.view(-1, height, width, channels).permute(0, 3, 1, 2) if flat else None
            return None if images is None else Filters(_name(index, node), images)
        if node.kind not in ("Rescaling", "Flatten", "ZeroPadding2D", "Dropout", "BatchNormalization"):
            return None
    return None


@torch.no_grad()
def feature_maps(network: Network, x: Tensor) -> Iterator[FeatureMaps]:
    """The maps that each convolution, pooling and merge gives for a preprocessed image (1, C, H, W), in order.

    They include what the following layers of the same shape do, such as batch normalisation and ReLU.
    """
    shown: FeatureMaps | None = None
    for index, (node, output) in enumerate(zip(network.nodes, network.outputs(x), strict=True)):
        continues = shown is not None and node.sources == (index,) and tuple(output.shape[1:]) == shown.shape
        if node.kind in _WINDOWS or node.kind in MERGES or not continues:
            if shown:
                yield shown
            shown = None
        if output.dim() == 4 and (shown or node.kind in _WINDOWS or node.kind in MERGES):
            layers = f"{shown.layers}, {node.kind}" if shown else _name(index, node)
            maps = _reduced(_activated(network, index, output)[0, :MAX_MAPS])
            shown = FeatureMaps(layers, maps, tuple(output.shape[1:]))
    if shown:
        yield shown


def saliency(network: Network, x: Tensor, target: int) -> Tensor:
    """How much each pixel of a preprocessed image (1, C, H, W) would raise the score of class `target`, (H, W).

    The gradient of the class' logit (Simonyan et al. 2013), averaged over noisy copies of the image (SmoothGrad,
    Smilkov et al. 2017) and summed over the channels. The noise is the same each time.
    """
    noise = NOISE * float(x.max() - x.min())
    generator = torch.Generator().manual_seed(0)
    batch = max(1, network.evaluation_batch // 16)  # a gradient needs the outputs of all layers at once
    total = torch.zeros(x.shape[1:])
    for start in range(0, COPIES, batch):
        copies = min(batch, COPIES - start)
        noisy = x + noise * torch.randn(copies, *x.shape[1:], generator=generator)
        with torch.enable_grad():
            score = network(noisy.requires_grad_())[:, target].sum()
            total += torch.autograd.grad(score, noisy)[0].sum(0)
    return total.sum(0) / COPIES


def _name(index: int, node: Node) -> str:
    return f"layer {index}: {node.kind}"


def _activated(network: Network, index: int, output: Tensor) -> Tensor:
    """The output of a node with its ReLU, even if the network computes that only after the next pooling."""
    following = network.nodes[index + 1] if index + 1 < len(network.nodes) else None
    for part in following.parts if following and following.shared is None else ():
        if part.startswith(f"{index}_"):
            output = network.get_submodule(part)(output)
    return output


def _reduced(maps: Tensor) -> Tensor:
    height, width = (min(side, MAX_SIDE) for side in maps.shape[1:])
    return F.adaptive_avg_pool2d(maps, (height, width))
