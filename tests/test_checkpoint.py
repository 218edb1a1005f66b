import io
import os
import pickle
import random
import shutil
import socket
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mnist_cnn.errors import CheckpointError, ConfigError
from mnist_cnn.inference import checkpoint, checkpoint_file
from mnist_cnn.network import Network, build_network


@pytest.fixture
def content(digits_run: Path) -> dict[str, Any]:
    """The content of a good checkpoint, for a test to damage."""
    loaded: dict[str, Any] = torch.load(digits_run / "checkpoints" / "best.ckpt", weights_only=True)
    return loaded


def refused(content: Any, tmp_path: Path) -> str:
    file = tmp_path / "damaged.ckpt"
    torch.save(content, file)
    with pytest.raises(CheckpointError) as error:
        checkpoint.load(file)
    message = str(error.value)
    assert message.startswith(str(file))
    assert "\n" not in message
    return message


def test_a_checkpoint_describes_itself(content: dict[str, Any]) -> None:
    metadata = content[checkpoint.METADATA_KEY]
    assert set(metadata) == {
        "format", "model", "layers", "input_shape", "preprocessing", "classes", "dataset", "split", "training",
        "versions",
    }  # fmt: skip
    assert metadata["layers"][0] == {
        "Conv2D": {"filters": 8, "kernel_size": 4, "padding": "same", "activation": "relu"}
    }
    assert metadata["input_shape"] == [1, 28, 28]
    assert metadata["dataset"] == "digits"
    assert metadata["split"] == {"val_fraction": 0.1, "method": "last", "seed": 0}
    assert metadata["classes"] == list("0123456789")
    assert metadata["preprocessing"] == {"mean": [0.0], "std": [1.0], "scale": 255.0, "size": None}
    assert metadata["training"]["settings"]["optimizer._target_"].endswith("KerasAdam")
    assert {"torch", "lightning", "mnist-cnn", "python"} == set(metadata["versions"])


