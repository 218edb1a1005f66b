"""Finds the runs of each side of a comparison, checks that they can be compared, and evaluates them."""

import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from mnist_cnn.data.images import Images
from mnist_cnn.errors import CheckpointError, ConfigError, one_line
from mnist_cnn.files import read_regular
from mnist_cnn.inference import checkpoint
from mnist_cnn.inference.checkpoint import TrainedNetwork
from mnist_cnn.inference.evaluate import Evaluation, evaluate
from mnist_cnn.report.statistics import Summary, summary

MAX_RUNS = 1000
_MAX_BYTES = 2**23  # of metrics.json, which has a row of 200 bytes for each epoch


class Member(NamedTuple):
    """A run of a side: its checkpoint, and its name: as typed, or as found in the typed folder."""

    name: str
    file: Path
    trained: TrainedNetwork

    @property
    def seed(self) -> int | None:
        """None if it isn't known, as of an imported network."""
        seed = self.trained.training.get("seed")
        return seed if isinstance(seed, int) else None

    @property
    def settings(self) -> dict[str, Any]:
        """All that the run was made with, except the seed."""
        training = self.trained.training
        settings = {key: value for key, value in training.get("settings", {}).items() if key != "seed"}
        epochs = {"max_epochs": training.get("max_epochs")}
        return {**settings, **epochs, "layers": self.trained.network.layers, "dataset": self.trained.dataset}


@dataclass(frozen=True)
class Side:
    """What is compared: one network, or several runs of the same settings."""

    name: str
    members: Sequence[Member]
    failed: int = field(default=0, kw_only=True)  # runs in its folders that have no network, so they are no members

    def differing_settings(self) -> list[str]:
        """The settings, other than the seed, that its runs don't share."""
        first, *others = (member.settings for member in self.members)
        keys = dict.fromkeys(key for settings in (first, *others) for key in settings)
        return [key for key in keys if any(settings.get(key) != first.get(key) for settings in others)]


@dataclass(frozen=True)
class EvaluatedSide(Side):
    """A side with the results of its members on the images that all sides are compared on."""

    results: Sequence[Evaluation]

    @cached_property
    def accuracy(self) -> Summary:
        """That of its members."""
        return summary([result.accuracy for result in self.results])

    @property
    def right(self) -> Tensor:
        """(N,) bool: which images its only network classifies correctly."""
        (result,) = self.results
        return result.predicted == result.labels


def read_sides(groups: Sequence[Sequence[str]]) -> list[Side]:
    """The sides that a user has typed, each as one or more checkpoints, runs, names in the box, or folders of runs.

    ConfigError if they can't be compared, CheckpointError if a checkpoint can't be used.
    """
    found = [[_runs_in(word) for word in group] for group in groups]
    paths = [[path for runs, _ in side for path in runs] for side in found]
    if sum(map(len, paths)) > MAX_RUNS:
        raise ConfigError(f"these are {sum(map(len, paths)):,} runs; at most {MAX_RUNS:,} can be compared.")
    names = _names(groups)
    sides = [
        Side(
            name, [Member(path, *checkpoint.load_kept(path)) for path in side], failed=sum(count for _, count in words)
        )
        for name, side, words in zip(names, paths, found, strict=True)
    ]
    _check(sides)
    return sides


def evaluate_sides(
    sides: Sequence[Side], dataset: str, split: str, load: Callable[[TrainedNetwork], Images]
) -> tuple[list[EvaluatedSide], Images]:
    """Evaluate all networks; returns the images too, in the size that the first network takes.

    `load` gives the images for a network. ConfigError if they are not the same for all of them, which happens where
    runs have split off other images for validation.
    """
    evaluated, first = list[EvaluatedSide](), None
    source: tuple[object, ...] | None = None
    with tqdm(total=sum(len(side.members) for side in sides), desc="evaluating", leave=False, disable=None) as bar:
        for side in sides:
            results = []
            for member in side.members:
                # The runs of a side mostly take the same images, which are then read once.
                before, source = source, _source(member.trained)
                if source != before:
                    images = load(member.trained)
                    first = images if first is None else first
                    if not _same(images, first):
                        raise ConfigError(
                            f"{one_line(member.name)}: its {split} images are not those of {one_line(sides[0].name)}, "
                            "so their results can't be compared; --split test takes the same ones for all."
                        )
                try:
                    results.append(evaluate(member.trained, images, dataset, split))
                except CheckpointError as error:
                    raise CheckpointError(f"{one_line(member.file)}: {error}") from None
                bar.update()
            evaluated.append(EvaluatedSide(side.name, side.members, results, failed=side.failed))
    assert first is not None
    return evaluated, first


def common_dataset(sides: Sequence[Side]) -> str:
    """The data set that all networks were trained on; ConfigError if there are several."""
    first, *others = (member for side in sides for member in side.members)
    for other in others:
        if other.trained.dataset != first.trained.dataset:
            one, two = one_line(first.trained.dataset), one_line(other.trained.dataset)
            raise ConfigError(
                f"{one_line(first.name)} was trained on {one}, {one_line(other.name)} on {two}; say on which images to "
                "compare them: --data NAME"
            )
    return first.trained.dataset


