"""Networks with random weights, as if they had been trained, for the tests of what is made of them."""

from collections.abc import Sequence
from typing import Any

import torch

from mnist_cnn.data.images import Preprocessing
from mnist_cnn.inference.checkpoint import TrainedNetwork
from mnist_cnn.network import build_network
from mnist_cnn.network.layers.modules import BatchNorm


def trained(
    layers: Sequence[Any],
    shape: tuple[int, int, int] = (1, 28, 28),
    classes: Sequence[str] = tuple("0123456789"),
    dataset: str = "my own",
    preprocessing: Preprocessing | None = None,
    model: str = "made up",
) -> TrainedNetwork:
    """A network of these layers, which must end in a value for each class."""
    torch.manual_seed(0)
    network = build_network(layers, shape, len(classes)).eval().requires_grad_(False)
    for module in network.modules():
        if isinstance(module, BatchNorm):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
    for name, parameter in network.named_parameters():
        if parameter.dim() == 1:  # a bias, or the scale of a normalisation; both would be all the same
            parameter.uniform_(0.5, 1.5) if name.endswith("weight") else parameter.normal_(0, 0.2)
    return TrainedNetwork(
        network,
        preprocessing or Preprocessing((0.13,), (0.31,)),
        tuple(classes),
        model,
        dataset,
        {},
        {"seed": 0},
        {},
        1,
    )
