"""What is checked before a run makes or fetches anything."""

import errno
import inspect
import logging
import math
import os
import sys
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, StochasticWeightAveraging
from lightning.pytorch.loggers import Logger

from mnist_cnn import machine
from mnist_cnn.config import RUN_DIR, Config, DataConfig, TrainerConfig, require_one_of, written
from mnist_cnn.data.download import mirror_address
from mnist_cnn.data.sources import OWN, SOURCES
from mnist_cnn.errors import ConfigError, did_you_mean, flat, one_line
from mnist_cnn.inference import checkpoint
from mnist_cnn.processes import is_first_process, started
from mnist_cnn.run_folder import check_run_dir, sweeping
from mnist_cnn.training.callbacks import METRICS, BestAndLast
from mnist_cnn.training.targets import check, check_type
from mnist_cnn.training.trainer import processes_of

T = TypeVar("T")

# Arguments of Lightning's Trainer that are settled here or in the other settings …
_OURS = {"callbacks", "logger", "default_root_dir", "use_distributed_sampler", "num_sanity_val_steps"}
_OURS |= {"enable_progress_bar", "enable_model_summary", "plugins"}
# … and that clash with how a run goes: every epoch ends with a validation and a checkpoint.
_CLASHING = {"fast_dev_run", "enable_checkpointing", "max_steps", "min_steps", "max_time", "limit_val_batches"}
_CLASHING |= {"check_val_every_n_epoch", "val_check_interval", "barebones"}
# All others, which may be set or added.
TRAINER_ARGUMENTS = {
    name: parameter
    for name, parameter in inspect.signature(Trainer.__init__).parameters.items()
    if name not in {"self"} | _OURS | _CLASHING
}
# The lowest value of a number, if it is not 0; Lightning takes any, and then divides by it or trains with it.
_LOWEST = {"accumulate_grad_batches": 1, "num_nodes": 1}


def check_settings(config: Config) -> None:
    """Raise ConfigError for an unknown data set, an invalid mirror, or a class or a Trainer argument that is wrong."""
    require_one_of("data.name", config.data.name, "auto", *SOURCES, *OWN)
    _check_own(config.data)
    for key, path in (
        ("data.root", config.data.root),
        ("data.file", config.data.file),
        ("data.mirror", config.data.mirror),
        ("run_dir", config.run_dir),
    ):
        _check_length(key, path or "")
    if config.distill["from"] is not None:
        checkpoint.find(config.distill["from"])
    if not config.data.val_fraction:
        watching = {f"callbacks.{name}": target for name, target in config.callbacks.items() if name != "checkpoint"}
        for key, target in {"scheduler": config.scheduler, **watching}.items():
            if isinstance(target, dict) and str(target.get("monitor")).startswith("val/"):
                raise ConfigError(
                    f"{key}: it watches {target['monitor']}, but data.val_fraction=0 leaves no validation images."
                )
    if config.data.mirror:
        mirror_address(config.data.mirror, "data.mirror=")
    callbacks = _classes(config.callbacks, "callbacks", Callback)
    _classes(config.logger, "logger", Logger)  # type: ignore[type-abstract]  # only subclasses are made
    if sum(issubclass(callback, BestAndLast) for callback in callbacks.values()) != 1:
        raise ConfigError("callbacks.checkpoint: it can't be left out; the results come from the checkpoint it keeps.")
    # A callback of the user's own may log further metrics.
    only_known = all(callback.__module__.startswith(("lightning.", "mnist_cnn.")) for callback in callbacks.values())
    for name, callback in callbacks.items():
        if issubclass(callback, StochasticWeightAveraging):  # and fails where there is batch normalisation
            raise ConfigError(
                f"callbacks.{name}: Lightning's {callback.__name__} sets the average only after the last checkpoint is "
                "written, so no result would come from it; take callbacks=swa."
            )
        arguments, wanted = config.callbacks[name], f"{RUN_DIR}/checkpoints"
        if issubclass(callback, BestAndLast) and arguments.get("dirpath") != wanted:
            raise ConfigError(f"callbacks.{name}.dirpath can't be changed: the run's results are read from {wanted}.")
        if only_known and isinstance(arguments.get("monitor"), str):
            require_one_of(f"callbacks.{name}.monitor", arguments["monitor"], *METRICS)
    for key, value in config.trainer.extra.items():
        if key not in TRAINER_ARGUMENTS:
            near = did_you_mean(key, TRAINER_ARGUMENTS)
            raise ConfigError(
                f"{written(f'trainer.{key}', value)}: Lightning's Trainer takes no such argument here.{near}"
            )
        check_type(TRAINER_ARGUMENTS[key], value, f"trainer.{key}")
        lowest = _LOWEST.get(key, 0)
        if isinstance(value, int | float) and not lowest <= value < math.inf:
            raise ConfigError(f"{written(f'trainer.{key}', value)}: it must be a finite number of at least {lowest}.")