def notes(sides: Sequence[Side]) -> Iterator[str]:
    """What a reader must know of these runs, one line each."""
    for side in sides:
        if side.failed:
            left_out = "failed and is left out" if side.failed == 1 else "failed and are left out"
            yield f"{side.name}: {side.failed} of its {len(side.members) + side.failed} runs {left_out}."
        if differing := side.differing_settings():
            keys = ", ".join(one_line(key, 60) for key in differing[:5]) + (", …" if len(differing) > 5 else "")
            yield f"{side.name} mixes runs of different settings ({keys}), so its spread is not only that of the seeds."
    for member in (member for side in sides for member in side.members):
        if member.file.parent.name == "checkpoints" and (why := _unfinished(member.file.parents[1])):
            yield f"{one_line(member.name)}: {why}; its accuracy is that of the epochs before."
    first, *others = sides
    for other in others:
        if not Side("", [*first.members, *other.members]).differing_settings():
            yield f"{first.name} and {other.name} have the same settings, except for the seed."


def _runs_in(word: str) -> tuple[list[str], int]:
    """The runs in a folder that holds folders of runs, and how many others there failed; any other word as it is."""
    folder = Path(word)
    try:
        if not word or not folder.is_dir() or (folder / "checkpoints").is_dir():
            return [word], 0
        folders = list(folder.iterdir())
        inner = sorted(path.name for path in folders if (path / "checkpoints").is_dir())
        failed = sum((path / "error.txt").is_file() and path.name not in inner for path in folders)
    except (OSError, ValueError):  # which reading the checkpoint explains
        return [word], 0
    inner.sort(key=lambda name: (not name.isdecimal(), int(name) if name.isdecimal() else 0))  # 2 before 10
    return ([os.path.join(word, name) for name in inner], failed) if inner else ([word], 0)


def _names(groups: Sequence[Sequence[str]]) -> list[str]:
    """A short name for each side: what was typed, without the folders that all have in common."""
    words = [word for group in groups for word in group]
    try:
        shared = os.path.commonpath(words)
    except ValueError:  # absolute and relative ones, or an empty one
        shared = ""
    if shared and all(os.path.relpath(word, shared) != "." for word in words):
        groups = [[os.path.relpath(word, shared) for word in group] for group in groups]
    names = [_in_common(group) for group in groups]
    if len(set(names)) < len(names):
        names = [group[0] if len(group) == 1 else f"{group[0]} … {group[-1]}" for group in groups]
    return [one_line(name, 200) for name in names]


def _in_common(names: Sequence[str]) -> str:
    """`model-tiny` of `00_model-tiny_seed-0` and `01_model-tiny_seed-1`; else the first name and the last."""
    if len(names) == 1:
        return names[0]
    first, *others = (re.split(r"[/\\_]", name) for name in names)
    shared = "_".join(part for part in first if part and all(part in other for other in others))
    return shared if re.search("[^\\W\\d_]", shared) else f"{names[0]} … {names[-1]}"


def _check(sides: Sequence[Side]) -> None:
    """Raise ConfigError unless the sides can be compared."""
    members = [member for side in sides for member in side.members]
    files = dict[Path, Member]()
    for member in members:
        other = files.setdefault(member.file.resolve(), member)
        if other is not member:
            raise ConfigError(
                f"{one_line(other.name)} and {one_line(member.name)} are the same checkpoint, {one_line(member.file)}."
            )
    for side in sides:
        for one, other in combinations(side.members, 2):
            if one.seed is not None and one.seed == other.seed and one.settings == other.settings:
                raise ConfigError(
                    f"{one_line(one.name)} and {one_line(other.name)} have the same settings and the seed {one.seed}: "
                    "they are one run, which must not count twice."
                )
    first = members[0]
    for member in members:
        if member.trained.classes != first.trained.classes:
            raise ConfigError(
                f"{one_line(first.name)} and {one_line(member.name)} can't be compared: they have other classes, "
                f"{_shown(first.trained.classes)} and {_shown(member.trained.classes)}."
            )
    single = [side for side in sides if len(side.members) == 1]
    if single and len(single) < len(sides):
        raise ConfigError(
            f"{one_line(single[0].name)} is a single run, which can't be compared with several: its spread over seeds "
            "is not known. Give it more seeds, or compare one run with one."
        )


def _source(trained: TrainedNetwork) -> tuple[object, ...]:
    """What decides which images a network is evaluated on, and what is said of them."""
    size, data = trained.preprocessing.size, trained.training.get("data")
    return trained.network.input_shape, size, trained.classes, trained.dataset, trained.split, data


def _shown(classes: Sequence[str]) -> str:
    return f"{len(classes)} ({one_line(', '.join(classes[:3]), 60)}, …)"


def _same(images: Images, others: Images) -> bool:
    """Whether these are the same; for networks of other sizes, the user's own pictures are known by their labels."""
    if not torch.equal(images.labels, others.labels):
        return False
    return images.images.shape != others.images.shape or torch.equal(images.images, others.images)


def _unfinished(folder: Path) -> str | None:
    """Why a run was not finished, if it wasn't."""
    try:
        metrics = json.loads(read_regular(folder / "metrics.json", _MAX_BYTES))
    except FileNotFoundError:
        return "it has no metrics.json, so the run was not finished"
    except (OSError, ValueError, RecursionError):
        return "its metrics.json can't be read, so it is not known whether the run was finished"
    interrupted = isinstance(metrics, dict) and metrics.get("interrupted") is True
    return "the run was interrupted" if interrupted else None
