"""What watches a run? The history of its epochs, the bar that shows the present one, and the checkpoints."""

import math
import sys
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm

from mnist_cnn.module import Classifier

Row = dict[str, float]


class History(Callback):
    """A row an epoch: `epoch` (from 1), `train/…`, `val/…`, `lr`, and `seconds` of training and validation."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self._start = 0.0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock, and draw this epoch's random numbers from the seed and the epoch alone.

        So an epoch is the same whether the run has come to it in one go or was resumed before it.
        """
        assert isinstance(pl_module, Classifier)
        seed: int = pl_module.about["training"]["seed"]
        torch.manual_seed((seed * 1_000_003 + trainer.current_epoch * 1009 + trainer.global_rank) % 2**63)
        self._start = time.monotonic()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Record the epoch and print its line."""
        row: Row = {"epoch": trainer.current_epoch + 1}
        for name in ("train/loss", "train/accuracy", "val/loss", "val/accuracy"):
            if name in trainer.callback_metrics:
                row[name] = float(trainer.callback_metrics[name])
        row["lr"] = float(trainer.optimizers[0].param_groups[0]["lr"])
        row["seconds"] = time.monotonic() - self._start
        self.rows.append(row)
        if trainer.is_global_zero:
            Tqdm.write(epoch_line(row, trainer.max_epochs), file=sys.stderr)
        if not math.isfinite(row.get("train/loss", 0.0)):
            print("The loss is no longer a number: training stops. A smaller optimizer.lr may help.", file=sys.stderr)
            trainer.should_stop = True

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From the checkpoint of the run that goes on."""
        self.rows = [dict(row) for row in state_dict["rows"]]


class Progress(TQDMProgressBar):
    """One bar for the running epoch, with its loss and accuracy so far; nothing where no terminal is looking."""

    def __init__(self) -> None:
        super().__init__(refresh_rate=20, leave=False)
        if not sys.stderr.isatty():
            self.disable()

    def init_train_tqdm(self) -> Tqdm:
        """Lightning's bars go to standard output, where only results belong."""
        return Tqdm(disable=self.is_disabled, leave=False, dynamic_ncols=True, file=sys.stderr, smoothing=0)

    def init_validation_tqdm(self) -> Tqdm:
        """Validation takes a moment; no bar of its own."""
        return Tqdm(disable=True)

    def on_train_epoch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """Count epochs from 1, as the line that stays does."""
        super().on_train_epoch_start(trainer, *_)
        self.train_progress_bar.set_description(f"epoch {trainer.current_epoch + 1:>2}/{trainer.max_epochs}")

    def get_metrics(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """What stands behind the bar; asked for at each refresh, not at each step."""
        assert isinstance(pl_module, Classifier)
        shown = pl_module.train_metrics.compute()
        return {name: f"{float(value):{'.4f' if name == 'loss' else '.2%'}}" for name, value in shown.items()}


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


def epoch_line(row: Row, epochs: int | None) -> str:
    """`epoch  3/12  loss 0.0512  accuracy 98.41%  val loss 0.0433  val accuracy 98.75%  8.1 s`."""
    cells = [f"epoch {row['epoch']:>2.0f}/{epochs}"]
    for name in ("train/loss", "train/accuracy", "val/loss", "val/accuracy"):
        if name in row:
            label = name.replace("train/", "").replace("/", " ")
            cells.append(f"{label} {row[name]:.4f}" if name.endswith("loss") else f"{label} {row[name]:.2%}")
    return "  ".join([*cells, f"{row['seconds']:.1f} s"])
