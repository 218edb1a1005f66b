"""Keras' files of all kinds become checkpoints with the same outputs, and what can't is refused in a line."""

import io
import json
import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import keras_files
import msgspec
import numpy as np
import pytest
import torch
from keras_recipes import NETWORKS, keras
from omegaconf import OmegaConf
from torch import Tensor

from mnist_cnn import cli
from mnist_cnn.data import datasets
from mnist_cnn.data.images import Images, Preprocessing
from mnist_cnn.errors import KerasFileError, UserError
from mnist_cnn.inference.checkpoint import load, save
from mnist_cnn.inference.evaluate import evaluate
from mnist_cnn.keras import arrays as keras_arrays
from mnist_cnn.keras.export import export_keras
from mnist_cnn.keras.importer import SCALINGS, Imported, import_model
from tests.conftest import Outcome, train_command

L = keras.layers
Json = dict[str, Any]


@pytest.fixture(autouse=True)
def _keras_seed() -> None:
    keras.utils.set_random_seed(0)


def images(shape: tuple[int, ...] = (28, 28, 1)) -> Tensor:
    return torch.rand(6, *shape)


def bring(path: str, **arguments: Any) -> Imported:
    return import_model(Path(path), scaling="1/255", **arguments)


def same(path: str, model: keras.Model, **arguments: Any) -> Imported:
    """Import a file, and check it against the Keras model that it should be."""
    imported = bring(path, **arguments)
    network = imported.trained.network
    x = images(model.input_shape[1:])
    channels_first = model.input_shape[1:] == (1, 28, 28)
    ours = x if channels_first else x.reshape(6, *[*network.input_shape[1:], 1]).permute(0, 3, 1, 2)
    torch.testing.assert_close(network(ours).softmax(1), model(x, training=False), atol=1e-5, rtol=0)
    assert network.parameter_count == model.count_params()
    return imported


def sequential(*layers: Any, shape: tuple[int, ...] = (28, 28, 1)) -> keras.Sequential:
    """With weights, biases and moving averages that are not the initial ones."""
    return randomized(keras.Sequential([keras.Input(shape), *layers]))


def randomized(model: keras.Model) -> Any:
    for weight in model.weights:
        if weight.dtype == "float32":
            weight.assign(torch.rand(weight.shape) * 0.5 - (0.25 if len(weight.shape) > 1 else -0.1))
    return model


# --- what Keras 3 writes ---


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_reference_networks_are_imported_unchanged(name: str, suffix: str) -> None:
    model = sequential(*NETWORKS[name](), L.Softmax())
    model.compile(keras.optimizers.SGD(0.05), "sparse_categorical_crossentropy")
    model.save(f"it{suffix}")
    trained = same(f"it{suffix}", model).trained
    assert trained.training["keras"]["version"] == keras.__version__
    assert trained.training["keras"]["optimizer"] == "SGD"
    assert trained.training["keras"]["lr"] == pytest.approx(0.05)


def functional() -> Any:
    """Branches, a merge of each kind, a layer used three times, and models in the model."""
    inputs = keras.Input((28, 28, 1))
    x = keras.Sequential([L.Rescaling(0.5), L.RandomRotation(0.1), keras.Sequential([L.GaussianNoise(0.1)])])(inputs)
    stem = L.Conv2D(4, 3, padding="same")(x)
    shared = L.SeparableConv2D(4, 3, padding="same", activation="relu")
    once = L.BatchNormalization()(shared(stem))
    twice = shared(once)
    inner = keras.Sequential([keras.Input((28, 28, 4)), L.BatchNormalization(), L.Conv2D(4, 1), L.Dropout(0.3)])
    both = L.Concatenate()([inner(twice), L.Add()([stem, shared(twice)]), L.Maximum()([once, twice])])
    outputs = L.Dense(10, activation="softmax")(L.GlobalAveragePooling2D()(both))
    return randomized(keras.Model(inputs, outputs))


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_functional_models_with_branches_and_shared_layers_are_imported_unchanged(suffix: str) -> None:
    model = functional()
    model.save(f"it{suffix}")
    imported = same(f"it{suffix}", model)
    assert "RandomRotation, GaussianNoise" in imported.notes[0]
    assert sum("Shared" in layer for layer in imported.trained.network.layers) == 2


