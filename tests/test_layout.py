"""A network computes what its layers say, although it cuts images and keeps them in oneDNN's layout.

`Network.outputs` computes layer by layer and is the reference.
"""

import copy
import platform
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F
from torch.nn.utils import prune

from mnist_cnn.machine import has_fast_bfloat16
from mnist_cnn.network import Network, blocked, build_network
from mnist_cnn.network.cut import unused_border
from mnist_cnn.network.layers.modules import BatchNorm
from tests.conftest import CONF

END: list[Any] = ["Flatten", {"Dense": {"units": 10}}]
CHAINS: dict[str, list[Any]] = {
    **{name: yaml.safe_load((CONF / "model" / f"{name}.yaml").read_text())["layers"] for name in ("baseline", "tiny")},
    "batch normalisation": [
        {"Conv2D": {"filters": 16, "kernel_size": 5, "padding": "same"}}, "MaxPooling2D", "BatchNormalization", "ReLU",
        {"Conv2D": {"filters": 32, "kernel_size": 3, "use_bias": False}}, "BatchNormalization", "ReLU", *END,
    ],
    "strides and dilation": [
        {"Conv2D": {"filters": 16, "kernel_size": 3, "strides": 2, "activation": "relu"}},
        {"Conv2D": {"filters": 32, "kernel_size": [2, 3], "dilation_rate": 2}}, {"MaxPooling2D": {"pool_size": [3, 2]}},
        *END,
    ],
    "average pooling": [{"Conv2D": {"filters": 16, "kernel_size": 4}}, {"AveragePooling2D": {"pool_size": 3}}, *END],
    "one layer that knows no layout": [
        {"Conv2D": {"filters": 16, "kernel_size": 3}}, {"Dropout": {"rate": 0.0}},
        {"Conv2D": {"filters": 16, "kernel_size": 3, "activation": "tanh"}}, {"MaxPooling2D": {"pool_size": 5}}, *END,
    ],
    "groups": [
        {"Conv2D": {"filters": 32, "kernel_size": 3}}, {"Conv2D": {"filters": 32, "kernel_size": 3, "groups": 4}},
        {"DepthwiseConv2D": {"kernel_size": 3}}, "MaxPooling2D", *END,
    ],
}  # fmt: skip


def build(name: str, shape: tuple[int, int, int] = (1, 28, 28)) -> Network:
    torch.manual_seed(0)
    return build_network(CHAINS[name], shape, classes=10).to(memory_format=torch.channels_last)


def layer_by_layer(network: Network, x: Tensor) -> Tensor:
    *_, last = network.outputs(x)
    return last


@pytest.fixture
def convolutions(monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
    """The types of the images that were convolved in oneDNN's layout so far."""
    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("oneDNN's layout is used on x86 only")
    assert blocked._works(torch.float32)
    assert blocked._works(torch.bfloat16) == has_fast_bfloat16()
    seen: list[torch.dtype] = []
    convolve = torch.mkldnn_convolution

    def note(x: Tensor, *rest: Any) -> Tensor:
        seen.append(x.dtype)
        return convolve(x, *rest)

    monkeypatch.setattr(torch, "mkldnn_convolution", note)
    return seen


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 30, 23)], ids=["28×28", "30×23 in colour"])
@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
def test_outputs_gradients_and_averages_are_those_of_the_layers(
    name: str, shape: tuple[int, int, int], dtype: torch.dtype, close: float
) -> None:
    network = build(name, shape)
    reference = copy.deepcopy(network)
    x = torch.rand(8, *shape)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        found, expected = network(x), layer_by_layer(reference, x)
    for output in (found, expected):
        output.float().square().sum().backward()
    torch.testing.assert_close(found, expected, rtol=close, atol=close)
    # All of them at once: the gradient of a bias in front of a batch normalisation is zero, apart from rounding.
    mine, theirs = (
        torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None])
        for model in (network, reference)
    )
    assert float((mine - theirs).norm() / theirs.norm()) < close
    for average, expected in zip(network.buffers(), reference.buffers(), strict=True):
        torch.testing.assert_close(average, expected, rtol=close, atol=close)
    network.eval()
    reference.eval()
    with torch.inference_mode(), torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        torch.testing.assert_close(network(x), layer_by_layer(reference, x), rtol=close, atol=close)


