"""Puts trained networks into the package, each with its card.

    python train.py -m experiment=accurate seed=0,1,2,3,4 run_dir=runs/accurate      for each recipe
    python benchmarks/box.py runs/accurate runs/strong runs/tiny_strong --robustness robustness.json

A folder holds the runs of one recipe, which differ in their seed only; the network gets its name. The seed with the
highest validation accuracy is taken, of equal ones that with the lower loss; where no images were kept for validation,
seed 0. Weights are stored as float16 if that changes no answer on the validation images (without such, on the training
images), otherwise as float32. The test images choose nothing.
"""

import argparse
import hashlib
import json
import os
import re
import shlex
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, Literal

import msgspec
import torch
import yaml
from box_card import text_of

from mnist_cnn.data import datasets
from mnist_cnn.data.datasets import DataFiles
from mnist_cnn.errors import CheckpointError, ConfigError
from mnist_cnn.files import write_file
from mnist_cnn.inference import checkpoint
from mnist_cnn.inference.box import BOX, MOST_BYTES, Card, Spread, percent
from mnist_cnn.inference.evaluate import evaluate
from mnist_cnn.inference.images import images_for
from mnist_cnn.terminal import failed, run_command

PURPOSES = {
    # what follows the word "for"
    "accurate": "the highest accuracy; used where no network is named",
    "strong": "comparison with the Keras examples: their network, better trained",
    "tiny_strong": "small machines: 6,320 parameters",
}
# Settings that say where things lie on one machine; the run folder of a resumed run is reduced to its name.
_PLACES = ("run_dir", "data.root", "data.mirror")
_MEASURED = '{"recipes": {"RECIPE": {"corrupted": {"mean": 0.95, "std": 0.01}}}}'

Stored = Literal["float32", "float16"]


@dataclass(frozen=True)
class Run:
    """A finished run: its folder, its results, every setting, and the commands that it was started and resumed with."""

    folder: Path
    metrics: dict[str, Any]
    settings: dict[str, Any]
    commands: list[str]

    @property
    def seed(self) -> int:
        return int(self.metrics["seed"])


def runs_in(folder: Path) -> list[Run]:
    """The runs in a folder by their seeds; ConfigError unless they are finished and differ in the seed only."""
    runs = sorted((_read(file.parent) for file in folder.glob("**/metrics.json")), key=lambda run: run.seed)
    if not runs:
        raise ConfigError(f"{folder}: no run in it has a metrics.json.")
    if len({run.seed for run in runs}) < len(runs):
        raise ConfigError(f"{folder}: two of its runs have the same seed.")
    for run in runs:
        if run.metrics["interrupted"]:
            raise ConfigError(f"{run.folder}: this run was interrupted; continue it with resume=, or remove it.")
        differing = [key for key in run.settings if run.settings[key] != runs[0].settings.get(key)]
        if differing or run.settings.keys() != runs[0].settings.keys():
            raise ConfigError(f"{folder}: its runs differ in more than the seed: {', '.join(differing)}.")
    return runs


def _read(folder: Path) -> Run:
    text = (folder / "config.yaml").read_text(encoding="utf-8")
    settings = dict(_flat(yaml.safe_load(text)))
    for key in ("seed", *_PLACES):
        settings.pop(key, None)
    commands = [_without_places(line[2:]) for line in text.splitlines() if line.startswith("# ")]
    return Run(folder, json.loads((folder / "metrics.json").read_text()), settings, commands)


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Nested settings as (`data.root`, value)."""
    found = []
    for key, value in values.items():
        nested = isinstance(value, dict) and value
        found += _flat(value, f"{prefix}{key}.") if nested else [(f"{prefix}{key}", value)]
    return found


def _without_places(command: str) -> str:
    words = [re.sub(r"^resume=.*/(?=.)", "resume=", word) for word in shlex.split(command)]
    return shlex.join(word for word in words if word.partition("=")[0] not in _PLACES)


def choose(runs: Sequence[Run]) -> tuple[Run, str]:
    """The run to take, and why; ConfigError if there is neither a validation accuracy nor a seed 0."""
    if runs[0].metrics.get("val/accuracy") is not None:
        best = max(runs, key=lambda run: (run.metrics["val/accuracy"], -run.metrics["val/loss"]))
        return best, f"the best of {len(runs)} on validation images" if len(runs) > 1 else "the only one"
    if runs[0].seed != 0:
        raise ConfigError(f"{runs[0].folder.parent}: no run has a validation accuracy, and none has seed 0.")
    return runs[0], "fixed beforehand, since no images were kept for validation"


def stored(content: Mapping[str, Any], name: str, weights: Stored) -> dict[str, Any]:
    """A training checkpoint's content, reduced to what using the network takes, under a new name."""
    kept = {key: content[key] for key in ("epoch", "global_step", "pytorch-lightning_version")}
    kept[checkpoint.METADATA_KEY] = {**content[checkpoint.METADATA_KEY], "model": name, "weights": weights}
    kept["state_dict"] = {
        # a clone, because a tensor that is part of a larger one would be written with all of it
        key: (value.to(getattr(torch, weights)) if value.dtype == torch.float32 else value).clone()
        for key, value in content["state_dict"].items()
        if key.startswith(checkpoint.PREFIX)
    }
    return kept


