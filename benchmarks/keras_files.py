"""Compares other people's Keras models here and in Keras: prints a table of a folder of them.

    python benchmarks/keras_files.py FOLDER --data-root data

The folder's `models.json` has, for each file, how many MNIST test digits Keras gets right under each input scaling, and
the name of an .npz file with Keras' outputs for the first 200 test images under one of the scalings.
"""

import argparse
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from mnist_cnn.data import datasets
from mnist_cnn.data.images import Images
from mnist_cnn.errors import UserError
from mnist_cnn.inference.evaluate import evaluate
from mnist_cnn.keras.importer import import_model

# From the names of scalings in models.json to those of `--input-scale`.
SCALINGS = {
    "x/255": "1/255",
    "raw 0..255": "1",
    "(x/255-0.1307)/0.3081": "mean-std",
    "x/127.5-1": "1/127.5-1",
    "keras.utils.normalize(axis=1)": "normalize",
}


class Result(NamedTuple):
    """One file: both counts by scaling, and the largest difference of probabilities; or why it is refused."""

    file: str
    keras: dict[str, int]
    ours: dict[str, int]
    difference: float
    refused: str = ""

    @property
    def equal(self) -> bool:
        """Whether counts differ by at most one digit, which may be a tie, and probabilities by at most 1e-5."""
        return self.difference <= 1e-5 and all(abs(self.keras[name] - self.ours[name]) <= 1 for name in self.ours)


def models(folder: Path) -> list[dict[str, Any]]:
    """The entries of models.json."""
    content: list[dict[str, Any]] = json.loads((folder / "models.json").read_text())
    return content


def check(folder: Path, model: dict[str, Any], test: Images, count: bool = True) -> Result:
    """Compare one file; without `count`, only its probabilities for the first 200 images."""
    architecture = folder / model["architecture_json"] if "architecture_json" in model else None
    counts: dict[str, int] = model["n_correct_by_preprocessing"] or {"x/255": 0}
    keras, ours, difference = {}, {}, 0.0
    for name in [name for name in counts if name in SCALINGS and (count or name == model["preprocessing"])]:
        try:
            trained = import_model(folder / model["file"], architecture, SCALINGS[name]).trained
        except UserError as error:
            return Result(model["file"], {}, {}, 0.0, str(error).partition(": ")[2])
        if count:
            keras[name], ours[name] = counts[name], evaluate(trained, test, "mnist", "test").correct
        if name == model["preprocessing"]:
            expected = torch.from_numpy(np.load(folder / model["expected"])["pred"])
            if (expected < 0).any():  # a model without a softmax
                expected = expected.softmax(1)
            first = Images(test.images[:200], test.labels[:200])
            difference = float((evaluate(trained, first, "mnist", "test").probabilities - expected).abs().max())
    return Result(model["file"], keras, ours, difference)


def rows(folder: Path, test: Images) -> Iterator[str]:
    """The table in Markdown, line by line."""
    yield "| file | right of 10,000 digits: Keras | ours | largest difference of a probability | seconds |"
    yield "|---|---|---|---:|---:|"
    for model in models(folder):
        start = time.monotonic()
        result = check(folder, model, test)
        seconds = time.monotonic() - start
        if result.refused:
            yield f"| {result.file} | – | refused: {result.refused} | – | {seconds:.1f} |"
            continue
        keras, ours = (
            ", ".join(f"{SCALINGS[name]}: {right:,}" for name, right in side.items())
            for side in (result.keras, result.ours)
        )
        verdict = "" if result.equal else " **differs**"
        yield f"| {result.file} | {keras} | {ours}{verdict} | {result.difference:.1e} | {seconds:.1f} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data-root", default="data")
    options = parser.parse_args()
    datasets.fetch("mnist", options.data_root, os.environ.get("MNIST_MIRROR"))
    for row in rows(options.folder, datasets.load("mnist", options.data_root).test):
        print(row, flush=True)


if __name__ == "__main__":
    main()
