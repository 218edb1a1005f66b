"""Reads the results and the settings of runs from their folders, which may come from anybody."""

import math
import os
import re
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import msgspec
from msgspec import Meta

from mnist_cnn import plain_yaml
from mnist_cnn.errors import UserError, flat, one_line
from mnist_cnn.files import read_regular

# More than any sweep has; a tree of other files is not searched without end.
MAX_FOLDERS, MAX_DEPTH = 10_000, 6
_MAX_BYTES = 2**23  # of metrics.json, which has a row of 200 bytes for each epoch
_MAX_SETTINGS, _MAX_NESTING = 20_000, 40

Value = None | bool | int | float | str | list[Any] | dict[str, Any]  # of a setting
_PLAIN = (type(None), bool, int, float, str, list, dict)  # YAML has others, such as dates
Name = Annotated[str, Meta(min_length=1, max_length=200)]
Count = Annotated[int, Meta(ge=0, le=2**53)]
Share = Annotated[float, Meta(ge=0, le=1)]
Positive = Annotated[float, Meta(ge=0, le=1e300)]


class Metrics(msgspec.Struct, frozen=True):
    """What a leaderboard needs of a `metrics.json`; accuracies from 0 to 1."""

    dataset: Name
    seed: Count
    epochs: Count
    interrupted: bool
    parameters: Count
    test_accuracy: Share = msgspec.field(name="test/accuracy")
    fit_seconds: Positive
    best_epoch: Count | None = None
    val_images: Count | None = msgspec.field(name="val/images", default=None)
    val_accuracy: Share | None = msgspec.field(name="val/accuracy", default=None)
    val_loss: Positive | None = msgspec.field(name="val/loss", default=None)
    test_loss: Positive | None = msgspec.field(name="test/loss", default=None)
    settings: dict[str, Any] | None = None
    overrides: Annotated[list[Annotated[str, Meta(max_length=20_000)]], Meta(max_length=2000)] = []


class _Sweep(msgspec.Struct, frozen=True):
    """What a leaderboard needs of a `sweep.json`: the settings of each member."""

    runs: dict[Name, list[str]]


@dataclass(frozen=True)
class Run:
    """A finished run."""

    folder: Path
    metrics: Metrics
    settings: dict[str, Value]  # every setting by its dotted key, `optimizer.lr`
    typed: dict[str, str]  # those that its command line had, as text


class Failed(NamedTuple):
    """A run without a result: it failed, was stopped, has not been started, or its files are damaged."""

    folder: Path
    overrides: list[str]  # those that its sweep varies, as far as they are known
    why: str  # one printable line


@dataclass
class Found:
    """The runs in some folders."""

    runs: list[Run] = field(default_factory=list)
    failed: list[Failed] = field(default_factory=list)


def read_runs(folders: Sequence[Path]) -> Found:
    """The runs in these folders; each is that of a run, or has such folders in it at any depth up to MAX_DEPTH.

    Links inside the folders are not followed. UserError if a folder can't be read, or has too many others in it.
    """
    found, seen = Found(), set[str]()
    for start in folders:
        for folder, members in _search(start):
            if (real := os.path.realpath(folder)) not in seen:
                seen.add(real)
                read = _read(folder, members)
                if isinstance(read, Run):
                    found.runs.append(read)
                else:
                    found.failed.append(read)
    found.failed.sort(key=lambda failed: failed.folder)
    return found


def _search(start: Path) -> Iterator[tuple[Path, Mapping[str, list[str]]]]:
    """The folders of runs, and the overrides of the members of the sweep that each belongs to."""
    waiting = deque([(start, 0, _members(start.parent))])
    for _ in range(MAX_FOLDERS):
        if not waiting:
            return
        folder, depth, members = waiting.popleft()
        try:
            with os.scandir(folder) as listed:
                entries = sorted(listed, key=lambda entry: entry.name)
        except (OSError, ValueError) as error:  # ValueError: the path has a NUL
            if depth == 0:
                why = error.strerror if isinstance(error, OSError) else "no folder can have this name"
                raise UserError(f"{one_line(folder)}: {why}.") from error
            yield folder, members
            continue
        names = {entry.name for entry in entries}
        if names & {"metrics.json", "error.txt"} or {"config.yaml", "checkpoints"} <= names:
            yield folder, members
        elif depth < MAX_DEPTH:
            inner = _members(folder) if "sweep.json" in names else {}
            waiting.extend(
                (folder / entry.name, depth + 1, inner)
                for entry in entries
                if entry.is_dir(follow_symlinks=False) and not entry.name.startswith(".")
            )
            yield from ((folder / name, inner) for name in inner if name not in names)
    if waiting:
        raise UserError(f"{one_line(start)}: more than {MAX_FOLDERS:,} folders; name those that hold the runs.")


