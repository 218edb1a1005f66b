"""The callback that writes a run's checkpoints: its best epoch, and where it was last."""

import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint

from mnist_cnn.data.datamodule import MNISTDataModule
from mnist_cnn.training.callbacks.stopping import StopRequest, any_process, check_weights


class BestAndLast(ModelCheckpoint):
    """Keeps the epoch with the best `monitor` as `best.ckpt`, and the last epoch as `last.ckpt`.

    With `every_n_train_steps` or `every_n_minutes`, `last.ckpt` is also written within an epoch, at the first batch
    that ends so many optimiser steps or minutes after it was written last. A run that is asked to stop writes it too.

    Without validation images nothing tells which epoch is the best, and `best.ckpt` is the last one too. A run's
    results are those of `best.ckpt`, so a run has exactly one BestAndLast; for further checkpoints, add a
    ModelCheckpoint. (Its `save_last` is not used here: in Lightning 2.6 it writes only when the best improves.)
    ValueError if `every_n_train_steps` or `every_n_minutes` is not a number above zero.
    """

    def __init__(
        self,
        dirpath: str,
        monitor: str = "val/accuracy",
        mode: str = "max",
        every_n_train_steps: int | None = None,
        every_n_minutes: float | None = None,
    ) -> None:
        super().__init__(
            dirpath, "best", monitor=monitor, mode=mode, save_on_train_epoch_end=True, enable_version_counter=False
        )
        for value, kinds in ((every_n_train_steps, int), (every_n_minutes, int | float)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, kinds) or not value > 0):
                raise ValueError("it must be a number above zero, of whole steps or of minutes, or null")
        self.steps_apart = every_n_train_steps
        self._seconds_apart = 60 * every_n_minutes if every_n_minutes else None
        self._step = self._time = 0.0  # when last.ckpt was written

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Watch nothing where there is nothing to validate on."""
        super().setup(trainer, pl_module, stage)
        data = trainer.datamodule  # type: ignore[attr-defined]  # set by a connector
        if isinstance(data, MNISTDataModule) and not len(data.val):
            self.monitor = None

    @property
    def last(self) -> Path:
        return Path(str(self.dirpath)) / "last.ckpt"

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._step, self._time = trainer.global_step, time.monotonic()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write `last.ckpt` where it is time for it. The last batch of an epoch leaves that to the epoch's end."""
        if trainer.is_last_batch or trainer.fit_loop._should_accumulate():
            return
        due = self.steps_apart is not None and trainer.global_step - self._step >= self.steps_apart
        if self._seconds_apart is not None:
            due |= any_process(trainer, time.monotonic() - self._time >= self._seconds_apart)
        request = StopRequest.of(trainer)
        asked = request.is_asked(trainer)
        if due or asked:
            check_weights(trainer)
            self._save_last(trainer)
        if asked:
            request.obey(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write `best.ckpt` if this epoch is the best, then `last.ckpt`, whose state names the best."""
        check_weights(trainer)
        super().on_train_epoch_end(trainer, pl_module)
        self._save_last(trainer)
        request = StopRequest.of(trainer)
        if request.is_asked(trainer):
            request.obey(trainer)

    def _save_last(self, trainer: pl.Trainer) -> None:
        trainer.save_checkpoint(self.last)
        self._step, self._time = trainer.global_step, time.monotonic()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the best score so far, with its path in this folder: the run's folder may have been moved."""
        assert self.dirpath is not None

        def here(path: str) -> str:
            return str(Path(str(self.dirpath)) / Path(path).name) if path else path

        best = {here(path): score for path, score in state_dict["best_k_models"].items()}
        paths = {key: here(state_dict[key]) for key in state_dict if key.endswith("_path")}
        super().load_state_dict({**state_dict, **paths, "best_k_models": best, "dirpath": self.dirpath})