def test_only_channels_in_whole_blocks_take_the_layout(convolutions: list[torch.dtype]) -> None:
    images = torch.rand(4, 1, 28, 28)
    build("tiny")(images)
    assert convolutions == []
    build("baseline")(images)
    assert convolutions == [torch.float32] * 2
    for name, kind in (("batch normalisation", BatchNorm), ("groups", nn.Conv2d), ("average pooling", nn.Conv2d)):
        assert kind in build(name)._blocked.values()
    with torch.autocast("cpu", torch.bfloat16):
        build("baseline")(images)
    assert convolutions == [torch.float32] * 2 + [torch.bfloat16] * (2 if has_fast_bfloat16() else 0)


def first_convolution_sees(network: Network, x: Tensor) -> tuple[int, ...]:
    sizes: list[tuple[int, ...]] = []
    first = next(module for module in network if isinstance(module, nn.Conv2d))
    first.register_forward_hook(lambda module, inputs, output: sizes.append(tuple(inputs[0].shape[2:])))
    network(x)
    return sizes[0]


@pytest.mark.parametrize("shape", [(1, 28, 28), (1, 29, 27), (1, 30, 25)])
@pytest.mark.parametrize("name", CHAINS)
def test_no_pixel_is_cut_that_an_output_depends_on(name: str, shape: tuple[int, int, int]) -> None:
    network, x = build(name, shape).eval(), torch.rand(2, *shape, requires_grad=True)
    (gradient,) = torch.autograd.grad(layer_by_layer(network, x).square().sum(), x)
    used = gradient.abs().sum((0, 1)) > 0
    if isinstance(pad := network[0], nn.ZeroPad2d):
        used = F.pad(used, pad.padding)
    height, width = first_convolution_sees(network, x.detach())
    assert not used[height:].any()
    assert not used[:, width:].any()


def test_the_pixels_that_a_pooling_leaves_out_are_cut() -> None:
    x = torch.rand(2, 1, 28, 28)
    assert first_convolution_sees(build("baseline"), x) == (26, 26)
    assert first_convolution_sees(build("tiny"), x) == (29, 29)  # of 31×31, with its padding
    assert first_convolution_sees(build("batch normalisation"), x) == (28, 28)


@pytest.mark.parametrize(
    "pooling",
    [nn.MaxPool2d(2, ceil_mode=True), nn.AvgPool2d(2, padding=1), nn.MaxPool2d(2, dilation=2), nn.MaxPool2d(3, 2)],
    ids=str,
)
@pytest.mark.parametrize("convolution", [nn.Conv2d(1, 16, 3), nn.Conv2d(1, 16, 3, padding="same")], ids=str)
def test_modules_of_a_users_own_layer_compute_the_same(convolution: nn.Module, pooling: nn.Module) -> None:
    modules: dict[str, nn.Module] = {"convolution": convolution, "pooling": pooling, "flatten": nn.Flatten()}
    network = Network([], (1, 29, 29), [], {})
    for name, module in modules.items():
        network.add_module(name, module)
    network._cut, network._blocked = unused_border(modules, (1, 29, 29)), blocked.worth_blocking(modules)
    x = torch.rand(4, 1, 29, 29)
    torch.testing.assert_close(network(x), nn.Sequential(*modules.values())(x), rtol=1e-5, atol=1e-5)


def test_larger_images_than_the_network_was_built_for_are_not_cut() -> None:
    end: list[Any] = ["GlobalAveragePooling2D"]
    network = build_network([{"Conv2D": {"filters": 16, "kernel_size": 3}}, "MaxPooling2D", *end], (1, 28, 29))
    for size in ((28, 29), (31, 40)):
        x = torch.rand(4, 1, *size)
        torch.testing.assert_close(network(x), layer_by_layer(network, x), rtol=1e-5, atol=1e-5)


def test_double_precision_takes_torchs_layout(convolutions: list[torch.dtype]) -> None:
    network, x = build("baseline").double(), torch.rand(4, 1, 28, 28, dtype=torch.float64)
    torch.testing.assert_close(network(x), layer_by_layer(network, x), rtol=1e-13, atol=1e-13)
    assert convolutions == []


def test_the_same_step_gives_the_same_bits() -> None:
    x = torch.rand(16, 1, 28, 28)
    gradients = []
    for _ in range(2):
        network = build("batch normalisation")
        network(x).square().sum().backward()
        gradients.append([parameter.grad for parameter in network.parameters()])
    for first, second in zip(*gradients, strict=True):
        assert first is not None
        assert torch.equal(first, second)


