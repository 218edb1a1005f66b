"""The five published networks and recipes in Keras, for tests and benchmarks to compare with.

Importing this module selects Keras' torch backend on the CPU, unless Keras is already imported with another one.
`pip install -e '.[dev]'` installs Keras.
"""

import os
from collections.abc import Callable
from typing import NamedTuple

os.environ["KERAS_BACKEND"] = "torch"
os.environ["KERAS_TORCH_DEVICE"] = "cpu"

import keras
from keras import layers

__all__ = ["NETWORKS", "RECIPES", "Recipe", "compiled", "keras"]


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
