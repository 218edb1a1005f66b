"""Augmented images are what the settings say, and the same whatever batch, device or resumed run they are in."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mnist_cnn.config import AugmentationConfig
from mnist_cnn.data.augmentation import Augmentation
from mnist_cnn.data.datamodule import MNISTDataModule
from tests.conftest import configured, train_command

CPU = torch.device("cpu")
EVERYTHING = AugmentationConfig(rotation=10, shift=2, scale=0.1, shear=0.1, elastic=1, erasing=0.5)


def augmented(images: Tensor, config: AugmentationConfig, epoch: int = 0, seed: int = 0) -> Tensor:
    augment = Augmentation(config, seed, len(images), (images.shape[2], images.shape[3]))
    augment.start_epoch(epoch, CPU)
    return augment(images, torch.arange(len(images)))


def blobs(count: int, height: int = 28, width: int = 28, off: tuple[float, float] = (0, 0)) -> Tensor:
    """Images (count, 1, H, W) of one round spot, `off` (x, y) pixels from the middle."""
    y, x = (torch.arange(side) - (side - 1) / 2 for side in (height, width))
    spot = 255 * torch.exp(-((x - off[0]) ** 2 + (y[:, None] - off[1]) ** 2) / 8)
    return spot.expand(count, 1, height, width).round().to(torch.uint8)


def centres(images: Tensor) -> Tensor:
    """(N, 2): x and y of the centre of mass of each image, from its middle, in pixels."""
    height, width = images.shape[2:]
    mass = images[:, 0].float()
    x, y = (torch.arange(side) - (side - 1) / 2 for side in (width, height))
    return torch.stack([(mass * x).sum((1, 2)), (mass * y[:, None]).sum((1, 2))], 1) / mass.sum((1, 2))[:, None]


def test_without_any_variation_images_stay_as_they_are() -> None:
    images = torch.randint(0, 256, (5, 3, 9, 12), dtype=torch.uint8)
    assert torch.allclose(augmented(images, AugmentationConfig()), images.float(), atol=0.02)
    assert not AugmentationConfig()


def test_a_shift_moves_images_by_up_to_so_many_pixels_in_both_directions() -> None:
    moved = centres(augmented(blobs(400), AugmentationConfig(shift=3)))
    assert moved.abs().max() < 3.01
    assert moved.max(0).values.min() > 2.8
    assert moved.min(0).values.max() < -2.8
    assert abs(torch.corrcoef(moved.T)[0, 1]) < 0.15  # each direction by itself
    assert moved.std(0).allclose(torch.tensor(3 / math.sqrt(3)), rtol=0.1)  # every shift is as likely as another


def test_a_rotation_turns_images_by_up_to_so_many_degrees_about_their_middle() -> None:
    moved = centres(augmented(blobs(400, off=(7, 0)), AugmentationConfig(rotation=30)))
    assert torch.allclose(moved.norm(dim=1), torch.tensor(7.0), atol=0.1)
    angles = torch.atan2(moved[:, 1], moved[:, 0]).rad2deg()
    assert 28 < angles.max() < 30.5
    assert -30.5 < angles.min() < -28


def test_a_scale_makes_images_larger_and_smaller_about_their_middle() -> None:
    distances = centres(augmented(blobs(400, off=(6, 0)), AugmentationConfig(scale=0.2)))[:, 0]
    assert distances.max() == pytest.approx(6 * 1.2, abs=0.1)
    assert distances.min() == pytest.approx(6 * 0.8, abs=0.1)


def test_a_shear_slides_the_rows_and_leaves_their_height() -> None:
    moved = centres(augmented(blobs(400, off=(0, 8)), AugmentationConfig(shear=0.25)))
    assert torch.allclose(moved[:, 1], torch.tensor(8.0), atol=0.1)
    assert moved[:, 0].abs().max() == pytest.approx(2, abs=0.1)


def test_elastic_moves_the_parts_of_an_image_against_each_other_by_about_so_many_pixels() -> None:
    left, right = (
        centres(augmented(blobs(400, off=(side, 0)), AugmentationConfig(elastic=1.5)))[:, 0] - side for side in (-7, 7)
    )
    for moved in (left, right):
        assert 0.5 < moved.std() < 2
    assert (left - right).abs().mean() > 0.5


def test_erasing_blackens_a_rectangle_in_its_share_of_the_images() -> None:
    images = torch.full((2000, 1, 28, 28), 200, dtype=torch.uint8)
    erased = (augmented(images, AugmentationConfig(erasing=0.3)) < 1)[:, 0]
    touched = erased.flatten(1).any(1)
    assert touched.float().mean() == pytest.approx(0.3, abs=0.05)
    for mask in erased[touched][:50]:
        rows, columns = mask.any(1), mask.any(0)
        assert mask.sum() == rows.sum() * columns.sum()  # a rectangle
        assert max(int(rows.sum()), int(columns.sum())) <= 12


def test_images_that_are_not_square_are_turned_and_not_squeezed() -> None:
    moved = centres(augmented(blobs(200, 20, 40, off=(6, 0)), AugmentationConfig(rotation=40)))
    assert torch.allclose(moved.norm(dim=1), torch.tensor(6.0), atol=0.15)


def test_an_image_is_augmented_alike_in_any_batch_and_anew_in_every_epoch_and_seed() -> None:
    images = blobs(50, off=(5, 2))
    augment = Augmentation(EVERYTHING, 3, 50, (28, 28))
    augment.start_epoch(2, CPU)
    whole, order = augment(images, torch.arange(50)), torch.randperm(50)
    parts = torch.cat([augment(images[part], part) for part in torch.split(order, 7)])
    assert torch.allclose(parts, whole[order], atol=1e-3)
    assert torch.equal(whole, augmented(images, EVERYTHING, 2, 3))
    for epoch, seed in ((3, 3), (2, 4)):
        other = augmented(images, EVERYTHING, epoch, seed)
        assert all(not torch.equal(one, two) for one, two in zip(whole, other, strict=True))


def test_the_random_numbers_of_the_run_are_left_alone() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    augmented(blobs(5), EVERYTHING)
    assert torch.equal(torch.rand(3), expected)


def test_only_training_images_are_augmented() -> None:
    settings = ("data=digits", "augmentation=elastic")
    config = configured(*settings)
    data = MNISTDataModule(config.data, config.seed, augmentation=config.augmentation)
    data.setup()
    images, _ = next(iter(data.train_dataloader()))
    assert images.dtype == torch.float32
    for batches, part in ((data.val_dataloader(), data.val), (data.test_dataloader(), data.test)):
        images, _ = next(iter(batches))
        assert torch.equal(images, part.images[: len(images)])


@pytest.mark.parametrize(("setting", "shows"), [("augmentation=none", False), ("augmentation=affine", True)])
def test_a_report_shows_augmented_images_where_there_are_any(setting: str, shows: bool) -> None:
    outcome = train_command("debug=smoke", "trainer=cpu", "model=tiny", setting, "run_dir=run")
    assert outcome.status == 0, outcome.err
    assert Path("run/report/augmented_samples.png").exists() == shows
    assert ("Augmented training images" in Path("run/report/index.html").read_text()) == shows


def test_an_epoch_of_augmented_images_begins_where_a_stopped_one_left_off() -> None:
    config = configured("data=digits", "augmentation=elastic")
    data = MNISTDataModule(config.data, config.seed, augmentation=config.augmentation)
    data.setup()
    whole = [images for images, _ in data.train_dataloader()]
    rest = data.train_dataloader()
    rest.go_on_after(4, config.data.batch_size)
    assert all(torch.equal(one, two) for (one, _), two in zip(rest, whole[4:], strict=True))
