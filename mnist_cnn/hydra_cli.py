"""What did the user write after `train.py`, and if Hydra can't take it, what would it have taken?"""

import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from mnist_cnn.config import explain_value, nearest_key
from mnist_cnn.errors import ConfigError, UserError, did_you_mean

# `hydra --help` lists them; anything else that begins with a dash is a setting written in another program's way.
FLAGS = {
    *("--help", "-h", "--hydra-help", "--version", "--cfg", "-c", "--resolve", "--package", "-p", "--run", "-r"),
    *("--multirun", "-m", "--shell-completion", "-sc", "--config-path", "-cp", "--config-name", "-cn"),
    *("--config-dir", "-cd", "--experimental-rerun", "--info", "-i"),
}
FLAGS_WITH_VALUE = {
    *("--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd"),
    *("--experimental-rerun", "--info", "-i"),
}


# Used by conf/config.yaml: the first of two values that is not null.
OmegaConf.register_new_resolver("or", lambda value, default: default if value is None else value, replace=True)


def command_line(task: Callable[[DictConfig], Any], conf: Path) -> int:
    """Compose what `sys.argv` asks for out of the folder `conf`, hand it to `task`, and return the exit status.

    A user's mistake ends in one line on standard error. HYDRA_FULL_ERROR=1 in the environment asks for tracebacks.
    """
    asked = os.environ.get("HYDRA_FULL_ERROR")
    tracebacks = asked == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # so that Hydra raises what it would print

    def job(composed: DictConfig) -> Any:
        os.environ["HYDRA_FULL_ERROR"] = asked or "0"  # processes that the task starts have a user of their own
        try:
            return task(composed)
        except UserError as error:
            if tracebacks or HydraConfig.get().mode == RunMode.MULTIRUN:
                raise  # in a sweep, Hydra says which run it was and goes on with the others
            raise SystemExit(_tell(error)) from None
        finally:
            os.environ["HYDRA_FULL_ERROR"] = "1"

    job.__module__, job.__qualname__ = task.__module__, task.__qualname__  # Hydra names the program after them
    try:
        sys.argv[1:] = with_resumed(_in_order(sys.argv[1:], conf))
        hydra.main(version_base="1.3", config_path=str(conf), config_name="config")(job)()
    except UserError as error:
        if tracebacks:
            raise
        return _tell(error)
    except (HydraException, OmegaConfBaseException) as error:
        if tracebacks:
            raise
        return _tell(ConfigError(explain(error, conf, sys.argv[1:])))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130  # the shells' number for it
    return 0


def _tell(error: UserError) -> int:
    print(f"error: {error}", file=sys.stderr)
    return error.exit_status


def _in_order(arguments: list[str], conf: Path) -> list[str]:
    """Flags first, as Hydra wants them; ConfigError for what it would answer with a page or a traceback."""
    flags: list[str] = []
    settings: list[str] = []
    for argument in arguments:
        name, _, value = argument.partition("=")
        if argument.startswith("-") and name not in FLAGS:
            raise ConfigError(
                f"{argument}: settings are written key=value, without dashes. See: python train.py --help"
            )
        if argument.startswith("-") or (flags and flags[-1] in FLAGS_WITH_VALUE):
            flags.append(argument)
            continue
        if (conf / name).is_dir() and value in ("", "null") and name not in ("experiment", "debug"):
            options = ", ".join(_options(conf, name))
            raise ConfigError(f"{argument}: name one of its options: {options}.")
        settings.append(argument)
    return flags + settings


def _options(conf: Path, group: str) -> list[str]:
    return sorted(file.stem for file in (conf / group).glob("*.yaml"))


def with_resumed(arguments: list[str]) -> list[str]:
    """The command line of a resumed run: what the stopped run was started with, then what is said now."""
    folders = [argument.removeprefix("resume=") for argument in arguments if argument.startswith("resume=")]
    if not folders or folders[-1] in ("", "null"):
        return arguments
    said = {_key(argument) for argument in arguments}
    if "run_dir" in said:
        raise ConfigError(f"resume={folders[-1]}: a run goes on in its own folder; leave out run_dir.")
    kept = [line for line in _recorded(folders[-1]) if _key(line) not in said | {"run_dir"}]
    print(f"resuming {folders[-1]}: {' '.join(kept) or 'default settings'}", file=sys.stderr)
    return arguments + kept


def _recorded(folder: str) -> list[str]:
    file = Path(folder) / "overrides.yaml"
    try:
        lines = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
    except OSError as error:
        raise ConfigError(f"resume={folder}: not a run folder ({file}: {error.strerror}).") from error
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError):
        lines = None
    if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
        raise ConfigError(f"resume={folder}: {file} is damaged; it should be a list of overrides.")
    for line in lines:
        if "_target_" in line or _key(line).startswith("hydra"):
            # Both name code to run, and a file must not; who wants it says it again.
            raise ConfigError(f"resume={folder}: '{line}' names code; it must be given on the command line again.")
    return lines


def explain(error: HydraException | OmegaConfBaseException, conf: Path, arguments: list[str]) -> str:
    """What Hydra refuses, in one line with the nearest name that it would have taken."""
    text = str(error).strip()
    if isinstance(error, MissingConfigException) and "/" in str(error.missing_cfg_file):
        group, _, option = str(error.missing_cfg_file).rpartition("/")
        options = _options(conf, group)
        return f"{group}={option}: no such option.{did_you_mean(option, options)} There are: {', '.join(options)}."
    if isinstance(error, OverrideParseException):
        odd = "; quote what is not plain letters and digits: \"key='value'\"" if "=" in str(error.override) else ""
        return f"{error.override}: not understood; settings are written key=value or group=option{odd}."
    if "Ambiguous value" in text:
        return f"{text.splitlines()[0].split(chr(39))[1]}: several values are a sweep; put -m before them."
    if found := re.search(r"(?:Could not override|Error merging override) '?([^'=\s]+)", text):
        key = found.group(1).rstrip(".")
        known = list(known_keys(_compose(conf, [item for item in arguments if _key(item) != key])))
        if "index out of range" in str(error.__cause__):
            return f"{key}: the list is not that long; layers are counted from 0."
        if "is not in struct" in str(error.__cause__):
            further = f" A further argument is added with +{key}=…" if key.count(".") > 1 else ""
            return f"{key}: no such key.{nearest_key(key, known)}{further} See: python train.py --help"
    refused = error.__cause__ if isinstance(error, ConfigCompositionException) else error
    if isinstance(refused, OmegaConfBaseException):
        return explain_value(refused, OmegaConf.create())
    return text.splitlines()[0]


def known_keys(node: Any, path: str = "") -> Iterator[str]:
    """Every dotted key of a configuration, inner ones included."""
    inner: list[tuple[Any, Any]] = []
    if isinstance(node, dict):
        inner = list(node.items())
    elif isinstance(node, list):
        inner = list(enumerate(node))
    for key, value in inner:
        name = f"{path}.{key}" if path else str(key)
        yield name
        yield from known_keys(value, name)


def _compose(conf: Path, arguments: list[str]) -> Any:
    """The configuration without the setting that was refused, as plain values."""
    GlobalHydra.instance().clear()
    overrides = [argument for argument in arguments if not argument.startswith("-")]
    with hydra.initialize_config_dir(str(conf), version_base="1.3"):
        try:
            composed: DictConfig | ListConfig = hydra.compose("config", overrides)
        except HydraException:
            composed = hydra.compose("config")
    return OmegaConf.to_container(composed, resolve=False)


def _key(override: str) -> str:
    return override.lstrip("+~").partition("=")[0]
