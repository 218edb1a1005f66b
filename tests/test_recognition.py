"""`mnist-cnn evaluate --gif`: an animation of images that nobody has picked."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mnist_cnn.cli import main
from mnist_cnn.data.images import Images
from mnist_cnn.inference.evaluate import Evaluation
from mnist_cnn.report import recognition as module
from mnist_cnn.report.recognition import FIRST, FIRST_MISTAKES, MILLISECONDS, recognition


def evaluated(total: int, wrong: int, names: tuple[str, ...], shape: tuple[int, ...]) -> tuple[Evaluation, Images]:
    """So many images, the last ones of which are misclassified."""
    labels = torch.arange(total) % len(names)
    predicted = labels.clone()
    predicted[total - wrong :] = (labels[total - wrong :] + 1) % len(names)
    probabilities = (2.0 * torch.eye(len(names))[predicted]).softmax(1)
    images = torch.randint(0, 256, (total, *shape), dtype=torch.uint8)
    return Evaluation("x", "test", names, probabilities, labels, 0.0), Images(images, labels)


DIGITS = tuple("0123456789")


@pytest.mark.parametrize(("total", "wrong", "frames"), [(50, 9, 24), (50, 2, 22), (50, 0, 20), (5, 1, 6)])
def test_the_first_images_and_then_the_first_mistakes_are_shown_over_and_over(
    total: int, wrong: int, frames: int
) -> None:
    evaluation, images = evaluated(total, wrong, DIGITS, (1, 28, 28))
    chosen = [answer.index for answer, _ in module._chosen(evaluation, "x")]
    assert chosen == [*range(min(FIRST, total)), *range(total - wrong, total)][:frames]
    with Image.open(io.BytesIO(recognition(evaluation, images, "x"))) as film:
        assert getattr(film, "n_frames", 1) == frames == min(FIRST, total) + min(FIRST_MISTAKES, wrong)
        assert film.info["loop"] == 0
        assert film.info["duration"] == MILLISECONDS
        assert film.size == module.SIZE


def test_a_frame_shows_the_image_and_a_bar_as_long_as_the_probability() -> None:
    evaluation, images = evaluated(10, 1, DIGITS, (1, 28, 28))
    for answer, line in module._chosen(evaluation, "x"):
        frame = np.asarray(module._frame(evaluation, images, answer, line))
        tile = frame[module._TOP : module._TOP + 196, module._LEFT : module._LEFT + 196, 0]
        assert np.array_equal(tile, np.kron(images.images[answer.index, 0].numpy(), np.ones((7, 7), int)))
        row = frame[module._BARS + 6 + module._ROW * int(answer.predicted), module._COLUMN + 15 : module._RIGHT]
        colour = (0x6F, 0xB1, 0xF2) if answer.true == answer.predicted else (0xF0, 0x95, 0x3C)
        assert (row == colour).all(1).mean() == pytest.approx(answer.probability, abs=0.02)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (1, 300, 40)])
@pytest.mark.parametrize(
    "names", [tuple("ab"), ("T-shirt/top", "a class with a very long name" * 5, "\u65e5"), tuple(map(str, range(30)))]
)
def test_any_classes_and_images_are_drawn(names: tuple[str, ...], shape: tuple[int, ...]) -> None:
    evaluation, images = evaluated(40, 3, names, shape)
    with Image.open(io.BytesIO(recognition(evaluation, images, "m" * 100))) as film:
        assert getattr(film, "n_frames", 1) == FIRST + 3
        assert film.size == module.SIZE


def test_the_command_writes_the_animation_and_keeps_a_file_that_is_there(
    digits_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command: list[Any] = ["evaluate", str(digits_run), "--gif", "seen.gif"]
    assert main(command) == 0
    told = capsys.readouterr()
    assert "the animation is in seen.gif" in told.err
    assert "accuracy" in told.out
    content = Path("seen.gif").read_bytes()
    assert len(content) < 500_000
    assert main(command) == 1
    assert "seen.gif: the file exists already" in capsys.readouterr().err
    assert Path("seen.gif").read_bytes() == content
    assert main([*command[:-1], "seen.png"]) == 2
    assert "name it seen.gif" in capsys.readouterr().err
