"""The page to draw on as a file; tests/test_page_in_browser.py opens it."""

import base64
import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from mnist_cnn.cli import main
from mnist_cnn.errors import CheckpointError
from mnist_cnn.export.drawing_page import page
from mnist_cnn.export.page_network import page_network
from mnist_cnn.inference import checkpoint
from tests.test_report import Page
from tests.trained import trained

END: list[Any] = ["Flatten", {"Dense": {"units": 10}}]


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    try:
        status = main(["page", *arguments])
    except SystemExit as end:  # argparse
        status = int(end.code or 0)
    said = capsys.readouterr()
    return status, said.out, said.err


def test_without_a_name_the_page_has_the_network_accurate_and_is_written_here(
    capsys: pytest.CaptureFixture[str],
) -> None:
    status, out, err = run(capsys)
    assert status == 0
    assert "written to page.html" in out
    assert err == "using accurate, a network that comes with this package\n"
    assert "accurate: a network of 289,066 parameters, trained on mnist, right on 99.7" in Path("page.html").read_text()


def test_a_page_made_twice_is_the_same_to_the_byte(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.html", "b.html"):
        assert run(capsys, "tiny_strong", "-o", name, "--json")[0] == 0
    assert Path("a.html").read_bytes() == Path("b.html").read_bytes()


def test_an_existing_file_is_never_replaced(capsys: pytest.CaptureFixture[str]) -> None:
    Path("page.html").write_text("mine")
    status, out, err = run(capsys, "tiny_strong")
    assert (status, out) == (1, "")
    assert err == "error: page.html: the file exists already; remove it or choose another name.\n"
    assert Path("page.html").read_text() == "mine"


def test_a_page_must_be_called_html(capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = run(capsys, "tiny_strong", "-o", "page.txt")
    assert status == 2
    assert "end in .html" in err
    assert not Path("page.txt").exists()


def test_a_run_gives_its_accuracy_and_its_best_checkpoint_alone_does_not(
    digits_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    accuracy = json.loads((digits_run / "metrics.json").read_text())["test/accuracy"]
    alone = tmp_path / "alone.ckpt"
    shutil.copy(digits_run / "checkpoints" / "best.ckpt", alone)
    assert run(capsys, str(digits_run), "-o", "run.html")[0] == 0
    assert run(capsys, str(alone), "-o", "alone.html")[0] == 0
    assert f"right on {100 * accuracy:.2f} % of its test images" in Path("run.html").read_text()
    assert "trained on digits.</footer>" in Path("alone.html").read_text()


@pytest.mark.parametrize("content", ["", "[]", '{"test/accuracy": "<b>"}', '{"test/accuracy": 7.0}', "{}", "\0"])
def test_metrics_that_no_run_writes_are_not_quoted(
    content: str, digits_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(digits_run / "checkpoints", tmp_path / "run" / "checkpoints")
    (tmp_path / "run" / "metrics.json").write_text(content)
    assert run(capsys, str(tmp_path / "run"))[0] == 0
    assert "trained on digits.</footer>" in Path("page.html").read_text()


def test_a_page_loads_nothing_and_allows_its_own_script_only() -> None:
    text = page(trained(END))
    parsed = Page()
    parsed.feed(text)
    assert parsed.open == []
    assert parsed.sources == []
    assert "://" not in text
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"default-src 'none'; script-src 'sha256-{digest}'; style-src" in text


def test_a_name_from_a_checkpoint_can_not_put_markup_into_the_page() -> None:
    evil = "</script><img src=x onerror=alert(1)><!--"
    described = trained(END, classes=[evil, *"123456789"], dataset=evil)
    assert "<img" not in page(described)
    assert page(described).count("</script>") == 2


def test_weights_that_half_precision_holds_take_half_of_the_space() -> None:
    described = trained(END)
    long = len(page(described))
    for parameter in described.network.parameters():
        parameter.copy_(parameter.half())
    assert long - len(page(described)) == pytest.approx(7850 * 2 * 4 / 3, abs=50)


def merged() -> list[Any]:
    one, other = ({"Dense": {"units": 3, "name": name, "inputs": "flat"}} for name in "ab")
    flat = {"Flatten": {"name": "flat"}}
    return [flat, one, other, {"Add": {"inputs": ["a", "b"]}}, {"Dense": {"units": 10}}]


@pytest.mark.parametrize(
    ("layers", "shape", "reason"),
    [
        ([{"Reshape": {"target_shape": [28, 28]}}, {"LSTM": {"units": 10}}], (1, 28, 28), r"layer 1 \(LSTM\) is not"),
        ([{"Permute": {"dims": [2, 1, 3]}}, *END], (1, 28, 28), r"layer 0 \(Permute\) is not among"),
        (merged(), (1, 28, 28), r"layer 2 \(Dense\) does not simply follow"),
        (END, (3, 8, 8), "images with 3 channels, and a drawing has one"),
        (END, (1, 28, 129), "129 pixels along a side of its images; the limit is 128"),
        (["Flatten", {"Dense": {"units": 2600}}, *END], (1, 28, 28), "2,067,010 parameters; the limit is 2,000,000"),
        (
            [{"Conv2D": {"filters": 64, "kernel_size": 9, "padding": "same"}}] * 2 + ["GlobalMaxPooling2D", *END[1:]],
            (1, 64, 64), "operations for an image; the limit is 500,000,000",
        ),
    ],
)  # fmt: skip
def test_a_network_that_a_page_can_not_run_is_refused_with_the_reason(
    layers: list[Any], shape: tuple[int, int, int], reason: str
) -> None:
    with pytest.raises(CheckpointError, match=reason):
        page(trained(layers, shape))


def test_a_refused_network_gives_a_line_and_no_file(capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint.save(Path("lstm.ckpt"), trained([{"Reshape": {"target_shape": [28, 28]}}, {"LSTM": {"units": 10}}]))
    assert run(capsys, "lstm.ckpt") == (
        1, "", "error: lstm.ckpt: layer 1 (LSTM) is not among the layers that a page can run.\n",
    )  # fmt: skip
    assert not Path("page.html").exists()


def test_a_layer_derived_from_a_known_one_is_not_taken_for_it() -> None:
    class Doubled(nn.Linear):
        pass

    described = trained(END)
    described.network.add_module(described.network.nodes[1].parts[0], Doubled(784, 10))
    with pytest.raises(CheckpointError, match=r"layer 1 \(Dense\) is not among"):
        page_network(described)


def test_a_network_whose_outputs_are_not_finite_gets_no_page(capsys: pytest.CaptureFixture[str]) -> None:
    network = trained(END)
    for parameter in network.network.parameters():
        parameter.data.fill_(3e38)
    checkpoint.save(Path("it.ckpt"), network)
    assert main(["page", "it.ckpt"]) == 1
    assert "its outputs are not finite numbers" in capsys.readouterr().err
    assert not Path("page.html").exists()
