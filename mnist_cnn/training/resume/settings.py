"""The configuration of a resumed run: what the run saved, with the few changes that the command line may make.

A run folder may come from anybody, so `saved.py` reads its `config.yaml` as plain values. By itself it may name only
classes of _TRUSTED (of loggers, those of _LOCAL_LOGGERS), paths in its own folder, and as a teacher a network of the
package. Anything else must be named again on the command line.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from omegaconf import DictConfig, OmegaConf
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from mnist_cnn.config import RUN_DIR, TrainerConfig, literal, require_one_of, select, to_config
from mnist_cnn.data import datasets
from mnist_cnn.data.sources import OWN, SOURCES
from mnist_cnn.errors import ConfigError, one_line
from mnist_cnn.inference import box
from mnist_cnn.run_folder import has_checkpoint
from mnist_cnn.training.log import CSVLog
from mnist_cnn.training.resume.saved import leaves, read_saved
from mnist_cnn.training.resume.stopped import cannot_change, is_known
from mnist_cnn.training.targets import class_of

# What may be changed: the length of the run, the machine, and the loggers.
_MACHINE = ("trainer.accelerator", "trainer.devices", "trainer.strategy")
_MAY_CHANGE = (
    "trainer.max_epochs", *_MACHINE, "trainer.compile", "data.root", "data.file", "data.eval_batch_size",
    "distill.from",
)  # fmt: skip
# What always comes from this command line, never from the saved run: where to fetch images, and which run is resumed.
_OF_THIS_MACHINE = ("data.mirror", "resume", "run_dir")
# A group's option may be named again if it is the same one: if it has the same value under this key.
_IDENTITY = {"data": "name", "model": "layers", "optimizer": "_target_", "scheduler": "_target_"}
# How the names of classes begin that a run folder may name by itself.
_TRUSTED = ("torch.optim.", "lightning.pytorch.callbacks.", "lightning.pytorch.loggers.",
            "mnist_cnn.training.callbacks.AveragedWeights", "mnist_cnn.training.callbacks.BestAndLast",
            "mnist_cnn.training.callbacks.DropoutSchedule", "mnist_cnn.training.log.CSVLog",
            "mnist_cnn.training.muon.Muon", "mnist_cnn.training.optimizers.KerasAdam")  # fmt: skip
# Further arguments of the Trainer that a run folder may have by itself.
_TRAINER_ARGUMENTS = (
    "accumulate_grad_batches", "benchmark", "detect_anomaly", "gradient_clip_algorithm", "gradient_clip_val",
    "inference_mode", "limit_test_batches", "limit_train_batches", "log_every_n_steps", "overfit_batches",
)  # fmt: skip
# Loggers that write into the run's folder and send nothing anywhere.
_LOCAL_LOGGERS = (CSVLog, CSVLogger, TensorBoardLogger)
# Arguments of callbacks and loggers that are words, not paths, and what a word looks like: `val/loss`.
_WORDS = ("monitor", "mode", "name", "version", "filename", "logging_interval")
_WORD = re.compile(r"\w[\w .=+{}-]*(/[\w=+-]+)?")


def resumed(composed: DictConfig, keys: list[str]) -> DictConfig:
    """The configuration of the run that `composed.resume` names.

    `composed` is the configuration from the command line and `conf/` alone, `keys` are the keys on the command line.
    ConfigError if the folder is not that of a run, is damaged or asks for something that is not trusted, or if the
    command line would make it another experiment.
    """
    folder = str(composed.resume)
    if "run_dir" in keys:
        raise ConfigError(f"resume={folder}: a run is resumed in its own folder; leave out run_dir.")
    now = to_config(composed).to_dict()
    saved = read_saved(folder)
    check_files(Path(folder))  # only now that it is known to be a run's: another folder may hold any number of files
    for key in keys:
        _change(saved, now, key, folder)
    for key in _OF_THIS_MACHINE:
        _put(saved, key, select(now, key))
    name, root = (str(saved["data"].get(key)) for key in ("name", "root"))
    require_one_of("data.name", name, "auto", *SOURCES, *OWN)
    if "data.root" not in keys and name not in OWN and not datasets.is_present(name, root):
        saved["data"]["root"] = now["data"]["root"]  # images would be downloaded to where the run folder says
    if not has_checkpoint(Path(folder)) and saved["model"].get("init_from") and "model.init_from" not in keys:
        raise ConfigError(
            f"resume={folder}: it has no checkpoint, and its model.init_from, "
            f"{one_line(saved['model']['init_from'], 80)}, is not trusted from a run folder; name it again."
        )
    teacher = (saved.get("distill") or {}).get("from")
    if teacher is not None and teacher not in box.names() and "distill.from" not in keys:
        raise ConfigError(
            f"resume={folder}: its distill.from, {one_line(teacher, 80)}, is not trusted from a run folder; name it "
            "again."
        )
    _check_targets(saved, now, folder)
    configuration: DictConfig = OmegaConf.create(literal(saved))
    return configuration


def check_files(folder: Path) -> None:
    """Raise ConfigError for a link, a pipe or the like in a run's folder: the run would write where it leads."""
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(parent, name)
            if path.is_symlink() or not (path.is_file() or path.is_dir()):
                shown = one_line(str(path.relative_to(folder)))
                raise ConfigError(f"resume={folder}: {shown} is a link, or no ordinary file; a run folder has none.")
    for name in ("metrics.csv", "metrics.json", "checkpoints/best.ckpt", "checkpoints/last.ckpt", "report/index.html"):
        if (folder / name).is_dir() or (folder / name).parent.is_file():
            raise ConfigError(f"resume={folder}: {name} is a folder, or in no folder; that of a run is a file.")


