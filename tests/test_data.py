from itertools import chain
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler

from mnist_cnn.data.datamodule import Batches, MNISTDataModule, Shares
from mnist_cnn.data.images import Images, Preprocessing
from mnist_cnn.data.split import split_indices
from mnist_cnn.errors import ConfigError, DataError
from tests.conftest import FakeMnist, configured

LABELS = torch.arange(1000) % 7


def module(*settings: str, seed: int = 0) -> MNISTDataModule:
    made = MNISTDataModule(configured("data=digits", *settings).data, seed)
    made.prepare_data()
    made.setup()
    return made


@pytest.mark.parametrize("how", ["last", "random", "stratified"])
@pytest.mark.parametrize("fraction", [0.1, 0.2, 0.3, 1 / 3])
def test_a_split_uses_every_image_once_and_keeps_keras_size(how: str, fraction: float) -> None:
    train, val = split_indices(LABELS, fraction, how, seed=0)
    assert sorted([*train.tolist(), *val.tolist()]) == list(range(1000))
    assert len(train) == int(np.floor(1000 * (1.0 - fraction)))
    assert train.tolist() == sorted(train.tolist())


def test_the_last_part_is_kept_for_validation_as_in_keras() -> None:
    train, val = split_indices(torch.zeros(60_000), 0.1, "last", seed=3)
    assert [int(train[-1]), int(val[0]), int(val[-1])] == [53_999, 54_000, 59_999]


@pytest.mark.parametrize("how", ["random", "stratified"])
def test_a_drawn_split_follows_from_the_seed(how: str) -> None:
    first, again, other = (split_indices(LABELS, 0.2, how, seed)[1].tolist() for seed in (1, 1, 2))
    assert first == again != other


def test_a_stratified_split_keeps_every_class_in_proportion() -> None:
    _, val = split_indices(LABELS, 0.2, "stratified", seed=0)
    assert all(28 <= int(count) <= 29 for count in LABELS[val].bincount())


@pytest.mark.parametrize(("fraction", "how"), [(0.9999, "last"), (0.001, "stratified")])
def test_a_split_that_leaves_nothing_is_refused(fraction: float, how: str) -> None:
    with pytest.raises(ValueError, match=rf"^{fraction}: .*of 1000 images"):
        split_indices(LABELS, fraction, how, 0)


def test_the_data_module_names_the_setting_of_a_split_that_leaves_nothing() -> None:
    with pytest.raises(ConfigError, match=r"^data\.val_fraction=0\.9999: of 1437 images it leaves 0 for training\.$"):
        module("data.val_fraction=0.9999")


def test_an_epoch_has_every_image_once_and_its_order_follows_from_seed_and_epoch() -> None:
    def order(seed: int, epoch: int) -> list[float]:
        data = module("data.batch_size=100", seed=seed)
        loader = data.train_dataloader()
        loader.batch_sampler.sampler.set_epoch(epoch)  # type: ignore[union-attr]  # as Lightning does
        batches = list(loader)
        assert [len(labels) for _, labels in batches] == [100] * 12 + [93]
        return [float(image.double().square().sum()) for images, _ in batches for image in images]

    assert sorted(order(0, 0)) == sorted(order(0, 1)) == sorted(order(1, 0))
    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(*which)) for which in ((0, 0), (0, 1), (1, 0))}) == 3


