"""Takes several optimiser steps for each of Lightning's batches, which makes small steps cheap.

Lightning's own work for a batch takes about half a millisecond, a third of a whole step of `tiny`. Here it is done once
for about 2,048 images: the data module gathers them at once, and `training_step` takes the single steps. Weights,
moments, `global_step` and logged steps are the same to the last bit. `benchmarks/fast_steps.py` measures the gain.

This module changes counters inside Lightning's loops, which are not public; `pyproject.toml` limits Lightning to the
versions that this is tested with.
"""

import math
from functools import partial
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import EarlyStopping
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from mnist_cnn.config import Config
from mnist_cnn.data.datamodule import Batch, MNISTDataModule
from mnist_cnn.training.callbacks import (
    AveragedWeights,
    BestAndLast,
    DropoutSchedule,
    EpochState,
    EpochWatch,
    Finite,
    FirstBatch,
    History,
    Progress,
    StopRequest,
    callbacks_of,
)
from mnist_cnn.training.module import Classifier

# How many images Lightning sees at once: enough that its own work does not count, few enough that the progress bar
# moves and Ctrl-C is heard.
_IMAGES_AT_ONCE = 2048

# Callbacks that have no hook for single batches, or whose hooks also work with several. Any other may rely on single
# steps.
_EPOCHWISE = (
    AveragedWeights, BestAndLast, DropoutSchedule, EarlyStopping, EpochState, EpochWatch, Finite, FirstBatch, History,
    Progress, StopRequest,
)  # fmt: skip


def why_not(config: Config, trainer: pl.Trainer) -> str | None:
    """Why Lightning has to take the steps one by one, or None if nothing in this run depends on that."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]  # set by a connector
        if type(callback) not in _EPOCHWISE:
            return f"the callback {type(callback).__name__} may need single steps"
    if config.trainer.extra:
        return f"trainer.{next(iter(config.trainer.extra))} may need single steps"
    if config.scheduler and (config.scheduler.get("interval"), config.scheduler.get("frequency", 1)) != ("step", 1):
        return "the scheduler does not move after every step"
    if config.trainer.precision == "16-mixed":
        return "float16 scales its loss in single steps"
    if trainer.world_size > 1:
        return "several processes take them together"
    return None


class FastClassifier(Classifier):
    """A Classifier that splits each large batch and takes one optimiser step per part."""

    automatic_optimization = False

    def hand_over(self, data: MNISTDataModule, most: int | None = None) -> "FastClassifier":
        """Have the data module hand over several batches at once, at most `most`; returns this module."""
        self._batch_size = data.config.batch_size
        data.batches_at_once = max(1, min(_IMAGES_AT_ONCE // self._batch_size, most or _IMAGES_AT_ONCE))
        return self

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:  # type: ignore[override]  # Lightning takes both
        # Not the optimiser that Lightning wraps: it runs the precision plug-in for each step, to count it, for 70 µs.
        optimizer, scheduler = self.optimizers(use_pl_optimizer=False), self.lr_schedulers()
        assert isinstance(optimizer, Optimizer)
        averages, taken = callbacks_of(self.trainer, AveragedWeights), self.trainer.global_step
        outputs: dict[int, tuple[Tensor, Tensor]] = {}

        def closure(number: int, part: Batch) -> Tensor:
            optimizer.zero_grad()
            logits, loss = self.logits_and_training_loss(part)
            with torch.autocast(self.device.type, enabled=False):  # it is for the forward pass only
                loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            outputs[number] = logits.detach(), loss.detach()
            return loss

        for number, part in enumerate(zip(*(torch.split(whole, self._batch_size) for whole in batch), strict=True)):
            optimizer.step(partial(closure, number, part))  # type: ignore[arg-type]  # typed as giving a float
            if isinstance(scheduler, LRScheduler):
                scheduler.step()
            for average in averages:
                average.follow(self, taken + number + 1)
        self._count(len(outputs))
        logits = torch.cat([part for part, _ in outputs.values()])
        losses = torch.stack([loss for _, loss in outputs.values()])
        sizes = losses.new_tensor([len(part) for part, _ in outputs.values()])
        loss = (losses * sizes).sum() / len(batch[1])
        self._add("train", loss, logits, batch[1])
        self._log_means("train")
        return {"loss": loss, "losses": losses}

    def _count(self, steps: int) -> None:
        for counter in self._step_counters():
            counter.ready = counter.completed = counter.completed + steps
        self.trainer.fit_loop.epoch_loop._batches_that_stepped += steps - 1  # Lightning adds one itself

    def on_train_start(self) -> None:
        """Continue the count of a resumed run, whichever way its steps were taken."""
        counters = self._step_counters()
        taken = max(counter.completed for counter in counters)
        for counter in counters:
            counter.ready = counter.completed = taken

    def _step_counters(self) -> tuple[Any, Any]:
        """Lightning's two counts of steps, for manual and automatic optimisation: a resumed run may take either."""
        loop = self.trainer.fit_loop.epoch_loop
        manual, automatic = loop.manual_optimization.optim_step_progress, loop.automatic_optimization.optim_progress
        return manual.total, automatic.optimizer.step.total

    @property
    def total_steps(self) -> int:
        data: MNISTDataModule = self.trainer.datamodule  # type: ignore[attr-defined]  # set by a connector
        return math.ceil(len(data.train) / self._batch_size) * (self.trainer.max_epochs or 1)
