"""What is exported to ONNX answers in ONNX Runtime as in PyTorch, carries its card, and is refused where it doesn't."""

import json
import os
import re
import subprocess
import sys
import venv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import yaml
from torch import Tensor, nn

from mnist_cnn.cli import main
from mnist_cnn.data import datasets
from mnist_cnn.data.datasets import DataFiles
from mnist_cnn.data.images import Images, Preprocessing
from mnist_cnn.data.sources import Array
from mnist_cnn.errors import OutputError, UserError
from mnist_cnn.export import card, onnx_file
from mnist_cnn.export.check import compare, reference, require_equal
from mnist_cnn.export.onnx_file import Exported, export_onnx
from mnist_cnn.export.program import as_input, image_shape
from mnist_cnn.inference import box, checkpoint
from mnist_cnn.inference.checkpoint import TrainedNetwork
from mnist_cnn.inference.evaluate import evaluate
from mnist_cnn.network import LAYERS, MERGES
from mnist_cnn.network.layers.activations import ACTIVATIONS
from mnist_cnn.network.registry import Layer
from tests.conftest import CONF, FULL_SIZE_MIRROR, ROOT
from tests.trained import trained

FILE = Path("it.onnx")
END: list[Any] = ["Flatten", {"Dense": {"units": 10}}]
SAME: dict[str, Any] = {"filters": 4, "kernel_size": 3, "padding": "same"}


def branches(layers: list[Any]) -> list[Any]:
    """Each of these layers on the same 4 channels, and the sum of their outputs."""
    named = []
    for index, layer in enumerate(layers):
        ((kind, arguments),) = layer.items() if isinstance(layer, dict) else [(layer, {})]
        named.append({kind: {**arguments, "inputs": "start", "name": f"branch {index}"}})
    names = [f"branch {index}" for index in range(len(layers))]
    return [{"Conv2D": {**SAME, "strides": 4, "name": "start"}}, *named, {"Add": {"inputs": names}}, *END]


# Every layer and activation at least once, with arguments that are not the defaults.
NETWORKS: dict[str, list[Any]] = {
    "activations": branches([{"Activation": {"activation": name}} for name in ACTIVATIONS if name]),
    "layers": branches([
        {"Conv2D": {**SAME, "groups": 2, "dilation_rate": 2}}, {"SeparableConv2D": {**SAME, "depth_multiplier": 2}},
        {"DepthwiseConv2D": {"kernel_size": 3, "padding": "same"}}, {"BatchNormalization": {"axis": 1, "scale": False}},
        {"MaxPooling2D": {"pool_size": 2, "strides": 1, "padding": "same"}}, {"InstanceNormalization": {"axis": -1}},
        {"AveragePooling2D": {"pool_size": 2, "strides": 1, "padding": "same"}}, {"UnitNormalization": {"axis": 1}},
        {"ReLU": {"max_value": 0.8, "negative_slope": 0.2, "threshold": 0.3}}, "LeakyReLU", {"ELU": {"alpha": 0.7}},
        {"Rescaling": {"scale": 2.0, "offset": -1.0}}, {"Dropout": {"rate": 0.5}}, {"SpatialDropout2D": {"rate": 0.5}},
        {"Softmax": {"axis": 1}}, {"Dense": {"units": 4}},
    ]),
    "merges": [
        {"MaxPooling2D": {"pool_size": 4}}, {"Conv2D": {**SAME, "name": "a"}}, {"Conv2D": {**SAME, "name": "b"}},
        *({kind: {"inputs": ["a", "b"], "name": kind}} for kind in MERGES if kind != "Concatenate"),
        {"Concatenate": {"inputs": [kind for kind in MERGES if kind != "Concatenate"]}}, {"Conv2D": SAME},
        {"Conv2D": {**SAME, "name": "c"}}, {"Shared": {"layer": "c"}}, {"ZeroPadding2D": {"padding": [[1, 0], [0, 2]]}},
        {"Permute": {"dims": [3, 1, 2]}}, {"GlobalMaxPooling2D": {"keepdims": True}},
        "GlobalAveragePooling2D", {"Dense": {"units": 10}},
    ],
    "sequence": [
        {"Reshape": {"target_shape": [2, 392]}}, {"LSTM": {"units": 6, "return_sequences": True}},
        {"LSTM": {"units": 5, "activation": "relu", "recurrent_activation": "hard_sigmoid"}}, {"Dense": {"units": 10}},
    ],
}  # fmt: skip


