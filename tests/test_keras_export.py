"""What is exported is read by Keras itself, which must compute the same; and it comes back as it was."""

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from keras_recipes import keras

from mnist_cnn.data.images import Preprocessing
from mnist_cnn.errors import OutputError, UserError
from mnist_cnn.inference.checkpoint import TrainedNetwork, load, save
from mnist_cnn.keras.export import export_keras, input_shape
from mnist_cnn.keras.importer import import_model
from mnist_cnn.network import LAYERS, MERGES, Network, build_network
from mnist_cnn.network.arguments import keras_shape
from mnist_cnn.network.layers.activations import ACTIVATIONS
from tests.conftest import CONF

END: list[Any] = ["Flatten", {"Dense": {"units": 10}}]
CONV = {"filters": 4, "kernel_size": 3}

# Every layer at least once, with arguments that are not the defaults.
NETWORKS: dict[str, list[Any]] = {
    "Conv2D": [{"Conv2D": {**CONV, "kernel_size": [4, 3], "strides": 2, "padding": "same"}}, *END],
    "Conv2D groups": [{"Conv2D": CONV}, {"Conv2D": {**CONV, "groups": 2, "dilation_rate": 2, "use_bias": False}}, *END],
    "DepthwiseConv2D": [{"Conv2D": CONV}, {"DepthwiseConv2D": {"kernel_size": 3, "depth_multiplier": 2}}, *END],
    "SeparableConv2D": [
        {"Conv2D": CONV}, {"SeparableConv2D": {"filters": 5, "kernel_size": 3, "depth_multiplier": 2}}, *END,
    ],
    "MaxPooling2D": [{"MaxPooling2D": {"pool_size": 3, "strides": 2, "padding": "same"}}, *END],
    # Where the padding is not symmetric, Keras' torch backend averages repeated pixels; its others don't, nor do we.
    "AveragePooling2D": [{"AveragePooling2D": {"pool_size": 3, "strides": 1, "padding": "same"}}, *END],
    "GlobalAveragePooling2D": [{"Conv2D": CONV}, "GlobalAveragePooling2D", {"Dense": {"units": 10}}],
    "GlobalMaxPooling2D": [{"Conv2D": CONV}, {"GlobalMaxPooling2D": {"keepdims": True}}, *END],
    "BatchNormalization": [{"Conv2D": CONV}, {"BatchNormalization": {"epsilon": 0.1}}, *END],
    "BatchNormalization axis": [{"BatchNormalization": {"axis": 1, "scale": False}}, *END],
    "UnitNormalization": [{"UnitNormalization": {"axis": 1}}, *END],
    "Dropout": [{"Dropout": {"rate": 0.5}}, *END],
    "SpatialDropout2D": [{"SpatialDropout2D": {"rate": 0.5}}, *END],
    "Dense": [{"Dense": {"units": 3, "activation": "relu"}}, *END],
    "LSTM": [
        {"Reshape": {"target_shape": [28, 28]}}, {"Dense": {"units": 7}},
        {"LSTM": {"units": 6, "return_sequences": True, "use_bias": False}}, {"BatchNormalization": {}},
        {"LSTM": {"units": 5, "activation": "relu", "recurrent_activation": "hard_sigmoid"}}, {"Dense": {"units": 10}},
    ],
    "ReLU": [{"ReLU": {"max_value": 0.8, "negative_slope": 0.2, "threshold": 0.3}}, *END],
    "LeakyReLU": [{"Conv2D": CONV}, "LeakyReLU", *END],
    "ELU": [{"Conv2D": CONV}, {"ELU": {"alpha": 0.7}}, *END],
    "Softmax": [{"Conv2D": CONV}, "Softmax", *END, "Softmax"],
    "Softmax axis": [{"Conv2D": CONV}, {"Softmax": {"axis": 1}}, *END, {"Activation": {"activation": "softmax"}}],
    "ZeroPadding2D": [{"ZeroPadding2D": {"padding": [[1, 0], [0, 2]]}}, *END],
    "Reshape": [{"Conv2D": CONV}, {"Reshape": {"target_shape": [52, 13, 4]}}, {"Conv2D": CONV}, *END],
    "Permute": [{"Conv2D": CONV}, {"Permute": {"dims": [3, 1, 2]}}, {"Conv2D": CONV}, *END],
    "Rescaling": [{"Rescaling": {"scale": 2.0, "offset": -1.0}}, *END],
    "Concatenate": [
        {"Conv2D": {**CONV, "name": "a"}}, {"Conv2D": {**CONV, "inputs": "input", "name": "b"}},
        {"Concatenate": {"inputs": ["b", "a", "b"]}}, *END,
    ],
    "Shared": [
        {"Dense": {"units": 4}}, {"Conv2D": {**CONV, "padding": "same", "name": "a"}}, "ReLU",
        {"Shared": {"layer": "a", "name": "b"}}, {"Concatenate": {"inputs": ["a", "b"], "axis": 2}}, *END, "Softmax",
    ],
    **{
        kind: [
            {"Conv2D": {**CONV, "name": "a"}}, {"Conv2D": {**CONV, "inputs": ["input"], "name": "b"}},
            {kind: {"inputs": ["a", "b"]}}, *END,
        ]
        for kind in MERGES if kind != "Concatenate"
    },
    "graph": [
        {"Conv2D": {**CONV, "padding": "same", "name": "a"}}, {"Conv2D": {**CONV, "padding": "same", "name": "b"}},
        {"Conv2D": {**CONV, "padding": "same", "name": "unused"}},
        {"Conv2D": {**CONV, "padding": "same", "inputs": ["a"], "name": "c"}},
        {"Shared": {"layer": "b", "name": "d"}}, {"Add": {"inputs": ["c", "b"], "name": "e"}},
        {"Subtract": {"inputs": ["d", "a"], "name": "f"}}, {"Concatenate": {"inputs": ["f", "e", "a"]}}, *END,
    ],
    **{
        f"Activation {name}": [{"Conv2D": CONV}, {"Activation": {"activation": name}}, *END]
        for name in ACTIVATIONS if name and name not in ("hard_sigmoid_keras2", "log")
    },
}  # fmt: skip


