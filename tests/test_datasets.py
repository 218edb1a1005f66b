import contextlib
import gzip
import io
import pickle
import socket
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Iterator
from hashlib import md5
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mnist_cnn.data import datasets, download, sources
from mnist_cnn.data.images import ImageSet
from mnist_cnn.errors import ConfigError, DataError
from tests.conftest import FakeMnist, idx

RAW = Path("data/MNIST/raw")


def fetch(mirror: Path | str | None, name: str = "mnist") -> ImageSet:
    datasets.fetch(name, "data", str(mirror) if mirror else None)
    return datasets.load(name, "data")


class Server(ThreadingHTTPServer):
    """Serves a dictionary of files; counts what is asked for, and can break off or lie."""

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.asked = files, list[tuple[str, str | None]]()
        self.break_off_at: int | None = None
        self.address = f"http://127.0.0.1:{self.server_address[1]}/"


class Handler(BaseHTTPRequestHandler):
    """Answers GET, with ranges."""

    server: Server

    def do_GET(self) -> None:
        name, wanted = self.path.strip("/"), self.headers.get("Range")
        self.server.asked.append((name, wanted))
        if name not in self.server.files:
            self.send_error(404)
            return
        content = self.server.files[name]
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
        if start >= len(content):
            self.send_error(416)
            return
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        end, self.server.break_off_at = self.server.break_off_at, None
        self.wfile.write(content[start:end])

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(fake_mnist: FakeMnist) -> Iterator[Server]:
    serving = Server({file.name: file.read_bytes() for file in fake_mnist.mirror.iterdir()})
    thread = threading.Thread(target=serving.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield serving
    serving.shutdown()
    serving.server_close()
    thread.join()


def test_a_folder_a_file_address_and_a_web_address_are_mirrors(fake_mnist: FakeMnist, server: Server) -> None:
    for number, mirror in enumerate((str(fake_mnist.mirror), fake_mnist.mirror.as_uri(), server.address)):
        datasets.fetch("mnist", f"data{number}", mirror)
        loaded = datasets.load("mnist", f"data{number}")
        assert torch.equal(loaded.train.images[:, 0], torch.from_numpy(fake_mnist.train_images))
        assert loaded.train.labels.tolist() == fake_mnist.train_labels.tolist()
        assert loaded.test.images.shape == (50, 1, 28, 28)
        assert loaded.classes == tuple("0123456789")


def test_files_that_are_there_are_not_fetched_again(server: Server) -> None:
    fetch(server.address)
    server.asked.clear()
    fetch(server.address)
    fetch("http://127.0.0.1:1/")
    assert server.asked == []


@pytest.mark.parametrize("damage", [lambda b: b[:-100], lambda b: b[:500] + b"x" + b[501:], lambda b: b""])
def test_a_damaged_file_is_noticed_and_fetched_again(fake_mnist: FakeMnist, server: Server, damage: Any) -> None:
    fetch(server.address)
    file = RAW / "train-images-idx3-ubyte.gz"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(DataError, match="damaged"):
        datasets.load("mnist", "data")
    server.asked.clear()
    loaded = fetch(server.address)
    assert torch.equal(loaded.train.images[:, 0], torch.from_numpy(fake_mnist.train_images))
    assert [name for name, _ in server.asked] == [file.name]


def test_unpacked_files_are_taken_where_they_are_undamaged(
    fake_mnist: FakeMnist, monkeypatch: pytest.MonkeyPatch
) -> None:
    RAW.mkdir(parents=True)
    contents = [gzip.decompress((fake_mnist.mirror / name).read_bytes()) for name, _ in fake_mnist.files]
    for (name, _), content in zip(fake_mnist.files, contents, strict=True):
        (RAW / name.removesuffix(".gz")).write_bytes(content)
    known = tuple(md5(content).hexdigest() for content in contents)
    source = sources.SOURCES["mnist"]()
    monkeypatch.setitem(sources.SOURCES, "mnist", lambda: type(source)(**{**vars(source), "unpacked_md5": known}))
    loaded = fetch(None)
    assert torch.equal(loaded.train.images[:, 0], torch.from_numpy(fake_mnist.train_images))
    (RAW / "train-images-idx3-ubyte").write_bytes(contents[0][:-1])
    with pytest.raises(DataError):
        fetch(None)
    loaded = fetch(fake_mnist.mirror)
    assert torch.equal(loaded.train.images[:, 0], torch.from_numpy(fake_mnist.train_images))


def test_a_mirror_without_the_right_file_is_passed_over(
    fake_mnist: FakeMnist, server: Server, monkeypatch: Any
) -> None:
    from torchvision.datasets import MNIST

    monkeypatch.setattr(MNIST, "mirrors", [fake_mnist.mirror.as_uri() + "/"])
    server.files["train-images-idx3-ubyte.gz"] = b"<html>Please log in</html>"
    del server.files["t10k-labels-idx1-ubyte.gz"]
    assert len(fetch(server.address).train) == 200
    assert [name for name, _ in server.asked] == [name for name, _ in fake_mnist.files]


def test_a_broken_transfer_is_taken_up_where_it_ended(fake_mnist: FakeMnist, server: Server) -> None:
    server.break_off_at = 1000
    with pytest.raises(DataError, match="broke off after 1,000"):
        fetch(server.address)
    assert [file.name for file in RAW.iterdir()] == ["train-images-idx3-ubyte.gz.part"]
    server.asked.clear()
    assert len(fetch(server.address).train) == 200
    assert server.asked[0] == ("train-images-idx3-ubyte.gz", "bytes=1000-")
    assert sorted(file.name for file in RAW.iterdir()) == sorted(name for name, _ in fake_mnist.files)


def test_a_transfer_that_was_complete_but_not_yet_in_place_is_put_there(server: Server) -> None:
    RAW.mkdir(parents=True)
    (RAW / "train-images-idx3-ubyte.gz.part").write_bytes(server.files["train-images-idx3-ubyte.gz"])
    fetch(server.address)
    assert sorted(name for name, _ in server.asked) == sorted(server.files.keys() - {"train-images-idx3-ubyte.gz"})


def test_a_beginning_of_something_else_is_thrown_away(server: Server) -> None:
    RAW.mkdir(parents=True)
    (RAW / "train-images-idx3-ubyte.gz.part").write_bytes(b"x" * 10**6)
    for _ in range(2):
        with contextlib.suppress(DataError):
            fetch(server.address)
    assert len(fetch(server.address).train) == 200


def test_the_size_of_a_download_is_bounded(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "MAX_BYTES", 1000)
    with pytest.raises(DataError, match="more than 1,000 bytes"):
        fetch(server.address)


def test_where_mnist_can_not_be_had_one_message_says_everything(fake_mnist: FakeMnist) -> None:
    with pytest.raises(DataError) as refused:
        fetch("http://127.0.0.1:1/")
    message = str(refused.value)
    for part in ("http://127.0.0.1:1/train-images", "data/MNIST/raw", "data.mirror=", "MNIST_MIRROR", "data=digits"):
        assert part in message
    assert all(name in message for name, _ in fake_mnist.files)


def test_mirrors_that_never_answer_are_given_up_together_in_time(
    fake_mnist: FakeMnist, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision.datasets import MNIST

    assert download.PATIENCE + download.STALLED <= 25
    monkeypatch.setattr(download, "PATIENCE", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        monkeypatch.setattr(MNIST, "mirrors", [address] * 4)
        start = time.monotonic()
        with pytest.raises(DataError) as refused:
            fetch(None)
        assert time.monotonic() - start < 2.5
    assert str(refused.value).count("no answer") == 4


@pytest.mark.parametrize("mirror", ["ftp://example.org", "no/such/folder"])
def test_a_mirror_that_is_no_address_is_refused(mirror: str) -> None:
    with pytest.raises(ConfigError, match="mirror="):
        fetch(mirror)


def test_a_data_folder_that_can_not_be_written_is_named() -> None:
    Path("data").write_text("a file")
    with pytest.raises(DataError, match="data root data: it is a file"):
        fetch("http://127.0.0.1:1/")


def test_processes_that_start_at_once_on_an_empty_folder_all_get_whole_files(fake_mnist: FakeMnist) -> None:
    program = (
        "import sys; from torchvision.datasets import MNIST; from mnist_cnn.data import datasets\n"
        f"MNIST.resources = {fake_mnist.files!r}; MNIST.mirrors = []\n"
        f"datasets.fetch('mnist', 'data', {str(fake_mnist.mirror)!r})\n"
        "print(int(datasets.load('mnist', 'data').train.images.sum()))"
    )
    starting = [subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) for _ in range(3)]
    sums = [int(process.communicate()[0]) for process in starting]
    assert sums == [int(fake_mnist.train_images.sum())] * 3
    assert not list(RAW.glob("*.part"))


def test_the_bundled_digits_look_like_mnist_and_need_nothing() -> None:
    digits = fetch(None, "digits")
    assert (len(digits.train), len(digits.test)) == (1437, 360)
    assert digits.train.images.shape[1:] == (1, 28, 28)
    assert digits.train.images.dtype == torch.uint8
    assert int(digits.train.images.max()) == 255
    assert not digits.train.images[:, :, :4].any()
    assert set(digits.test.labels.tolist()) == set(range(10))
    assert not Path("data").exists()


def test_auto_is_mnist_only_where_it_is_present(fake_mnist: FakeMnist) -> None:
    assert datasets.load("auto", "data").name == "digits"
    fetch(fake_mnist.mirror)
    assert datasets.load("auto", "data").name == "mnist"


@pytest.mark.parametrize(("name", "folder"), [("fashion_mnist", "FashionMNIST"), ("kmnist", "KMNIST")])
def test_mnists_relatives_are_read_with_their_class_names(
    name: str, folder: str, fake_mnist: FakeMnist, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torchvision.datasets

    monkeypatch.setattr(getattr(torchvision.datasets, folder), "resources", fake_mnist.files)
    loaded = fetch(fake_mnist.mirror, name)
    assert len(loaded.classes) == 10
    assert loaded.classes[0] in ("T-shirt/top", "o")
    assert (Path("data") / folder / "raw").is_dir()


def test_qmnists_classes_are_the_first_column_of_its_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import QMNIST

    labels = np.stack([np.arange(20) % 10, *np.full((7, 20), 99)], 1).astype(np.int32)
    images = np.zeros((20, 28, 28), np.uint8)
    resources: dict[str, list[tuple[str, str]]] = {"train": [], "test": []}
    for part in resources:
        for kind, array in (("images-idx3-ubyte", images), ("labels-idx2-int", labels)):
            name, packed = f"qmnist-{part}-{kind}.gz", gzip.compress(idx(array))
            (tmp_path / name).write_bytes(packed)
            resources[part].append((f"http://127.0.0.1:1/{name}", md5(packed).hexdigest()))
    monkeypatch.setattr(QMNIST, "resources", resources)
    assert fetch(tmp_path, "qmnist").test.labels.tolist() == [*range(10), *range(10)]


def test_emnist_digits_are_set_upright(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import EMNIST

    images = np.random.default_rng(0).integers(0, 256, (20, 28, 28), np.uint8)
    labels = (np.arange(20) % 10).astype(np.uint8)
    with zipfile.ZipFile(tmp_path / "gzip.zip", "w") as archive:
        for part in ("train", "test"):
            for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
                archive.writestr(f"gzip/emnist-digits-{part}-{kind}-ubyte.gz", gzip.compress(idx(array)))
    monkeypatch.setattr(EMNIST, "md5", md5((tmp_path / "gzip.zip").read_bytes()).hexdigest())
    loaded = fetch(tmp_path, "emnist_digits")
    assert torch.equal(loaded.test.images[:, 0], torch.from_numpy(images).transpose(1, 2))
    archive_file = Path("data/EMNIST/raw/gzip.zip")
    content = bytearray(archive_file.read_bytes())
    content[300] ^= 255
    archive_file.write_bytes(content)
    with pytest.raises(DataError, match="missing or damaged"):
        datasets.load("emnist_digits", "data")
    assert torch.equal(fetch(tmp_path, "emnist_digits").test.images, loaded.test.images)


def test_cifar10_is_read_channel_first_and_its_files_are_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision.datasets import CIFAR10

    pixels = np.random.default_rng(0).integers(0, 256, (10, 3072), np.uint8)
    batch = pickle.dumps({"data": pixels, "labels": list(range(10))})
    meta = pickle.dumps({"label_names": [f"kind {i}" for i in range(10)]})
    files = {"data_batch_1": batch, "test_batch": batch, "batches.meta": meta}
    with tarfile.open(tmp_path / CIFAR10.filename, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    sums = {name: md5(content).hexdigest() for name, content in files.items()}
    monkeypatch.setattr(CIFAR10, "tgz_md5", md5((tmp_path / CIFAR10.filename).read_bytes()).hexdigest())
    monkeypatch.setattr(CIFAR10, "train_list", [["data_batch_1", sums["data_batch_1"]]])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(
        CIFAR10, "meta", {"filename": "batches.meta", "key": "label_names", "md5": sums["batches.meta"]}
    )
    loaded = fetch(tmp_path, "cifar10")
    assert torch.equal(loaded.train.images, torch.from_numpy(pixels).reshape(10, 3, 32, 32))
    assert loaded.classes[3] == "kind 3"
    assert datasets.input_shape("cifar10") == (3, 32, 32)
    Path("data/cifar-10-batches-py/data_batch_1").write_bytes(batch[:-1])
    with pytest.raises(DataError):
        datasets.load("cifar10", "data")


@pytest.mark.parametrize("name", ["emnist_digits", "cifar10"])
def test_an_archive_that_can_not_be_had_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision.datasets

    dataset = torchvision.datasets.EMNIST if name == "emnist_digits" else torchvision.datasets.CIFAR10
    monkeypatch.setattr(dataset, "url", "http://127.0.0.1:1/" + dataset.url.rpartition("/")[2])
    with pytest.raises(DataError, match=r"put .*(zip|gz) into"):
        fetch(None, name)


@pytest.mark.parametrize("data", [b"", b"\0\0\x08", b"PK\3\4....", b"\0\0\x08\x01\0\0\0\x09abc", b"\0\0\x08\xff"])
def test_what_is_no_idx_file_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"IDX|buffer|offset"):
        sources.read_idx(data)