def test_the_trial_leaves_the_callers_random_numbers_alone(convolutions: list[torch.dtype]) -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    blocked._works.cache_clear()
    with torch.inference_mode():  # as in `evaluate`, where no gradients can be computed
        assert blocked._works(torch.float32)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("fault", ["missing", "wrong"])
def test_where_torch_cannot_do_it_a_line_says_so_and_the_result_is_the_same(
    fault: str,
    convolutions: list[torch.dtype],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    convolve = torch.mkldnn_convolution
    if fault == "missing":
        monkeypatch.delattr(torch, "mkldnn_convolution")
    else:
        monkeypatch.setattr(torch, "mkldnn_convolution", lambda *how: convolve(*how).to_dense().mul(1.01).to_mkldnn())
    blocked._works.cache_clear()
    network, x = build("baseline"), torch.rand(4, 1, 28, 28)
    try:
        for _ in range(2):
            torch.testing.assert_close(network(x), layer_by_layer(network, x), rtol=1e-5, atol=1e-5)
    finally:
        blocked._works.cache_clear()
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert said[0].startswith("warning: convolutions on the CPU are slower than they could be, because torch ")


def test_a_hook_sees_tensors_that_it_can_read(convolutions: list[torch.dtype]) -> None:
    network, seen = build("baseline"), []
    network[0].register_forward_hook(lambda module, inputs, output: seen.append(output.mean().item()))
    network(torch.rand(4, 1, 28, 28))
    assert len(seen) == 1
    assert convolutions == []


@pytest.mark.parametrize("kind", ["forward_pre", "full_backward", "full_backward_pre"])
def test_every_kind_of_hook_is_called(kind: str, convolutions: list[torch.dtype]) -> None:
    network, seen = build("baseline"), []

    def note(*told: Any) -> None:
        seen.append(told)

    getattr(network[3], f"register_{kind}_hook")(note)
    network(torch.rand(4, 1, 28, 28)).sum().backward()
    assert len(seen) == 1
    assert convolutions == []


def test_pruned_weights_stay_pruned_while_the_network_trains() -> None:
    network = build("baseline")
    prune.random_unstructured(network[0], "weight", 0.5)  # type: ignore[no-untyped-call]
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    for _ in range(2):
        optimizer.zero_grad()
        network(torch.rand(4, 1, 28, 28)).square().sum().backward()
        optimizer.step()
    network(torch.rand(4, 1, 28, 28))
    weight = network[0].weight
    assert isinstance(weight, Tensor)
    assert int((weight == 0).sum()) == 144


def test_gradients_of_images_can_be_differentiated_again() -> None:
    network, x = build("baseline"), torch.rand(4, 1, 28, 28, requires_grad=True)
    (gradient,) = torch.autograd.grad(network(x).square().sum(), x, create_graph=True)
    gradient.square().sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    assert float(x.grad.abs().sum()) > 0


def test_a_network_in_evaluation_mode_has_gradients() -> None:
    network, x = build("batch normalisation").eval(), torch.rand(4, 1, 28, 28)
    network(x).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_torch_func_gives_gradients_for_each_image() -> None:
    network, x, labels = build("baseline"), torch.rand(3, 1, 28, 28), torch.arange(3)
    parameters: dict[str, Tensor] = {**dict(network.named_parameters())}

    def loss(parameters: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(network, parameters, (image[None],)), label[None])

    each = vmap(grad(loss), (None, 0, 0))(parameters, x, labels)
    F.cross_entropy(network(x), labels).backward()  # type: ignore[no-untyped-call]
    weight = network[0].weight
    assert isinstance(weight, nn.Parameter)
    torch.testing.assert_close(each["0_Conv2D.weight"].mean(0), weight.grad)


def test_a_module_that_is_put_in_later_is_used() -> None:
    network, x = build("baseline"), torch.rand(4, 1, 28, 28)
    network[0] = nn.Conv2d(1, 32, 3, bias=False)
    torch.testing.assert_close(network(x), layer_by_layer(network, x), rtol=1e-5, atol=1e-5)
    network[2] = nn.Tanh()  # which does not know the layout
    torch.testing.assert_close(network(x), layer_by_layer(network, x), rtol=1e-5, atol=1e-5)
