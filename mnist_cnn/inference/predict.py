"""What does a trained network see in a picture?"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mnist_cnn.errors import CheckpointError, DataError
from mnist_cnn.inference import pictures
from mnist_cnn.inference.checkpoint import TrainedNetwork

# Data sets whose pictures are no digits set as MNIST sets them.
_NO_DIGITS = ("fashion_mnist", "kmnist", "cifar10")


@dataclass(frozen=True)
class Prediction:
    """What a picture is taken for: class by class a probability; or why it could not be read."""

    file: str
    probabilities: dict[str, float]
    error: str | None = None

    @property
    def digit(self) -> str:
        """The class of highest probability."""
        return max(self.probabilities, key=lambda name: self.probabilities[name])

    def to_dict(self) -> dict[str, Any]:
        """As primitives, for JSON."""
        if self.error is not None:
            return {"file": self.file, "error": self.error}
        probability = self.probabilities[self.digit]
        return {"file": self.file, "digit": self.digit, "probability": probability, "probabilities": self.probabilities}

    def summary(self) -> str:
        """For people: the two likeliest classes."""
        first, second = sorted(self.probabilities.items(), key=lambda item: -item[1])[:2]
        return f"{first[0]}  {first[1]:7.2%}   {self.file}   (then {second[0]}: {second[1]:.2%})"


@torch.inference_mode()
def predict(trained: TrainedNetwork, paths: list[Path]) -> Iterator[Prediction]:
    """Each picture of these files and folders by itself; `-` is one on standard input."""
    shape = trained.network.input_shape
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise CheckpointError(f"its network takes no pictures, but values of shape {shape}.")
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
        source = sys.stdin.buffer.read(pictures.MAX_BYTES) if name == "-" else file
        picture = pictures.as_trained(pictures.read(source, name), shape, trained.dataset not in _NO_DIGITS)
    except DataError as error:
        return Prediction(name, {}, str(error) if str(error).startswith(name) else f"{name}: {error}")
    probabilities = trained.network(trained.preprocessing(picture[None])).softmax(1)[0].tolist()
    return Prediction(name, dict(zip(trained.classes, probabilities, strict=True)))