def _members(folder: Path) -> Mapping[str, list[str]]:
    """The overrides of each member of the sweep in a folder that are not those of all its members.

    Empty if the folder is no sweep, or its record is damaged.
    """
    try:
        runs = msgspec.json.decode(read_regular(folder / "sweep.json", _MAX_BYTES), type=_Sweep).runs
    except (OSError, ValueError, RecursionError):
        return {}
    common = set.intersection(*map(set, runs.values())) if len(runs) > 1 else set()
    return {
        name: [override for override in overrides if override not in common]
        for name, overrides in runs.items()
        if re.fullmatch(r"\w[\w.,=+-]*", name)
    }


def _read(folder: Path, members: Mapping[str, list[str]]) -> Run | Failed:
    overrides = members.get(folder.name, [])
    try:
        content = read_regular(folder / "metrics.json", _MAX_BYTES)
    except FileNotFoundError:
        return Failed(folder, overrides, _why_unfinished(folder))
    except OSError as error:
        return Failed(folder, overrides, f"skipped, because its metrics.json can't be read: {error.strerror}")
    try:
        metrics = msgspec.json.decode(content, type=Metrics)
        if metrics.interrupted:
            epochs = "1 epoch" if metrics.epochs == 1 else f"{metrics.epochs} epochs"
            return Failed(folder, overrides or metrics.overrides, f"stopped after {epochs}")
        settings = metrics.settings if metrics.settings is not None else _saved_settings(folder)
        return Run(folder, metrics, dict(_leaves(settings)), _typed(metrics.overrides))
    except (ValueError, RecursionError) as error:  # msgspec's errors are ValueErrors
        why = one_line(flat(error), 200)
        return Failed(folder, overrides, f"skipped, because its metrics.json is damaged or not that of a run: {why}")


def _why_unfinished(folder: Path) -> str:
    if not folder.exists():
        return "not started"
    try:
        said = read_regular(folder / "error.txt", 2**16).decode(errors="replace").strip()
    except FileNotFoundError:
        return "not finished"
    except OSError as error:
        return f"failed; its error.txt can't be read: {error.strerror}"
    return one_line(" ".join(said.split()), 400) or "failed; its error.txt is empty"


def _saved_settings(folder: Path) -> dict[str, Any]:
    """The settings of a run of an earlier version, whose metrics.json has none; ValueError if they are damaged."""
    try:
        values = plain_yaml.load(read_regular(folder / "config.yaml", 2**18).decode())
        return msgspec.convert(values, dict[str, Any])
    except Exception as error:  # PyYAML raises nearly anything for a text that is not YAML
        raise ValueError(f"it has no settings, nor does config.yaml: {flat(error)}") from error


def _leaves(settings: Mapping[str, Any]) -> Iterator[tuple[str, Value]]:
    """Every value by its dotted key. Lists without inner lists or dictionaries are values.

    ValueError if a key is none, or if there are more values, or deeper ones, than any configuration has.
    """
    waiting: list[tuple[str, Any, int]] = [("", settings, 0)]
    for _ in range(_MAX_SETTINGS):
        if not waiting:
            return
        path, value, depth = waiting.pop()
        inner: Mapping[Any, Any] = {}
        if isinstance(value, dict):
            inner = value
        elif isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
            inner = dict(enumerate(value))
        if depth > _MAX_NESTING or not all(isinstance(item, _PLAIN) for item in _items(value)):
            raise ValueError(f"{one_line(path, 80)} is no value of a setting")
        if path and not inner:
            yield path, _finite(value)
        for key in reversed(inner):
            if not re.fullmatch(r"[\w@/ -]{1,100}", str(key)):
                raise ValueError(f"{one_line(key, 80)!r} is no key of a setting")
            waiting.append((f"{path}.{key}" if path else str(key), inner[key], depth + 1))
    raise ValueError(f"it has more than {_MAX_SETTINGS:,} settings")


def _items(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _finite(value: Value) -> Value:
    """NaN and infinity, which YAML has but JSON has not, as text."""
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _typed(overrides: Sequence[str]) -> dict[str, str]:
    """The values, as text, by key: those of `+key=value` and `key@package=value` too."""
    found = (re.match(r"\+{0,2}([\w./@-]+)=(.*)", text, re.DOTALL) for text in overrides)
    return {match[1]: match[2].strip("'\"") for match in found if match}
