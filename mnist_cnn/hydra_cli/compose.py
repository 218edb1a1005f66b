"""Composes configurations from the files in `conf/`: that of a run, and those of all runs of a sweep."""

import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper  # what a sweep's runs are is decided there alone
from hydra._internal.utils import create_config_search_path
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from mnist_cnn import quick_imports
from mnist_cnn.hydra_cli.arguments import Arguments, keys_of

_PACKAGE = Path(__file__).parents[1]
# A wheel has the configuration inside the package, a checkout has it beside the package.
CONF = next(folder / "conf" for folder in (_PACKAGE, _PACKAGE.parent) if (folder / "conf").is_dir())


def config_loader(conf: Path, config_dir: str | None) -> ConfigLoader:
    """Hydra's own, for the files in `conf` and in the folder that --config-dir names."""
    search_path = create_config_search_path(str(conf))
    if config_dir and os.path.isdir(config_dir):  # otherwise Hydra says so
        place = SearchPathQuery(provider="schema")
        search_path.prepend("command-line", f"file://{os.path.abspath(config_dir)}", place)
    return ConfigLoaderImpl(search_path)


def runs_of(arguments: Arguments, loader: ConfigLoader) -> list[list[str]]:
    """The settings of each run of a sweep; an empty list where the sweeper of another package chooses them.

    HydraException for values that are no list, such as interval(0,1).
    """
    overrides = OverridesParser.create(config_loader=loader).parse_overrides(arguments.settings)
    if any(override.key_or_group == "hydra/sweeper" and override.value() != "basic" for override in overrides):
        return []
    (runs,) = BasicSweeper.split_arguments([one for one in overrides if not is_hydra_setting(one)], None)
    return runs


def is_hydra_setting(override: Override) -> bool:
    """Whether a setting says how Hydra works, such as which launcher starts the runs, and nothing about a run."""
    return override.key_or_group.startswith(("hydra.", "hydra/"))


def compose_run(loader: ConfigLoader, settings: Sequence[str]) -> DictConfig:
    """The configuration of one run, new or resumed; Hydra's global state stays as it is."""
    composed, choices = _composed(loader, settings)
    return new_or_resumed(composed, settings, choices.get("model"), loader)


def chosen_options(loader: ConfigLoader, settings: Sequence[str]) -> dict[str, Any]:
    """The option, or the list of options, that these settings choose in each group of `conf/`."""
    return {group: option for group, option in _composed(loader, settings)[1].items() if not group.startswith("hydra/")}


def _composed(loader: ConfigLoader, settings: Sequence[str]) -> tuple[DictConfig, dict[str, Any]]:
    composed = loader.load_configuration("config", list(settings), RunMode.RUN)
    with open_dict(composed):
        choices: Any = OmegaConf.to_container(composed.pop("hydra").runtime.choices)
    return composed, choices


def with_model_name(composed: DictConfig, keys: Collection[str], model: str | None, loader: ConfigLoader) -> DictConfig:
    """The configuration, in which a network that is not that of the chosen file any more is called `custom`.

    `model` is the chosen option of that group; None if it was taken out, which is refused when values are checked.
    """
    if model is None:
        return composed
    own = loader.load_configuration(f"model/{model}", overrides=[], run_mode=RunMode.RUN).model
    if composed.model.name == own.name and composed.model.layers != own.layers and "model.name" not in keys:
        composed.model.name = "custom"
    return composed


def new_or_resumed(
    composed: DictConfig, settings: Sequence[str], model: str | None, loader: ConfigLoader
) -> DictConfig:
    """The configuration of one run, new or resumed; `model` is the chosen option of that group."""
    if composed.resume:
        with quick_imports():
            from mnist_cnn.training.resume.settings import resumed

        return resumed(composed, keys_of(settings))
    return with_model_name(composed, keys_of(settings), model, loader)
