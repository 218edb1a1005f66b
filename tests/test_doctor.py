import json
import os
import platform
import re
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mnist_cnn import doctor
from mnist_cnn.cli import main
from tests.conftest import ROOT, FakeMnist


def in_a_process(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "mnist_cnn", "doctor", *arguments]
    paths = os.pathsep.join([environment.pop("PYTHONPATH", ""), str(ROOT)]).lstrip(os.pathsep)
    environment = {**os.environ, **environment, "PYTHONPATH": paths}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


@pytest.fixture(scope="module")
def diagnosis() -> doctor.Diagnosis:
    return doctor.examine(Path("data"))


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets the versions that seem to be installed, and what this package seems to need."""

    def install(needed: list[str], **versions: str) -> None:
        real = metadata.version
        monkeypatch.setattr(metadata, "requires", lambda name: needed)
        monkeypatch.setattr(metadata, "version", lambda name: versions.get(name) or real(name))

    return install


def test_every_question_has_an_answer_here(diagnosis: doctor.Diagnosis) -> None:
    subjects = ["system", "packages", "torch", "devices", "environment", "memory and disk", "data sets"]
    assert list(diagnosis.subjects) == subjects
    for subject, facts in diagnosis.subjects.items():
        assert "not available" not in facts, (subject, facts)
        assert all(str(value) and "\n" not in str(value) for value in facts.values())
    assert diagnosis.subjects["packages"]["torch"] == metadata.version("torch")


def test_the_command_prints_the_same_for_people_and_as_json(
    diagnosis: doctor.Diagnosis, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "examine", lambda data_root: diagnosis)
    status = main(["doctor", "--json"])
    assert json.loads(capsys.readouterr().out) == {**diagnosis.subjects, "problems": diagnosis.problems}
    assert main(["doctor"]) == status == bool(diagnosis.problems)
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if not line.startswith(("  ", "problem: "))] == list(diagnosis.subjects)
    assert all(len(line) <= 120 for line in lines)


def test_nothing_private_is_in_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "secret-project"
    here.mkdir()
    monkeypatch.chdir(here)
    secrets = {
        "HOME": "/home/secret-home", "USER": "secret-user", "LOGNAME": "secret-user", "HOSTNAME": "secret-machine",
        "MNIST_MIRROR": "http://user:secret@secret-host/", "OMP_WAIT_POLICY": "secret", "MKL_NUM_THREADS": "1; secret",
        "LD_PRELOAD": f"{here}/libsecret.so", "DATASETS": "secret",
    }  # fmt: skip
    said = in_a_process("--data-root", str(here / "images"), **secrets).stdout
    assert "secret" not in said
    assert not [folder for folder in (Path.home(), ROOT, sys.prefix, tmp_path) if str(folder) in said]
    assert not re.search(rf"\b{re.escape(platform.node())}\b", said)
    assert re.search(r"MNIST_MIRROR +set", said)


@pytest.mark.parametrize(
    ("said", "public"),
    [
        ("/home/ann lee/lib/libc10.so.1: undefined symbol: foo", ".../libc10.so.1: undefined symbol: foo"),
        ("no name 'x' in 'y' (/home/ann/y/__init__.py)", "no name 'x' in 'y' (.../__init__.py)"),
        ("No such file: '/home/ann'", "No such file: '...'"),
        ("~/ann is missing", "..."),
        (r"DLL load failed: C:\Users\ann\a.dll", r"DLL load failed: .../a.dll"),
        ("see http://ann:word@host/x", "see http:..."),
        ("numpy.core and/or\nscipy", "numpy.core and/or scipy"),
        ("\x1b[31mred", r"\x1b[31mred"),
    ],
)  # fmt: skip
def test_a_message_loses_its_folders_and_keeps_its_reason(said: str, public: str) -> None:
    assert doctor._public(ImportError(said)) == f"ImportError: {public}"


@pytest.mark.parametrize("name", ["numpy", "torch"])
def test_a_package_that_cannot_be_imported_is_one_line_and_status_1(name: str, tmp_path: Path) -> None:
    (tmp_path / f"{name}.py").write_text("raise ImportError('/home/ann/libbroken.so: undefined symbol')")
    done = in_a_process(PYTHONPATH=str(tmp_path))
    lines = [line for line in done.stdout.splitlines() if "can't be imported" in line]
    why = "can't be imported: ImportError: .../libbroken.so: undefined symbol"
    assert lines[0] == f"problem: {name} {metadata.version(name)} {why}"
    assert len(lines) == 1 or name == "numpy"  # what stands on torch is not blamed for it
    assert done.returncode == 1
    assert done.stderr == ""
    assert "memory and disk" in done.stdout


def test_a_version_outside_the_bounds_is_named_with_them(installed: Any) -> None:
    installed(["scipy>=1.13,<2", "h5py<3; extra == 'keras'"], scipy="2.0.1", h5py="3.16.0")
    assert doctor.examine(Path("data")).problems == ["scipy 2.0.1 is not one of the tested versions, <2,>=1.13"]


def test_a_local_version_within_the_bounds_is_no_problem(installed: Any) -> None:
    installed(["torch>=2.6,<2.16"], torch="2.6.0+cpu")
    assert doctor.examine(Path("data")).problems == []


def test_a_needed_package_that_is_not_installed_is_a_problem(installed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(["nowhere-to-be-found>=1"])
    monkeypatch.setitem(doctor._PACKAGES, "nowhere-to-be-found", "nowhere")
    monkeypatch.setitem(doctor._PACKAGES, "optional-thing", "nothing")
    diagnosis = doctor.examine(Path("data"))
    assert diagnosis.problems == ["nowhere-to-be-found is not installed"]
    assert diagnosis.subjects["packages"]["optional-thing"] == "not installed"


def test_without_an_installation_versions_are_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    def requires(name: str) -> list[str]:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", requires)
    assert doctor.examine(Path("data")).problems == ["mnist-cnn or packaging is not installed: pip install -e ."]


def test_the_malicious_lightning_is_named_and_not_imported(installed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    imported: list[str] = []
    monkeypatch.setattr(doctor, "import_module", imported.append)
    for version in ("2.6.2", "2.6.3"):
        installed([], lightning=version)
        assert f"lightning {version} is malicious" in "\n".join(doctor.examine(Path("data")).problems)
    assert "torch" in imported
    assert "lightning.pytorch" not in imported


def test_data_sets_are_verified_and_never_fetched(fake_mnist: FakeMnist, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MNIST_MIRROR", str(fake_mnist.mirror))
    root = Path("images")
    assert doctor._data_sets(root)["mnist"] == "absent"
    assert not root.exists()

    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for name, _ in fake_mnist.files:
        (folder / name).write_bytes((fake_mnist.mirror / name).read_bytes())
    assert doctor._data_sets(root)["mnist"] == "verified"

    (folder / fake_mnist.files[0][0]).write_bytes(b"damaged")
    assert doctor._data_sets(root)["mnist"] == "1 of 4 files missing or damaged"


def test_verifying_takes_a_bounded_time(fake_mnist: FakeMnist, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path("images") / "MNIST" / "raw"
    folder.mkdir(parents=True)
    with (folder / fake_mnist.files[0][0]).open("wb") as file:
        file.truncate(2**34)  # 16 GiB that take no space
    start = time.monotonic()
    assert str(doctor._data_sets(Path("images"))["mnist"]).startswith("found, not verified")
    assert time.monotonic() - start < 5


def test_a_question_that_fails_leaves_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("driver at /home/ann/x")

    monkeypatch.setattr(doctor, "_devices", fail)
    subjects = doctor.examine(Path("data")).subjects
    assert subjects["devices"] == {"not available": "RuntimeError: driver at ..."}
    assert subjects["memory and disk"]


def test_cards_and_warnings_of_cuda_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    def warns() -> bool:
        import warnings

        warnings.warn("the driver is too old", UserWarning, stacklevel=1)
        return True

    card = SimpleNamespace(name="NVIDIA H100", total_memory=80 * 2**30, major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "is_available", warns)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: card)
    facts = doctor._devices()
    assert facts["CUDA device 0"] == "NVIDIA H100, 80.0 GiB, capability 9.0"
    assert facts["CUDA warning 1"] == "UserWarning: the driver is too old"


def test_only_known_allocators_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_PRELOAD", "/home/ann/libjemalloc.so.2:/opt/libann.so")
    assert doctor._environment()["LD_PRELOAD"] == "libjemalloc.so.2"
    monkeypatch.setenv("LD_PRELOAD", "/opt/libann.so")
    assert doctor._environment()["LD_PRELOAD"] == "another library"
