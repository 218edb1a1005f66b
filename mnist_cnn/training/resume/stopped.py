"""Finds the checkpoint that a stopped run continues from, and checks that its state is safe and the settings fit."""

import hashlib
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mnist_cnn.config import Config
from mnist_cnn.data.sources import kind_of
from mnist_cnn.errors import CheckpointError, ConfigError, one_line
from mnist_cnn.inference import checkpoint
from mnist_cnn.inference.checkpoint import TrainedNetwork
from mnist_cnn.network.build import with_class_count
from mnist_cnn.processes import is_first_process
from mnist_cnn.training.optimizers import build_optimizer

# Values in the groups of an optimiser's state that settings don't decide: KerasAdam moves eps, precision decides fused.
_NOT_OF_SETTINGS = frozenset({"params", "eps", "fused"})
# What stands for the teacher in the settings of a checkpoint.
_TEACHER = "distill.sha256"
_MOVED_BY_SCHEDULERS = frozenset({"lr", "betas", "momentum"})


def find_stopped(config: Config, run: str) -> tuple[TrainedNetwork | None, Path | None]:
    """The network of a stopped run, and the checkpoint that it continues from.

    That is `last.ckpt` or, if this is damaged or missing, `best.ckpt`: a longer way to the same end. None and None if
    the run was stopped before it wrote one, so that it begins again. CheckpointError if all are damaged, ConfigError
    if the settings would make it another experiment.
    """
    damaged: list[str] = []
    for file in (Path(run) / "checkpoints" / name for name in ("last.ckpt", "best.ckpt")):
        if not file.exists():
            continue
        try:
            content = checkpoint.read(file)
            trained = checkpoint.trained_network(content, file)
        except CheckpointError as error:
            damaged.append(str(error))
            continue
        position = _check_state(content, file)  # best.ckpt replaces a damaged file, not one whose state is not safe
        _check_same_experiment(config, trained)
        _check_optimizer(config, content, trained, file)
        _check_best(content, file)
        _tell(*(f"warning: {line}" for line in damaged), f"resuming {run} {position}, from {file.name}")
        return trained, file
    if damaged:
        raise CheckpointError("\n".join([*damaged, f"  To begin again, remove {run}/checkpoints."]))
    _tell(f"resuming {run} from the beginning: it was stopped before it wrote a checkpoint")
    return None, None


def _tell(*lines: str) -> None:
    if is_first_process():
        print("\n".join(lines), file=sys.stderr)


def _check_state(content: Mapping[str, Any], file: Path) -> str:
    """Where the run was stopped, in words; CheckpointError unless a checkpoint's content holds the state of a run.

    Lightning uses the state as it is, and removes and replaces the files that a callback's state names. So its counters
    must be whole numbers, and those files must lie in the callback's own folder.
    """
    try:
        callbacks, epochs = content["callbacks"], content["loops"]["fit_loop"]["epoch_progress"]["current"]
        (groups,) = [state["param_groups"] for state in content["optimizer_states"]]
        is_whole = all(isinstance(count, int) and count >= 0 for count in _values(content["loops"]))
        version = str(content["pytorch-lightning_version"])
        is_plain = groups and all(
            value is None or _is_number(value) for group in groups for value in _values(dict(group))
        )
        if not (is_whole and is_plain and re.fullmatch(r"\d+(\.\d+)*[\w.+]*", version)):
            raise ValueError
        for state in callbacks.values():
            paths = [*(state[key] for key in state if str(key).endswith("_path")), *state.get("best_k_models", ())]
            if not all(isinstance(path, str | None) for path in (*paths, state.get("dirpath"))):
                raise ValueError
            folder = Path(state.get("dirpath") or "")
            if ".." in folder.parts or any(path and Path(path) != folder / Path(path).name for path in paths):
                raise CheckpointError(f"{file}: the state of a callback names files outside its folder.")
        for row in callbacks["History"]["rows"]:
            is_row = {"epoch", "step", "seconds"} <= set(row) and all(isinstance(name, str) for name in row)
            if not is_row or not all(_is_number(value) and abs(value) < 1e12 for value in row.values()):
                raise ValueError
        if not 0 <= content["global_step"] < 1e12 or len(callbacks["History"]["rows"]) != epochs["processed"]:
            raise ValueError
        in_mid_epoch = epochs["started"] > epochs["processed"]
        state = callbacks.get("EpochState", {})  # Lightning leaves out what is empty
        if in_mid_epoch and not (state["processes"] and state["taken"] > 0 and state["batch_size"] > 0):
            raise ValueError
        epoch, step = int(content["epoch"]) + 1, int(content["global_step"])
    except CheckpointError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{file}: a checkpoint without the state of a run, so there is nothing to resume."
        ) from error
    return f"in epoch {epoch}, at step {step:,}" if in_mid_epoch else f"after epoch {epoch}"


