"""Lightning's Trainer for a run, the module that it trains, and the training itself."""

import logging
import os
import re
import signal
import sys
import threading
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.exceptions import SIGTERMException

from mnist_cnn import machine, run_folder
from mnist_cnn.config import RUN_DIR, Config, TrainerConfig
from mnist_cnn.data.datamodule import MNISTDataModule
from mnist_cnn.data.sources import OWN, kind_of
from mnist_cnn.errors import CheckpointError, ConfigError, DataError, UserError, as_user_error, flat, one_line
from mnist_cnn.inference import checkpoint
from mnist_cnn.inference.checkpoint import TrainedNetwork
from mnist_cnn.inference.images import change_of
from mnist_cnn.network import Network
from mnist_cnn.processes import started
from mnist_cnn.training import fast_steps
from mnist_cnn.training.callbacks import (
    BestAndLast,
    EpochState,
    Finite,
    FirstBatch,
    History,
    Progress,
    StopRequest,
    callbacks_of,
)
from mnist_cnn.training.fast_steps import FastClassifier
from mnist_cnn.training.loss import build_loss
from mnist_cnn.training.module import Classifier
from mnist_cnn.training.resume.checkpoint_io import WholeCheckpoints
from mnist_cnn.training.resume.stopped import settings_of
from mnist_cnn.training.targets import make

T = TypeVar("T")


def build_trainer(config: Config, run_dir: Path, command: str, callbacks: Sequence[Callback] = ()) -> pl.Trainer:
    """Lightning's Trainer with the callbacks and loggers of a run, whose folder records configuration and command."""
    _quiet()
    configured = _make_all(config.callbacks, "callbacks", Callback, run_dir)
    loggers = _make_all(config.logger, "logger", Logger, run_dir)  # type: ignore[type-abstract]
    record = partial(run_folder.record, run_dir, config, command)
    # A resumed run is recorded after its first batch only: if its state can't be used, the folder stays as it was.
    first_batch = FirstBatch(record if config.resume else None)
    ours = [Finite(), EpochState(config.seed), History(), Progress(), StopRequest(), first_batch]
    trainer = _trainer(config, [*ours, *configured, *callbacks], loggers, run_dir)
    if not config.resume:
        record()
    return trainer


def build_classifier(
    config: Config, network: Network, data: MNISTDataModule, trainer: pl.Trainer, pretrained: TrainedNetwork | None
) -> Classifier:
    """The module to train, with everything that its checkpoints will say about it."""
    assert data.dataset is not None
    # A network with outputs to spare keeps its own names for all of them.
    is_wider = pretrained is not None and len(pretrained.classes) > len(data.dataset.classes)
    own = data.dataset.digest() if kind_of(data.dataset.name) in OWN else None
    if own and pretrained and is_wider:
        raise ConfigError(
            f"model.init_from: its network has {len(pretrained.classes)} classes and {data.dataset.name} has "
            f"{len(data.dataset.classes)}; they must be as many."
        )
    if config.resume and pretrained and run_folder.has_checkpoint(Path(config.resume)):
        changed = change_of(pretrained, data.dataset)
        if changed:
            raise DataError(f"resume={config.resume}: the images have changed ({changed}); start a new run.")
    metadata = checkpoint.describe(
        network,
        data.preprocessing,
        model=config.model.name,
        classes=pretrained.classes if pretrained and is_wider else data.dataset.classes,
        dataset=data.dataset.name,
        split={"val_fraction": config.data.val_fraction, "method": config.data.split, "seed": config.seed},
        training={
            "seed": config.seed,
            "max_epochs": config.trainer.max_epochs,
            "settings": settings_of(config),
            **({"data": own} if own else {}),
        },
    )
    for logger in trainer.loggers:
        logger.log_hyperparams({key: metadata[key] for key in ("model", "dataset", "split", "training")})
    loss = build_loss(config, network, data.preprocessing)
    arguments = (network, config.optimizer, config.scheduler, {checkpoint.METADATA_KEY: metadata}, loss)
    if reason := fast_steps.why_not(config, trainer):
        if trainer.is_global_zero:
            print(f"note: fast steps are off, because {reason}.", file=sys.stderr)
        return Classifier(*arguments)
    (keeper,) = callbacks_of(trainer, BestAndLast)
    return FastClassifier(*arguments).hand_over(data, most=keeper.steps_apart)


