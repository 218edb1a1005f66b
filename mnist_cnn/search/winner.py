"""Writes the best trial of a search as an experiment, `mnist-cnn train --config-dir FOLDER experiment=winner`."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from mnist_cnn.config import Config, literal
from mnist_cnn.errors import ConfigError, one_line
from mnist_cnn.files import write_file
from mnist_cnn.hydra_cli.configure import chosen_options, configured
from mnist_cnn.terminal import train_command

_NAME = "winner"


def write_winner(folder: Path, settings: Sequence[str], about: Sequence[str]) -> str | None:
    """Write `experiment/winner.yaml` for a run with these settings; `about` are the lines of its head.

    Returns the arguments that train it, or None, and writes nothing, if a file can't say what the settings say: one
    that takes a key away, or names an option in the user's own folder.
    """
    file = folder / "experiment" / f"{_NAME}.yaml"
    wanted = _values(configured(settings)[0])
    usual, chosen = chosen_options([]), chosen_options(settings)
    options = {
        group: option
        for group, option in chosen.items()
        if option != usual.get(group) and group not in ("experiment", "debug")
    }
    try:
        base = _values(configured([f"{group}={option}" for group, option in options.items()])[0])
    except ConfigError:
        return None
    content: dict[str, Any] = {"defaults": [{f"override /{group}": option} for group, option in options.items()]}
    content |= literal(_difference(base, wanted))
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120)
    arguments = shlex.join(["--config-dir", str(folder), "-m", f"experiment={_NAME}", "seed=0,1,2"])
    lines = [f"# {one_line(line, 2000)}".rstrip() for line in (f"{train_command()} {arguments}", "", *about)]
    file.parent.mkdir(exist_ok=True)
    write_file(file, "\n".join(["# @package _global_", *lines, text]).encode())
    if not _composes_to(folder, wanted):
        file.unlink()
        return None
    return arguments


def _composes_to(folder: Path, wanted: dict[str, Any]) -> bool:
    """Whether the experiment in this folder is composed to just these values."""
    path = str(folder.absolute()).replace("\\", "\\\\").replace("'", "\\'")
    try:
        composed, _ = configured([f"hydra.searchpath=['file://{path}']", f"experiment={_NAME}"])
    except ConfigError:
        return False
    return _values(composed) == wanted


def _values(config: Config) -> dict[str, Any]:
    return {key: value for key, value in config.to_dict().items() if key not in ("run_dir", "resume")}


def _difference(base: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """The values that are not in `base`, or are others there; inner dictionaries likewise, lists as a whole."""
    return {
        key: _difference(base[key], value) if isinstance(value, dict) and isinstance(base.get(key), dict) else value
        for key, value in wanted.items()
        if key not in base or base[key] != value
    }
