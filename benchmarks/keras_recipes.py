"""The five published networks and recipes in Keras, for tests and benchmarks to compare with.

Importing this module selects Keras' torch backend on the CPU, unless Keras is already imported with another one.
`pip install -e '.[dev]'` installs Keras.
"""

import os
import time
from collections.abc import Callable
from typing import NamedTuple

os.environ["KERAS_BACKEND"] = "torch"
os.environ["KERAS_TORCH_DEVICE"] = "cpu"

import keras
from keras import layers

from mnist_cnn.data import datasets

__all__ = ["NETWORKS", "RECIPES", "Recipe", "compiled", "keras", "trained"]


class Recipe(NamedTuple):
    """A published training recipe; the epoch with the best `monitor` is kept."""

    batch_size: int
    epochs: int
    val_fraction: float
    monitor: str = "val_accuracy"


def _baseline() -> list[keras.Layer]:
    return [
        layers.Conv2D(32, 3, activation="relu"),
        layers.MaxPooling2D(2),
        layers.Conv2D(64, 3, activation="relu"),
        layers.MaxPooling2D(2),
        layers.Flatten(),
        layers.Dense(128, activation="relu"),
        layers.Dense(10),
    ]


def _tiny() -> list[keras.Layer]:
    return [
        layers.Conv2D(8, 4, padding="same", activation="relu"),
        layers.MaxPooling2D(2),
        layers.Conv2D(16, 4, activation="relu"),
        layers.MaxPooling2D(2),
        layers.Flatten(),
        layers.Dense(10, activation="relu"),
        layers.Dense(10),
    ]


def _deep() -> list[keras.Layer]:
    return [
        layers.Conv2D(32, 3, activation="relu"),
        layers.MaxPooling2D(2),
        layers.Conv2D(64, 3, activation="relu"),
        layers.MaxPooling2D(2),
        layers.Conv2D(64, 3, activation="relu"),
        layers.Flatten(),
        layers.Dense(64, activation="relu"),
        layers.Dense(10),
    ]


def _dropout() -> list[keras.Layer]:
    return [
        layers.Conv2D(32, 3, activation="relu"),
        layers.Conv2D(64, 3, activation="relu"),
        layers.MaxPooling2D(2),
        layers.Dropout(0.25),
        layers.Flatten(),
        layers.Dense(128, activation="relu"),
        layers.Dropout(0.5),
        layers.Dense(10),
    ]


def _mlp() -> list[keras.Layer]:
    return [
        layers.Flatten(),
        layers.Dense(50, activation="relu"),
        layers.Dense(50, activation="relu"),
        layers.Dense(10),
    ]


NETWORKS: dict[str, Callable[[], list[keras.Layer]]] = {
    "baseline": _baseline,
    "tiny": _tiny,
    "deep": _deep,
    "dropout": _dropout,
    "mlp": _mlp,
}

RECIPES = {
    "baseline": Recipe(128, 12, 0.1),
    "tiny": Recipe(32, 5, 0.3, "val_loss"),
    "deep": Recipe(64, 5, 0.2),
    "dropout": Recipe(128, 12, 0.1),
    "mlp": Recipe(32, 10, 0.1),
}


def compiled(name: str) -> keras.Sequential:
    """A network with fresh weights and Keras' own Adam.

    It ends in logits instead of a softmax: Keras' TensorFlow backend, which the published figures come from, recovers
    the logits of a softmax for the loss, while its torch backend would clip the probabilities instead.
    """
    network = keras.Sequential([keras.Input((28, 28, 1)), *NETWORKS[name]()], name=name)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    network.compile(optimizer="adam", loss=loss, metrics=["accuracy"])
    return network


def trained(name: str, seed: int, data_root: str) -> dict[str, float]:
    """Train a recipe by Keras' `fit`; what its best epoch reaches on the test images (accuracy, loss) and validation.

    `seconds` are those of `fit`, validation and the compilation of the graph included.
    """
    keras.utils.set_random_seed(seed)
    mnist = datasets.load("mnist", data_root)
    train, test = (
        (part.images.permute(0, 2, 3, 1).numpy() / 255.0).astype("float32") for part in (mnist.train, mnist.test)
    )
    network, recipe = compiled(name), RECIPES[name]
    mode = "min" if recipe.monitor.endswith("loss") else "max"
    keep_best = keras.callbacks.EarlyStopping(
        recipe.monitor, mode=mode, patience=recipe.epochs, restore_best_weights=True
    )
    started = time.perf_counter()
    network.fit(
        train, mnist.train.labels.numpy(),
        batch_size=recipe.batch_size, epochs=recipe.epochs, validation_split=recipe.val_fraction,
        callbacks=[keep_best], verbose=0,
    )  # fmt: skip
    seconds = time.perf_counter() - started
    scores = network.evaluate(test, mnist.test.labels.numpy(), batch_size=1000, verbose=0, return_dict=True)
    val = network.history.history["val_accuracy"][keep_best.best_epoch]
    return {**scores, "val": val, "seconds": seconds, "parameters": network.count_params()}
