"""Checks an exported file before it is kept: it must answer as PyTorch does."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from mnist_cnn.data.datasets import DataFiles, MissingFilesError
from mnist_cnn.data.images import Images
from mnist_cnn.data.sources import OWN, Array, kind_of
from mnist_cnn.errors import DataError, UserError
from mnist_cnn.export.program import as_input, image_shape
from mnist_cnn.inference.checkpoint import TrainedNetwork
from mnist_cnn.inference.evaluate import Evaluation, evaluate
from mnist_cnn.inference.images import images_for

TOLERANCE = 1e-5  # of a probability: rounding, in another order of the same sums
_RANDOM = 250  # images if the data set is not available

# From images as a file takes them, uint8 (N, H, W) or (N, H, W, C), to probabilities (N, classes).
Runtime = Callable[[Array], Array]


@dataclass(frozen=True)
class Reference:
    """Images, and the network's answers in PyTorch. The images are random if the data set is `missing`."""

    images: Array
    evaluation: Evaluation
    batch: int
    missing: str | None = None  # why there are no test images

    @property
    def what(self) -> str:
        images = f"{len(self.images):,}"
        return f"{images} random images" if self.missing else f"the {images} test images of {self.evaluation.dataset}"


@dataclass(frozen=True)
class Check:
    """What was compared; `accuracy` is None if the images are random."""

    reference: Reference
    difference: float  # the largest of a probability
    same: int  # images with the same answer
    accuracy: float | None
    images_per_second: float | None = None  # on one core; None if not measured

    def summary(self) -> str:
        """`the 10,000 test images of mnist: the same answers as PyTorch, probabilities within 1e-06, accuracy 99 %`."""
        total = len(self.reference.images)
        same = (
            "the same answers as PyTorch" if self.same == total else f"{self.same:,} of {total:,} answers as in PyTorch"
        )
        near = f"probabilities within {self.difference:.1e}" if self.difference else "equal probabilities"
        accuracy = "" if self.accuracy is None else f", accuracy {self.accuracy:.2%}"
        rate = self.images_per_second
        speed = "" if rate is None else f"; {rate / 1000:,.1f} thousand images/s on one core"
        return f"{self.reference.what}: {same}, {near}{accuracy}{speed}"

    def to_dict(self) -> dict[str, Any]:
        speed = {} if self.images_per_second is None else {"images_per_second": round(self.images_per_second)}
        return {
            "dataset": None if self.reference.missing else self.reference.evaluation.dataset,
            "images": len(self.reference.images),
            "same_answers": self.same,
            "largest_difference": self.difference,
            "accuracy": self.accuracy,
            **speed,
        }


def reference(trained: TrainedNetwork, files: DataFiles) -> Reference:
    """The test images that the network was trained for, or random ones if those are not available.

    DataError if the user's own images, whose place the user has given, can't be used.
    """
    missing = None
    try:
        images = images_for(trained, "test", files)
    except DataError as error:
        if kind_of(files.name) in OWN:
            raise
        images, missing = _random_images(trained), error.reason if isinstance(error, MissingFilesError) else str(error)
    evaluation = evaluate(trained, images, files.name, "test")
    return Reference(as_input(images.images).numpy(), evaluation, trained.network.evaluation_batch, missing)


def compare(answers: Runtime, reference: Reference) -> Check:
    """Compare a file's answers with PyTorch's."""
    batches = range(0, len(reference.images), reference.batch)
    found = np.concatenate([answers(reference.images[start : start + reference.batch]) for start in batches])
    evaluation = reference.evaluation
    right = float((found.argmax(1) == evaluation.labels.numpy()).mean())
    return Check(
        reference,
        float(np.abs(found - evaluation.probabilities.numpy()).max()),
        int((found.argmax(1) == evaluation.predicted.numpy()).sum()),
        None if reference.missing else right,
    )


def require_equal(check: Check, runtime: str) -> Check:
    """The same check; UserError if the file does not answer as PyTorch does."""
    other = len(check.reference.images) - check.same
    if other or not check.difference <= TOLERANCE:
        raise UserError(
            f"{runtime} and PyTorch differ on {check.reference.what}: in {other:,} answers, and by up to "
            f"{check.difference:.1e} in a probability; no file was written."
        )
    return check


def _random_images(trained: TrainedNetwork) -> Images:
    """Random pixels on black: from an empty image to one that is half full."""
    random = torch.Generator().manual_seed(0)
    shape = image_shape(trained)
    count = max(2, min(_RANDOM, 2**27 // (shape[0] * shape[1] * shape[2])))
    images = torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=random)
    images *= torch.rand(images.shape, generator=random) < torch.linspace(0, 0.5, count).view(-1, 1, 1, 1)
    return Images(images, torch.zeros(count, dtype=torch.int64))