def build(folder: Path, data_root: str, corrupted: Mapping[str, Spread], output: Path = BOX) -> Card:
    """Write `NAME.ckpt` and `NAME.md` of a folder of runs; ConfigError if the runs are not those of one recipe."""
    name = folder.resolve().name
    if name not in PURPOSES:
        raise ConfigError(f"{folder}: say in PURPOSES, in benchmarks/box.py, what {name} is for.")
    runs = runs_in(folder)
    run, why = choose(runs)
    weights, content = _smallest(run, name, data_root)
    data, file = checkpoint.to_bytes(content), output / f"{name}.ckpt"
    write_file(file, data)
    trained = checkpoint.load(file)
    test = evaluate(
        trained, images_for(trained, "test", DataFiles(trained.dataset, data_root)), trained.dataset, "test"
    )
    commands = list(dict.fromkeys(command for run in runs for command in run.commands))
    recipe = next(iter(re.findall(r"(?<= )experiment=([\w-]+)(?= |$)", commands[0])), name)
    card = Card(
        name=name,
        purpose=PURPOSES[name],
        recipe=recipe,
        commands=commands,
        dataset=trained.dataset,
        parameters=trained.network.parameter_count,
        epoch=trained.epoch,
        seed=run.seed,
        chosen=why,
        seeds=[run.seed for run in runs],
        validation_accuracy=run.metrics.get("val/accuracy"),
        test_accuracy=test.accuracy,
        test_accuracy_of_seeds=_spread([run.metrics["test/accuracy"] for run in runs]),
        corrupted_accuracy=corrupted.get(name) or corrupted.get(recipe),
        weights=weights,
        bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        versions=trained.versions,
        built=date.today().isoformat(),
        licence="MIT",
    )
    write_file(output / f"{name}.md", text_of(card).encode())
    return card


def _smallest(run: Run, name: str, data_root: str) -> tuple[Stored, dict[str, Any]]:
    """The type in which the weights of a run's best epoch are stored, and the content of the checkpoint."""
    best = checkpoint.find(run.folder)
    content = checkpoint.read(best)
    trained = checkpoint.trained_network(content, best)
    datasets.fetch(trained.dataset, data_root, os.environ.get("MNIST_MIRROR"))
    if run.metrics.get("val/accuracy") is None:
        images = datasets.load(trained.dataset, data_root).train
    else:
        images = images_for(trained, "val", DataFiles(trained.dataset, data_root))
    halved = stored(content, name, "float16")
    try:
        networks = (trained, checkpoint.trained_network(halved, best))
        before, after = (evaluate(network, images, trained.dataset, "").predicted for network in networks)
    except CheckpointError:  # a weight or an output is too large for float16
        return "float32", stored(content, name, "float32")
    return ("float16", halved) if torch.equal(before, after) else ("float32", stored(content, name, "float32"))


class _Measured(msgspec.Struct):
    corrupted: Spread


class _Robustness(msgspec.Struct):
    recipes: dict[str, _Measured]


def corrupted_accuracies(file: Path) -> dict[str, Spread]:
    """The accuracy of each recipe on corrupted test images; ConfigError if that is not what the file has."""
    try:
        measured = msgspec.json.decode(file.read_bytes(), type=_Robustness).recipes
    except msgspec.MsgspecError as error:
        raise ConfigError(f"{file}: {error}; it should have {_MEASURED}") from error
    return {recipe: measures.corrupted for recipe, measures in measured.items()}


def _spread(accuracies: list[float]) -> Spread:
    return Spread(statistics.mean(accuracies), statistics.stdev(accuracies) if len(accuracies) > 1 else None)


def main() -> int:
    """Build every network that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", metavar="FOLDER", nargs="+", type=Path, help="the runs of one recipe")
    parser.add_argument(
        "--robustness", metavar="FILE.json", type=Path, help=f"the accuracies on corrupted test images: {_MEASURED}"
    )
    parser.add_argument("--data-root", default="data")
    options = parser.parse_args()

    def build_all() -> int:
        corrupted = corrupted_accuracies(options.robustness) if options.robustness else {}
        for folder in options.folders:
            card = build(folder, options.data_root, corrupted, BOX)
            print(f"{card.name}: seed {card.seed}, {card.bytes:,} bytes, {card.weights}")
            print(f"  test {percent(card.test_accuracy)}, corrupted {card.corrupted_accuracy or 'not measured'}")
        total = sum(file.stat().st_size for file in BOX.glob("*.ckpt"))
        print(f"all in the box: {total:,} bytes")
        return failed(f"the box may take {MOST_BYTES:,} bytes.") if total > MOST_BYTES else 0

    return run_command(build_all)


if __name__ == "__main__":
    raise SystemExit(main())
