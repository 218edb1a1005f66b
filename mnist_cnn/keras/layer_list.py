"""Reads a list of this project's layers, such as a file of `conf/model`, for a Keras file that has only weights."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from mnist_cnn import plain_yaml
from mnist_cnn.data.sources import DIGITS
from mnist_cnn.errors import KerasFileError, flat, one_line
from mnist_cnn.files import read_regular
from mnist_cnn.keras.convert import Converted, Prepended
from mnist_cnn.keras.model_config import MAX_LAYERS, KerasLayer
from mnist_cnn.network import build_network
from mnist_cnn.network.arguments import Shape, keras_shape
from mnist_cnn.network.build import with_class_count

SUFFIXES = (".yaml", ".yml")

_IMAGE: Shape = (1, 28, 28)
_MAX_BYTES = 2**16
_SCALED = "scaled_input"  # the name of the layers that are put before the list


def read_list(path: Path) -> list[Any]:
    """The layers in a YAML file, under its key `layers`; KerasFileError if it can't be read or holds no such list.

    `classes`, as the files of conf/model say, are ten: a file of weights does not say how many its model has.
    """
    try:
        content = plain_yaml.load(read_regular(path, _MAX_BYTES).decode())
    except OSError as error:
        raise KerasFileError(f"{path}: it can't be read: {error.strerror}.") from error
    except Exception as error:  # PyYAML raises nearly anything for text that is not YAML
        raise KerasFileError(f"{path}: not a list of layers: {one_line(flat(error), 200)}.") from error
    layers = content.get("layers") if isinstance(content, Mapping) else content
    if not isinstance(layers, list) or not 0 < len(layers) <= MAX_LAYERS:
        raise KerasFileError(f"{path}: it has no list of layers under the key layers, as the files of conf/model have.")
    return with_class_count(layers, len(DIGITS))


def as_model(layers: Sequence[Any], prepended: Prepended = ()) -> tuple[KerasLayer, Converted]:
    """A list for grey images of 28×28, as if it had been converted from a Keras model: that model, and the result.

    `prepended` are layers to put before it. ConfigError names a layer that can't be built.
    """
    with torch.device("meta"):  # shapes only: the weights come from the file
        nodes = build_network(layers, _IMAGE).nodes
    model = KerasLayer("Sequential", "", {})
    for index, node in enumerate(nodes):
        model.layers.append(KerasLayer(node.kind, node.name or "", dict(node.arguments), place=index))
    before = len(prepended)
    converted = Converted(
        layers=[{kind: {**arguments, "name": _SCALED}} for kind, arguments in prepended]
        + [_behind_scaling(entry) if before else entry for entry in layers],
        image_shape=_IMAGE,
        keras_shape=keras_shape(_IMAGE),
        positions={id(layer): index + before for index, layer in enumerate(model.layers)},
        origins=[*(kind for kind, _ in prepended), *map(str, model.layers)],
        notes=[],
    )
    return model, converted


def _behind_scaling(entry: Any) -> Any:
    """A layer with the scaled images in place of the network's input."""
    if isinstance(entry, str):
        return entry
    ((kind, arguments),) = entry.items()
    arguments = dict(arguments or {})
    if arguments.get("inputs"):
        arguments["inputs"] = [_SCALED if name == "input" else name for name in arguments["inputs"]]
    return {kind: arguments}
