"""Says which digit, number or other class a trained network sees in each of a user's pictures."""

import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from mnist_cnn import machine
from mnist_cnn.data import reading
from mnist_cnn.data.sources import DIGITS, OWN, kind_of
from mnist_cnn.errors import CheckpointError, DataError, one_line, unicode_text
from mnist_cnn.inference.checkpoint import TrainedNetwork
from mnist_cnn.inference.description import MAX_INPUT
from mnist_cnn.inference.pictures.prepare import MNIST_SIZE, Box, Placing, Preparing, Seen, to_images

# Data sets whose images are not digits placed as in MNIST.
_NO_DIGITS = ("fashion_mnist", "kmnist", "cifar10")
# The most images that go through the network together; more would only delay results.
_BATCH = 64


@dataclass(frozen=True)
class Digit:
    """One digit: the probability of each class, and its box (left, top, right, bottom) in pixels of the picture."""

    probabilities: dict[str, float]
    box: Box
    image: Tensor = field(compare=False, repr=False)  # what the network saw: uint8 (C, H, W)

    @property
    def name(self) -> str:
        """The most probable class."""
        return max(self.probabilities, key=lambda name: self.probabilities[name])

    @property
    def probability(self) -> float:
        return self.probabilities[self.name]

    def to_dict(self) -> dict[str, Any]:
        return {"digit": self.name, "probability": self.probability, "box": list(self.box)}


@dataclass(frozen=True)
class Prediction:
    """What one picture, or one line of several in it, shows, or why there is no answer."""

    file: str
    digits: tuple[Digit, ...] = ()
    error: str | None = None
    line: int | None = None  # from 1, where a picture has several lines

    @property
    def digit(self) -> str:
        """The most probable class, or the most probable class of each digit of a number."""
        return "".join(digit.name for digit in self.digits)

    @property
    def probability(self) -> float:
        """The probability that all digits are right, if each is right or wrong independently of the others."""
        return math.prod(digit.probability for digit in self.digits)

    def to_dict(self) -> dict[str, Any]:
        found: dict[str, Any] = {"file": unicode_text(self.file)}
        if self.error is not None:
            return {**found, "error": self.error}
        if self.line is not None:
            found["line"] = self.line
        found |= {"digit": self.digit, "probability": self.probability}
        if len(self.digits) == 1:
            return {**found, "probabilities": self.digits[0].probabilities}
        found["probabilities"] = [digit.probabilities for digit in self.digits]
        return {**found, "digits": [digit.to_dict() for digit in self.digits]}

    def summary(self) -> str:
        """One line: the answer, its probability, the file, and the second choice or the probability of each digit."""
        if len(self.digits) == 1:
            other, probability = sorted(self.digits[0].probabilities.items(), key=lambda item: -item[1])[1]
            rest = f"then {other}: {probability:.2%}"
        else:
            rest = ", ".join(f"{digit.name}: {digit.probability:.2%}" for digit in self.digits)
        where = "" if self.line is None else f", line {self.line}"
        return f"{self.digit}  {self.probability:7.2%}   {one_line(self.file)}{where}   ({rest})"


@torch.inference_mode()
def predict(
    trained: TrainedNetwork, pictures: Sequence[Path | Image.Image], placing: Placing = "auto"
) -> Iterator[Prediction]:
    """Classify pictures, and those in files and folders, in their order; `-` reads one from standard input.

    They go through the network together, first one, then two, four, and so on, so that the first results come at once
    and none waits for more pictures than came before it. A probability may differ by rounding, about 1e-6,
    from that of the same picture in another batch. CheckpointError if the network does not take images, or if digits
    are to be placed for a network that does not take grey digits.
    """
    wanted, how = how_to_prepare(trained, placing)
    batch, waiting = 1, list[_Picture]()
    for file, opened, error in _files(pictures):
        if file == "-":  # it takes as long to read as another program takes to write it
            yield from _classify(trained, waiting)
            waiting = []
        waiting.append(_Picture(file, [], error) if error else _read(file, opened, wanted, how))
        if len(waiting) >= batch:
            yield from _classify(trained, waiting)
            batch, waiting = min(2 * batch, _batch(trained)), []
    yield from _classify(trained, waiting)


def takes_whole_pictures(trained: TrainedNetwork) -> bool:
    """Whether a network gets a whole picture, because it does not know digits placed as in MNIST."""
    is_own = kind_of(trained.dataset) in OWN and trained.classes != DIGITS
    return is_own or trained.dataset in _NO_DIGITS or trained.network.input_shape[0] != 1


