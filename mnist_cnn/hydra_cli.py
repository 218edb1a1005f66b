"""`python train.py …`: composes the configuration with Hydra and runs the task, once or for every run of a sweep.

A user's mistake ends in one line that names the setting and, where there is one, the nearest right name.
"""

import difflib
import os
import re
import sys
import traceback
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra._internal.utils import get_args_parser  # Hydra has no public list of its flags
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from mnist_cnn import config, quick_imports
from mnist_cnn.errors import ConfigError, Interrupted, UserError, as_user_error, did_you_mean, flat, one_line
from mnist_cnn.sweep import Sweep
from mnist_cnn.terminal import allow_any_text, failed

# Settings whose value is a path, taken as it is written: `=`, `,` and quotes mean something else to Hydra.
PATHS = ("resume", "run_dir", "model.init_from", "distill.from")
# Groups whose options name classes, and so have different keys.
TARGETS = ("optimizer", "scheduler", "callbacks", "logger")
# Where further arguments may be added to those that the files have.
OPEN = (*TARGETS, "trainer", "model.layers")

# The packages that add options to Hydra's own groups.
PLUGINS = {
    "hydra/launcher": {
        "joblib": "hydra-joblib-launcher",
        "ray": "hydra-ray-launcher",
        "rq": "hydra-rq-launcher",
        "submitit_local": "hydra-submitit-launcher",
        "submitit_slurm": "hydra-submitit-launcher",
    },
    "hydra/sweeper": {
        "ax": "hydra-ax-sweeper",
        "nevergrad": "hydra-nevergrad-sweeper",
        "optuna": "hydra-optuna-sweeper",
    },
}

# Variables that tell a process which of several it is, and how many there are; torchrun, SLURM and Lightning set them.
RANKS = {"RANK": "WORLD_SIZE", "LOCAL_RANK": "WORLD_SIZE", "SLURM_PROCID": "SLURM_NTASKS"}
COUNTS = ("NODE_RANK", "GROUP_RANK", "LOCAL_WORLD_SIZE", "SLURM_LOCALID", "SLURM_NODEID", "JSM_NAMESPACE_RANK")


def run_hydra(task: Callable[[DictConfig], Any], conf: Path) -> int:
    """Compose what `sys.argv` asks for from the folder `conf`, hand it to `task`, and return the exit status.

    HYDRA_FULL_ERROR=1 in the environment asks for tracebacks.
    """
    asked = os.environ.get("HYDRA_FULL_ERROR")
    tracebacks, is_running, sweep = asked == "1", False, Sweep()
    allow_any_text()

    def job(composed: DictConfig) -> Any:
        nonlocal is_running
        is_running = True
        with _hydra_full_error(asked):  # processes that the task starts see what the user set
            try:
                return task(_resumed(composed) if composed.resume else _named(composed))
            except Exception as exception:
                error = exception if tracebacks else as_user_error(exception) or exception
                member = HydraConfig.get()
                if member.mode == RunMode.MULTIRUN:  # Hydra goes on with the others
                    if tracebacks or not isinstance(error, UserError):
                        traceback.print_exc()
                    failed(sweep.failed(member.job.num, member.overrides.task, error))
                elif isinstance(error, UserError) and not tracebacks:
                    raise SystemExit(failed(str(error), error.exit_status)) from None  # Hydra would add a line
                if error is exception:
                    raise
                raise error from exception

    job.__module__, job.__qualname__ = task.__module__, task.__qualname__  # Hydra names the program after them
    try:
        _check_environment()
        sys.argv[1:] = _checked(sys.argv[1:], conf)
        with _hydra_full_error("1"):  # so that Hydra raises what it would print
            hydra.main(version_base="1.3", config_path=str(conf), config_name="config")(job)()
        if sweep.discard_if_empty():
            raise ConfigError("-m: the sweep has no run; one of its settings has no value.")
    except KeyboardInterrupt as stop:
        print("interrupted", file=sys.stderr)
        status = getattr(stop, "exit_status", Interrupted().exit_status)
    except Exception as error:
        sweep.discard_if_empty()
        if sweep.account():
            status = 1
        elif isinstance(error, UserError | HydraException | OmegaConfBaseException) or not is_running:
            if tracebacks:
                raise
            told = error if isinstance(error, UserError) else ConfigError(explain(error, conf, sys.argv[1:]))
            status = failed(str(told), told.exit_status)
        else:  # a bug
            raise
    else:
        status = 0
    if sweep.account():
        failed(sweep.account())
    return status