MODELS: dict[str, Callable[[], keras.Sequential]] = {
    "flat": lambda: sequential(L.Dense(12, "tanh"), L.Dense(10, "softmax"), shape=(784,)),
    "rows": lambda: sequential(
        L.Reshape((28, 28, 1)), L.Conv2D(2, 3), L.Flatten(), L.Dense(10, "softmax"), shape=(28, 28)
    ),
    "lstm": lambda: sequential(L.LSTM(8, return_sequences=True), L.LSTM(7), L.Dense(10, "softmax"), shape=(28, 28)),
    "odd rows": lambda: sequential(L.Dense(5), L.LSTM(4), L.Dense(10, "softmax"), shape=(7, 112)),
    "32": lambda: sequential(L.Conv2D(2, 5, activation="selu"), L.Flatten(), L.Dense(10, "softmax"), shape=(32, 32, 1)),
    "11": lambda: sequential(L.Flatten(), L.Dense(11, "softmax")),
    "batch normalization after flatten": lambda: sequential(
        L.Conv2D(3, 3), L.BatchNormalization(), L.ReLU(), L.Flatten(), L.BatchNormalization(), L.Dense(10, "softmax")
    ),
    "activations that are layers": lambda: sequential(
        L.Conv2D(3, 3, activation=L.LeakyReLU(0.2)), L.Flatten(), L.Dense(10), L.Activation("softmax")
    ),
    "channels first": lambda: sequential(
        L.Conv2D(3, 3, data_format="channels_first", activation="relu"),
        L.BatchNormalization(axis=1),
        L.MaxPooling2D(data_format="channels_first"),
        L.BatchNormalization(axis=-1),
        L.Flatten(data_format="channels_last"),
        L.Dense(10, "softmax"),
        shape=(1, 28, 28),
    ),
    "channels first, flattened as channels last": lambda: sequential(
        L.Conv2D(3, 3, data_format="channels_first"), L.Flatten(data_format="channels_first"), L.Dense(10, "softmax"),
        shape=(1, 28, 28),
    ),
    "channels first, reshaped": lambda: sequential(
        L.Reshape((1, 28, 28)), L.Conv2D(4, 3, data_format="channels_first"), L.Reshape((2, 26, 52)), L.Reshape((-1,)),
        L.Dense(10, "softmax"), shape=(784,),
    ),
}  # fmt: skip


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_inputs_outputs_and_layers_of_all_kinds(make: Callable[[], keras.Sequential]) -> None:
    model = make()
    model.save("it.keras")
    imported = same("it.keras", model)
    assert len(imported.trained.classes) == model.output_shape[1]
    save(Path("it.ckpt"), imported.trained)
    again = load("it.ckpt")
    x = images(again.network.input_shape)
    torch.testing.assert_close(again.network(x), imported.trained.network(x))


@pytest.mark.parametrize(
    ("activation", "expected", "note"),
    [
        ("linear", lambda y: y.softmax(1), "its outputs are taken for logits"),
        ("sigmoid", lambda y: y / y.sum(1, keepdim=True), "scaled to the sum of 1"),
    ],
)
def test_outputs_without_a_softmax_become_probabilities(
    activation: str, expected: Callable[[Tensor], Tensor], note: str
) -> None:
    x = images()
    model = sequential(L.Flatten(), L.Dense(10, activation))
    model.save("it.keras")
    imported = bring("it.keras")
    ours = imported.trained.network(x.permute(0, 3, 1, 2)).softmax(1)
    torch.testing.assert_close(ours, expected(model(x)), atol=1e-5, rtol=0)
    assert len(imported.notes) == 1
    assert note in imported.notes[0]


def test_images_are_padded_to_a_slightly_larger_size_and_resampled_to_others_before_scaling() -> None:
    x = torch.randint(1, 255, (2, 1, 28, 28), dtype=torch.uint8)
    padded = Preprocessing((0.5,), (0.5,), 255, (32, 32))(x)
    torch.testing.assert_close(padded[:, :, 2:-2, 2:-2], x / 127.5 - 1)
    padded[:, :, 2:-2, 2:-2] = -1
    assert bool((padded == -1).all())  # the background is what 0 becomes
    small = Preprocessing(scale=1, size=(8, 8))(torch.full_like(x, 200))
    torch.testing.assert_close(small, torch.full((2, 1, 8, 8), 200.0))
    sized = Preprocessing(size=(8, 9))
    assert msgspec.convert(sized.to_dict(), Preprocessing) == sized
    assert msgspec.convert({"mean": [0.0], "std": [1.0]}, Preprocessing) == Preprocessing()  # as version 0.1.0 wrote it


def test_a_model_for_larger_images_is_evaluated_and_trained_on_padded_ones() -> None:
    model = sequential(L.Conv2D(2, 5), L.Flatten(), L.Dense(10, "softmax"), shape=(32, 32, 1))
    model.save("it.keras")
    imported = bring("it.keras").trained
    save(Path("it.ckpt"), imported)
    digits = datasets.load("digits", "nowhere").test
    theirs = model(torch.nn.functional.pad(digits.images / 255, (2, 2, 2, 2)).permute(0, 2, 3, 1)).argmax(1)
    assert evaluate(load("it.ckpt"), digits, "digits", "test").correct == int((theirs == digits.labels).sum())
    outcome = train_command(
        "model.init_from=it.ckpt", "data=digits", "trainer=cpu", "run_dir=run", "trainer.max_epochs=1"
    )
    assert outcome.status == 0, outcome.err
    assert load("run").preprocessing.size == (32, 32)


