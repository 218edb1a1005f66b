"""Networks for color images, on a made-up data set in CIFAR-10's place whose classes differ in hue only."""

import colorsys
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from mnist_cnn.cli import main
from mnist_cnn.data import datasets
from mnist_cnn.data.images import Images
from tests.conftest import train_command

HUES = ("red", "orange", "lime", "green", "mint", "cyan", "azure", "blue", "purple", "pink")


def images_of_hues(count: int) -> Images:
    """`count` noisy images of 3×32×32, class after class; as grey images all classes look the same."""
    luma = torch.tensor([0.299, 0.587, 0.114])  # ITU-R BT.601
    hues = torch.tensor([colorsys.hsv_to_rgb(index / len(HUES), 1, 1) for index in range(len(HUES))])
    hues = 29 * hues / (hues @ luma)[:, None]
    labels = torch.arange(count) % len(HUES)
    brightness = torch.empty(count, 1, 1, 1).uniform_(0.5, 1)
    pixels = brightness * hues[labels][:, :, None, None] + torch.randn(count, 3, 32, 32) * 4
    return Images(pixels.clamp(0, 255).round().to(torch.uint8), labels)


@pytest.fixture
def color_set(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Puts 500 training and 100 test images in the place of CIFAR-10."""
    load: Callable[..., Any] = datasets.load
    made = replace(
        load("digits", "data"), name="cifar10", classes=HUES, train=images_of_hues(500), test=images_of_hues(100)
    )
    monkeypatch.setattr(datasets, "fetch", lambda *_: None)
    monkeypatch.setattr(datasets, "load", lambda name, *rest: made if name == "cifar10" else load(name, *rest))
    return made


@pytest.mark.parametrize("model", ["mlp", "tiny"])
def test_a_network_learns_classes_that_differ_in_color_only(
    model: str, color_set: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome = train_command(
        "data=cifar10", f"model={model}", "data.batch_size=25", "optimizer.lr=0.003", "trainer.max_epochs=12",
        "trainer=cpu", "run_dir=run",
    )  # fmt: skip
    assert outcome.status == 0, outcome.err
    trained = json.loads(Path("run/metrics.json").read_text())
    assert trained["test/accuracy"] > 0.9  # 0.1 by guessing

    assert main(["evaluate", "run", "--json"]) == 0
    evaluated = json.loads(capsys.readouterr().out)
    assert evaluated["dataset"] == "cifar10"
    assert evaluated["accuracy"] == trained["test/accuracy"]
    assert [row["name"] for row in evaluated["per_class"]] == list(HUES)

    for index in range(len(HUES)):
        Image.fromarray(color_set.test.images[index].permute(1, 2, 0).numpy()).save(tmp_path / f"{index}.png")
    assert main(["predict", "run", *(str(tmp_path / f"{index}.png") for index in range(len(HUES))), "--json"]) == 0
    predicted = [json.loads(line)["digit"] for line in capsys.readouterr().out.splitlines()]
    assert sum(one == other for one, other in zip(predicted, HUES, strict=True)) >= 9
