"""What is checked before a run makes or fetches anything."""

import inspect
import sys
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger

from mnist_cnn import machine
from mnist_cnn.config import RUN_DIR, Config, require_one_of
from mnist_cnn.data.download import mirror_address
from mnist_cnn.data.sources import SOURCES
from mnist_cnn.errors import ConfigError, did_you_mean
from mnist_cnn.run_folder import check_run_dir
from mnist_cnn.training.callbacks import METRICS, BestAndLast
from mnist_cnn.training.targets import class_of

T = TypeVar("T")


def check_settings(config: Config) -> None:
    """Raise ConfigError for an unknown data set, an invalid mirror, a missing class or a wrong Trainer argument."""
    require_one_of("data.name", config.data.name, "auto", *SOURCES)
    if config.data.mirror:
        mirror_address(config.data.mirror, "data.mirror=")
    callbacks = _classes(config.callbacks, "callbacks", Callback)
    _classes(config.logger, "logger", Logger)  # type: ignore[type-abstract]  # only subclasses are made
    if sum(issubclass(callback, BestAndLast) for callback in callbacks.values()) != 1:
        raise ConfigError("callbacks.checkpoint: it can't be left out; the results come from the checkpoint it keeps.")
    # A callback of the user's own may log further metrics.
    only_known = all(callback.__module__.startswith(("lightning.", "mnist_cnn.")) for callback in callbacks.values())
    for name, callback in callbacks.items():
        arguments, wanted = config.callbacks[name], f"{RUN_DIR}/checkpoints"
        if issubclass(callback, BestAndLast) and arguments.get("dirpath") != wanted:
            raise ConfigError(f"callbacks.{name}.dirpath can't be changed: the run's results are read from {wanted}.")
        if only_known and isinstance(arguments.get("monitor"), str):
            require_one_of(f"callbacks.{name}.monitor", arguments["monitor"], *METRICS)
    ours = {"callbacks", "logger", "default_root_dir", "use_distributed_sampler", "num_sanity_val_steps"}
    ours |= {"enable_progress_bar", "enable_model_summary"}
    # Every epoch ends with a validation and a checkpoint.
    clashing = {"fast_dev_run", "enable_checkpointing", "max_steps", "min_steps", "max_time", "limit_val_batches"}
    clashing |= {"check_val_every_n_epoch", "val_check_interval"}
    known = set(inspect.signature(Trainer.__init__).parameters) - {"self"} - ours - clashing
    for key in config.trainer.extra:
        if key not in known:
            near = did_you_mean(key, known)
            raise ConfigError(f"trainer.{key}: Lightning's Trainer takes no such argument here.{near}")


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
    check_run_dir(config)


def _classes(targets: Mapping[str, Any], group: str, kind: type[T]) -> dict[str, type[T]]:
    return {name: class_of(target, f"{group}.{name}", kind) for name, target in targets.items() if target is not None}


def _has(accelerator: str) -> bool:
    return torch.backends.mps.is_available() if accelerator == "mps" else torch.cuda.is_available()