def _change(saved: dict[str, Any], now: dict[str, Any], key: str, folder: str) -> None:
    """Take over one setting of the command line; ConfigError where it can't be changed."""
    if key == "trainer":
        for name in _MACHINE:  # `trainer=cpu` says nothing about the length of the run
            _put(saved, name, select(now, name))
    elif key in _MAY_CHANGE or key.partition(".")[0] == "logger":
        _put(saved, key, select(now, key))
    elif key in ("experiment", "debug"):
        raise cannot_change(folder, key, "chosen when the run was started")
    elif key not in _OF_THIS_MACHINE:
        key = f"{key}.{_IDENTITY[key]}" if key in _IDENTITY else key
        before, after = select(saved, key), select(now, key)
        if after is None and key.startswith("callbacks.") and _is_foreign(before):
            _put(saved, key, None)  # left out
        elif before != after:
            raise cannot_change(folder, key, before)


def _is_foreign(target: Any) -> bool:
    return isinstance(target, dict) and not is_known(target)


def _check_targets(saved: dict[str, Any], now: dict[str, Any], folder: str) -> None:
    """Raise ConfigError for a class or a path that a run folder may not name by itself, unless it is named again."""
    own = {item.name for item in fields(TrainerConfig)}
    for name, value in saved["trainer"].items():
        if name not in own and name not in _TRAINER_ARGUMENTS and select(now, f"trainer.{name}") != value:
            raise ConfigError(
                f"resume={folder}: its trainer.{one_line(str(name), 60)} is not trusted from a run folder; name it "
                "again on the command line."
            )
    kinds: dict[str, type] = {"optimizer": Optimizer, "scheduler": LRScheduler}
    group: str
    kind: type
    for group, kind in (("callbacks", Callback), ("logger", Logger)):
        kinds |= {f"{group}.{name}": kind for name, entry in saved[group].items() if entry is not None}
    for key, kind in kinds.items():
        target = select(saved, key)
        if not isinstance(target, dict):
            raise ConfigError(f"resume={folder}: its {key} is damaged.")
        if not target and key == "scheduler":
            continue
        for path, value in leaves(target):
            full = f"{key}.{path}"
            if select(now, full) != value and not _is_harmless(key, path, value, target, kind):
                leave_out = f" (or leave it out: +{key}=null)" if key.startswith(("callbacks.", "logger.")) else ""
                raise ConfigError(
                    f"resume={folder}: its {full} is {one_line(repr(value), 80)}, which is not trusted from a run "
                    f"folder; name it again on the command line{leave_out}."
                )


def _is_harmless(key: str, path: str, value: Any, target: Mapping[str, Any], kind: type) -> bool:
    if path == "_target_":
        if not str(value).startswith(_TRUSTED):
            return False
        try:
            return issubclass(class_of(target, key, kind), _LOCAL_LOGGERS) or kind is not Logger
        except ConfigError:
            return False
    if not isinstance(value, str):
        return True
    name = path.rpartition(".")[2]
    if not key.startswith(("callbacks.", "logger.")):
        return not name.startswith("_")  # optimisers and schedulers write no files; nested targets are refused
    in_folder = value == RUN_DIR or value.startswith(f"{RUN_DIR}/")
    return (in_folder or (name in _WORDS and bool(_WORD.fullmatch(value)))) and ".." not in value


def _put(values: dict[str, Any], key: str, value: Any) -> None:
    *path, last = key.split(".")
    for part in path:
        values = values.setdefault(part, {})
    values[last] = value
