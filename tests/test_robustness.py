"""What the robustness benchmark says of networks rests on these properties of its corruptions and measures."""

import json
import shutil
import sys
import zlib
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import robustness
import torch
from corruptions import CORRUPTIONS, corrupt
from numpy.random import PCG64, Generator
from PIL import Image
from robustness_measures import always_wrong, ece, fit_temperature, nll, pairwise_agreement, unanimous
from robustness_recipes import find_recipes
from torch import Tensor

from mnist_cnn.data import datasets
from mnist_cnn.errors import CheckpointError

DIGITS = datasets.load("digits", "data")
NOT_RANDOM = ("scale", "brightness", "stripe", "canny_edges")


def bar() -> Tensor:
    """200 images of an upright bar in the middle, 20 pixels high and 4 wide."""
    images = torch.zeros(200, 1, 28, 28, dtype=torch.uint8)
    images[:, :, 4:24, 12:16] = 255
    return images


def centres(images: Tensor) -> Tensor:
    """The centre of mass of each image (N, 1, H, W) as (row, column), (N, 2)."""
    mass = images[:, 0].double() / images[:, 0].double().sum((1, 2), keepdim=True)
    places = torch.arange(28.0, dtype=torch.float64)
    return torch.stack([(mass.sum(2) * places).sum(1), (mass.sum(1) * places).sum(1)], 1)


# --- corruptions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_seed_always_gives_the_same_images_and_another_seed_others(name: str) -> None:
    images = DIGITS.test.images[:50]
    before = images.clone()
    assert torch.equal(corrupt(name, images), corrupt(name, images))
    assert torch.equal(images, before)
    assert torch.equal(corrupt(name, images), corrupt(name, images, seed=1)) == (name in NOT_RANDOM)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_every_image_keeps_its_type_and_shape_and_is_changed_but_not_erased(name: str) -> None:
    images = DIGITS.test.images[:50]
    changed = corrupt(name, images)
    assert (changed.dtype, changed.shape) == (torch.uint8, images.shape)
    assert (changed != images).flatten(1).any(1).all()
    assert (changed.flatten(1).float().std(1) > 5).all()


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corrupted_digit_is_still_nearest_to_one_of_its_class_corrupted_likewise(name: str) -> None:
    known, asked = (
        corrupt(name, part.images, seed).flatten(1).float() for seed, part in enumerate((DIGITS.train, DIGITS.test))
    )
    nearest = torch.cdist(asked, known).argmin(1)
    assert (DIGITS.train.labels[nearest] == DIGITS.test.labels).float().mean() > 0.6


# A new digest means that figures measured before can't be compared with those measured after.
DIGESTS = {
    "shot_noise": 735903861,
    "impulse_noise": 2488347933,
    "glass_blur": 1669014350,
    "motion_blur": 1361381418,
    "shear": 3142984956,
    "scale": 2907791903,
    "rotate": 809448617,
    "brightness": 3648228266,
    "translate": 2659411123,
    "stripe": 3187504290,
    "fog": 3370118864,
    "spatter": 3981841610,
    "dotted_line": 3732553845,
    "zigzag": 2233484853,
    "canny_edges": 1504888312,
}


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_images_are_the_same_on_every_machine(name: str) -> None:
    pixels = Generator(PCG64(0)).integers(0, 256, (1030, 1, 28, 28), np.uint8)
    assert zlib.crc32(corrupt(name, torch.from_numpy(pixels)).numpy().tobytes()) == DIGESTS[name]


def test_shapes_change_by_as_much_as_is_stated() -> None:
    moved = (centres(corrupt("translate", bar())) - centres(bar())).round()
    assert {tuple(row) for row in moved.tolist()} == {(3, 3), (3, -3), (-3, 3), (-3, -3)}
    area = corrupt("scale", bar()).double().sum() / bar().double().sum()
    assert area == pytest.approx(0.7**2, rel=0.05)
    for name, slope in (("rotate", np.tan(0.4)), ("shear", 0.4)):
        halves = [corrupt(name, bar()) for _ in range(2)]
        halves[0][:, :, 14:] = 0
        halves[1][:, :, :14] = 0
        top, bottom = map(centres, halves)
        leaning = (bottom - top)[:, 1] / (bottom - top)[:, 0]
        assert leaning.abs().tolist() == pytest.approx([slope] * 200, rel=0.1), name
        assert set(leaning.sign().tolist()) == {-1, 1}, name
        ink = [float(images.double().sum()) for images in (corrupt(name, bar()), bar())]
        assert ink[0] == pytest.approx(ink[1], rel=0.03), name


