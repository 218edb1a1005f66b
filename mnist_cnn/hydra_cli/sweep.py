"""A sweep (`-m`): its folder, with one folder for each run, and which of the runs are finished or have failed.

The same command with the same `run_dir` goes on where a sweep was stopped: finished runs stay as they are, a run that
was stopped is resumed, one that failed is tried again.
"""

import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override

from mnist_cnn.config import OF_THE_MACHINE, to_config, written
from mnist_cnn.data.sources import OWN
from mnist_cnn.errors import ConfigError, UserError, flat, one_line
from mnist_cnn.files import write_file
from mnist_cnn.hydra_cli.arguments import Arguments, value_of
from mnist_cnn.hydra_cli.compose import compose_run, config_loader, is_hydra_setting, runs_of
from mnist_cnn.hydra_cli.record import NAME, read_record, write_record
from mnist_cnn.run_folder import finished, folder_name, lock
from mnist_cnn.terminal import train_command
from mnist_cnn.training.resume.saved import check_files, leaves, read_saved

_ERROR = "error.txt"


@dataclass(frozen=True)
class Member:
    """A run of a sweep. `overrides` are its settings, `varied` those of them that the sweep varies."""

    number: int
    overrides: list[str]
    varied: list[str]
    folder: Path

    @property
    def label(self) -> str:
        varied = one_line(", ".join(self.varied), 200)
        return f"run {self.number} ({varied})" if varied else f"run {self.number}"

    @property
    def error(self) -> str:
        """Why the last attempt has failed; empty if it has not, or if another process has finished the run since."""
        if finished(self.folder) is not None:
            return ""
        with suppress(OSError):
            return one_line((self.folder / _ERROR).read_text(encoding="utf-8", errors="replace").strip(), 400)
        return ""

    def begin(self) -> bool:
        """Forget an earlier failure; returns whether the run's folder holds a run that was stopped."""
        with suppress(OSError):
            (self.folder / _ERROR).unlink(missing_ok=True)
            self.folder.rmdir()  # if nothing else is in it
        return self.folder.exists()

    def failed(self, error: Exception) -> str:
        """Record in the run's folder why it has failed, and return the line that says so."""
        why = one_line(str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {flat(error)}", 400)
        self.folder.mkdir(exist_ok=True)
        write_file(self.folder / _ERROR, f"{why}\n".encode("utf-8", "backslashreplace"))
        return f"{self.label}: {why}"


@dataclass
class Sweep:
    """A sweep and its folder. Launchers send it to other processes, so it holds only plain values."""

    folder: Path
    settings: list[str]  # as on the command line
    runs: list[list[str]]  # the settings of each run; empty where the sweeper of another package chooses them

    @cached_property
    def _fixed(self) -> set[str]:
        """The settings that are the same in all runs, as Hydra writes them."""
        fixed = (one for one in _parsed(self.settings) if not one.is_sweep_override())
        return {f"{one.get_key_element()}={one.get_value_element_as_str()}" for one in fixed}

    def member(self, number: int, overrides: Sequence[str]) -> Member:
        """The run with this number, counted from 0, and these settings."""
        overrides = [setting for setting in overrides if not setting.startswith("run_dir=")]
        varied = [setting for setting in overrides if setting not in self._fixed]
        name = "_".join([f"{number:02}", *(setting.lstrip("+") for setting in varied)])
        return Member(number, overrides, varied, self.folder / folder_name(name))

    def members(self) -> list[Member]:
        """All runs, as far as they are known."""
        return [self.member(number, overrides) for number, overrides in enumerate(self.runs)]

    def failures(self) -> list[str]:
        """A line for each run whose last attempt has failed."""
        if self.runs:
            return [f"{member.label}: {member.error}" for member in self.members() if member.error]
        folders = sorted(file.parent for file in self.folder.glob(f"*/{_ERROR}"))
        errors = {folder.name: Member(0, [], [], folder).error for folder in folders}
        return [f"run {name}: {error}" for name, error in errors.items() if error]

    def command(self) -> str:
        """What to type to go on with this sweep."""
        return f"{train_command()} -m resume_sweep={shlex.quote(str(self.folder))}"

    def is_empty(self) -> bool:
        """Whether no run has left anything but its error."""
        return not any(
            path.name not in (NAME, ".lock", "multirun.yaml")  # which Hydra writes
            and not (path.is_dir() and [inner.name for inner in path.iterdir()] == [_ERROR])
            for path in self.folder.iterdir()
        )


@contextmanager
def open_sweep(arguments: Arguments, conf: Path) -> Iterator[Sweep]:
    """The sweep that the arguments ask for, new or begun, in its folder, which no other process may use meanwhile.

    A new folder is removed again if no run leaves anything in it. ConfigError if there is no run, or if the folder
    holds anything but this sweep; OutputError if another process is running it.
    """
    loader = config_loader(conf, arguments.config_dir)
    runs = runs_of(arguments, loader)
    if not runs and not value_of(arguments.settings, "hydra/sweeper"):
        raise ConfigError("-m: the sweep has no run; one of its settings has no value.")
    folder = Path(value_of(arguments.settings, "run_dir") or f"runs/{datetime.now():%Y-%m-%d_%H-%M-%S-%f}_sweep")
    sweep = Sweep(folder, arguments.settings, runs)
    try:
        made = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        is_new = all(path.name == ".lock" for path in folder.iterdir())
    except OSError as error:
        why = f"it can't be the folder of a sweep: {error.strerror}"
        raise ConfigError(f"run_dir={one_line(folder, 80)}: {why}.") from error
    if not is_new:
        _check_same(sweep, loader)
    with lock(folder):
        if is_new:
            write_record(folder, sweep.settings, {one.folder.name: one.overrides for one in sweep.members()})
        try:
            yield sweep
        finally:
            if made and sweep.is_empty():
                _remove(folder, made)


def _check_same(sweep: Sweep, loader: ConfigLoader) -> None:
    """Raise ConfigError if the folder holds another sweep, or runs of one with other files in `conf/`."""
    setting = f"run_dir={one_line(sweep.folder, 200)}"
    before, now = (_identity(settings) for settings in (read_record(sweep.folder, setting).settings, sweep.settings))
    if before != now:
        gone, new = [one for one in before if one not in now], [one for one in now if one not in before]
        had, lacked = f"with {' '.join(gone)}" if gone else "", f"without {' '.join(new)}" if new else ""
        how = ", ".join(filter(None, (had, lacked))) or "with its settings in another order"
        raise ConfigError(
            f"{setting}: the sweep in it was begun {one_line(how, 400)}; name another folder for this one. "
            "mnist-cnn leaderboard makes one table of several sweeps."
        )
    if not sweep.runs:
        raise ConfigError(f"{setting}: this sweeper chooses its runs anew each time; name another folder.")
    for member in sweep.members():
        if member.folder.is_symlink():
            raise ConfigError(f"{setting}: {member.folder.name} is a link; the folder of a sweep has none.")
        if member.folder.exists():
            check_files(member.folder)
        if (member.folder / "config.yaml").exists():
            _check_unchanged(member, loader, setting)


def _check_unchanged(member: Member, loader: ConfigLoader, setting: str) -> None:
    """Raise ConfigError if a run was begun with other settings than the same command gives now."""
    saved = dict(leaves(read_saved(str(member.folder))))
    now = dict(leaves(to_config(compose_run(loader, member.overrides)).to_dict()))
    aside = {"run_dir", "resume", *OF_THE_MACHINE} - _places_of_own_images(str(saved.get("data.name")))
    if saved.get("model.init_from") is not None:  # the run has recorded the network that it brings
        aside |= {key for key in saved | now if key.startswith("model.")}
    for key in saved | now:
        if key not in aside and not key.startswith("logger.") and saved.get(key) != now.get(key):
            raise ConfigError(
                f"{setting}: {member.folder.name} was begun with {written(key, saved.get(key))}, which is now "
                f"{one_line(now.get(key), 80)}: the files in conf/ have changed. Name another folder for this sweep."
            )


def _identity(settings: Sequence[str]) -> list[str]:
    """What makes a sweep another one: all its settings, but not the place and the machine where its runs are done."""
    overrides = list(zip(settings, _parsed(settings), strict=True))
    data = [str(one.value()) for _, one in overrides if one.key_or_group == "data" and not one.is_sweep_override()]
    # What else the options of `trainer` bring is compared run by run.
    aside = {"run_dir", "trainer", *OF_THE_MACHINE} - _places_of_own_images(data[-1] if data else "")
    return [
        setting
        for setting, one in overrides
        if one.is_sweep_override()
        or not (is_hydra_setting(one) or one.key_or_group in aside or one.key_or_group.partition(".")[0] == "logger")
    ]


def _places_of_own_images(data: str) -> set[str]:
    """The settings that name the images of a data set of the user's own: with others, it is another experiment."""
    return {"data.root", "data.file"} if data in OWN else set()


def _parsed(settings: Sequence[str]) -> list[Override]:
    overrides: list[Override] = OverridesParser.create().parse_overrides(list(settings))
    return overrides


def _remove(folder: Path, made: Sequence[Path]) -> None:
    with suppress(OSError):
        for path in sorted(folder.rglob("*"), reverse=True):
            if path.is_dir():
                path.rmdir()
            else:
                path.unlink()
        for path in made:  # other runs may have a folder beside it
            path.rmdir()
