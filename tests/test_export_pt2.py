"""What is exported as .pt2 is read by torch alone, and answers as the network does."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from mnist_cnn.cli import main
from mnist_cnn.data.datasets import DataFiles
from mnist_cnn.data.images import Preprocessing
from mnist_cnn.errors import UserError
from mnist_cnn.export import card, pt2_file
from mnist_cnn.export.check import reference
from mnist_cnn.export.program import as_input, image_shape
from mnist_cnn.inference.checkpoint import TrainedNetwork
from tests.conftest import ROOT
from tests.test_export_onnx import END, NETWORKS, expected
from tests.trained import trained

FILE = Path("it.pt2")


def export(network: TrainedNetwork) -> None:
    pt2_file.export_pt2(
        network, FILE, reference(network, DataFiles(network.dataset, "nowhere")), card.facts(network, Path("it.ckpt"))
    )


@pytest.mark.parametrize(
    "network",
    [
        trained(NETWORKS["merges"]),
        trained(NETWORKS["sequence"]),
        trained(END, (3, 8, 9), preprocessing=Preprocessing((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))),
    ],
    ids=["merges", "sequence", "colour"],
)
def test_torch_reads_it_and_answers_for_any_number_of_images(network: TrainedNetwork) -> None:
    export(network)
    program = torch.export.load(FILE).module()
    for count in (1, 2, 5):
        images = torch.randint(0, 256, (count, *image_shape(network)), dtype=torch.uint8)
        torch.testing.assert_close(program(as_input(images)), expected(network, images), atol=1e-5, rtol=0)


def test_the_file_carries_its_card_and_nothing_of_this_machine() -> None:
    export(trained(END))
    extra = {pt2_file.CARD: ""}
    torch.export.load(FILE, extra_files=extra)
    about = json.loads(extra[pt2_file.CARD])
    assert (about["model"], json.loads(about["classes"])) == ("made up", list("0123456789"))
    assert json.loads(about["check"])["images"] == 250
    assert str(ROOT).encode() not in FILE.read_bytes()


def test_no_file_of_ours_has_weights_that_are_pickled() -> None:
    # torch.export.load unpickles what a file marks so: a file of ours must not need that anybody allows it.
    export(trained(END))
    reader = torch.PyTorchFileReader(io.BytesIO(FILE.read_bytes()))
    config = json.loads(reader.get_record("data/weights/model_weights_config.json"))
    assert [weight["use_pickle"] for weight in config["config"].values()] == [False] * 2


def test_a_file_that_answers_otherwise_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pt2_file, "_answers", lambda content: lambda images: np.full((len(images), 10), 0.1))
    with pytest.raises(UserError, match=r"^torch\.export and PyTorch differ .*no file was written"):
        export(trained(END))
    assert list(Path().iterdir()) == []


def test_the_command_writes_it(digits_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(digits_run), "--format", "pt2"]) == 0
    said = capsys.readouterr().out
    assert "checked with torch.export on the 360 test images of digits: the same answers as PyTorch" in said
    assert "written to tiny.pt2" in said