def trained(layers: list[Any], shape: tuple[int, ...] = (1, 28, 28)) -> TrainedNetwork:
    """As if it had been: no weight, bias or moving average at its initial value."""
    network = build_network(layers, shape, 10)
    for value in network.state_dict().values():
        value.uniform_(0.1, 0.5)
        value *= torch.randint_like(value, 2) * 2 - 1 if value.dim() > 1 else 1
    return of(network)


def of(network: Network) -> TrainedNetwork:
    digits = tuple("0123456789")
    return TrainedNetwork(
        network.eval().requires_grad_(False), Preprocessing(), digits, "A Model", "mnist", {}, {}, {}, 0
    )


def probabilities(network: TrainedNetwork, x: torch.Tensor) -> torch.Tensor:
    logits: torch.Tensor = network.network(x)
    return logits.softmax(1)


@pytest.mark.parametrize("layers", NETWORKS.values(), ids=NETWORKS)
def test_keras_computes_the_same_and_it_comes_back_the_same(layers: list[Any]) -> None:
    original = trained(layers)
    export_keras(original, Path("it.keras"))
    theirs = keras.models.load_model("it.keras")
    x = torch.rand(3, 1, 28, 28)
    torch.testing.assert_close(theirs(x.permute(0, 2, 3, 1)), probabilities(original, x), atol=1e-5, rtol=0)
    if "unused" not in str(layers):
        assert theirs.count_params() == original.network.parameter_count
    back = import_model(Path("it.keras"), scaling="1/255").trained
    torch.testing.assert_close(back.network(x), original.network(x), atol=1e-5, rtol=1e-5)


