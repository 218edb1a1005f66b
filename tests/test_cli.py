import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mnist_cnn.cli import main
from tests.conftest import FakeMnist, train_command


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    try:
        status = main(arguments)
    except SystemExit as end:  # argparse
        status = int(end.code or 0)
    said = capsys.readouterr()
    return status, said.out, said.err


def test_evaluate_gives_the_runs_own_figures_to_the_last_digit(
    digits_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = json.loads((digits_run / "metrics.json").read_text())
    for split in ("test", "val"):
        status, out, err = run(capsys, "evaluate", str(digits_run), "--split", split, "--json")
        result = json.loads(out)
        assert (status, err) == (0, "")
        assert (result["accuracy"], result["loss"]) == (found[f"{split}/accuracy"], found[f"{split}/loss"])
        assert (result["dataset"], result["split"], result["model"]) == ("digits", split, "tiny")
        assert result["correct"] == round(result["accuracy"] * result["total"])
        assert len(result["per_class"]) == 10


def test_evaluate_prints_a_page_for_people(digits_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "evaluate", str(digits_run / "checkpoints" / "last.ckpt"))
    assert status == 0
    for part in ("accuracy", "loss", "ECE", "precision", "most frequent mistakes", "360 images", "taken for"):
        assert part in out


def test_a_checkpoint_alone_is_enough(digits_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    alone = tmp_path / "alone.ckpt"
    shutil.copy(digits_run / "checkpoints" / "best.ckpt", alone)
    assert json.loads(run(capsys, "evaluate", str(alone), "--json")[1])["total"] == 360


def test_another_data_set_can_be_evaluated(
    digits_run: Path, fake_mnist: FakeMnist, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--data", "mnist", "--mirror", str(fake_mnist.mirror), "--data-root", "elsewhere", "--json")
    result = json.loads(run(capsys, "evaluate", str(digits_run), *arguments)[1])
    assert (result["dataset"], result["total"]) == ("mnist", 50)
    assert Path("elsewhere/MNIST").is_dir()


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["evaluate", "nothing.ckpt"], 1, "nothing.ckpt: no such file or folder"),
        (["evaluate", "."], 1, "not a run folder"),
        (["evaluate", "RUN", "--data", "cifar10"], 1, "the network takes 1×28×28"),
        (
            ["evaluate", "RUN", "--data", "mnist", "--mirror", "ftp://x"],
            2,
            "--mirror ftp://x: an address must begin with",
        ),
        (["evaluate", "RUN", "--data", "mnist"], 1, "could not be downloaded"),
        (["evaluate", "RUN", "--data", "mnist"], 1, "--mirror ADDRESS, or MNIST_MIRROR=ADDRESS"),
        (["evaluate", "RUN", "--split", "tset"], 2, "tset"),
        (["evaluate", "RUN", "--data", "minst"], 2, "minst"),
        (["evaluate"], 2, "CKPT_OR_RUN"),
        (["evalute", "RUN"], 2, "evalute"),
        ([], 2, "COMMAND"),
    ],
)
def test_mistakes_get_a_message_a_status_and_no_traceback(
    arguments: list[str], status: int, says: str, digits_run: Path, fake_mnist: FakeMnist,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    result = run(capsys, *(str(digits_run) if argument == "RUN" else argument for argument in arguments))
    assert (result[0], result[1]) == (status, "")
    assert says in result[2]


def test_the_module_is_the_command_and_help_needs_no_torch() -> None:
    program = "import sys; sys.argv = ['mnist-cnn', '--help']; import runpy\ntry: runpy.run_module('mnist_cnn')\n"
    program += "except SystemExit: pass\nassert 'torch' not in sys.modules"
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (said.returncode, said.stderr) == (0, "")
    assert "evaluate" in said.stdout


def test_evaluating_does_not_wait_for_lightning(digits_run: Path) -> None:
    program = f"import sys; from mnist_cnn.cli import main; main(['evaluate', {str(digits_run)!r}])\n"
    program += "assert 'lightning' not in sys.modules"
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (said.returncode, said.stderr) == (0, "")


def test_ctrl_c_is_no_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mnist_cnn.cli._evaluate", interrupted)
    assert run(capsys, "evaluate", "x") == (130, "", "interrupted\n")


def test_a_color_network_learns_from_color_pictures(tmp_path: Path) -> None:
    outcome = train_command("data=cifar10", "data.mirror=http://127.0.0.1:1/", "model=mlp", "run_dir=run")
    assert outcome.status == 1
    assert "3072" in outcome.err  # the network was built for 3×32×32 before the data was missed
    assert not Path("run").exists()
