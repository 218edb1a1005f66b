"""How does a configuration become a run? The run's folder, callbacks and loggers, Lightning's Trainer, and the end."""

import logging
import shutil
import signal
import sys
import warnings
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import lightning.pytorch as pl
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import Logger, WandbLogger
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mnist_cnn import machine
from mnist_cnn.config import Config
from mnist_cnn.data.datamodule import MNISTDataModule
from mnist_cnn.data.download import mirror_address
from mnist_cnn.errors import ConfigError, one_line
from mnist_cnn.inference import checkpoint
from mnist_cnn.inference.checkpoint import TrainedNetwork
from mnist_cnn.inference.evaluate import check_suits, evaluate
from mnist_cnn.network import Network
from mnist_cnn.report.page import Run, write_report
from mnist_cnn.run_folder import check_run_dir, is_first_process, sweeping
from mnist_cnn.training.callbacks import BestAndLast, History, Progress
from mnist_cnn.training.module import Classifier

T = TypeVar("T")

# How many images Lightning sees at once where it need not see single steps: enough that its half a millisecond does not
# count, few enough that the bar moves and Ctrl-C is heard.
_IMAGES_AT_ONCE = 2048


def check(config: Config) -> None:
    """Raise ConfigError where this machine or its folders can't do what is asked; nothing is made or fetched yet."""
    accelerator = config.trainer.accelerator
    if accelerator in ("cuda", "gpu", "mps") and not _has(accelerator):
        kind = "Apple" if accelerator == "mps" else "NVIDIA"
        raise ConfigError(f"trainer.accelerator={accelerator}: torch finds no {kind} GPU here; take trainer=cpu.")
    on_cpu = accelerator == "cpu" or (accelerator == "auto" and not (_has("cuda") or _has("mps")))
    if config.trainer.precision == "bf16-mixed" and on_cpu and not machine.has_fast_bfloat16():
        print(
            "warning: trainer.precision=bf16-mixed: this processor has neither AVX512_BF16 nor AMX and will be many "
            "times slower than with 32-true.",
            file=sys.stderr,
        )
    if config.data.mirror:
        mirror_address(config.data.mirror)
    check_run_dir(config)
    if config.resume:
        _check_resumed(config)


def origin(config: Config, composed: DictConfig) -> TrainedNetwork | None:
    """The network that `model.from` names, to be trained further; its name and layers become the configuration's.

    A resumed run takes it from its own checkpoint, for the other may be gone.
    """
    if config.resume:
        _check_same_origin(config)
    if config.model.from_ is None:
        return None
    file = checkpoint.find(Path(config.resume) / "checkpoints" / "last.ckpt" if config.resume else config.model.from_)
    task = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    for key in (override.lstrip("+~").partition("=")[0] for override in task):
        if key == "model" or (key.startswith("model.") and key != "model.from"):
            raise ConfigError(f"{key}: model.from={config.model.from_} brings its own network; leave one of them out.")
    if config.data.normalize != "unit":
        raise ConfigError(f"data.normalize={config.data.normalize}: model.from brings its own scaling; leave this out.")
    trained = checkpoint.load(file)
    check_suits(trained, config.data.name)
    trained.network.train().requires_grad_(True)
    for model in (config.model, composed.model):
        model.name, model.layers = trained.model, trained.network.layers
    return trained


def _check_same_origin(config: Config) -> None:
    recorded = Path(str(config.resume)) / "config.yaml"
    before = OmegaConf.select(OmegaConf.load(recorded), "model.from") if recorded.exists() else None
    if before != config.model.from_:
        raise ConfigError(
            f"resume={config.resume}: model.from can't change on the way, it was {before}; start a new run for that."
        )


def classifier(
    config: Config, network: Network, data: MNISTDataModule, before: TrainedNetwork | None = None
) -> Classifier:
    """The module to train, with all that its checkpoints will say of it; `before` is what it was, if not new."""
    assert data.dataset is not None
    # A network with outputs to spare keeps its own names for them all.
    wide = before is not None and len(before.classes) > len(data.dataset.classes)
    metadata = checkpoint.describe(
        network,
        data.preprocessing,
        model=config.model.name,
        classes=before.classes if before and wide else data.dataset.classes,
        dataset=data.dataset.name,
        split={"val_fraction": config.data.val_fraction, "method": config.data.split, "seed": config.seed},
        training={"seed": config.seed, "max_epochs": config.trainer.max_epochs, "settings": _settings(config)},
    )
    return Classifier(network, config.optimizer, config.scheduler, metadata)


def _settings(config: Config) -> dict[str, Any]:
    """What decides how weights move, by the keys of the command line; a resumed run can't change it."""
    settings: dict[str, Any] = {"seed": config.seed, "trainer.precision": config.trainer.precision}
    for key in ("batch_size", "val_fraction", "split", "normalize"):
        settings[f"data.{key}"] = getattr(config.data, key)
    for group in ("optimizer", "scheduler"):
        settings |= {f"{group}.{key}": value for key, value in asdict(getattr(config, group)).items()}
    return settings


