"""The LightningModule: what a training step is, what is logged, and which optimiser moves the weights."""

from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.classification import MulticlassAccuracy

from mnist_cnn.data.datamodule import Batch
from mnist_cnn.network import Network
from mnist_cnn.training.optimizers import build_optimizer, build_scheduler


class Classifier(pl.LightningModule):
    """A network that learns classes by cross-entropy on its logits.

    `train/loss` and `train/accuracy` are what Keras reports: the mean over an epoch's images while the weights move,
    with dropout on. `val/…` and `test/…` are means over all images with the weights at rest. `optimizer` and
    `scheduler` are Hydra targets; `metadata` is added to every checkpoint.
    """

    def __init__(
        self,
        network: Network,
        optimizer: Mapping[str, Any],
        scheduler: Mapping[str, Any],
        metadata: Mapping[str, Any],
    ) -> None:
        super().__init__()
        self.network = network.to(memory_format=torch.channels_last)  # faster convolutions, on GPUs too
        self.optimizer_target, self.scheduler_target, self.metadata = optimizer, scheduler, metadata
        classes = network.output_shape[0]
        self.train_accuracy, self.val_accuracy, self.test_accuracy = (
            MulticlassAccuracy(classes, average="micro", validate_args=False) for _ in range(3)
        )

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, classes) of scaled images (N, C, H, W)."""
        logits: Tensor = self.network(images)
        return logits

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        logits, loss = self.logits_and_loss(batch)
        self._log_means("train", loss, logits, batch[1], self.train_accuracy)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        logits, loss = self.logits_and_loss(batch)
        self._log_means("val", loss, logits, batch[1], self.val_accuracy)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        logits, loss = self.logits_and_loss(batch)
        self._log_means("test", loss, logits, batch[1], self.test_accuracy)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        # The loss scaling of float16 divides gradients before they are clipped, which fused optimisers don't allow.
        optimizer = build_optimizer(self.optimizer_target, self.parameters(), self.trainer.precision != "16-mixed")
        scheduler = build_scheduler(self.scheduler_target, optimizer, self.total_steps)
        if scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": scheduler}  # type: ignore[return-value]  # a plain dictionary

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Make the checkpoint describe itself."""
        checkpoint.update(self.metadata)

    @property
    def total_steps(self) -> int:
        """The number of optimiser steps in the whole run."""
        return int(self.trainer.estimated_stepping_batches)

    def logits_and_loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits (N, classes) and the mean cross-entropy of a batch of scaled images and their labels."""
        images, labels = batch
        logits = self(images)
        return logits, F.cross_entropy(logits, labels)

    def _log_means(
        self, stage: str, loss: Tensor, logits: Tensor, labels: Tensor, accuracy: MulticlassAccuracy
    ) -> None:
        """Log the means over an epoch's images, in which a smaller last batch weighs less."""
        accuracy.update(logits, labels)
        size = len(labels)
        self.log(f"{stage}/loss", loss, on_step=False, on_epoch=True, batch_size=size, sync_dist=True)
        self.log(f"{stage}/accuracy", accuracy, on_step=False, on_epoch=True, batch_size=size)
