"""Callbacks that end a run early: after a signal, between two batches, or when a number is no longer finite."""

import signal
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from torch import Tensor

from mnist_cnn.errors import Interrupted, UserError

T = TypeVar("T", bound=Callback)

# Sent by Ctrl-C, by a machine that is about to be taken away, and by a terminal that is closed.
_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
# Reading a loss waits for the GPU, so on a GPU losses are read once in so many batches; on the CPU after each.
_BATCHES_BETWEEN_CHECKS = 64


class NotFiniteError(UserError):
    """A loss, a metric or a weight is infinite or not a number. Exit status 1."""


class EndedEarly(UserError):
    """A callback ended the run between two epochs; it has its checkpoints, but no results."""


class StopRequest(Callback):
    """Notes SIGINT, SIGTERM and SIGHUP, so that the run stops after the running batch, where it can write `last.ckpt`.

    A second signal has its usual effect at once. `signal` is the number of the first, or None.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._handlers: dict[int, Any] = {}

    @staticmethod
    def of(trainer: pl.Trainer) -> "StopRequest":
        """The one among the callbacks of a trainer; one that is never asked where there is none."""
        return next(iter(callbacks_of(trainer, StopRequest)), StopRequest())

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Install the signal handlers, after Lightning's own, and stop at once if early stopping had ended this run."""
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup wants it, or a shell's background job
                    self._handlers[number] = signal.signal(number, self._note)
        stoppers = callbacks_of(trainer, EarlyStopping)
        if any(item.stopping_reason != EarlyStoppingReason.NOT_STOPPED for item in stoppers):
            trainer.should_stop = True

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        for other in self._handlers:
            signal.signal(other, signal.default_int_handler if other == signal.SIGINT else signal.SIG_DFL)
        with suppress(RuntimeError):  # the signal came in the middle of another print
            print(f"{signal.Signals(number).name}: stopping after this batch; again: at once", file=sys.stderr)

    def is_asked(self, trainer: pl.Trainer) -> bool:
        """Whether any process of the run was asked to stop; then all of them know by which signal."""
        if trainer.world_size > 1:
            largest = torch.tensor(self.signal or 0, device=trainer.strategy.root_device)
            torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX)
            self.signal = int(largest) or None
        return self.signal is not None

    def obey(self, trainer: pl.Trainer) -> None:
        """Raise Interrupted, which ends the run and the sweep that it belongs to."""
        # The other processes of the run end by themselves. Lightning would kill them, and then this one for their end.
        getattr(trainer.strategy.launcher, "procs", []).clear()
        raise Interrupted(self.signal or signal.SIGINT)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        while self._handlers:
            signal.signal(*self._handlers.popitem())

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self.on_train_end(trainer, pl_module)


class Finite(Callback):
    """Ends the run with NotFiniteError at the first loss, metric or weight that is infinite or not a number.

    A gradient that is not finite spoils the weights, and so the next loss. Nothing is written afterwards.
    """

    def __init__(self) -> None:
        self._unread: list[tuple[int, Tensor]] = []  # for each batch: its last step, and the losses () or (steps,)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Check the loss of every optimiser step in the batch."""
        self._unread.append((trainer.global_step, outputs.get("losses", outputs["loss"]).detach()))
        if pl_module.device.type == "cpu" or len(self._unread) >= _BATCHES_BETWEEN_CHECKS:
            self._read(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._read(trainer)
        for name, value in trainer.callback_metrics.items():
            if not torch.isfinite(value).all():
                raise not_finite(trainer, f"{name} is {float(value)}")

    def _read(self, trainer: pl.Trainer) -> None:
        first_bad = _first_not_finite(self._unread)
        self._unread.clear()
        if any_process(trainer, first_bad is not None):
            step, loss = first_bad or (trainer.global_step, "not finite in another process")
            raise not_finite(trainer, f"the loss is {loss}", step)


def check_weights(trainer: pl.Trainer) -> None:
    """Raise NotFiniteError unless every weight is finite: no checkpoint may hold one that is not."""
    for name, value in trainer.lightning_module.state_dict().items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise not_finite(trainer, f"weights of {name} are not finite")


def not_finite(trainer: pl.Trainer, what: str, step: int | None = None) -> NotFiniteError:
    """The error that says what, where, at which learning rate, and which checkpoint is the last good one."""
    rate = trainer.optimizers[0].param_groups[0]["lr"]
    step = trainer.global_step if step is None else step
    last = Path(trainer.default_root_dir) / "checkpoints" / "last.ckpt"
    good = f"the last good checkpoint is {last}" if last.exists() else "no checkpoint was written before"
    return NotFiniteError(
        f"step {step:,} (epoch {trainer.current_epoch + 1}): {what}, at a learning rate of {rate:g}, so the run ends; "
        f"{good}. A smaller optimizer.lr or +trainer.gradient_clip_val=1 may help."
    )


def callbacks_of(trainer: pl.Trainer, kind: type[T]) -> list[T]:
    """The callbacks of a trainer that are of this class."""
    return [item for item in trainer.callbacks if isinstance(item, kind)]  # type: ignore[attr-defined]  # a connector's


def any_process(trainer: pl.Trainer, flag: bool) -> bool:
    """Whether the flag is set in any process of the run, so that all of them decide alike."""
    return trainer.strategy.reduce_boolean_decision(flag, all=False) if trainer.world_size > 1 else flag


def _first_not_finite(losses: Sequence[tuple[int, Tensor]]) -> tuple[int, float] | None:
    """The step and the value of the first loss that is not finite; the losses of a batch end with the step given."""
    for last_step, values in losses:
        bad = (~torch.isfinite(values.flatten())).nonzero()
        if len(bad):
            position = int(bad[0])
            return last_step - values.numel() + 1 + position, float(values.flatten()[position])
    return None
