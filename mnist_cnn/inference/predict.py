"""Says which class a trained network sees in each of a user's pictures."""

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mnist_cnn import machine
from mnist_cnn.errors import CheckpointError, DataError, one_line, unicode_text
from mnist_cnn.inference import pictures
from mnist_cnn.inference.checkpoint import TrainedNetwork
from mnist_cnn.inference.description import MAX_INPUT

# Data sets whose images are not digits placed as in MNIST.
_NO_DIGITS = ("fashion_mnist", "kmnist", "cifar10")
# The most pictures that go through the network together; more would only delay results.
_BATCH = 64


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
    """Classify the pictures in these files and folders, in their order; `-` reads one from standard input.

    They go through the network together, first one, then two, four, and so on, so that the first results come at once
    and none waits for more pictures than were classified before it. A probability may differ by rounding, about 1e-6,
    from that of the same picture in another batch. CheckpointError if the network does not take images.
    """
    shape = trained.network.input_shape
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise CheckpointError(f"the network takes values of shape {shape}, not images.")
    digits = trained.dataset not in _NO_DIGITS
    most = max(1, min(_BATCH, trained.network.evaluation_batch, MAX_INPUT // math.prod(shape)))
    batch, waiting = 1, list[_Picture]()
    for file, error in _files(paths):
        if file == "-":  # it takes as long to read as another program takes to write it
            yield from _classify(trained, waiting)
            waiting = []
        waiting.append(_Picture(file, None, error) if error else _read(file, (shape[0], shape[1], shape[2]), digits))
        if len(waiting) >= batch:
            yield from _classify(trained, waiting)
            batch, waiting = min(2 * batch, most), []
    yield from _classify(trained, waiting)


class _Picture(NamedTuple):
    """A picture that waits to be classified: its image, uint8 (C, H, W), or why there is none."""

    file: str
    image: Tensor | None
    error: str | None = None


def _files(paths: Sequence[Path]) -> Iterator[tuple[str, str | None]]:
    """The name of each picture, in order, or that of a folder and why it has none."""
    for path in paths:
        try:
            files = pictures.find(path)
        except DataError as error:
            yield str(path), str(error)
        else:
            yield from ((str(file), None) for file in files)


def _read(file: str, shape: tuple[int, int, int], digits: bool) -> _Picture:
    shown = one_line(file)
    try:
        source = _standard_input() if file == "-" else Path(file)
        return _Picture(file, pictures.to_image(pictures.read(source, file), shape, digits))
    except DataError as error:
        return _Picture(file, None, str(error) if str(error).startswith(shown) else f"{shown}: {error}")
    except MemoryError:
        return _Picture(file, None, f"{shown}: there is not enough memory to read it.")


def _classify(trained: TrainedNetwork, waiting: Sequence[_Picture]) -> Iterator[Prediction]:
    """The predictions for these pictures, computed as one batch."""
    images = [picture.image for picture in waiting if picture.image is not None]
    results = iter(_probabilities(trained, torch.stack(images)) if images else ())
    for file, image, error in waiting:
        probabilities = next(results) if image is not None else None
        if probabilities is not None:
            yield Prediction(file, dict(zip(trained.classes, probabilities, strict=True)))
            continue
        reason = "the network's outputs are not finite numbers; its weights or its scaling are out of range"
        yield Prediction(file, {}, error or f"{one_line(file)}: {reason}.")


def _probabilities(trained: TrainedNetwork, images: Tensor) -> list[list[float] | None]:
    """The probabilities of the classes for each image (N, C, H, W); None where the outputs are not finite."""
    with machine.threads(trained.network.operations * len(images)):
        logits = trained.network(trained.preprocessing(images))
    finite, probabilities = logits.isfinite().all(1).tolist(), logits.softmax(1).tolist()
    return [row if good else None for row, good in zip(probabilities, finite, strict=True)]


def _standard_input() -> bytes:
    """All of standard input, up to one byte more than is allowed; DataError if it is closed or can't be read."""
    try:
        return sys.stdin.buffer.read(pictures.MAX_BYTES + 1)
    except (AttributeError, OSError) as error:  # Python has no sys.stdin where it is closed
        raise DataError("standard input can't be read.") from error
