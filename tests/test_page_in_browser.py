"""The page to draw on, opened in headless Chromium: what it computes, and how it behaves under a hand.

docs/page.md says how to get what these tests need; without it they are skipped.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor

from mnist_cnn.data import datasets
from mnist_cnn.data.images import Preprocessing
from mnist_cnn.export.drawing_page import page as make_page
from mnist_cnn.export.page_network import page_network
from mnist_cnn.inference import box, checkpoint
from mnist_cnn.inference.checkpoint import TrainedNetwork
from mnist_cnn.inference.pictures.prepare import to_images
from mnist_cnn.network.layers.activations import ACTIVATIONS
from mnist_cnn.network.registry import LAYERS
from tests.conftest import CONF, Outcome
from tests.trained import trained

pytest.importorskip("playwright", reason="no playwright: pip install -e '.[browser]'")
from drawing_page import chromium, headless, page_answers, torch_answers
from playwright.sync_api import Browser, BrowserContext, Page, expect

if chromium() is None:
    pytest.skip("no Chromium on the path, nor named by the environment variable CHROMIUM", allow_module_level=True)

PHONE: dict[str, Any] = {"viewport": {"width": 375, "height": 667}, "has_touch": True, "is_mobile": True}
# Strokes in fractions of the field's side.
SEVEN = [[(0.3, 0.25), (0.7, 0.25), (0.55, 0.5), (0.45, 0.8)]]
ONE = [[(0.5, 0.2), (0.5, 0.8)]]
Open = Callable[..., Page]
Strokes = Sequence[Sequence[tuple[float, float]]]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with headless() as started:
        yield started


@pytest.fixture
def opened(browser: Browser, tmp_path: Path) -> Iterator[Open]:
    """Opens a page, or one of a network; afterwards it checks that nothing else was asked for and nothing failed."""
    contexts: list[BrowserContext] = []
    requests: list[str] = []
    faults: list[str] = []

    def open_page(what: TrainedNetwork | Path, **settings: Any) -> Page:
        file = what if isinstance(what, Path) else tmp_path / f"{len(contexts)}.html"
        if isinstance(what, TrainedNetwork):
            file.write_text(make_page(what))
        context = browser.new_context(**settings)
        contexts.append(context)
        context.on("request", lambda request: requests.append(request.url))
        page = context.new_page()
        page.on("console", lambda message: faults.append(message.text))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.goto(file.as_uri())
        return page

    yield open_page
    assert faults == []
    assert len(requests) == len(contexts)  # the pages themselves
    for context in contexts:
        context.close()


@pytest.fixture(scope="module")
def runner(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Page:
    """A page that runs any network."""
    file = tmp_path_factory.mktemp("pages") / "page.html"
    file.write_text(make_page(trained(["Flatten", {"Dense": {"units": 10}}])))
    page = browser.new_page()
    page.goto(file.as_uri())
    return page


@pytest.fixture(scope="module")
def accurate() -> TrainedNetwork:
    return checkpoint.load(box.find("accurate"))


def assert_same_answers(runner: Page, network: TrainedNetwork, images: Tensor, tolerance: float = 1e-4) -> None:
    found = page_answers(runner, images, page_network(network)).probabilities
    expected = torch_answers(network, images)
    assert torch.equal(found.argmax(1), expected.argmax(1))
    assert (found - expected).abs().max() <= tolerance


def draw(page: Page, strokes: Strokes) -> None:
    """With the mouse."""
    page.locator("#draw-canvas").scroll_into_view_if_needed()
    box = page.locator("#draw-canvas").bounding_box()
    assert box is not None
    for stroke in strokes:
        for number, (x, y) in enumerate(stroke):
            page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"], steps=4 if number else 1)
            if number == 0:
                page.mouse.down()
        page.mouse.up()


def touch(page: Page, strokes: Strokes) -> None:
    """With a finger."""
    box = page.locator("#draw-canvas").bounding_box()
    assert box is not None
    devtools = page.context.new_cdp_session(page)
    for stroke in strokes:
        for number, (x, y) in enumerate(stroke):
            point = {"x": box["x"] + x * box["width"], "y": box["y"] + y * box["height"]}
            kind = "touchMove" if number else "touchStart"
            devtools.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [point]})
        devtools.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})


# What the network computes


END: list[Any] = ["Flatten", {"Dense": {"units": 4}}]
CONV = {"filters": 6, "kernel_size": 3}
# For images of 11×12 pixels.
CHAINS: dict[str, list[Any]] = {
    "Conv2D": [{"Conv2D": {**CONV, "activation": "relu"}}, {"Conv2D": {"filters": 5, "kernel_size": [2, 3]}}, *END],
    "Conv2D, same": [{"Conv2D": {**CONV, "padding": "same"}}, *END],
    "Conv2D, same with an even kernel": [{"Conv2D": {"filters": 3, "kernel_size": [4, 2], "padding": "same"}}, *END],
    "Conv2D, strides": [{"Conv2D": {**CONV, "strides": [2, 3]}}, *END],
    "Conv2D, strides and same": [{"Conv2D": {**CONV, "strides": 2, "padding": "same", "use_bias": False}}, *END],
    "Conv2D, dilation": [{"Conv2D": {**CONV, "dilation_rate": [2, 3], "padding": "same"}}, *END],
    "Conv2D, groups": [{"Conv2D": CONV}, {"Conv2D": {"filters": 9, "kernel_size": 2, "groups": 3}}, *END],
    "DepthwiseConv2D": [
        {"Conv2D": CONV}, {"DepthwiseConv2D": {"kernel_size": 3, "depth_multiplier": 2, "padding": "same"}}, *END,
    ],
    "SeparableConv2D": [{"Conv2D": CONV}, {"SeparableConv2D": {**CONV, "strides": 2, "padding": "same"}}, *END],
    "MaxPooling2D": [{"Conv2D": {**CONV, "activation": "relu"}}, {"MaxPooling2D": {"pool_size": [2, 3]}}, *END],
    "MaxPooling2D, same": [{"Conv2D": CONV}, {"MaxPooling2D": {"pool_size": 4, "padding": "same", "strides": 3}}, *END],
    "AveragePooling2D": [{"Conv2D": CONV}, {"AveragePooling2D": {"pool_size": 3, "strides": 2}}, *END],
    "AveragePooling2D, same": [{"Conv2D": CONV}, {"AveragePooling2D": {"pool_size": 4, "padding": "same"}}, *END],
    "GlobalAveragePooling2D": [{"Conv2D": CONV}, "GlobalAveragePooling2D", END[1]],
    "GlobalMaxPooling2D": [{"Conv2D": CONV}, {"GlobalMaxPooling2D": {"keepdims": True}}, *END],
    "ZeroPadding2D": [{"ZeroPadding2D": {"padding": [[1, 2], [0, 3]]}}, {"Conv2D": CONV}, *END],
    "Dense": [{"Dense": {"units": 3, "activation": "tanh"}}, "Flatten", {"Dense": {"units": 4, "use_bias": False}}],
    "Flatten": [{"Conv2D": CONV}, *END],
    "Reshape": [{"Conv2D": CONV}, {"Reshape": {"target_shape": [9, 60]}}, {"Dense": {"units": 5}}, *END],
    "Rescaling": [{"Rescaling": {"scale": 2.5, "offset": -1}}, *END],
    "Activation": [{"Conv2D": CONV}, {"Activation": {"activation": "softmax"}}, *END],
    "ReLU": [{"Conv2D": CONV}, {"ReLU": {"max_value": 0.3, "negative_slope": 0.2, "threshold": 0.1}}, *END],
    "LeakyReLU": [{"Conv2D": CONV}, "LeakyReLU", *END],
    "ELU": [{"Conv2D": CONV}, {"ELU": {"alpha": 0.7}}, *END],
    "Softmax": [{"Conv2D": CONV}, {"Softmax": {"axis": 2}}, *END],
    "Dropout": [{"Conv2D": CONV}, {"Dropout": {"rate": 0.5}}, *END],
    "SpatialDropout2D": [{"Conv2D": CONV}, {"SpatialDropout2D": {"rate": 0.5}}, *END],
    "BatchNormalization": [
        {"Conv2D": CONV}, "BatchNormalization", "ReLU", {"BatchNormalization": {"axis": 1, "scale": False}},
        "Flatten", {"BatchNormalization": {"center": False}}, {"Dense": {"units": 4}},
    ],
    "InstanceNormalization": [
        {"Conv2D": CONV}, "InstanceNormalization", {"InstanceNormalization": {"axis": -1, "scale": False}}, *END,
    ],
    "UnitNormalization": [{"UnitNormalization": {"axis": 1}}, {"Conv2D": CONV}, "UnitNormalization", *END],
}  # fmt: skip
NOT_IN_A_PAGE = {"LSTM", "Permute"}  # as docs/page.md says


@pytest.mark.parametrize("name", CHAINS)
def test_a_layer_computes_what_it_does_in_torch(name: str, runner: Page) -> None:
    images = torch.randint(0, 256, (8, 1, 11, 12), dtype=torch.uint8)
    assert_same_answers(runner, trained(CHAINS[name], (1, 11, 12), tuple("abcd")), images, 1e-5)


def test_every_layer_is_tested_here_or_said_to_be_missing() -> None:
    assert {name.partition(",")[0] for name in CHAINS} == set(LAYERS) - NOT_IN_A_PAGE


@pytest.mark.parametrize("name", [name for name in ACTIVATIONS if name])
def test_an_activation_computes_what_it_does_in_torch(name: str, runner: Page) -> None:
    layers = [{"Rescaling": {"scale": 4.0, "offset": -2}}, {"Activation": {"activation": name}}, *END]
    images = torch.randint(0, 256, (8, 1, 5, 7), dtype=torch.uint8)
    assert_same_answers(runner, trained(layers, (1, 5, 7), tuple("abcd")), images, 1e-5)


@pytest.mark.parametrize("size", [(14, 10), (32, 32), (40, 44)])
def test_images_are_scaled_as_in_training(size: tuple[int, int], runner: Page) -> None:
    scaling = Preprocessing((0.13,), (0.31,), 250.0, size)
    images = torch.randint(0, 256, (8, 1, 28, 28), dtype=torch.uint8)
    assert_same_answers(runner, trained(END, (1, *size), tuple("abcd"), preprocessing=scaling), images, 1e-5)


@pytest.mark.parametrize("file", sorted((CONF / "model").glob("*.yaml")), ids=lambda file: file.stem)
def test_every_network_of_the_configuration_computes_what_it_does_in_torch(file: Path, runner: Page) -> None:
    images = datasets.load("digits", "data").test.images[:10]
    assert_same_answers(runner, trained(yaml.safe_load(file.read_text())["layers"]), images)


@pytest.mark.parametrize("name", box.names())
def test_a_network_in_the_box_sees_in_the_page_what_it_sees_in_torch(name: str, runner: Page) -> None:
    images = datasets.load("digits", "data").test.images
    assert_same_answers(runner, checkpoint.load(box.find(name)), images[:50] if name == "accurate" else images)


@pytest.mark.mnist
@pytest.mark.full
@pytest.mark.parametrize("name", box.names())
def test_a_network_in_the_box_sees_the_same_in_1000_images_of_mnist(
    name: str, runner: Page, real_mnist: Callable[..., Outcome]
) -> None:
    outcome = real_mnist("model=mlp", "trainer.max_epochs=1", "+trainer.limit_train_batches=1", "run_dir=run")
    root = next(line for line in outcome.out.splitlines() if line.startswith("evaluate")).rpartition(" ")[2]
    assert_same_answers(runner, checkpoint.load(box.find(name)), datasets.load("mnist", root).test.images[:1000])


def test_baseline_answers_within_30_ms(runner: Page) -> None:
    layers = yaml.safe_load((CONF / "model" / "baseline.yaml").read_text())["layers"]
    images = torch.randint(0, 256, (30, 1, 28, 28), dtype=torch.uint8)
    # The quickest, because other programs may have the processor at any time.
    assert min(page_answers(runner, images, page_network(trained(layers))).times) < 30


# How a drawing becomes an image


_DRAWN = """([strokes, placing, size]) => {
    const ink = blank(INK_SIDE, INK_SIDE);
    for (const stroke of strokes) stroke.forEach((point, i) => addMark(ink, stroke[Math.max(i - 1, 0)], point));
    return [ink.values.map((value) => Math.round(255 * value)).join(" "), imageOf(ink, placing, size).values.join(" ")];
}"""


def curves(seed: int) -> list[list[dict[str, float]]]:
    """One to three strokes, each a quadratic Bézier curve, which together are of any size and anywhere in the field."""
    rng = np.random.default_rng(seed)
    t = np.linspace(0, 1, 30)[:, None]
    scale, shift = rng.uniform(0.15, 0.9), rng.uniform(0, 1, 2)
    start, strokes = rng.uniform(0, 1, 2), []
    for _ in range(rng.integers(1, 4)):
        middle, end = rng.uniform(0, 1, (2, 2))
        points = scale * (start * (1 - t) ** 2 + 2 * middle * t * (1 - t) + end * t**2) + (1 - scale) * shift
        strokes.append([{"x": float(x), "y": float(y)} for x, y in points])
        start = end  # the strokes touch: they are one digit
    return strokes


@pytest.mark.parametrize("size", [(28, 28), (32, 32), (20, 36), (64, 64)])
@pytest.mark.parametrize("placing", ["digit", "whole"])
def test_a_drawing_is_prepared_as_predict_prepares_a_picture_of_it(
    placing: str, size: tuple[int, int], runner: Page
) -> None:
    for seed in range(15):
        ink, image = runner.evaluate(_DRAWN, [curves(seed), placing, list(size)])
        picture = Image.fromarray(np.array(ink.split(), np.uint8).reshape(280, 280)).convert("RGBA")
        (((expected, _),),) = to_images(picture, (1, *size), "fit" if placing == "digit" else "as-is")
        difference = np.abs(np.array(image.split(), float).reshape(size) - expected[0].numpy())
        assert difference.max() <= 2, seed


def test_halves_are_rounded_as_in_python(runner: Page) -> None:
    numbers = [number / 4 for number in range(60)]
    assert runner.evaluate("numbers => numbers.map(roundEven)", numbers) == [round(number) for number in numbers]


# Under a hand


def test_strokes_of_the_mouse_change_the_answer(opened: Open, accurate: TrainedNetwork) -> None:
    page = opened(accurate)
    expect(page.locator("#draw-name")).to_have_text("–")
    draw(page, ONE)
    expect(page.locator("#draw-name")).to_have_text("1")
    page.get_by_role("button", name="Clear").click()
    expect(page.locator("#draw-name")).to_have_text("–")
    draw(page, SEVEN)
    expect(page.locator("#draw-name")).to_have_text("7")
    expect(page.locator("#draw-bars .best")).to_contain_text("7")
    expect(page.get_by_role("status")).to_contain_text("7, ")
    draw(page, [[(0.2, 0.9), (0.9, 0.1)]])
    page.get_by_role("button", name="Undo").click()
    expect(page.locator("#draw-name")).to_have_text("7")


def test_bars_move_and_the_image_changes_while_the_mouse_is_down(opened: Open, accurate: TrainedNetwork) -> None:
    page = opened(accurate)
    pixels = "element('seen').toDataURL()"
    box = page.locator("#draw-canvas").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 200, box["y"] + 80)
    page.mouse.down()
    page.mouse.move(box["x"] + 200, box["y"] + 300, steps=5)
    expect(page.locator("#draw-name")).to_have_text("1")
    first = page.evaluate(pixels)
    page.mouse.move(box["x"] + 350, box["y"] + 300, steps=5)
    expect(page.locator("#draw-name")).not_to_have_text("1")
    assert page.evaluate(pixels) != first
    page.mouse.up()


def test_a_finger_draws_on_a_phone_where_nothing_is_wider_than_the_screen(
    opened: Open, accurate: TrainedNetwork
) -> None:
    page = opened(accurate, **PHONE)
    touch(page, SEVEN)
    expect(page.locator("#draw-name")).to_have_text("7")
    assert page.evaluate("[scrollX, scrollY, document.documentElement.scrollWidth]") == [0, 0, 375]
    for button in page.get_by_role("button").all():
        size = button.bounding_box()
        assert size is not None
        assert size["height"] >= 44
    assert page.locator("#draw-canvas").evaluate("e => e.getBoundingClientRect().bottom <= innerHeight")


def test_the_keyboard_alone_draws(opened: Open, accurate: TrainedNetwork) -> None:
    page = opened(accurate)

    def press(*keys: str) -> None:
        for key in keys:
            page.keyboard.press(key)

    press("Tab", *["ArrowUp"] * 7, *["ArrowLeft"] * 4, "Space", *["ArrowRight"] * 8)
    press(*["ArrowDown", "ArrowDown", "ArrowDown", "ArrowLeft"] * 5, "Enter")
    expect(page.locator("#draw-name")).to_have_text("7")
    press("ArrowUp", "ArrowUp")  # with the pen up
    expect(page.locator("#draw-name")).to_have_text("7")
    expect(page.get_by_role("status")).to_contain_text("pen up; 7, ")
    press("Escape")
    expect(page.locator("#draw-name")).to_have_text("–")


def test_the_field_in_a_report_answers_too(opened: Open, digits_run: Path) -> None:
    page = opened(digits_run / "report" / "index.html", **PHONE)
    draw(page, ONE)
    expect(page.locator("#draw-bars .best")).to_have_count(1)
    assert page.evaluate("document.documentElement.scrollWidth") == 375


# How it looks, and whom it trusts


_CONTRASTS = """() => {
    const luminance = (colour) => {
        const linear = (c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
        const [r, g, b] = colour.match(/[\\d.]+/g).map((c) => linear(c / 255));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const ground = (node) => {
        const colour = getComputedStyle(node).backgroundColor;
        return colour === "rgba(0, 0, 0, 0)" ? ground(node.parentNode) : colour;
    };
    return [...document.querySelectorAll("h1, p, button, footer, li b, li span, #draw-canvas")].map((node) => {
        const pair = [getComputedStyle(node).color, ground(node)].map(luminance);
        return (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
    });
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_and_ink_has_contrast(scheme: str, opened: Open) -> None:
    page = opened(trained(END, classes=tuple("abcd")), color_scheme=scheme)
    draw(page, ONE)
    assert min(page.evaluate(_CONTRASTS)) >= 4.5
    dark = "matchMedia('(prefers-color-scheme: dark)').matches"
    assert page.evaluate(dark) == (scheme == "dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == {
        "light": "rgb(247, 248, 250)", "dark": "rgb(18, 22, 28)",
    }[scheme]  # fmt: skip


def test_bars_do_not_glide_where_less_motion_is_wanted(opened: Open) -> None:
    for wanted, duration in (("no-preference", "0.12s"), ("reduce", "0s")):
        page = opened(trained(END, classes=tuple("abcd")), reduced_motion=wanted)
        style = "getComputedStyle(document.querySelector('.draw-bars i'), '::after').transitionDuration"
        assert page.evaluate(style) == duration


def test_a_class_may_have_any_name(opened: Open) -> None:
    names = ("</script><img src=x onerror=alert(1)>", "<b>&amp;", "x" * 200, "数字 七")
    page = opened(trained(END, classes=names), **PHONE)
    draw(page, ONE)
    assert page.locator("#draw-bars b").all_text_contents() == list(names)
    assert page.locator("img").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth") == 375


def test_a_thousand_classes_scroll_in_their_own_box(opened: Open) -> None:
    names = [f"class {number}" for number in range(1000)]
    page = opened(trained(["Flatten", {"Dense": {"units": 1000}}], classes=names))
    draw(page, ONE)
    expect(page.locator("#draw-bars .best")).to_have_count(1)
    assert page.evaluate("document.documentElement.scrollHeight") < 1000
    assert page.locator("#draw-bars").evaluate("e => e.scrollHeight > e.clientHeight && e.tabIndex === 0")


def test_outputs_that_are_no_numbers_are_said_to_be_none(opened: Open) -> None:
    layers = ["Flatten", {"Rescaling": {"scale": 1e38}}, {"Activation": {"activation": "exponential"}}, END[1]]
    page = opened(trained(layers, classes=tuple("abcd")))
    draw(page, ONE)
    expect(page.locator("#draw-probability")).to_have_text("The outputs are not finite numbers.")


def test_a_page_can_ask_nobody_for_anything(browser: Browser, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(make_page(trained(END, classes=tuple("abcd"))))
    page = browser.new_page()
    page.goto((tmp_path / "page.html").as_uri())
    blocked = page.evaluate("""() => new Promise((tell) => {
        document.addEventListener("securitypolicyviolation", (event) => tell(event.effectiveDirective));
        fetch("http://127.0.0.1:9/").catch(() => null);
    })""")
    assert blocked == "connect-src"
    page.close()


@pytest.mark.parametrize("size", [(1, 1), (1, 128), (128, 1), (64, 64)])
def test_images_of_any_shape_fit_into_the_page(size: tuple[int, int], opened: Open) -> None:
    page = opened(trained(END, (1, *size), tuple("abcd")), **PHONE)
    touch(page, SEVEN)
    expect(page.locator("#draw-bars .best")).to_have_count(1)
    shown = page.locator("#draw-seen").bounding_box()
    assert shown is not None
    assert shown["width"] == shown["height"] < 100
