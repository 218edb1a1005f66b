"""`python train.py …`: composes the configuration with Hydra and runs the task, once or for every run of a sweep.

A user's mistake ends in one line that names the setting and, where there is one, the nearest right name.
"""

import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser  # Hydra has no public list of its flags
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from mnist_cnn import config
from mnist_cnn.errors import ConfigError, Interrupted, UserError, did_you_mean, flat, one_line

# Settings whose value is a path, taken as it is written: Hydra would read `=`, `,` and quotes in it.
PATHS = ("resume", "run_dir", "model.init_from")
# Groups whose classes take arguments that their files may leave out.
OPEN = ("trainer", "optimizer", "scheduler", "callbacks", "logger", "model.layers")

# Used by conf/config.yaml: the first of two values that is not null.
OmegaConf.register_new_resolver("or", lambda value, default: default if value is None else value, replace=True)


def run_hydra(task: Callable[[DictConfig], Any], conf: Path) -> int:
    """Compose what `sys.argv` asks for from the folder `conf`, hand it to `task`, and return the exit status.

    HYDRA_FULL_ERROR=1 in the environment asks for tracebacks.
    """
    asked = os.environ.get("HYDRA_FULL_ERROR")
    tracebacks, is_running = asked == "1", False

    def job(composed: DictConfig) -> Any:
        nonlocal is_running
        is_running = True
        with _hydra_full_error(asked):  # processes that the task starts see what the user set
            try:
                return task(_resumed(composed) if composed.resume else composed)
            except UserError as error:
                if tracebacks or HydraConfig.get().mode == RunMode.MULTIRUN:
                    raise  # in a sweep, Hydra says which run it was and goes on with the others
                raise SystemExit(_tell(error)) from None

    job.__module__, job.__qualname__ = task.__module__, task.__qualname__  # Hydra names the program after them
    try:
        sys.argv[1:] = _checked(sys.argv[1:], conf)
        with _hydra_full_error("1"):  # so that Hydra raises what it would print
            hydra.main(version_base="1.3", config_path=str(conf), config_name="config")(job)()
    except (UserError, HydraException, OmegaConfBaseException) as error:
        if tracebacks:
            raise
        return _tell(error if isinstance(error, UserError) else ConfigError(explain(error, conf, sys.argv[1:])))
    except Exception as error:  # Hydra, or a YAML reader, on settings or files that they can't use
        if tracebacks or is_running:
            raise
        return _tell(ConfigError(one_line(flat(error), 400)))
    except KeyboardInterrupt as stop:
        print("interrupted", file=sys.stderr)
        return getattr(stop, "exit_status", Interrupted().exit_status)
    return 0


@contextmanager
def _hydra_full_error(value: str | None) -> Iterator[None]:
    before = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = value or "0"
    try:
        yield
    finally:
        os.environ["HYDRA_FULL_ERROR"] = before or "0"


def _tell(error: UserError) -> int:
    print(f"error: {error}", file=sys.stderr)
    return error.exit_status


def _resumed(composed: DictConfig) -> DictConfig:
    from mnist_cnn.training.resume.settings import resumed

    task = list(HydraConfig.get().overrides.task)
    return resumed(composed, [override.key_or_group for override in OverridesParser.create().parse_overrides(task)])


def _checked(arguments: list[str], conf: Path) -> list[str]:
    """The arguments as Hydra wants them, flags first; ConfigError for what it would answer with a page of text."""
    arguments = [_quoted(argument) for argument in arguments]
    options, unknown = get_args_parser().parse_known_intermixed_args(arguments)
    if unknown:
        raise ConfigError(f"{unknown[0]}: settings are written key=value, without dashes. See: python train.py --help")
    settings, multirun = list(options.overrides), bool(options.multirun)
    overrides = OverridesParser.create().parse_overrides(settings)
    keys = [override.key_or_group for override in overrides]
    for key, override in zip(keys, overrides, strict=True):
        if "model.init_from" in keys and (key == "model" or key.startswith("model.")) and key != "model.init_from":
            raise ConfigError(f"{key}: model.init_from brings its own network; leave one of them out.")
        if key == "resume" and multirun:
            raise ConfigError("resume: one run is resumed at a time; leave out -m.")
        if override.is_sweep_override() and not multirun:
            raise ConfigError(f"{override.input_line}: several values are a sweep; put -m before them.")
        if override.is_sweep_override() or override.is_delete():
            continue
        value = override.value()
        if not key:
            raise ConfigError(f"{override.input_line}: the key is missing.")
        if key in PATHS and value == "":
            raise ConfigError(f"{override.input_line}: name a path, or leave it out.")
        if (conf / key).is_dir() and (not isinstance(value, str | list) or not value):
            names = ", ".join(sorted(file.stem for file in (conf / key).glob("*.yaml")))
            raise ConfigError(f"{override.input_line}: name one of its options: {names}.")
    flags = list(arguments)
    for setting in settings:
        flags.remove(setting)
    return flags + settings


def _quoted(argument: str) -> str:
    """A path setting in Hydra's quotes, with what has a meaning to Hydra or OmegaConf escaped."""
    key, _, value = argument.partition("=")
    in_quotes = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
    is_plain = re.fullmatch(r"[a-z_./][\w./-]*", value, re.ASCII) and value not in ("true", "false", "nan", "inf")
    if key not in PATHS or value == "" or is_plain or (in_quotes and not Path(value).exists()):
        return argument  # as Hydra takes it; `null` is no path
    value = re.sub(r"(\\*)\$\{", lambda found: f"{found[1] * 2}\\${{", value)
    value = re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), value)
    return f"{key}='{value}'"


def explain(error: HydraException | OmegaConfBaseException, conf: Path, arguments: list[str]) -> str:
    """What Hydra refuses, in one line with the nearest name that it would have taken."""
    if isinstance(error, MissingConfigException) and "/" in str(error.missing_cfg_file):
        group, _, option = str(error.missing_cfg_file).rpartition("/")
        options = sorted(file.stem for file in (conf / group).glob("*.yaml"))
        return f"{group}={option}: no such option.{did_you_mean(option, options)} There are: {', '.join(options)}."
    if isinstance(error, OverrideParseException):
        odd = "; quote what is not plain letters and digits: \"key='value'\"" if "=" in str(error.override) else ""
        return f"{error.override}: not understood; settings are written key=value or group=option{odd}."
    refused = error.__cause__ if isinstance(error, ConfigCompositionException) else error
    if not isinstance(refused, OmegaConfBaseException):
        return flat(error)[:300]
    key = config.key_of(refused)
    written = (argument.lstrip("+") for argument in arguments)
    setting = next((item for item in written if f"{item.partition('=')[0]}.".startswith(f"{key}.")), key)
    line = config.explain(refused, setting)
    if isinstance(refused, ConfigKeyError | AttributeError):
        line += "" if "Did you mean" in line else _where_else(setting.partition("=")[0], conf)
        line += " See: python train.py --help"
    return line


def _where_else(key: str, conf: Path) -> str:
    """How to set a key that the chosen option of a group does not have."""
    group, _, rest = key.partition(".")
    having = [file.stem for file in sorted((conf / group).glob("*.yaml")) if rest in (OmegaConf.load(file) or ())]
    if having:
        return f" Another option has it: {', '.join(f'{group}={name}' for name in having)}."
    return f" A further argument is added with +{key}=…" if key.startswith(OPEN) and "." in key else ""
