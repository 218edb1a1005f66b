"""What the tests share: runs in this process, small made-up data sets, and the real MNIST where it is available."""

import gzip
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from mnist_cnn.commands import train
from mnist_cnn.config import Config, to_config
from mnist_cnn.data.datasets import is_present
from mnist_cnn.data.sources import SOURCES

ROOT = Path(__file__).parent.parent
CONF = ROOT / "conf"

# These small networks are faster on one thread, and other work on the machine doesn't slow one thread down many times.
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))

# No test may find it by accident; pytest-xdist's workers inherit it under the other name.
FULL_SIZE_MIRROR = os.environ.pop("MNIST_MIRROR", None) or os.environ.get("REAL_MNIST_MIRROR")
if FULL_SIZE_MIRROR:
    os.environ["REAL_MNIST_MIRROR"] = FULL_SIZE_MIRROR


# Runs a command, and returns its exit status and what it wrote to standard error, then to output.
Command = Callable[[str], tuple[int, str]]


@dataclass
class Outcome:
    """What a command has printed and returned."""

    status: int
    out: str
    err: str


def train_command(*settings: str) -> Outcome:
    """`python train.py …` in this process."""
    out, err, arguments = StringIO(), StringIO(), sys.argv
    sys.argv = ["train.py", *settings]
    try:
        with redirect_stdout(out), redirect_stderr(err):
            status = train.main(settings)
    except SystemExit as end:
        status = int(end.code or 0)
    finally:
        sys.argv = arguments
        os.environ.pop("HYDRA_FULL_ERROR", None)
    return Outcome(status, out.getvalue(), err.getvalue())


def composed(*settings: str) -> DictConfig:
    """The configuration that these settings give."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", list(settings))


def configured(*settings: str) -> Config:
    """The same, checked and typed."""
    return to_config(composed(*settings))


QUICK = ("model=tiny", "data=digits", "trainer=cpu", "trainer.max_epochs=2")


def metrics(folder: Path) -> dict[str, Any]:
    """What two runs must agree in."""
    content: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
    for row in content["history"]:
        del row["seconds"]
    del content["overrides"], content["settings"]  # the same settings may be written in other words
    return {key: value for key, value in content.items() if "second" not in key}


def weights(folder: Path, name: str = "last") -> dict[str, torch.Tensor]:
    """The weights in a checkpoint of a run."""
    content = torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True)
    state: dict[str, torch.Tensor] = content["state_dict"]
    return state


def assert_equal_runs(one: Path, other: Path) -> None:
    """Both have the same weights, to the bit, the same figures and the same log."""
    first, second = weights(one), weights(other)
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert metrics(one) == metrics(other)
    assert (one / "metrics.csv").read_text() == (other / "metrics.csv").read_text()


def run_process(*settings: str, interrupt_after: str | None = None) -> Outcome:
    """`python train.py` as a process of its own, with Ctrl-C once a line of standard error matches."""
    environment = {**os.environ, "PYTHONWARNINGS": "error::DeprecationWarning:mnist_cnn"}
    command = [sys.executable, str(ROOT / "train.py"), *settings]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background job would ignore it
    )
    assert process.stderr is not None
    said = ""
    if interrupt_after:
        for line in process.stderr:
            said += line
            if re.search(interrupt_after, line):
                time.sleep(0.3)
                process.send_signal(signal.SIGINT)
                break
    out, err = process.communicate()
    return Outcome(process.returncode, out, said + err)


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of `tiny` on the bundled digits."""
    folder = tmp_path_factory.mktemp("runs") / "digits"
    outcome = train_command("model=tiny", "data=digits", "trainer.max_epochs=3", "trainer=cpu", f"run_dir={folder}")
    assert outcome.status == 0, outcome.err
    return folder


@pytest.fixture(scope="session")
def preloaded() -> Iterator["subprocess.Popen[str]"]:
    command = [sys.executable, str(ROOT / "tests" / "preloaded.py")]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd="/", env=environment
    ) as process:
        yield process
        process.communicate()


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the project, to be changed."""
    for part in ("conf", "mnist_cnn"):
        shutil.copytree(ROOT / part, tmp_path / "project" / part)
    shutil.copy(ROOT / "train.py", tmp_path / "project")
    return tmp_path / "project"


@pytest.fixture
def run(preloaded: "subprocess.Popen[str]", project: Path) -> Command:
    """Runs a command in the project; returns its exit status and what it wrote to standard error, then to output."""

    def run(command: str) -> tuple[int, str]:
        assert preloaded.stdin
        assert preloaded.stdout
        out, err = project.with_name("out"), project.with_name("err")
        request = {"command": command, "project": str(project), "out": str(out), "err": str(err)}
        print(json.dumps(request), file=preloaded.stdin, flush=True)
        return int(preloaded.stdout.readline()), err.read_text() + out.read_text()

    return run


@pytest.fixture(scope="session", autouse=True)
def _signals_as_in_a_terminal() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # and so does one under nohup


@pytest.fixture(autouse=True)
def _same_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))  # nor may a test find MNIST in Keras' cache
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def idx(array: np.ndarray[Any, Any]) -> bytes:
    """An array as an IDX file."""
    kind = {"uint8": 8, "int32": 12}[array.dtype.name]
    header = bytes([0, 0, kind, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    return header + array.astype(array.dtype.newbyteorder(">")).tobytes()


@dataclass
class FakeMnist:
    """A small data set in MNIST's format, a folder that serves as its mirror, and its files with their MD5."""

    mirror: Path
    files: list[tuple[str, str]]
    train_images: np.ndarray[Any, Any]
    train_labels: np.ndarray[Any, Any]


@pytest.fixture
def fake_mnist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeMnist:
    """Replaces MNIST's files by 200 + 50 random images, and its mirrors by none."""
    rng = np.random.default_rng(0)
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    arrays = {
        "train-images-idx3-ubyte.gz": rng.integers(0, 256, (200, 28, 28), np.uint8),
        "train-labels-idx1-ubyte.gz": np.arange(200, dtype=np.uint8) % 10,
        "t10k-images-idx3-ubyte.gz": rng.integers(0, 256, (50, 28, 28), np.uint8),
        "t10k-labels-idx1-ubyte.gz": np.arange(50, dtype=np.uint8) % 10,
    }
    files = []
    for name, array in arrays.items():
        packed = gzip.compress(idx(array))
        (mirror / name).write_bytes(packed)
        files.append((name, hashlib.md5(packed).hexdigest()))
    monkeypatch.setitem(SOURCES, "mnist", replace(SOURCES["mnist"], files=files, mirrors=[]))
    return FakeMnist(mirror, files, arrays["train-images-idx3-ubyte.gz"], arrays["train-labels-idx1-ubyte.gz"])


@pytest.fixture(scope="session")
def real_mnist(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Outcome]:
    """`train_command` on the real MNIST; the test is skipped where it is not available without a network."""
    if FULL_SIZE_MIRROR:
        root = tmp_path_factory.mktemp("mnist")
    elif is_present("mnist", ROOT / "data"):  # a download that failed leaves its folder, and nothing in it
        root = ROOT / "data"
    else:
        pytest.skip("no real MNIST: neither MNIST_MIRROR nor its files in data/MNIST/raw")

    def run(*settings: str) -> Outcome:
        mirror = [f"data.mirror={FULL_SIZE_MIRROR}"] if FULL_SIZE_MIRROR else []
        return train_command("data=mnist", f"data.root={root}", "trainer=cpu", *mirror, *settings)

    return run
