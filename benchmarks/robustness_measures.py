"""Measures one network's calibration, and how far several networks agree with each other."""

from itertools import combinations
from typing import NamedTuple

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.nn import functional as F

from mnist_cnn import machine
from mnist_cnn.data.images import Images
from mnist_cnn.inference.checkpoint import TrainedNetwork
from mnist_cnn.inference.evaluate import Evaluation

_SHARPEST, _SOFTEST = 0.05, 20.0  # temperatures; a network that makes no mistake has no best one


class Calibration(NamedTuple):
    """Negative log-likelihood (nats) and expected calibration error on test images, before and after scaling."""

    temperature: float
    nll: float
    scaled_nll: float
    ece: float
    scaled_ece: float


@torch.inference_mode()
def logits_of(trained: TrainedNetwork, images: Images) -> Tensor:
    """The logits (N, K) of each image, float32, computed in the batches of `mnist-cnn evaluate`."""
    batch = trained.network.evaluation_batch
    logits = torch.empty(len(images), len(trained.classes))
    with machine.threads(trained.network.operations * batch):
        for start in range(0, len(images), batch):
            part = images.images[start : start + batch]
            logits[start : start + batch] = trained.network(trained.preprocessing(part))
    return logits


def nll(logits: Tensor, labels: Tensor, temperature: float = 1.0) -> float:
    """The mean negative log-likelihood, in nats, with logits (N, K) divided by the temperature."""
    return float(F.cross_entropy(logits.double() / temperature, labels))


def ece(logits: Tensor, labels: Tensor, temperature: float = 1.0) -> float:
    """The expected calibration error in 15 bins, as `mnist-cnn evaluate` computes it."""
    probabilities = (logits.double() / temperature).softmax(1).float()
    return Evaluation("", "", (), probabilities, labels, 0.0).calibration_error


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature with the smallest negative log-likelihood on these, the validation images (Guo et al. 2017)."""
    # The likelihood is convex in 1 / temperature, so a search in an interval finds the one minimum.
    found = minimize_scalar(lambda inverse: nll(logits, labels, 1 / inverse), bounds=(1 / _SOFTEST, 1 / _SHARPEST))
    return min((1.0, 1 / float(found.x)), key=lambda temperature: nll(logits, labels, temperature))


def calibration(val: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]) -> Calibration:
    """From logits (N, K) and labels (N,): the temperature fitted on `val`, everything else measured on `test`."""
    temperature = fit_temperature(*val)
    return Calibration(temperature, nll(*test), nll(*test, temperature), ece(*test), ece(*test, temperature))


def unanimous(predicted: Tensor) -> float:
    """The fraction of N images that all networks give the same class, from the classes (networks, N)."""
    return float((predicted == predicted[0]).all(0).double().mean())


def pairwise_agreement(predicted: Tensor) -> float:
    """The fraction of N images that two networks give the same class, as the mean over all pairs of (networks, N).

    ValueError for fewer than two networks.
    """
    pairs = [float((one == other).double().mean()) for one, other in combinations(predicted, 2)]
    if not pairs:
        raise ValueError("agreement takes two networks or more.")
    return sum(pairs) / len(pairs)


def always_wrong(predicted: Tensor, labels: Tensor) -> Tensor:
    """The rising indices of the images that no network classifies correctly, from (networks, N) and (N,)."""
    return (predicted != labels).all(0).nonzero().flatten()
