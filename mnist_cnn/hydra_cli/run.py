"""Composes the configuration with Hydra and runs the task, once or for every run of a sweep.

A user's mistake ends in one line that names the setting and, where there is one, the nearest right name.
"""

import math
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from mnist_cnn import config
from mnist_cnn.errors import ConfigError, Interrupted, UserError, as_user_error
from mnist_cnn.hydra_cli.arguments import Arguments, checked_arguments, quoted, value_of
from mnist_cnn.hydra_cli.compose import config_loader, new_or_resumed
from mnist_cnn.hydra_cli.explain import explain
from mnist_cnn.hydra_cli.record import repeated
from mnist_cnn.hydra_cli.sweep import Sweep, open_sweep
from mnist_cnn.processes import check_environment
from mnist_cnn.run_folder import finished
from mnist_cnn.terminal import allow_any_text, failed, train_command


def run_hydra(
    task: Callable[[DictConfig], Any],
    conf: Path,
    arguments: Sequence[str],
    words: Sequence[str] = (),
    finish_sweep: Callable[[Path], int] | None = None,
) -> int:
    """Compose what `arguments` ask for from the folder `conf`, hand it to `task`, and return the exit status.

    While `task` runs, `sys.argv` has `words` and the settings of the run, because Lightning starts further processes
    with it. When a sweep ends, `finish_sweep` gets its folder, unless no run has left anything in it, and returns an
    exit status.
    HYDRA_FULL_ERROR=1 in the environment asks for tracebacks.
    """
    allow_any_text()
    OmegaConf.register_new_resolver("train_command", train_command, replace=True)  # for the text of --help
    tracebacks = os.environ.get("HYDRA_FULL_ERROR") == "1"
    raised: list[Exception] = []  # by the task, not by Hydra
    try:
        check_environment()
        checked = checked_arguments(repeated(arguments), conf)
        if not checked.is_sweep:
            _run(_job(task, conf, checked, words, raised), conf, checked.words)
            return 0
        folder, failures = _run_sweep(task, conf, checked, words)
    except KeyboardInterrupt as stop:
        print("interrupted", file=sys.stderr)
        return int(getattr(stop, "exit_status", Interrupted().exit_status))
    except Exception as error:
        if tracebacks or (error in raised and not isinstance(error, UserError)):  # the second is a bug
            raise
        told = error if isinstance(error, UserError) else ConfigError(explain(error, conf, sys.argv[1:]))
        return failed(str(told), told.exit_status)
    try:
        status = finish_sweep(folder) if finish_sweep and folder.exists() else 0
    finally:
        _report_failures(failures)
    return 1 if failures else status


def _run(job: Callable[[DictConfig], Any], conf: Path, arguments: Sequence[str]) -> None:
    """Have Hydra call the job for each configuration that the arguments ask for."""
    sys.argv[1:] = arguments
    job.__module__ = "train"  # what Hydra calls the program
    with _hydra_full_error("1"):  # so that Hydra raises what it would print
        hydra.main(version_base="1.3", config_path=str(conf), config_name="config")(job)()


def _job(
    task: Callable[[DictConfig], Any], conf: Path, checked: Arguments, words: Sequence[str], raised: list[Exception]
) -> Callable[[DictConfig], Any]:
    """What Hydra calls for a single run."""
    asked = os.environ.get("HYDRA_FULL_ERROR")

    def job(composed: DictConfig) -> Any:
        with _hydra_full_error(asked):  # processes that the task starts see what the user set
            try:
                sys.argv[1:] = [*words, *checked.words]
                return task(_of_this_run(composed, conf, checked))
            except Exception as exception:
                error = as_user_error(exception) or exception
                if isinstance(error, UserError) and asked != "1":
                    raise SystemExit(failed(str(error), error.exit_status)) from None  # Hydra would add a line
                raised.append(exception)
                raise

    return job


