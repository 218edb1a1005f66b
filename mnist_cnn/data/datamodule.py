"""The data module: a data set as Lightning wants it, in batches of scaled images.

It serves `train.py`, so its errors name the settings of that command line.
"""

import os
import sys
from collections.abc import Iterator
from itertools import islice

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DistributedSampler, Sampler, SequentialSampler

from mnist_cnn.config import AugmentationConfig, DataConfig
from mnist_cnn.data import datasets
from mnist_cnn.data.augmentation import Augmentation
from mnist_cnn.data.datasets import DataFiles, Dataset, MissingFilesError
from mnist_cnn.data.images import Images, Preprocessing
from mnist_cnn.data.sources import OWN, kind_of
from mnist_cnn.data.split import split_indices
from mnist_cnn.errors import ConfigError, DataError, one_line

Batch = tuple[Tensor, Tensor]

# The order of an epoch follows from seed · this + epoch: no epoch of seed=1 repeats the order of one of seed=0.
_EPOCHS_PER_SEED = 100_003


class MNISTDataModule(pl.LightningDataModule):
    """One data set as batches of float images (N, C, H, W) and classes (N,).

    `source` knows the classes and the shape of the images. After `setup`, `train`, `val` and `test` are its uint8
    images, and `preprocessing` is what scales a batch of them: the one given, or else the configured one. `dataset` is
    what `auto` stands for, where that is already decided. Training images are augmented as configured. A training batch
    is `batches_at_once` consecutive batches in one.
    """

    def __init__(
        self,
        config: DataConfig,
        seed: int,
        preprocessing: Preprocessing | None = None,
        dataset: str | None = None,
        augmentation: AugmentationConfig | None = None,
    ) -> None:
        super().__init__()
        self.config, self.seed = config, seed
        self._augmentation = augmentation or AugmentationConfig()
        self.dataset: Dataset | None = None
        self.batches_at_once = 1
        self._preprocessing = preprocessing
        self._name = dataset or config.name
        shape = (3 if config.color else 1, config.size or 28, config.size or 28)
        self.source = datasets.source_of(DataFiles(self._name, config.root, config.mirror, config.file or ""), shape)
        self._prepared = False

    @property
    def dataset_name(self) -> str:
        """The name of the data set that was loaded, or before `setup` of the one that was asked for."""
        return self.dataset.name if self.dataset else self._name

    @property
    def is_fallback(self) -> bool:
        """Whether `auto` was asked for and MNIST was not available."""
        return self.config.name == "auto" and self.dataset_name not in ("auto", "mnist")

    def prepare_data(self) -> None:
        """Fetch the files, in the first process of each machine; DataError where they are not available."""
        # train.py calls this in every process, and before Lightning does.
        if self._prepared or os.environ.get("LOCAL_RANK", "0") != "0":
            return
        self._prepared = True
        try:
            datasets.fetch(self._name, self.config.root, self.config.mirror)
        except DataError as error:
            why = str(error)
            if isinstance(error, MissingFilesError):
                why += _more_suggestions(self._name)
            if self._name != "auto":
                raise DataError(why) from None
            print(_fallback_warning(why), file=sys.stderr)

    def setup(self, stage: str | None = None) -> None:
        """Read, split and measure the images, once."""
        if self.dataset is not None:
            return
        self.dataset = datasets.load(self._name, self.config.root, self.source)
        full = self.dataset.train
        try:
            train, val = split_indices(full.labels, self.config.val_fraction, self.config.split, self.seed)
        except ValueError as error:
            raise ConfigError(f"data.val_fraction={error}.") from error
        self.train, self.val, self.test = full.subset(train), full.subset(val), self.dataset.test
        validated = set(self.val.labels.tolist())
        without = [name for label, name in enumerate(self.dataset.classes) if label not in validated]
        if without and len(val) and kind_of(self._name) in OWN:
            names = one_line(", ".join(without))
            print(
                f"note: classes without a validation image: {names}; data.split=stratified avoids it", file=sys.stderr
            )
        standard = self.config.normalize == "standard"
        configured = Preprocessing.standard(self.train.images) if standard else Preprocessing()
        self.preprocessing = self._preprocessing or configured

    def train_dataloader(self) -> "Batches":
        """Every image once an epoch, in an order that follows from seed and epoch; the last batch is smaller."""
        world, rank = self._world()
        order: Sampler[int] = DistributedSampler(
            self.train,  # type: ignore[arg-type]  # only its length is used
            1, 0, shuffle=True, seed=self.seed * _EPOCHS_PER_SEED,
        )  # fmt: skip
        if self.trainer and self.trainer.overfit_batches:  # type: ignore[attr-defined]  # set by a connector
            order = SequentialSampler(self.train)  # the same few batches in every epoch
        plan = Shares(order, self.config.batch_size * self.batches_at_once, world, rank)
        return self._batches(self.train, plan, self._augmenter())

    def val_dataloader(self) -> "Batches":
        return self._evaluation_batches(self.val)

    def augmented(self, count: int) -> Images | None:
        """The first training images as the first epoch shows them, for the report; None if they are not augmented."""
        augment, first = self._augmenter(), self.train.subset(torch.arange(min(count, len(self.train))))
        if augment is None:
            return None
        augment.start_epoch(0, first.images.device)
        return Images(augment(first.images, torch.arange(len(first))).round().to(torch.uint8), first.labels)

    def _augmenter(self) -> Augmentation | None:
        height, width = self.train.images.shape[2:]
        return (
            Augmentation(self._augmentation, self.seed, len(self.train), (height, width))
            if self._augmentation
            else None
        )

    def test_dataloader(self) -> "Batches":
        return self._evaluation_batches(self.test)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Scale the images, on the device where they are now."""
        images, labels = batch
        return self.preprocessing(images), labels

    def _evaluation_batches(self, images: Images) -> "Batches":
        world, rank = self._world()
        # No DistributedSampler here: it would repeat images to make the processes' shares equal.
        plan = BatchSampler(range(rank, len(images), world), self.config.eval_batch_size, drop_last=False)
        return self._batches(images, plan)

    def _batches(self, images: Images, plan: BatchSampler, augment: Augmentation | None = None) -> "Batches":
        device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
        return Batches(images, plan, device, augment)

    def _world(self) -> tuple[int, int]:
        return (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)


class Shares(BatchSampler):
    """What one of several processes takes of each batch, of `size` images a process, in the order of one process.

    All processes take every step together. Where the last batch has fewer images than there are processes, those that
    get none take its first image, which then counts for nothing.
    """

    def __init__(self, order: Sampler[int] | list[int], size: int, world: int, rank: int) -> None:
        super().__init__(order, size * world, drop_last=False)
        self._order, self._world, self._rank = order, world, rank

    def __iter__(self) -> Iterator[list[int]]:
        for batch in super().__iter__():
            yield batch[self._rank :: self._world] or batch[:1]

    def weight(self, index: int) -> float:
        """How much the mean over this process's part of a batch counts in the mean over all processes.

        It is 1 where all parts have as many images.
        """
        images = min(self.batch_size, len(self._order) - index * self.batch_size)  # type: ignore[arg-type]  # these have one
        return len(range(self._rank, images, self._world)) * self._world / images


class Batches:
    """The batches of a sampler: images and their classes on `device`, each batch gathered from the images in one step.

    The images are uint8 or, where they are augmented, float32 with values from 0 to 255. They are kept on the device if
    they fit into half of its free memory, or else in the memory of the host, from which batches are sent without
    waiting.
    """

    def __init__(
        self, images: Images, batch_sampler: BatchSampler, device: torch.device, augment: Augmentation | None = None
    ) -> None:
        self.images = images.to(device) if _fits(images, device) else images
        self.batch_sampler = batch_sampler  # Lightning tells the sampler of an attribute of this name the epoch
        self.device, self._augment = device, augment
        self.taken = 0  # batches of the running epoch
        self._first = 0  # the batch that the next pass begins with

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[Batch]:
        images, labels = self.images.images, self.images.labels
        self.taken, self._first = self._first, 0
        if self._augment:  # a sampler of always the same images has no epochs
            self._augment.start_epoch(getattr(self.batch_sampler.sampler, "epoch", 0), self.device)
        for chosen in islice(self.batch_sampler, self.taken, None):
            self.taken += 1
            indices = torch.tensor(chosen).to(images.device, non_blocking=True)
            batch = images.index_select(0, indices), labels.index_select(0, indices)
            if images.device != self.device:
                batch, indices = (self._sent(batch[0]), self._sent(batch[1])), self._sent(indices)
            yield (self._augment(batch[0], indices), batch[1]) if self._augment else batch

    def go_on_after(self, taken: int, batch_size: int) -> None:
        """Begin the next pass after so many batches; ValueError if those had another size, or there are not so many."""
        if batch_size != self.batch_sampler.batch_size or not 0 <= taken <= len(self):
            raise ValueError(f"{taken} batches of {batch_size} images were taken, of {len(self)} of another size")
        self._first = self.taken = taken

    def _sent(self, part: Tensor) -> Tensor:
        return part.pin_memory().to(self.device, non_blocking=True)


def _fits(images: Images, device: torch.device) -> bool:
    return device.type != "cuda" or images.images.nbytes < torch.cuda.mem_get_info(device)[0] / 2


def _more_suggestions(name: str) -> str:
    from_environment = ", or MNIST_MIRROR=ADDRESS in the environment" if name in ("auto", "mnist") else ""
    return (
        f"\n  - name a folder or web address that has them: data.mirror=ADDRESS{from_environment}"
        "\n  - train on 5,000 of MNIST's images, which come with a package: data=mnist_5k"
    )


def _fallback_warning(why: str) -> str:
    lines = [
        "MNIST IS NOT AVAILABLE. This run uses mnist_5k instead: 5,000 of MNIST's 60,000 training images,",
        "4,000 to train on and 1,000 to test on. Its accuracy is not one on MNIST's test images.",
    ]
    bar = "!" * (max(map(len, lines)) + 6)
    return "\n".join(["", bar, *(f"!! {line}" for line in lines), bar, why, ""])
