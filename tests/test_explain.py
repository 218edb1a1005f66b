"""`mnist-cnn explain`: the page shows what `predict` does, what the layers compute, and nothing from elsewhere."""

import base64
import dataclasses
import io
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from mnist_cnn.cli import main
from mnist_cnn.data.images import Preprocessing
from mnist_cnn.errors import CheckpointError
from mnist_cnn.inference import checkpoint
from mnist_cnn.inference.predict import predict
from mnist_cnn.report.explain import bitmaps, inside
from mnist_cnn.report.explain.page import explain
from mnist_cnn.report.explain.steps import MAX_EXPLAINED
from tests.test_predict import stroke
from tests.test_report import Page
from tests.trained import trained as network_of

CONVOLUTION = {"Conv2D": {"filters": 40, "kernel_size": 3, "activation": "relu"}}
DENSE = ["Flatten", {"Dense": {"units": 10}}]


def paper(count: int, folder: Path, name: str = "paper.png") -> Path:
    """A picture of so many sevens side by side, dark on grey paper."""
    sevens = stroke(2).repeat(1, count).repeat_interleave(3, 0).repeat_interleave(3, 1)
    Image.fromarray((200 - 160 * sevens).byte().numpy()).save(folder / name)
    return folder / name


def images_in(page: str) -> list[Image.Image]:
    """The images of a page, in their order."""
    found = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    return [Image.open(io.BytesIO(base64.b64decode(text))) for text in found]


def shown(page: str, image: Tensor) -> int:
    """How often an image, uint8 (C, H, W), is on a page, pixel by pixel."""
    wanted = image.permute(1, 2, 0).squeeze(-1).numpy()
    return sum(np.array_equal(np.asarray(one), wanted) for one in images_in(page))


@pytest.mark.parametrize("placing", ["auto", "fit", "as-is"])
@pytest.mark.parametrize("count", [1, 3])
def test_the_page_shows_the_very_images_and_the_answer_of_predict(count: int, placing: Any, tmp_path: Path) -> None:
    trained, file = checkpoint.load("tiny_strong"), paper(count, tmp_path)
    found = explain(trained, str(file), placing)
    prediction = next(predict(trained, [file], placing))
    for digit in prediction.digits:
        assert shown(found.page, digit.image) >= 2  # what the network gets, and beside the saliency maps
        assert f"<td>{digit.probability:.2%}</td>" in found.page
    assert found.answer.startswith(prediction.digit)
    assert ("the ink that was found" in found.page) == (placing != "as-is")


def test_an_image_of_mnist_is_said_to_be_taken_as_it_is(tmp_path: Path) -> None:
    trained = checkpoint.load("tiny_strong")
    prepared = next(predict(trained, [paper(1, tmp_path)])).digits[0].image  # placed as in MNIST
    Image.fromarray(prepared[0].numpy()).save(tmp_path / "placed.png")
    page = explain(trained, str(tmp_path / "placed.png")).page
    assert "it is taken as it is" in page
    assert shown(page, prepared) == 2


def test_an_image_that_is_padded_for_the_network_is_shown_at_both_sizes(tmp_path: Path) -> None:
    trained = network_of(DENSE, (1, 32, 32), preprocessing=Preprocessing(size=(32, 32)))
    file = paper(1, tmp_path)
    image = next(predict(trained, [file])).digits[0].image
    page = explain(trained, str(file)).page
    assert shown(page, image) >= 2
    assert shown(page, F.pad(image, (2, 2, 2, 2))) == 1


def test_the_saliency_of_a_linear_network_is_its_weights() -> None:
    trained = network_of(DENSE)
    weights = trained.network.get_submodule("1_Dense").weight
    assert isinstance(weights, Tensor)
    found = inside.saliency(trained.network, torch.rand(1, 1, 28, 28), 3)
    torch.testing.assert_close(found, weights[3].view(28, 28))


def test_saliency_is_the_mean_gradient_over_noisy_copies_and_the_same_each_time() -> None:
    network, x = checkpoint.load("tiny_strong").network, torch.rand(1, 1, 28, 28)
    assert network.evaluation_batch // 16 < inside.COPIES  # so several batches
    noise = torch.Generator().manual_seed(0)
    deviation = inside.NOISE * float(x.max() - x.min())
    gradients = []
    for _ in range(inside.COPIES):
        copy = (x + deviation * torch.randn(1, 1, 28, 28, generator=noise)).requires_grad_()
        gradients.append(torch.autograd.grad(network(copy)[0, 7], copy)[0])
    found = inside.saliency(network, x, 7)
    torch.testing.assert_close(found, torch.stack(gradients).mean(0)[0, 0], rtol=1e-3, atol=1e-4)
    assert torch.equal(found, inside.saliency(network, x, 7))


