"""Puts what Hydra refuses into one line, with the nearest name that it would have taken."""

import difflib
from collections.abc import Collection
from pathlib import Path

from hydra.core.config_store import ConfigStore
from hydra.errors import ConfigCompositionException, MissingConfigException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from mnist_cnn import config, quick_imports
from mnist_cnn.errors import did_you_mean, flat, one_line
from mnist_cnn.terminal import train_command

# Groups whose options name classes, and so have different keys.
TARGETS = ("optimizer", "scheduler", "callbacks", "logger")
# Where further arguments may be added to those that the files have.
OPEN = (*TARGETS, "trainer", "model.layers")

# The packages that add options to Hydra's own groups.
PLUGINS = {
    "hydra/launcher": {
        "joblib": "'mnist-cnn[joblib]'",
        "ray": "hydra-ray-launcher",
        "rq": "hydra-rq-launcher",
        "submitit_local": "'mnist-cnn[slurm]'",
        "submitit_slurm": "'mnist-cnn[slurm]'",
    },
    "hydra/sweeper": {
        "ax": "hydra-ax-sweeper",
        "nevergrad": "hydra-nevergrad-sweeper",
    },
}


def explain(error: Exception, conf: Path, arguments: list[str]) -> str:
    """What Hydra refuses, in one line with the nearest name that it would have taken."""
    if isinstance(error, MissingConfigException) and "/" in str(error.missing_cfg_file):
        group, _, option = str(error.missing_cfg_file).rpartition("/")
        if (group, option) == ("hydra/sweeper", "optuna"):  # its package needs an Optuna of 2022, and can't prune
            return "hydra/sweeper=optuna: mnist-cnn search is the way to search with Optuna; see docs/search.md"
        if package := PLUGINS.get(group, {}).get(option):
            return f"{group}={option}: it comes with a package that is not installed: pip install {package}"
        stored = ConfigStore.instance().list(group) if group in PLUGINS else []
        options = sorted(Path(str(file)).stem for file in (*(conf / group).glob("*.yaml"), *stored))
        listed = f" There are: {', '.join(options)}." if options else ""
        return f"{group}={option}: no such option.{did_you_mean(option, options)}{listed}"
    if isinstance(error, OverrideParseException):
        odd = "; quote what is not plain letters and digits: \"key='value'\"" if "=" in str(error.override) else ""
        shown = one_line(str(error.override), 200)
        return f"{shown}: not understood; settings are written key=value or group=option{odd}."
    refused = error.__cause__ if isinstance(error, ConfigCompositionException) else error
    if not isinstance(refused, OmegaConfBaseException):  # Hydra, or a YAML reader, which raise nearly anything
        what = flat(error)
        return one_line(what if " " in what else f"{type(error).__name__}: {what}", 300)
    key = config.key_of(refused)
    written = (argument.lstrip("+") for argument in arguments)
    setting = next((item for item in written if f"{item.partition('=')[0]}.".startswith(f"{key}.")), None)
    line = config.explain(refused, setting)
    if isinstance(refused, ConfigKeyError | AttributeError):
        return f"{_with_a_way(line, setting or key, conf)} See: {train_command()} --help"
    return line


def _with_a_way(line: str, setting: str, conf: Path) -> str:
    """The line for a key that does not exist, with a way to set it if there is one and the line has none yet."""
    key, _, value = setting.partition("=")
    group, _, rest = key.partition(".")
    arguments: Collection[str] = ()
    if group == "trainer" and value:
        with quick_imports():
            from mnist_cnn.training.checks import TRAINER_ARGUMENTS as arguments
    if rest in arguments:
        return f"{setting}: no such key, but Lightning's Trainer has such an argument; write +{setting} instead."
    if "Did you mean" in line:
        return line
    if near := difflib.get_close_matches(rest, arguments, n=1):
        return f"{line} Did you mean +trainer.{near[0]}={value}?"
    for name in (group,) if rest else TARGETS:
        for path, options in _keys_of_options(conf / name).items() if name in TARGETS else ():
            if path == rest or (not rest and path.rpartition(".")[2] == key):
                return f"{line} {name}.{path} comes with {', '.join(options)}."
    return f"{line} To add an argument, write +{setting} instead." if rest and key.startswith(OPEN) else line


def _keys_of_options(folder: Path) -> dict[str, list[str]]:
    """For each key of a group's files, the options that have it."""
    found: dict[str, list[str]] = {}
    for file in sorted(folder.glob("*.yaml")):
        for name in config.keys_of(OmegaConf.to_container(OmegaConf.load(file))):
            found.setdefault(name, []).append(f"{folder.name}={file.stem}")
    return found
