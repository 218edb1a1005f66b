"""What is a training step, and what is measured by the way?"""

import math
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import SumMetric

from mnist_cnn.config import OptimizerConfig, SchedulerConfig
from mnist_cnn.data.datamodule import Batch
from mnist_cnn.inference.checkpoint import KEY
from mnist_cnn.network import Network
from mnist_cnn.training.optimizers import build_optimizer, build_scheduler


class Classifier(pl.LightningModule):
    """A network that learns classes by cross-entropy on its logits.

    It logs `train/loss` and `train/accuracy` as Keras reports them, the mean over an epoch's images while the weights
    move and with dropout on, and `val/…` and `test/…`, the mean over all images with the weights at rest. `metadata` is
    what every checkpoint says of itself (`checkpoint.describe`).
    """

    def __init__(
        self, network: Network, optimizer: OptimizerConfig, scheduler: SchedulerConfig, metadata: dict[str, Any]
    ) -> None:
        super().__init__()
        self.network = network.to(memory_format=torch.channels_last)  # convolutions are faster so, also on GPUs
        self.optimizer_config, self.scheduler_config, self.metadata = optimizer, scheduler, metadata
        self.train_metrics, self.val_metrics, self.test_metrics = (Measured() for _ in range(3))
        self._step_size: int | None = None

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, classes) of scaled images (N, C, H, W)."""
        logits: Tensor = self.network(images)
        return logits

    def take_steps_itself(self, step_size: int) -> None:
        """Have `training_step` take an optimiser step for each `step_size` images of the batch that it is given.

        Lightning's own work for a batch, about half a millisecond, is then done once for several steps; the steps are
        the same, to the last bit.
        """
        self.automatic_optimization, self._step_size = False, step_size

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor | None:
        """The batch's loss, for the optimiser; None where the steps have been taken here."""
        if self._step_size is None:
            loss, logits = self._loss(batch)
        else:
            loss, logits = None, self._take_steps(batch, self._step_size)
        self.train_metrics.update(logits.detach(), batch[1])
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Measure a validation batch."""
        self.val_metrics.update(self._logits(batch[0]), batch[1])

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Measure a test batch."""
        self.test_metrics.update(self._logits(batch[0]), batch[1])

    def on_train_start(self) -> None:
        """Go on counting steps from where the stopped run was, whoever took them there."""
        loop = self.trainer.fit_loop.epoch_loop
        by_us, by_lightning = loop.manual_optimization.optim_step_progress, loop.automatic_optimization.optim_progress
        counters = by_us.total, by_lightning.optimizer.step.total
        most = max(counter.completed for counter in counters)
        for counter in counters:
            counter.ready = counter.completed = most

    def on_train_epoch_start(self) -> None:
        """Begin the epoch's means anew, also after one that was interrupted."""
        self.train_metrics.reset()

    def on_validation_epoch_end(self) -> None:
        """Log the epoch: the training part is complete by now, and the best checkpoint is chosen after this."""
        if self.trainer.state.fn == TrainerFn.FITTING:
            self._log("train", self.train_metrics)
        self._log("val", self.val_metrics)

    def on_test_epoch_end(self) -> None:
        """Log the test."""
        self._log("test", self.test_metrics)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """As configured; a scheduler moves the rate after every step."""
        # The loss scaling of float16 divides the gradients before they are clipped, which fused optimisers don't allow.
        fused = self.trainer.precision != "16-mixed"
        optimizer = build_optimizer(self.optimizer_config, self.network.parameters(), fused)
        if self._step_size is None:
            steps = int(self.trainer.estimated_stepping_batches)
        else:
            steps = math.ceil(len(self.trainer.datamodule.train) / self._step_size) * (self.trainer.max_epochs or 1)  # type: ignore[attr-defined]
        scheduler = build_scheduler(self.scheduler_config, optimizer, steps)
        if scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Make the checkpoint describe itself."""
        checkpoint[KEY] = self.metadata

    def _loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        images, labels = batch
        logits = self(images)
        return F.cross_entropy(logits, labels), logits

    def _logits(self, images: Tensor) -> Tensor:
        at_once = self.network.evaluation_batch if images.device.type == "cpu" else len(images)
        return torch.cat([self(part) for part in torch.split(images, at_once)])

    def _take_steps(self, batch: Batch, size: int) -> Tensor:
        optimizer, scheduler = self.optimizers(use_pl_optimizer=False), self.lr_schedulers()
        assert isinstance(optimizer, Optimizer)
        # Lightning's counts of steps, for checkpoints and for loggers. The optimiser that it wraps would count by
        # itself, for 70 µs a step.
        loop = self.trainer.fit_loop.epoch_loop
        taken = loop.manual_optimization.optim_step_progress.total
        outputs = []
        for images, labels in zip(*(torch.split(part, size) for part in batch), strict=True):
            optimizer.zero_grad()
            loss, logits = self._loss((images, labels))
            with torch.autocast(self.device.type, enabled=False):  # it is for the forward pass only
                loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            optimizer.step()
            taken.completed += 1
            torch.clear_autocast_cache()  # it holds the weights as they were before the step
            if isinstance(scheduler, LRScheduler):
                scheduler.step()
            outputs.append(logits.detach())
        loop._batches_that_stepped += len(outputs) - 1  # it adds one itself
        return torch.cat(outputs)

    def _log(self, part: str, metrics: "Measured") -> None:
        for name, value in metrics.compute().items():
            self.log(f"{part}/{name}", value, sync_dist=True)  # the same value in every process already
        metrics.reset()


class Measured(nn.Module):
    """Mean loss and accuracy over all images since the last reset, and over all processes.

    They stay where the network computes: nothing waits for the GPU before they are asked for.
    """

    def __init__(self) -> None:
        super().__init__()
        # None of them looks into its input, which would wait for the GPU. MeanMetric won't do for the loss: told not to
        # look, it forgets its weights (torchmetrics 1.9).
        self.loss, self.correct, self.images = (SumMetric(nan_strategy="disable") for _ in range(3))

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add images: logits (N, classes) and labels (N,)."""
        self.loss.update(F.cross_entropy(logits, labels, reduction="sum"))
        self.correct.update((logits.argmax(1) == labels).sum())
        self.images.update(labels.new_full((), len(labels)))  # a number would be sent there, which waits

    def compute(self) -> dict[str, Tensor]:
        """`loss` and `accuracy`; nothing where no batch has been added."""
        if not self.loss.update_called:
            return {}
        images = self.images.compute()
        return {"loss": self.loss.compute() / images, "accuracy": self.correct.compute() / images}

    def so_far(self) -> dict[str, float]:
        """The same of this process alone, without waiting for the others."""
        images = float(self.images.sum_value) or math.nan
        return {"loss": float(self.loss.sum_value) / images, "accuracy": float(self.correct.sum_value) / images}

    def reset(self) -> None:
        """Begin anew."""
        for metric in (self.loss, self.correct, self.images):
            metric.reset()