def test_feature_maps_have_the_values_of_the_layers_in_keras_order() -> None:
    trained = network_of([CONVOLUTION, "MaxPooling2D", "BatchNormalization", "ReLU", *DENSE])
    x = torch.rand(1, 1, 28, 28)
    convolved = trained.network.get_submodule("0_Conv2D")(x).relu()
    pooled = trained.network.get_submodule("2_BatchNormalization")(F.max_pool2d(convolved, 2)).relu()
    first, second = inside.feature_maps(trained.network, x)
    assert first.layers == "layer 0: Conv2D"
    assert first.shape == (40, 26, 26)
    assert second.layers == "layer 1: MaxPooling2D, BatchNormalization, ReLU"
    torch.testing.assert_close(first.maps, convolved[0, : inside.MAX_MAPS])
    torch.testing.assert_close(second.maps, pooled[0, : inside.MAX_MAPS])


def test_the_branches_of_a_graph_and_where_they_meet_have_maps() -> None:
    layers = [
        {"Conv2D": {"filters": 2, "kernel_size": 3, "name": "a"}},
        {"Conv2D": {"filters": 2, "kernel_size": 3, "name": "b", "inputs": "input"}},
        {"Add": {"inputs": ["a", "b"]}},
        *DENSE,
    ]
    trained, x = network_of(layers), torch.rand(1, 1, 28, 28)
    a, b, both = inside.feature_maps(trained.network, x)
    torch.testing.assert_close(a.maps + b.maps, both.maps)


def test_large_maps_are_reduced_and_the_page_says_so(tmp_path: Path) -> None:
    trained = network_of([CONVOLUTION, "GlobalMaxPooling2D", {"Dense": {"units": 10}}], (1, 200, 100))
    (found,) = inside.feature_maps(trained.network, torch.rand(1, 1, 200, 100))
    assert found.maps.shape == (inside.MAX_MAPS, inside.MAX_SIDE, inside.MAX_SIDE)
    assert found.shape == (40, 198, 98)
    assert "32 of 40 maps of 98×198, shown smaller" in explain(trained, str(paper(1, tmp_path))).page


def test_first_filters_are_the_kernels_or_the_dense_weights_as_images() -> None:
    convolution = network_of([CONVOLUTION, *DENSE]).network
    first = inside.first_filters(convolution)
    assert first is not None
    assert torch.equal(first.weights, convolution.state_dict()["0_Conv2D.weight"])
    dense, x = network_of(DENSE, (3, 8, 6)).network, torch.rand(1, 3, 8, 6)
    images = inside.first_filters(dense)
    assert images is not None
    bias = dense.state_dict()["1_Dense.bias"]
    torch.testing.assert_close((images.weights * x).sum((1, 2, 3)) + bias, dense(x)[0])


def test_a_network_without_convolutions_and_one_without_filters_say_so(tmp_path: Path) -> None:
    file = paper(1, tmp_path)
    page = explain(network_of(DENSE), str(file)).page
    assert "no convolution or pooling" in page
    assert "all 10 filters of 28×28 pixels" in page
    recurrent = network_of([{"Reshape": {"target_shape": [28, 28]}}, {"LSTM": {"units": 8}}, {"Dense": {"units": 10}}])
    assert "has no filters that are images" in explain(recurrent, str(file)).page


def test_a_network_for_colours_gets_the_whole_picture_and_has_coloured_filters(tmp_path: Path) -> None:
    Image.fromarray(torch.randint(0, 256, (40, 30, 3), dtype=torch.uint8).numpy()).save(tmp_path / "photo.png")
    trained = network_of([CONVOLUTION, *DENSE], (3, 32, 32))
    page = explain(trained, str(tmp_path / "photo.png")).page
    assert shown(page, next(predict(trained, [tmp_path / "photo.png"])).digits[0].image) == 2
    assert "taken as a whole and only resized." in page
    assert images_in(page)[-1].mode == "RGBA"


