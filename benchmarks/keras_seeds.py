"""Compares the test accuracy of a recipe here and in Keras over several seeds: prints the difference of the means.

    taskset -c 0 python benchmarks/keras_seeds.py tiny mlp --seeds 10 --output keras_seeds.json

Keras runs on its torch backend. With --paired both start from the same weights, train on the same batches, and compute
in double precision, so that rounding does not drive them apart. Both keep the epoch that is best on validation images.
Runs that are already in the output file are not repeated.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scipy import stats

Scores = dict[str, float]
ROOT = Path(__file__).resolve().parents[1]


def ours(recipe: str, seed: int, data_root: str) -> Scores:
    """One run of `python train.py experiment=RECIPE`."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        arguments = [f"experiment={recipe}", f"seed={seed}", f"run_dir={run}", "data=mnist", f"data.root={data_root}"]
        subprocess.run(
            [sys.executable, "train.py", *arguments, "logger=none"], cwd=ROOT, check=True, capture_output=True
        )
        metrics = json.loads((run / "metrics.json").read_text())
    return {"accuracy": metrics["test/accuracy"], "loss": metrics["test/loss"], "val": metrics["val/accuracy"]}


def keras(recipe: str, seed: int, data_root: str) -> Scores:
    """The same recipe in Keras."""
    from keras_recipes import trained

    figures = trained(recipe, seed, data_root)
    return {name: figures[name] for name in ("accuracy", "loss", "val")}


def paired(recipe: str, seed: int, data_root: str) -> tuple[Scores, Scores]:
    """Both from the same weights, on the same batches, in double precision, each at its best epoch."""
    import torch
    from keras_recipes import RECIPES
    from keras_recipes import keras as k
    from keras_steps import Pair, keras_precision

    from mnist_cnn.data import datasets
    from mnist_cnn.data.images import Preprocessing

    k.utils.set_random_seed(seed)
    settings, mnist = RECIPES[recipe], datasets.load("mnist", data_root)
    images, test = Preprocessing()(mnist.train.images), Preprocessing()(mnist.test.images)
    labels = mnist.train.labels
    kept = math.floor(len(labels) * (1 - settings.val_fraction))
    best: list[Scores] = [{}, {}]
    with keras_precision(torch.float64):
        pair = Pair(recipe, torch.float64)
        for epoch in range(settings.epochs):
            order = torch.randperm(kept, generator=torch.Generator().manual_seed(seed * 1000 + epoch))
            for chosen in torch.split(order, settings.batch_size):
                pair.step(images[chosen], labels[chosen])
            now = [_scores(logits, labels[kept:]) for logits in pair.logits(images[kept:])]
            for side, scores in enumerate(now):
                better = -scores["loss"] if settings.monitor == "val_loss" else scores["accuracy"]
                if not best[side] or better > best[side]["monitor"]:
                    tested = _scores(pair.logits(test)[side], mnist.test.labels)
                    best[side] = {**tested, "val": scores["accuracy"], "monitor": better, "epoch": epoch + 1}
    return best[0], best[1]


def _scores(logits: Any, labels: Any) -> Scores:
    from torch.nn import functional as F

    return {
        "accuracy": float((logits.argmax(1) == labels).double().mean()),
        "loss": float(F.cross_entropy(logits, labels)),
    }


def compare(ours: Sequence[float], keras: Sequence[float], pairs: bool = False) -> tuple[float, float, float]:
    """The difference of means, ours − Keras', and its 95 % interval by Welch's t-test, or by that of pairs."""
    difference = statistics.mean(ours) - statistics.mean(keras)
    if pairs and len({a - b for a, b in zip(ours, keras, strict=True)}) == 1:
        return difference, difference, difference  # the interval has no width
    test = stats.ttest_rel(ours, keras) if pairs else stats.ttest_ind(ours, keras, equal_var=False)
    interval = test.confidence_interval(0.95)
    return difference, float(interval.low), float(interval.high)


def table(results: dict[str, dict[str, dict[str, Scores]]]) -> str:
    """A Markdown table: mean ± standard deviation over seeds."""
    lines = ["| recipe | seeds | ours | Keras | difference, 95 % interval |", "|---|---|---|---|---|"]
    kinds = [
        ("", "ours", "keras"),
        (", the same weights and batches, in double precision", "paired ours", "paired keras"),
    ]
    for recipe, sides in results.items():
        for how, *names in kinds:
            a, b = ([100 * run["accuracy"] for run in sides.get(name, {}).values()] for name in names)
            if len(a) < 2 or len(a) != len(b):
                continue
            difference, low, high = compare(a, b, pairs=bool(how))
            means = [f"{statistics.mean(x):.3f} ± {statistics.stdev(x):.3f} %" for x in (a, b)]
            interval = f"{difference:+.3f} [{low:+.3f}, {high:+.3f}]"
            lines.append(f"| `{recipe}` | {len(a)}{how} | {means[0]} | {means[1]} | {interval} |")
    return "\n".join(lines)


def main() -> None:
    """Do the missing runs, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="+", choices=("baseline", "tiny", "deep", "dropout", "mlp"))
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--paired", action="store_true", help="both from the same weights, in double precision")
    parser.add_argument("--data-root", default="data")
    parser.add_argument("--output", type=Path, default=Path("keras_seeds.json"))
    options = parser.parse_args()
    from mnist_cnn.data import datasets

    data_root = os.path.abspath(options.data_root)
    datasets.fetch("mnist", data_root, os.environ.get("MNIST_MIRROR"))
    results: dict[str, Any] = json.loads(options.output.read_text()) if options.output.exists() else {}
    for recipe in options.recipes:
        done = results.setdefault(recipe, {})
        names = ("paired ours", "paired keras") if options.paired else ("ours", "keras")
        for seed in map(str, range(options.seeds)):
            if all(seed in done.get(name, {}) for name in names):
                continue
            if options.paired:
                scores = paired(recipe, int(seed), data_root)
            else:
                scores = ours(recipe, int(seed), data_root), keras(recipe, int(seed), data_root)
            for name, score in zip(names, scores, strict=True):
                done.setdefault(name, {})[seed] = score
            options.output.write_text(json.dumps(results, indent=1))
            print(f"{recipe}, seed {seed}: {scores}", file=sys.stderr)
    print(table(results))


if __name__ == "__main__":
    main()