def heads() -> dict[str, Any]:
    """Models whose softmax or sigmoid is not the very last thing."""
    inputs, head = keras.Input((784,)), L.Dense(10, "softmax")
    first, second = L.Dense(10, "softmax")(inputs), L.Dense(10, "softmax")(inputs)
    return {
        "dropout": sequential(L.Flatten(), L.Dense(10, "softmax"), L.Dropout(0.5)),
        "reshape": sequential(L.Flatten(), L.Dense(10), L.Softmax(), L.Reshape((10,))),
        "convolution": sequential(L.Conv2D(10, 28, activation="softmax"), L.Flatten()),
        "average": keras.Model(inputs, L.Average()([first, second])),
        "shared": keras.Model(inputs, L.Average()([head(L.Dense(5)(inputs)), head(L.Dense(5)(inputs))])),
    }


@pytest.mark.parametrize("name", ["dropout", "reshape", "convolution", "average", "shared"])
def test_a_softmax_before_the_end_is_not_applied_twice(name: str) -> None:
    model = randomized(heads()[name])
    model.save("it.keras")
    imported = same("it.keras", model)
    assert imported.notes == []
    export_keras(imported.trained, Path("back.keras"))
    x = images(model.input_shape[1:])
    torch.testing.assert_close(keras.models.load_model("back.keras")(x), model(x, training=False), atol=1e-6, rtol=0)


def test_merges_and_activations_may_be_used_several_times() -> None:
    inputs = keras.Input((28, 28, 1))
    add, softmax = L.Add(), L.Softmax()
    x = add([inputs, L.Conv2D(1, 3, padding="same")(inputs)])
    block = keras.Sequential([keras.Input((28, 28, 1)), L.Conv2D(1, 3, padding="same"), L.ReLU()])
    x = softmax(L.Dense(10)(softmax(L.Flatten()(add([block(x), block(inputs)])))))
    model = randomized(keras.Model(inputs, x))
    model.save("it.keras")
    same("it.keras", model)


# --- what older ones wrote ---


def rewrite(
    model: keras.Model, rename: Callable[[str], str], change: Callable[[Json], Any] = lambda config: None
) -> None:
    """`it.keras`, with its groups called otherwise and its configuration changed."""
    model.save("new.keras")
    buffer = io.BytesIO()
    with zipfile.ZipFile("new.keras") as old, zipfile.ZipFile("it.keras", "w") as new:
        config = json.loads(old.read("config.json"))
        change(config)
        with h5py.File(io.BytesIO(old.read("model.weights.h5"))) as source, h5py.File(buffer, "w") as target:

            def copy(name: str, item: Any) -> None:
                if isinstance(item, h5py.Dataset):
                    target[rename(name)] = item[()]

            source.visititems(copy)
        new.writestr("config.json", json.dumps(config))
        new.writestr("metadata.json", json.dumps({"keras_version": "2.15.0"}))
        new.writestr("model.weights.h5", buffer.getvalue())


def test_groups_of_windows_and_of_keras_2_14() -> None:
    model = sequential(L.Conv2D(2, 3), L.Flatten(), *[L.Dense(12) for _ in range(11)], L.Dense(10, "softmax"))
    rewrite(model, lambda name: name.replace("layers/", "layers\\"))
    same("it.keras", model)
    rewrite(model, lambda name: name.replace("layers/", "_layer_checkpoint_dependencies/"))
    same("it.keras", model)


def legacy(model: Any, config: Any, version: str | None, path: str = "it.h5", **attributes: Any) -> None:
    """An HDF5 file as Keras 1 and 2 wrote them, with groups that are not called as the layers are."""
    with h5py.File(path, "w") as file:
        if config is not None:
            file.attrs["model_config"] = json.dumps(config)
        root = file if config is None else file.create_group("model_weights")
        names = [f"some_{index}" for index in range(len(model.layers))]
        half = len(names) // 2  # too many names for one attribute are cut in parts
        root.attrs["layer_names0"], root.attrs["layer_names1"] = (
            np.array([name.encode() for name in part]) for part in (names[:half], names[half:])
        )
        if version is not None:
            root.attrs["keras_version"] = version.encode()
        for key, value in attributes.items():
            root.attrs[key] = value
        for name, layer in zip(names, model.layers, strict=True):
            group = root.create_group(name)
            group.attrs["weight_names"] = [f"{name}/w{i}:0".encode() for i in range(len(layer.weights))]
            for i, weight in enumerate(layer.weights):
                group[f"{name}/w{i}:0"] = weight.value.detach().numpy()


def bare(model: keras.Model) -> list[Json]:
    """A Sequential configuration as Keras 2.0 had it: a list, and the shape on the first layer."""
    config = model.get_config()
    layers = [{"class_name": item["class_name"], "config": item["config"]} for item in config["layers"][1:]]
    shape = config["layers"][0]["config"]["batch_shape"]  # some versions wrapped tuples so:
    layers[0]["config"]["batch_input_shape"] = {"class_name": "__tuple__", "items": shape}
    for layer in layers:
        if "kernel_initializer" in layer["config"]:
            initializer = {"class_name": "VarianceScaling", "config": {"scale": 1.0, "seed": None, "dtype": "float32"}}
            layer["config"]["kernel_initializer"] = initializer
    return layers