def test_every_layer_is_exported_in_these_tests() -> None:
    kinds = {
        kind
        for layers in NETWORKS.values()
        for layer in layers
        for kind in ([layer] if isinstance(layer, str) else layer)
    }
    assert {*LAYERS, *MERGES, "Shared"} - kinds == {"InstanceNormalization"}


@pytest.mark.parametrize("name", ["baseline", "tiny", "deep", "dropout", "mlp"])
def test_reference_networks_are_written_as_they_were_published(name: str) -> None:
    layers = yaml.safe_load((CONF / "model" / f"{name}.yaml").read_text())["layers"]
    original = trained(layers)
    export_keras(original, Path("it.keras"))
    theirs = keras.models.load_model("it.keras")
    assert isinstance(theirs, keras.Sequential)
    assert theirs.output_shape == (None, 10)
    assert theirs.layers[-1].activation is keras.activations.softmax
    assert len(theirs.layers) == len(layers)
    x = torch.rand(5, 1, 28, 28)
    torch.testing.assert_close(theirs(x.permute(0, 2, 3, 1)), probabilities(original, x), atol=1e-5, rtol=0)
    theirs.compile("adam", "sparse_categorical_crossentropy")
    theirs.train_on_batch(x.permute(0, 2, 3, 1), torch.zeros(5))  # it can be trained on


@pytest.mark.parametrize("shape", [(784,), (28, 28), (28, 28, 1)])
def test_what_came_from_keras_goes_back_with_the_input_it_had(shape: tuple[int, ...]) -> None:
    made = keras.Sequential([keras.Input(shape), keras.layers.Flatten(), keras.layers.Dense(10, "softmax")])
    made.save("made.keras")
    imported = import_model(Path("made.keras"), scaling="1/255").trained
    save(Path("it.ckpt"), imported)
    export_keras(load("it.ckpt"), Path("back.keras"))
    back = keras.models.load_model("back.keras")
    assert input_shape(imported) == shape
    x = torch.rand(4, *shape)
    torch.testing.assert_close(back(x), made(x))


@pytest.mark.parametrize(
    "layers", [["InstanceNormalization", *END], [{"Activation": {"activation": "hard_sigmoid_keras2"}}, *END]]
)
def test_what_keras_3_does_not_have_is_refused(layers: list[Any]) -> None:
    with pytest.raises(UserError, match=r"layer 0 .*Keras 3 has no"):
        export_keras(of(build_network(layers, (1, 28, 28))), Path("it.keras"))
    assert list(Path().iterdir()) == []


def test_a_layer_that_keras_does_not_know_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LAYERS, "Mine", LAYERS["UnitNormalization"])
    with pytest.raises(UserError, match=r"layer 0 \(Mine\): Keras has no such layer"):
        export_keras(of(build_network(["Mine", *END], (1, 28, 28))), Path("it.keras"))
    assert list(Path().iterdir()) == []


def test_an_existing_file_is_kept() -> None:
    Path("it.keras").write_text("mine")
    with pytest.raises(OutputError, match="exists already"):
        export_keras(trained(END), Path("it.keras"))
    assert Path("it.keras").read_text() == "mine"


def test_a_missing_folder_is_refused() -> None:
    with pytest.raises(OutputError, match="there is no folder nowhere"):
        export_keras(trained(END), Path("nowhere/it.keras"))


def test_the_file_holds_nothing_but_what_keras_reads() -> None:
    export_keras(trained(END), Path("it.keras"))
    with zipfile.ZipFile("it.keras") as archive:
        assert sorted(archive.namelist()) == ["config.json", "metadata.json", "model.weights.h5"]
        config = json.loads(archive.read("config.json"))
    assert config["config"]["layers"][0]["config"]["batch_shape"] == [None, *keras_shape((1, 28, 28))]
