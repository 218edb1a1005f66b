"""What the folder of a sweep records in `sweep.json`, and which of it is trusted when the sweep is continued."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

import msgspec

from mnist_cnn.errors import ConfigError, flat, one_line
from mnist_cnn.files import read_regular, write_file
from mnist_cnn.hydra_cli.arguments import PATHS, quoted_path, value_of

NAME = "sweep.json"
_MAX_BYTES = 2**24
# What a recorded setting may look like, and be about, to be used without being named again.
_PLAIN = re.compile(r"[a-z_]+(\.\w+)*=[\w.,()\[\]{}:+'\" -]*", re.ASCII)
_GROUPS = ("model", "data", "augmentation", "optimizer", "scheduler", "trainer", "callbacks", "loss", "distill",
           "experiment", "debug", "seed")  # fmt: skip


class Record(msgspec.Struct):
    """`sweep.json`: the settings of a sweep, and those of each run by the name of its folder."""

    settings: list[str]
    runs: dict[str, list[str]]  # empty where the sweeper of another package chooses them


def repeated(arguments: Sequence[str]) -> list[str]:
    """The arguments, with those of the sweep that `resume_sweep=FOLDER` names, if it is among them.

    A setting that is among them too takes the place of the recorded one. ConfigError for a recorded setting that a
    folder, which may come from anybody, is not trusted with: it must be named again.
    """
    named = [argument for argument in arguments if argument.startswith("resume_sweep=")]
    if not named:
        return list(arguments)
    folder = value_of([quoted_path(named[-1])], "resume_sweep") or ""
    typed = {_key(argument): argument for argument in arguments if argument not in named and argument[:1] != "-"}
    flags = [argument for argument in arguments if argument[:1] == "-"]
    if "run_dir" in typed:
        raise ConfigError(f"{named[-1]}: a sweep goes on in its own folder; leave out run_dir.")
    recorded = {_key(setting): setting for setting in read_record(Path(folder), named[-1]).settings}
    for key, setting in recorded.items():
        if key not in typed and not _is_trusted(key, setting):
            shown = one_line(setting, 120)
            raise ConfigError(
                f"{named[-1]}: its {shown} is not trusted from a folder; name it again, beside resume_sweep."
            )
    settings = {**recorded, **typed, "run_dir": f"run_dir={folder}"}
    return ["-m", *settings.values(), *(flag for flag in flags if flag not in ("-m", "--multirun"))]


def read_record(folder: Path, setting: str) -> Record:
    """The record in the folder of a sweep, which `setting` names; ConfigError where there is none, or a damaged one."""
    try:
        return msgspec.json.decode(read_regular(folder / NAME, _MAX_BYTES), type=Record)
    except OSError as error:
        why = "it exists already and is not the folder of a sweep" if folder.is_dir() else "there is no such folder"
        raise ConfigError(f"{setting}: {why}; name another.") from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ConfigError(f"{setting}: its {NAME} is damaged: {one_line(flat(error), 120)}.") from error


def write_record(folder: Path, settings: Sequence[str], runs: dict[str, list[str]]) -> None:
    """Write the record of a new sweep, without what is only for this start of it."""
    record = Record([setting for setting in settings if not _is_of_this_command(setting)], runs)
    write_file(folder / NAME, msgspec.json.format(msgspec.json.encode(record), indent=1) + b"\n")


def _is_trusted(key: str, setting: str) -> bool:
    """Whether a setting may come from the folder of a sweep: it names no class, no file and no address."""
    value = setting.partition("=")[2]
    if key in ("data.root", "data.file"):
        return os.path.exists(value.strip("'"))  # nothing is downloaded to there
    return (
        key not in PATHS
        and bool(_PLAIN.fullmatch(setting))
        and key.partition(".")[0] in _GROUPS
        and "_target_" not in setting
    )


def _is_of_this_command(setting: str) -> bool:
    """Whether a setting is for one start of a sweep: its folder, a mirror, or how Hydra starts the runs."""
    return _key(setting) in ("run_dir", "data.mirror") or _key(setting).startswith(("hydra.", "hydra/"))


def _key(setting: str) -> str:
    return setting.partition("=")[0].lstrip("+~")
