"""The folder of a run, which no other run shares, and the record of the configuration in it."""

import json
import os
import re
import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from mnist_cnn.config import Config
from mnist_cnn.errors import ConfigError, OutputError, one_line
from mnist_cnn.files import remove_parts, write_file
from mnist_cnn.processes import is_first_process


@contextmanager
def open_run_dir(config: Config, dataset: str) -> Iterator[Path]:
    """The folder of this run, new or resumed, which no other process may use meanwhile.

    A new folder is removed again if the block ends with nothing in it to go on from. ConfigError if it can't be made,
    OutputError if another process is training in it.
    """
    if not is_first_process():
        from mnist_cnn import machine  # it imports torch, which a command line that is refused does without

        machine.end_with_parent()
        yield Path(os.devnull)  # where nobody writes
        return
    if config.resume:
        with lock(Path(config.resume)):
            remove_parts(Path(config.resume))
            yield Path(config.resume)
        return
    folder, made = _make_run_dir(config, dataset)
    with lock(folder):
        try:
            yield folder
        finally:
            if not has_checkpoint(folder):
                shutil.rmtree(folder, ignore_errors=True)  # an error here would hide the one that ended the run
                with suppress(OSError):  # other runs may have a folder beside it
                    for parent in made:
                        parent.rmdir()


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Keep other processes out of the folder of a run, or of a sweep, until the block, or this process, ends."""
    file = FileLock(folder / ".lock", blocking=False)
    try:
        file.acquire()
    except Timeout:
        raise OutputError(
            f"{one_line(str(folder))}: another process is training in it; wait for it, or stop it."
        ) from None
    except OSError as error:
        raise OutputError(f"{one_line(str(folder))}: can't be written to: {error.strerror or error}.") from error
    try:
        yield
    finally:
        file.release()


def _make_run_dir(config: Config, dataset: str) -> tuple[Path, list[Path]]:
    """Make the folder of a new run; returns it and those of its parents that did not exist, innermost first."""
    if config.run_dir:
        wanted = Path(config.run_dir)
    else:
        wanted = Path("runs") / folder_name(f"{datetime.now():%Y-%m-%d_%H-%M-%S}_{config.model.name}_{dataset}")
    folder, number = wanted, 1
    while True:
        try:
            made = [parent for parent in folder.parents if not parent.exists()]
            (folder / "checkpoints").mkdir(parents=True)  # only one process can: the folder is its own
            return folder, made
        except FileExistsError:
            if config.run_dir:
                raise _taken(folder) from None
            number += 1
            folder = wanted.with_name(f"{wanted.name}-{number}")
        except OSError as error:
            raise ConfigError(f"run_dir={folder}: it can't be created: {error.strerror}.") from error


def record(folder: Path, config: Config, command: str) -> None:
    """Write `config.yaml`: the commands that the run was started and resumed with, and every setting.

    Plain values, so that a resumed run reads them back; `${run_dir}` stands for the folder, which may be moved.
    """
    if not is_first_process():
        return
    file = folder / "config.yaml"
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    commands = [line for line in lines if line.startswith("# ")]
    commands.append(f"# {one_line(command, 20_000)}")
    values = {**config.to_dict(), "run_dir": None, "resume": None}
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=120)
    write_file(file, "\n".join([*commands, text]).encode())


def overrides(folder: Path) -> list[str]:
    """The settings, `key=value`, that the run in this folder was started with, as its `config.yaml` records them."""
    command = (folder / "config.yaml").read_text(encoding="utf-8").partition("\n")[0]
    try:
        words = shlex.split(command.removeprefix("# "))
    except ValueError:  # a quote is missing: somebody has edited it
        return []
    return [word for word in words if "=" in word and not word.startswith(("-", "run_dir=", "resume=", "hydra"))]


def finished(folder: Path) -> dict[str, Any] | None:
    """The content of `metrics.json` if the run in this folder has finished; None if it has not even begun, or is half
    done: the file is written last.
    """
    try:
        content: dict[str, Any] = json.loads((folder / "metrics.json").read_bytes())
        return None if content["interrupted"] else content
    except (OSError, ValueError, KeyError, TypeError):
        return None


def has_checkpoint(folder: Path) -> bool:
    """Whether there is anything in a run's folder to go on from, or to evaluate."""
    return any((folder / "checkpoints" / name).exists() for name in ("best.ckpt", "last.ckpt"))


def sweeping() -> bool:
    """Whether this run is one of a sweep (`-m`)."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def check_run_dir(config: Config) -> None:
    """Raise ConfigError if the folder that `run_dir=` names holds something already."""
    if not config.run_dir or config.resume or not is_first_process():
        return  # on the other processes it is there already: the first one has made it
    folder = Path(config.run_dir)
    try:
        is_taken = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    except OSError as error:  # such as a name that is too long
        raise ConfigError(f"run_dir={one_line(config.run_dir, 80)}: {error.strerror}.") from error
    if is_taken:
        raise _taken(folder)


def _taken(folder: Path) -> ConfigError:
    resume = f", or continue it with resume={folder}" if has_checkpoint(folder) else ""
    return ConfigError(f"run_dir={folder}: it exists already; name another{resume}")


def folder_name(text: str) -> str:
    """A text as the name of a folder that no shell and no setting needs quotes for."""
    return re.sub(r"[^\w.-]+", "-", text, flags=re.ASCII)[:120]
