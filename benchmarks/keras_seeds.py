"""Do our recipes reach what Keras' reach? The same recipe over seeds in both, and the difference of mean test accuracy.

    taskset -c 0 python benchmarks/keras_seeds.py tiny mlp --seeds 10 --output keras_seeds.json

Keras runs on its torch backend. With --paired it starts from the same weights as ours and sees the images in the same
order, so that far fewer seeds tell as much. In both, the kept epoch is the one that is best on validation images. A run
that the output file already holds is not made again.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
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


def keras(recipe: str, seed: int, data_root: str, paired: bool = False) -> Scores:
    """The same recipe by Keras' own `fit`, with the best epoch's weights restored.

    `paired`: from the initial weights that ours has with this seed, and with its order of the images.
    """
    from keras_recipes import RECIPES, compiled
    from keras_recipes import keras as k

    from mnist_cnn import datasets

    k.utils.set_random_seed(seed)
    mnist = datasets.load("mnist", data_root)
    images = {part: _scaled(getattr(mnist, part).images) for part in ("train", "test")}
    labels = mnist.train.labels.numpy()
    network, settings = compiled(recipe), RECIPES[recipe]
    mode = "min" if settings.monitor.endswith("loss") else "max"
    keep_best = k.callbacks.EarlyStopping(settings.monitor, mode=mode, patience=30, restore_best_weights=True)
    how: dict[str, Any] = {"epochs": settings.epochs, "callbacks": [keep_best], "verbose": 0}
    if paired:
        kept = math.floor(len(labels) * (1 - settings.val_fraction))
        validation = (images["train"][kept:], labels[kept:])
        batches = _ours_of(recipe, seed, data_root, network, images["train"], labels, settings.batch_size)
        network.fit(batches, validation_data=validation, shuffle=False, **how)
    else:
        how |= {"batch_size": settings.batch_size, "validation_split": settings.val_fraction}
        network.fit(images["train"], labels, **how)
    scores = network.evaluate(images["test"], mnist.test.labels.numpy(), batch_size=1000, verbose=0, return_dict=True)
    best = keep_best.best_epoch
    return {**scores, "val": network.history.history["val_accuracy"][best]}


def _scaled(images: Any) -> Any:
    """(N, H, W, C) in [0, 1], as the published projects prepare them."""
    return (images.permute(0, 2, 3, 1).numpy() / 255.0).astype("float32")


def _ours_of(recipe: str, seed: int, data_root: str, network: Any, images: Any, labels: Any, batch_size: int) -> Any:
    """Give Keras' network the initial weights of our run, and return that run's batches, epoch by epoch."""
    import torch
    from hydra import compose, initialize_config_dir
    from keras_recipes import keras as k
    from keras_steps import layout_of
    from lightning.pytorch import seed_everything

    from mnist_cnn.config import typed
    from mnist_cnn.data import MNISTDataModule
    from mnist_cnn.network import build_network

    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        composed = [f"experiment={recipe}", f"seed={seed}", "data.name=mnist", f"data.root={data_root}"]
        config = typed(compose("config", composed))
    seed_everything(seed, verbose=False)
    ours = build_network(config.model.layers, (1, 28, 28), 10)
    state = ours.state_dict()
    with torch.no_grad():
        for variable, weight in zip(layout_of(ours), network.weights, strict=True):
            weight.assign(variable.to_keras(state[variable.key]))
    data = MNISTDataModule(config.data, seed)
    data.setup()
    sampler: Any = data.train_dataloader().sampler

    class Batches(k.utils.PyDataset):  # type: ignore[misc]  # Keras has no types
        epoch = 0

        def __init__(self) -> None:
            super().__init__()
            self.order = list(sampler)

        def __len__(self) -> int:
            return math.ceil(len(self.order) / batch_size)

        def __getitem__(self, index: int) -> Any:
            chosen = self.order[index * batch_size : (index + 1) * batch_size]
            return images[chosen], labels[chosen]

        def on_epoch_end(self) -> None:
            self.epoch += 1
            sampler.set_epoch(self.epoch)
            self.order = list(sampler)

    return Batches()


def compare(ours: Sequence[float], keras: Sequence[float], paired: bool = False) -> tuple[float, float, float]:
    """The difference of means, ours − Keras', and its 95 % interval by Student's t: Welch's, or that of pairs."""
    test = stats.ttest_rel(ours, keras) if paired else stats.ttest_ind(ours, keras, equal_var=False)
    interval = test.confidence_interval(0.95)
    return statistics.mean(ours) - statistics.mean(keras), float(interval.low), float(interval.high)


def table(results: dict[str, dict[str, dict[str, Scores]]]) -> str:
    """A Markdown table: mean ± standard deviation over seeds."""
    lines = ["| recipe | seeds | ours | Keras | difference, 95 % interval |", "|---|---|---|---|---|"]
    for recipe, theirs in [(recipe, side) for recipe in results for side in ("keras", "paired")]:
        sides = [results[recipe].get(side, {}) for side in ("ours", theirs)]
        both = sorted(set(sides[0]) & set(sides[1]), key=int)
        if len(both) < 2:
            continue
        a, b = ([100 * side[seed]["accuracy"] for seed in both] for side in sides)
        difference, low, high = compare(a, b, paired=theirs == "paired")
        means = [f"{statistics.mean(x):.3f} ± {statistics.stdev(x):.3f} %" for x in (a, b)]
        interval = f"{difference:+.3f} [{low:+.3f}, {high:+.3f}]"
        how = f"{len(both)}, the same weights and order" if theirs == "paired" else f"{len(both)}"
        lines.append(f"| `{recipe}` | {how} | {means[0]} | {means[1]} | {interval} |")
    return "\n".join(lines)


def main() -> None:
    """Make the runs that are missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="+", choices=("baseline", "tiny", "deep", "dropout", "mlp"))
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--paired", action="store_true", help="Keras starts from our weights, in our order of images")
    parser.add_argument("--data-root", default="data")
    parser.add_argument("--output", type=Path, default=Path("keras_seeds.json"))
    options = parser.parse_args()
    from mnist_cnn import datasets

    data_root = os.path.abspath(options.data_root)
    datasets.fetch("mnist", data_root, os.environ.get("MNIST_MIRROR"))
    results: dict[str, Any] = json.loads(options.output.read_text()) if options.output.exists() else {}
    theirs = "paired" if options.paired else "keras"
    sides: dict[str, Callable[..., Scores]] = {"ours": ours, theirs: partial(keras, paired=options.paired)}
    for recipe in options.recipes:
        for seed in range(options.seeds):
            for side in sides:
                done = results.setdefault(recipe, {}).setdefault(side, {})
                if str(seed) not in done:
                    done[str(seed)] = sides[side](recipe, seed, data_root)
                    options.output.write_text(json.dumps(results, indent=1))
                    print(f"{recipe} {side} seed {seed}: {done[str(seed)]}", file=sys.stderr)
    print(table(results))


if __name__ == "__main__":
    main()
