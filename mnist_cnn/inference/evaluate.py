"""Evaluates a trained network on a set of images, at the end of a run and in `mnist-cnn evaluate`.

It always computes in float32 on the CPU and in the same batches, so that a checkpoint has one accuracy and one loss.
The metrics are computed here because importing torchmetrics takes four seconds, twice the rest of `mnist-cnn evaluate`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from mnist_cnn import machine
from mnist_cnn.data.images import Images
from mnist_cnn.errors import CheckpointError, one_line
from mnist_cnn.inference.checkpoint import TrainedNetwork


class ClassScore(NamedTuple):
    """The scores of one class; `support` is its number of images. A ratio without a denominator is 0."""

    name: str
    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True)
class Answer:
    """What the network says about one image; `index` is its position among the evaluated images, from 0."""

    index: int
    true: str
    predicted: str
    probability: float


@dataclass(frozen=True)
class Evaluation:
    """The results on N images of K classes: `probabilities` (N, K) float32 and `labels` (N,) int64.

    `loss` is the mean cross-entropy (negative log-likelihood) in nats.
    """

    dataset: str
    split: str
    classes: tuple[str, ...]
    probabilities: Tensor
    labels: Tensor
    loss: float

    @property
    def total(self) -> int:
        return len(self.labels)

    @cached_property
    def correct(self) -> int:
        """The number of correctly classified images."""
        return int((self.predicted == self.labels).sum())

    @property
    def accuracy(self) -> float:
        return self.correct / self.total

    @cached_property
    def predicted(self) -> Tensor:
        """(N,): the most probable class of each image."""
        return self.probabilities.argmax(1)

    @cached_property
    def wrong(self) -> Tensor:
        """The indices of the misclassified images, in ascending order."""
        return (self.predicted != self.labels).nonzero().flatten()

    @cached_property
    def confusion(self) -> Tensor:
        """(K, K) counts: rows are true classes, columns predicted classes."""
        classes = len(self.classes)
        return (self.labels * classes + self.predicted).bincount(minlength=classes**2).view(classes, classes)

    @cached_property
    def calibration_error(self) -> float:
        """Expected calibration error: the mean gap between probability and accuracy in 15 bins (Guo et al. 2017).

        A probability of exactly 1 falls into a sixteenth bin, as in torchmetrics.
        """
        _, probability, right = self.confidence_bins.unbind(1)
        return float((probability - right).abs().sum()) / self.total

    @cached_property
    def confidence_bins(self) -> Tensor:
        """(16, 3) float64, by the answer's probability: the number of images, the sum of it, and how many are right.

        Fifteen bins of equal width, and one of the images with a probability of exactly 1.
        """
        probability = self.probabilities.max(1).values
        bins = torch.bucketize(probability, torch.linspace(0, 1, 16), right=True) - 1
        facts = torch.stack([torch.ones_like(probability), probability, (self.predicted == self.labels).float()], 1)
        return torch.zeros(16, 3, dtype=torch.float64).index_add(0, bins, facts.double())

    @cached_property
    def per_class(self) -> list[ClassScore]:
        hits, predicted, true = self.confusion.diag(), self.confusion.sum(0), self.confusion.sum(1)
        precision, recall = hits / predicted.clamp(min=1), hits / true.clamp(min=1)
        f1 = 2 * hits / (predicted + true).clamp(min=1)
        columns = (precision.tolist(), recall.tolist(), f1.tolist(), true.tolist())
        return [ClassScore(*row) for row in zip(self.classes, *columns, strict=True)]

    @property
    def macro_f1(self) -> float:
        """The unweighted mean of the F1 of all classes."""
        return sum(score.f1 for score in self.per_class) / len(self.per_class)

    def top_confusions(self, most: int = 5) -> list[tuple[str, str, int]]:
        """The most frequent mistakes as (true, predicted, count)."""
        wrong = self.confusion.clone().fill_diagonal_(0)
        counts, cells = wrong.flatten().sort(descending=True, stable=True)
        found = []
        for count, cell in zip(counts[:most].tolist(), cells[:most].tolist(), strict=True):
            true, predicted = divmod(cell, len(self.classes))
            if count:
                found.append((self.classes[true], self.classes[predicted], count))
        return found

    def mistakes(self, most: int) -> list[Answer]:
        """The `most` mistakes with the highest probability, in descending order."""
        confidence = self.probabilities.max(1).values[self.wrong]
        return self.answers(self.wrong[confidence.argsort(descending=True, stable=True)][:most])

    def least_certain(self, most: int) -> list[Answer]:
        """The `most` answers with the lowest probability, right or wrong, in ascending order."""
        return self.answers(self.probabilities.max(1).values.argsort(stable=True)[:most])

    def answers(self, indices: Tensor) -> list[Answer]:
        """The answers for the images at these indices."""
        return [
            Answer(i, self.classes[self.labels[i]], self.classes[self.predicted[i]], float(self.probabilities[i].max()))
            for i in indices.tolist()
        ]

    def to_dict(self) -> dict[str, Any]:
        return {
            "dataset": self.dataset,
            "split": self.split,
            "accuracy": self.accuracy,
            "loss": self.loss,
            "correct": self.correct,
            "total": self.total,
            "macro_f1": self.macro_f1,
            "ece": self.calibration_error,
            "nll": self.loss,
            "per_class": [score._asdict() for score in self.per_class],
            "top_confusions": [
                {"true": true, "predicted": predicted, "count": count}
                for true, predicted, count in self.top_confusions()
            ],
            "confusion_matrix": self.confusion.tolist(),
        }

    def summary(self) -> str:
        """The results as text for the terminal."""
        width = max(12, *map(len, self.classes))
        lines = [
            f"{self.dataset}, {self.split}: {self.total:,} images",
            f"accuracy  {self.accuracy:.2%}  ({self.correct:,} right, {self.total - self.correct:,} wrong)",
            f"loss      {self.loss:.4f}  (negative log-likelihood)",
            f"ECE       {self.calibration_error:.4f}  (expected calibration error, 15 bins)",
            "",
            f"{'class':<{width}} precision  recall      F1  images",
        ]
        for score in self.per_class:
            lines.append(
                f"{score.name:<{width}} {score.precision:9.2%} {score.recall:7.2%} {score.f1:7.2%} {score.support:7,}"
            )
        confusions = self.top_confusions()
        if confusions:
            lines += ["", "most frequent mistakes"]
            lines += [f"{true} taken for {predicted}: {count}" for true, predicted, count in confusions]
        return "\n".join(lines)


# The views of test-time augmentation: the image itself, and shifted by a pixel in each of eight directions.
VIEWS = sorted(((down, right) for down in (-1, 0, 1) for right in (-1, 0, 1)), key=any)


def evaluate(
    trained: TrainedNetwork,
    images: Images,
    dataset: str,
    split: str,
    views: Sequence[tuple[int, int]] = VIEWS[:1],
) -> Evaluation:
    """Evaluate a network on the images of `split` (test, val or train) of `dataset`.

    With several `views`, shifts (down, right) in pixels, an image's probabilities are the mean over its views.
    CheckpointError if its outputs or its loss are not finite numbers.
    """
    logits = logits_of(trained, images.images, views)
    loss = float(F.cross_entropy(logits, images.labels))
    if not math.isfinite(loss):
        raise _not_finite(trained)
    return Evaluation(dataset, split, trained.classes, logits.softmax(1), images.labels, loss)


@torch.inference_mode()
def logits_of(trained: TrainedNetwork, images: Tensor, views: Sequence[tuple[int, int]] = VIEWS[:1]) -> Tensor:
    """Logits (N, classes) of images (N, C, H, W) with values 0 … 255; of several views, of their mean probability.

    CheckpointError if they are not finite numbers: even finite weights may be too large for float32.
    """
    # Allocated at once: a small tensor kept from each batch would fragment the memory that the next batch needs.
    logits, batch = torch.empty(len(images), len(trained.classes)), trained.network.evaluation_batch
    with machine.threads(trained.network.operations * batch):
        for start in range(0, len(images), batch):
            logits[start : start + batch] = _mean_logits(trained, images[start : start + batch], views)
    if not logits.isfinite().all():
        raise _not_finite(trained)
    return logits


def _not_finite(trained: TrainedNetwork) -> CheckpointError:
    return CheckpointError(
        f"{one_line(trained.model)}: its outputs are not finite numbers, so it can't be used; its weights or its "
        "scaling are out of range."
    )


def _mean_logits(trained: TrainedNetwork, images: Tensor, views: Sequence[tuple[int, int]]) -> Tensor:
    logits = [trained.network(trained.preprocessing(_shifted(images, *view))) for view in views]
    return logits[0] if len(logits) == 1 else torch.stack(logits).log_softmax(2).logsumexp(0) - math.log(len(logits))


def _shifted(images: Tensor, down: int, right: int) -> Tensor:
    """Images (N, C, H, W), shifted by so many pixels, with 0 where they leave a gap."""
    return F.pad(images, (right, -right, down, -down)) if down or right else images
