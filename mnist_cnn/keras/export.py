"""Exports a network as a `.keras` file of Keras 3, without Keras.

The model ends in a softmax, and takes images scaled in the same way as the network does.
"""

import io
import json
import math
import zipfile
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mnist_cnn.errors import UserError, missing_package
from mnist_cnn.files import write_file
from mnist_cnn.inference.checkpoint import TrainedNetwork
from mnist_cnn.keras.model_config import snake_case
from mnist_cnn.keras.weights import variables
from mnist_cnn.network.arguments import Shape, keras_shape
from mnist_cnn.network.graph import GraphNetwork
from mnist_cnn.network.network import Network, Node
from mnist_cnn.network.registry import MERGES, parameters_of

_INPUT = "input"
# The layers here under whose names Keras has the same, and one that is refused with its own message.
_IN_KERAS_3 = {
    "Activation", "Add", "Average", "AveragePooling2D", "BatchNormalization", "Concatenate", "Conv2D", "Dense",
    "DepthwiseConv2D", "Dropout", "ELU", "Flatten", "GlobalAveragePooling2D", "GlobalMaxPooling2D",
    "InstanceNormalization", "LSTM", "LeakyReLU", "MaxPooling2D", "Maximum", "Minimum", "Multiply", "Permute", "ReLU",
    "Rescaling", "Reshape", "SeparableConv2D", "Softmax", "SpatialDropout2D", "Subtract", "UnitNormalization",
    "ZeroPadding2D",
}  # fmt: skip
_NOT_IN_KERAS_3 = {"hard_sigmoid_keras2": "Keras 1 and 2's hard_sigmoid"}


def export_keras(trained: TrainedNetwork, path: Path) -> None:
    """Write a `.keras` file. UserError if Keras 3 lacks one of the layers, OutputError if the file exists."""
    if find_spec("h5py") is None:
        raise missing_package("h5py")
    config, groups = _config(trained)
    weights = _weights(trained.network, groups)
    metadata = {"keras_version": "3.0.0", "date_saved": f"{datetime.now():%Y-%m-%d@%H:%M:%S}"}
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("metadata.json", json.dumps(metadata))
        archive.writestr("config.json", json.dumps(config))
        archive.writestr("model.weights.h5", weights)
    write_file(path, content.getvalue(), replace=False)


def input_shape(trained: TrainedNetwork) -> Shape:
    """The exported model's input, without the batch: (H, W, C), or as in the Keras model that it was imported from."""
    shape = keras_shape(trained.network.input_shape)
    original = tuple(trained.training.get("keras", {}).get("input_shape", ()))
    # Flatten and Reshape take the values in any shape.
    any_shape = all(node.kind in ("Flatten", "Reshape") for node in trained.network.nodes if 0 in node.sources)
    return original if any_shape and original and math.prod(original) == math.prod(shape) else shape


def _config(trained: TrainedNetwork) -> tuple[dict[str, Any], dict[int, str]]:
    """The model's configuration, and for each node that is a layer of its own, its name and group of weights."""
    network = trained.network
    shapes = [input_shape(trained), *(keras_shape(node.output_shape) for node in network.nodes)]
    names = _names(network)
    layers = {index: _layer(network.nodes[index].kind, name) for index, name in names.items()}
    history: dict[int, tuple[str, int]] = {0: (_INPUT, 0)}  # of each value: its layer, and the number of the call
    for index, node in enumerate(network.nodes):
        layer = layers.get(index if node.shared is None else node.shared)
        if layer is None or any(source not in history for source in node.sources):
            continue  # the output does not depend on this node
        if node.shared is None:
            layer["config"] |= _arguments(index, node)
        tensors = [_tensor(shapes[source], history[source]) for source in node.sources]
        _call(layer, tensors if node.kind in MERGES else tensors[0])
        history[index + 1] = (layer["name"], len(layer["inbound_nodes"]) - 1)
    last, output = network.nodes[-1], history[len(network.nodes)]
    written = [_layer("InputLayer", _INPUT, batch_shape=[None, *shapes[0]], dtype="float32"), *layers.values()]
    if last.kind == "Dense" and last.arguments.get("activation") is None:
        layers[len(network.nodes) - 1]["config"]["activation"] = "softmax"
    elif last.arguments.get("activation") == "log":  # of probabilities: without it, they need no softmax
        layers[len(network.nodes) - 1]["config"]["activation"] = "linear"
    elif last.kind != "Softmax" and last.arguments.get("activation") != "softmax":
        written.append(_layer("Softmax", "probabilities"))
        _call(written[-1], _tensor(shapes[-1], output))
        output = ("probabilities", 0)
    config: dict[str, Any] = {"name": snake_case(trained.model) or "model", "trainable": True, "layers": written}
    if not isinstance(network, GraphNetwork):
        for layer in written:
            del layer["inbound_nodes"], layer["name"]
        module, kind = "keras", "Sequential"
    else:
        config |= {"input_layers": [[_INPUT, 0, 0]], "output_layers": [[*output, 0]]}
        module, kind = "keras.src.models.functional", "Functional"  # the module that Keras 3 itself writes
    return {"module": module, "class_name": kind, "config": config, "registered_name": None}, names


