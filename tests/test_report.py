import csv
import itertools
import json
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from torch import nn

from mnist_cnn.data.images import Images
from mnist_cnn.inference import checkpoint
from mnist_cnn.inference.evaluate import Evaluation
from mnist_cnn.network import build_network
from mnist_cnn.report import figures, hidden_map
from mnist_cnn.report.hidden_map import HiddenMap
from mnist_cnn.report.run import EpochRow
from tests.conftest import FakeMnist, train_command


class Page(HTMLParser):
    """Collects what a page would load, and asserts that its tags are closed."""

    def __init__(self) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.sources += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data")]
        if tag not in ("meta", "img", "br", "wbr", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_shows_all_results_and_loads_nothing(digits_run: Path) -> None:
    text = (digits_run / "report" / "index.html").read_text()
    page = Page()
    page.feed(text)
    assert page.open == []
    assert len(page.sources) == 8
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert "://" not in text
    found = json.loads((digits_run / "metrics.json").read_text())
    for part in (
        f"{found['test/accuracy']:.2%}",
        "4·4·1·8 + 8",
        "Most confident mistakes",
        "Least certain",
        "Reliability",
        "Map of the last hidden layer",
        "precision",
        "max_epochs: 3",
    ):
        assert part in text


def test_the_metrics_hold_every_setting_and_those_that_were_typed(digits_run: Path) -> None:
    found = json.loads((digits_run / "metrics.json").read_text())
    saved = yaml.safe_load((digits_run / "config.yaml").read_text())
    assert found["settings"] == {key: value for key, value in saved.items() if key not in ("run_dir", "resume")}
    assert found["settings"]["optimizer"]["lr"] == 0.001
    assert found["overrides"] == ["model=tiny", "data=digits", "trainer.max_epochs=3", "trainer=cpu"]


def test_the_results_by_class_are_also_a_csv_file(digits_run: Path) -> None:
    with (digits_run / "report" / "per_class.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == list("0123456789")
    assert sum(int(row["support"]) for row in rows) == 360


def test_a_run_without_mnist_says_so_in_the_terminal_and_on_the_page(fake_mnist: FakeMnist) -> None:
    settings = ("model=mlp", "trainer.max_epochs=1", "data.mirror=http://127.0.0.1:1/", "run_dir=run")
    outcome = train_command(*settings)
    assert outcome.status == 0
    assert "NOT MNIST" in outcome.out
    assert json.loads(Path("run/metrics.json").read_text())["dataset"] == "mnist_5k"
    assert "on mnist_5k" in Path("run/report/index.html").read_text()
    assert "Its accuracy is not one on MNIST" in Path("run/report/index.html").read_text()


def test_a_run_on_mnist_has_no_such_warning(fake_mnist: FakeMnist) -> None:
    settings = ("model=mlp", "trainer.max_epochs=1", f"data.mirror={fake_mnist.mirror}", "run_dir=run", "data.root=d")
    outcome = train_command(*settings)
    assert "NOT MNIST" not in outcome.out
    assert "evaluate    mnist-cnn evaluate run --data-root d" in outcome.out
    assert "Its accuracy is not one on MNIST" not in Path("run/report/index.html").read_text()


@pytest.mark.parametrize("names", [tuple("abc"), ("T-shirt/top", "Trouser", "<b>&"), ("$x", "$\\frac{$", "c")])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("wrong", [0, 1, 40])
def test_figures_are_drawn_for_any_number_of_mistakes_names_and_channels(
    names: tuple[str, ...], channels: int, wrong: int, tmp_path: Path
) -> None:
    labels = torch.arange(60) % 3
    predicted = labels.clone()
    predicted[:wrong] = (labels[:wrong] + 1) % 3
    evaluation = Evaluation("x", "test", names, torch.eye(3)[predicted], labels, 0.0)
    images = Images(torch.randint(0, 256, (60, channels, 9, 9), dtype=torch.uint8), labels)
    drawn = (
        figures.confusion_matrix(evaluation),
        figures.mistakes(evaluation, images),
        figures.least_certain(evaluation, images),
        figures.reliability(evaluation),
        figures.samples(images, names),
        hidden_map.draw(HiddenMap(torch.randn(60, 2), 0.5, "layer 0", 9), images, names),
    )
    for number, figure in enumerate(drawn):
        file = tmp_path / f"{number}.png"
        figure.savefig(file)
        with Image.open(file) as picture:
            assert picture.size[0] == 500


@pytest.mark.parametrize(("count", "inches", "named"), [(3, 5, 3), (40, 8, 40), (400, 12, 58)])
def test_the_names_in_a_confusion_matrix_do_not_overlap(count: int, inches: float, named: int) -> None:
    names = tuple(f"{number} with a name that is long" for number in range(count))
    labels = torch.arange(count)
    figure = figures.confusion_matrix(Evaluation("x", "test", names, torch.eye(count), labels, 0.0))
    assert figure.get_figwidth() == pytest.approx(inches)
    (axes,) = figure.axes
    figure.draw_without_rendering()
    boxes = [label.get_window_extent() for label in axes.get_yticklabels()]
    assert len(boxes) == named
    assert all(upper.y0 >= lower.y1 for upper, lower in itertools.pairwise(boxes))
    assert all(len(label.get_text()) <= 20 for label in axes.get_yticklabels())


def test_the_confusion_figure_shows_the_counts() -> None:
    evaluation = Evaluation("x", "test", tuple("ab"), torch.eye(2)[[0, 0, 1]], torch.tensor([0, 1, 1]), 0.0)
    (axes,) = figures.confusion_matrix(evaluation).axes
    shown = {text.get_position(): text.get_text() for text in axes.texts}
    assert shown == {(0, 0): "1", (0, 1): "1", (1, 1): "1"}  # (predicted, true)


def test_answers_that_are_least_certain_are_shown_right_or_wrong_and_marked() -> None:
    probabilities = torch.tensor([[0.9, 0.1], [0.45, 0.55], [0.6, 0.4], [0.2, 0.8]])
    evaluation = Evaluation("x", "test", tuple("ab"), probabilities, torch.tensor([0, 1, 1, 0]), 0.0)
    found = evaluation.least_certain(3)
    assert [(answer.index, answer.true, answer.predicted) for answer in found] == [
        (1, "b", "b"), (2, "b", "a"), (3, "a", "b"),
    ]  # fmt: skip
    images = Images(torch.zeros(4, 1, 9, 9, dtype=torch.uint8), evaluation.labels)
    (axes,) = figures.least_certain(evaluation, images).axes
    titles = [(text.get_text(), text.get_color()) for text in axes.texts]
    assert titles[0] == ("b ✓\n55.0%", "black")
    assert titles[1][0] == "b → a\n60.0%"
    assert titles[1][1] != "black"
    assert titles[3][0] == "a ✓\n90.0%"


def test_the_reliability_figure_shows_accuracy_and_number_of_every_bin() -> None:
    logits = torch.randn(1000, 3) * 3
    labels = torch.arange(1000) % 3
    probabilities = torch.cat([logits.softmax(1)[:990], torch.eye(3).repeat(4, 1)[:10]])
    evaluation = Evaluation("x", "test", tuple("abc"), probabilities, labels, 0.0)
    share, count = figures.reliability(evaluation).axes
    assert sum(int(text.get_text()) for text in count.texts) == 1000
    confidence = probabilities.max(1).values
    for bar, number in zip(share.patches, count.texts, strict=True):
        left, right = bar.get_x(), bar.get_x() + bar.get_width()  # type: ignore[attr-defined]
        inside = (confidence >= left - 1e-6) & (confidence < right + (1e-3 if right > 0.999 else -1e-6))
        assert int(number.get_text()) == int(inside.sum())
        accuracy = (probabilities.argmax(1) == labels)[inside].float().mean()
        assert bar.get_height() == pytest.approx(float(accuracy))  # type: ignore[attr-defined]


@pytest.mark.parametrize("size", [(50, 8), (8, 50)])
def test_the_map_has_the_principal_components(size: tuple[int, int]) -> None:
    values = torch.randn(size) * torch.linspace(3, 0.1, size[1])
    points, explained = hidden_map.principal_components(values)
    u, s, _ = torch.linalg.svd(values - values.mean(0), full_matrices=False)
    torch.testing.assert_close(points.abs().float(), (u[:, :2] * s[:2]).abs(), rtol=1e-4, atol=1e-4)
    assert explained == pytest.approx(float(s[:2].square().sum() / s.square().sum()))
    assert hidden_map.principal_components(values)[0].equal(points)


def test_the_map_is_made_of_what_the_last_dense_layer_gets() -> None:
    layers: list[Any] = ["Flatten", {"Dense": {"units": 5, "activation": "tanh"}}, {"Dense": {"units": 10}}]
    trained = replace(checkpoint.load("tiny_strong"), network=build_network(layers, (1, 28, 28), 10).eval())
    images = Images(torch.randint(0, 256, (300, 1, 28, 28), dtype=torch.uint8), torch.arange(300) % 10)
    found = hidden_map.hidden_map(trained, images)
    assert found is not None
    hidden = nn.Sequential(*list(trained.network)[:3])(images.images / 255).detach()
    points, explained = hidden_map.principal_components(hidden)
    torch.testing.assert_close(found.points, points, rtol=1e-3, atol=1e-3)
    assert found.explained == pytest.approx(explained, rel=1e-3)
    assert (found.layer, found.values) == ("layer 2 (Dense)", 5)


def test_a_hidden_layer_that_always_gives_the_same_has_no_map() -> None:
    trained = replace(
        checkpoint.load("tiny_strong"), network=build_network(["Flatten", {"Dense": {"units": 10}}], (1, 28, 28), 10)
    )
    images = Images(torch.zeros(50, 1, 28, 28, dtype=torch.uint8), torch.arange(50) % 10)
    assert hidden_map.hidden_map(trained, images) is None


def test_images_on_the_map_lie_where_their_points_are_and_do_not_overlap() -> None:
    points = torch.tensor([[0.0, 0.0], [0.01, 0.0], [1.0, 1.0], [1.0, 0.0]])
    places = hidden_map._places(points.double().numpy())
    assert hidden_map._with_room(places) == [0, 2, 3]
    assert (places[2] == places.max(0)).all()
    assert places[3, 0] == places[2, 0]


def test_curves_show_training_and_validation_of_every_epoch() -> None:
    history: list[EpochRow] = [{"epoch": i, "train/loss": 1 / i, "val/loss": 2 / i} for i in (1, 2, 3)]
    (axes,) = figures.curves(history, "loss").axes
    lines: Any = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}  # type: ignore[union-attr]
    assert lines["training"] == [[1, 1], [2, 0.5], [3, pytest.approx(1 / 3)]]
    assert [y for _, y in lines["validation"]] == pytest.approx([2, 1, 2 / 3])
    assert figures.curves([], "loss").axes[0].lines[:] == []


def test_a_name_cannot_put_markup_into_the_page() -> None:
    settings = ("data=digits", "model=mlp", "model.name='<script>'", "trainer.max_epochs=1", "run_dir=run")
    assert train_command(*settings).status == 0
    text = Path("run/report/index.html").read_text()
    assert "&lt;script&gt;" in text
    assert text.count("<script") == 2  # the network, and what runs it


def test_a_report_says_why_it_has_no_field_to_draw_in() -> None:
    layers = "model.layers=[{Permute: {dims: [2, 1, 3]}}, Flatten, {Dense: {units: 10}}]"
    assert train_command("data=digits", layers, "trainer.max_epochs=1", "run_dir=run").status == 0
    text = Path("run/report/index.html").read_text()
    reason = "layer 0 (Permute) is not among the layers that a page can run."
    assert f"<p>There is no drawing area here: {reason}</p>" in text
    assert "<script" not in text
    assert "script-src" not in text


def test_a_folder_with_any_name_gets_a_report_and_a_printable_table() -> None:
    name = "run <b> & ü"
    outcome = train_command("data=digits", "model=mlp", "trainer.max_epochs=1", f'run_dir="{name}"')
    assert outcome.status == 0, outcome.err
    assert "run &lt;b&gt; &amp; ü" in Path(name, "report", "index.html").read_text()
