"""A file is written whole or not at all, and is durable before it takes its place."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mnist_cnn.errors import OutputError
from mnist_cnn.files import remove_parts, write_file
from tests.conftest import QUICK, ROOT, train_command


def broken() -> Iterator[bytes]:
    yield b"half of it"
    raise ConnectionError("the other half never came")


def test_what_breaks_off_leaves_the_old_content_and_nothing_else() -> None:
    file = Path("file")
    file.write_bytes(b"old")
    with pytest.raises(OutputError, match="file: can't be written"):
        write_file(file, broken())
    assert file.read_bytes() == b"old"
    assert os.listdir() == ["file"]


def test_content_is_on_disk_before_its_name_and_the_name_before_the_call_returns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[str] = []
    fsync, rename = os.fsync, Path.replace

    def synchronise(descriptor: int) -> None:
        calls.append(f"fsync {os.readlink(f'/proc/self/fd/{descriptor}').rpartition('.')[2]}")
        fsync(descriptor)

    def replace(self: Path, target: Path) -> Path:
        calls.append("rename")
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", synchronise)
    monkeypatch.setattr(Path, "replace", replace)
    write_file(Path("file"), b"content")
    assert calls[:2] == ["fsync part", "rename"]
    assert calls[2] == f"fsync {Path.cwd()}".rpartition(".")[2] or calls[2].startswith("fsync /")


def test_a_file_that_is_new_never_takes_the_place_of_another() -> None:
    write_file(Path("file"), b"first", replace=False)
    with pytest.raises(OutputError, match="exists already"):
        write_file(Path("file"), b"second", replace=False)

    def meanwhile() -> Iterator[bytes]:
        yield b"second"
        Path("other").write_bytes(b"somebody else's")

    with pytest.raises(OutputError, match="exists already"):
        write_file(Path("other"), meanwhile(), replace=False)
    assert (Path("file").read_bytes(), Path("other").read_bytes()) == (b"first", b"somebody else's")
    assert sorted(os.listdir()) == ["file", "other"]


@pytest.mark.parametrize("name", ["nowhere/file", "x" * 300, "folder"])
def test_what_can_not_be_written_is_told_in_a_line(name: str) -> None:
    Path("folder").mkdir()
    with pytest.raises(OutputError) as caught:
        write_file(Path(name), b"content")
    assert len(str(caught.value).splitlines()) == 1
    assert os.listdir() == ["folder"]


def test_a_killed_process_leaves_the_old_content_and_a_part_that_can_be_removed() -> None:
    Path("file").write_bytes(b"old")
    code = (
        "import os, signal, pathlib\n"
        "from mnist_cnn.files import write_file\n"
        "def pieces():\n"
        "    yield b'half of it'\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "write_file(pathlib.Path('file'), pieces())\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == -9
    assert Path("file").read_bytes() == b"old"
    assert len(os.listdir()) == 2
    remove_parts(Path())
    assert os.listdir() == ["file"]


def test_checkpoints_of_lightning_are_written_the_same_way(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []

    def write(path: Path, content: bytes) -> None:
        written.append(path.name)
        write_file(path, content)

    monkeypatch.setattr("mnist_cnn.training.resume.checkpoint_io.write_file", write)
    assert train_command(*QUICK, "trainer.max_epochs=1", "run_dir=run").status == 0
    assert written == ["best.ckpt", "last.ckpt"]