def test_a_run_folder_means_its_best_checkpoint_wherever_it_has_moved(digits_run: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    shutil.copytree(digits_run, moved)
    (moved / "config.yaml").unlink()  # the checkpoint is read without it
    assert checkpoint.find(moved) == moved / "checkpoints" / "best.ckpt"
    trained = checkpoint.load(moved)
    again = checkpoint.load(digits_run / "checkpoints" / "best.ckpt")
    x = torch.rand(3, 1, 28, 28)
    assert torch.equal(trained.network(x), again.network(x))
    assert not trained.network.training
    assert trained.epoch in (1, 2, 3)


def test_a_missing_file_and_a_folder_that_is_no_run_are_named(tmp_path: Path) -> None:
    for path, reason in ((tmp_path / "nothing", "no such file"), (tmp_path, "not a run folder")):
        with pytest.raises(CheckpointError, match=reason):
            checkpoint.load(path)


@pytest.mark.parametrize("bytes_kept", [0, 1, 100, 5000, -1, -100])
def test_a_truncated_checkpoint_is_refused(digits_run: Path, tmp_path: Path, bytes_kept: int) -> None:
    file = tmp_path / "short.ckpt"
    file.write_bytes((digits_run / "checkpoints" / "best.ckpt").read_bytes()[:bytes_kept])
    with pytest.raises(CheckpointError, match=r"short\.ckpt"):
        checkpoint.load(file)


@pytest.mark.parametrize("junk", [b"hello", b"PK\3\4", b"\x80\x02}q\x00.", b"<html></html>", bytes(range(256)) * 40])
def test_a_file_of_another_kind_is_refused(tmp_path: Path, junk: bytes) -> None:
    file = tmp_path / "junk.ckpt"
    file.write_bytes(junk)
    with pytest.raises(CheckpointError, match=r"junk\.ckpt"):
        checkpoint.load(file)


def identical(one: Any, other: Any) -> bool:
    """Whether two contents have the same values in the same types."""
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(identical(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(identical, one, other))
    return bool(one == other)


def test_the_content_of_a_training_checkpoint_comes_out_as_it_is(digits_run: Path, tmp_path: Path) -> None:
    last = digits_run / "checkpoints" / "last.ckpt"
    content = torch.load(last, weights_only=True)
    assert {"optimizer_states", "loops", "callbacks"} <= set(content)
    content["lr_schedulers"] = [OrderedDict(milestones=Counter({3: 1})), (1, 2.5, None, True, "é", 2**63)]
    torch.save(content, tmp_path / "more.ckpt")
    for file in (last, tmp_path / "more.ckpt"):
        assert identical(checkpoint.read(file), torch.load(file, weights_only=True))


def test_a_flipped_byte_in_a_weight_is_called_damaged(digits_run: Path, tmp_path: Path) -> None:
    whole = (digits_run / "checkpoints" / "best.ckpt").read_bytes()
    file = tmp_path / "flipped.ckpt"
    values = torch.load(io.BytesIO(whole), weights_only=True)["state_dict"]["network.5_Dense.weight"]
    changed = bytearray(whole)
    changed[whole.index(values.numpy().tobytes()) + 7] ^= 1
    file.write_bytes(changed)
    with pytest.raises(CheckpointError, match=r"flipped\.ckpt: damaged"):
        checkpoint.read(file)


def test_a_file_with_any_flipped_bit_is_refused_or_holds_the_same(digits_run: Path, tmp_path: Path) -> None:
    whole = (digits_run / "checkpoints" / "last.ckpt").read_bytes()
    content = checkpoint.read(digits_run / "checkpoints" / "last.ckpt")
    file, chance, refused = tmp_path / "flipped.ckpt", random.Random(0), 0
    for _ in range(100):
        changed = bytearray(whole)
        changed[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
        file.write_bytes(changed)
        try:
            assert identical(checkpoint.read(file), content)
        except CheckpointError:
            refused += 1
    assert refused > 80


def rezipped(source: Path, file: Path, compression: int, *more: tuple[str, bytes]) -> None:
    with zipfile.ZipFile(source) as archive, zipfile.ZipFile(file, "w", compression) as other:
        for name in archive.namelist():
            other.writestr(name, archive.read(name))
        for name, content in more:
            other.writestr(name, content)


def test_compressed_parts_are_refused_before_they_are_unpacked(
    digits_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "zipped.ckpt"
    rezipped(digits_run / "checkpoints" / "best.ckpt", file, zipfile.ZIP_STORED)
    checkpoint.load(file)
    rezipped(digits_run / "checkpoints" / "best.ckpt", file, zipfile.ZIP_DEFLATED)
    monkeypatch.delattr(torch, "load")
    with pytest.raises(CheckpointError, match="its parts are compressed"):
        checkpoint.load(file)


def test_two_parts_of_one_name_are_refused(digits_run: Path, tmp_path: Path) -> None:
    file = tmp_path / "twice.ckpt"
    rezipped(digits_run / "checkpoints" / "best.ckpt", file, zipfile.ZIP_STORED, ("ARCHIVE/data/0", b"other weights"))
    with pytest.raises(CheckpointError, match="same name"):
        checkpoint.load(file)


def test_torch_reads_no_other_parts_than_were_verified(digits_run: Path, tmp_path: Path) -> None:
    # Python's reader of zip files allows for bytes in front of an archive, and torch's does not.
    file = tmp_path / "front.ckpt"
    file.write_bytes(b"x" * 1000 + (digits_run / "checkpoints" / "best.ckpt").read_bytes())
    best = checkpoint.read(digits_run / "checkpoints" / "best.ckpt")
    assert identical(checkpoint.read(file)["state_dict"], best["state_dict"])


def test_an_archive_of_very_many_parts_is_refused_before_its_directory_is_read(tmp_path: Path) -> None:
    file = tmp_path / "many.ckpt"
    with zipfile.ZipFile(file, "w") as archive:
        for number in range(checkpoint_file.MAX_MEMBERS + 1):
            archive.writestr(f"archive/{number}", b"")
    with pytest.raises(CheckpointError, match="more parts than any network"):
        checkpoint.load(file)


def test_what_is_not_a_regular_file_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.ckpt")
    os.chdir(tmp_path)  # the path of a socket must be short
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket.ckpt")
        for name in ("pipe.ckpt", "socket.ckpt"):
            with pytest.raises(CheckpointError, match=rf"^{name}: "):
                checkpoint.load(name)
    for file in (Path("/dev/zero"), tmp_path):
        with pytest.raises(CheckpointError, match="not a file"):
            checkpoint.read(file)
    with pytest.raises(CheckpointError, match="can have this name"):
        checkpoint.load("a\0b")


class Evil:
    """Creates a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.file,))


def test_pickled_objects_are_refused_and_not_run(content: dict[str, Any], tmp_path: Path) -> None:
    assert "pickled Python objects" in refused({**content, "extra": Evil(tmp_path / "owned")}, tmp_path)
    file = tmp_path / "plain.ckpt"  # not even a zip file
    file.write_bytes(pickle.dumps(Evil(tmp_path / "owned")))
    with pytest.raises(CheckpointError):
        checkpoint.load(file)
    assert not (tmp_path / "owned").exists()


def test_a_checkpoint_of_another_project_or_format_is_not_called_damaged(
    content: dict[str, Any], tmp_path: Path
) -> None:
    assert "not a checkpoint of this project" in refused({"state_dict": {}}, tmp_path)
    assert "not a checkpoint of this project" in refused([1, 2], tmp_path)
    content[checkpoint.METADATA_KEY]["format"] = 99
    assert "its format is 99" in refused(content, tmp_path)


@pytest.mark.parametrize("key", ["layers", "input_shape", "preprocessing", "classes", "dataset", "split", "versions"])
def test_incomplete_metadata_is_refused(content: dict[str, Any], tmp_path: Path, key: str) -> None:
    del content[checkpoint.METADATA_KEY][key]
    assert "metadata is incomplete or damaged" in refused(content, tmp_path)


UNIT = {"mean": [0.0], "std": [1.0]}


@pytest.mark.parametrize(
    "bad",
    [
        3, "x", None, {"mean": [0.0], "std": [0.0]}, {"mean": "x", "std": [1]}, UNIT | {"scale": 0},
        UNIT | {"size": [10**9, 10**9]}, UNIT | {"size": 28},
    ],
)  # fmt: skip
def test_damaged_preprocessing_is_refused(content: dict[str, Any], tmp_path: Path, bad: Any) -> None:
    content[checkpoint.METADATA_KEY]["preprocessing"] = bad
    assert "metadata is incomplete or damaged" in refused(content, tmp_path)


def test_weights_of_a_wrong_shape_are_named(content: dict[str, Any], tmp_path: Path) -> None:
    content["state_dict"]["network.0_Conv2D.weight"] = torch.zeros(8, 1, 3, 3)
    assert "0_Conv2D.weight" in refused(content, tmp_path)


def test_a_missing_weight_is_named(content: dict[str, Any], tmp_path: Path) -> None:
    del content["state_dict"]["network.5_Dense.bias"]
    assert "5_Dense.bias" in refused(content, tmp_path)


def test_a_network_larger_than_the_file_allocates_no_memory(
    content: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(*arguments: Any) -> Network:
        assert torch.empty(1).is_meta  # everything built here has a shape but no memory
        return build_network(*arguments)

    monkeypatch.setattr(checkpoint, "build_network", build)
    content[checkpoint.METADATA_KEY]["layers"][0]["Conv2D"]["filters"] = 10**9
    assert "layer 0 (Conv2D)" in refused(content, tmp_path)
    content[checkpoint.METADATA_KEY]["layers"][0]["Conv2D"]["filters"] = (
        10**4
    )  # 30 MB of outputs for each image: allowed, but not allocated
    assert "don't fit its layers" in refused(content, tmp_path)


def test_layers_cannot_name_code(content: dict[str, Any], tmp_path: Path) -> None:
    content[checkpoint.METADATA_KEY]["layers"][0] = {"os.system": {"command": "true"}}
    assert "no layer is called os.system" in refused(content, tmp_path)


class Calls:
    """Is unpickled by calling a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def nested(levels: int) -> list[Any]:
    value: list[Any] = ["x"]
    for _ in range(levels):
        value = [value, value]
    return value


def endless() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        (Calls(bytearray, 10**12), "pickled Python objects"),
        (b"bytes", "pickled Python objects"),
        (torch.zeros(2, device="meta"), "pickled Python objects"),
        (torch.eye(2).to_sparse(), "pickled Python objects"),
        (torch.float32, "pickled Python objects"),
        (torch.zeros(1).expand(10**9), "claim more values"),
        ([torch.zeros(1000)] * 1000, "claim more values"),
        (nested(30), "nested without end"),
        (endless(), "nested without end"),
    ],
)
def test_other_values_and_endless_ones_are_refused(
    content: dict[str, Any], tmp_path: Path, extra: Any, says: str
) -> None:
    assert says in refused({**content, "extra": extra}, tmp_path)


def test_a_dictionary_with_methods_of_its_own_is_refused(content: dict[str, Any], tmp_path: Path) -> None:
    content["state_dict"].items = OrderedDict  # an empty list of weights, when it is called
    assert "not a plain value" in refused(content, tmp_path)


DIGITS = list("0123456789")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (1, 2),
        ("format", torch.zeros(2)),
        ("model", "\x1b[31mred"),
        ("model", "a\u202eb"),
        ("model", "a" * 10_000),
        ("dataset", "auto"),
        ("layers", "x"),
        ("layers", [{1: {2: 3}}]),
        ("layers", [[["x"]]]),
        ("layers", [torch.zeros(2)]),
        ("input_shape", [1, float("inf"), 28]),
        ("input_shape", [1, 10**9, 10**9]),
        ("input_shape", [2**14, 2**14, 2**14]),
        ("input_shape", [28, 28]),
        ("preprocessing", {"mean": [0.0] * 3, "std": [1.0] * 3}),
        ("preprocessing", {"mean": [float("nan")], "std": [1.0]}),
        ("preprocessing", {"mean": [10**400], "std": [1.0]}),
        ("preprocessing", {"mean": [0.0], "std": [1.0], "scale": float("inf")}),
        ("preprocessing", {"mean": [0.0], "std": [1.0], "size": [32, 32]}),
        ("classes", ["a"]),
        ("classes", ["a"] * 10),
        ("classes", ["\x1b[1m", *DIGITS[1:]]),
        ("classes", ["", *DIGITS[1:]]),
        ("classes", list(range(10))),
        ("split", {"val_fraction": 2.0, "method": "last", "seed": 0}),
        ("split", {"val_fraction": float("nan"), "method": "last", "seed": 0}),
        ("split", {"val_fraction": 0.1, "method": "first", "seed": 0}),
        ("split", {"method": "last"}),
        ("training", [1]),
        ("training", {1: 2}),
        ("training", {"seed": torch.zeros(2)}),
        ("training", {"keras": {"file": "\x1b", "version": "3"}}),
        ("training", {"keras": {"input_shape": [0.5]}}),
        ("training", {"settings": 5}),
        ("versions", {"torch": "2\n3"}),
    ],
)
def test_metadata_that_no_checkpoint_has_is_refused_in_a_line(
    content: dict[str, Any], tmp_path: Path, key: Any, value: Any
) -> None:
    content[checkpoint.METADATA_KEY][key] = value
    message = refused(content, tmp_path)
    assert message.isprintable()
    assert len(message) < 700


