import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mnist_cnn.cli import main
from mnist_cnn.errors import DataError
from mnist_cnn.inference import checkpoint
from tests.conftest import FakeMnist


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    try:
        status = main(arguments)
    except SystemExit as end:  # argparse
        status = int(end.code or 0)
    said = capsys.readouterr()
    return status, said.out, said.err


def test_evaluate_repeats_the_results_of_the_run_to_the_last_digit(
    digits_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = json.loads((digits_run / "metrics.json").read_text())
    for split in ("test", "val"):
        status, out, err = run(capsys, "evaluate", str(digits_run), "--split", split, "--json")
        result = json.loads(out)
        assert status == 0
        assert err == ""
        assert result["accuracy"] == found[f"{split}/accuracy"]
        assert result["loss"] == found[f"{split}/loss"]
        assert result["dataset"] == "digits"
        assert result["split"] == split
        assert result["model"] == "tiny"
        assert result["correct"] == round(result["accuracy"] * result["total"])
        assert len(result["per_class"]) == 10


def test_evaluate_prints_a_summary(digits_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "evaluate", str(digits_run / "checkpoints" / "last.ckpt"))
    assert status == 0
    for part in ("accuracy", "loss", "ECE", "precision", "most frequent mistakes", "360 images", "taken for"):
        assert part in out


def test_a_checkpoint_needs_no_run_folder(digits_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    alone = tmp_path / "alone.ckpt"
    shutil.copy(digits_run / "checkpoints" / "best.ckpt", alone)
    assert json.loads(run(capsys, "evaluate", str(alone), "--json")[1])["total"] == 360


def test_test_time_augmentation_has_lines_of_its_own_and_leaves_the_result(
    digits_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, averaged = (run(capsys, "evaluate", str(digits_run), *option)[1] for option in ((), ("--tta",)))
    assert averaged.startswith(plain.rstrip("\n"))
    assert "test-time augmentation, the mean over 9 views" in averaged.removeprefix(plain.rstrip("\n"))
    plain_json, with_views = (
        json.loads(run(capsys, "evaluate", str(digits_run), "--json", *option)[1]) for option in ((), ("--tta",))
    )
    assert set(with_views.pop("tta")) == {"views", "accuracy", "loss"}
    assert with_views == plain_json


def test_another_data_set_can_be_evaluated(
    digits_run: Path, fake_mnist: FakeMnist, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--data", "mnist", "--mirror", str(fake_mnist.mirror), "--data-root", "elsewhere", "--json")
    result = json.loads(run(capsys, "evaluate", str(digits_run), *arguments)[1])
    assert result["dataset"] == "mnist"
    assert result["total"] == 50
    assert Path("elsewhere/MNIST").is_dir()


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["evaluate", "nothing.ckpt"], 1, "nothing.ckpt: no such file or folder"),
        (["evaluate", ""], 2, "the path of the checkpoint is empty"),
        (["evaluate", "."], 1, "not a run folder"),
        (["evaluate", "RUN", "--data", "cifar10"], 1, "the network takes 1×28×28"),
        (
            ["evaluate", "RUN", "--data", "mnist", "--mirror", "ftp://x"],
            2,
            "error: --mirror ftp://x: an address must begin with",
        ),
        (["evaluate", "RUN", "--data", "mnist"], 1, "could not be downloaded"),
        (["evaluate", "RUN", "--split", "tset"], 2, "tset"),
        (["evaluate", "RUN", "--data", "minst"], 2, "minst"),
        (["evaluate"], 2, "CKPT_OR_RUN"),
        (["evalute", "RUN"], 2, "evalute"),
        ([], 2, "COMMAND"),
    ],
)
def test_a_users_mistake_gets_a_message_and_a_status(
    arguments: list[str], status: int, says: str, digits_run: Path, fake_mnist: FakeMnist,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    found, out, err = run(capsys, *(str(digits_run) if argument == "RUN" else argument for argument in arguments))
    assert found == status
    assert out == ""
    assert says in err
    assert "Traceback" not in err


def test_a_wrong_mirror_in_the_environment_is_called_by_its_name(
    digits_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MNIST_MIRROR", "nowhere")
    status, _, err = run(capsys, "evaluate", str(digits_run), "--data", "mnist")
    assert status == 2
    assert err.startswith("error: MNIST_MIRROR=nowhere: neither a folder nor an address")


def test_help_lists_every_command_with_its_purpose(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "--help")
    assert status == 0
    listed = re.findall(r"^    (\S+) +\S+ \S+", out, re.MULTILINE)
    _, _, refusal = run(capsys, "no-such-command")
    assert listed == re.findall(r"[a-z-]+", refusal.partition("choose from")[2])


@pytest.mark.parametrize("module", ["mnist_cnn", "mnist_cnn.cli"])
def test_the_module_is_the_command_and_help_needs_no_torch(module: str) -> None:
    program = "import sys; sys.argv = ['mnist-cnn', '--help']; import runpy\n"
    program += f"try: runpy.run_module('{module}', run_name='__main__')\n"
    program += "except SystemExit: pass\nassert 'torch' not in sys.modules"
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert said.returncode == 0
    assert said.stderr == ""
    assert "evaluate" in said.stdout


def test_evaluate_does_not_import_lightning(digits_run: Path) -> None:
    program = f"import sys; from mnist_cnn.cli import main; main(['evaluate', {str(digits_run)!r}])\n"
    program += "assert 'lightning' not in sys.modules"
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert said.returncode == 0
    assert said.stderr == ""


def test_ctrl_c_prints_no_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mnist_cnn.commands.evaluate.run", interrupted)
    assert run(capsys, "evaluate", "x") == (130, "", "interrupted\n")


def test_the_checkpoint_in_the_json_is_the_one_that_was_used(
    digits_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(digits_run, tmp_path / "copy"))
    _, best, _ = run(capsys, "evaluate", str(copy), "--json")
    assert json.loads(best)["checkpoint"] == str(copy / "checkpoints" / "best.ckpt")
    (copy / "checkpoints" / "best.ckpt").write_bytes(b"")
    status, out, err = run(capsys, "evaluate", str(copy), "--json")
    assert status == 0
    assert json.loads(out)["checkpoint"] == str(copy / "checkpoints" / "last.ckpt")
    assert err.startswith("warning: ")
    assert err.count("\n") == 1


def test_a_network_whose_outputs_overflow_gets_an_error_and_no_json(
    digits_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = torch.load(digits_run / "checkpoints" / "best.ckpt", weights_only=True)
    for weight in content["state_dict"].values():
        weight.fill_(3e38)
    torch.save(content, "large.ckpt")
    for how in ("--json", "--split=val"):
        assert run(capsys, "evaluate", "large.ckpt", how)[:2] == (1, "")


@pytest.fixture
def strange(digits_run: Path, tmp_path: Path) -> str:
    """A checkpoint whose name is not UTF-8 and has an escape sequence."""
    return str(shutil.copy(digits_run / "checkpoints" / "best.ckpt", tmp_path / "\udcffé\x1b[2J.ckpt"))


def test_no_name_reaches_the_terminal_unescaped(strange: str, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, status in (
        (["evaluate", strange], 0),
        (["evaluate", strange + "x"], 1),
        (["evaluate", strange, strange], 2),
        (["predict", strange, strange], 1),
        (["export", strange, "--format", "keras", "-o", "\x1b"], 2),
        (["import-keras", strange, "--input-scale", "1"], 1),
    ):
        found, out, err = run(capsys, *arguments)
        assert found == status, err
        assert (out + err).replace("\n", "").replace("─", "").isprintable()


@pytest.mark.parametrize(
    "encoding", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}]
)
def test_any_encoding_of_the_terminal_will_do(strange: str, encoding: dict[str, str]) -> None:
    for arguments, status in (
        (["evaluate", strange], 0),  # which prints the é of the name
        (["evaluate", strange, "--json"], 0),
        (["evaluate", strange, "--data", "cifar10"], 1),  # whose message has a ×
    ):
        command = [os.fsencode(word) for word in (sys.executable, "-m", "mnist_cnn", *arguments)]
        said = subprocess.run(command, capture_output=True, env=os.environ | encoding, check=False)
        assert said.returncode == status, said.stderr.decode()
        assert (said.stdout + said.stderr).isascii()
        assert b"Traceback" not in said.stderr
        if "--json" in arguments:
            assert "\\udcff" in json.loads(said.stdout)["checkpoint"]


@pytest.mark.parametrize(
    ("failure", "says"),
    [
        (MemoryError(), "there is not enough memory for this; a smaller data.batch_size or another machine may help."),
        (OSError(28, "No space left on device", "a\x1bb"), "a\\x1bb: No space left on device."),
        (OSError("something else"), "something else."),
        (DataError("one\x1b[31m\ntwo\u202e\udcff"), "one\\x1b[31m\ntwo\\u202e\\udcff"),
    ],
)
def test_whatever_fails_is_told_in_escaped_lines(
    failure: Exception, says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: object) -> None:
        raise failure

    monkeypatch.setattr("mnist_cnn.commands.evaluate.run", fail)
    assert run(capsys, "evaluate", "x") == (1, "", f"error: {says}\n")


def test_a_lack_of_memory_that_torch_reports_is_told_and_a_bug_keeps_its_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("mnist_cnn.commands.evaluate.run", lambda _: torch.empty(2**62, dtype=torch.uint8))
    assert run(capsys, "evaluate", "x") == (
        1,
        "",
        "error: there is not enough memory for this; a smaller data.batch_size or another machine may help.\n",
    )
    monkeypatch.setattr("mnist_cnn.commands.evaluate.run", lambda _: torch.ones(2) @ torch.ones(3))
    with pytest.raises(RuntimeError):
        main(["evaluate", "x"])


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_output_that_cannot_be_written_is_an_error(digits_run: Path) -> None:
    command = [sys.executable, "-m", "mnist_cnn", "evaluate", str(digits_run)]
    with open("/dev/full", "w") as full:
        said = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert said.returncode == 1
    assert said.stderr == "error: No space left on device.\n"


def test_a_models_name_names_no_other_folder(digits_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = torch.load(digits_run / "checkpoints" / "best.ckpt", weights_only=True)
    content[checkpoint.METADATA_KEY]["model"] = "../up"
    torch.save(content, "it.ckpt")
    status, out, err = run(capsys, "export", "it.ckpt", "--format", "keras", "--json")
    assert (status, err) == (0, "")
    assert json.loads(out)["file"] == ".._up.keras"
    assert Path(".._up.keras").is_file()
