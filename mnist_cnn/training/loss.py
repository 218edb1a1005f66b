"""What training minimises: the cross-entropy with the labels and, where one is named, with the answers of a teacher."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mnist_cnn.config import Config, written
from mnist_cnn.data.images import Preprocessing
from mnist_cnn.errors import ConfigError
from mnist_cnn.inference import checkpoint
from mnist_cnn.inference.checkpoint import TrainedNetwork
from mnist_cnn.network import Network
from mnist_cnn.network.arguments import show


class Teacher:
    """A trained network whose answers another one learns to give (Hinton, Vinyals and Dean 2015, arXiv:1503.02531).

    It is not a submodule of the Classifier, so that checkpoints don't hold it.
    """

    def __init__(
        self, trained: TrainedNetwork, preprocessing: Preprocessing, weight: float, temperature: float
    ) -> None:
        """For images that are scaled by `preprocessing`; `weight` is the share of its answers in the loss."""
        self.network = trained.network.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        self.weight, self.temperature = weight, temperature
        self._own, self._given = trained.preprocessing, preprocessing

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Its logits (N, classes) of scaled images (N, C, H, W)."""
        self.network.to(images.device)
        logits: Tensor = self.network(images if self._own == self._given else self._own(self._given.undo(images)))
        return logits

    def loss(self, images: Tensor, logits: Tensor) -> Tensor:
        """The mean divergence of softened logits (N, classes) from its own; as strong at any temperature."""
        own, given = (F.log_softmax(x / self.temperature, 1) for x in (self(images).float(), logits.float()))
        return F.kl_div(given, own, reduction="batchmean", log_target=True) * self.temperature**2


class TrainingLoss:
    """The loss of a training batch. Without smoothing and teacher it is the mean cross-entropy, to the last bit."""

    def __init__(self, label_smoothing: float = 0.0, teacher: Teacher | None = None) -> None:
        self.label_smoothing, self.teacher = label_smoothing, teacher

    def __call__(self, images: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        """For scaled images (N, C, H, W), logits (N, classes) and classes (N,); a scalar, in nats."""
        loss = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        if self.teacher is None:
            return loss
        weight = self.teacher.weight
        return (1 - weight) * loss + weight * self.teacher.loss(images, logits)

    def __deepcopy__(self, memo: dict[int, Any]) -> "TrainingLoss":
        return self  # a copy of the module, such as that of the averaged weights, needs no teacher of its own


def build_loss(config: Config, network: Network, preprocessing: Preprocessing) -> TrainingLoss:
    """The configured loss for a network whose images are scaled by `preprocessing`.

    CheckpointError if the teacher can't be used, ConfigError if its images or its number of classes differ.
    """
    source = config.distill["from"]
    if source is None:
        return TrainingLoss(config.loss.label_smoothing)
    trained = checkpoint.load(source)
    for what, its, ours in (
        ("takes images", trained.network.input_shape, network.input_shape),
        ("gives outputs", trained.network.output_shape, network.output_shape),
    ):
        if its != ours:
            raise ConfigError(
                f"{written('distill.from', source)}: the teacher {what} of {show(its)}, the network of {show(ours)}."
            )
    teacher = Teacher(trained, preprocessing, config.distill["weight"], config.distill["temperature"])
    return TrainingLoss(config.loss.label_smoothing, teacher)
