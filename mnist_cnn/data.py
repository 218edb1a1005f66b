"""How do images become batches? Fetched, cut into training and validation, gathered, and scaled on their device."""

import os
import sys
from typing import TypeVar

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Sampler

from mnist_cnn import datasets
from mnist_cnn.config import DataConfig
from mnist_cnn.errors import DataError
from mnist_cnn.images import Images, ImageSet, Preprocessing
from mnist_cnn.splits import split_indices

Batch = tuple[Tensor, Tensor]
T = TypeVar("T")

# The order of an epoch follows from seed · this + epoch: no epoch of seed=1 repeats the order of one of seed=0.
_EPOCHS_PER_SEED = 100_003


class MNISTDataModule(pl.LightningDataModule):
    """One data set as batches of float images (N, C, H, W) and classes (N,).

    After `setup`, `train`, `val` and `test` are its uint8 images, and `preprocessing` what is done to a batch of them:
    as given, or else as configured.
    """

    def __init__(self, config: DataConfig, seed: int, preprocessing: Preprocessing | None = None) -> None:
        super().__init__()
        self._given = preprocessing
        self.config, self.seed = config, seed
        self.dataset: ImageSet | None = None
        self._fetched = False

    @property
    def dataset_name(self) -> str:
        """The data set that was really loaded, which `data=auto` leaves open until then."""
        return self.dataset.name if self.dataset else self.config.name

    def prepare_data(self) -> None:
        """Fetch the files, in the first process of each machine; DataError where they can't be had."""
        if self._fetched or self.dataset is not None or os.environ.get("LOCAL_RANK", "0") != "0":
            return
        self._fetched = True
        if self.config.name != "auto":
            datasets.fetch(self.config.name, self.config.root, self.config.mirror)
            return
        try:
            datasets.fetch("mnist", self.config.root, self.config.mirror)
        except DataError as error:
            print(_warning_of_digits(str(error)), file=sys.stderr)

    def setup(self, stage: str | None = None) -> None:
        """Read, cut and measure the images; the same every time, and done once."""
        if self.dataset is not None:
            return
        self.dataset = datasets.load(self.config.name, self.config.root)
        full = self.dataset.train
        train, val = split_indices(full.labels, self.config.val_fraction, self.config.split, self.seed)
        self.train = Images(full.images[train], full.labels[train])
        self.val = Images(full.images[val], full.labels[val])
        self.test = self.dataset.test
        standard = self.config.normalize == "standard"
        own = Preprocessing.standard(self.train.images) if standard else Preprocessing()
        self.preprocessing = self._given or own

    def train_dataloader(self) -> DataLoader[Batch]:
        """Every image once an epoch, in an order that follows from seed and epoch; the last batch is smaller."""
        world, rank = self._world()
        order: DistributedSampler[int] = DistributedSampler(
            Batches(self.train), world, rank, shuffle=True, seed=self.seed * _EPOCHS_PER_SEED
        )
        return self._loader(self.train, self.config.batch_size, order)

    def val_dataloader(self) -> DataLoader[Batch]:
        """Every validation image once, over all processes together."""
        return self._evaluation_loader(self.val)

    def test_dataloader(self) -> DataLoader[Batch]:
        """Every test image once, over all processes together."""
        return self._evaluation_loader(self.test)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Scale the images, where they are now."""
        images, labels = batch
        return self.preprocessing(images), labels

    def _evaluation_loader(self, images: Images) -> DataLoader[Batch]:
        world, rank = self._world()
        # No DistributedSampler here: it would repeat images to make all processes' shares equal.
        return self._loader(images, self.config.eval_batch_size, range(rank, len(images), world))

    def _loader(self, images: Images, batch_size: int, order: Sampler[int] | range) -> DataLoader[Batch]:
        on_gpu = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        return DataLoader(
            Batches(images),
            batch_size,
            sampler=order,
            collate_fn=_as_it_is,
            pin_memory=on_gpu,
            generator=torch.Generator(),  # or each pass over the images would move dropout's random numbers on
        )

    def _world(self) -> tuple[int, int]:
        return (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)


class Batches(Dataset[Batch]):
    """uint8 images, of which a whole batch is gathered at once instead of image by image."""

    def __init__(self, images: Images) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Batch:
        return self.images.images[index], self.images.labels[index]

    def __getitems__(self, indices: list[int]) -> Batch:
        """(N, C, H, W) and (N,) of these indices; DataLoader prefers it to one `__getitem__` an image."""
        chosen = torch.tensor(indices)
        return self.images.images[chosen], self.images.labels[chosen]


def _as_it_is(batch: T) -> T:
    return batch


def _warning_of_digits(why: str) -> str:
    lines = [
        "MNIST COULD NOT BE HAD. This run uses the bundled digits instead:",
        "1,797 small images from scikit-learn. They are not MNIST, and no accuracy on them is one on MNIST.",
    ]
    bar = "!" * (max(map(len, lines)) + 6)
    return "\n".join(["", bar, *(f"!! {line}" for line in lines), bar, why, ""])
