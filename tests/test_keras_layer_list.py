"""A Keras file that has weights only is imported with a list of layers in the words of `conf/model`."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from keras_recipes import NETWORKS, keras
from torch.nn import functional as F

from mnist_cnn import cli
from mnist_cnn.errors import KerasFileError
from mnist_cnn.inference.checkpoint import load
from mnist_cnn.keras.importer import import_model
from tests.conftest import CONF
from tests.test_keras_import import bring, images, legacy, randomized, same, sequential

L = keras.layers
LIST = Path("it.yaml")


def written(*layers: Any) -> Path:
    LIST.write_text(yaml.safe_dump({"layers": list(layers)}))
    return LIST


def weights_only(*layers: Any) -> Any:
    model = sequential(*layers)
    model.save_weights("it.weights.h5")
    return model


@pytest.mark.parametrize("kind", ["of Keras 3", "of Keras 2"])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_files_of_conf_are_such_lists(name: str, kind: str) -> None:
    model = sequential(*NETWORKS[name](), L.Softmax())
    if kind == "of Keras 3":
        model.save_weights("it.weights.h5")
    else:
        legacy(model, None, "2.0.2")
    file = "it.weights.h5" if kind == "of Keras 3" else "it.h5"
    same(file, model, architecture=CONF / "model" / f"{name}.yaml")


def test_a_file_without_layers_says_which_weights_it_has() -> None:
    weights_only(L.Conv2D(2, 3), L.Flatten(), L.Dense(10))
    with pytest.raises(KerasFileError, match=r"Its weights: conv2d \(3×3×1×2, 2\), dense \(1352×10, 10\)\.$"):
        bring("it.weights.h5")
    legacy(sequential(L.Flatten(), L.Dense(10)), None, "2.0.2")
    with pytest.raises(KerasFileError, match=r"Its weights: some_\d \(784×10, 10\)\.$"):
        bring("it.h5")


DENSE = {"Dense": {"units": 10}}
WRONG: list[tuple[list[Any], str]] = [
    (["Flatten", {"Dense": {"units": 5}}, DENSE], r"layer 1 \(Dense\): its kernel is 784×10 in the file, 784×5 by its"),
    (["MaxPooling2D", "Flatten", DENSE], r"layer 2 \(Dense\): its kernel is 784×10 in the file, 196×10 by its"),
    ([{"Conv2D": {"filters": 2, "kernel_size": 3}}, "Flatten", DENSE], r"layer 0 \(Conv2D\): its 2 weights are not in"),
    (["Flatten", {"Dense": {"units": 10, "use_bias": False}}], r"layer 1 \(Dense\): its 1 weights are not in the file"),
    (["Flatten", {"Dens": {"units": 10}}], r"layer 1: no layer is called Dens. Did you mean Dense\?"),
    (["Flatten", {"Dense": {"unit": 10}}], r"layer 1 \(Dense\): it has no argument 'unit'"),
    (["Flatten"], "the model gives 784 values"),
    ([3], "layer 0: 3 is not a layer"),
]


@pytest.mark.parametrize(("layers", "says"), WRONG, ids=str)
def test_layers_that_do_not_fit_are_named_with_their_shapes(layers: list[Any], says: str) -> None:
    weights_only(L.Flatten(), L.Dense(10))
    with pytest.raises(KerasFileError, match=says) as refused:
        bring("it.weights.h5", architecture=written(*layers))
    assert str(refused.value).startswith("it.weights.h5: ")
    assert str(refused.value).isprintable()


def test_too_few_layers_are_told_with_the_weights_of_the_file() -> None:
    legacy(sequential(L.Flatten(), L.Dense(20), L.Dense(10)), None, "2.0.2")
    says = (
        r"1 of its layers have weights, but the file has weights for 2: some_\d \(784×20, 20\), some_\d \(20×10, 10\)"
    )
    with pytest.raises(KerasFileError, match=says):
        bring("it.h5", architecture=written("Flatten", DENSE))


BAD = {
    "": "it has no list of layers",
    "layers: 3": "it has no list of layers",
    "layers: []": "it has no list of layers",
    "layers: &a [Flatten, *a]": "it has aliases",
    "layers: [!!python/object/apply:os.system [true]]": "it has tags",
    "layers: [!!binary aGk=]": "it has tags",
    "layers: [": "not a list of layers",
    "layers: " + "[" * 20_000: "it has more values, or deeper ones",
    "\0": "not a list of layers",
    "layers: [Flatten]\n#" + "x" * 2**16: "larger than the limit of 65,536 bytes",
}


@pytest.mark.parametrize("text", BAD, ids=lambda text: text[:30])
def test_what_is_no_such_list_is_refused_in_a_line(text: str) -> None:
    weights_only(L.Flatten(), L.Dense(10))
    LIST.write_text(text)
    with pytest.raises(KerasFileError, match=BAD[text]) as refused:
        bring("it.weights.h5", architecture=LIST)
    assert str(refused.value).startswith("it.yaml: ")
    assert str(refused.value).isprintable()


def test_a_pipe_is_not_waited_for() -> None:
    weights_only(L.Flatten(), L.Dense(10))
    os.mkfifo("it.yaml")
    with pytest.raises(KerasFileError, match="not a file"):
        bring("it.weights.h5", architecture=LIST)


def test_a_number_may_be_written_as_on_the_command_line() -> None:
    model = weights_only(L.BatchNormalization(epsilon=1e-1), L.Flatten(), L.Dense(10, "softmax"))
    LIST.write_text("layers:\n- BatchNormalization: {epsilon: 1e-1}\n- Flatten\n- Dense: {units: 10}\n")
    same("it.weights.h5", model, architecture=LIST)


def test_layers_that_name_the_input_get_the_scaled_images() -> None:
    inputs = keras.Input((28, 28, 1))
    stem = L.Conv2D(1, 3, padding="same")(inputs)
    outputs = L.Dense(10, activation="softmax")(L.Flatten()(L.Add()([stem, inputs])))
    model = randomized(keras.Model(inputs, outputs))
    model.save_weights("it.weights.h5")
    stem = {"Conv2D": {"filters": 1, "kernel_size": 3, "padding": "same", "name": "stem"}}
    architecture = written(stem, {"Add": {"inputs": ["stem", "input"]}}, "Flatten", DENSE)
    same("it.weights.h5", model, architecture=architecture)
    x = images()
    scaled = import_model(Path("it.weights.h5"), architecture, "normalize").trained.network
    expected = model(F.normalize(x, dim=1), training=False)
    torch.testing.assert_close(scaled(x.permute(0, 3, 1, 2)).softmax(1), expected, atol=1e-5, rtol=0)


def test_the_command_writes_a_checkpoint_that_has_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    weights_only(L.Flatten(), L.Dense(10))
    architecture = str(written("Flatten", DENSE))
    assert cli.main(["import-keras", "it.weights.h5", "--architecture", architecture, "--input-scale=1/255"]) == 0
    assert "7,850" in capsys.readouterr().out
    assert load("it.weights.ckpt").network.layers == ["Flatten", DENSE]
