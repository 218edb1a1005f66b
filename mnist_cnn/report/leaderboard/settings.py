"""Tells which runs have the same settings, and which columns of a table say how the others differ."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from mnist_cnn.errors import one_line
from mnist_cnn.report.leaderboard.runs import Run, Value

DATA = "data"  # the column of the data set
# What does not make another experiment, and is no column even where it was typed: the repetition, files and addresses
# (`data.root` names other images only for a folder of one's own), and what is recorded or how the run is started.
_NEVER = ("seed", "run_dir", "resume", "data.root", "data.mirror", "data.eval_batch_size", "logger", "hydra")
# What changes the results by rounding only, or not at all. They are columns where they were typed with several values,
# to compare speed. Not here: `trainer.precision`, which rounds coarsely, and `trainer.devices`, because each process
# takes a batch of its own. The name of the data set stands in metrics.json, where `auto` has become a real one.
_SAME_RESULT = (
    "data.name", "trainer.accelerator", "trainer.strategy", "trainer.compile", "callbacks.checkpoint.dirpath",
    "callbacks.checkpoint.every_n_train_steps", "callbacks.checkpoint.every_n_minutes",
)  # fmt: skip
# The setting that says in a word which option a group has.
_DESCRIBED_BY = {"model": "model.name", "optimizer": "optimizer._target_", "scheduler": "scheduler._target_"}
# Columns for settings that nobody typed; of more, only those are shown that are needed to tell runs apart.
_MAX_MORE = 4


@dataclass(frozen=True)
class Setting:
    """Runs that differ in nothing but the seed, with the values of the columns."""

    values: dict[str, Value]
    runs: list[Run]  # by seed


class Settings(NamedTuple):
    """All settings of a table and its columns: keys of settings, or DATA."""

    columns: list[str]
    settings: list[Setting]
    notes: list[str]


def settings_of(runs: Sequence[Run]) -> Settings:
    """Divide runs into settings. Columns are what the command lines varied, and what else tells settings apart."""
    table = _Table(runs)
    table.add(DATA)
    typed = dict.fromkeys(key for run in runs for key in run.typed)
    for key in typed:
        if key == DATA or _is(key, _NEVER):  # the data set is a column already
            continue
        if key not in _SAME_RESULT or _differ(run.typed[key] for run in runs if key in run.typed):
            table.add(key)
    asked = len(table.columns)
    for key in _DESCRIBED_BY:
        if any(_differ(_described(runs[index], key) for index in group) for group in table.groups()):
            table.add(key)
    differing = table.differing()
    for key in differing:
        if len(differing) <= _MAX_MORE or key in table.differing():
            table.add(key)
    notes = []
    if len(table.columns) > asked and (hidden := [one_line(key, 60) for key in table.without_column()]):
        notes.append(f"the settings also differ in {_listed(hidden)}, which no column shows")
    settings, repeated = [], list[str]()
    for group in table.groups():
        by_seed: dict[int, Run] = {}
        for run in (runs[index] for index in group):
            if by_seed.setdefault(run.metrics.seed, run) is not run:
                repeated.append(one_line(run.folder, 80))
        values = {key: column[group[0]] for key, column in table.columns.items()}
        settings.append(Setting(values, [by_seed[seed] for seed in sorted(by_seed)]))
    if repeated:
        what = "1 run repeats" if len(repeated) == 1 else f"{len(repeated)} runs repeat"
        notes.append(f"{what} a setting with a seed that another run has, and is not counted: {_listed(repeated)}")
    return Settings(list(table.columns), settings, notes)


def canonical(value: Value) -> str:
    """One text for equal values: 1 and 1.0 are one, 1 and true are not."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, list):
        return f"[{','.join(map(canonical, value))}]"
    return json.dumps(value, sort_keys=True)