def test_a_bare_list_of_layers_without_an_input_layer() -> None:
    model = sequential(L.Conv2D(2, 3), L.BatchNormalization(), L.MaxPooling2D(), L.Flatten(), L.Dense(10, "softmax"))
    legacy(model, {"class_name": "Sequential", "config": bare(model)}, "2.0.2", backend="tensorflow")
    assert same("it.h5", model).trained.training["keras"]["version"] == "2.0.2"


def test_the_random_state_of_an_augmentation_layer_is_no_weight() -> None:
    model = sequential(keras.Sequential([L.RandomFlip()]), L.Flatten(), L.Dense(10, "softmax"))
    model.layers[0].build((None, 28, 28, 1))
    config = {"class_name": "Sequential", "config": model.get_config()}
    legacy(model, config, "2.8.0")
    with h5py.File("it.h5", "a") as file:  # as Keras 2.6 to 2.8 kept it
        group = file["model_weights/some_0"]
        group.attrs["weight_names"] = [b"random_flip/StateVar:0"]
        group["random_flip/StateVar:0"] = np.array([1, 2, 3], "i8")
    same("it.h5", model)


def test_weights_alone_need_the_file_of_their_architecture() -> None:
    model = sequential(L.Conv2D(2, 3), L.Flatten(), L.Dense(10, "softmax"))
    legacy(model, None, "2.0.2")
    with pytest.raises(KerasFileError, match=r"weights only.*--architecture"):
        bring("it.h5")
    Path("it.json").write_text(
        json.dumps({"class_name": "Sequential", "config": bare(model), "keras_version": "2.0.2"})
    )
    same("it.h5", model, architecture=Path("it.json"))
    model.save_weights("new.weights.h5")
    Path("new.json").write_text(model.to_json())
    same("new.weights.h5", model, architecture=Path("new.json"))


def keras_1(ordering: str) -> Json:
    """A network of a convolution, a pooling, a Flatten and a Dense in the words of Keras 1."""
    shape = [None, 1, 28, 28] if ordering == "th" else [None, 28, 28, 1]
    conv = {"nb_filter": 3, "nb_row": 5, "nb_col": 4, "subsample": [2, 1], "border_mode": "valid", "activation": "relu"}
    conv |= {"dim_ordering": ordering, "bias": True, "init": "glorot_uniform", "W_regularizer": None, "name": "c"}
    conv |= {"batch_input_shape": shape, "input_dtype": "float32", "trainable": True}
    pool = {"pool_size": [2, 2], "strides": [2, 2], "border_mode": "valid", "dim_ordering": ordering, "name": "p"}
    dense = {"output_dim": 10, "activation": "softmax", "bias": True, "init": "normal", "name": "d", "input_dim": None}
    layers = [("Convolution2D", conv), ("MaxPooling2D", pool), ("Dropout", {"p": 0.5, "name": "o"})]
    layers += [("Flatten", {"name": "f"}), ("Dense", dense)]
    return {"class_name": "Sequential", "config": [{"class_name": kind, "config": config} for kind, config in layers]}


@pytest.mark.parametrize("backend", [None, "tensorflow", "theano"])
@pytest.mark.parametrize("ordering", ["th", "tf"])
def test_keras_1_in_both_orders_and_of_both_backends(ordering: str, backend: str | None) -> None:
    x = images((1, 28, 28))
    kernel, bias = torch.randn(3, 1, 5, 4), torch.randn(3)  # as a correlation, as torch and TensorFlow compute it
    hidden = torch.nn.functional.max_pool2d(torch.nn.functional.conv2d(x, kernel, bias, (2, 1)).relu(), 2)
    flat = hidden.flatten(1) if ordering == "th" else hidden.permute(0, 2, 3, 1).flatten(1)
    dense = torch.randn(flat.shape[1], 10) * 0.1
    stored = kernel.flip(2, 3) if backend == "theano" else kernel
    stored = stored if ordering == "th" else stored.permute(2, 3, 1, 0)

    weights = [(stored, bias), (), (), (), (dense, torch.zeros(10))]
    layers = [SimpleNamespace(weights=[SimpleNamespace(value=value) for value in values]) for values in weights]
    attributes = {"backend": backend} if backend else {}
    legacy(SimpleNamespace(layers=layers), keras_1(ordering), "1.2.2" if backend else None, **attributes)
    network = bring("it.h5").trained.network
    torch.testing.assert_close(network(x), flat @ dense, atol=1e-4, rtol=1e-4)


def test_hard_sigmoid_means_what_it_meant_to_the_keras_that_wrote_it() -> None:
    model = sequential(L.Flatten(), L.Dense(10, "hard_sigmoid"), L.Dense(10, "softmax"))
    model.save("new.keras")
    legacy(model, {"class_name": "Sequential", "config": bare(model)}, "2.4.0")
    x = images().permute(0, 3, 1, 2)
    state = bring("it.h5").trained.network.state_dict()
    hidden = x.flatten(1) @ state["1_Dense.weight"].T + state["1_Dense.bias"]
    for path, slope in (("new.keras", 1 / 6), ("it.h5", 0.2)):
        expected = (slope * hidden + 0.5).clamp(0, 1) @ state["2_Dense.weight"].T + state["2_Dense.bias"]
        torch.testing.assert_close(bring(path).trained.network(x), expected, atol=1e-5, rtol=1e-5)