def test_noise_has_the_strength_that_is_stated() -> None:
    grey = torch.full((300, 1, 28, 28), 102, dtype=torch.uint8)
    impulses = corrupt("impulse_noise", grey)
    assert [(impulses == level).float().mean() for level in (0, 255)] == pytest.approx([0.085, 0.085], rel=0.05)
    photons = corrupt("shot_noise", grey)
    assert set(photons.flatten().tolist()) == {0, 85, 170, 255}
    assert (photons == 0).float().mean() == pytest.approx(np.exp(-3 * 0.4), rel=0.02)
    mud = corrupt("spatter", grey) == 64
    assert mud.flatten(1).float().mean(1).tolist() == pytest.approx([1 / 8] * 300)


def test_edges_run_around_a_stroke_and_not_through_it() -> None:
    edges = corrupt("canny_edges", bar())[0, 0]
    assert set(edges.flatten().tolist()) == {0, 255}
    assert (edges[14] == 255).sum() == 2
    assert not edges[8:20, 13:15].any()


def test_colour_images_are_refused() -> None:
    with pytest.raises(ValueError, match="grey"):
        corrupt("fog", torch.zeros(1, 3, 28, 28, dtype=torch.uint8))


# --- calibration ------------------------------------------------------------------------------------------------------


def calibrated(count: int) -> tuple[Tensor, Tensor]:
    """Logits (count, 10), and labels that are drawn with just the probabilities that the logits give."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(count, 10, generator=generator)
    return logits, logits.softmax(1).multinomial(1, generator=generator).flatten()


def test_the_calibration_error_of_a_calibrated_predictor_is_near_zero_and_that_of_others_is_not() -> None:
    logits, labels = calibrated(50_000)
    assert ece(logits, labels) < 0.01
    assert ece(3 * logits, labels) > 0.1
    assert ece(3 * logits, labels, 3) == pytest.approx(ece(logits, labels), abs=1e-4)


@pytest.mark.parametrize("factor", [0.3, 1, 4])
def test_the_fitted_temperature_is_the_factor_by_which_logits_are_too_large(factor: float) -> None:
    logits, labels = calibrated(50_000)
    assert fit_temperature(factor * logits, labels) == pytest.approx(factor, rel=0.03)


@pytest.mark.parametrize("seed", range(5))
def test_scaling_never_changes_a_class_nor_makes_the_validation_likelihood_worse(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = 10 ** (seed - 2) * torch.randn(200, 10, generator=generator)
    sure = logits.argmax(1)
    for labels in (sure, torch.randint(10, (200,), generator=generator), logits.argmin(1)):  # all, some, none right
        temperature = fit_temperature(logits, labels)
        scaled = logits.double() / temperature
        assert nll(scaled, labels) <= nll(logits, labels)
        assert torch.equal(scaled.argmax(1), sure)


def test_a_network_that_is_calibrated_on_validation_images_is_not_made_worse_by_the_search() -> None:
    for right in range(2, 10):  # of 10 images, with just that probability
        logits = torch.tensor([[right / 10, 1 - right / 10]]).log().repeat(10, 1)
        labels = (torch.arange(10) >= right).long()
        assert nll(logits, labels, fit_temperature(logits, labels)) <= nll(logits, labels)


# --- agreement --------------------------------------------------------------------------------------------------------


def test_agreement_of_identical_predictions_is_one_and_of_others_what_is_counted() -> None:
    same = torch.arange(10).repeat(3, 1)
    assert (unanimous(same), pairwise_agreement(same)) == (1, 1)
    predicted = torch.randint(3, (4, 50))
    columns = predicted.T.tolist()
    assert unanimous(predicted) == pytest.approx(sum(len(set(column)) == 1 for column in columns) / 50)
    pairs = [one == other for column in columns for one, other in combinations(column, 2)]
    assert pairwise_agreement(predicted) == pytest.approx(sum(pairs) / len(pairs))
    with pytest.raises(ValueError, match="two networks"):
        pairwise_agreement(same[:1])


def test_always_wrong_are_the_images_that_no_network_gets_right() -> None:
    predicted, labels = torch.randint(3, (3, 60)), torch.randint(3, (60,))
    expected = [i for i in range(60) if all(int(one[i]) != int(labels[i]) for one in predicted)]
    assert 0 < len(expected) < 60
    assert always_wrong(predicted, labels).tolist() == expected


# --- the command ------------------------------------------------------------------------------------------------------


def test_runs_that_differ_only_in_their_seed_are_one_recipe(
    digits_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = (
        "0_seed=0", "1_seed=1", "2_augmentation=affine,seed=0", "3_augmentation=affine,seed=1", "4_seed=2", "5_seed=3"
    )  # fmt: skip
    for name in names:
        shutil.copytree(digits_run, tmp_path / "tiny" / name)
    shutil.copytree(digits_run, tmp_path / "elsewhere" / "tiny" / "0_seed=0")
    (tmp_path / "tiny" / "4_seed=2" / "metrics.json").unlink()
    stopped = tmp_path / "tiny" / "5_seed=3" / "metrics.json"  # by Ctrl-C
    stopped.write_text(json.dumps({**json.loads(stopped.read_text()), "interrupted": True}))
    found = {recipe.name: len(recipe.runs) for recipe in find_recipes([tmp_path / "tiny"])}
    assert found == {"tiny": 2, "tiny/augmentation=affine": 2}
    said = capsys.readouterr().err
    assert "4_seed=2: left out" in said
    assert "5_seed=3: left out" in said
    single = [tmp_path / "tiny" / name for name in names[:2]]
    checkpoint = single[0] / "checkpoints" / "best.ckpt"
    assert [(recipe.name, len(recipe.runs)) for recipe in find_recipes([*single, checkpoint])] == [("tiny", 2)]
    both = find_recipes([single[0], tmp_path / "elsewhere"])
    assert len({recipe.name for recipe in both}) == 2
    with pytest.raises(CheckpointError, match="no finished run"):
        find_recipes([tmp_path / "here"])


def test_the_command_measures_what_the_run_measured_and_more(
    digits_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in range(2):
        shutil.copytree(digits_run, tmp_path / "tiny" / f"{seed}_seed={seed}")
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for label in (3, 7):
        index = DIGITS.test.labels.tolist().index(label)
        Image.fromarray(DIGITS.test.images[index, 0].numpy()).save(pictures / f"{label}__{index}.png")
    (pictures / "8__blank.png").write_bytes(b"no picture")
    (pictures / "pictures.json").write_text(json.dumps([{"file": "8__blank.png", "kind": "broken"}]))

    files = ["-o", "page.md", "--json", "all.json", "--sheet", "sheet.png", "--wrong", "wrong.png"]
    arguments = [str(tmp_path / "tiny"), *files, "--pictures", str(pictures)]
    monkeypatch.setattr(sys, "argv", ["robustness.py", *arguments])
    robustness.main()

    said = capsys.readouterr().out
    assert said.strip() in Path("page.md").read_text()
    assert "| broken | 1 | 0.0 ± 0.0 |" in said
    measured = json.loads(Path("all.json").read_text())["recipes"]["tiny"]
    run = json.loads((digits_run / "metrics.json").read_text())
    assert measured["accuracy"]["none"] == [pytest.approx(run["test/accuracy"])] * 2
    assert measured["accuracy"].keys() == {"none", *CORRUPTIONS}
    first = measured["calibration"][0]
    assert (first["nll"], first["ece"]) == pytest.approx((run["test/loss"], run["test/ece"]), rel=1e-3)
    assert (measured["all_agree"], measured["pairwise_agreement"]) == (1, 1)
    assert len(measured["always_wrong"]) == round((1 - run["test/accuracy"]) * len(DIGITS.test))
    assert measured["pictures"]["8__blank.png"] == ["error", "error"]
    for sheet in ("sheet.png", "wrong.png"):
        with Image.open(sheet) as picture:
            assert min(picture.size) > 300
