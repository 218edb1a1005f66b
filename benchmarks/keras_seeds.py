"""Do our recipes reach what Keras' reach? The same recipe over seeds in both, and the difference of mean test accuracy.

    taskset -c 0 python benchmarks/keras_seeds.py tiny mlp --seeds 10 --output keras_seeds.json

Keras runs on its torch backend. In both, the kept epoch is the one that is best on validation images. A run that the
output file already holds is not made again.
"""

import argparse
import json
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
    """The same recipe by Keras' own `fit`, with the best epoch's weights restored."""
    from keras_recipes import RECIPES, compiled
    from keras_recipes import keras as k

    from mnist_cnn import datasets

    k.utils.set_random_seed(seed)
    mnist = datasets.load("mnist", data_root)
    train, test = (
        (part.images.permute(0, 2, 3, 1).numpy() / 255.0).astype("float32") for part in (mnist.train, mnist.test)
    )
    network, settings = compiled(recipe), RECIPES[recipe]
    mode = "min" if settings.monitor.endswith("loss") else "max"
    keep_best = k.callbacks.EarlyStopping(settings.monitor, mode=mode, patience=30, restore_best_weights=True)
    network.fit(
        train, mnist.train.labels.numpy(),
        batch_size=settings.batch_size, epochs=settings.epochs, validation_split=settings.val_fraction,
        callbacks=[keep_best], verbose=0,
    )  # fmt: skip
    scores = network.evaluate(test, mnist.test.labels.numpy(), batch_size=1000, verbose=0, return_dict=True)
    kept = max if mode == "max" else min
    history = network.history.history
    best = history[settings.monitor].index(kept(history[settings.monitor]))
    return {"accuracy": scores["accuracy"], "loss": scores["loss"], "val": history["val_accuracy"][best]}


def compare(ours: Sequence[float], keras: Sequence[float]) -> tuple[float, float, float]:
    """The difference of means, ours − Keras', and its 95 % interval (Welch's t)."""
    interval = stats.ttest_ind(ours, keras, equal_var=False).confidence_interval(0.95)
    return statistics.mean(ours) - statistics.mean(keras), float(interval.low), float(interval.high)


def table(results: dict[str, dict[str, dict[str, Scores]]]) -> str:
    """A Markdown table: mean ± standard deviation over seeds."""
    lines = ["| recipe | seeds | ours | Keras | difference, 95 % interval |", "|---|---:|---|---|---|"]
    for recipe, sides in results.items():
        a, b = ([100 * run["accuracy"] for run in sides.get(side, {}).values()] for side in ("ours", "keras"))
        if min(len(a), len(b)) < 2:
            continue
        difference, low, high = compare(a, b)
        means = [f"{statistics.mean(x):.3f} ± {statistics.stdev(x):.3f} %" for x in (a, b)]
        interval = f"{difference:+.3f} [{low:+.3f}, {high:+.3f}]"
        lines.append(f"| `{recipe}` | {len(a)}, {len(b)} | {means[0]} | {means[1]} | {interval} |")
    return "\n".join(lines)


def main() -> None:
    """Make the runs that are missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="+", choices=("baseline", "tiny", "deep", "dropout", "mlp"))
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--side", choices=("ours", "keras", "both"), default="both")
    parser.add_argument("--data-root", default="data")
    parser.add_argument("--output", type=Path, default=Path("keras_seeds.json"))
    options = parser.parse_args()
    from mnist_cnn import datasets

    data_root = os.path.abspath(options.data_root)
    datasets.fetch("mnist", data_root, os.environ.get("MNIST_MIRROR"))
    results: dict[str, Any] = json.loads(options.output.read_text()) if options.output.exists() else {}
    sides = {"ours": ours, "keras": keras}
    for recipe in options.recipes:
        for seed in range(options.seeds):
            for side in sides if options.side == "both" else [options.side]:
                done = results.setdefault(recipe, {}).setdefault(side, {})
                if str(seed) not in done:
                    done[str(seed)] = sides[side](recipe, seed, data_root)
                    options.output.write_text(json.dumps(results, indent=1))
                    print(f"{recipe} {side} seed {seed}: {done[str(seed)]}", file=sys.stderr)
    print(table(results))


if __name__ == "__main__":
    main()