# --- what can't be imported ---


def dense_file() -> keras.Sequential:
    model = sequential(L.Flatten(), L.Dense(10, "softmax"))
    model.save("it.keras")
    return model


def changed(change: Callable[[Json], None]) -> None:
    rewrite(dense_file(), lambda name: name, change)


def set_layer(index: int, **values: Any) -> Callable[[Json], None]:
    def change(config: Json) -> None:
        layer = config["config"]["layers"][index]
        layer["class_name"] = values.pop("kind", layer["class_name"])
        layer["config"] |= values

    return change


def set_place(index: int, **values: Any) -> Callable[[Json], None]:
    return lambda config: config["config"]["layers"][index].update(values)


def forget_the_shape(config: Json) -> None:
    for place in (config, *config["config"]["layers"]):
        place.pop("build_config", None)
    config["config"].pop("build_input_shape", None)
    del config["config"]["layers"][0]["config"]["batch_shape"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            set_layer(1, kind="Lambda", function=["4wEAAAA="]),
            "layer Lambda 'flatten.*': it holds Python code",
        ),
        (set_layer(1, kind="my>Layer"), "layer my>Layer 'flatten.*': a custom class, or a layer that is not supported"),
        (set_layer(2, activation="my_function"), "activation 'my_function' is not supported"),
        (set_layer(2, activation={"class_name": "function", "config": "f"}), "activation 'f' is not supported"),
        (
            set_layer(2, activation={"value": ["4wEAAAB", None, None]}),
            "activation 'a Python function' is not supported",
        ),
        (set_place(2, module=None, registered_name="mine>Dense"), "layer Dense 'dense.*': a custom class"),
        (set_place(1, class_name="Multiply"), "layer Multiply 'flatten.*': an operation with a constant"),
        (set_layer(2, units=10**15), "kernel, .* is too large"),
        (set_layer(2, units="x" * 10_000), "units must be a whole number of at least 1, not 'xxx.*…$"),
        (set_layer(2, activation="\x1b[31m\n"), r"not supported"),
        (set_layer(1, kind="Conv2D", data_format={}), "filters is missing|data_format={} is not supported"),
        (set_layer(1, kind="Rescaling", scale=10**400), "scale must be a number"),
        (set_layer(2, units=-3), "units must be a whole number"),
        (set_layer(2, units=9), "9 values, not one for each of ten digits"),
        (set_layer(2, units=12), "its kernel is 784×10 in the file, 784×12 by its configuration"),
        (set_layer(2, use_bias="no"), "layer Dense 'dense.*': use_bias must be true or false, not 'no'"),
        (set_layer(2, use_bias=1), "use_bias must be true or false, not 1"),
        (set_layer(2, use_bias=False), "its 1 weights are not in the file"),
        (set_layer(2, new_option=3), "option new_option=3 is not known"),
        (set_layer(0, batch_shape=[None, 10**9, 10**9, 1]), "is not an image"),
        (set_layer(0, batch_shape=[None, 28, 27]), "not a square grey image"),
        (forget_the_shape, "does not say what shape its input has"),
        (lambda config: config.update(class_name="MyModel"), "its class is MyModel"),
        (lambda config: config.pop("class_name"), "without class_name"),
        (lambda config: config["config"].update(layers=[]), "has no layers"),
        (lambda config: config["config"]["layers"].append(3), "without class_name"),
        (lambda config: config["config"]["layers"].pop(2), "gives 784 values, not one"),
    ],
)
def test_what_can_not_be_imported_is_refused_with_file_and_layer(change: Callable[[Json], None], says: str) -> None:
    changed(change)
    with pytest.raises(KerasFileError, match=says) as refused:
        bring("it.keras")
    assert str(refused.value).startswith("it.keras: ")
    assert str(refused.value).isprintable()


def several_inputs() -> keras.Model:
    a, b = keras.Input((784,)), keras.Input((784,))
    return keras.Model([a, b], L.Dense(10, "softmax")(L.Add()([a, b])))


def test_models_with_several_inputs_are_refused() -> None:
    several_inputs().save("it.keras")
    with pytest.raises(KerasFileError, match="2 inputs and 1 outputs"):
        bring("it.keras")


def test_a_model_that_goes_in_a_circle_is_refused() -> None:
    functional().save("new.keras")

    def circle(config: Json) -> None:
        layers = {layer["config"]["name"]: layer for layer in config["config"]["layers"]}
        convolution = next(layer for name, layer in layers.items() if name.startswith("conv2d"))
        add = next(name for name in layers if name.startswith("add"))
        convolution["inbound_nodes"][0]["args"][0]["config"]["keras_history"] = [add, 0, 0]

    rewrite(functional(), lambda name: name, circle)
    with pytest.raises(KerasFileError, match="depends on its own output"):
        bring("it.keras")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "it is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:12", "pointer of Git LFS"),
        (b"\n<!DOCTYPE html><html>", "a web page"),
        (b"\x89HDF\n\x1a\n" + bytes(500), "text conversion"),
        ("\ufffdHDF\r\n\x1a\n".encode() + bytes(500), "text conversion"),
        (b"\x89HDF\r\n\x1a\n" + bytes(500), "damaged: "),
        (b"PK\x03\x04" + bytes(500), "damaged: |neither"),
        (b"\x80\x04\x95 a pickle", "neither a .keras nor an HDF5 file"),
    ],
)
def test_other_kinds_of_files_are_refused_by_name(content: bytes, says: str) -> None:
    Path("it.keras").write_bytes(content)
    with pytest.raises(KerasFileError, match=says):
        bring("it.keras")