def _check_resumed(config: Config) -> None:
    """Raise where the stopped run can't be gone on with as asked; with `data=auto`, take the data set that it had."""
    last = Path(str(config.resume)) / "checkpoints" / "last.ckpt"
    if not last.exists():
        raise ConfigError(f"resume={config.resume}: nothing to go on from, {last} does not exist.")
    stopped = checkpoint.load(last)
    if config.data.name == "auto":
        config.data.name = stopped.dataset
    then = {
        **stopped.training.get("settings", {}),
        "data.name": stopped.dataset,
        "model.layers": stopped.network.layers,
    }
    now = {**_settings(config), "data.name": config.data.name, "model.layers": config.model.layers}
    epochs = config.trainer.max_epochs
    if config.scheduler.name != "none":  # its course was laid over a certain number of epochs
        then["trainer.max_epochs"], now["trainer.max_epochs"] = stopped.training.get("max_epochs"), epochs
    for key, value in now.items():
        if then.get(key) != value:
            was = f"it was {then.get(key)}" if key != "model.layers" else "its layers were others"
            raise ConfigError(
                f"resume={config.resume}: {key} can't change on the way, {was}; start a new run for that."
            )
    if epochs < stopped.epoch:
        raise ConfigError(
            f"resume={config.resume}: it has {stopped.epoch} epochs already, trainer.max_epochs={epochs}."
        )


def build_trainer(config: Config, composed: DictConfig, run_dir: Path) -> pl.Trainer:
    """Lightning's Trainer for this run; the run's folder gets the record of what was asked for."""
    composed = OmegaConf.create(composed)
    composed.run_dir = str(run_dir)
    _quiet()
    try:
        callbacks = _instantiated(composed, "callbacks", Callback)
        loggers = _instantiated(composed, "logger", Logger)  # type: ignore[type-abstract]
        if not any(isinstance(callback, ModelCheckpoint) for callback in callbacks):
            raise ConfigError("callbacks.checkpoint: it can't be left out; results are those of the kept checkpoint.")
        trainer = _trainer(config, [*callbacks, History(), Progress()], loggers, run_dir)
        if trainer.world_size > 1 and sweeping():
            raise ConfigError("trainer: several processes can't share a sweep (-m); start one run after another.")
    except ConfigError:
        if not config.resume and is_first_process():
            shutil.rmtree(run_dir)  # a run that never began leaves no folder
        raise
    if trainer.is_global_zero:
        OmegaConf.save(composed, run_dir / "config.yaml")
        if HydraConfig.initialized():
            OmegaConf.save(HydraConfig.get().overrides.task, run_dir / "overrides.yaml")
    return trainer


def _trainer(config: Config, callbacks: list[Callback], loggers: list[Logger], run_dir: Path) -> pl.Trainer:
    try:
        return pl.Trainer(
            accelerator=config.trainer.accelerator,
            devices=config.trainer.devices,
            strategy=config.trainer.strategy,
            precision=config.trainer.precision,  # type: ignore[arg-type]  # a Literal there, checked by config here
            max_epochs=config.trainer.max_epochs,
            deterministic=config.trainer.deterministic,
            callbacks=callbacks,
            logger=loggers or False,
            default_root_dir=run_dir,
            num_sanity_val_steps=0,
            enable_model_summary=False,  # train.py prints one that says more
            enable_progress_bar=False,  # callbacks.Progress is one
            use_distributed_sampler=False,  # the data module shares the images out itself
            **config.trainer.extra,
        )
    except (MisconfigurationException, TypeError, ValueError) as error:
        raise ConfigError(f"trainer: {' '.join(str(error).split())}") from error


def fit(trainer: pl.Trainer, module: Classifier, data: MNISTDataModule, config: Config) -> None:
    """Train. Ctrl-C ends it with the checkpoints in place and `trainer.interrupted` set.

    A run that was stopped before its first epoch was finished begins again: what it kept is half an epoch.
    """
    _make_fast(trainer, module, data, config)
    for logger in trainer.loggers:
        logger.log_hyperparams({key: module.metadata[key] for key in ("model", "dataset", "split", "training")})
    kept = Path(config.resume) / "checkpoints" if config.resume else None
    last = kept / "last.ckpt" if kept and (kept / "best.ckpt").exists() else None
    handler = signal.getsignal(signal.SIGINT)
    work = 3 * module.network.operations * config.data.batch_size
    try:
        # Several processes have the processors shared out by Lightning.
        with machine.threads(work) if trainer.world_size == 1 else nullcontext():
            trainer.fit(module, datamodule=data, ckpt_path=last, weights_only=True)
    except SystemExit:  # how Lightning leaves after Ctrl-C
        if not trainer.interrupted:
            raise
    except Exception as error:
        folder = Path(trainer.default_root_dir)
        if trainer.is_global_zero and not any((folder / "checkpoints").glob("*.ckpt")):
            shutil.rmtree(folder)  # there is nothing in it to go on from
        why = " ".join(str(error).split())
        if isinstance(error, MisconfigurationException):  # such as a callback that watches what is never measured
            raise ConfigError(why) from error
        if config.trainer.compile and type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise ConfigError(f"trainer.compile=true: it can't be done here: {one_line(why, 200)}") from error
        raise
    finally:
        signal.signal(signal.SIGINT, handler)


