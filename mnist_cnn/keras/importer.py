"""How does somebody's Keras model become a checkpoint of ours? Read, put in our words, and filled with its weights.

Neither Keras nor TensorFlow is needed, and nothing in the file is run.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from mnist_cnn.data.images import Images, Preprocessing
from mnist_cnn.errors import ConfigError, KerasFileError, one_line
from mnist_cnn.inference.checkpoint import TrainedNetwork
from mnist_cnn.inference.evaluate import evaluate
from mnist_cnn.keras import file as keras_file
from mnist_cnn.keras.config import CONTAINERS, KerasLayer, parse, snake_case
from mnist_cnn.keras.convert import Converted, convert
from mnist_cnn.keras.file import Array, KerasFile
from mnist_cnn.keras.weights import Variable, variables
from mnist_cnn.network import Network, build_network
from mnist_cnn.network.arguments import show


class Scaling(NamedTuple):
    """How pictures were scaled before a model saw them: by us, and where that is not enough, by layers of its own."""

    preprocessing: Preprocessing
    layers: tuple[tuple[str, dict[str, Any]], ...] = ()


# The ways that people scale MNIST, by the names of `--input-scale`.
SCALINGS = {
    "1/255": Scaling(Preprocessing()),
    "1": Scaling(Preprocessing(scale=1)),
    "mean-std": Scaling(Preprocessing((0.1307,), (0.3081,))),
    "1/127.5-1": Scaling(Preprocessing((0.5,), (0.5,))),
    # keras.utils.normalize(x, axis=1), as a widely read tutorial has it: each column of the picture to length 1
    "normalize": Scaling(Preprocessing(), (("UnitNormalization", {"axis": 1}),)),
}


# No layer of a network for small pictures gives more values for one of them.
MAX_OUTPUT = 2**20
# Digits, letters in both cases, and some to spare; more is not the output of a classifier.
MAX_CLASSES = 100


class Trial(NamedTuple):
    """How well a model does on some images under one scaling."""

    scaling: str
    accuracy: float
    loss: float


@dataclass(frozen=True)
class Imported:
    """A Keras model, ready to be saved. The scaling was guessed by `trials` on `tried_on` images, if there are any."""

    trained: TrainedNetwork
    scaling: str
    notes: list[str]
    trials: list[Trial] = field(default_factory=list)
    tried_on: int = 0

    def to_dict(self) -> dict[str, Any]:
        """As primitives, for JSON."""
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
        """For people; `guessed_on` is the data set whose images the scaling was guessed on."""
        keras = self.trained.training["keras"]
        compiled = [keras[key] for key in ("optimizer", "loss") if key in keras]
        if "lr" in keras:
            compiled.insert(1, f"learning rate {keras['lr']:g}")
        made = f"{self.trained.model}, Keras {keras['version']}, "
        made += f"compiled with {', '.join(compiled)}" if compiled else "with no training configuration"
        lines = [made, "", self.trained.network.summary(), ""]
        if self.trials:
            images = f"{self.tried_on:,} training images of {guessed_on}"
            lines.append(f"input scale {self.scaling}, guessed by {images}; --input-scale decides:")
            lines += [
                f"  {trial.scaling:<10} {trial.accuracy:6.1%} right, loss {trial.loss:.3g}" for trial in self.trials
            ]
        elif guessed_on:
            lines.append(f"input scale {self.scaling}, the usual one; --input-scale decides")
        else:
            lines.append(f"input scale {self.scaling}")
        return "\n".join([*lines, *self.notes])


def import_model(
    path: Path, architecture: Path | None = None, scaling: str | None = None, images: Images | None = None
) -> Imported:
    """Read a `.keras` or HDF5 file. Without a `scaling`, the one under which the model does best on `images` is taken.

    KerasFileError says, with the file and the layer, what can't be brought over.
    """
    file = keras_file.read(path, architecture)
    try:
        model = parse(file.config)
        if scaling is not None:
            return _under(file, model, scaling)
        assert images is not None, "images are needed for a guess"
        return _guess(file, model, images)
    except ConfigError as error:
        raise KerasFileError(f"{path}: {error}") from error


def _guess(file: KerasFile, model: KerasLayer, images: Images) -> Imported:
    candidates = [_under(file, model, scaling) for scaling in SCALINGS]
    if candidates[0].trained.network.input_shape[0] != images.images.shape[1]:
        return candidates[0]
    trials = []
    for candidate in candidates:
        result = evaluate(candidate.trained, images, "", "")
        trials.append(Trial(candidate.scaling, result.accuracy, result.loss))
    # Many networks are about as often right whatever the scale, so 1/255, by far the most usual one, needs more than
    # chance against it. The loss tells more than the accuracy: pixels up to 255 where they were up to 1 make a network
    # far too sure of itself, and the other way round unsure.
    usual = trials[0]
    others = [trial for trial in trials[1:] if trial.accuracy > usual.accuracy and trial.loss < 0.7 * usual.loss]
    best = min([usual, *others], key=lambda trial: trial.loss)
    chosen = candidates[trials.index(best)]
    return replace(chosen, trials=trials, tried_on=len(images))


def _under(file: KerasFile, model: KerasLayer, scaling: str) -> Imported:
    chosen = SCALINGS[scaling]
    converted = convert(model, file.keras, chosen.layers)
    notes = [*converted.notes]
    network = _built(converted)
    if network.largest_output > MAX_OUTPUT:
        raise ConfigError(f"a layer of it gives {network.largest_output:,} values, more than any small network's.")
    if len(network.output_shape) != 1 or not 10 <= network.output_shape[0] <= MAX_CLASSES:
        raise ConfigError(f"the model gives {show(network.output_shape)} values, not one for each of ten digits or so.")
    _fill(file, model, converted, network)
    channels, *size = converted.image_shape
    usual = size == [28, 28] or channels == 3
    if not usual:
        notes.append(f"it takes pictures of {show(tuple(size))}; MNIST's are brought to that size")
    preprocessing = replace(chosen.preprocessing, size=None if usual else (size[0], size[1]))
    trained = TrainedNetwork(
        network.eval().requires_grad_(False),
        preprocessing,
        classes=tuple(map(str, range(network.output_shape[0]))),
        model=file.path.stem,
        dataset="mnist" if channels == 1 else "cifar10",
        split={},
        training={
            "keras": {
                "file": file.path.name,
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
        with torch.device("meta"):  # shapes only, so that no more memory is taken than the file has weights
            return build_network(converted.layers, converted.image_shape)
    except ConfigError as error:  # it names the layer by its place in our list
        named = re.sub(r"^layer (\d+) \(\w+\)", lambda found: converted.origins[int(found[1])], str(error))
        raise ConfigError(named) from None


# --- weights ---------------------------------------------------------------------------------------------------------


def _fill(file: KerasFile, model: KerasLayer, converted: Converted, network: Network) -> None:
    """Put the file's weights into the network; every one of the network's has to be there."""
    empty, state = network.state_dict(), {}
    for layer, variable, value in _matched(file, model, converted, network):
        if value.shape != variable.shape:
            shapes = f"{show(value.shape) or 'a number'} in the file, {show(variable.shape)} by its configuration"
            raise ConfigError(f"{layer}: its {variable.name} is {shapes}.")
        if not np.isfinite(value).all():
            raise ConfigError(f"{layer}: its {variable.name} holds values that are no numbers.")
        tensor = torch.from_numpy(value.copy())
        state[variable.key] = variable.to_torch(tensor, empty[variable.key])
    network.load_state_dict(state, strict=True, assign=True)


def _matched(
    file: KerasFile, model: KerasLayer, converted: Converted, network: Network
) -> Iterator[tuple[KerasLayer, Variable, Array]]:
    def wanted(layer: KerasLayer) -> list[Variable]:
        place = converted.places.get(id(layer))
        return [] if place is None else list(variables(network, place))

    if file.by_layer is None:
        yield from _by_path(file, model, "", wanted)
    else:
        yield from _by_order(file, model, wanted)


def _by_order(file: KerasFile, model: KerasLayer, wanted: Any) -> Iterator[tuple[KerasLayer, Variable, Array]]:
    """As Keras itself reads Keras 1's and 2's files: layer by layer in order, whatever they are called."""
    assert file.by_layer is not None
    stored = [(name, arrays) for name, arrays in file.by_layer if arrays]
    with_weights = []
    for layer in model.layers:
        pairs = [(leaf, variable) for leaf in layer.leaves() for variable in wanted(leaf)]
        if layer.kind in CONTAINERS:  # a model in the model has those that are trained first
            pairs.sort(key=lambda pair: not (pair[1].trainable and pair[0].config.get("trainable", True)))
        if pairs:
            with_weights.append((layer, pairs))
    if len(stored) != len(with_weights):
        raise ConfigError(f"{len(with_weights)} of its layers have weights, but the file has those of {len(stored)}.")
    for (name, arrays), (layer, pairs) in zip(stored, with_weights, strict=True):
        if file.keras == 1 and len(arrays) == 12 and layer.kind == "LSTM":
            # Keras 1 kept the gates apart, in the order i, c, f, o, each with kernel, recurrent kernel and bias.
            arrays = [np.concatenate([arrays[i + gate] for gate in (0, 6, 3, 9)], axis=-1) for i in range(3)]
        if len(arrays) != len(pairs):
            raise ConfigError(f"{layer}: it has {len(pairs)} weights, but the file has {len(arrays)} for it ({name}).")
        for (leaf, variable), value in zip(pairs, arrays, strict=True):
            yield leaf, variable, _older(file, leaf, variable, value)


def _older(file: KerasFile, layer: KerasLayer, variable: Variable, value: Array) -> Array:
    """Two habits of old files: Keras 1's order of a kernel's axes, and Theano's convolution, which turns it over."""
    if layer.kind != "Conv2D" or variable.name != "kernel" or value.ndim != 4:
        return value
    if file.keras == 1 and layer.config.get("dim_ordering") == "th":
        value = value.transpose(2, 3, 1, 0)
    return value[::-1, ::-1] if file.backend == "theano" else value


