"""The state that a stopped run left: which checkpoint it continues from, and whether the settings still fit it."""

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mnist_cnn.config import Config
from mnist_cnn.errors import CheckpointError, ConfigError, one_line
from mnist_cnn.inference import checkpoint
from mnist_cnn.inference.checkpoint import TrainedNetwork
from mnist_cnn.network import build_network
from mnist_cnn.run_folder import is_first_process


def load_stopped(config: Config, run: str) -> TrainedNetwork:
    """The network of a stopped run; ConfigError if the settings would make it another experiment."""
    last = Path(run) / "checkpoints" / "last.ckpt"
    if not last.exists():
        raise ConfigError(f"resume={run}: nothing to resume: {last} does not exist.")
    content = checkpoint.read(last)
    stopped = checkpoint.trained_network(content, last)
    _check_state(content, last)
    _check_same_experiment(config, stopped)
    if resume_from(config) is not None:
        if is_first_process():
            print(f"resuming {run} after epoch {stopped.epoch}", file=sys.stderr)
        return stopped
    if config.model.init_from is not None:
        return replace(stopped, network=checkpoint.load(config.model.init_from).network)
    return replace(stopped, network=build_network(config.model.layers, stopped.network.input_shape))


def _check_state(content: Mapping[str, Any], last: Path) -> None:
    """Raise CheckpointError unless it holds a run's state whose callbacks' files all lie in their own folder.

    Lightning removes and replaces the files that a callback's state names.
    """
    callbacks = content.get("callbacks")
    if not isinstance(callbacks, dict) or not all(content.get(key) for key in ("optimizer_states", "loops")):
        raise CheckpointError(f"{last}: a checkpoint without the state of a run, so there is nothing to resume.")
    for name, state in callbacks.items():
        if not isinstance(state, dict) or "dirpath" not in state:
            continue
        files = [value for key, value in state.items() if str(key).endswith("_path")] + list(state["best_k_models"])
        folder = Path(str(state["dirpath"]))
        if ".." in folder.parts or any(file and Path(str(file)) != folder / Path(str(file)).name for file in files):
            raise CheckpointError(f"{last}: the state of {one_line(str(name), 60)} names files outside its folder.")


def resume_from(config: Config) -> Path | None:
    """The checkpoint whose weights and optimiser a resumed run takes over.

    None where the run was stopped in its first epoch: what it kept is half an epoch, so it begins again.
    """
    folder = Path(config.resume or "") / "checkpoints"
    return folder / "last.ckpt" if config.resume and (folder / "best.ckpt").exists() else None


def settings_of(config: Config) -> dict[str, Any]:
    """What decides how the weights move, by the keys of the command line; a resumed run can't change it."""
    settings: dict[str, Any] = {"seed": config.seed, "trainer.precision": config.trainer.precision}
    for key in ("batch_size", "val_fraction", "split", "normalize"):
        settings[f"data.{key}"] = getattr(config.data, key)
    for group in ("optimizer", "scheduler"):
        settings |= {f"{group}.{key}": value for key, value in getattr(config, group).items()}
    return settings


def _check_same_experiment(config: Config, stopped: TrainedNetwork) -> None:
    before = {**stopped.training.get("settings", {}), "model.layers": stopped.network.layers}
    now = {**settings_of(config), "model.layers": config.model.layers}
    if config.data.name != "auto":
        before["data.name"], now["data.name"] = stopped.dataset, config.data.name
    epochs = config.trainer.max_epochs
    if "total_steps" in config.scheduler.values():  # its course was laid over a certain number of epochs
        before["trainer.max_epochs"], now["trainer.max_epochs"] = stopped.training.get("max_epochs"), epochs
    for key in now | before:
        if now.get(key) != before.get(key):
            raise cannot_change(config.resume, key, before.get(key))
    if epochs < stopped.epoch:
        raise ConfigError(
            f"resume={config.resume}: it already has {stopped.epoch} epochs; trainer.max_epochs={epochs}."
        )


def cannot_change(run: str | None, key: str, before: Any) -> ConfigError:
    """The error for a setting that would make the resumed run another experiment."""
    was = "the saved run has other layers" if key == "model.layers" else f"it was {one_line(str(before), 60)}"
    was += ", and the scheduler is laid out for that" if key == "trainer.max_epochs" else ""
    return ConfigError(f"resume={run}: {key} can't be changed when a run is resumed ({was}); start a new run for that.")