def how_to_prepare(trained: TrainedNetwork, placing: Placing) -> tuple[tuple[int, int, int], Preparing]:
    """The shape of the images that pictures become for this network, and how; raises what `predict` does."""
    shape = trained.network.input_shape
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise CheckpointError(f"the network takes values of shape {shape}, not images.")
    if takes_whole_pictures(trained):
        if placing == "fit":
            raise CheckpointError("--fit: the network does not take digits in grey, only whole pictures.")
        placing = "as-is"
    how: Preparing = "unchanged" if placing == "as-is" and kind_of(trained.dataset) in OWN else placing
    if placing != "as-is" and trained.preprocessing.size is not None:
        shape = (1, *MNIST_SIZE)  # as in training: the preprocessing brings it to the network's size
    return (shape[0], shape[1], shape[2]), how


class _Picture(NamedTuple):
    """A picture that waits to be classified: the images of its digits, line by line, or why there are none."""

    file: str
    lines: list[list[Seen]]
    error: str | None = None


def _files(pictures: Sequence[Path | Image.Image]) -> Iterator[tuple[str, Image.Image | None, str | None]]:
    """The name of each picture, and the picture itself if it is open; or a folder's name and why it has no picture."""
    for number, picture in enumerate(pictures, 1):
        if isinstance(picture, Image.Image):
            yield str(getattr(picture, "filename", "") or f"picture {number}"), picture, None
            continue
        try:
            files = reading.find(picture)
        except DataError as error:
            yield str(picture), None, str(error)
        else:
            yield from ((str(file), None, None) for file in files)


def _read(file: str, opened: Image.Image | None, shape: tuple[int, int, int], how: Preparing) -> _Picture:
    try:
        with naming(file):
            picture = read_picture(file) if opened is None else reading.upright(opened)
            return _Picture(file, to_images(picture, shape, how))
    except DataError as error:
        return _Picture(file, [], str(error))


def read_picture(file: str) -> Image.Image:
    """Read a picture file as upright RGBA, or with `-` standard input; DataError if it can't be read."""
    return reading.read(_standard_input() if file == "-" else Path(file), file)


@contextmanager
def naming(file: str) -> Iterator[None]:
    """Make every error of reading or preparing a picture a DataError that begins with the name of its file."""
    shown = one_line(file)
    try:
        yield
    except DataError as error:
        raise DataError(str(error) if str(error).startswith(shown) else f"{shown}: {error}") from error
    except MemoryError as error:
        raise DataError(f"{shown}: there is not enough memory to read it.") from error


def _batch(trained: TrainedNetwork) -> int:
    """The most images that go through the network together."""
    size = math.prod(trained.network.input_shape)
    return max(1, min(_BATCH, trained.network.evaluation_batch, MAX_INPUT // size))


def _classify(trained: TrainedNetwork, waiting: Sequence[_Picture]) -> Iterator[Prediction]:
    """The predictions for these pictures, computed as one batch, or several if they have many digits."""
    images = [seen.image for picture in waiting for line in picture.lines for seen in line]
    results = iter(_probabilities(trained, images))
    reason = "the network's outputs are not finite numbers; its weights or its scaling are out of range"
    for file, lines, error in waiting:
        if error is not None:
            yield Prediction(file, error=error)
        for number, line in enumerate(lines, 1):
            digits = [
                Digit(dict(zip(trained.classes, row, strict=True)), seen.box, seen.image)
                for seen, row in zip(line, results, strict=False)
                if row is not None
            ]
            error = None if len(digits) == len(line) else f"{one_line(file)}: {reason}."
            yield Prediction(file, tuple(digits), error, number if len(lines) > 1 else None)


def _probabilities(trained: TrainedNetwork, images: Sequence[Tensor]) -> Iterator[list[float] | None]:
    """The probabilities of the classes for each image, uint8 (C, H, W); None where the outputs are not finite."""
    for start in range(0, len(images), most := _batch(trained)):
        batch = torch.stack([*images[start : start + most]])
        with machine.threads(trained.network.operations * len(batch)):
            logits = trained.network(trained.preprocessing(batch))
        finite, probabilities = logits.isfinite().all(1).tolist(), logits.softmax(1).tolist()
        yield from (row if good else None for row, good in zip(probabilities, finite, strict=True))


def _standard_input() -> bytes:
    """All of standard input, up to one byte more than is allowed; DataError if it is closed or can't be read."""
    try:
        return sys.stdin.buffer.read(reading.MAX_BYTES + 1)
    except (AttributeError, OSError) as error:  # Python has no sys.stdin where it is closed
        raise DataError("standard input can't be read.") from error