def test_folders_missing_files_and_other_zips_are_refused() -> None:
    Path("saved").mkdir()
    Path("saved/saved_model.pb").touch()
    with zipfile.ZipFile("it.zip", "w") as archive:
        archive.writestr("hello.txt", "hello")
    for path, says in (("saved", "SavedModel"), ("nothing.h5", "no such file"), ("it.zip", "not one of Keras")):
        with pytest.raises(KerasFileError, match=says):
            bring(path)


def test_pipes_are_refused_and_not_waited_for() -> None:
    os.mkfifo("pipe.keras")
    with pytest.raises(KerasFileError, match="not a file"):
        bring("pipe.keras")
    dense_file().save_weights("it.weights.h5")
    with pytest.raises(KerasFileError, match="not a file"):
        bring("it.weights.h5", architecture=Path("pipe.keras"))


def test_a_name_with_control_characters_is_imported_as_its_escapes() -> None:
    dense_file()
    Path("it.keras").rename("\x1b[1m\udcff.keras")
    save(Path("it.ckpt"), bring("\x1b[1m\udcff.keras").trained)
    loaded = load("it.ckpt")
    assert loaded.model == "\\x1b[1m\\udcff"
    assert loaded.provenance.startswith("imported from \\x1b[1m\\udcff.keras")


def test_a_model_whose_outputs_overflow_under_every_scale_is_refused() -> None:
    model = dense_file()
    model.set_weights([np.full(value.shape, 3e38, np.float32) for value in model.get_weights()])
    model.save("large.keras")
    digits = datasets.load("digits", "nowhere").test
    with pytest.raises(KerasFileError, match="outputs are not finite numbers"):
        import_model(Path("large.keras"), images=digits)


@pytest.mark.parametrize("rate", [float("inf"), float("nan"), 10**400, -1.0, "0.1"])
def test_a_learning_rate_that_is_none_is_left_out(rate: Any) -> None:
    model = dense_file()
    model.compile("sgd", "categorical_crossentropy")
    settings = {"learning_rate": rate}
    rewrite(model, lambda name: name, lambda config: config["compile_config"]["optimizer"]["config"].update(settings))
    facts = bring("it.keras").trained.training["keras"]
    assert facts["optimizer"] == "SGD"
    assert "lr" not in facts


