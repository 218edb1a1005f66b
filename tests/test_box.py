"""The trained networks in the package: what they are, and how they are used by name."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import box as builder  # benchmarks/box.py
import pytest
import torch
from box_card import text_of

from mnist_cnn.cli import main
from mnist_cnn.errors import CheckpointError
from mnist_cnn.inference import box, checkpoint
from tests.conftest import FULL_SIZE_MIRROR, QUICK, ROOT, FakeMnist, train_command


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = main(arguments)
    said = capsys.readouterr()
    return status, said.out, said.err


def sevens() -> list[str]:
    """Pictures of a seven, drawn with a thick pen."""
    from PIL import Image, ImageDraw

    picture = Image.new("L", (100, 120), 255)
    ImageDraw.Draw(picture).line([(25, 25), (75, 25), (45, 95)], fill=0, width=9)
    picture.save("seven.png")
    return ["seven.png"]


# What is in the box


@pytest.mark.parametrize("name", box.names())
def test_a_card_describes_the_file_beside_it(name: str) -> None:
    card, file = box.card(name), box.find(name)
    content, trained = checkpoint.read(file), checkpoint.load(file)
    assert card.name == name == trained.model
    assert card.parameters == trained.network.parameter_count
    assert (card.bytes, card.epoch, card.dataset) == (file.stat().st_size, trained.epoch, trained.dataset)
    assert (card.seed, card.versions) == (trained.training["seed"], trained.versions)
    assert card.seed in card.seeds
    types = {str(value.dtype) for value in content["state_dict"].values() if value.is_floating_point()}
    assert types == {f"torch.{card.weights}"}


@pytest.mark.parametrize("name", box.names())
def test_a_network_in_the_box_carries_no_state_of_its_training(name: str) -> None:
    content = checkpoint.read(box.find(name))
    assert set(content) == {
        checkpoint.METADATA_KEY, "state_dict", "epoch", "global_step", "pytorch-lightning_version",
    }  # fmt: skip
    assert all(key.startswith(checkpoint.PREFIX) for key in content["state_dict"])


@pytest.mark.parametrize("name", box.names())
def test_a_card_says_in_markdown_what_it_says_in_yaml(name: str) -> None:
    written = (box.BOX / f"{name}.md").read_text(encoding="utf-8")
    assert written == text_of(box.card(name))
    assert re.search(r"(?<![\w.])/\w", " ".join(box.card(name).commands)) is None  # no path of one machine


def test_the_default_network_is_in_the_box_and_the_box_is_small() -> None:
    assert box.names()[0] == box.DEFAULT
    assert set(box.names()) <= set(builder.PURPOSES)
    assert {file.stem for file in box.BOX.glob("*.ckpt")} == set(box.names())
    assert sum(file.stat().st_size for file in box.BOX.glob("*.ckpt")) <= box.MOST_BYTES


@pytest.mark.mnist
@pytest.mark.parametrize("name", box.names())
@pytest.mark.usefixtures("real_mnist")  # which skips the test where there is no MNIST
def test_evaluate_finds_the_test_accuracy_of_the_card(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    where = ("--mirror", FULL_SIZE_MIRROR) if FULL_SIZE_MIRROR else ("--data-root", str(ROOT / "data"))
    found = json.loads(run(capsys, "evaluate", name, *where, "--json")[1])
    assert found["total"] == 10_000
    assert found["accuracy"] == pytest.approx(box.card(name).test_accuracy, abs=2e-4)  # a processor may round otherwise


# mnist-cnn models


def test_models_lists_every_network_with_its_figures(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(capsys, "models")
    assert (status, err) == (0, "")
    assert [line.split()[0] for line in out.splitlines()] == ["name", *box.names()]
    for name, line in zip(box.names(), out.splitlines()[1:], strict=True):
        card = box.card(name)
        assert f" {card.parameters:,}  " in line
        assert f" {100 * card.test_accuracy:.2f} %  " in line
        assert line.endswith(card.purpose)
    listed = json.loads(run(capsys, "models", "--json")[1])
    assert listed == {name: box.card(name).to_dict() for name in box.names()}


def test_models_with_a_name_prints_its_card(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, "models", "accurate")
    assert out.startswith("# accurate\n")
    for part in ("test accuracy", "## How it was trained", "python train.py ", "## Use and limits", "Licence"):
        assert part in out
    assert json.loads(run(capsys, "models", "accurate", "--json")[1]) == box.card("accurate").to_dict()


@pytest.mark.parametrize("json", [[], ["--json"]])
def test_models_answers_a_misspelt_name_with_the_nearest(json: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(capsys, "models", "acurate", *json)
    assert (status, out) == (2, "")
    assert err.startswith("error: acurate: no network in the box has this name. Did you mean accurate? There are: ")


def test_models_does_not_wait_for_torch() -> None:
    program = "import sys; from mnist_cnn.cli import main; main(['models']); assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, check=False).returncode == 0


# A network by its name


def test_every_command_takes_a_network_by_its_name(fake_mnist: FakeMnist, capsys: pytest.CaptureFixture[str]) -> None:
    mirror = ("--mirror", str(fake_mnist.mirror))
    evaluated = json.loads(run(capsys, "evaluate", "accurate", *mirror, "--json")[1])
    assert (evaluated["model"], evaluated["total"]) == ("accurate", 50)
    assert evaluated["checkpoint"] == str(box.BOX / "accurate.ckpt")
    status, out, err = run(capsys, "predict", "strong", *sevens(), "--json")
    assert (status, err, json.loads(out)["digit"]) == (0, "", "7")
    status, _, err = run(capsys, "export", "tiny_strong", "--format", "keras")
    assert (status, err) == (0, "")
    assert Path("tiny_strong.keras").is_file()


def test_predict_without_a_name_takes_the_default_network_and_says_so(
    digits_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = run(capsys, "predict", "accurate", *sevens())[1]
    shutil.copytree(digits_run, "runs/newer")
    Path("accurate").mkdir()  # which nobody has asked for
    status, out, err = run(capsys, "predict", *sevens())
    assert (status, out) == (0, named)
    assert err == "using accurate, a network that comes with this package\n"


def test_a_run_starts_from_a_network_in_the_box(fake_mnist: FakeMnist) -> None:
    mirror = f"data.mirror={fake_mnist.mirror}"
    settings = ("data=mnist", mirror, "trainer=cpu", "trainer.max_epochs=1", "run_dir=run", "optimizer.lr=1e-30")
    outcome = train_command("model.init_from=accurate", *settings)
    assert outcome.status == 0, outcome.err
    further, boxed = checkpoint.load("run"), checkpoint.load("accurate")
    assert further.model == "accurate"
    for one, other in zip(further.network.parameters(), boxed.network.parameters(), strict=True):
        assert torch.equal(one, other)


def test_what_lies_in_the_folder_goes_before_the_box_and_a_line_says_so(
    digits_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(digits_run, "accurate")
    note = f"note: accurate is taken from this folder, not from the box ({box.BOX / 'accurate.ckpt'})\n"
    status, out, err = run(capsys, "evaluate", "accurate", "--json")
    assert (status, err) == (0, note)
    assert json.loads(out)["checkpoint"] == "accurate/checkpoints/best.ckpt"
    status, _, err = run(capsys, "predict", "accurate", *sevens())
    assert (status, err) == (0, "")  # once in a process
    shutil.copy(digits_run / "checkpoints" / "last.ckpt", "strong")  # a file without a suffix
    assert json.loads(run(capsys, "evaluate", "strong", "--json")[1])["checkpoint"] == "strong"


def test_a_run_says_once_that_its_teacher_lies_in_the_folder(digits_run: Path) -> None:
    shutil.copytree(digits_run, "strong")
    outcome = train_command(*QUICK, "trainer.max_epochs=1", "distill.from=strong", "run_dir=run")
    assert outcome.status == 0, outcome.err
    assert outcome.err.count("is taken from this folder") == 1


def test_a_path_is_never_a_name(capsys: pytest.CaptureFixture[str]) -> None:
    for path in (Path("accurate"), "./accurate", "accurate.ckpt"):
        with pytest.raises(CheckpointError, match=r"accurate(\.ckpt)?: no such file or folder"):
            checkpoint.find(path)


@pytest.mark.parametrize("command", [["evaluate"], ["predict"], ["predict", "PICTURE"], ["export", "--format=keras"]])
def test_a_misspelt_name_is_answered_with_the_nearest(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    name, *others = command
    others = sevens() if others == ["PICTURE"] else others
    status, out, err = run(capsys, name, "acurate", *others)
    assert (status, out) == (1, "")
    assert err == (
        "error: acurate: no such file or folder, and no network in the box (mnist-cnn models lists them). "
        "Did you mean accurate?\n"
    )


def test_a_missing_picture_is_not_taken_for_a_misspelt_name(capsys: pytest.CaptureFixture[str]) -> None:
    for missing in ("stong.png", "photos"):
        status, out, err = run(capsys, "predict", missing, *sevens())
        assert status == 1
        assert f"error: {missing}: no such file" in err
        assert out.count("\n") == 1  # the other picture's answer


# A damaged box


@pytest.fixture
def copied_box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    copy = Path(shutil.copytree(box.BOX, tmp_path / "box"))
    monkeypatch.setattr(box, "BOX", copy)
    return copy


def test_a_file_that_is_not_the_one_of_the_card_is_refused_in_a_line(
    copied_box: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(copied_box / "strong.ckpt", copied_box / "accurate.ckpt")
    for arguments in (["accurate", *sevens()], sevens()):
        status, out, err = run(capsys, "predict", *arguments)
        assert (status, out) == (1, "")
        assert re.fullmatch(
            r"error: accurate: \S+accurate\.ckpt is not the file that its card describes \(SHA-256 \w{12}…\); "
            r"install the package again\.\n",
            err,
        )
    assert run(capsys, "predict", "strong", *sevens())[0] == 0


@pytest.mark.parametrize("card", ["", "---\nname: [\n---\n", "---\nname: accurate\n---\n", "---\nname: 3\n"])
def test_a_damaged_card_is_refused_in_a_line(card: str, copied_box: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (copied_box / "accurate.md").write_text(card)
    for command in (["models"], ["evaluate", "accurate"]):
        status, out, err = run(capsys, *command)
        assert (status, out, err.count("\n")) == (1, "", 1)
        assert err.startswith("error: accurate: its card is damaged (")


def test_a_card_that_is_no_text_is_refused_in_a_line(copied_box: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (copied_box / "strong.md").open("ab") as file:
        file.write(b"\xff\xfe")
    for command in (["models"], ["models", "strong"], ["predict", "strong", *sevens()]):
        status, out, err = run(capsys, *command)
        assert (status, out, err.count("\n")) == (1, "", 1)
        assert err.startswith("error: strong: its card can't be read (")


def test_an_empty_box_says_what_to_do(copied_box: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(copied_box)
    status, _, err = run(capsys, "predict", *sevens())
    assert status == 2
    assert "install the package again" in err
    copied_box.mkdir()
    assert run(capsys, "models")[0] == 0