def _by_path(
    file: KerasFile, model: KerasLayer, parent: str, wanted: Any
) -> Iterator[tuple[KerasLayer, Variable, Array]]:
    """As `.keras` files have them: under the layer's class, numbered by its order among those of its class."""
    numbers: dict[str, int] = {}
    for layer in model.layers:
        kind = snake_case(layer.kind)
        number = numbers.get(kind, 0)
        numbers[kind] = number + 1
        names = [f"{kind}_{number}" if number else kind, layer.name]
        if layer.kind in CONTAINERS:
            inside = [f"{place}/{name}/" for place in _places(file, parent) for name in names]
            present = [path for path in inside if any(key.startswith(path) for key in file.by_path)]
            if present or any(wanted(leaf) for leaf in layer.leaves()):
                yield from _by_path(file, layer, (present or inside or [""])[0], wanted)
            continue
        expected = wanted(layer)
        if not expected:
            continue
        for path in (f"{place}/{name}/" for name in names for place in _places(file, parent)):
            found = sorted(key for key in file.by_path if key.startswith(path))
            if len(found) == len(expected):
                for variable, key in zip(expected, found, strict=True):
                    yield layer, variable, file.by_path[key]
                break
        else:
            raise ConfigError(f"{layer}: its {len(expected)} weights are not in the file, or not as real numbers.")


def _places(file: KerasFile, parent: str) -> list[str]:
    """The groups that hold layers: `layers` now, other names in Keras 2.12 to 2.14."""
    return sorted({f"{parent}{key[len(parent) :].split('/')[0]}" for key in file.by_path if key.startswith(parent)})


def _compiled(training: dict[str, Any]) -> dict[str, Any]:
    """Optimizer, learning rate and loss as texts and numbers, as far as the file says."""
    optimizer = training.get("optimizer_config", training.get("optimizer"))
    loss, found = training.get("loss"), {}
    if isinstance(optimizer, dict):
        settings = optimizer.get("config")
        rate = settings.get("learning_rate", settings.get("lr")) if isinstance(settings, dict) else None
        if isinstance(rate, int | float):
            found["lr"] = float(rate)
        optimizer = optimizer.get("class_name")
    if isinstance(loss, dict):
        loss = loss.get("class_name") or loss.get("config")
    named = {"optimizer": optimizer, "loss": loss}
    return {**{key: one_line(value, 100) for key, value in named.items() if isinstance(value, str)}, **found}
