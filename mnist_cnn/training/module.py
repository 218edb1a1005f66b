"""The LightningModule: what a training step is, what is logged, and which optimiser moves the weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Self

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.types import LRSchedulerConfig, OptimizerLRScheduler
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import MeanMetric, Metric
from torchmetrics.classification import MulticlassAccuracy

from mnist_cnn.data.datamodule import Batch, Batches, Shares
from mnist_cnn.inference import checkpoint
from mnist_cnn.network import Network
from mnist_cnn.training.loss import TrainingLoss
from mnist_cnn.training.optimizers import KERAS_ADAM, build_optimizer, build_scheduler, check_length


class Classifier(pl.LightningModule):
    """A network that learns classes by cross-entropy on its logits.

    `train/loss` and `train/accuracy` are what Keras reports: the mean over an epoch's images while the weights move,
    with dropout on, on augmented images and by the training loss, where those are asked for. `val/…` and `test/…` are
    means over all images with the weights at rest, and the loss there is always the cross-entropy. `optimizer` and
    `scheduler` are Hydra targets; `metadata` is added to every checkpoint.
    """

    def __init__(
        self,
        network: Network,
        optimizer: Mapping[str, Any],
        scheduler: Mapping[str, Any],
        metadata: Mapping[str, Any],
        training_loss: TrainingLoss | None = None,
    ) -> None:
        super().__init__()
        self.training_loss = training_loss or TrainingLoss()
        self.network = network.to(memory_format=torch.channels_last)  # faster convolutions, on GPUs too
        self.optimizer_target, self.scheduler_target, self.metadata = optimizer, scheduler, metadata
        classes = network.output_shape[0]
        self.train_accuracy, self.val_accuracy, self.test_accuracy = (
            MulticlassAccuracy(classes, average="micro", validate_args=False) for _ in range(3)
        )
        # Metrics of the module, so that a checkpoint can keep what they have of a running epoch.
        self.train_loss, self.val_loss, self.test_loss = (MeanMetric(nan_strategy="disable") for _ in range(3))

    @classmethod
    def load_from_checkpoint(
        cls,
        checkpoint_path: str | Path | IO[bytes],
        map_location: Any = None,
        hparams_file: str | Path | None = None,
        strict: bool | None = None,
        weights_only: bool | None = None,
        **kwargs: Any,
    ) -> Self:
        """The module in a checkpoint file, with the network that the file describes; `kwargs` go to `__init__`.

        Without an `optimizer` among them it trains with Keras' Adam: a checkpoint names no class that would be run. The
        last three named arguments are Lightning's; files are always read as weights only, and must fit in all parts.
        CheckpointError if the file can't be used.
        """
        file = Path(str(checkpoint_path))
        content = checkpoint.read(file)
        network = checkpoint.trained_network(content, file).network.train().requires_grad_(True)
        metadata = {checkpoint.METADATA_KEY: content[checkpoint.METADATA_KEY]}
        module = cls(network, **{"optimizer": KERAS_ADAM, "scheduler": {}, "metadata": metadata, **kwargs})
        return module if map_location is None else module.to(map_location)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, classes) of scaled images (N, C, H, W)."""
        logits: Tensor = self.network(images)
        return logits

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        logits, loss = self.logits_and_training_loss(batch)
        weight = self._weight(batch_idx)
        if weight:
            self._add("train", loss, logits, batch[1])
        self._log_means("train")
        return loss if weight == 1 else loss * weight

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        logits, loss = self.logits_and_loss(batch)
        self._add("val", loss, logits, batch[1])

    def on_validation_epoch_end(self) -> None:
        self._log_means("val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        logits, loss = self.logits_and_loss(batch)
        self._add("test", loss, logits, batch[1])

    def on_test_epoch_end(self) -> None:
        self._log_means("test")

    def configure_optimizers(self) -> OptimizerLRScheduler:
        # The loss scaling of float16 divides gradients before they are clipped, which fused optimisers don't allow.
        optimizer = build_optimizer(self.optimizer_target, self.parameters(), self.trainer.precision != "16-mixed")
        scheduler = build_scheduler(self.scheduler_target, optimizer, self.total_steps)
        if scheduler is None:
            return optimizer
        check_length(scheduler, self.total_steps, self.trainer.max_epochs or 1)
        return {"optimizer": optimizer, "lr_scheduler": scheduler}  # type: ignore[return-value]  # a plain dictionary

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Make the checkpoint describe itself."""
        checkpoint.update(self.metadata)

    def on_train_epoch_end(self) -> None:
        """Move ReduceLROnPlateau: Lightning does so only after `last.ckpt` is written, which would lack the move."""
        for config in self.trainer.lr_scheduler_configs:
            if _is_epochwise_plateau(config) and (self.trainer.current_epoch + 1) % config.frequency == 0:
                super().lr_scheduler_step(config.scheduler, self.trainer.callback_metrics[str(config.monitor)])

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Move any other scheduler, when Lightning says so."""
        configs = [config for config in self.trainer.lr_scheduler_configs if config.scheduler is scheduler]
        if not any(map(_is_epochwise_plateau, configs)):
            super().lr_scheduler_step(scheduler, metric)

    @property
    def total_steps(self) -> int:
        """The number of optimiser steps in the whole run."""
        return int(self.trainer.estimated_stepping_batches)

    def logits_and_loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits (N, classes) and the mean cross-entropy of a batch of scaled images and their labels."""
        images, labels = batch
        logits = self(images)
        return logits, F.cross_entropy(logits, labels)

    def logits_and_training_loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The same, with the loss that training minimises."""
        images, labels = batch
        logits = self(images)
        return logits, self.training_loss(images, logits, labels)

    def _add(self, stage: str, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Add a batch to the means over an epoch's images, in which a smaller last batch weighs less."""
        # One value for each image, not a weight: MeanMetric ignores weights where it does not look for NaN (1.9).
        self._metric(stage, "loss").update(loss.detach().expand(len(labels)))
        self._metric(stage, "accuracy").update(logits, labels)

    def _weight(self, batch_idx: int) -> float:
        """What this process's part of a training batch counts in the mean over processes, which DDP takes."""
        batches = self.trainer.train_dataloader
        plan = batches.batch_sampler if isinstance(batches, Batches) else None
        return plan.weight(batch_idx) if isinstance(plan, Shares) else 1.0

    def _log_means(self, stage: str) -> None:
        """Have Lightning read the means at the end of the epoch.

        A validation does so once, at its end: for each batch it would take half a millisecond, a tenth of the time that
        a batch of `tiny` takes.
        """
        for key in ("loss", "accuracy"):
            self.log(f"{stage}/{key}", self._metric(stage, key), on_step=False, on_epoch=True)

    def _metric(self, stage: str, key: str) -> Metric:
        metric: Metric = getattr(self, f"{stage}_{key}")
        return metric


def _is_epochwise_plateau(config: LRSchedulerConfig) -> bool:
    return config.reduce_on_plateau and config.interval == "epoch"