def _make_fast(trainer: pl.Trainer, module: Classifier, data: MNISTDataModule, config: Config) -> None:
    """What makes the same run take less time."""
    machine.keep_freed_memory()
    # In deterministic mode torch fills all new memory, in case somebody reads it before it is written; nobody does.
    # (setattr: torch makes this module a class, which its types don't know.)
    setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)  # noqa: B010
    if config.trainer.compile:
        module.network.compile()  # in place: checkpoints stay what they are
    if _one_step_is_like_another(trainer, config):
        module.take_steps_itself(config.data.batch_size)
        data.batches_at_once = max(1, _IMAGES_AT_ONCE // config.data.batch_size)


def _one_step_is_like_another(trainer: pl.Trainer, config: Config) -> bool:
    """Whether nothing in Lightning or a callback has to happen before, in or after single steps.

    Of callbacks only those are trusted that are known: others may also rely on Lightning's taking the steps.
    """
    epochwise = [
        type(callback) in (History, Progress, EarlyStopping)
        or (type(callback) in (BestAndLast, ModelCheckpoint) and (callback.every_n_epochs or 0) > 0)
        for callback in trainer.callbacks  # type: ignore[attr-defined]  # set by a connector
    ]
    plain = config.trainer.precision != "16-mixed" and not config.trainer.extra and trainer.world_size == 1
    return plain and all(epochwise)


def finish(trainer: pl.Trainer, data: MNISTDataModule, run_dir: Path) -> dict[str, Any] | None:
    """Evaluate the kept checkpoint, write `metrics.json` and the report, print the results and return the metrics.

    On the first process only; the others return None.
    """
    if not trainer.is_global_zero:
        return None
    if trainer.interrupted and not any((run_dir / "checkpoints").glob("*.ckpt")):
        shutil.rmtree(run_dir)
        print("nothing was learned yet, and nothing is kept", file=sys.stderr)
        return None
    history = next(
        item
        for item in trainer.callbacks  # type: ignore[attr-defined]  # set by a connector
        if isinstance(item, History)
    )
    trained = checkpoint.load(run_dir)
    run = Run(
        folder=run_dir,
        trained=trained,
        history=history.rows,
        interrupted=trainer.interrupted,
        images_per_epoch=min(
            len(data.train),
            int(trainer.num_training_batches) * data.config.batch_size * data.batches_at_once * trainer.world_size,
        ),
        train_images=data.train,
        test_images=data.test,
        val=evaluate(trained, data.val, data.dataset_name, "val"),
        test=evaluate(trained, data.test, data.dataset_name, "test"),
        fallback=OmegaConf.load(run_dir / "config.yaml").data.name == "auto" and data.dataset_name != "mnist",
        data_root=data.config.root,
        settings=(run_dir / "config.yaml").read_text(),
    )
    metrics = write_report(run)
    for logger in trainer.loggers:
        logger.log_metrics({key: metrics[key] for key in ("test/accuracy", "test/loss")}, step=trainer.global_step)
        logger.save()
        if isinstance(logger, WandbLogger):
            logger.experiment.finish()  # or all runs of a sweep would be one to it
    print("\n".join(f"{what:<11} {value}" for what, value in run.results()))
    return metrics


def _has(accelerator: str) -> bool:
    return torch.backends.mps.is_available() if accelerator == "mps" else torch.cuda.is_available()


def _instantiated(composed: DictConfig, group: str, kind: type[T]) -> list[T]:
    """The callbacks or loggers that the configuration names; the one place where a setting becomes code."""
    objects = []
    for name, node in (composed[group] or {}).items():
        if node is None:
            continue  # callbacks.early_stopping=null switches it off
        try:
            made = instantiate(node)
        except (InstantiationException, OmegaConfBaseException, TypeError, ValueError, ImportError) as error:
            cause = error.__cause__ or error
            if isinstance(cause, ImportError) and group == "logger":
                raise ConfigError(f"{group}.{name}: it is not installed; pip install -e '.[{name}]'") from error
            raise ConfigError(f"{group}.{name}: {' '.join(str(cause).split())}") from error
        if not isinstance(made, kind):
            raise ConfigError(f"{group}.{name}: _target_ must name a {kind.__name__} of Lightning, got {made!r}.")
        objects.append(made)
    return objects


def _quiet() -> None:
    """What Lightning says at the start of every run, and what its advice is that does not fit ours."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    # Lightning 2.6 calls a name of torch 2.15 by its former way.
    warnings.filterwarnings("ignore", ".*isinstance\\(treespec, LeafSpec\\).*")
    # A run that goes on writes into its own folder.
    warnings.filterwarnings("ignore", ".*Checkpoint directory .* exists and is not empty.*")
    # It compares steps with batches, of which several may make one of Lightning's; runs go on from whole epochs only.
    warnings.filterwarnings("ignore", ".*resuming from a checkpoint that ended before the epoch ended.*")
    # Fewer steps than log_every_n_steps: metrics are logged by epoch.
    warnings.filterwarnings("ignore", ".*number of training batches .* is smaller than the logging interval.*")