def export(network: TrainedNetwork, path: Path = FILE) -> Exported:
    return export_onnx(
        network,
        path,
        reference(network, DataFiles(network.dataset, "nowhere")),
        card.facts(network, Path("it.ckpt")),
        "about it",
    )


def answers(images: np.ndarray[Any, Any], file: Path = FILE) -> Tensor:
    session = onnxruntime.InferenceSession(file)
    (found,) = session.run(None, {"images": images})
    return torch.from_numpy(found)


def expected(network: TrainedNetwork, images: Tensor) -> Tensor:
    """PyTorch's probabilities for images (N, C, H, W), from the path that `evaluate` takes."""
    labels = torch.zeros(len(images), dtype=torch.int64)
    return evaluate(network, Images(images, labels), "my own", "test").probabilities


def assert_answers_as_in_pytorch(network: TrainedNetwork) -> None:
    export(network)
    for count in (1, 5):
        images = torch.randint(0, 256, (count, *image_shape(network)), dtype=torch.uint8)
        torch.testing.assert_close(answers(as_input(images).numpy()), expected(network, images), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", sorted(file.stem for file in (CONF / "model").glob("*.yaml")))
def test_every_network_of_the_configuration_answers_as_in_pytorch(name: str) -> None:
    layers = yaml.safe_load((CONF / "model" / f"{name}.yaml").read_text())["layers"]
    assert_answers_as_in_pytorch(trained(layers))


@pytest.mark.parametrize("name", NETWORKS)
def test_every_layer_answers_as_in_pytorch(name: str) -> None:
    assert_answers_as_in_pytorch(trained(NETWORKS[name]))


def test_these_networks_have_every_layer() -> None:
    layers = [layer for network in NETWORKS.values() for layer in network]
    kinds = {kind for layer in layers for kind in ([layer] if isinstance(layer, str) else layer)}
    assert {*LAYERS, *MERGES, "Shared"} == kinds


@pytest.mark.parametrize(
    ("shape", "preprocessing", "takes"),
    [
        ((1, 32, 32), Preprocessing(size=(32, 32)), [28, 28]),  # padded
        ((1, 20, 20), Preprocessing(size=(20, 20)), [28, 28]),  # resampled
        ((3, 8, 9), Preprocessing((0.1, 0.2, 0.3), (0.4, 0.5, 0.6)), [8, 9, 3]),
    ],
)
def test_images_are_scaled_and_resized_inside(
    shape: tuple[int, int, int], preprocessing: Preprocessing, takes: list[int]
) -> None:
    assert_answers_as_in_pytorch(trained(END, shape, preprocessing=preprocessing))
    (taken,) = onnxruntime.InferenceSession(FILE).get_inputs()
    assert (taken.name, taken.type, taken.shape) == ("images", "tensor(uint8)", ["N", *takes])


def test_the_file_carries_its_card_and_nothing_of_this_machine() -> None:
    exported = export(trained(END))
    model = onnx.load(FILE)
    onnx.checker.check_model(model, full_check=True)
    about = {prop.key: prop.value for prop in model.metadata_props}
    assert (about["model"], about["dataset"], about["weights"]) == ("made up", "my own", "epoch 1")
    assert json.loads(about["classes"]) == list("0123456789")
    assert json.loads(about["training"]) == {"seed": 0}
    assert json.loads(about["check"]) == exported.check.to_dict()
    assert json.loads(about["exported_by"]).keys() == {"python", "mnist-cnn", "torch", *onnx_file._PACKAGES}
    assert model.doc_string == "about it"
    assert str(ROOT).encode() not in FILE.read_bytes()
    assert not any(node.metadata_props for node in model.graph.node)
    assert "licence" not in about


def test_a_network_of_the_box_carries_the_card_of_the_box() -> None:
    file, network = checkpoint.load_kept("tiny_strong")
    assert card.facts(network, file)["licence"] == "MIT"
    assert card.text(network, file) == box.text("tiny_strong")


def test_random_images_say_that_they_are_and_give_no_accuracy() -> None:
    expected = reference(trained(END), DataFiles("mnist", "nowhere"))
    check = compare(lambda _: expected.evaluation.probabilities.numpy(), expected)
    assert check.to_dict() == {
        "dataset": None, "images": 250, "same_answers": 250, "largest_difference": 0.0, "accuracy": None,
    }  # fmt: skip
    assert check.summary() == "250 random images: the same answers as PyTorch, equal probabilities"


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        (lambda right: right + np.float32(2e-5), "in 0 answers, and by up to 2.0e-05 in a probability"),
        (lambda right: np.roll(right, 1, axis=1), "in 250 answers, and"),
        (lambda right: right + np.float32(np.nan), "by up to nan in a probability"),
    ],
)
def test_other_answers_than_pytorchs_are_refused(answers: Callable[[Array], Array], said: str) -> None:
    expected = reference(trained(END), DataFiles("mnist", "nowhere"))
    right = expected.evaluation.probabilities.numpy()
    require_equal(compare(lambda _: right, expected), "A Runtime")
    with pytest.raises(UserError, match=r"^A Runtime and PyTorch differ on 250 random images: ") as refused:
        require_equal(compare(lambda _: answers(right), expected), "A Runtime")
    assert said in str(refused.value)


