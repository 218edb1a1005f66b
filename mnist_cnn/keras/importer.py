"""Imports a Keras model from its file: reads it, converts its layers, loads its weights, and finds its input scale.

Neither Keras nor TensorFlow is needed, and nothing in the file is run.
"""

import re
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from mnist_cnn.data import datasets
from mnist_cnn.data.images import Images, Preprocessing
from mnist_cnn.errors import CheckpointError, ConfigError, KerasFileError, one_line
from mnist_cnn.inference.checkpoint import TrainedNetwork
from mnist_cnn.inference.evaluate import evaluate
from mnist_cnn.keras import file as keras_file
from mnist_cnn.keras.convert import Converted, convert
from mnist_cnn.keras.file import KerasFile
from mnist_cnn.keras.layer_list import SUFFIXES, as_model, read_list
from mnist_cnn.keras.load_weights import load_weights
from mnist_cnn.keras.model_config import KerasLayer, parse
from mnist_cnn.network import Network, build_network
from mnist_cnn.network.arguments import show


class Scaling(NamedTuple):
    """How images were scaled for a model: by a Preprocessing and, where that can't do it, by layers put before it."""

    preprocessing: Preprocessing
    layers: tuple[tuple[str, dict[str, Any]], ...] = ()


# The usual ways to scale MNIST, by the names of `--input-scale`.
SCALINGS = {
    "1/255": Scaling(Preprocessing()),
    "1": Scaling(Preprocessing(scale=1)),
    "mean-std": Scaling(Preprocessing((0.1307,), (0.3081,))),
    "1/127.5-1": Scaling(Preprocessing((0.5,), (0.5,))),
    # keras.utils.normalize(x, axis=1), from a widely read tutorial: each column of the image has length 1
    "normalize": Scaling(Preprocessing(), (("UnitNormalization", {"axis": 1}),)),
}

# The most values that a layer of a network for small images gives for one of them.
MAX_OUTPUT = 2**20
# Enough for digits and letters in both cases; a model with more outputs is not a classifier of characters.
MAX_CLASSES = 100

# What says which layers a model has: its configuration, or a list of layers of this project.
Architecture = KerasLayer | list[Any]


class Trial(NamedTuple):
    """A model's accuracy and loss under one scaling."""

    scaling: str
    accuracy: float
    loss: float


@dataclass(frozen=True)
class Imported:
    """A Keras model, ready to be saved. If there are `trials`, they decided the scaling, on `tried_on` images."""

    trained: TrainedNetwork
    scaling: str
    notes: list[str]
    trials: list[Trial] = field(default_factory=list)
    tried_on: int = 0

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        network = self.trained.network
        return {
            "model": self.trained.model,
            "layers": network.layers,
            "input_shape": list(network.input_shape),
            "outputs": network.output_shape[0],
            "parameters": network.parameter_count,
            "keras": self.trained.training["keras"],
            "input_scale": self.scaling,
            "trials": [trial._asdict() for trial in self.trials],
            "notes": self.notes,
        }

    def summary(self, guessed_on: str | None) -> str:
        """For people. `guessed_on` is the data set that the scaling was guessed on, None if it was given."""
        keras = self.trained.training["keras"]
        compiled = [keras[key] for key in ("optimizer", "loss") if key in keras]
        if "lr" in keras:
            compiled.insert(1, f"learning rate {keras['lr']:g}")
        made = f"{self.trained.model}, Keras {keras['version']}, "
        made += f"compiled with {', '.join(compiled)}" if compiled else "with no training configuration"
        lines = [made, "", self.trained.network.summary(), ""]
        if self.trials:
            images = f"{self.tried_on:,} training images of {guessed_on}"
            lines.append(f"input scale {self.scaling}, guessed on {images}; set another with --input-scale:")
            lines += [
                f"  {trial.scaling:<10} {trial.accuracy:6.1%} right, loss {trial.loss:.3g}" for trial in self.trials
            ]
        elif guessed_on:
            lines.append(f"input scale {self.scaling}, the usual one; set another with --input-scale")
        else:
            lines.append(f"input scale {self.scaling}")
        return "\n".join([*lines, *self.notes])


def images_to_guess_on(root: str) -> tuple[str, Images]:
    """The images that `import_model` guesses the scaling on, and what they are called: MNIST, or the part that is here.

    `root` is the folder of all data sets.
    """
    known = datasets.load("auto", root)
    return known.name, Images(known.train.images[:1000], known.train.labels[:1000])