def test_a_truncated_file_is_damaged_wherever_it_ends() -> None:
    dense_file()
    content = Path("it.keras").read_bytes()
    for end in (4, len(content) // 2, len(content) - 1):
        Path("cut.keras").write_bytes(content[:end])
        with pytest.raises(KerasFileError, match=r"cut\.keras: "):
            bring("cut.keras")


# --- nothing is run, followed or allocated ---


def hdf5(fill: Callable[[h5py.File], None]) -> None:
    """A file with a model's configuration, and a first layer with a kernel that `fill` makes."""
    model = sequential(L.Flatten(), L.Dense(10, "softmax"))
    legacy(model, {"class_name": "Sequential", "config": bare(model)}, "2.4.0")
    with h5py.File("it.h5", "a") as file:
        del file["model_weights/some_1/some_1/w0:0"]
        fill(file["model_weights/some_1/some_1"])


def external(group: h5py.Group) -> None:
    Path("secret").write_bytes(np.ones((784, 10), "f4").tobytes())
    group.create_dataset("w0:0", (784, 10), "f4", external=[("secret", 0, h5py.h5f.UNLIMITED)])


def virtual(group: h5py.Group) -> None:
    layout = h5py.VirtualLayout((784, 10), "f4")
    layout[:] = h5py.VirtualSource("other.h5", "x", (784, 10))
    group.create_virtual_dataset("w0:0", layout)


@pytest.mark.parametrize(
    ("fill", "says"),
    [
        (lambda group: group.update({"w0:0": h5py.ExternalLink("other.h5", "/x")}), "is a link, which is not followed"),
        (lambda group: group.update({"w0:0": h5py.SoftLink("/model_weights")}), "is a link, which is not followed"),
        (external, "in another file, which is not followed"),
        (virtual, "in another file, which is not followed"),
        (lambda group: group.create_dataset("w0:0", (2**40,), "f4", chunks=(2**10,)), "more than .* values"),
        (
            lambda group: group.create_dataset("w0:0", (10,), "f4", chunks=(2**28,), maxshape=(None,)),
            "more than .* values",
        ),
        (lambda group: group.create_dataset("w0:0", data=np.full((784, 10), np.nan, "f4")), "not finite numbers"),
        (lambda group: group.create_dataset("w0:0", data=np.ones((784, 10), "i4")), "it has 2 weights, .* has 1"),
        (lambda group: None, "is listed, but missing"),
        (lambda group: [group.create_group("/".join("a" * 100))], "more groups, or deeper ones"),
    ],
)
def test_links_other_files_and_absurd_sizes_are_refused(fill: Callable[[Any], None], says: str) -> None:
    hdf5(fill)
    start = time.monotonic()
    with pytest.raises(KerasFileError, match=says):
        bring("it.h5")
    assert time.monotonic() - start < 20


def test_a_zip_bomb_is_not_unpacked() -> None:
    with zipfile.ZipFile("it.keras", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("metadata.json", "{}")
        archive.writestr("model.weights.h5", b"")
        archive.writestr("config.json", b" " * (keras_arrays.MAX_JSON + 1))
    assert os.path.getsize("it.keras") < 10**5
    with pytest.raises(KerasFileError, match=r"its config\.json unpacks to more than"):
        bring("it.keras")


def test_a_crash_of_the_hdf5_library_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    dense_file()
    for code, says in (
        ("import os; os.abort()", "makes the HDF5 library fail"),
        ("while True: pass", "come to an end"),
    ):
        script = tmp_path / "crash.py"
        script.write_text(code)
        monkeypatch.setattr(keras_arrays, "__file__", str(script))
        monkeypatch.setattr("mnist_cnn.keras.file._SECONDS", 1)
        with pytest.raises(KerasFileError, match=says):
            bring("it.keras")


def test_the_reading_process_can_write_nothing() -> None:
    pytest.importorskip("resource")
    folder = str(Path(keras_arrays.__file__).parent)
    script = "import arrays; arrays._limit(); open('a', 'w').write('b')"
    environment = {**os.environ, "PYTHONPATH": folder}
    subprocess.run([sys.executable, "-c", script], capture_output=True, check=False, env=environment)
    assert Path("a").read_bytes() == b""


# --- the command ---


def command(*arguments: str, capsys: pytest.CaptureFixture[str]) -> Outcome:
    try:
        status = cli.main(arguments)
    except SystemExit as end:
        status = int(end.code or 0)
    printed = capsys.readouterr()
    return Outcome(status, printed.out, printed.err)


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> tuple[keras.Sequential, Path]:
    """A model that Keras has trained on the bundled digits, with pixels from 0 to 255."""
    keras.utils.set_random_seed(0)
    digits = datasets.load("digits", "nowhere").train
    model = keras.Sequential([keras.Input((28, 28)), L.Flatten(), L.Dense(32, "tanh"), L.Dense(10, "softmax")])
    model.compile(keras.optimizers.Adam(3e-4), "sparse_categorical_crossentropy")
    model.fit(digits.images[:, 0].float(), digits.labels, batch_size=32, epochs=30, verbose=0)
    path = tmp_path_factory.mktemp("learned") / "learned.keras"
    model.save(path)
    return model, path


@pytest.fixture
def learned_checkpoint(learned: tuple[keras.Sequential, Path]) -> str:
    """`learned`, imported to learned.ckpt."""
    save(Path("learned.ckpt"), import_model(learned[1], scaling="1").trained)
    return "learned.ckpt"


def test_the_command_shows_what_it_read_and_the_scale_it_guessed(
    learned: tuple[keras.Sequential, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    digits = datasets.load("digits", "nowhere").train  # which it was trained on, and which are not at hand otherwise
    known = ("digits", Images(digits.images[:1000], digits.labels[:1000]))
    monkeypatch.setattr("mnist_cnn.keras.importer.images_to_guess_on", lambda root: known)
    told = command("import-keras", str(learned[1]), capsys=capsys)
    assert told.status == 0, told.err
    for words in (f"Keras {keras.__version__}", "Adam, learning rate 0.0003", "25,450", "input scale 1, guessed"):
        assert words in told.out, words
    assert load("learned.ckpt").preprocessing == Preprocessing(scale=1)


def test_an_imported_checkpoint_gets_the_same_digits_right_as_the_model(
    learned: tuple[keras.Sequential, Path], learned_checkpoint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    digits = datasets.load("digits", "nowhere").test
    correct = int((learned[0](digits.images[:, 0].float()).argmax(1) == digits.labels).sum())
    assert evaluate(load(learned_checkpoint), digits, "digits", "test").correct == correct
    evaluated = command("evaluate", learned_checkpoint, "--data", "digits", "--json", capsys=capsys)
    assert json.loads(evaluated.out)["correct"] == correct


def test_the_command_keeps_a_checkpoint_that_exists(
    learned: tuple[keras.Sequential, Path], learned_checkpoint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = Path(learned_checkpoint).read_bytes()
    again = command("import-keras", str(learned[1]), capsys=capsys)
    assert again.status == 1
    assert "exists already" in again.err
    assert Path(learned_checkpoint).read_bytes() == before


def test_a_given_scale_is_not_guessed(
    learned: tuple[keras.Sequential, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    told = command("import-keras", str(learned[1]), "-o", "b.ckpt", "--input-scale", "1/255", "--json", capsys=capsys)
    found = json.loads(told.out)
    assert found["input_scale"] == "1/255"
    assert found["parameters"] == 25_450
    assert found["trials"] == []


@pytest.mark.parametrize(
    ("output", "says"),
    [("", "-o/--output: it is empty"), ("a.keras", "name it a.ckpt"), ("nowhere/a.ckpt", "there is no folder nowhere")],
)
def test_import_refuses_what_can_not_be_the_name_of_a_checkpoint(
    output: str, says: str, learned: tuple[keras.Sequential, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    refused = command("import-keras", str(learned[1]), "-o", output, capsys=capsys)
    assert refused.status != 0
    assert says in refused.err


def test_export_prints_the_shape_and_scale_of_the_input(
    learned_checkpoint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    exported = command("export", learned_checkpoint, "--format", "keras", "-o", "back.keras", capsys=capsys)
    assert exported.status == 0, exported.err
    assert "shape (None, 28, 28), scaled by x\n" in exported.out


def test_export_refuses_a_name_that_keras_does_not_read(
    learned_checkpoint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    refused = command("export", learned_checkpoint, "--format", "keras", "-o", "a.h5", capsys=capsys)
    assert refused.status != 0
    assert "end in .keras" in refused.err


def test_nobody_knows_the_validation_images_of_an_imported_network(
    learned_checkpoint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    refused = command("evaluate", learned_checkpoint, "--data", "digits", "--split", "val", capsys=capsys)
    assert refused.status == 1
    assert "not known for an imported network" in refused.err


def test_every_scaling_can_be_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    # The command names them itself, for --help would have to wait for torch otherwise.
    assert f"{{{','.join(SCALINGS)}}}" in command("import-keras", "--help", capsys=capsys).out


def test_an_imported_network_is_trained_further(learned: tuple[keras.Sequential, Path]) -> None:
    imported = import_model(learned[1], scaling="1").trained
    save(Path("it.ckpt"), imported)
    settings = ("model.init_from=it.ckpt", "data=digits", "trainer=cpu", "run_dir=run", "optimizer.lr=1e-5")
    outcome = train_command(*settings, "trainer.max_epochs=1")
    assert outcome.status == 0, outcome.err
    further = load("run")
    assert further.preprocessing == imported.preprocessing
    assert further.network.layers == imported.network.layers
    for before, after in zip(imported.network.parameters(), further.network.parameters(), strict=True):
        assert 0 < float((before - after).abs().max()) < 1e-3
    Path("it.ckpt").unlink()
    outcome = train_command("resume=run", "model.init_from=other.ckpt")
    assert outcome.status == 2
    assert "can't be changed when a run is resumed (it was it.ckpt)" in outcome.err
    outcome = train_command("resume=run", "trainer.max_epochs=2", "trainer=cpu")
    assert outcome.status == 0, outcome.err


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (("model.init_from=nothing.ckpt",), "nothing.ckpt: no such file"),
        (("model.init_from=it.ckpt", "model=tiny"), "model: model.init_from brings its own network"),
        (("model.init_from=it.ckpt", "model.name=mine"), "brings its own network"),
        (("model.init_from=it.keras",), "a Keras file; convert it first: mnist-cnn import-keras"),
        (("model.init_from=it.ckpt", "model.layers.0.Conv2D.filters=3"), "brings its own network"),
        (("model.init_from=it.ckpt", "data.normalize=standard"), "brings its own scaling"),
        (("model.init_from=it.ckpt", "data=cifar10"), "images of 3×32×32, the network takes 1×28×28"),
    ],
)
def test_what_contradicts_a_pretrained_network_is_refused(settings: tuple[str, ...], says: str) -> None:
    dense_file()
    save(Path("it.ckpt"), bring("it.keras").trained)
    outcome = train_command(*settings)
    assert outcome.status != 0
    assert says in outcome.err


# --- real files ---


@pytest.mark.mnist
@pytest.mark.parametrize("count", [False, pytest.param(True, marks=pytest.mark.full)], ids=["outputs", "counts"])
def test_other_peoples_models_are_here_what_they_are_in_keras(real_mnist: Callable[..., Outcome], count: bool) -> None:
    folder = os.environ.get("KERAS_MODELS")
    if not folder:
        pytest.skip("KERAS_MODELS names no folder with Keras files and their models.json")
    assert real_mnist("debug=smoke", "run_dir=run").status == 0
    test = datasets.load("mnist", OmegaConf.load("run/config.yaml").data.root).test
    results = [keras_files.check(Path(folder), model, test, count) for model in keras_files.models(Path(folder))]
    assert [result.file for result in results if not result.equal] == []
    assert all("Lambda" in result.refused for result in results if result.refused)


def test_h5py_is_asked_for_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    dense_file()
    monkeypatch.setattr("mnist_cnn.keras.file.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'mnist-cnn\[keras\]'"):
        bring("it.keras")