def _check_best(content: Mapping[str, Any], file: Path) -> None:
    """Raise CheckpointError if the best epoch so far is lost: its results would be those of another one."""
    best = file.with_name("best.ckpt")
    has_best = any(state.get("best_model_path") for state in content["callbacks"].values())
    if file == best or not has_best:
        return
    try:
        checkpoint.load(best)
    except CheckpointError as error:
        raise CheckpointError(
            f"{error}\n  It may have been the best epoch. To begin again, remove {one_line(file.parent)}."
        ) from error


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def _values(tree: Any) -> Iterator[Any]:
    """Everything in nested dictionaries and lists that is neither."""
    if isinstance(tree, dict | list | tuple):
        for inner in tree.values() if isinstance(tree, dict) else tree:
            yield from _values(inner)
    else:
        yield tree


def settings_of(config: Config) -> dict[str, Any]:
    """What decides how the weights move, by the keys of the command line; a resumed run can't change it."""
    settings: dict[str, Any] = {"seed": config.seed, "trainer.precision": config.trainer.precision}
    for key in ("batch_size", "val_fraction", "split", "normalize"):
        settings[f"data.{key}"] = getattr(config.data, key)
    groups = {"trainer": config.trainer.extra, "optimizer": config.optimizer, "scheduler": config.scheduler}
    for group, values in groups.items():
        settings |= {f"{group}.{key}": value for key, value in values.items()}
    # Where one of these is off, its settings decide nothing.
    own = {key: getattr(config.data, key) for key in ("size", "color")}
    optional = {"data": own, "augmentation": asdict(config.augmentation), "loss": asdict(config.loss)}
    if teacher := config.distill["from"]:  # the file that is read counts, not where it lies
        digest = hashlib.sha256(checkpoint.load_kept(teacher)[0].read_bytes()).hexdigest()
        optional["distill"] = {"sha256": digest, **config.distill, "from": None}
    for group, values in optional.items():
        settings |= {f"{group}.{key}": value for key, value in values.items() if value}
    for name, target in config.callbacks.items():
        if target is not None and is_known(target):
            settings |= {f"callbacks.{name}.{key}": value for key, value in target.items()}
    return settings


def is_known(target: Mapping[str, Any]) -> bool:
    """Whether a callback is Lightning's or this project's. One of another project may be left out of a resumed run."""
    return str(target.get("_target_")).startswith(("lightning.", "mnist_cnn."))


def _check_same_experiment(config: Config, stopped: TrainedNetwork) -> None:
    before = {**stopped.training.get("settings", {}), "model.layers": stopped.network.layers}
    now = {**settings_of(config), "model.layers": with_class_count(config.model.layers, len(stopped.classes))}
    if config.data.name != "auto":
        before["data.name"], now["data.name"] = kind_of(stopped.dataset), config.data.name
    epochs = config.trainer.max_epochs
    # The course of the learning rate, or of dropout, was planned for a certain number of epochs.
    targets = [str(target.get("_target_")) for target in config.callbacks.values() if target is not None]
    if "total_steps" in config.scheduler.values() or any(name.endswith(".DropoutSchedule") for name in targets):
        before["trainer.max_epochs"], now["trainer.max_epochs"] = stopped.training.get("max_epochs"), epochs
    for key in now | before:
        if now.get(key) != before.get(key):
            raise cannot_change(config.resume, key, before.get(key))
    if epochs < stopped.epoch:
        raise ConfigError(
            f"resume={config.resume}: it already has {stopped.epoch} epochs; trainer.max_epochs={epochs}."
        )


def _check_optimizer(config: Config, content: Mapping[str, Any], trained: TrainedNetwork, file: Path) -> None:
    """Raise CheckpointError if the optimiser's state has another learning rate, or the like, than the settings."""
    fresh = build_optimizer(config.optimizer, trained.network.parameters())
    moved = _MOVED_BY_SCHEDULERS if config.scheduler else frozenset()
    groups = content["optimizer_states"][0]["param_groups"]
    if len(groups) != len(fresh.param_groups):
        raise CheckpointError(f"{file}: it has the state of another optimiser.")
    for group, made in zip(groups, fresh.param_groups, strict=True):
        for key in (set(group) & set(fresh.defaults)) - _NOT_OF_SETTINGS - moved:
            was, wanted = (list(x) if isinstance(x, tuple) else x for x in (group[key], made[key]))
            if was != wanted:
                raise CheckpointError(f"{file}: its {key} is {one_line(was, 60)}, but optimizer.{key}={wanted}.")


def cannot_change(run: str | None, key: str, before: Any) -> ConfigError:
    """The error for a setting that would make the resumed run another experiment."""
    was = "the saved run has other layers" if key == "model.layers" else f"it was {one_line(str(before), 60)}"
    if key == _TEACHER:
        key, was = "distill.from", f"the file had the SHA-256 {one_line(str(before), 12)}" if before else "it had none"
    was += ", and its schedule was planned for that" if key == "trainer.max_epochs" else ""
    return ConfigError(f"resume={run}: {key} can't be changed when a run is resumed ({was}); start a new run for that.")
