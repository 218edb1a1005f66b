"""Reads and writes checkpoints, which hold all that is needed to use a network, as tensors and primitives only.

A checkpoint is a Lightning checkpoint with a description of itself under METADATA_KEY. `describe` lists its keys.
"""

import io
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
from mnist_cnn.errors import CheckpointError, ConfigError, one_line
from mnist_cnn.files import write_file
from mnist_cnn.network import Network, build_network

METADATA_KEY = "mnist_cnn"
FORMAT = 2  # the version of the metadata

# Files that people pass where a checkpoint is wanted; they are told to import them first.
KERAS_SUFFIXES = (".keras", ".h5", ".hdf5")


@dataclass(frozen=True)
class TrainedNetwork:
    """A network from a checkpoint, in evaluation mode, with what it was trained on and how."""

    network: Network
    preprocessing: Preprocessing
    classes: tuple[str, ...]
    model: str
    dataset: str
    split: dict[str, Any]  # val_fraction, method and seed of the validation split; empty if not known
    training: dict[str, Any]  # seed, max_epochs, settings; for an imported network, `keras`
    versions: dict[str, str]
    epoch: int  # the epoch that the weights are from, counted from 1; 0 if not trained here

    @property
    def provenance(self) -> str:
        """Where the weights come from: `epoch 7`, or the file that they were imported from."""
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
    """The metadata of a checkpoint, as primitives."""
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
    """Write a checkpoint of a network that was not trained here, completely or not at all.

    OutputError if the file exists or can't be written.
    """
    metadata = describe(
        trained.network, trained.preprocessing, model=trained.model, classes=trained.classes, dataset=trained.dataset,
        split=trained.split, training=trained.training,
    )  # fmt: skip
    content = {
        METADATA_KEY: metadata,
        "state_dict": {f"network.{key}": value for key, value in trained.network.state_dict().items()},
        "epoch": trained.epoch - 1,
        "global_step": 0,
        "pytorch-lightning_version": version("lightning"),
    }
    write_file(path, to_bytes(content), replace=False)


def to_bytes(content: Mapping[str, Any]) -> bytes:
    """A checkpoint's content as the file has it."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def find(path: str | Path) -> Path:
    """The checkpoint at a path: the file itself, or the best checkpoint of a run folder; CheckpointError if none."""
    if not str(path):
        raise CheckpointError("the path of the checkpoint is empty.")
    path = Path(path)
    try:
        path.stat()
    except OSError as error:
        reason = "no such file or folder" if isinstance(error, FileNotFoundError) else error.strerror
        raise CheckpointError(f"{one_line(str(path), 200)}: {reason}.") from error
    if path.is_dir():
        best, last = (path / "checkpoints" / name for name in ("best.ckpt", "last.ckpt"))
        if not best.exists() and not last.exists():
            raise CheckpointError(f"{path}: not a run folder; it has no checkpoints/best.ckpt.")
        return best if best.exists() else last
    return path


def newest(runs: Path) -> Path:
    """The best checkpoint of the most recent run in a folder of runs; CheckpointError if there is none."""
    found = sorted(runs.glob("**/checkpoints/best.ckpt"), key=lambda file: file.stat().st_mtime)
    if not found:
        raise CheckpointError(f"no checkpoint given, and no run in {runs}/; train one: python train.py")
    return found[-1]


def load(path: str | Path) -> TrainedNetwork:
    """Read a checkpoint file, or the best checkpoint of a run folder, onto the CPU.

    Reads tensors and primitives only, and allocates no more memory than the size of the file. CheckpointError if the
    file can't be used.
    """
    file = find(path)
    return trained_network(read(file), file)


def trained_network(content: Mapping[str, Any], file: Path) -> TrainedNetwork:
    """The network in what `read` has read from a file; CheckpointError if the file can't be used."""
    metadata = content.get(METADATA_KEY)
    weights = content.get("state_dict")
    if not isinstance(metadata, dict) or not isinstance(weights, dict):
        raise CheckpointError(
            f"{file}: a PyTorch file, but not a checkpoint of this project (it has no '{METADATA_KEY}')."
        )
    if metadata.get("format") != FORMAT:
        raise CheckpointError(
            f"{file}: its format is {metadata.get('format')}, but this version reads format {FORMAT} only."
        )
    try:
        with torch.device("meta"):  # shapes only: the weights come from the file
            network = build_network(metadata["layers"], tuple(metadata["input_shape"]), len(metadata["classes"]))
        own = {key.removeprefix("network."): value for key, value in weights.items() if key.startswith("network.")}
        network.load_state_dict(own, strict=True, assign=True)
        preprocessing = Preprocessing.from_dict(metadata["preprocessing"])
        if preprocessing.size not in (None, network.input_shape[1:]):
            raise ValueError("its preprocessing resizes images to a size that its network does not take")
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
        raise CheckpointError(f"{file}: its metadata is incomplete or damaged ({error!r}).") from error


def read(file: Path) -> dict[str, Any]:
    """All that a checkpoint file holds, tensors and primitives only; CheckpointError where it is none."""
    if file.suffix in KERAS_SUFFIXES:
        raise CheckpointError(f"{file}: a Keras file; convert it first: mnist-cnn import-keras {file}")
    if not zipfile.is_zipfile(file):  # torch.save writes a zip file, whose directory is at the end
        raise CheckpointError(f"{file}: not a checkpoint, or truncated.")
    try:
        with warnings.catch_warnings(action="ignore"):  # torch warns about files that it then refuses
            content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = "it contains pickled Python objects, which could run code; nothing was loaded"
        raise CheckpointError(f"{file}: {reason}.") from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, IndexError, AttributeError, TypeError) as error:
        # torch and its zip reader raise any of these for a file that is damaged or of another kind
        raise CheckpointError(f"{file}: not a checkpoint, or damaged.") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file}: a PyTorch file, but not a checkpoint of this project.")
    return content
