"""Callbacks for every epoch: its random numbers, its row of results, its progress bar.

An epoch that was stopped in the middle continues as if it had not been, so callbacks keep what they need for that in
the checkpoint. Lightning does not call `on_train_epoch_start` again for such an epoch.
"""

import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torchmetrics import Metric
from tqdm import tqdm

from mnist_cnn.data.datamodule import Batch, Batches
from mnist_cnn.report.run import EpochRow
from mnist_cnn.training.callbacks.stopping import EndedEarly, callbacks_of
from mnist_cnn.training.log import CSVLog
from mnist_cnn.training.module import Classifier

METRICS = ("train/loss", "train/accuracy", "val/loss", "val/accuracy")


class EpochState(Callback):
    """Makes an epoch the same whether the run reached it in one go or was resumed before it, or in it.

    The random numbers of an epoch depend only on the run's seed, the epoch and the process. A checkpoint written within
    an epoch holds the number of batches taken and, for each process, the state of its random generators and metrics.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._trainer: pl.Trainer | None = None
        self._stopped: dict[str, Any] = {}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._trainer = trainer

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # These factors give every seed, epoch and process a number of its own, up to 990 epochs and 1,009 processes.
        torch.manual_seed((self._seed * 1_000_003 + trainer.current_epoch * 1009 + trainer.global_rank) % 2**63)

    def state_dict(self) -> dict[str, Any]:
        """What a process needs to go on in the middle of an epoch; nothing at the end of one."""
        assert self._trainer is not None
        if not in_mid_epoch(self._trainer):
            return {}
        own: dict[str, Any] = {"random": torch.get_rng_state(), "metrics": _states(self._trainer.lightning_module)}
        if self._trainer.strategy.root_device.type == "cuda":
            own["cuda_random"] = torch.cuda.get_rng_state(self._trainer.strategy.root_device)
        processes: list[Any] = [own] * self._trainer.world_size
        if self._trainer.world_size > 1:
            torch.distributed.all_gather_object(processes, own)
        batches = _train_batches(self._trainer)
        return {"processes": processes, "taken": batches.taken, "batch_size": batches.batch_sampler.batch_size}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._stopped = dict(state_dict)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Continue an epoch that was stopped; ValueError if the number of processes or the batch size has changed."""
        stopped, self._stopped = self._stopped, {}
        if not stopped:
            return
        if len(stopped["processes"]) != trainer.world_size:
            raise ValueError(f"it was stopped within an epoch with trainer.devices={len(stopped['processes'])}")
        _train_batches(trainer).go_on_after(stopped["taken"], stopped["batch_size"])
        own = stopped["processes"][trainer.global_rank]
        torch.set_rng_state(own["random"])
        if "cuda_random" in own and trainer.strategy.root_device.type == "cuda":
            torch.cuda.set_rng_state(own["cuda_random"], trainer.strategy.root_device)
        for name, state in own["metrics"].items():
            metric = pl_module.get_submodule(name)
            assert isinstance(metric, Metric)
            for key, value in metric.metric_state.items():
                if not isinstance(value, Tensor) or value.shape != state[key].shape or not state[key].isfinite().all():
                    raise ValueError(f"{name}.{key} is damaged")
                setattr(metric, key, state[key].to(value))
            metric._update_count = 1  # or it warns, when it is computed, that it was never updated


class History(Callback):
    """Records one row per epoch: `epoch` and `step` (from 1), `train/…`, `val/…`, `lr`, `seconds` (with validation)."""

    def __init__(self) -> None:
        self.rows: list[EpochRow] = []
        self._start = 0.0
        self._seconds_before = 0.0  # that the running epoch took before it was stopped

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._start, self._seconds_before = time.monotonic(), 0.0

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Record the epoch and print its line."""
        row: EpochRow = {"epoch": trainer.current_epoch + 1, "step": trainer.global_step}
        for name in METRICS:
            if name in trainer.callback_metrics:
                row[name] = float(trainer.callback_metrics[name])
        row["lr"] = float(trainer.optimizers[0].param_groups[0]["lr"])
        row["seconds"] = self._seconds
        self.rows.append(row)
        if trainer.is_global_zero:
            tqdm.write(epoch_line(row, trainer.max_epochs), file=sys.stderr)

    @property
    def _seconds(self) -> float:
        return time.monotonic() - self._start + self._seconds_before

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows, "seconds": self._seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows, self._seconds_before = [dict(row) for row in state_dict["rows"]], state_dict["seconds"]

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Have the log of a resumed run continue after the last whole epoch."""
        self._start = time.monotonic()
        for logger in trainer.loggers:
            if isinstance(logger, CSVLog):
                logger.go_on_after(self.rows)


