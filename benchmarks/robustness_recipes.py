"""Finds the runs of each recipe for the robustness benchmark, and holds what is measured on them."""

import json
import statistics
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from robustness_measures import Calibration, always_wrong, pairwise_agreement, unanimous
from torch import Tensor

from mnist_cnn.errors import CheckpointError
from mnist_cnn.inference import checkpoint
from mnist_cnn.inference.checkpoint import TrainedNetwork

CLEAN = "none"  # the corruption of the test images as they are


@dataclass
class Recipe:
    """The runs of one recipe and what was measured on them; every list has one entry for each run, by seed."""

    name: str
    runs: list[TrainedNetwork]
    accuracy: dict[str, list[float]] = field(default_factory=dict)  # by corruption
    predicted: list[Tensor] = field(default_factory=list)  # (N,) classes of the test images
    calibration: list[Calibration] = field(default_factory=list)  # empty where the validation images are not known
    pictures: dict[str, list[str]] = field(default_factory=dict)  # the answers to each, by the name of its file

    def answers_to(self, index: int) -> list[str]:
        """The class that each run gives to the test image at this index."""
        return [run.classes[int(predicted[index])] for run, predicted in zip(self.runs, self.predicted, strict=True)]

    @property
    def corrupted(self) -> list[float]:
        """Each run's mean accuracy over all corruptions; empty before they were measured."""
        measured = [values for name, values in self.accuracy.items() if name != CLEAN]
        return [statistics.fmean(run) for run in zip(*measured, strict=True)]

    def to_dict(self, labels: Tensor) -> dict[str, Any]:
        """The measurements as primitives; `labels` are those of the test images."""
        predicted = torch.stack(self.predicted)
        return {
            "model": self.runs[0].model,
            "parameters": self.runs[0].network.parameter_count,
            "seeds": [run.training.get("seed") for run in self.runs],
            "accuracy": self.accuracy,
            "corrupted": {
                "mean": statistics.fmean(self.corrupted),
                "std": statistics.stdev(self.corrupted) if len(self.corrupted) > 1 else None,
            },
            "calibration": [measured._asdict() for measured in self.calibration],
            "all_agree": unanimous(predicted) if len(predicted) > 1 else None,
            "pairwise_agreement": pairwise_agreement(predicted) if len(predicted) > 1 else None,
            "always_wrong": always_wrong(predicted, labels).tolist(),
            "pictures": self.pictures,
        }


def find_recipes(paths: Iterable[Path]) -> list[Recipe]:
    """The recipes in these folders, single runs and checkpoints; CheckpointError where there is none."""
    found: dict[tuple[Path, str, str], dict[Path, TrainedNetwork]] = {}
    for path in paths:
        files = _finished(path) if path.is_dir() else [path]
        if not files:
            raise CheckpointError(f"{path}: it holds no finished run.")
        for file in files:
            trained = checkpoint.load(file)
            folder, settings = _recipe_of(file.resolve())
            found.setdefault((folder, settings, trained.model), {})[file.resolve()] = trained
    names = [f"{folder.name}/{settings}".rstrip("/") for folder, settings, _ in found]
    recipes = []
    for name, (folder, settings, model), runs in zip(names, found, found.values(), strict=True):
        unique = name if names.count(name) == 1 else f"{folder}/{settings}".rstrip("/") + f" ({model})"
        recipes.append(Recipe(unique, sorted(runs.values(), key=lambda run: int(run.training.get("seed", 0)))))
    return recipes


def _finished(folder: Path) -> list[Path]:
    """The best checkpoints of the run in a folder, or of all runs under it."""
    files = sorted(folder.glob("**/checkpoints/best.ckpt"))
    for file in files:
        if not _is_finished(file):
            print(f"{file.parents[1]}: left out, because this run is not finished", file=sys.stderr)
    return [file for file in files if _is_finished(file)]


def _is_finished(file: Path) -> bool:
    metrics = file.parents[1] / "metrics.json"
    return metrics.exists() and not json.loads(metrics.read_text()).get("interrupted")


def _recipe_of(file: Path) -> tuple[Path, str]:
    """The folder of a checkpoint's recipe, and the settings that the name of its run has beside number and seed."""
    if file.parent.name != "checkpoints":
        return file.with_suffix(""), ""
    run = file.parents[1]
    number, _, settings = run.name.partition("_")
    parts = (settings if number.isdecimal() else run.name).split(",")
    return run.parent, ",".join(part for part in parts if not part.startswith("seed="))