class _Table:
    """The values of all runs in each column."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self._runs = runs
        self._settings = [{key: canonical(value) for key, value in run.settings.items()} for run in runs]
        self._typed = {key for run in runs for key in run.typed}
        self._groups = {key.partition(".")[0] for settings in self._settings for key in settings}
        self.columns: dict[str, list[Value]] = {}

    def add(self, key: str) -> None:
        """Add a column, if its values differ."""
        values = self._values(key)
        if _differ(values):
            self.columns[key] = values

    def groups(self) -> list[list[int]]:
        """The numbers of the runs that agree in all columns."""
        groups: dict[tuple[str, ...], list[int]] = {}
        for index in range(len(self._runs)):
            key = tuple(canonical(column[index]) for column in self.columns.values())
            groups.setdefault(key, []).append(index)
        return list(groups.values())

    def differing(self) -> list[str]:
        """The settings in which runs differ that agree in all columns; layers come last."""
        found: dict[str, None] = {}
        for group in self.groups():
            for key in dict.fromkeys(key for index in group for key in self._settings[index]):
                values = {self._settings[index].get(key, canonical(None)) for index in group}
                if len(values) > 1 and not _is_ignored(self._runs[group[0]], key):
                    found[key] = None
        return sorted(found, key=lambda key: key.startswith("model.layers"))

    def without_column(self) -> list[str]:
        """The settings that differ from run to run, but neither have a column nor belong to a group that has one."""
        return [
            key
            for key in dict.fromkeys(key for settings in self._settings for key in settings)
            if not (_is(key, list(self.columns)) or _is_ignored(self._runs[0], key))
            and len({settings.get(key, canonical(None)) for settings in self._settings}) > 1
        ]

    def _values(self, key: str) -> list[Value]:
        """The value of a setting in every run, or None; of a group the option's name."""
        if key == DATA:
            return [run.metrics.dataset for run in self._runs]
        if key in self._groups:
            return self._options(key)
        if "." in key:
            return [run.settings.get(key) for run in self._runs]
        return [run.typed.get(key) for run in self._runs]  # experiment=tiny, which the settings don't hold

    def _options(self, group: str) -> list[Value]:
        """The option of a group in every run: as typed; else as typed for the same content; else what describes it."""
        contents = [self._content(index, group) for index in range(len(self._runs))]
        typed: dict[str, set[str]] = {}
        for run, content in zip(self._runs, contents, strict=True):
            if group in run.typed:
                typed.setdefault(content, set()).add(run.typed[group])
        names = {content: options.pop() for content, options in typed.items() if len(options) == 1}
        return [
            run.typed.get(group) or names.get(content) or _described(run, group)
            for run, content in zip(self._runs, contents, strict=True)
        ]

    def _content(self, index: int, group: str) -> str:
        """What the option of a group has set in a run, apart from what the command lines change in it."""
        ours = {
            key: value
            for key, value in self._settings[index].items()
            if _is(key, (group,)) and key not in self._typed and not _is_ignored(self._runs[index], key)
        }
        return json.dumps(ours, sort_keys=True)


def _described(run: Run, group: str) -> str | None:
    """What describes the option of a group: the name of a network, or of the class of an optimiser or a scheduler."""
    if run.settings.get(group) == {}:
        return "none"
    name = run.settings.get(_DESCRIBED_BY.get(group, ""))
    return name.rpartition(".")[2] if isinstance(name, str) else None


def _is_ignored(run: Run, key: str) -> bool:
    if key == "data.root" and run.metrics.dataset.startswith("folder:"):
        return False
    return _is(key, _NEVER) or key in _SAME_RESULT


def _is(key: str, known: Sequence[str]) -> bool:
    """Whether a key is one of those known, or one of the settings in it."""
    return any(key == one or key.startswith((f"{one}.", f"{one}/")) for one in known)


def _differ(values: Iterable[Value]) -> bool:
    return len(set(map(canonical, values))) > 1


def _listed(names: Sequence[str], most: int = 4) -> str:
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
