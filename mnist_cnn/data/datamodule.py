"""How do images become batches? Fetched, cut into training and validation, gathered, and scaled on their device."""

import os
import sys
from collections.abc import Iterator

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DistributedSampler, Sampler, SequentialSampler, TensorDataset

from mnist_cnn.config import DataConfig
from mnist_cnn.data import datasets
from mnist_cnn.data.images import Images, ImageSet, Preprocessing
from mnist_cnn.data.split import split_indices
from mnist_cnn.errors import DataError

Batch = tuple[Tensor, Tensor]

# The order of an epoch follows from seed · this + epoch: no epoch of seed=1 repeats the order of one of seed=0.
_EPOCHS_PER_SEED = 100_003


class MNISTDataModule(pl.LightningDataModule):
    """One data set as batches of float images (N, C, H, W) and classes (N,).

    After `setup`, `train`, `val` and `test` are its uint8 images, and `preprocessing` what is done to a batch of them:
    as given, or else as configured. Training batches come `batches_at_once` in one tensor, one after another.
    """

    def __init__(
        self, config: DataConfig, seed: int, preprocessing: Preprocessing | None = None, dataset: str | None = None
    ) -> None:
        super().__init__()
        self._given = preprocessing
        from dataclasses import replace

        self.config, self.seed = replace(config, name=dataset or config.name), seed
        self._auto = config.name == "auto"
        self.dataset: ImageSet | None = None
        self._fetched = False
        self.batches_at_once = 1

    @property
    def dataset_name(self) -> str:
        """The data set that was really loaded, which `data=auto` leaves open until then."""
        return self.dataset.name if self.dataset else self.config.name

    @property
    def is_fallback(self) -> bool:
        return self._auto and self.dataset_name != "mnist"

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
        self.train, self.val = full.subset(train), full.subset(val)
        self.test = self.dataset.test
        standard = self.config.normalize == "standard"
        own = Preprocessing.standard(self.train.images) if standard else Preprocessing()
        self.preprocessing = self._given or own

    def train_dataloader(self) -> "Batches":
        """Every image once an epoch, in an order that follows from seed and epoch; the last batch is smaller."""
        world, rank = self._world()
        order: Sampler[int] = DistributedSampler(
            TensorDataset(self.train.labels), world, rank, shuffle=True, seed=self.seed * _EPOCHS_PER_SEED
        )
        if self.trainer and self.trainer.overfit_batches:  # type: ignore[attr-defined]  # set by a connector
            order = SequentialSampler(self.train)  # the same few batches in every epoch
        return self._batches(self.train, self.config.batch_size * self.batches_at_once, order)

    def val_dataloader(self) -> "Batches":
        """Every validation image once, over all processes together."""
        return self._evaluation_batches(self.val)

    def test_dataloader(self) -> "Batches":
        """Every test image once, over all processes together."""
        return self._evaluation_batches(self.test)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Scale the images, where they are now."""
        images, labels = batch
        return self.preprocessing(images), labels

    def _evaluation_batches(self, images: Images) -> "Batches":
        world, rank = self._world()
        # No DistributedSampler here: it would repeat images to make all processes' shares equal.
        return self._batches(images, self.config.eval_batch_size, range(rank, len(images), world))

    def _batches(self, images: Images, batch_size: int, order: Sampler[int] | range) -> "Batches":
        device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
        return Batches(images, BatchSampler(order, batch_size, drop_last=False), device)

    def _world(self) -> tuple[int, int]:
        return (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)


class Batches:
    """uint8 images and their classes in batches on `device`, those of a sampler, as DataLoader would make them.

    Each batch is one gather, where the images lie: on the device itself if they fit into half of its free memory, or
    else in the memory of the host, from which batches are sent without waiting.
    """

    def __init__(self, images: Images, batch_sampler: BatchSampler, device: torch.device) -> None:
        self.images = images.to(device) if _fits(images, device) else images
        self.batch_sampler = batch_sampler  # the name under which Lightning looks for it, to tell it the epoch
        self.device = device

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[Batch]:
        source = self.images.images.device
        order = torch.tensor(list(self.batch_sampler.sampler)).to(source)
        for chosen in torch.split(order, self.batch_sampler.batch_size):
            images, labels = (part.index_select(0, chosen) for part in (self.images.images, self.images.labels))
            if source != self.device:
                images, labels = (part.pin_memory().to(self.device, non_blocking=True) for part in (images, labels))
            yield images, labels


def _fits(images: Images, device: torch.device) -> bool:
    return device.type != "cuda" or images.images.nbytes < torch.cuda.mem_get_info(device)[0] / 2


def _warning_of_digits(why: str) -> str:
    lines = [
        "MNIST COULD NOT BE HAD. This run uses the bundled digits instead:",
        "1,797 small images from scikit-learn. They are not MNIST, and no accuracy on them is one on MNIST.",
    ]
    bar = "!" * (max(map(len, lines)) + 6)
    return "\n".join(["", bar, *(f"!! {line}" for line in lines), bar, why, ""])