def test_a_file_that_answers_otherwise_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    session = onnx_file.session
    monkeypatch.setattr(onnx_file, "session", lambda model: lambda images: session(model)(255 - images))
    with pytest.raises(UserError, match="no file was written"):
        export(trained(END))
    assert list(Path().iterdir()) == []


class Mine(nn.Module):
    """Computes what can't be traced: its output depends on a value in Python."""

    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def test_a_layer_that_cannot_be_exported_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LAYERS, "Mine", lambda shape: Layer({"Mine": Mine()}, shape))
    network = trained([{"Conv2D": SAME}, "Mine", *END])
    with pytest.raises(UserError, match=r"^layer 1 \(Mine\): it can't be exported: .*$"):
        export(network)
    assert list(Path().iterdir()) == []


def test_an_existing_file_is_kept() -> None:
    FILE.write_text("mine")
    with pytest.raises(OutputError, match="exists already"):
        export(trained(END))
    assert FILE.read_text() == "mine"


def command(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    try:
        status = main(["export", *map(str, arguments)])
    except SystemExit as end:
        status = int(end.code or 0)
    said = capsys.readouterr()
    return status, said.out, said.err


def test_the_command_says_what_was_checked(digits_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = command(capsys, digits_run, "--format", "onnx", "-o", FILE)
    accuracy = json.loads((digits_run / "metrics.json").read_text())["test/accuracy"]
    assert (status, err) == (0, "")
    assert "checked in ONNX Runtime on the 360 test images of digits: the same answers as PyTorch" in out
    assert f"accuracy {accuracy:.2%}" in out
    assert f"written to it.onnx, {FILE.stat().st_size / 1000:,.0f} kB" in out
    assert (
        json.loads(onnxruntime.InferenceSession(FILE).get_modelmeta().custom_metadata_map["test_accuracy"]) == accuracy
    )


def test_eight_bits_are_measured_beside_float(digits_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = command(capsys, digits_run, "--format", "onnx", "--int8", "--json")
    assert (status, err) == (0, "")
    said = json.loads(out)
    assert said["file"] == "tiny-int8.onnx"
    test = datasets.load("digits", "nowhere").test
    right = answers(as_input(test.images).numpy(), Path(said["file"])).argmax(1) == test.labels
    assert said["check"]["accuracy"] == pytest.approx(float(right.float().mean()))
    assert said["check"]["largest_difference"] > 1e-3  # it is another network …
    assert said["check"]["same_answers"] > 340  # … but nearly the same
    assert said["float32"]["largest_difference"] < 1e-5
    assert min(said[which]["images_per_second"] for which in ("check", "float32")) > 0
    kinds = {
        weight.name: weight.data_type for weight in onnx.load(said["file"]).graph.initializer if len(weight.dims) > 1
    }
    assert sorted(kinds.values()) == [onnx.TensorProto.FLOAT, *[onnx.TensorProto.INT8] * 3]  # the first convolution's


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["--format", "keras", "--int8"], 2, "--int8 goes with --format onnx"),
        (["--format", "onnx", "-o", "it"], 2, "end in .onnx"),
        (["--format", "onnx", "-o", "it.pt2"], 2, "end in .onnx"),
        (["--format", "pt2", "-o", "it.pt"], 2, "end in .pt2"),
        (["--format", "onnx", "-o", "nowhere/it.onnx"], 1, "there is no folder nowhere"),
        (["--format", "onnx", "--mirror", "gopher://it"], 2, "--mirror"),
    ],
)
def test_a_wrong_command_is_answered_in_a_line(
    arguments: list[str], status: int, said: str, digits_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found, out, err = command(capsys, digits_run, *arguments)
    assert (found, out, err.count("\n")) == (status, "", 1)
    assert said in err
    assert list(Path().iterdir()) == []


def test_without_the_packages_the_command_names_what_installs_them(
    digits_run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert command(capsys, digits_run, "--format", "onnx") == (
        1, "", "error: this needs onnxscript, which is not installed: pip install 'mnist-cnn[onnx]'\n",
    )  # fmt: skip


def test_without_the_data_set_random_images_are_used_and_eight_bits_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    checkpoint.save(Path("it.ckpt"), trained(END))
    status, out, err = command(capsys, "it.ckpt", "--format", "onnx", "-o", FILE)
    assert (status, err.count("\n")) == (0, 1)
    assert "my own: unknown data set" in err
    assert "accuracy" not in out
    status, _, err = command(capsys, "it.ckpt", "--format", "onnx", "--int8")
    assert status == 1
    assert "--int8 is calibrated on training images, but my own: unknown data set" in err
    assert sorted(map(str, Path().iterdir())) == ["it.ckpt", "it.onnx"]


SIX_LINES = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / "export.md").read_text(), re.M | re.S)[0]