def _names(network: Network) -> dict[int, str]:
    """The name of every layer and of its group of weights: its class, and its number among those of the class.

    Keras numbers the layers in an order that it derives from their connections when it loads a model (Keras 3,
    `keras/src/ops/function.py`): those farthest from the output first, and those at the same distance in the order of a
    depth-first search from the output.
    """
    before = {i: [source - 1 for source in node.sources if source] for i, node in enumerate(network.nodes)}
    layer_of = [i if node.shared is None else node.shared for i, node in enumerate(network.nodes)]
    found: dict[int, None] = {}  # nodes in the order in which the search enters them
    finished: dict[int, None] = {}  # and leaves them
    waiting = [len(network.nodes) - 1]
    while waiting:
        node = waiting[-1]
        found.setdefault(node)
        inner = next((source for source in before[node] if source not in finished), None)
        if inner is None:
            finished.setdefault(waiting.pop())
        else:
            waiting.append(inner)
    distance: dict[int, int] = {}
    layer_distance: dict[int, int] = {}
    for node in reversed(finished):
        layer = layer_of[node]
        distance[node] = layer_distance[layer] = max(distance.get(node, 0), layer_distance.get(layer, 0))
        for source in before[node]:
            distance[source] = max(distance[node] + 1, distance.get(source, 0))
    layers = list(dict.fromkeys(layer_of[node] for node in found))
    names: dict[int, str] = {}
    for layer in sorted(layers, key=lambda layer: -layer_distance[layer]):
        kind = network.nodes[layer].kind
        number = sum(network.nodes[other].kind == kind for other in names)
        names[layer] = f"{snake_case(kind)}_{number}" if number else snake_case(kind)
    return names


def _layer(kind: str, name: str, **arguments: Any) -> dict[str, Any]:
    return {
        "module": "keras.layers",
        "class_name": kind,
        "config": {"name": name, **arguments},
        "registered_name": None,
        "name": name,
        "inbound_nodes": [],
    }


def _call(layer: dict[str, Any], tensors: Any) -> None:
    layer["inbound_nodes"].append({"args": [tensors], "kwargs": {}})


def _tensor(shape: Shape, history: tuple[str, int]) -> dict[str, Any]:
    config = {"shape": [None, *shape], "dtype": "float32", "keras_history": [*history, 0]}
    return {"class_name": "__keras_tensor__", "config": config}


def _arguments(index: int, node: Node) -> dict[str, Any]:
    parameters = parameters_of(node.kind).values()
    # All of them, because Keras may require one that has a default here.
    arguments = {parameter.name: node.arguments.get(parameter.name, parameter.default) for parameter in parameters}
    arguments |= {key: "linear" for key, value in arguments.items() if key == "activation" and value is None}
    unknown = [value for key, value in arguments.items() if key.endswith("activation") and value in _NOT_IN_KERAS_3]
    if node.kind not in _IN_KERAS_3:
        raise UserError(f"layer {index} ({node.kind}): Keras has no such layer; the network can't be exported to it.")
    if node.kind == "InstanceNormalization" or unknown:
        what = _NOT_IN_KERAS_3[unknown[0]] if unknown else "keras-contrib's InstanceNormalization"
        raise UserError(f"layer {index} ({node.kind}): Keras 3 has no {what}; the network can't be exported.")
    return arguments


def _weights(network: Network, names: dict[int, str]) -> bytes:
    import h5py

    state = network.state_dict()
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        for index, name in names.items():
            group = f"layers/{name}/cell/vars" if network.nodes[index].kind == "LSTM" else f"layers/{name}/vars"
            file.create_group(group)
            for number, variable in enumerate(variables(network, index)):
                file[f"{group}/{number}"] = variable.to_keras(state[variable.key]).numpy()
    return buffer.getvalue()