@pytest.mark.parametrize("epoch", [float("inf"), float("nan"), True, "3", -2, 10**300, None])
def test_an_epoch_that_is_no_number_is_refused(content: dict[str, Any], tmp_path: Path, epoch: Any) -> None:
    assert "`$.epoch`" in refused({**content, "epoch": epoch}, tmp_path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.complex64, torch.int32])
@pytest.mark.parametrize("keys", [slice(None), slice(1)])
def test_weights_of_another_type_are_named(
    content: dict[str, Any], tmp_path: Path, dtype: torch.dtype, keys: slice
) -> None:
    for key in list(content["state_dict"])[keys]:
        content["state_dict"][key] = content["state_dict"][key].to(dtype)
    assert f"its network.0_Conv2D.weight is {dtype}, not torch.float32" in refused(content, tmp_path)


def stored_as_float16(content: dict[str, Any]) -> dict[str, Any]:
    halved = {key: value.half() for key, value in content["state_dict"].items()}
    metadata = {**content[checkpoint.METADATA_KEY], "weights": "float16"}
    return {**content, "state_dict": halved, checkpoint.METADATA_KEY: metadata}


def test_a_file_that_says_so_stores_float16_and_its_network_computes_in_float32(
    content: dict[str, Any], tmp_path: Path
) -> None:
    torch.save(stored_as_float16(content), tmp_path / "half.ckpt")
    trained = checkpoint.load(tmp_path / "half.ckpt")
    for key, value in trained.network.state_dict().items():
        assert torch.equal(value, content["state_dict"][f"network.{key}"].half().float())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"network.5_Dense.bias": torch.zeros(10)}, "its network.5_Dense.bias is torch.float32, not torch.float16"),
        ({"network.5_Dense.bias": torch.full((10,), 1e5).half()}, "its weights are not finite (infinity in"),
    ],
)
def test_a_file_of_float16_holds_no_other_type_and_no_infinity(
    content: dict[str, Any], tmp_path: Path, change: dict[str, torch.Tensor], says: str
) -> None:
    halved = stored_as_float16(content)
    halved["state_dict"].update(change)
    assert says in refused(halved, tmp_path)