class EpochWatch(Callback):
    """Before each epoch, shows `goes_on` the rows of all epochs so far; where it says no, the run ends with EndedEarly.

    The checkpoints of those epochs have been written by then. Rows from before a resumed run was stopped are shown too.
    """

    def __init__(self, goes_on: Callable[[Sequence[EpochRow]], bool]) -> None:
        self._goes_on = goes_on

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        (history,) = callbacks_of(trainer, History)
        if not self._goes_on(history.rows):
            raise EndedEarly(f"ended after epoch {trainer.current_epoch}")


class Progress(Callback):
    """A bar for the running epoch, with its loss and accuracy, in a terminal and in a notebook."""

    # tqdm draws at most ten times a second. Reading the loss waits for the GPU, so that is done less often.
    _SECONDS_BETWEEN_READINGS = 0.5

    def __init__(self) -> None:
        self._bar: tqdm[NoReturn] | None = None
        self._read = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.fit_loop.restarted_mid_epoch:
            self._draw(trainer, _train_batches(trainer).taken)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._draw(trainer, 0)

    def _draw(self, trainer: pl.Trainer, taken: int) -> None:
        """Draw a bar over the training images of this epoch, after so many batches of them."""
        if not trainer.is_global_zero or not (sys.stderr.isatty() or _in_notebook()):
            return
        plan = _train_batches(trainer).batch_sampler
        self._bar = tqdm(
            total=min(len(plan.sampler), int(trainer.num_training_batches) * plan.batch_size),  # type: ignore[arg-type]  # samplers here have a length
            initial=taken * plan.batch_size,
            desc=f"epoch {trainer.current_epoch + 1:>2}/{trainer.max_epochs}",
            unit=" images", leave=False, dynamic_ncols=True, file=sys.stderr, smoothing=0,
        )  # fmt: skip

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Advance by a batch; the loss shown is the batch's, the accuracy the epoch's so far."""
        if self._bar is None:
            return
        if time.monotonic() - self._read > self._SECONDS_BETWEEN_READINGS:
            assert isinstance(pl_module, Classifier)
            metric: Any = pl_module.train_accuracy
            accuracy = float(metric.tp / (metric.tp + metric.fn))  # `compute` would wait for other processes
            self._bar.set_postfix(loss=f"{float(outputs['loss']):.4f}", accuracy=f"{accuracy:.2%}", refresh=False)
            self._read = time.monotonic()
        self._bar.update(len(batch[1]) * trainer.world_size)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remove the bar; the epoch's line takes its place."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self.on_train_epoch_end(trainer, pl_module)


class FirstBatch(Callback):
    """Calls `do` once after the first batch, when the restored state has proved usable. `is_over`: it is past."""

    def __init__(self, do: Callable[[], None] | None = None) -> None:
        self.is_over, self._do = False, do

    def on_train_batch_end(self, *_: Any) -> None:
        if not self.is_over and self._do is not None:
            self._do()
        self.is_over = True


def _in_notebook() -> bool:
    """Whether the program is a cell of a Jupyter notebook."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")


def in_mid_epoch(trainer: pl.Trainer) -> bool:
    """Whether an epoch has begun and has batches left."""
    epochs: Any = trainer.fit_loop.epoch_progress.current  # its type lacks two of its counts
    return bool(epochs.started > epochs.processed)


def epoch_line(row: EpochRow, epochs: int | None) -> str:
    """`epoch  3/12  loss 0.0512  accuracy 98.41%  val loss 0.0433  val accuracy 98.75%  8.1 s`."""
    cells = [f"epoch {row['epoch']:>2.0f}/{epochs}"]
    for name in METRICS:
        if name in row:
            label = name.replace("train/", "").replace("/", " ")
            cells.append(f"{label} {row[name]:.4f}" if name.endswith("loss") else f"{label} {row[name]:.2%}")
    return "  ".join([*cells, f"{row['seconds']:.1f} s"])


def _train_batches(trainer: pl.Trainer) -> Batches:
    batches = trainer.train_dataloader
    assert isinstance(batches, Batches)
    return batches


def _states(module: pl.LightningModule) -> dict[str, dict[str, Tensor]]:
    """The state of every metric, by its name in the module."""
    metrics = {name: metric for name, metric in module.named_modules() if isinstance(metric, Metric)}
    return {
        name: {key: value.detach().clone() for key, value in metric.metric_state.items() if isinstance(value, Tensor)}
        for name, metric in metrics.items()
    }
