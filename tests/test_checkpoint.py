import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from mnist_cnn.errors import CheckpointError
from mnist_cnn.inference import checkpoint
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
