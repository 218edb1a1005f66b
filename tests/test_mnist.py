"""On the real MNIST: what the project is for."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mnist_cnn.cli import main
from mnist_cnn.data import datasets
from tests.conftest import Outcome

pytestmark = pytest.mark.mnist
Command = Callable[..., Outcome]


def test_tiny_learns_mnist_in_a_minute_and_evaluates_to_the_same_figures(
    real_mnist: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    start = time.monotonic()
    outcome = real_mnist("model=tiny", "trainer.max_epochs=5", "run_dir=run")
    assert outcome.status == 0, outcome.err
    seconds = time.monotonic() - start
    found = json.loads(Path("run/metrics.json").read_text())
    assert found["dataset"] == "mnist"
    assert found["test/accuracy"] >= 0.975
    assert seconds < 120  # half of it here; a loaded machine is no failure
    root = next(line for line in outcome.out.splitlines() if line.startswith("evaluate")).rpartition(" ")[2]
    capsys.readouterr()
    assert main(["evaluate", "run", "--data-root", root, "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert (again["accuracy"], again["loss"]) == (found["test/accuracy"], found["test/loss"])


def test_baseline_passes_98_percent_in_two_epochs(real_mnist: Command) -> None:
    assert real_mnist("trainer.max_epochs=2", "run_dir=run").status == 0
    assert json.loads(Path("run/metrics.json").read_text())["test/accuracy"] >= 0.98


def test_mnist_is_as_published(real_mnist: Command) -> None:
    outcome = real_mnist("model=mlp", "trainer.max_epochs=1", "+trainer.limit_train_batches=1", "run_dir=run")
    root = next(line for line in outcome.out.splitlines() if line.startswith("evaluate")).rpartition(" ")[2]
    mnist = datasets.load("mnist", root)
    assert (len(mnist.train), len(mnist.test)) == (60_000, 10_000)
    assert mnist.train.labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert mnist.test.labels.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    # The mean and standard deviation that everybody quotes
    pixels = mnist.train.images.to(torch.float32) / 255
    assert [round(float(value), 4) for value in (pixels.mean(), pixels.std())] == [0.1307, 0.3081]
    # mnist_5k: all of its images are training images, and none is a test image.
    part = datasets.load("mnist_5k", root)
    train, test, ours = (
        {image.numpy().tobytes() for image in images}
        for images in (mnist.train.images, mnist.test.images, torch.cat([part.train.images, part.test.images]))
    )
    assert len(ours) == len(ours & train) == 5000
    assert not ours & test
