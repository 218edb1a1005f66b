"""Composes the configuration with Hydra and runs the task, once or for every run of a sweep.

A user's mistake ends in one line that names the setting and, where there is one, the nearest right name.
"""

import os
import shlex
import sys
import threading
import traceback
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hydra
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.singleton import Singleton
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from mnist_cnn import config, quick_imports
from mnist_cnn.config import Config
from mnist_cnn.errors import ConfigError, Interrupted, UserError, as_user_error
from mnist_cnn.hydra_cli.arguments import checked_arguments, keys_of
from mnist_cnn.hydra_cli.explain import explain
from mnist_cnn.hydra_cli.sweep import Sweep
from mnist_cnn.terminal import allow_any_text, failed, train_command

_PACKAGE = Path(__file__).parents[1]
# A wheel has the configuration inside the package, a checkout has it beside the package.
CONF = next(folder / "conf" for folder in (_PACKAGE, _PACKAGE.parent) if (folder / "conf").is_dir())
_ONE_AT_A_TIME = threading.Lock()  # for Hydra's global state
# Variables that tell a process which of several it is, and how many there are; torchrun, SLURM and Lightning set them.
RANKS = {"RANK": "WORLD_SIZE", "LOCAL_RANK": "WORLD_SIZE", "SLURM_PROCID": "SLURM_NTASKS"}
COUNTS = ("NODE_RANK", "GROUP_RANK", "LOCAL_WORLD_SIZE", "SLURM_LOCALID", "SLURM_NODEID", "JSM_NAMESPACE_RANK")


def run_hydra(
    task: Callable[[DictConfig], Any], conf: Path, arguments: Sequence[str], words: Sequence[str] = ()
) -> int:
    """Compose what `arguments` ask for from the folder `conf`, hand it to `task`, and return the exit status.

    While `task` runs, `sys.argv` has `words` in front of them, because Lightning starts further processes with it.
    HYDRA_FULL_ERROR=1 in the environment asks for tracebacks.
    """
    asked = os.environ.get("HYDRA_FULL_ERROR")
    tracebacks, is_running, sweep = asked == "1", False, Sweep()
    allow_any_text()
    OmegaConf.register_new_resolver("train_command", train_command, replace=True)  # for the text of --help

    def job(composed: DictConfig) -> Any:
        nonlocal is_running
        is_running = True
        with _hydra_full_error(asked):  # processes that the task starts see what the user set
            try:
                sys.argv[1:] = [*words, *checked]
                run = HydraConfig.get()
                settings: Any = OmegaConf.to_container(run.overrides.task, resolve=False)
                return task(_of_a_run(composed, settings, run.runtime.choices.get("model")))
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

    checked: list[str] = []
    job.__module__ = "train"  # what Hydra calls the program
    try:
        _check_environment()
        sys.argv[1:] = checked = checked_arguments(arguments, conf)
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


def configured(settings: Sequence[str]) -> tuple[Config, str]:
    """The typed configuration that these settings ask for, and the command that would do the same.

    ConfigError for a wrong setting, and for flags, which belong on a command line.
    """
    flag = _first_flag(settings)
    if flag is not None:
        raise ConfigError(f"{flag}: flags are for the command line; only settings, key=value, can be given here.")
    with _explained(settings):
        checked = checked_arguments(settings, CONF)
        with _without_global_state(), initialize_config_dir(str(CONF), version_base="1.3"):
            composed = compose("config", checked, return_hydra_config=True)
            with open_dict(composed):
                chosen = composed.pop("hydra").runtime.choices.get("model")
            composed = _of_a_run(composed, checked, chosen)
    return config.to_config(composed), shlex.join(["mnist-cnn", "train", *checked])


def chosen_options(settings: Sequence[str]) -> dict[str, Any]:
    """The option, or the list of options, that these settings choose in each group of `conf/`."""
    with _explained(settings), _without_global_state(), initialize_config_dir(str(CONF), version_base="1.3"):
        hydra_config = compose("config", checked_arguments(settings, CONF), return_hydra_config=True).hydra
    choices: Any = OmegaConf.to_container(hydra_config.runtime.choices)
    return {group: option for group, option in choices.items() if not group.startswith("hydra/")}


def overrides(settings: Sequence[str]) -> list[Override]:
    """Settings as Hydra's grammar reads them; each may have several values, or say what they lie between."""
    flag = _first_flag(settings)
    if flag is not None:
        raise ConfigError(f"{flag}: there is no such option. Settings are written key=value.")
    with _explained(settings):
        *checked, _ = checked_arguments([*settings, "-m"], CONF)
        return OverridesParser.create().parse_overrides(checked)


def _first_flag(settings: Sequence[str]) -> str | None:
    return next((setting for setting in settings if setting.startswith("-")), None)


@contextmanager
def _explained(settings: Sequence[str]) -> Iterator[None]:
    """Turn what Hydra refuses into a ConfigError of one line."""
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(explain(error, CONF, list(settings))) from error


@contextmanager
def _without_global_state() -> Iterator[None]:
    """Set Hydra's global state aside, of which there is one: the caller may be a program of Hydra itself."""
    with _ONE_AT_A_TIME:
        state = Singleton.get_state()
        GlobalHydra.instance().clear()
        try:
            yield
        finally:
            Singleton.set_state(state)


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


def _of_a_run(composed: DictConfig, settings: Sequence[str], model: str | None) -> DictConfig:
    """The configuration of one run, new or resumed; `model` is the chosen option of that group."""
    keys = keys_of(settings)
    if composed.resume:
        return _resumed(composed, keys)
    if model is None:  # taken out with ~model, which is refused when the values are checked
        return composed
    return _named(composed, keys, model)


def _resumed(composed: DictConfig, keys: list[str]) -> DictConfig:
    with quick_imports():
        from mnist_cnn.training.resume.settings import resumed

    return resumed(composed, keys)


def _named(composed: DictConfig, keys: Collection[str], model: str) -> DictConfig:
    """The configuration, in which a network that is not that of the chosen file any more is called `custom`."""
    loader = GlobalHydra.instance().config_loader()
    own = loader.load_configuration(f"model/{model}", overrides=[], run_mode=RunMode.RUN).model
    if composed.model.name == own.name and composed.model.layers != own.layers and "model.name" not in keys:
        composed.model.name = "custom"
    return composed
