"""Says which class a trained network sees in each of a user's pictures."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mnist_cnn.errors import CheckpointError, DataError, one_line, unicode_text
from mnist_cnn.inference import pictures
from mnist_cnn.inference.checkpoint import TrainedNetwork

# Data sets whose images are not digits placed as in MNIST.
_NO_DIGITS = ("fashion_mnist", "kmnist", "cifar10")


@dataclass(frozen=True)
class Prediction:
    """The probability of each class for one picture, or why there is none."""

    file: str
    probabilities: dict[str, float]
    error: str | None = None

    @property
    def digit(self) -> str:
        """The most probable class."""
        return max(self.probabilities, key=lambda name: self.probabilities[name])

    def to_dict(self) -> dict[str, Any]:
        file = unicode_text(self.file)
        if self.error is not None:
            return {"file": file, "error": self.error}
        probability = self.probabilities[self.digit]
        return {"file": file, "digit": self.digit, "probability": probability, "probabilities": self.probabilities}

    def summary(self) -> str:
        """One line with the two most probable classes."""
        first, second = sorted(self.probabilities.items(), key=lambda item: -item[1])[:2]
        return f"{first[0]}  {first[1]:7.2%}   {one_line(self.file)}   (then {second[0]}: {second[1]:.2%})"


@torch.inference_mode()
def predict(trained: TrainedNetwork, paths: list[Path]) -> Iterator[Prediction]:
    """Classify the pictures in these files and folders, one at a time; `-` reads one from standard input.

    CheckpointError if the network does not take images.
    """
    shape = trained.network.input_shape
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise CheckpointError(f"the network takes values of shape {shape}, not images.")
    for path in paths:
        try:
            files = pictures.find(path)
        except DataError as error:
            yield Prediction(str(path), {}, str(error))
            continue
        for file in files:
            yield _predict(trained, file, (shape[0], shape[1], shape[2]))


def _predict(trained: TrainedNetwork, file: Path, shape: tuple[int, int, int]) -> Prediction:
    name = str(file)
    try:
        source = _standard_input() if name == "-" else file
        image = pictures.to_image(pictures.read(source, name), shape, digits=trained.dataset not in _NO_DIGITS)
    except DataError as error:
        shown = one_line(name)
        return Prediction(name, {}, str(error) if str(error).startswith(shown) else f"{shown}: {error}")
    logits = trained.network(trained.preprocessing(image[None]))[0]
    if not logits.isfinite().all():
        reason = "the network's outputs are not finite numbers; its weights or its scaling are out of range"
        return Prediction(name, {}, f"{one_line(name)}: {reason}.")
    return Prediction(name, dict(zip(trained.classes, logits.softmax(0).tolist(), strict=True)))


def _standard_input() -> bytes:
    """All of standard input, up to one byte more than is allowed; DataError if it is closed or can't be read."""
    try:
        return sys.stdin.buffer.read(pictures.MAX_BYTES + 1)
    except (AttributeError, OSError) as error:  # Python has no sys.stdin where it is closed
        raise DataError("standard input can't be read.") from error