def fit(
    trainer: pl.Trainer, module: Classifier, data: MNISTDataModule, config: Config, stopped_at: Path | None = None
) -> None:
    """Train, from the checkpoint where a run was stopped if there is one.

    A signal that ends it leaves the checkpoints in place and `trainer.interrupted` set. CheckpointError if the state
    in `stopped_at` can't be that of this run.
    """
    machine.keep_freed_memory()
    if trainer.strategy.root_device.type == "cpu":
        machine.ask_cuda_itself()
    # In deterministic mode torch fills all new memory, in case somebody reads it before it is written; nobody does.
    # (setattr: torch makes this module a class, which its types don't know.)
    setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)  # noqa: B010
    if config.trainer.compile:
        module.network.compile()  # in place: checkpoints stay what they are
    handler = signal.getsignal(signal.SIGINT)
    operations = 3 * module.network.operations * config.data.batch_size
    try:
        # Lightning shares the processors out among several processes.
        with machine.threads(operations) if trainer.world_size == 1 else nullcontext():
            trainer.fit(module, datamodule=data, ckpt_path=stopped_at, weights_only=True)
    except SystemExit as end:
        if isinstance(end, SIGTERMException):  # which came before the run listened
            StopRequest.of(trainer).signal = signal.SIGTERM
        elif not isinstance(end.__context__, KeyboardInterrupt):  # after that, Lightning leaves so
            raise  # for somebody else, such as submitit, which has requeued the job
    except Exception as error:
        if as_user_error(error) is not None:
            raise
        why = one_line(flat(error), 200)
        if isinstance(error, MisconfigurationException):  # such as a callback that watches what is never logged
            raise ConfigError(flat(error)) from error
        if trainer.world_size > 1 and (isinstance(error, torch.distributed.DistError) or "gloo" in str(error)):
            why = re.sub(r"^\[\S+\] ", "", why).partition(". ")[0]  # the file of gloo that says so, and its advice
            raise UserError(
                f"the processes of this run have lost each other: one has ended, or the network has failed ({why}). "
                "What was written is whole; resume= goes on from there."
            ) from error
        if config.trainer.compile and type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise ConfigError(f"trainer.compile=true: it is not possible here: {why}") from error
        (first_batch,) = callbacks_of(trainer, FirstBatch)
        if stopped_at is not None and not first_batch.is_over:
            raise CheckpointError(f"{stopped_at}: its state is not that of this run ({why}).") from error
        raise
    finally:
        if threading.current_thread() is threading.main_thread():  # only there can it have been changed
            signal.signal(signal.SIGINT, handler)


def _trainer(config: Config, callbacks: list[Callback], loggers: list[Logger], run_dir: Path) -> pl.Trainer:
    try:
        return pl.Trainer(
            accelerator=config.trainer.accelerator,
            strategy=config.trainer.strategy,
            precision=config.trainer.precision,  # type: ignore[arg-type]  # a Literal there, checked by config here
            max_epochs=config.trainer.max_epochs,
            deterministic=config.trainer.deterministic,
            callbacks=callbacks,
            logger=loggers or False,
            default_root_dir=run_dir.absolute(),
            num_sanity_val_steps=0,
            limit_val_batches=None if config.data.val_fraction else 0,
            enable_model_summary=False,  # train.py prints one that says more
            enable_progress_bar=False,  # callbacks.Progress is one
            use_distributed_sampler=False,  # the data module shares the images out itself
            **config.trainer.extra | processes_of(config.trainer),
        )
    except Exception as error:  # Lightning raises various errors for arguments that it can't use
        raise ConfigError(f"trainer: {flat(error)}") from error


def processes_of(config: TrainerConfig) -> dict[str, Any]:
    """The Trainer's arguments that say how many processes train together, and who starts them."""
    launched = started()
    counts = {"devices": config.devices}
    if launched and config.strategy == "ddp" and config.devices == "auto":
        counts = {"devices": launched.here, "num_nodes": launched.machines}
    plugins: list[Any] = [WholeCheckpoints()]
    # Lightning would take every process of a SLURM job for one that srun has started, and on a signal start the job
    # again by itself, from a checkpoint of its own.
    if launched and launched.by == "srun" and launched.all > 1:
        os.environ.setdefault("SLURM_NTASKS_PER_NODE", str(launched.here))  # which srun sets only if it was asked for
        plugins.append(SLURMEnvironment(auto_requeue=False))
    elif "SLURM_NTASKS" in os.environ and not (launched and launched.by == "torchrun"):
        plugins.append(LightningEnvironment())
    return {**counts, "plugins": plugins}


def _make_all(targets: dict[str, Any], group: str, kind: type[T], run_dir: Path) -> list[T]:
    """The callbacks or loggers that the configuration names; `callbacks.NAME=null` leaves one out."""
    return [
        make(_in_folder(target, run_dir), f"{group}.{name}", kind)
        for name, target in targets.items()
        if target is not None
    ]


def _in_folder(value: Any, run_dir: Path) -> Any:
    """Put the run's folder where the configuration has its placeholder."""
    if isinstance(value, dict):
        return {key: _in_folder(inner, run_dir) for key, inner in value.items()}
    if isinstance(value, str) and value.startswith(RUN_DIR):
        return f"{run_dir.absolute()}{value.removeprefix(RUN_DIR)}"
    return value


def _quiet() -> None:
    """Silence what Lightning says at the start of every run, and advice that does not fit this project."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # Lightning 2.6 uses a way to compare that torch 2.15 has deprecated.
    warnings.filterwarnings("ignore", ".*isinstance\\(treespec, LeafSpec\\).*")
    # On a machine with SLURM, a run may still be meant for this machine alone.
    warnings.filterwarnings("ignore", ".*`srun` command is available on your system but is not used.*")
    # A run that is resumed writes into its own folder.
    warnings.filterwarnings("ignore", ".*Checkpoint directory .* exists and is not empty.*")
    # Lightning expects a data loader to begin a resumed epoch again; ours continues with the next batch (EpochState).
    warnings.filterwarnings("ignore", ".*resuming from a checkpoint that ended before the epoch ended.*")
    # It is in the way on every machine of a cluster; processes.py checks how a run was started.
    warnings.filterwarnings("ignore", ".*`srun` command is available on your system but is not used.*")
    # Fewer steps than log_every_n_steps: metrics are logged by epoch.
    warnings.filterwarnings("ignore", ".*number of training batches .* is smaller than the logging interval.*")
