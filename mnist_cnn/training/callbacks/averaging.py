"""Callbacks that are parts of a recipe: averaged weights, and dropout that grows from epoch to epoch."""

import math
import sys
from itertools import chain
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback, WeightAveraging
from torch import nn


class AveragedWeights(WeightAveraging):
    """Keeps an average of the weights over the steps; it is what is validated, kept in checkpoints and tested.

    With a `decay` the average is exponential (EMA): a step counts `decay` times as much as the one after it. After t
    steps the decay is at most (1 + t) / (10 + t), as in TensorFlow's ExponentialMovingAverage, so that the first
    weights are soon forgotten. With `decay` null, all steps count alike (SWA, Izmailov et al. 2018). The average begins
    with the epoch `first_epoch`, counted from 1; until then the weights themselves are used. The moving averages of
    batch normalisation are averaged as well. `last.ckpt` also holds the weights that training continues from.
    ValueError if an argument is out of range.
    """

    def __init__(self, decay: float | None = 0.999, first_epoch: int = 1) -> None:
        if decay is not None and not 0 <= decay < 1:
            raise ValueError("decay must be at least 0 and below 1, or null for a plain mean")
        if first_epoch < 1:
            raise ValueError("first_epoch must be at least 1")
        self._first_epoch = first_epoch
        self._decay = decay
        super().__init__()

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Make the average where the weights will be: Lightning makes it before it moves them to a GPU."""
        super().setup(trainer, pl_module, stage)
        if self._average_model is not None:
            self._average_model.to(trainer.strategy.root_device)
            # The count is read in every step; on a GPU each reading would wait until the step is computed.
            self._average_model.n_averaged = self._average_model.n_averaged.cpu()

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_fit_start(trainer, pl_module)
        last = trainer.max_epochs or 1
        if self._first_epoch > last:
            begins = f"it would begin with epoch {self._first_epoch}, and the run ends with epoch {last}"
            _note(trainer, f"averaging has no effect: {begins}")

    def follow(self, module: pl.LightningModule, step: int) -> None:
        """Take the weights after an optimiser step, counted from 1, into the average."""
        if module.current_epoch + 1 >= self._first_epoch:
            self._update(module)
        self._latest_update_step = step

    @torch.no_grad()
    def _update(self, module: pl.LightningModule) -> None:
        """Move the average towards the weights; the first time, onto them.

        `AveragedModel.update_parameters` would copy the count to the GPU and wait for it.
        """
        average = self._average_model
        assert average is not None
        taken = int(average.n_averaged)
        share = 1 / (1 + taken)  # of this step: all count alike
        if self._decay is not None and taken:
            share = 1 - min(self._decay, (1 + taken) / (10 + taken))
        averages = chain(average.module.parameters(), average.module.buffers())
        torch._foreach_lerp_([*averages], [*module.parameters(), *module.buffers()], share)
        average.n_averaged += 1

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take the step into the average, unless the module has already done so, step by step."""
        if trainer.global_step > self._latest_update_step:
            self.follow(pl_module, trainer.global_step)

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._begin(pl_module)
        super().on_validation_epoch_start(trainer, pl_module)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._begin(pl_module)
        super().on_save_checkpoint(trainer, pl_module, checkpoint)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._begin(pl_module)
        super().on_train_end(trainer, pl_module)

    def _begin(self, module: pl.LightningModule) -> None:
        """Before its first step, set the average to the current weights; Lightning would leave the initial ones."""
        if self._average_model is not None and self._average_model.n_averaged == 0:
            self._average_model.module.load_state_dict(module.state_dict())


class DropoutSchedule(Callback):
    """Moves the rate of every dropout layer in equal steps, from epoch to epoch.

    In the first epoch it is `start` times the rate of the layer, in the last `end` times that. ValueError if a factor
    is negative or infinite.
    """

    def __init__(self, start: float = 0.0, end: float = 1.0) -> None:
        for factor in (start, end):
            if not 0 <= factor < math.inf:
                raise ValueError("start and end must be finite numbers of at least 0")
        self._start, self._end = start, end
        self._rates: dict[str, float] = {}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._rates = {name: module.p for name, module in _dropouts(pl_module)}

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self._rates:
            _note(trainer, "the dropout schedule has no effect: the network has no dropout layer")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.on_train_epoch_start(trainer, pl_module)  # which Lightning leaves out for an epoch that is continued

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        last = max((trainer.max_epochs or 1) - 1, 1)
        factor = self._start + (self._end - self._start) * min(trainer.current_epoch / last, 1)
        for name, module in _dropouts(pl_module):
            module.p = min(self._rates[name] * factor, 1.0)


def _note(trainer: pl.Trainer, what: str) -> None:
    if trainer.is_global_zero:
        print(f"note: {what}", file=sys.stderr)


def _dropouts(module: nn.Module) -> list[tuple[str, nn.Dropout | nn.Dropout2d]]:
    return [(name, part) for name, part in module.named_modules() if isinstance(part, nn.Dropout | nn.Dropout2d)]