def test_no_third_type_can_be_asked_for(content: dict[str, Any], tmp_path: Path) -> None:
    content[checkpoint.METADATA_KEY]["weights"] = "load"
    assert "`$.weights`" in refused(content, tmp_path)


@pytest.mark.parametrize(("bad", "name"), [(float("nan"), "NaN"), (float("inf"), "infinity")])
def test_weights_of_a_diverged_run_are_refused(content: dict[str, Any], tmp_path: Path, bad: float, name: str) -> None:
    content["state_dict"]["network.5_Dense.bias"][3] = bad
    message = refused(content, tmp_path)
    assert f"its weights are not finite ({name} in network.5_Dense.bias): the run that made it diverged" in message


def test_a_network_is_not_described_in_words_that_would_be_refused(digits_run: Path) -> None:
    trained = checkpoint.load(digits_run)

    def described(model: str, classes: tuple[str, ...]) -> dict[str, Any]:
        known: dict[str, Any] = {"dataset": "digits", "split": {}, "training": {}}
        return checkpoint.describe(trained.network, trained.preprocessing, model=model, classes=classes, **known)

    assert described("a\x1bb" * 100, trained.classes)["model"].startswith("a\\x1bb")
    with pytest.raises(ConfigError, match="two classes have the same name"):
        described("tiny", ("0",) * 10)


@pytest.fixture
def run(digits_run: Path, tmp_path: Path) -> Path:
    """A copy of a run, to be damaged."""
    return Path(shutil.copytree(digits_run, tmp_path / "runs" / "mine"))


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1000])


def test_the_last_epoch_replaces_a_damaged_best_one_with_a_warning(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    best, last = (run / "checkpoints" / name for name in ("best.ckpt", "last.ckpt"))
    assert checkpoint.load_kept(run)[0] == best
    assert capsys.readouterr().err == ""
    cut(best)
    file, trained = checkpoint.load_kept(run)
    assert file == last
    assert trained.epoch == 3
    warning = f"warning: {best}: not a checkpoint, or truncated. Using the last epoch instead: {last}\n"
    assert capsys.readouterr().err == warning
    cut(last)
    with pytest.raises(CheckpointError) as both:
        checkpoint.load_kept(run)
    assert str(best) in str(both.value)
    assert str(last) in str(both.value)
