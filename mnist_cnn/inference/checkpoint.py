"""What is in a checkpoint? All that it takes to use a network, as tensors and primitives, read safely."""

import pickle
import platform
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from mnist_cnn.data.images import Preprocessing
from mnist_cnn.errors import CheckpointError, ConfigError
from mnist_cnn.files import new_file
from mnist_cnn.network import Network, build_network

# Where a checkpoint describes itself, and the version of that description.
KEY = "mnist_cnn"
FORMAT = 1

# What people bring instead of a checkpoint.
KERAS_SUFFIXES = (".keras", ".h5", ".hdf5")


@dataclass(frozen=True)
class TrainedNetwork:
    """A network out of a checkpoint, ready to use (in evaluation mode), with what it was trained on."""

    network: Network
    preprocessing: Preprocessing
    classes: tuple[str, ...]
    model: str
    dataset: str
    split: dict[
        str, Any
    ]  # val_fraction, split, seed: how the training set was cut in two; empty where that is not known
    training: dict[str, Any]  # optimizer, scheduler, batch size and the like; `keras` where it came from there
    versions: dict[str, str]
    epoch: int  # of the weights, counted from 1; 0 where it was not trained here

    @property
    def origin(self) -> str:
        """`epoch 7`, or what it was imported from."""
        keras = self.training.get("keras")
        if not isinstance(keras, dict):
            return f"epoch {self.epoch}"
        return f"imported from {keras.get('file')} (Keras {keras.get('version')})"


def describe(
    network: Network,
    preprocessing: Preprocessing,
    *,
    model: str,
    classes: tuple[str, ...],
    dataset: str,
    split: Mapping[str, Any],
    training: Mapping[str, Any],
) -> dict[str, Any]:
    """What a checkpoint stores under KEY, as primitives."""
    packages = ("mnist-cnn", "torch", "lightning")
    return {
        "format": FORMAT,
        "model": model,
        "layers": network.layers,
        "input_shape": list(network.input_shape),
        "preprocessing": preprocessing.to_dict(),
        "classes": list(classes),
        "dataset": dataset,
        "split": dict(split),
        "training": dict(training),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
    }


def save(path: Path, trained: TrainedNetwork) -> None:
    """Write a network that was not trained here as a checkpoint like any other; all of it or nothing.

    OutputError where there is such a file already, or it can't be written.
    """
    metadata = describe(
        trained.network, trained.preprocessing, model=trained.model, classes=trained.classes, dataset=trained.dataset,
        split=trained.split, training=trained.training,
    )  # fmt: skip
    content = {
        KEY: metadata,
        "state_dict": {f"network.{key}": value for key, value in trained.network.state_dict().items()},
        "epoch": trained.epoch - 1,
        "global_step": 0,
        "pytorch-lightning_version": version("lightning"),
    }
    with new_file(path) as part:
        torch.save(content, part)


def find(path: str | Path) -> Path:
    """The checkpoint that a path means: the file itself, or the best one of a run folder."""
    if not str(path):
        raise CheckpointError("no checkpoint was named: '' is empty.")
    path = Path(path)
    if path.is_dir():
        best, last = (path / "checkpoints" / name for name in ("best.ckpt", "last.ckpt"))
        if not best.exists() and not last.exists():
            raise CheckpointError(f"{path}: a folder without checkpoints/best.ckpt, so not a run folder.")
        return best if best.exists() else last
    if not path.exists():
        raise CheckpointError(f"{path}: no such file or folder.")
    return path


def newest(runs: Path) -> Path:
    """The best checkpoint of the run that wrote one last; CheckpointError where there is none."""
    found = sorted(runs.glob("**/checkpoints/best.ckpt"), key=lambda file: file.stat().st_mtime)
    if not found:
        raise CheckpointError(f"no checkpoint was named, and {runs}/ has no run; train one: python train.py")
    return found[-1]


def load(path: str | Path) -> TrainedNetwork:
    """Read a checkpoint file, or the best checkpoint of a run folder, onto the CPU.

    Only tensors and primitives are read, and no more memory is taken than the file has. CheckpointError says what is
    wrong with a file that can't be used.
    """
    file = find(path)
    content = _read(file)
    metadata = content.get(KEY)
    weights = content.get("state_dict")
    if not isinstance(metadata, dict) or not isinstance(weights, dict):
        raise CheckpointError(f"{file}: a PyTorch file, but not a checkpoint of this project (it has no '{KEY}').")
    if metadata.get("format") != FORMAT:
        raise CheckpointError(f"{file}: its format {metadata.get('format')} is not the one known here, {FORMAT}.")
    try:
        with torch.device("meta"):  # shapes only: the weights come from the file
            network = build_network(metadata["layers"], tuple(metadata["input_shape"]), len(metadata["classes"]))
        own = {key.removeprefix("network."): value for key, value in weights.items() if key.startswith("network.")}
        network.load_state_dict(own, strict=True, assign=True)
        preprocessing = Preprocessing.from_dict(metadata["preprocessing"])
        if preprocessing.size not in (None, network.input_shape[1:]):
            raise ValueError("its pictures are brought to another size than its network takes")
        return TrainedNetwork(
            network.eval().requires_grad_(False).to(memory_format=torch.channels_last),
            preprocessing,
            tuple(map(str, metadata["classes"])),
            str(metadata["model"]),
            str(metadata["dataset"]),
            dict(metadata["split"]),
            dict(metadata["training"]),
            dict(metadata["versions"]),
            int(content["epoch"]) + 1,
        )
    except ConfigError as error:
        raise CheckpointError(f"{file}: its network can't be built: {error}") from error
    except RuntimeError as error:  # load_state_dict, with a line for each difference
        lines = [line.strip() for line in str(error).splitlines()]
        raise CheckpointError(f"{file}: its weights don't fit its layers: {lines[min(1, len(lines) - 1)]}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{file}: its description is incomplete or damaged ({error!r}).") from error


def _read(file: Path) -> dict[str, Any]:
    if file.suffix in KERAS_SUFFIXES:
        raise CheckpointError(f"{file}: a Keras file; mnist-cnn import-keras makes a checkpoint of it.")
    if not zipfile.is_zipfile(file):  # torch.save writes a zip file, whose end is the first thing to go
        raise CheckpointError(f"{file}: not a checkpoint, or a truncated one.")
    try:
        with warnings.catch_warnings(action="ignore"):  # torch muses about files that it is going to refuse
            content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = "it holds pickled Python objects, which could run code; nothing of it was loaded"
        raise CheckpointError(f"{file}: {reason}.") from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, IndexError, AttributeError, TypeError) as error:
        # torch and its zip reader raise all of these for files that are damaged or something else altogether
        raise CheckpointError(f"{file}: not a checkpoint, or a damaged one.") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file}: a PyTorch file, but not a checkpoint of this project.")
    return content
