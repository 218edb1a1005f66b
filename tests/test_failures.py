"""A disk that is full, gone or read-only, or too little memory, costs a line and nothing that was there."""

import itertools
import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from mnist_cnn.inference import checkpoint
from tests.conftest import QUICK, Outcome, assert_equal_runs, run_process, train_command, weights

# Its checkpoints have 14 MB, in a run of three epochs of which each is the best so far.
LARGE = ("model=dropout", *QUICK[1:3], "trainer.max_epochs=3", "+trainer.limit_train_batches=2", "optimizer.lr=1e-4")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Gives a function that mounts a small disk, or mounts it again with other options."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(options: str) -> Path:
        again = "remount," if os.path.ismount(place) else ""
        command = ["mount", "-t", "tmpfs", "-o", f"{again}{options}", "tmpfs", str(place)]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("only root may mount a small disk here")
        return place

    yield mount
    if os.path.ismount(place):
        subprocess.run(["umount", "-l", str(place)], check=True)


def assert_one_line(outcome: Outcome, *parts: str) -> None:
    assert outcome.status == 1, outcome.err
    assert "Traceback" not in outcome.err
    (line,) = (line for line in outcome.err.splitlines() if line.startswith("error: "))
    for part in parts:
        assert part in line


class At(pl.Callback):
    """Runs a command when an epoch begins, or the training ends."""

    def __init__(self, command: str, epoch: int | None = None) -> None:
        self.command, self.epoch = command, epoch

    def on_train_epoch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.current_epoch == self.epoch:
            subprocess.run(self.command, shell=True, check=False)

    def on_train_end(self, *_: Any) -> None:
        if self.epoch is None:
            subprocess.run(self.command, shell=True, check=False)


class ReadOnly(At):
    """Makes the folder of the run read-only when an epoch begins, or the training ends."""

    def __init__(self, epoch: int | None = None) -> None:
        super().__init__("find run -type d -exec chmod 555 {} +", epoch)

    def on_train_epoch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        super().on_train_epoch_start(trainer)
        if trainer.current_epoch == self.epoch:
            _become_ordinary_user()

    def on_train_end(self, *_: Any) -> None:
        super().on_train_end()
        if self.epoch is None:
            _become_ordinary_user()


def _become_ordinary_user() -> None:
    if os.getuid() == 0:  # root may write everywhere
        os.seteuid(65534)


@contextmanager
def allowed_to_write() -> Iterator[None]:
    """Afterwards, be who one was before, and may write again."""
    try:
        yield
    finally:
        os.seteuid(os.getuid())
        subprocess.run(["chmod", "-R", "755", "run"], check=True)


class LittleMemory(pl.Callback):
    """Leaves the process no more memory than it has."""

    def on_train_start(self, *_: Any) -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize(), resource.RLIM_INFINITY))


def at(command: str, epoch: int | None = None) -> tuple[str, ...]:
    settings = ("+callbacks.at._target_=tests.test_failures.At", f"+callbacks.at.command='{command}'")
    return settings if epoch is None else (*settings, f"+callbacks.at.epoch={epoch}")


def test_a_disk_that_fills_up_costs_no_checkpoint_that_was_there(small_disk: Callable[[str], Path]) -> None:
    run = small_disk("size=40m") / "run"  # for two checkpoints, but not for a third beside them
    assert_one_line(train_command(*LARGE, f"run_dir={run}"), "No space left on device", "best.ckpt")
    assert {checkpoint.load(run / "checkpoints" / name).epoch for name in ("best.ckpt", "last.ckpt")} == {1}
    assert not list(run.rglob("*.part"))
    assert_one_line(train_command(f"resume={run}"), "No space left on device")
    small_disk("size=100m")
    assert train_command(f"resume={run}").status == 0
    assert train_command(*LARGE, "run_dir=whole").status == 0
    assert_equal_runs(run, Path("whole"))


def test_a_disk_that_is_full_before_the_first_checkpoint_leaves_nothing(small_disk: Callable[[str], Path]) -> None:
    run = small_disk("size=6m") / "run"
    assert_one_line(train_command(*LARGE, f"run_dir={run}"), "No space left on device")
    assert not run.exists()


@pytest.mark.parametrize("epoch", [1, None], ids=["during training", "before the report"])
def test_a_disk_that_somebody_else_fills(epoch: int | None, small_disk: Callable[[str], Path]) -> None:
    disk = small_disk("size=8m")
    fill = at(f"cat /dev/zero > {disk}/filler 2> /dev/null", epoch)
    assert_one_line(train_command(*QUICK, *fill, f"run_dir={disk}/run"), "No space left on device")
    (disk / "filler").unlink()
    assert checkpoint.load(disk / "run").epoch >= 1
    assert train_command(f"resume={disk}/run", "+callbacks.at=null").status == 0


@pytest.mark.parametrize("epoch", [1, None], ids=["during training", "before the report"])
def test_a_folder_that_becomes_read_only(epoch: int | None) -> None:
    read_only = ("+callbacks.at._target_=tests.test_failures.ReadOnly", f"+callbacks.at.epoch={epoch or 'null'}")
    with allowed_to_write():
        outcome = train_command(*QUICK, *read_only, "run_dir=run")
    assert_one_line(outcome, "run/", "Permission denied")
    assert train_command("resume=run", "+callbacks.at=null").status == 0
    assert train_command(*QUICK, read_only[0], "+callbacks.at.epoch=99", "run_dir=whole").status == 0
    assert all(torch.equal(weight, weights(Path("whole"))[key]) for key, weight in weights(Path("run")).items())


@pytest.mark.parametrize("epoch", [1, None], ids=["during training", "before the report"])
def test_a_run_folder_that_is_deleted_meanwhile_ends_the_run(epoch: int | None) -> None:
    assert_one_line(train_command(*QUICK, *at("rm -r run", epoch), "run_dir=run"), "run", "o such file or")
    assert not Path("run").exists()


def test_no_folder_for_temporary_files_is_needed(small_disk: Callable[[str], Path], monkeypatch: Any) -> None:
    full = small_disk("size=4k")
    (full / "filler").write_bytes(b"x" * 4096)
    for folder in (full, full / "nowhere"):
        monkeypatch.setenv("TMPDIR", str(folder))
        outcome = run_process(*QUICK, f"run_dir=run in {folder.name}")
        assert outcome.status == 0, outcome.err


def test_a_lack_of_memory_is_a_line() -> None:
    little = "+callbacks.memory._target_=tests.test_failures.LittleMemory"
    assert_one_line(run_process(*LARGE, "data.batch_size=1024", little, "run_dir=run"), "memory")
    assert not Path("run").exists()


def test_a_clock_that_is_set_back_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert train_command(*QUICK, "run_dir=whole").status == 0
    seconds = itertools.count(2e9, -3600)
    with monkeypatch.context() as patch:
        patch.setattr("time.time", lambda: next(seconds))
        assert train_command(*QUICK, "run_dir=run").status == 0
    assert_equal_runs(Path("run"), Path("whole"))


def test_a_full_disk_during_a_download_leaves_nothing_half(fake_mnist: Any, small_disk: Callable[[str], Path]) -> None:
    root = small_disk("size=60k")
    settings = (
        "model=mlp",
        "data=mnist",
        f"data.mirror={fake_mnist.mirror}",
        f"data.root={root}",
        "trainer.max_epochs=1",
    )
    assert_one_line(train_command(*settings, "run_dir=run"), "No space left on device")
    assert not list(root.rglob("*.part"))
    small_disk("size=4m")
    assert train_command(*settings, "run_dir=run").status == 0
    shutil.rmtree("run")