def _run_sweep(
    task: Callable[[DictConfig], Any], conf: Path, checked: Arguments, words: Sequence[str]
) -> tuple[Path, list[str]]:
    """Run what is not finished of a sweep; returns its folder, and a line for each run that has failed."""
    with open_sweep(checked, conf) as sweep:
        place = f"hydra.sweep.dir={quoted(str(sweep.folder))}"
        arguments = [*checked.settings, *_jobs_at_once(checked.settings), place, *checked.flags]
        try:
            _run(_member_job(task, conf, checked, words, sweep), conf, arguments)
        except BaseException as error:
            _report_failures(sweep.failures())
            if isinstance(error, KeyboardInterrupt) and sweep.runs and not sweep.is_empty():
                print(f"continue with: {sweep.command()}", file=sys.stderr)
            raise
        return sweep.folder, sweep.failures()


def _jobs_at_once(settings: Sequence[str]) -> list[str]:
    """How many runs joblib starts at once, unless the settings say so: one for each processor that this run may use.

    By itself it counts hardware threads. It gives each run as many threads as there are processors for it.
    """
    if value_of(settings, "hydra/launcher") != "joblib" or value_of(settings, "hydra.launcher.n_jobs"):
        return []
    from mnist_cnn import machine  # which imports torch

    # It looks for leaks, and takes what the libraries have allocated for one; the worker is only started anew.
    warnings.filterwarnings("ignore", "A worker stopped while some jobs were given to the executor")
    return [f"hydra.launcher.n_jobs={machine.processors()}"]


def _report_failures(failures: Sequence[str]) -> None:
    """Print the lines of the failed runs of a sweep, below a heading."""
    if failures:
        runs = "1 run of the sweep" if len(failures) == 1 else f"{len(failures)} runs of the sweep"
        failed("\n".join([f"{runs} failed:", *(f"  {line}" for line in failures)]))


def _member_job(
    task: Callable[[DictConfig], Any], conf: Path, checked: Arguments, words: Sequence[str], sweep: Sweep
) -> Callable[[DictConfig], Any]:
    """What Hydra calls for each run of a sweep, in this process or in another one. An error ends only that run."""
    asked, program = os.environ.get("HYDRA_FULL_ERROR"), sys.argv[0]

    def job(composed: DictConfig) -> Any:
        hydra_config = HydraConfig.get()
        settings: Any = OmegaConf.to_container(hydra_config.overrides.task, resolve=False)
        member = sweep.member(hydra_config.job.num, settings)
        done = finished(member.folder)
        if done is not None:
            print(f"{member.label}: already finished", file=sys.stderr)
            return done.get("val/accuracy")
        with _hydra_full_error(asked):
            print(f"\n{member.label}", file=sys.stderr)
            try:
                sys.argv[:] = [program, *words, *member.overrides, f"run_dir={member.folder}"]
                composed = _of_this_run(composed, conf, checked)
                place = "resume" if member.begin() else "run_dir"
                composed.run_dir = None
                composed[place] = config.literal(str(member.folder))
                return task(composed)
            except Exception as exception:
                error = as_user_error(exception) or exception
                if asked == "1" or not isinstance(error, UserError):
                    traceback.print_exc()
                failed(member.failed(error))
                return math.nan  # for a sweeper that chooses the next runs by what it gets

    return job


def _of_this_run(composed: DictConfig, conf: Path, checked: Arguments) -> DictConfig:
    """The configuration of the run that Hydra has composed, new or resumed."""
    hydra_config = HydraConfig.get()
    settings: Any = OmegaConf.to_container(hydra_config.overrides.task, resolve=False)
    loader = config_loader(conf, checked.config_dir)
    return new_or_resumed(composed, settings, hydra_config.runtime.choices.get("model"), loader)


@contextmanager
def _hydra_full_error(value: str | None) -> Iterator[None]:
    before = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = value or "0"
    try:
        yield
    finally:
        os.environ["HYDRA_FULL_ERROR"] = before or "0"