def _check_own(data: DataConfig) -> None:
    """Raise ConfigError where the user's own images are not named, or a setting is not for this data set."""
    if data.name == "folder" and not data.root:
        raise ConfigError("data.root: name the folder that has your pictures, data.root=PATH.")
    if data.name == "npz" and not data.file:
        raise ConfigError("data.file: name the file that has your images, data.file=FILE.npz.")
    for key, name in (("size", "folder"), ("color", "folder"), ("file", "npz")):
        value = getattr(data, key)
        if value is not None and data.name != name:
            raise ConfigError(f"{written(f'data.{key}', value)}: only data={name} takes it, not data={data.name}.")


def check_machine(config: Config) -> None:
    """Raise ConfigError if this machine or its folders can't do what is asked."""
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
    processes, processors = config.trainer.devices, os.cpu_count() or 1
    if on_cpu and not (processes == "auto" or isinstance(processes, int)):
        raise ConfigError(f"{written('trainer.devices', processes)}: processors have no numbers; write how many.")
    if on_cpu and isinstance(processes, int) and processes > processors:
        raise ConfigError(
            f"trainer.devices={processes}: each is a process, and there are only {processors} processors here."
        )
    _try_trainer(config.trainer)
    check_run_dir(config)


def _check_length(key: str, path: str) -> None:
    """Raise ConfigError for a path that has more than 1,000 characters or is too long for the file system."""
    try:
        if len(path) > 1000:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        Path(path).exists()
    except OSError as error:
        raise ConfigError(f"{written(key, path)}: {error.strerror}.") from error


def _try_trainer(config: TrainerConfig) -> None:
    """Raise ConfigError for what only Lightning knows: whether the arguments and the environment go together."""
    arguments = asdict(config)
    arguments |= arguments.pop("extra") | processes_of(config)
    del arguments["compile"]
    log = logging.getLogger("lightning.pytorch")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the run's own Trainer gives them again
            trainer = Trainer(**arguments, logger=False, enable_checkpointing=False)
    except Exception as error:  # Lightning raises various errors for arguments that it can't use
        raise ConfigError(f"trainer: {one_line(flat(error))}") from error
    finally:
        log.setLevel(level)
    if trainer.world_size > 1 and sweeping():
        raise ConfigError("trainer: several processes can't share a sweep (-m); start one run after another.")
    launched, devices = started(), written("trainer.devices", config.devices)
    if launched and trainer.world_size == 1 < launched.all:
        raise ConfigError(
            f"{devices}: {launched.by} has started {launched.all} processes, and this run is one; add trainer=ddp, so "
            "that they train one network together."
        )
    if launched and trainer.world_size > 1 and (trainer.num_devices, trainer.num_nodes) != launched[1:]:
        raise ConfigError(
            f"{devices}: {launched.by} has started {launched.here} processes on each of {launched.machines} machines; "
            "leave out trainer.devices and trainer.num_nodes."
        )
    if trainer.world_size == 1 and not is_first_process():
        raise ConfigError(
            f"{devices}: the environment says that this is not the first of several processes; unset RANK, LOCAL_RANK, "
            "NODE_RANK and SLURM_PROCID."
        )


def _classes(targets: Mapping[str, Any], group: str, kind: type[T]) -> dict[str, type[T]]:
    return {name: check(target, f"{group}.{name}", kind) for name, target in targets.items() if target is not None}


def _has(accelerator: str) -> bool:
    return torch.backends.mps.is_available() if accelerator == "mps" else torch.cuda.is_available()
