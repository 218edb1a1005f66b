"""What is a training step, and what is measured by the way?"""

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import SumMetric
from torchmetrics.classification import MulticlassAccuracy

from mnist_cnn.checkpoint import KEY
from mnist_cnn.config import OptimizerConfig, SchedulerConfig
from mnist_cnn.data import Batch
from mnist_cnn.network import Network
from mnist_cnn.optimizers import build_optimizer, build_scheduler


class Classifier(pl.LightningModule):
    """A network that learns classes by cross-entropy on its logits.

    It logs `train/loss` and `train/accuracy` as Keras reports them, the mean over an epoch's images while the weights
    move and with dropout on, and `val/…` and `test/…`, the mean over all images with the weights at rest. `about` is
    what every checkpoint says of itself (`checkpoint.describe`).
    """

    def __init__(
        self, network: Network, optimizer: OptimizerConfig, scheduler: SchedulerConfig, about: dict[str, Any]
    ) -> None:
        super().__init__()
        self.network = network
        self.optimizer_config, self.scheduler_config, self.about = optimizer, scheduler, about
        classes = network.output_shape[0]
        self.train_metrics, self.val_metrics, self.test_metrics = (Measured(classes) for _ in range(3))

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, classes) of scaled images (N, C, H, W)."""
        logits: Tensor = self.network(images)
        return logits

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The batch's loss, for the optimiser."""
        return self._measure(batch, self.train_metrics)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Measure a validation batch."""
        self._measure(batch, self.val_metrics)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Measure a test batch."""
        self._measure(batch, self.test_metrics)

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
        optimizer = build_optimizer(self.optimizer_config, self.network.parameters())
        steps = int(self.trainer.estimated_stepping_batches)
        scheduler = build_scheduler(self.scheduler_config, optimizer, steps)
        if scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Make the checkpoint describe itself."""
        checkpoint[KEY] = self.about

    def _measure(self, batch: Batch, metrics: "Measured") -> Tensor:
        images, labels = batch
        logits = self(images)
        loss = F.cross_entropy(logits, labels)
        metrics.update(logits.detach(), labels, loss.detach())
        return loss

    def _log(self, part: str, metrics: "Measured") -> None:
        for name, value in metrics.compute().items():
            self.log(f"{part}/{name}", value, sync_dist=True)  # the same value in every process already
        metrics.reset()


class Measured(nn.Module):
    """Mean loss and accuracy over all images since the last reset, and over all processes."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        # None of them looks into its input: a look would wait for the GPU in every step. MeanMetric won't do for the
        # loss: told not to look, it forgets its weights (torchmetrics 1.9).
        self.loss, self.images = (SumMetric(nan_strategy="disable") for _ in range(2))
        self.accuracy = MulticlassAccuracy(classes, average="micro", validate_args=False)

    def update(self, logits: Tensor, labels: Tensor, loss: Tensor) -> None:
        """Add a batch: logits (N, classes), labels (N,), and its mean loss."""
        self.loss.update(loss * len(labels))
        self.images.update(len(labels))
        self.accuracy.update(logits, labels)

    def compute(self) -> dict[str, Tensor]:
        """`loss` and `accuracy`; nothing where no batch has been added."""
        if not self.loss.update_called:
            return {}
        return {"loss": self.loss.compute() / self.images.compute(), "accuracy": self.accuracy.compute()}

    def reset(self) -> None:
        """Begin anew."""
        self.loss.reset()
        self.images.reset()
        self.accuracy.reset()
