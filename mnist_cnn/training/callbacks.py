"""Lightning callbacks of a run: the seed and history of its epochs, the progress bar, and the checkpoints."""

import math
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from tqdm import tqdm

from mnist_cnn.data.datamodule import Batch, Batches
from mnist_cnn.report.run import EpochRow
from mnist_cnn.training.module import Classifier

METRICS = ("train/loss", "train/accuracy", "val/loss", "val/accuracy")


class EpochSeed(Callback):
    """Seeds the random numbers of every epoch from the run's seed and the epoch alone.

    So an epoch is the same whether the run reached it in one go or was resumed before it.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        torch.manual_seed((self._seed * 1_000_003 + trainer.current_epoch * 1009 + trainer.global_rank) % 2**63)


class History(Callback):
    """Records one row per epoch: `epoch` (from 1), `train/…`, `val/…`, `lr`, `seconds` (validation included)."""

    def __init__(self) -> None:
        self.rows: list[EpochRow] = []
        self._start = 0.0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._start = time.monotonic()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Record the epoch, print its line, and stop the run if its loss is no longer a number."""
        row: EpochRow = {"epoch": trainer.current_epoch + 1}
        for name in METRICS:
            if name in trainer.callback_metrics:
                row[name] = float(trainer.callback_metrics[name])
        row["lr"] = float(trainer.optimizers[0].param_groups[0]["lr"])
        row["seconds"] = time.monotonic() - self._start
        self.rows.append(row)
        if trainer.is_global_zero:
            tqdm.write(epoch_line(row, trainer.max_epochs), file=sys.stderr)
        if not math.isfinite(row.get("train/loss", 0.0)):
            print("The loss is no longer a number: training stops. A smaller optimizer.lr may help.", file=sys.stderr)
            trainer.should_stop = True

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = [dict(row) for row in state_dict["rows"]]


class Progress(Callback):
    """A bar for the running epoch, with its loss and accuracy; nothing where standard error is no terminal."""

    # tqdm draws at most ten times a second. Reading the loss waits for the GPU, so that is done less often.
    _SECONDS_BETWEEN_READINGS = 0.5

    def __init__(self) -> None:
        self._bar: tqdm[NoReturn] | None = None
        self._read = 0.0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw an empty bar, over the images that this process trains on."""
        if not trainer.is_global_zero or not sys.stderr.isatty():
            return
        batches = trainer.train_dataloader
        assert isinstance(batches, Batches)
        plan = batches.batch_sampler
        self._bar = tqdm(
            total=min(len(plan.sampler), int(trainer.num_training_batches) * plan.batch_size),  # type: ignore[arg-type]  # samplers here have a length
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
        self._bar.update(len(batch[1]))

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remove the bar; the epoch's line takes its place."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self.on_train_epoch_end(trainer, pl_module)


class BestAndLast(ModelCheckpoint):
    """Keeps the epoch with the best `monitor` as `best.ckpt`, and the last epoch as `last.ckpt`.

    A run's results are those of `best.ckpt`, so there is exactly one. Further checkpoints are the business of a
    ModelCheckpoint of its own. (ModelCheckpoint's `save_last` writes only when the best improves: Lightning 2.6.)
    """

    def __init__(self, dirpath: str, monitor: str = "val/accuracy", mode: str = "max") -> None:
        super().__init__(
            dirpath, "best", monitor=monitor, mode=mode, save_on_train_epoch_end=True, enable_version_counter=False
        )

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the best, then the last, which records which epoch was the best."""
        super().on_train_epoch_end(trainer, pl_module)
        trainer.save_checkpoint(Path(str(self.dirpath)) / "last.ckpt")

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the best score so far; the run's folder may have been moved."""
        assert self.dirpath is not None

        def here(path: str) -> str:
            return str(Path(str(self.dirpath)) / Path(path).name) if path else path

        best = {here(path): score for path, score in state_dict["best_k_models"].items()}
        paths = {key: here(state_dict[key]) for key in state_dict if key.endswith("_path")}
        super().load_state_dict({**state_dict, **paths, "best_k_models": best, "dirpath": self.dirpath})

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Keep what there is, if not even the first epoch was finished."""
        last = Path(str(self.dirpath)) / "last.ckpt"
        if isinstance(exception, KeyboardInterrupt | SystemExit) and trainer.global_step and not last.exists():
            trainer.save_checkpoint(last)


def epoch_line(row: EpochRow, epochs: int | None) -> str:
    """`epoch  3/12  loss 0.0512  accuracy 98.41%  val loss 0.0433  val accuracy 98.75%  8.1 s`."""
    cells = [f"epoch {row['epoch']:>2.0f}/{epochs}"]
    for name in METRICS:
        if name in row:
            label = name.replace("train/", "").replace("/", " ")
            cells.append(f"{label} {row[name]:.4f}" if name.endswith("loss") else f"{label} {row[name]:.2%}")
    return "  ".join([*cells, f"{row['seconds']:.1f} s"])
