"""The end of a run: the kept checkpoint is evaluated, and the results are written and printed."""

import signal
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.loggers import WandbLogger

from mnist_cnn import run_folder
from mnist_cnn.data.datamodule import MNISTDataModule
from mnist_cnn.inference import checkpoint
from mnist_cnn.inference.evaluate import evaluate
from mnist_cnn.report.figures import SAMPLES
from mnist_cnn.report.page import write_report
from mnist_cnn.report.run import Run, resume_command
from mnist_cnn.training.callbacks import History, StopRequest, callbacks_of


def evaluate_and_report(trainer: pl.Trainer, data: MNISTDataModule, run_dir: Path) -> dict[str, Any] | None:
    """Evaluate the kept checkpoint, write `metrics.json` and the report, print the results and return the metrics.

    On the first process only; the others return None. Interrupted, afterwards, if a signal has ended the run.
    """
    metrics = _evaluate_and_report(trainer, data, run_dir)
    if trainer.interrupted and trainer.is_global_zero:
        StopRequest.of(trainer).obey(trainer)
    return metrics


def _evaluate_and_report(trainer: pl.Trainer, data: MNISTDataModule, run_dir: Path) -> dict[str, Any] | None:
    if not trainer.is_global_zero:
        return None
    if trainer.interrupted and not run_folder.has_checkpoint(run_dir):
        print("stopped before the first step, so nothing is kept", file=sys.stderr)
        return None
    # After SIGTERM or SIGHUP the machine may be about to go away.
    if trainer.interrupted and StopRequest.of(trainer).signal not in (None, signal.SIGINT):
        print(f"stopped; continue with: {resume_command(run_dir)}", file=sys.stderr)
        return None
    (history,) = callbacks_of(trainer, History)
    trained = checkpoint.load(checkpoint.find(run_dir))
    run = Run(
        folder=run_dir,
        trained=trained,
        history=history.rows,
        interrupted=trainer.interrupted,
        accelerator=trainer.strategy.root_device.type,
        images_per_epoch=min(
            len(data.train),
            int(trainer.num_training_batches) * data.config.batch_size * data.batches_at_once * trainer.world_size,
        ),
        train_images=data.train,
        augmented_images=data.augmented(SAMPLES),
        test_images=data.test,
        val=evaluate(trained, data.val, data.dataset_name, "val") if len(data.val) else None,
        test=evaluate(trained, data.test, data.dataset_name, "test"),
        fallback=data.is_fallback,
        data_root=data.config.root,
        data_file=data.config.file,
        settings=(run_dir / "config.yaml").read_text(encoding="utf-8"),
    )
    metrics = write_report(run)
    for logger in trainer.loggers:
        logger.log_metrics({key: metrics[key] for key in ("test/accuracy", "test/loss")}, step=trainer.global_step)
        logger.save()
        if isinstance(logger, WandbLogger):
            logger.experiment.finish()  # or all runs of a sweep would be one to it
    print("\n".join(f"{what:<11} {value}" for what, value in run.results()))
    return metrics
