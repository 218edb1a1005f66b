"""The model card in an exported file: what the network is, how it was trained, and what was checked."""

import json
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from mnist_cnn import __version__
from mnist_cnn.export.check import Check
from mnist_cnn.inference import box
from mnist_cnn.inference.checkpoint import TrainedNetwork


def facts(trained: TrainedNetwork, file: Path) -> dict[str, str]:
    """What is known of the network before it is exported; `file` is its checkpoint. Lists and dictionaries are JSON."""
    known = {
        "model": trained.model,
        "dataset": trained.dataset,
        "classes": _json(trained.classes),
        "parameters": str(trained.network.parameter_count),
        "weights": trained.provenance,
        "training": _json(trained.training),
        "preprocessing": f"{trained.preprocessing.formula()}, done inside",
        "versions": _json(trained.versions),
    }
    card = box.card_of(file)
    return {**known, "licence": card.licence} if card else known


def text(trained: TrainedNetwork, file: Path) -> str:
    """The card as text: that of a network in the box, or one line."""
    if card := box.card_of(file):
        return box.text(card.name)
    return f"{trained.model}, {trained.provenance}, trained on {trained.dataset}."


def measured(check: Check, results: Mapping[str, Any], packages: Sequence[str] = ()) -> dict[str, str]:
    """The accuracy of the file, all that was checked, and the versions of what wrote and ran it."""
    versions = {"python": platform.python_version(), "mnist-cnn": __version__, "torch": torch.__version__}
    versions |= {name: version(name) for name in packages}
    accuracy = {} if check.accuracy is None else {"test_accuracy": str(check.accuracy)}
    return {**accuracy, **{key: _json(value) for key, value in results.items()}, "exported_by": _json(versions)}


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