@pytest.mark.parametrize("digits", [MAX_EXPLAINED, MAX_EXPLAINED + 2])
def test_only_so_many_digits_are_explained(digits: int, tmp_path: Path) -> None:
    page = explain(network_of(DENSE), str(paper(digits, tmp_path))).page
    assert page.count("what would change the answer</h2>") == MAX_EXPLAINED
    assert ("this page explains the first" in page) == (digits > MAX_EXPLAINED)


def test_signed_values_keep_their_sign_and_their_order_as_colours() -> None:
    values = torch.tensor([[[-1.0, -0.5, 0.0, 0.5, 1.0]]])
    with Image.open(io.BytesIO(bitmaps.signed(values, 8))) as image:
        colours = np.asarray(image.convert("RGB")).astype(int)[0, ::5]
    red, _, blue = colours.T
    assert (red[:2] > blue[:2]).all()
    assert (blue[3:] > red[3:]).all()
    light = colours.sum(1)
    assert light[0] > light[1] > light[2] < light[3] < light[4]


def test_the_page_loads_nothing_and_escapes_every_name(tmp_path: Path) -> None:
    hostile = "<script src=http:>&\"'"
    name = "<img src=x onerror=alert(1)>.png"
    classes = (hostile, *"123456789")
    trained = network_of([CONVOLUTION, *DENSE], classes=classes, model=hostile, dataset=hostile)
    text = explain(trained, str(paper(2, tmp_path, name))).page
    page = Page()
    page.feed(text.replace("<rect ", "<br ").replace("/>", ">"))
    assert page.open == []
    assert page.sources
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    for markup in ("<script", "<img src=x", "onerror=alert(1)>", "url(", "@import", "<link"):
        assert markup not in text


def test_the_command_writes_a_page_and_keeps_a_file_that_is_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(paper(1, tmp_path))
    assert main(["explain", "tiny_strong", file]) == 0
    written = Path("explain.html").read_bytes()
    assert capsys.readouterr().out.endswith("written to explain.html\n")
    assert main(["explain", file]) == 1
    assert "explain.html: the file exists already" in capsys.readouterr().err
    assert Path("explain.html").read_bytes() == written
    assert main(["explain", file, "-o", "other.html"]) == 0
    assert "using accurate" in capsys.readouterr().err
    assert b"How accurate reads paper.png" in Path("other.html").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["damaged.png"], 1, "damaged.png: not a picture, or damaged."),
        (["blank.png"], 1, "blank.png: nothing to see"),
        (["."], 1, ".: a folder, a pipe or a device, not a file."),
        ([""], 2, "the name of the picture is empty."),
        (["tiny_strong"], 2, "no picture given: mnist-cnn explain tiny_strong PICTURE"),
        (["nothing.ckpt", "blank.png"], 1, "nothing.ckpt: no such file or folder."),
        (["blank.png", "-o", "page.png"], 2, "-o page.png: the name must end in .html; name it page.html"),
    ],
)
def test_a_mistake_gets_one_line_and_leaves_no_file(
    arguments: list[str], status: int, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("damaged.png").write_bytes(b"\x89PNG\r\n\x1a\n damaged")
    Image.new("L", (60, 60), 128).save("blank.png")
    assert main(["explain", *arguments]) == status
    assert f"error: {says}" in capsys.readouterr().err.splitlines()[-1]
    assert sorted(path.name for path in Path().iterdir()) == ["blank.png", "damaged.png"]


def test_a_picture_is_also_read_from_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = io.BytesIO(paper(1, tmp_path).read_bytes())
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(content))
    assert explain(network_of(DENSE), "-").page.count("How made up reads standard input") == 2


def test_neither_the_page_nor_the_animation_needs_what_only_training_needs() -> None:
    code = "import mnist_cnn.report.explain.page, mnist_cnn.report.recognition, sys; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"matplotlib", "lightning", "torchvision", "sklearn", "hydra"} & set(loaded)


def test_outputs_that_are_not_finite_are_an_error(tmp_path: Path) -> None:
    trained = network_of(DENSE)
    dense = trained.network.get_submodule("1_Dense")
    assert isinstance(dense, nn.Linear)
    dense.weight.fill_(3e38)
    with pytest.raises(CheckpointError, match="not finite numbers"):
        explain(trained, str(paper(1, tmp_path)))


def test_a_network_of_ones_own_pictures_gets_the_picture_as_it_is(tmp_path: Path) -> None:
    own = dataclasses.replace(checkpoint.load("tiny_strong"), dataset="folder:letters", classes=tuple("abcdefghij"))
    assert "taken as a whole and only resized." in explain(own, str(paper(1, tmp_path))).page
