"""Reads the `config.yaml` of a run folder, which may come from anybody: plain values only, and of bounded size."""

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from mnist_cnn import plain_yaml
from mnist_cnn.config import require_text
from mnist_cnn.errors import ConfigError, flat, one_line

_NAME = "config.yaml"
_MAX_BYTES = 2**18


def read_saved(folder: str) -> dict[str, Any]:
    """The plain values in the `config.yaml` of a run's folder; ConfigError where they can't be those of a run."""
    file, resume = Path(folder) / _NAME, f"resume={one_line(folder)}"
    try:
        if not stat.S_ISREG(file.lstat().st_mode):
            raise OSError(0, "it is no ordinary file")  # reading a pipe would wait for ever
        with file.open("rb") as stream:
            text = stream.read(_MAX_BYTES + 1).decode()
    except OSError as error:
        raise ConfigError(f"{resume}: not a run folder ({_NAME}: {error.strerror}).") from error
    except ValueError as error:
        raise ConfigError(f"{resume}: its {_NAME} is damaged: it is not text.") from error
    try:
        values = _plain_yaml(text)
    except Exception as error:  # PyYAML raises nearly anything for values that are none
        why = one_line(flat(error), 200)
        raise ConfigError(f"{resume}: its {_NAME} is damaged or not that of a run: {why}.") from error
    groups = ("model", "data", "trainer", "optimizer", "scheduler", "callbacks", "logger")
    if not isinstance(values, dict) or not all(isinstance(values.get(group), dict) for group in groups):
        raise ConfigError(f"{resume}: its {_NAME} is damaged or not that of a run: it has no {', '.join(groups)}.")
    # Runs of earlier versions have no groups but these; what is missing has its default.
    later = [key for key in ("augmentation", "loss", "distill") if values.get(key) is not None]
    for key in later:
        if not isinstance(values[key], dict):
            raise ConfigError(f"{resume}: its {_NAME} is damaged or not that of a run: {key} is no group of settings.")
    return {key: values.get(key) for key in ("seed", "run_dir", "resume", *groups, *later)}


def check_files(folder: Path) -> None:
    """Raise ConfigError for a link, a pipe or the like in a run's folder: the run would write where it leads."""
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(parent, name)
            if path.is_symlink() or not (path.is_file() or path.is_dir()):
                shown = one_line(str(path.relative_to(folder)))
                raise ConfigError(f"resume={folder}: {shown} is a link, or no ordinary file; a run folder has none.")
    for name in ("metrics.csv", "metrics.json", "checkpoints/best.ckpt", "checkpoints/last.ckpt", "report/index.html"):
        if (folder / name).is_dir() or (folder / name).parent.is_file():
            raise ConfigError(f"resume={folder}: {name} is a folder, or in no folder; that of a run is a file.")


class _PlainLoader(yaml.SafeLoader):
    """Reads what `yaml.safe_dump` writes, and nothing else that YAML knows: no dates, no base 60, no merged keys."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  # PyYAML has it so

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A dictionary; ValueError if a key occurs twice."""
        pairs: list[tuple[Any, Any]] = self.construct_pairs(node, deep)
        keys = [str(key) for key, _ in pairs]
        if len(set(keys)) < len(keys):
            raise ValueError(f"{max(keys, key=keys.count)!r} is there twice")
        return dict(pairs)


for _name, _form in {
    "null": r"~|null|",
    "bool": r"true|false",
    "int": r"[-+]?(0|[1-9][0-9]{0,39})",
    "float": r"[-+]?[0-9]{1,40}\.[0-9]{0,40}(e[-+][0-9]{1,3})?|-?\.inf|\.nan",
}.items():
    _PlainLoader.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(rf"(?:{_form})\Z"), None)


def _plain_yaml(text: str) -> Any:
    if len(text) > _MAX_BYTES:
        raise ValueError(f"it is larger than {_MAX_BYTES:,} bytes")
    values = plain_yaml.load(text, _PlainLoader)
    for path, value in leaves(values):
        require_text(path, value)
    return values


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every value in nested dictionaries and lists with its dotted key; ValueError for a key that can't be one."""
    inner: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        inner = list(value.items())
    elif isinstance(value, list):
        inner = [(str(index), item) for index, item in enumerate(value)]
    else:
        yield path, value
    for key, item in inner:
        if not isinstance(key, str) or "." in key:
            raise ValueError(f"{key!r} is no key")
        require_text("a key", key)
        yield from leaves(item, f"{path}.{key}" if path else key)