@pytest.mark.parametrize("world", [2, 3, 7])
def test_processes_share_evaluation_without_losing_or_doubling_an_image(
    world: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = module("data.eval_batch_size=64")
    seen = []
    for rank in range(world):
        monkeypatch.setattr(data, "_world", lambda rank=rank: (world, rank))
        seen += [image for images, _ in data.test_dataloader() for image in images.flatten(1).double().tolist()]
    assert sorted(seen) == sorted(data.test.images.flatten(1).double().tolist())


def test_gathering_several_batches_at_once_keeps_their_order() -> None:
    single, several = module("data.batch_size=32"), module("data.batch_size=32")
    several.batches_at_once = 7
    loaders = single.train_dataloader(), several.train_dataloader()
    sizes = [len(labels) for _, labels in loaders[1]]
    assert sizes == [7 * 32] * 5 + [173]
    one, other = (torch.cat([images for images, _ in loader]) for loader in loaders)
    assert torch.equal(one, other)


@pytest.mark.parametrize(("images", "world"), [(100, 2), (101, 2), (103, 3), (97, 4), (3, 4), (96, 1)])
def test_processes_take_the_steps_that_one_would_take(images: int, world: int) -> None:
    """The mean over processes of the weighted means over their shares is the mean over the batch."""
    values = torch.rand(images, dtype=torch.float64)
    order = torch.randperm(images).tolist()
    shares = [list(Shares(order, 8, world, rank)) for rank in range(world)]
    plans = [Shares(order, 8, world, rank) for rank in range(world)]
    one = list(BatchSampler(order, 8 * world, drop_last=False))
    assert all(len(share) == len(plan) == len(one) for share, plan in zip(shares, plans, strict=True))
    for step, batch in enumerate(one):
        weights = [plan.weight(step) for plan in plans]
        taken = [share[step] for share, weight in zip(shares, weights, strict=True) if weight]
        assert sorted(chain.from_iterable(taken)) == sorted(batch)
        means = [weight * values[share[step]].mean() for share, weight in zip(shares, weights, strict=True)]
        assert float(sum(means)) / world == pytest.approx(float(values[batch].mean()))


def test_batches_hold_the_images_that_the_sampler_names_in_its_order() -> None:
    images = Images(torch.randint(0, 256, (50, 1, 4, 4), dtype=torch.uint8), torch.arange(50))
    batches = Batches(images, BatchSampler(range(49, 0, -5), 4, drop_last=False), torch.device("cpu"))
    assert len(batches) == 3
    found = list(batches)
    assert [labels.tolist() for _, labels in found] == [[49, 44, 39, 34], [29, 24, 19, 14], [9, 4]]
    for batch, labels in found:
        assert batch.dtype == torch.uint8
        assert torch.equal(batch, torch.stack([images.images[i] for i in labels.tolist()]))


def test_pixels_become_zero_to_one_or_standard() -> None:
    unit, standard = module(), module("data.normalize=standard")
    images, _ = unit.on_after_batch_transfer((unit.train.images, unit.train.labels), 0)
    assert float(images.min()) == 0.0
    assert float(images.max()) == 1.0
    assert images.dtype == torch.float32
    images, _ = standard.on_after_batch_transfer((standard.train.images, standard.train.labels), 0)
    assert float(images.mean()) == pytest.approx(0, abs=1e-4)
    assert float(images.std()) == pytest.approx(1, abs=1e-4)


def test_standard_scaling_is_by_channel_and_survives_the_checkpoint() -> None:
    images = torch.randint(0, 256, (40, 3, 5, 5), dtype=torch.uint8)
    images[:, 1] //= 4
    made = Preprocessing.standard(images)
    assert msgspec.convert(made.to_dict(), Preprocessing) == made
    assert made(images).mean((0, 2, 3)).tolist() == pytest.approx([0, 0, 0], abs=1e-4)


def test_setup_twice_changes_nothing() -> None:
    data = module("data.split=random")
    before = data.train.images
    data.setup()
    assert data.train.images is before


def test_auto_takes_a_part_of_mnist_loudly_where_mnist_is_not_available(
    fake_mnist: FakeMnist, capsys: pytest.CaptureFixture[str]
) -> None:
    data = MNISTDataModule(configured("data=auto", "data.mirror=http://127.0.0.1:1/").data, 0)
    data.prepare_data()
    data.prepare_data()  # Lightning calls it again
    data.setup()
    assert data.dataset_name == "mnist_5k"
    assert data.is_fallback
    warning = capsys.readouterr().err
    assert warning.count("MNIST IS NOT AVAILABLE") == 1
    assert "mnist is missing or damaged in data" in warning
    assert "data.mirror=" in warning


def test_auto_takes_mnist_where_it_is_available(fake_mnist: FakeMnist, capsys: pytest.CaptureFixture[str]) -> None:
    data = MNISTDataModule(configured("data=auto", f"data.mirror={fake_mnist.mirror}").data, 0)
    data.prepare_data()
    data.setup()
    assert data.dataset_name == "mnist"
    assert not data.is_fallback
    assert capsys.readouterr().err == ""


def test_where_auto_was_the_digits_mnist_is_not_asked_for(
    fake_mnist: FakeMnist, capsys: pytest.CaptureFixture[str]
) -> None:
    data = MNISTDataModule(configured("data=auto", f"data.mirror={fake_mnist.mirror}").data, 0, dataset="digits")
    data.prepare_data()
    data.setup()
    assert data.dataset_name == "digits"
    assert data.is_fallback
    assert not Path("data").exists()
    assert capsys.readouterr().err == ""


def test_where_auto_was_mnist_nothing_else_is_taken(fake_mnist: FakeMnist) -> None:
    data = MNISTDataModule(configured("data=auto", "data.mirror=http://127.0.0.1:1/").data, 0, dataset="mnist")
    with pytest.raises(DataError, match="mnist is missing"):
        data.prepare_data()
    with pytest.raises(DataError, match=r"^mnist: files in .* missing"):
        data.setup()


def test_a_data_set_that_was_asked_for_is_no_fallback() -> None:
    assert not module().is_fallback


def test_missing_files_are_answered_in_the_settings_of_train_py(fake_mnist: FakeMnist) -> None:
    data = MNISTDataModule(configured("data=mnist", "data.mirror=http://127.0.0.1:1/").data, 0)
    with pytest.raises(DataError) as refused:
        data.prepare_data()
    for part in ("data/MNIST/raw", "data.mirror=ADDRESS", "MNIST_MIRROR", "data=mnist_5k"):
        assert part in str(refused.value)
    assert "--mirror" not in str(refused.value)
