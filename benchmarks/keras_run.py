"""Trains one of the five published recipes in Keras on TensorFlow; `benchmarks/recipes.py --keras` starts it.

    python benchmarks/keras_run.py baseline 0 runs/recipes/keras/baseline/0 --data-root data

Writes FOLDER/metrics.json with what the table of recipes needs of a run.
"""

import argparse
import json
import os
import sys
from pathlib import Path

os.environ["KERAS_BACKEND"] = "tensorflow"  # which must be imported first, and makes keras_recipes use it
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
from keras_recipes import RECIPES, trained

from mnist_cnn.files import write_file


def main() -> int:
    """Train, test, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", choices=RECIPES)
    parser.add_argument("seed", type=int)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data-root", default="data")
    options = parser.parse_args()
    figures = trained(options.recipe, options.seed, options.data_root)
    metrics = {
        "seed": options.seed, "interrupted": False, "accelerator": "cpu", "fit_seconds": round(figures["seconds"], 3),
        "parameters": figures["parameters"], "epochs": RECIPES[options.recipe].epochs,
        "val/accuracy": figures["val"], "test/accuracy": figures["accuracy"], "test/loss": figures["loss"],
        "versions": {"keras": keras.__version__, "backend": keras.backend.backend()},
    }  # fmt: skip
    options.folder.mkdir(parents=True, exist_ok=True)
    write_file(options.folder / "metrics.json", (json.dumps(metrics, indent=1) + "\n").encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
