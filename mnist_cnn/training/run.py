"""One run from start to end: configuration → network → data → trainer → module → report."""

import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import WandbLogger

from mnist_cnn import run_folder
from mnist_cnn.config import Config
from mnist_cnn.data.datamodule import MNISTDataModule
from mnist_cnn.inference import checkpoint
from mnist_cnn.inference.evaluate import evaluate
from mnist_cnn.inference.images import check_suits
from mnist_cnn.network import build_network
from mnist_cnn.processes import is_first_process, wait_for_slurm
from mnist_cnn.report.figures import SAMPLES
from mnist_cnn.report.report import write_report
from mnist_cnn.report.run import Run, resume_command
from mnist_cnn.run_folder import open_run_dir
from mnist_cnn.training.callbacks import History, StopRequest, callbacks_of
from mnist_cnn.training.checks import check_machine, check_settings
from mnist_cnn.training.optimizers import check_optimizer
from mnist_cnn.training.resume.pretrained import load_pretrained, with_network_of
from mnist_cnn.training.trainer import build_classifier, build_trainer, fit


def train(config: Config, command: str, callbacks: Sequence[Callback] = ()) -> Run | None:
    """Train as configured, and report. The run's folder records `command`, which says how the run was started.

    `callbacks` come after those of the configuration; they are not part of the run's settings.

    None in all processes but the first, and where the run was stopped before there was anything to report.
    """
    check_settings(config)
    check_machine(config)
    pl.seed_everything(config.seed, verbose=False)
    pretrained, stopped_at = load_pretrained(config)  # of model.init_from, or of the run that is resumed
    config = with_network_of(config, pretrained)
    preprocessing = pretrained.preprocessing if pretrained else None
    dataset = pretrained.dataset if pretrained and stopped_at else None  # what data=auto was before
    data = MNISTDataModule(config.data, config.seed, preprocessing, dataset, config.augmentation)
    if pretrained:
        check_suits(pretrained, data.dataset_name, data.source)
        network = pretrained.network
    else:
        network = build_network(config.model.layers, data.source.image_shape, len(data.source.classes))
        network.check_shapes()
    check_optimizer(config, network.parameters())
    if is_first_process():
        print(f"{config.model.name}\n{network.summary()}", file=sys.stderr)

    data.prepare_data()
    data.setup()

    with open_run_dir(config, data.dataset_name) as run_dir:
        trainer = build_trainer(config, run_dir, command, callbacks)
        module = build_classifier(config, network, data, trainer, pretrained)
        fit(trainer, module, data, config, stopped_at)
        return evaluate_and_report(trainer, data, run_dir)


def evaluate_and_report(trainer: pl.Trainer, data: MNISTDataModule, run_dir: Path) -> Run | None:
    """Evaluate the kept checkpoint, write `metrics.json` and the report, and print the results.

    On the first process only; the others return None. Interrupted, afterwards, if a signal has ended the run.
    """
    run = _evaluate_and_report(trainer, data, run_dir)
    if trainer.interrupted and trainer.is_global_zero:
        if StopRequest.of(trainer).signal == signal.SIGTERM:
            wait_for_slurm()
        StopRequest.of(trainer).obey(trainer)
    return run


def _evaluate_and_report(trainer: pl.Trainer, data: MNISTDataModule, run_dir: Path) -> Run | None:
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
        overrides=run_folder.overrides(run_dir),
    )
    metrics = write_report(run)
    for logger in trainer.loggers:
        logger.log_metrics({key: metrics[key] for key in ("test/accuracy", "test/loss")}, step=trainer.global_step)
        logger.save()
        if isinstance(logger, WandbLogger):
            logger.experiment.finish()  # or all runs of a sweep would be one to it
    print("\n".join(f"{what:<11} {value}" for what, value in run.results()))
    return run
