"""Reads the `config.yaml` of a run folder, which may come from anybody: plain values only, and of bounded size."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from mnist_cnn.errors import ConfigError, flat, one_line

_MAX_BYTES, _MAX_EVENTS, _MAX_DEPTH = 2**18, 20_000, 40


def read_saved(folder: str) -> dict[str, Any]:
    """The plain values in the `config.yaml` of a run's folder; ConfigError where they can't be those of a run."""
    file = Path(folder) / "config.yaml"
    try:
        if file.exists() and not file.is_file():
            raise OSError(0, "it is no ordinary file")  # reading a pipe would wait for ever
        with file.open("rb") as stream:
            text = stream.read(_MAX_BYTES + 1).decode()
    except OSError as error:
        raise ConfigError(f"resume={folder}: not a run folder ({file}: {error.strerror}).") from error
    except ValueError as error:
        raise ConfigError(f"resume={folder}: {file} is damaged: it is not text.") from error
    try:
        values = _plain_yaml(text)
    except Exception as error:  # PyYAML raises nearly anything for values that are none
        why = one_line(flat(error), 200)
        raise ConfigError(f"resume={folder}: {file} is damaged or not that of a run: {why}.") from error
    groups = ("model", "data", "trainer", "optimizer", "scheduler", "callbacks", "logger")
    if not isinstance(values, dict) or not all(isinstance(values.get(group), dict) for group in groups):
        raise ConfigError(f"resume={folder}: {file} is damaged or not that of a run: it has no {', '.join(groups)}.")
    return {key: values.get(key) for key in ("seed", "run_dir", "resume", *groups)}


def _plain_yaml(text: str) -> Any:
    if len(text) > _MAX_BYTES:
        raise ValueError(f"it is larger than {_MAX_BYTES:,} bytes")
    depth = 0
    for number, event in enumerate(yaml.parse(text, Loader=yaml.SafeLoader)):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if isinstance(event, yaml.AliasEvent):
            raise ValueError("it has aliases")
        if number > _MAX_EVENTS or depth > _MAX_DEPTH:
            raise ValueError("it has more values, or deeper ones, than any run")
    values = yaml.safe_load(text)
    for path, value in leaves(values):
        if not isinstance(value, str | int | float | None):
            raise ValueError(f"{path} is a {type(value).__name__}")
    return values


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every value in nested dictionaries and lists with its dotted key; ValueError for a key that can't be one."""
    inner: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        inner = list(value.items())
    elif isinstance(value, list):
        inner = list(enumerate(value))
    else:
        yield path, value
    for key, item in inner:
        if not isinstance(key, str | int) or "." in str(key):
            raise ValueError(f"{key!r} is no key")
        yield from leaves(item, f"{path}.{key}" if path else str(key))
