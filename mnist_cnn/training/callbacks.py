"""What watches a run? The history of its epochs, the bar that shows the present one, and the checkpoints."""

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


class History(Callback):
    """A row an epoch: `epoch` (from 1), `train/…`, `val/…`, `lr`, and `seconds` of training and validation."""

    def __init__(self) -> None:
        self.rows: list[EpochRow] = []
        self._start = 0.0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock, and draw this epoch's random numbers from the seed and the epoch alone.

        So an epoch is the same whether the run has come to it in one go or was resumed before it.
        """
        assert isinstance(pl_module, Classifier)
        seed: int = pl_module.metadata["training"]["seed"]
        torch.manual_seed((seed * 1_000_003 + trainer.current_epoch * 1009 + trainer.global_rank) % 2**63)
        self._start = time.monotonic()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Record the epoch and print its line."""
        row: EpochRow = {"epoch": trainer.current_epoch + 1}
        for name in ("train/loss", "train/accuracy", "val/loss", "val/accuracy"):
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
        """For the checkpoint."""
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From the checkpoint of the run that goes on."""
        self.rows = [dict(row) for row in state_dict["rows"]]


class Progress(Callback):
    """A bar for the running epoch, with its loss and accuracy so far; nothing where no terminal is looking."""

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
        """Move on by a batch."""
        if self._bar is None:
            return
        assert isinstance(pl_module, Classifier)
        if time.monotonic() - self._read > self._SECONDS_BETWEEN_READINGS:
            now = pl_module.train_metrics.so_far()
            self._bar.set_postfix(loss=f"{now['loss']:.4f}", accuracy=f"{now['accuracy']:.2%}", refresh=False)
            self._read = time.monotonic()
        self._bar.update(len(batch[1]))

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the bar away; the epoch's line stays in its place."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Leave a clean line."""
        self.on_train_epoch_end(trainer, pl_module)


class BestAndLast(ModelCheckpoint):
    """The best epoch's checkpoint by Lightning's ModelCheckpoint, in a folder that may be moved; and always the last.

    ModelCheckpoint's own `save_last` writes only when the best has improved (Lightning 2.6).
    """

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the best, then the last, which so knows of the best."""
        super().on_train_epoch_end(trainer, pl_module)
        trainer.save_checkpoint(Path(str(self.dirpath)) / "last.ckpt")

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the best score so far, for the folder where the run is now."""
        assert self.dirpath is not None

        def here(path: str) -> str:
            return str(Path(str(self.dirpath)) / Path(path).name) if path else path

        best = {here(path): score for path, score in state_dict["best_k_models"].items()}
        paths = {key: here(state_dict[key]) for key in state_dict if key.endswith("_path")}
        super().load_state_dict({**state_dict, **paths, "best_k_models": best, "dirpath": self.dirpath})

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Where even the first epoch was not finished, keep what there is."""
        last = Path(str(self.dirpath)) / "last.ckpt"
        if isinstance(exception, KeyboardInterrupt | SystemExit) and trainer.global_step and not last.exists():
            trainer.save_checkpoint(last)


def epoch_line(row: EpochRow, epochs: int | None) -> str:
    """`epoch  3/12  loss 0.0512  accuracy 98.41%  val loss 0.0433  val accuracy 98.75%  8.1 s`."""
    cells = [f"epoch {row['epoch']:>2.0f}/{epochs}"]
    for name in ("train/loss", "train/accuracy", "val/loss", "val/accuracy"):
        if name in row:
            label = name.replace("train/", "").replace("/", " ")
            cells.append(f"{label} {row[name]:.4f}" if name.endswith("loss") else f"{label} {row[name]:.2%}")
    return "  ".join([*cells, f"{row['seconds']:.1f} s"])
