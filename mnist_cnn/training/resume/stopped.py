"""Finds the checkpoint that a stopped run continues from, and checks that its state is safe and the settings fit."""

import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mnist_cnn.config import Config
from mnist_cnn.errors import CheckpointError, ConfigError, one_line
from mnist_cnn.inference import checkpoint
from mnist_cnn.inference.checkpoint import TrainedNetwork
from mnist_cnn.run_folder import is_first_process


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
        _check_optimizer(config, content, file)
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
        is_plain = groups and all(_is_number(value) for group in groups for value in _values(dict(group)))
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
            if not all(isinstance(value, int | float) for value in (row["epoch"], row["step"], row["seconds"])):
                raise ValueError
    except CheckpointError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{file}: a checkpoint without the state of a run, so there is nothing to resume."
        ) from error
    if epochs["started"] > epochs["processed"]:
        return f"in epoch {content['epoch'] + 1}, at step {content['global_step']:,}"
    return f"after epoch {content['epoch'] + 1}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | None)


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
    for name, target in config.callbacks.items():
        if target is not None and is_known(target):
            settings |= {f"callbacks.{name}.{key}": value for key, value in target.items()}
    return settings


def is_known(target: Mapping[str, Any]) -> bool:
    """Whether a callback is Lightning's or this project's. One of another project may be left out of a resumed run."""
    return str(target.get("_target_")).startswith(("lightning.", "mnist_cnn."))


def _check_same_experiment(config: Config, stopped: TrainedNetwork) -> None:
    before = {**stopped.training.get("settings", {}), "model.layers": stopped.network.layers}
    now = {**settings_of(config), "model.layers": config.model.layers}
    if config.data.name != "auto":
        before["data.name"], now["data.name"] = stopped.dataset, config.data.name
    epochs = config.trainer.max_epochs
    if "total_steps" in config.scheduler.values():  # its course was planned for a certain number of epochs
        before["trainer.max_epochs"], now["trainer.max_epochs"] = stopped.training.get("max_epochs"), epochs
    for key in now | before:
        if now.get(key) != before.get(key):
            raise cannot_change(config.resume, key, before.get(key))
    if epochs < stopped.epoch:
        raise ConfigError(
            f"resume={config.resume}: it already has {stopped.epoch} epochs; trainer.max_epochs={epochs}."
        )


def _check_optimizer(config: Config, content: Mapping[str, Any], file: Path) -> None:
    """Raise CheckpointError if the optimiser's state contradicts the settings, such as in the learning rate.

    Not checked where there is a scheduler, which changes these values; nor is `eps`, which KerasAdam changes.
    """
    for group in content["optimizer_states"][0]["param_groups"] if not config.scheduler else ():
        for key in (set(config.optimizer) & set(group)) - {"eps"}:
            was, wanted = (list(x) if isinstance(x, tuple) else x for x in (group[key], config.optimizer[key]))
            if was != wanted:
                raise CheckpointError(f"{file}: its {key} is {one_line(str(was), 60)}, but optimizer.{key}={wanted}.")


def cannot_change(run: str | None, key: str, before: Any) -> ConfigError:
    """The error for a setting that would make the resumed run another experiment."""
    was = "the saved run has other layers" if key == "model.layers" else f"it was {one_line(str(before), 60)}"
    was += ", and the scheduler is laid out for that" if key == "trainer.max_epochs" else ""
    return ConfigError(f"resume={run}: {key} can't be changed when a run is resumed ({was}); start a new run for that.")