def _check_environment() -> None:
    """Raise ConfigError for environment variables that describe processes that can't exist."""
    environment = {name: os.environ[name] for name in (*RANKS, *RANKS.values(), *COUNTS) if os.environ.get(name)}
    for name, value in environment.items():
        if not (value.isascii() and value.isdecimal()):
            raise ConfigError(f"{config.written(name, value)} in the environment: it must be a whole number; unset it.")
    for rank, count in RANKS.items():
        processes = environment.get(count, "1")
        if rank in environment and int(environment[rank]) >= int(processes):
            raise ConfigError(
                f"{rank}={environment[rank]} in the environment: {count} is {processes}, so there is no such process; "
                "unset it."
            )
    if "SLURM_NTASKS" in environment and not {"SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID"} <= set(environment):
        raise ConfigError(
            f"SLURM_NTASKS={environment['SLURM_NTASKS']} in the environment: not the whole environment of a SLURM job; "
            "start the program with srun, or unset it."
        )


@contextmanager
def _hydra_full_error(value: str | None) -> Iterator[None]:
    before = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = value or "0"
    try:
        yield
    finally:
        os.environ["HYDRA_FULL_ERROR"] = before or "0"


def _resumed(composed: DictConfig) -> DictConfig:
    with quick_imports():
        from mnist_cnn.training.resume.settings import resumed

    return resumed(composed, _keys_of_task())


def _named(composed: DictConfig) -> DictConfig:
    """The configuration, in which a network that is not that of the chosen file any more is called `custom`."""
    option = HydraConfig.get().runtime.choices.get("model")
    if option is None:  # taken out with ~model, which is refused when the values are checked
        return composed
    loader = GlobalHydra.instance().config_loader()
    own = loader.load_configuration(f"model/{option}", overrides=[], run_mode=RunMode.RUN).model
    if composed.model.name == own.name and composed.model.layers != own.layers and "model.name" not in _keys_of_task():
        composed.model.name = "custom"
    return composed


def _keys_of_task() -> list[str]:
    """The keys of the settings of this run on the command line."""
    task = list(HydraConfig.get().overrides.task)
    return [override.key_or_group for override in OverridesParser.create().parse_overrides(task)]


def _checked(arguments: list[str], conf: Path) -> list[str]:
    """The arguments as Hydra wants them, flags last; ConfigError for what Hydra would answer with a page of text."""
    for argument in arguments:
        key, _, text = argument.partition("=")
        config.require_text(key, text or key)
    arguments = [_quoted(argument) for argument in arguments]
    parser = get_args_parser()
    setattr(parser, "error", _refuse_flag)  # noqa: B010  # it would print its usage and exit
    options, unknown = parser.parse_known_intermixed_args(arguments)
    if unknown:
        raise ConfigError(f"{unknown[0]}: settings are written key=value, without dashes. See: python train.py --help")
    if options.experimental_rerun is not None:
        raise ConfigError("--experimental-rerun: it unpickles a file, which may run any code; take resume=FOLDER.")
    if options.package is not None and options.cfg is None:
        raise ConfigError("--package: it chooses what --cfg shows; add --cfg job.")
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
        if override.is_delete() and re.search(r"^model\.layers\.\d+$", key):
            raise ConfigError(
                f"~{key}: no layer can be taken out of the list; write the whole list (docs/settings.md)."
            )
        if override.is_sweep_override() or override.is_delete():
            continue
        value = override.value()
        if not key:
            raise ConfigError(f"{override.input_line}: the key is missing.")
        if key in PATHS and value == "":
            raise ConfigError(f"{override.input_line}: name a path, or leave it out.")
        if key == "run_dir" and multirun and os.path.lexists(str(value)):
            raise ConfigError(f"run_dir={value}: it exists already; name another for this sweep.")
        named: list[Any] = value if isinstance(value, list) else [value]
        if (conf / key).is_dir() and not (named and all(name and isinstance(name, str) for name in named)):
            names = ", ".join(sorted(file.stem for file in (conf / key).glob("*.yaml")))
            raise ConfigError(f"{override.input_line}: name one of its options: {names}.")
    flags = list(arguments)
    for setting in settings:
        flags.remove(setting)
    return settings + flags


def _refuse_flag(message: str) -> NoReturn:
    raise ConfigError(f"{message}. See: python train.py --hydra-help")


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


def explain(error: Exception, conf: Path, arguments: list[str]) -> str:
    """What Hydra refuses, in one line with the nearest name that it would have taken."""
    if isinstance(error, MissingConfigException) and "/" in str(error.missing_cfg_file):
        group, _, option = str(error.missing_cfg_file).rpartition("/")
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
        return f"{_with_a_way(line, setting or key, conf)} See: python train.py --help"
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
