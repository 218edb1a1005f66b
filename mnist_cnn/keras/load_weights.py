"""Finds the weights of a model in its Keras file, and puts them into the network."""

from collections.abc import Callable, Iterator

import numpy as np
import torch

from mnist_cnn.errors import ConfigError
from mnist_cnn.keras.convert import Converted
from mnist_cnn.keras.file import Array, KerasFile, shapes
from mnist_cnn.keras.model_config import CONTAINERS, KerasLayer, snake_case
from mnist_cnn.keras.weights import Variable, variables
from mnist_cnn.network import Network
from mnist_cnn.network.arguments import show

Found = Iterator[tuple[KerasLayer, Variable, Array]]
VariablesOf = Callable[[KerasLayer], list[Variable]]


def load_weights(file: KerasFile, model: KerasLayer, converted: Converted, network: Network) -> None:
    """Load every weight of the network that `model` became; ConfigError names a layer whose weights don't fit."""

    def variables_of(layer: KerasLayer) -> list[Variable]:
        position = converted.positions.get(id(layer))
        return [] if position is None else list(variables(network, position))

    in_order = file.by_layer is not None
    found = _by_order(file, model, variables_of) if in_order else _by_path(file, model, "", variables_of)
    empty, state = network.state_dict(), {}
    for layer, variable, value in found:
        if value.shape != variable.shape:
            shapes = f"{show(value.shape) or 'a number'} in the file, {show(variable.shape)} by its configuration"
            raise ConfigError(f"{layer}: its {variable.name} is {shapes}.")
        if not np.isfinite(value).all():
            raise ConfigError(f"{layer}: its {variable.name} holds values that are not finite numbers.")
        tensor = torch.from_numpy(value.copy())
        state[variable.key] = variable.to_torch(tensor, empty[variable.key])
    network.load_state_dict(state, strict=True, assign=True)


def _by_order(file: KerasFile, model: KerasLayer, variables_of: VariablesOf) -> Found:
    """In HDF5 files: layer by layer in order, whatever their names are, as Keras itself reads them."""
    assert file.by_layer is not None
    stored = [(name, arrays) for name, arrays in file.by_layer if arrays]
    with_weights = []
    for layer in model.layers:
        pairs = [(leaf, variable) for leaf in layer.leaves() for variable in variables_of(leaf)]
        if layer.kind in CONTAINERS:  # the weights of a model in the model: the trained ones first
            pairs.sort(key=lambda pair: not (pair[1].trainable and pair[0].config.get("trainable", True)))
        if pairs:
            with_weights.append((layer, pairs))
    if len(stored) != len(with_weights):
        raise ConfigError(
            f"{len(with_weights)} of its layers have weights, but the file has weights for {len(stored)}: "
            f"{shapes(file.by_layer, file.by_path)}."
        )
    for (name, arrays), (layer, pairs) in zip(stored, with_weights, strict=True):
        if file.keras_major == 1 and len(arrays) == 12 and layer.kind == "LSTM":
            # Keras 1 has the gates apart, in the order i, c, f, o, each with kernel, recurrent kernel and bias.
            arrays = [np.concatenate([arrays[i + gate] for gate in (0, 6, 3, 9)], axis=-1) for i in range(3)]
        if len(arrays) != len(pairs):
            raise ConfigError(f"{layer}: it has {len(pairs)} weights, but the file has {len(arrays)} for it ({name}).")
        for (leaf, variable), value in zip(pairs, arrays, strict=True):
            yield leaf, variable, _modern(file, leaf, variable, value)


def _modern(file: KerasFile, layer: KerasLayer, variable: Variable, value: Array) -> Array:
    """Undo Keras 1's order of a kernel's axes, and flip the kernels of Theano, which computes true convolutions."""
    if layer.kind != "Conv2D" or variable.name != "kernel" or value.ndim != 4:
        return value
    if file.keras_major == 1 and layer.config.get("dim_ordering") == "th":
        value = value.transpose(2, 3, 1, 0)
    return value[::-1, ::-1] if file.backend == "theano" else value


def _by_path(file: KerasFile, model: KerasLayer, parent: str, variables_of: VariablesOf) -> Found:
    """In `.keras` files: under the layer's class and its number among the layers of that class, or under its name."""
    numbers: dict[str, int] = {}
    for layer in model.layers:
        kind = snake_case(layer.kind)
        number = numbers.get(kind, 0)
        numbers[kind] = number + 1
        names = [f"{kind}_{number}" if number else kind, layer.name]
        if layer.kind in CONTAINERS:
            inside = [f"{group}/{name}/" for group in _groups(file, parent) for name in names]
            present = [path for path in inside if any(key.startswith(path) for key in file.by_path)]
            if present or any(variables_of(leaf) for leaf in layer.leaves()):
                yield from _by_path(file, layer, (present or inside or [""])[0], variables_of)
            continue
        expected = variables_of(layer)
        if not expected:
            continue
        for path in (f"{group}/{name}/" for name in names for group in _groups(file, parent)):
            found = sorted(key for key in file.by_path if key.startswith(path))
            if len(found) == len(expected):
                for variable, key in zip(expected, found, strict=True):
                    yield layer, variable, file.by_path[key]
                break
        else:
            raise ConfigError(
                f"{layer}: its {len(expected)} weights are not in the file, or not as real numbers. The file has "
                f"{shapes(file.by_layer, file.by_path)}."
            )


def _groups(file: KerasFile, parent: str) -> list[str]:
    """The groups that may hold layers: `layers` today, others in Keras 2.12 to 2.14."""
    return sorted({f"{parent}{key[len(parent) :].split('/')[0]}" for key in file.by_path if key.startswith(parent)})
