"""A sample of hostile input of every kind keeps the contract of `benchmarks/fuzz.py`; each breach of it is noticed."""

import os
import pickle
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fuzz_contract
import pytest
import torch
from fuzz import KINDS
from fuzz_contract import Fault, hold
from fuzz_files import Evil, drawn
from fuzz_mirrors import NAMES, Answer
from hypothesis import HealthCheck, Phase, given, seed, settings

from mnist_cnn.cli import main
from mnist_cnn.errors import ConfigError
from mnist_cnn.inference import checkpoint
from mnist_cnn.terminal import run_command

SAMPLE = {"checkpoints": 120, "pictures": 60, "mirrors": 60, "runs": 15, "settings": 20}


@pytest.mark.filterwarnings("ignore:Generating overly large repr")  # of a case that fails
@pytest.mark.parametrize("name", SAMPLE)
def test_a_sample_of_hostile_input_keeps_the_contract(name: str, digits_run: Path, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    kind = KINDS[name](tmp_path / name, digits_run)

    @seed(1)
    @settings(
        max_examples=SAMPLE[name], database=None, deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(kind.cases)
    def keeps_it(case: Any) -> None:
        kind.hold(case)

    keeps_it()


# --- what the fuzzer has found ----------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["split", "preprocessing", "training", "versions", "classes", "layers", "model"])
def test_a_tensor_in_the_metadata_of_a_checkpoint_is_refused(key: str, digits_run: Path, tmp_path: Path) -> None:
    content = torch.load(digits_run / "checkpoints" / "best.ckpt", weights_only=True)
    content[checkpoint.METADATA_KEY][key] = torch.zeros(2)
    (tmp_path / "case.ckpt").write_bytes(checkpoint.to_bytes(content))
    outcome = hold(lambda: main(["predict", "case.ckpt", "picture.png"]), tmp_path, 10**5)
    assert "its metadata is incomplete or damaged (it holds a tensor)" in outcome.err


def test_libtiff_says_nothing_about_a_damaged_picture(digits_run: Path, tmp_path: Path) -> None:
    shutil.copy(digits_run / "checkpoints" / "best.ckpt", tmp_path / "model.ckpt")
    drawn("L").save(tmp_path / "picture.tiff", compression="tiff_lzw")
    content = (tmp_path / "picture.tiff").read_bytes()
    (tmp_path / "picture.tiff").write_bytes(content.replace(content[8:40], bytes(32)))
    outcome = hold(lambda: main(["predict", "model.ckpt", "picture.tiff"]), tmp_path, len(content))
    assert outcome.err == "error: picture.tiff: not a picture, or damaged.\n"


def test_a_text_that_is_not_unicode_in_the_metadata_of_a_checkpoint_is_refused(
    digits_run: Path, tmp_path: Path
) -> None:
    content = torch.load(digits_run / "checkpoints" / "best.ckpt", weights_only=True)
    content[checkpoint.METADATA_KEY]["model"] = "\udcff"
    (tmp_path / "case.ckpt").write_bytes(checkpoint.to_bytes(content))
    outcome = hold(lambda: main(["predict", "case.ckpt", "picture.png"]), tmp_path, 10**5)
    assert "it holds a text that is not Unicode" in outcome.err


@pytest.mark.parametrize(
    "wire",
    [
        b"HTTP/1.1 302 Found\r\nLocation: ftp://127.0.0.1:1/x\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: /x\r\nContent-Length: 99999999999999999999\r\n\r\n",
        b"\x1b[31m\r\n" * 3 + b"\x00" * 30_000,
    ],
)
def test_an_odd_answer_of_a_mirror_is_a_line_of_it(wire: bytes, digits_run: Path, tmp_path: Path) -> None:
    answers = dict.fromkeys(NAMES, Answer(wire))
    outcome = KINDS["mirrors"](tmp_path, digits_run).hold((answers, False))
    assert outcome.refused
    assert KINDS["mirrors"](tmp_path, digits_run).hold((answers, True)).status == 0


# --- what the fuzzer would find ---------------------------------------------------------------------------------


def refuse(message: str) -> int:
    raise ConfigError(message)


def connect() -> None:
    with socket.socket() as connecting:
        connecting.connect(("127.0.0.1", 1))


BREACHES: dict[str, tuple[Callable[[], Any], str]] = {
    "a traceback": (lambda: 1 // 0, "ZeroDivisionError"),
    "no answer": (lambda: 3, "exit status 3"),
    "a refusal without a word": (lambda: 1, "another form"),
    "a long refusal": (lambda: run_command(lambda: refuse("a\nb\nc")), "another form"),
    "a colour": (lambda: print("\x1b[31m"), "prints"),
    "a library's own words": (lambda: os.write(2, b"warning"), "a library prints"),
    "a file elsewhere": (lambda: Path("../elsewhere").write_text("x"), r"writes .*elsewhere"),
    "a file through a link": (lambda: Path("link").write_text("x"), r"writes .*link"),
    "a secret": (lambda: Path("/etc/passwd").read_text(), "reads"),
    "a file less": (lambda: os.remove("../elsewhere"), "remove"),
    "a folder less": (lambda: shutil.rmtree("../elsewhere", ignore_errors=True), "rmtree"),
    "a process": (lambda: subprocess.run(["true"]), r"subprocess\.Popen"),
    "a shell": (lambda: os.system("true"), r"os\.system"),
    "a connection": (connect, "connects"),
    "code in a file": (lambda: __import__("canary"), "runs code"),
    "code in a text": (lambda: exec("1"), "runs code"),
    "a pickle": (lambda: pickle.loads(pickle.dumps(Evil())), "find_class"),
    "too much memory": (lambda: len(bytearray(700_000_000)), "MB"),
}


@pytest.mark.parametrize(("breach", "says"), BREACHES.values(), ids=BREACHES)
def test_each_breach_of_the_contract_is_a_fault_and_does_not_happen(
    breach: Callable[[], Any], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "canary.py").write_text("")
    (folder / "link").symlink_to("../elsewhere")
    monkeypatch.syspath_prepend(folder)

    def command() -> int:
        status = breach()
        return status if isinstance(status, int) and status < 4 else 0

    with pytest.raises(Fault, match=says):
        hold(command, folder, 1000)
    assert not (tmp_path / "elsewhere").exists()
    assert "canary" not in sys.modules


def test_what_takes_too_long_is_broken_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz_contract, "SECONDS", -0.9)
    begin = time.monotonic()

    def sleep() -> int:
        time.sleep(60)
        return 0

    with pytest.raises(Fault, match="takes more than"):
        hold(sleep, tmp_path, 0)
    assert time.monotonic() - begin < 10