def import_model(
    path: Path, architecture: Path | None = None, scaling: str | None = None, images: Images | None = None
) -> Imported:
    """Import a `.keras` or HDF5 file. Without a `scaling`, the one that suits the model best on `images` is taken.

    `architecture` is the JSON of a model, or a YAML file with a list of layers; it goes before what the file says.
    KerasFileError names the file, the layer and what is not supported.
    """
    layers = read_list(architecture) if architecture and architecture.suffix in SUFFIXES else None
    file = keras_file.read(path, architecture, weights_only=layers is not None)
    try:
        model = parse(file.config) if layers is None else layers
        if scaling is not None:
            return _import(file, model, scaling)
        assert images is not None, "without a scaling, images are needed to guess it"
        return _guess(file, model, images)
    except ConfigError as error:
        raise KerasFileError(f"{path}: {error}") from error


def _guess(file: KerasFile, model: Architecture, images: Images) -> Imported:
    candidates = [_import(file, model, scaling) for scaling in SCALINGS]
    if candidates[0].trained.network.input_shape[0] != images.images.shape[1]:
        return candidates[0]
    trials = []
    for candidate in candidates:
        with suppress(CheckpointError):  # its outputs are not finite under this scaling
            result = evaluate(candidate.trained, images, "", "")
            trials.append(Trial(candidate.scaling, result.accuracy, result.loss))
    if not trials:
        raise ConfigError("its outputs are not finite numbers, however images are scaled; its weights are too large.")
    # Many networks are about as accurate under every scaling, so another one must do clearly better than 1/255, by far
    # the most usual. The loss tells more than the accuracy: a network trained on pixels up to 1 is far too confident on
    # pixels up to 255, and one trained on pixels up to 255 far from confident on pixels up to 1.
    usual = trials[0]
    others = [trial for trial in trials[1:] if trial.accuracy > usual.accuracy and trial.loss < 0.7 * usual.loss]
    best = min([usual, *others], key=lambda trial: trial.loss)
    (chosen,) = (candidate for candidate in candidates if candidate.scaling == best.scaling)
    return replace(chosen, trials=trials, tried_on=len(images))


def _import(file: KerasFile, architecture: Architecture, scaling: str) -> Imported:
    chosen = SCALINGS[scaling]
    if isinstance(architecture, KerasLayer):
        model, converted = architecture, convert(architecture, file.keras_major, chosen.layers)
    else:
        model, converted = as_model(architecture, chosen.layers)
    notes = [*converted.notes]
    network = _built(converted)
    if network.largest_output > MAX_OUTPUT:
        raise ConfigError(f"one of its layers gives {network.largest_output:,} values, more than any small network's.")
    if len(network.output_shape) != 1 or not 10 <= network.output_shape[0] <= MAX_CLASSES:
        raise ConfigError(
            f"the model gives {show(network.output_shape)} values, not one for each of ten digits or more classes."
        )
    load_weights(file, model, converted, network)
    channels, *size = converted.image_shape
    usual = size == [28, 28] or channels == 3
    if not usual:
        notes.append(f"it takes images of {show(tuple(size))}; MNIST's are padded or resampled to that size")
    preprocessing = replace(chosen.preprocessing, size=None if usual else (size[0], size[1]))
    trained = TrainedNetwork(
        network.eval().requires_grad_(False),
        preprocessing,
        classes=tuple(map(str, range(network.output_shape[0]))),
        model=one_line(file.path.stem, 100),
        dataset="mnist" if channels == 1 else "cifar10",
        split={},
        training={
            "keras": {
                "file": one_line(file.path.name, 200),
                "version": one_line(file.version, 40),
                "input_shape": list(converted.keras_shape),
                **_compiled(file.training),
            }
        },
        versions={},
        epoch=0,
    )
    return Imported(trained, scaling, notes)


def _built(converted: Converted) -> Network:
    try:
        with torch.device("meta"):  # shapes only: the weights come from the file
            return build_network(converted.layers, converted.image_shape)
    except ConfigError as error:  # it names the layer by its position in the list
        named = re.sub(r"^layer (\d+) \(\w+\)", lambda found: converted.origins[int(found[1])], str(error))
        raise ConfigError(named) from None


def _compiled(training: dict[str, Any]) -> dict[str, Any]:
    """Optimizer, learning rate and loss, as far as the file has them."""
    optimizer = training.get("optimizer_config", training.get("optimizer"))
    loss, found = training.get("loss"), {}
    if isinstance(optimizer, dict):
        settings = optimizer.get("config")
        rate = settings.get("learning_rate", settings.get("lr")) if isinstance(settings, dict) else None
        if isinstance(rate, int | float) and 0 <= rate < 1e30:  # not NaN
            found["lr"] = float(rate)
        optimizer = optimizer.get("class_name")
    if isinstance(loss, dict):
        loss = loss.get("class_name") or loss.get("config")
    named = {"optimizer": optimizer, "loss": loss}
    return {**{key: one_line(value, 100) for key, value in named.items() if value and isinstance(value, str)}, **found}