@pytest.fixture
def digits() -> list[str]:
    """The files that the six lines of docs/export.md read, and the digits that PyTorch sees in these images."""
    network = replace(checkpoint.load("accurate"), dataset="my own")
    export(network, Path("accurate.onnx"))
    images = datasets.load("digits", "nowhere").test.images[:20]
    np.save("digits.npy", as_input(images).numpy())
    return [str(digit) for digit in expected(network, images).argmax(1).tolist()]


def run_six_lines(python: str | Path, before: str = "") -> list[str]:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    finished = subprocess.run([python, "-c", before + SIX_LINES], capture_output=True, text=True, env=environment)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout.split()


def test_the_six_lines_of_the_page_need_no_torch(digits: list[str]) -> None:
    assert len([line for line in SIX_LINES.splitlines() if line]) == 6
    assert run_six_lines(sys.executable, "import sys; sys.modules['torch'] = None; ") == digits


@pytest.mark.full
def test_the_six_lines_run_where_only_numpy_and_onnx_runtime_are(digits: list[str], tmp_path: Path) -> None:
    venv.create(tmp_path / "fresh", with_pip=True)
    python = tmp_path / "fresh" / "bin" / "python"
    packages = ["numpy", f"onnxruntime=={onnxruntime.__version__}"]
    subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
    assert subprocess.run([python, "-c", "import torch"], capture_output=True).returncode == 1
    assert run_six_lines(python) == digits


@pytest.mark.mnist
@pytest.mark.usefixtures("real_mnist")  # which skips the test where there is no MNIST
@pytest.mark.parametrize("name", ["accurate", "strong", "tiny_strong"])
def test_networks_of_the_box_answer_alike_on_all_of_mnists_test_images(name: str) -> None:
    file, network = checkpoint.load_kept(name)
    exported = export_onnx(
        network,
        FILE,
        reference(network, DataFiles("mnist", ROOT / "data", FULL_SIZE_MIRROR)),
        card.facts(network, file),
        "",
    )
    assert (exported.check.same, exported.check.reference.missing) == (10_000, None)
    assert exported.check.accuracy == box.card(name).test_accuracy
