"""Trains one of the five published recipes in Keras on TensorFlow; `benchmarks/recipes.py --keras` starts it.

    python benchmarks/keras_run.py baseline 0 runs/recipes/keras/baseline/0 --data-root data

Writes FOLDER/metrics.json with what the table of recipes needs of a run. Seconds are those of `fit`, validation and the
compilation of the graph included.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

os.environ["KERAS_BACKEND"] = "tensorflow"  # which must be imported first, and makes keras_recipes use it
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
from keras_recipes import RECIPES, compiled

from mnist_cnn.data import datasets


def main() -> int:
    """Train, test the epoch that is best on validation images, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", choices=RECIPES)
    parser.add_argument("seed", type=int)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data-root", default="data")
    options = parser.parse_args()
    keras.utils.set_random_seed(options.seed)
    mnist = datasets.load("mnist", options.data_root)
    train, test = (
        (part.images.permute(0, 2, 3, 1).numpy() / 255.0).astype("float32") for part in (mnist.train, mnist.test)
    )
    network, recipe = compiled(options.recipe), RECIPES[options.recipe]
    keep_best = keras.callbacks.EarlyStopping(
        recipe.monitor, mode="min" if recipe.monitor.endswith("loss") else "max",
        patience=recipe.epochs, restore_best_weights=True,
    )  # fmt: skip
    started = time.perf_counter()
    fitted = network.fit(
        train, mnist.train.labels.numpy(),
        batch_size=recipe.batch_size, epochs=recipe.epochs, validation_split=recipe.val_fraction,
        callbacks=[keep_best], verbose=0,
    )  # fmt: skip
    seconds = time.perf_counter() - started
    scores = network.evaluate(test, mnist.test.labels.numpy(), batch_size=1000, verbose=0, return_dict=True)
    metrics = {
        "seed": options.seed, "interrupted": False, "accelerator": "cpu", "fit_seconds": round(seconds, 3),
        "parameters": network.count_params(), "epochs": len(fitted.epoch),
        "val/accuracy": fitted.history["val_accuracy"][keep_best.best_epoch],
        "test/accuracy": scores["accuracy"], "test/loss": scores["loss"],
        "versions": {"keras": keras.__version__, "backend": keras.backend.backend()},
    }  # fmt: skip
    options.folder.mkdir(parents=True, exist_ok=True)
    (options.folder / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
