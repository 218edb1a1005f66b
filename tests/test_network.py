"""Layers against what Keras defines: shapes, padding and order are checked by computing them the slow way."""

import inspect
import json
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn

from mnist_cnn.errors import ConfigError
from mnist_cnn.network import LAYERS, MERGES, Layer, Network, build_network, layer
from mnist_cnn.network.arguments import Shape, real
from mnist_cnn.network.graph import GraphNetwork
from mnist_cnn.network.layers.activations import ACTIVATIONS
from mnist_cnn.network.layers.initializers import INITIALIZERS
from mnist_cnn.network.registry import parameters_of
from tests.conftest import CONF

SHAPE = (3, 11, 12)


def build(*layers: Any, shape: tuple[int, ...] = SHAPE) -> Network:
    return build_network(layers, shape).eval()


def reference(name: str) -> Network:
    return build_network(yaml.safe_load((CONF / "model" / f"{name}.yaml").read_text())["layers"], (1, 28, 28), 10)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("baseline", 225_034), ("tiny", 6_320), ("deep", 93_322), ("dropout", 1_199_882), ("mlp", 42_310)],
)
def test_reference_networks_have_the_published_number_of_parameters(name: str, parameters: int) -> None:
    network = reference(name)
    assert network.parameter_count == sum(p.numel() for p in network.parameters()) == parameters
    assert network(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


def test_the_summary_shows_how_each_count_comes_about() -> None:
    summary = reference("baseline").summary()
    for part in ("32×26×26", "3·3·1·32 + 32", "18,496", "3·3·32·64 + 64", "1,600·128 + 128", "225,034"):
        assert part in summary


def test_every_formula_of_a_summary_gives_its_count() -> None:
    layers: list[Any] = [
        "BatchNormalization",
        {"Conv2D": {"filters": 6, "kernel_size": [3, 2], "groups": 3}},
        {"DepthwiseConv2D": {"kernel_size": 2, "depth_multiplier": 2}},
        {"SeparableConv2D": {"filters": 5, "kernel_size": 3, "use_bias": False}},
        "Flatten",
        {"Dense": {"units": 4}},
    ]
    for node in build(*layers).nodes[1:]:
        assert eval(node.formula.replace("·", "*").replace(",", "") or "0") == node.parameters


def slow_windows(x: Tensor, kernel: int, stride: int, padding: str, fill: float) -> list[list[Tensor]]:
    """Every window (N, C, k, k), with the padding that Keras' documentation describes."""
    height, width = x.shape[2:]
    if padding == "same":
        before, after = [], []
        for length in (height, width):
            total = max((math.ceil(length / stride) - 1) * stride + kernel - length, 0)
            before.append(total // 2)
            after.append(total - total // 2)
        x = nn.functional.pad(x, (before[1], after[1], before[0], after[0]), value=fill)
        height, width = x.shape[2:]
    rows = range(0, height - kernel + 1, stride)
    columns = range(0, width - kernel + 1, stride)
    return [[x[:, :, i : i + kernel, j : j + kernel] for j in columns] for i in rows]


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("kernel", [1, 2, 3, 4, 5])
def test_convolution_and_pooling_see_the_windows_that_keras_defines(kernel: int, stride: int, padding: str) -> None:
    x = torch.randn(2, *SHAPE)
    conv = build({"Conv2D": {"filters": 4, "kernel_size": kernel, "strides": stride, "padding": padding}})
    weight = next(conv.parameters())
    windows = slow_windows(x, kernel, stride, padding, 0.0)
    expected = torch.stack(
        [torch.stack([torch.einsum("nckl,fckl->nf", w, weight) for w in row], -1) for row in windows], -2
    )
    torch.testing.assert_close(conv(x), expected, atol=1e-5, rtol=1e-5)
    assert conv.output_shape == expected.shape[1:]

    pool = {"pool_size": kernel, "strides": stride, "padding": padding}
    windows = slow_windows(x, kernel, stride, padding, -math.inf)
    largest = torch.stack([torch.stack([w.amax((2, 3)) for w in row], -1) for row in windows], -2)
    torch.testing.assert_close(build({"MaxPooling2D": pool})(x), largest)
    windows = slow_windows(x, kernel, stride, padding, math.nan)
    mean = torch.stack([torch.stack([w.nanmean((2, 3)) for w in row], -1) for row in windows], -2)
    torch.testing.assert_close(build({"AveragePooling2D": pool})(x), mean)


def test_same_padding_of_an_even_kernel_puts_the_extra_pixel_at_the_end() -> None:
    network = build({"Conv2D": {"filters": 1, "kernel_size": 2, "padding": "same", "kernel_initializer": "ones"}},
                    shape=(1, 2, 2))  # fmt: skip
    assert network(torch.tensor([[[[1.0, 2], [3, 4]]]])).tolist() == [[[[10, 6], [7, 4]]]]


def test_dilation_reaches_farther_and_same_keeps_the_size() -> None:
    network = build({"Conv2D": {"filters": 2, "kernel_size": 3, "dilation_rate": 2, "padding": "same"}})
    assert network.output_shape == (2, 11, 12)
    assert build({"Conv2D": {"filters": 2, "kernel_size": 3, "dilation_rate": 2}}).output_shape == (2, 7, 8)


def test_flatten_and_reshape_go_by_height_width_channel() -> None:
    x = torch.arange(24.0).reshape(1, 2, 3, 4)
    flat = build("Flatten", shape=(2, 3, 4))(x)
    assert flat.tolist() == [x[0].numpy().transpose(1, 2, 0).ravel().tolist()]
    reshaped = build({"Reshape": {"target_shape": [4, -1, 2]}}, shape=(2, 3, 4))(x)
    expected = np.moveaxis(x[0].numpy().transpose(1, 2, 0).reshape(4, 3, 2), -1, 0)
    assert reshaped[0].tolist() == expected.tolist()


def test_separable_convolution_is_a_depthwise_and_a_pointwise_one() -> None:
    network = build({"SeparableConv2D": {"filters": 4, "kernel_size": 3, "depth_multiplier": 2, "activation": "relu"}})
    depthwise, pointwise = (p for p in network.parameters() if p.dim() == 4)
    x = torch.randn(2, *SHAPE)
    expected = nn.functional.conv2d(nn.functional.conv2d(x, depthwise, groups=3), pointwise).relu()
    torch.testing.assert_close(network(x), expected)
    assert (depthwise.shape, pointwise.shape) == ((6, 1, 3, 3), (4, 6, 1, 1))


def test_batch_normalization_keeps_keras_moving_averages() -> None:
    network = build_network(["BatchNormalization"], (2, 3, 3)).train()
    x = torch.randn(4, 2, 3, 3) * 3 + 1
    y = network(x)
    variance, mean = torch.var_mean(x, (0, 2, 3), correction=0)
    torch.testing.assert_close(y, (x - mean.view(-1, 1, 1)) / (variance.view(-1, 1, 1) + 1e-3).sqrt())
    state = network.state_dict()
    torch.testing.assert_close(state["0_BatchNormalization.running_mean"], 0.01 * mean)
    torch.testing.assert_close(state["0_BatchNormalization.running_var"], 0.99 + 0.01 * variance)
    assert network.parameter_count == 8


def test_batch_normalization_without_scale_or_center_has_fewer_parameters() -> None:
    network = build({"BatchNormalization": {"scale": False, "center": False}}, "Flatten", "BatchNormalization")
    assert [node.parameters for node in network.nodes] == [6, 0, 4 * 396]
    network(torch.randn(2, *SHAPE))


@pytest.mark.parametrize("name", sorted(INITIALIZERS))
def test_initialisers_have_the_variance_and_bounds_that_keras_gives_them(name: str) -> None:
    dense = build({"Dense": {"units": 400, "kernel_initializer": name}}, shape=(600,))
    weight, bias = (parameter.detach() for parameter in dense.parameters())
    scale = {"glorot": 2 / 1000, "he": 2 / 600, "lecun": 1 / 600}.get(name.split("_")[0])
    if name in ("zeros", "ones"):
        assert set(weight.flatten().tolist()) == {float(name == "ones")}
    else:
        spread = {"random_uniform": 0.05 / 3**0.5, "random_normal": 0.05, "truncated_normal": 0.05 * 0.87962566}
        std = scale**0.5 if scale else spread[name]
        assert float(weight.std()) == pytest.approx(std, rel=0.02)
        assert abs(float(weight.mean())) < std / 50
    assert not bias.any()


def test_a_convolutions_fans_count_its_receptive_field() -> None:
    weight = next(build({"Conv2D": {"filters": 64, "kernel_size": 5}}, shape=(32, 9, 9)).parameters())
    limit = math.sqrt(6 / (25 * (32 + 64)))
    assert 0.99 * limit < float(weight.detach().abs().max()) <= limit


X = torch.linspace(-4, 4, 33, dtype=torch.float64)
FORMULAS = {
    "relu": X.clamp(min=0),
    "relu6": X.clamp(0, 6),
    "leaky_relu": torch.where(X > 0, X, 0.2 * X),
    "elu": torch.where(X > 0, X, X.exp() - 1),
    "selu": 1.0507009873554805 * torch.where(X > 0, X, 1.6732632423543772 * (X.exp() - 1)),
    "gelu": X * (1 + torch.erf(X / 2**0.5)) / 2,
    "silu": X / (1 + (-X).exp()),
    "swish": X / (1 + (-X).exp()),
    "mish": X * torch.tanh((1 + X.exp()).log()),
    "sigmoid": 1 / (1 + (-X).exp()),
    "hard_sigmoid": (X / 6 + 0.5).clamp(0, 1),
    "hard_silu": X * (X / 6 + 0.5).clamp(0, 1),
    "tanh": X.tanh(),
    "softplus": (1 + X.exp()).log(),
    "softsign": X / (1 + X.abs()),
    "exponential": X.exp(),
    "softmax": X.exp() / X.exp().sum(),
    "log_softmax": X - X.exp().sum().log(),
    "log": X.clamp(min=torch.finfo(X.dtype).tiny).log(),
    "log_sigmoid": -(1 + (-X).exp()).log(),
    "hard_sigmoid_keras2": (0.2 * X + 0.5).clamp(0, 1),
    "linear": X,
}


@pytest.mark.parametrize("name", sorted(name for name in ACTIVATIONS if name))
def test_activations_are_the_functions_that_keras_defines(name: str) -> None:
    network = build({"Activation": {"activation": name}}, {"Rescaling": {"scale": 1}}, shape=(33,))
    torch.testing.assert_close(network(X[None])[0], FORMULAS[name])


@pytest.mark.parametrize(
    ("layer", "function"),
    [
        ("ReLU", lambda x: x.clamp(min=0)),
        ({"ReLU": {"max_value": 6}}, lambda x: x.clamp(0, 6)),
        ({"ReLU": {"max_value": 1.5}}, lambda x: x.clamp(0, 1.5)),
        ({"ReLU": {"threshold": 1, "negative_slope": 0.1}}, lambda x: torch.where(x >= 1, x, 0.1 * (x - 1))),
        ({"ReLU": {"negative_slope": 0.1}}, lambda x: torch.where(x > 0, x, 0.1 * x)),
        ("LeakyReLU", lambda x: torch.where(x > 0, x, 0.3 * x)),
        ({"ELU": {"alpha": 0.5}}, lambda x: torch.where(x > 0, x, 0.5 * (x.exp() - 1))),
        ({"Rescaling": {"scale": 2, "offset": -1}}, lambda x: 2 * x - 1),
        ("GlobalAveragePooling2D", lambda x: x.mean((2, 3))),
        ("GlobalMaxPooling2D", lambda x: x.amax((2, 3))),
        ({"GlobalMaxPooling2D": {"keepdims": True}}, lambda x: x.amax((2, 3), keepdim=True)),
        ({"ZeroPadding2D": {"padding": [[1, 0], [0, 2]]}}, lambda x: nn.functional.pad(x, (0, 2, 1, 0))),
        ({"ZeroPadding2D": {"padding": 1}}, lambda x: nn.functional.pad(x, (1, 1, 1, 1))),
        ({"Dropout": {"rate": 0.5}}, lambda x: x),
        ({"SpatialDropout2D": {"rate": 0.5}}, lambda x: x),
    ],
)
def test_layers_without_weights_compute_what_they_say(layer: Any, function: Any) -> None:
    x = torch.randn(2, *SHAPE) * 4
    network = build(layer)
    torch.testing.assert_close(network(x), function(x))
    assert network.output_shape == function(x).shape[1:]


def test_dropout_drops_values_and_spatial_dropout_whole_channels() -> None:
    x = torch.ones(200, *SHAPE)
    dropped = build_network([{"Dropout": {"rate": 0.25}}], SHAPE).train()(x)
    assert float((dropped == 0).float().mean()) == pytest.approx(0.25, abs=0.01)
    assert dropped.unique().tolist() == pytest.approx([0, 1 / 0.75])
    spatial = build_network([{"SpatialDropout2D": {"rate": 0.25}}], SHAPE).train()(x)
    assert bool((spatial.flatten(2).std(2) == 0).all())
    assert float((spatial == 0).float().mean()) == pytest.approx(0.25, abs=0.05)


@pytest.mark.parametrize(
    "last", ["Softmax", {"Dense": {"units": 10, "activation": "softmax"}}, {"Activation": {"activation": "softmax"}}]
)
def test_a_softmax_at_the_end_is_left_to_the_loss(last: Any) -> None:
    network = build("Flatten", {"Dense": {"units": 10}}, last)
    assert float(network(torch.randn(5, *SHAPE)).detach().min()) < 0
    assert "Softmax(dim=1)" in str(build("Flatten", "Softmax", {"Dense": {"units": 2}}))


@pytest.mark.parametrize(
    ("layers", "says"),
    [
        ([], "empty"),
        ([3], "is not a layer"),
        (["Conv3D"], "no layer is called Conv3D. Did you mean Conv2D?"),
        ([{"Conv2D": {"filters": 3}}], "layer 0 (Conv2D): kernel_size is missing"),
        ([{"Conv2D": [1]}], "written {argument: value}"),
        ([{"Conv2D": {"filters": 3.5, "kernel_size": 3}}], "filters must be a whole number of at least 1"),
        ([{"Conv2D": {"filters": True, "kernel_size": 3}}], "filters must be a whole number"),
        ([{"Conv2D": {"filters": 3, "kernel_size": [1, 2, 3]}}], "one number or two"),
        ([{"Conv2D": {"filters": 4, "kernel_size": 3, "groups": 2}}], "groups=2 must divide"),
        ([{"Conv2D": {"filters": 4, "kernel_size": 3, "strides": 2, "dilation_rate": 2}}], "can't go together"),
        ([{"Conv2D": {"filters": 10**9, "kernel_size": 9}}], "too large"),
        ([{"Conv2D": {"filters": 4, "kernel_size": 3, "activation": "rely"}}], "Did you mean relu?"),
        ([{"Conv2D": {"filters": 4, "kernel_size": 3, "kernel_initializer": "glorot"}}], "kernel_initializer 'glorot'"),
        ([{"ZeroPadding2D": {"padding": 10**6}}], "too large"),
        ([{"ZeroPadding2D": {"padding": [1, 2, 3]}}], "[[top, bottom], [left, right]]"),
        (["Flatten", {"LSTM": {"units": 10}}], "it needs a sequence"),
        ([{"BatchNormalization": {"axis": 0}}], "axis must be"),
        ([{"Permute": {"dims": [1, 2]}}], "dims must be the axes 1 to 3"),
        (["Add"], "inputs is missing"),
        (["Flatten", {"Add": {"inputs": ["a", "input"]}}], "no layer before it has the name 'a'"),
        ([{"Flatten": {"name": "a"}}, {"Add": {"inputs": ["a", "input"]}}], "must have one shape"),
        ([{"Flatten": {"name": "a"}}, {"Add": {"inputs": ["a"]}}], "several inputs"),
        ([{"Flatten": {"inputs": ["input", "input"]}}], "one input"),
        ([{"Flatten": {"name": "input"}}], "name 'input' is taken"),
        ([{"Concatenate": {"inputs": ["input", "input"], "axis": 9}}], "axis must be"),
        (["Flatten", {"Shared": {"layer": "b"}}], "no layer before it has the name 'b'"),
        (["Flatten", {"Shared": {"name": "b"}}], "one argument, layer"),
        ([{"Flatten": {"name": 3}}], "name must be a word, not 3"),
        ([{"Flatten": {"name": "a"}}, {"Shared": {"layer": "a"}}], "takes 3×11×12, not 396"),
        (["Flatten", {"Dense": {"units": 10**9}}], "too large"),
        (["Flatten", "MaxPooling2D"], "layer 1 (MaxPooling2D): it needs an image"),
        ([{"MaxPooling2D": {"pool_size": 12}}], "nothing is left of its input, 3×11×12"),
        ([{"Reshape": {"target_shape": [5, -1]}}], "target_shape"),
        ([{"Reshape": {"target_shape": 5}}], "target_shape 5 must be"),
        ([{"Reshape": {"target_shape": [1, 1, 3, 132]}}], "target_shape [1, 1, 3, 132] must be"),
        ([{"Reshape": {"target_shape": ["a", -1]}}], "target_shape must be a whole number"),
        ([{"Permute": {"dims": [1, "2", 3]}}], "dims must be a whole number"),
        ([{"Dropout": {"rate": 2}}], "between 0 and 1"),
        ([{"ReLU": {"max_value": "x"}}], "max_value must be a number"),
        ([{"Rescaling": {"scale": "x"}}], "scale must be a number"),
        (["Flatten", {"Dense": {"units": 9}}], "10 classes"),
        ([{"Flatten": {"padding": "same"}}], "no argument 'padding'"),
    ],
)  # fmt: skip
def test_what_can_not_be_built_is_refused_by_layer_and_reason(layers: list[Any], says: str) -> None:
    with pytest.raises(ConfigError) as refused:
        build_network(layers, SHAPE, 10)
    assert says in str(refused.value)


@pytest.mark.parametrize("name", sorted(file.stem for file in (CONF / "model").glob("*.yaml")))
def test_every_network_ends_in_as_many_values_as_the_data_has_classes(name: str) -> None:
    layers = yaml.safe_load((CONF / "model" / f"{name}.yaml").read_text())["layers"]
    for classes in (2, 37):
        network = build_network(layers, (3, 32, 32), classes)
        assert network.output_shape == (classes,)
        assert network.layers[-1] == {"Dense": {"units": classes}}  # what a checkpoint keeps


def test_the_word_classes_is_a_number_only_where_there_are_classes_and_in_no_name() -> None:
    named = ["Flatten", {"Dense": {"units": 4, "name": "classes"}}, {"Dense": {"units": "classes"}}]
    assert build_network(named, SHAPE, 3).layers[1]["Dense"]["name"] == "classes"
    with pytest.raises(ConfigError, match="units must be a whole number of at least 1, not 'classes'"):
        build_network(named, SHAPE)


BOOLEANS = [
    (kind, name)
    for kind in (*LAYERS, *MERGES)
    for name, parameter in parameters_of(kind).items()
    if parameter.annotation is bool or isinstance(parameter.default, bool)
]


@pytest.mark.parametrize(("kind", "name"), BOOLEANS)
@pytest.mark.parametrize("value", ["no", 0, 1, None, []])
def test_only_true_and_false_are_booleans(kind: str, name: str, value: Any) -> None:
    needed = {key: 3 for key, p in parameters_of(kind).items() if p.default is inspect.Parameter.empty}
    before = [{"Reshape": {"target_shape": [12, 33]}}] if kind == "LSTM" else []
    build(*before, {kind: {**needed, name: True}})
    with pytest.raises(ConfigError) as refused:
        build(*before, {kind: {**needed, name: value}})
    assert str(refused.value) == f"layer {len(before)} ({kind}): {name} must be true or false, not {value!r}."


def test_the_booleans_of_all_layers_are_found() -> None:
    assert {name for _, name in BOOLEANS} == {"use_bias", "center", "scale", "keepdims", "return_sequences"}


def test_every_argument_of_a_layer_has_a_type() -> None:
    untyped = [
        (kind, name)
        for kind in (*LAYERS, *MERGES)
        for name, parameter in parameters_of(kind).items()
        if parameter.annotation in (Any, inspect.Parameter.empty)
    ]
    assert untyped == []


class GaussianNoise(nn.Module):
    """Adds normal noise while training."""

    def __init__(self, stddev: float) -> None:
        super().__init__()
        self.stddev = stddev

    def forward(self, x: Tensor) -> Tensor:
        return x + self.stddev * torch.randn_like(x) if self.training else x


@pytest.fixture
def gaussian_noise() -> Iterator[None]:
    @layer("GaussianNoise")
    def _(shape: Shape, stddev: float) -> Layer:
        return Layer({"GaussianNoise": GaussianNoise(real("stddev", stddev))}, shape)

    yield
    del LAYERS["GaussianNoise"]


@pytest.mark.usefixtures("gaussian_noise")
def test_a_layer_is_registered_once() -> None:
    with pytest.raises(ValueError, match="GaussianNoise is registered already"):
        layer("GaussianNoise")(lambda shape: Layer({}, shape))


def test_a_layer_that_gives_another_shape_than_it_declares_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LAYERS, "Wrong", lambda shape: Layer({"Wrong": nn.Identity()}, (7,)))
    network = build("Flatten", "Wrong", {"Dense": {"units": 10}})
    with pytest.raises(ConfigError, match=r"layer 1 \(Wrong\): it gives an output of 396, but declares 7"):
        network.check_shapes()
    build("Flatten", {"Dense": {"units": 10}}).check_shapes()


@pytest.mark.usefixtures("gaussian_noise")
def test_a_layer_registered_outside_the_package_is_built_trained_and_rebuilt() -> None:
    network = build_network([{"GaussianNoise": {"stddev": 0.5}}, "Flatten", {"Dense": {"units": 10}}], SHAPE, 10)
    x = torch.rand(8, *SHAPE)
    assert torch.equal(network.eval()(x), network(x))
    assert float((network.train()[0](x) - x).std()) == pytest.approx(0.5, rel=0.1)

    before = {key: value.clone() for key, value in network.state_dict().items()}
    nn.functional.cross_entropy(network(x), torch.arange(8)).backward()  # type: ignore[no-untyped-call]  # torch's
    torch.optim.SGD(network.parameters(), lr=0.1).step()
    assert not torch.equal(before["2_Dense.weight"], network.state_dict()["2_Dense.weight"])

    description = json.loads(json.dumps([network.layers, network.input_shape]))  # what a checkpoint holds
    rebuilt = build_network(*description)
    rebuilt.load_state_dict(network.state_dict())
    assert torch.equal(rebuilt.eval()(x), network.eval()(x))


@pytest.mark.usefixtures("gaussian_noise")
def test_a_registered_layers_signature_is_its_schema() -> None:
    for arguments, says in (
        ({}, "layer 0 (GaussianNoise): stddev is missing."),
        ({"stdev": 1}, "it has no argument 'stdev'. Did you mean stddev?"),
        ({"stddev": "much"}, "stddev must be a number, not 'much'."),
    ):
        with pytest.raises(ConfigError) as refused:
            build({"GaussianNoise": arguments})
        assert says in str(refused.value)


@pytest.mark.parametrize("name", ["baseline", "tiny", "deep", "dropout", "mlp"])
def test_reference_networks_are_plain_chains(name: str) -> None:
    assert type(reference(name)) is Network


def test_a_list_with_inputs_or_shared_layers_is_a_graph() -> None:
    named = {"Conv2D": {"filters": 3, "kernel_size": 1, "name": "a"}}
    assert type(build(named)) is Network
    assert type(build(named, {"Add": {"inputs": ["a", "input"]}})) is GraphNetwork
    assert type(build(named, {"Flatten": {"inputs": "input"}})) is GraphNetwork
    assert type(build(named, {"Shared": {"layer": "a"}})) is GraphNetwork


def test_shared_layers_have_one_set_of_weights_and_are_counted_once() -> None:
    conv = {"Conv2D": {"filters": 3, "kernel_size": 3, "padding": "same", "name": "a"}}
    network = build(conv, {"Shared": {"layer": "a", "name": "b"}}, {"Add": {"inputs": ["a", "b"]}})
    single = build(conv)
    single.load_state_dict(network.state_dict())
    x = torch.randn(2, *SHAPE)
    torch.testing.assert_close(network(x), single(x) + single(single(x)))
    assert network.parameter_count == single.parameter_count == sum(p.numel() for p in network.parameters())
    assert "the weights of a" in network.summary()
