"""Reads and writes checkpoints, which hold all that is needed to use a network, as tensors and primitives only.

A checkpoint is a Lightning checkpoint with a description of itself under METADATA_KEY. `description.py` has its schema.
"""

import io
import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec
import torch

from mnist_cnn import __version__
from mnist_cnn.data.images import Preprocessing
from mnist_cnn.errors import CheckpointError, ConfigError, did_you_mean, flat, one_line
from mnist_cnn.files import write_file
from mnist_cnn.inference import box
from mnist_cnn.inference.checkpoint_file import read_content
from mnist_cnn.inference.description import Description, description_of
from mnist_cnn.network import Network, build_network

METADATA_KEY = "mnist_cnn"
FORMAT = 2  # the version of the metadata

# Files that people pass where a checkpoint is wanted; they are told to import them first.
KERAS_SUFFIXES = (".keras", ".h5", ".hdf5")
PREFIX = "network."  # of the weights' names, which are those of the Lightning module
_LIGHTNING = "2.6.6"  # the version whose format this is, for Lightning's own reader
_KEPT = ("best.ckpt", "last.ckpt")  # by a run, in its folder `checkpoints`


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
    """The metadata of a checkpoint, as primitives; ConfigError if `load` would refuse them."""
    versions = {"python": platform.python_version(), "mnist-cnn": __version__}
    versions |= {name: version(name) for name in ("torch", "lightning") if find_spec(name)}
    metadata = {
        "format": FORMAT,
        "model": one_line(model, 100),
        "layers": network.layers,
        "input_shape": list(network.input_shape),
        "preprocessing": preprocessing.to_dict(),
        "classes": list(classes),
        "dataset": dataset,
        "split": dict(split),
        "training": dict(training),
        "versions": versions,
    }
    try:
        description_of({**metadata, "epoch": 0})
    except msgspec.ValidationError as error:
        raise ConfigError(f"a checkpoint can't describe this network: {one_line(flat(error))}.") from error
    return metadata


def save(path: Path, trained: TrainedNetwork) -> None:
    """Write a checkpoint of a network that was not trained here; OutputError if it exists or can't be written."""
    metadata = describe(
        trained.network, trained.preprocessing, model=trained.model, classes=trained.classes, dataset=trained.dataset,
        split=trained.split, training=trained.training,
    )  # fmt: skip
    content = {
        METADATA_KEY: metadata,
        "state_dict": {f"{PREFIX}{key}": value for key, value in trained.network.state_dict().items()},
        "epoch": trained.epoch - 1,
        "global_step": 0,
        "pytorch-lightning_version": _LIGHTNING,
    }
    write_file(path, to_bytes(content), replace=False)


def to_bytes(content: Mapping[str, Any]) -> bytes:
    """A checkpoint's content as the bytes of its file."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def find(path: str | Path) -> Path:
    """The checkpoint that is meant: a file, the best checkpoint of a run folder, or a network in the box by its name.

    Only a `str` may be such a name, and a file or folder of this name takes precedence. CheckpointError if nothing is
    found, ConfigError if the path is empty.
    """
    return _candidates(path)[0]


def is_meant(word: str) -> bool:
    """Whether a word in front of pictures names a checkpoint, a run folder or a network in the box, or nearly does."""
    if word.endswith(".ckpt") or (Path(word) / "checkpoints").is_dir():
        return True
    return not (os.path.lexists(word) or "." in word) and bool(did_you_mean(word, box.names()))


def load(path: str | Path) -> TrainedNetwork:
    """`load_kept` without the name of the file that was read."""
    return load_kept(path)[1]


def load_or_default(path: str | None) -> tuple[Path, TrainedNetwork]:
    """`load_kept`; if no path is given, the default network of the box, and a line on standard error says so."""
    if path is not None:
        return load_kept(path)
    found = load_kept(box.find(box.DEFAULT))
    print(f"using {box.DEFAULT}, a network that comes with this package", file=sys.stderr)
    return found


def load_kept(path: str | Path) -> tuple[Path, TrainedNetwork]:
    """Read the checkpoint that `find` finds onto the CPU; returns the file that was read as well.

    If `best.ckpt` can't be used, `last.ckpt` is read instead, and a line on standard error says so.
    CheckpointError if no file can be used.
    """
    reasons: list[str] = []
    for file in _candidates(path):
        try:
            trained = trained_network(read(file), file)
        except CheckpointError as error:
            reasons.append(str(error))
            continue
        if reasons:
            print(f"warning: {reasons[0]} Using the last epoch instead: {one_line(file)}", file=sys.stderr)
        return file, trained
    raise CheckpointError(" ".join(reasons))


def read(file: Path) -> dict[str, Any]:
    """The content of a checkpoint file, tensors and plain values only; CheckpointError if it is damaged or not one."""
    if file.suffix in KERAS_SUFFIXES:
        shown = one_line(file)
        raise CheckpointError(f"{shown}: a Keras file; convert it first: mnist-cnn import-keras {shown}")
    content = read_content(file)
    if not isinstance(content, dict):
        raise CheckpointError(f"{one_line(file)}: a PyTorch file, but not a checkpoint of this project.")
    return content


def trained_network(content: Mapping[str, Any], file: Path) -> TrainedNetwork:
    """The network in what `read` has read from a file; CheckpointError if the file can't be used."""
    try:
        return _trained_network(content)
    except msgspec.ValidationError as error:
        why = f"its metadata is incomplete or damaged ({flat(error)})"
    except ConfigError as error:
        why = f"its network can't be built: {error}"
    except CheckpointError as error:
        why = str(error)
    raise CheckpointError(f"{one_line(file)}: {one_line(why).rstrip('.')}.")


def _candidates(path: str | Path) -> list[Path]:
    """The file that `find` describes, or the checkpoints of a run folder, the best one first."""
    if not str(path):
        raise ConfigError("the path of the checkpoint is empty.")
    name, path = path, Path(path)
    try:
        path.stat()
    except (OSError, ValueError) as error:  # ValueError: it has a NUL
        missing = isinstance(error, FileNotFoundError)
        if missing and isinstance(name, str) and name in box.names():
            return [box.find(name)]
        reason = "no such file or folder" if missing else getattr(error, "strerror", "no file can have this name")
        hint = ""
        if missing and path.name == name and not path.suffix:  # it may be meant as a name
            reason += ", and no network in the box (mnist-cnn models lists them)"
            hint = did_you_mean(name, box.names())
        raise CheckpointError(f"{one_line(path)}: {reason}.{hint}") from error
    if isinstance(name, str) and name in box.names():  # not for a Path: the box need not be readable
        _say_taken_from_here(name, path.absolute())
    if not path.is_dir():
        return [path]
    kept = [path / "checkpoints" / name for name in _KEPT]
    found = [file for file in kept if file.exists()]
    if not found:
        raise CheckpointError(f"{one_line(path)}: not a run folder; it has no checkpoints/{_KEPT[0]}.")
    return found


@cache
def _say_taken_from_here(name: str, path: Path) -> None:
    """Once for each path, however often it is looked for."""
    print(f"note: {name} is taken from this folder, not from the box ({box.BOX / f'{name}.ckpt'})", file=sys.stderr)


def _trained_network(content: Mapping[str, Any]) -> TrainedNetwork:
    metadata, weights = content.get(METADATA_KEY), content.get("state_dict")
    if not isinstance(metadata, dict) or not isinstance(weights, dict):
        raise CheckpointError(f"a PyTorch file, but not a checkpoint of this project (it has no '{METADATA_KEY}')")
    number = metadata.get("format")
    if not isinstance(number, int) or number != FORMAT:
        raise CheckpointError(f"its format is {number}, but this version reads format {FORMAT} only")
    described = description_of({**metadata, "epoch": content.get("epoch")})
    network = _build(described)
    own = {key: value for key, value in weights.items() if str(key).startswith(PREFIX)}
    own = _checked_weights(network, own, getattr(torch, described.weights))
    try:
        network.load_state_dict({key.removeprefix(PREFIX): own[key] for key in own}, strict=True, assign=True)
    except RuntimeError as error:  # with a line for each difference
        lines = [line.strip() for line in str(error).splitlines()]
        raise CheckpointError(f"its weights don't fit its layers: {lines[min(1, len(lines) - 1)]}") from error
    return TrainedNetwork(
        network.eval().requires_grad_(False).to(memory_format=torch.channels_last),
        described.preprocessing,
        tuple(described.classes),
        described.model,
        described.dataset,
        dict(described.split),
        described.training,
        described.versions,
        described.epoch + 1,
    )


def _build(described: Description) -> Network:
    try:
        with torch.device("meta"):  # shapes only: the weights come from the file
            return build_network(described.layers, described.input_shape, len(described.classes))
    except ConfigError:
        raise
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        # a layer got an argument of a kind that no configuration has
        raise CheckpointError(f"its network can't be built: {flat(error)}") from error


def _checked_weights(network: Network, weights: Mapping[str, Any], stored: torch.dtype) -> dict[str, Any]:
    """The weights in the network's types. CheckpointError unless they are finite numbers in the types of the file.

    There, what is float32 in the network is `stored`, float32 or float16, and everything else has the network's type.
    """
    checked = dict(weights)
    for key, own in network.state_dict().items():
        key, expected = f"{PREFIX}{key}", stored if own.dtype == torch.float32 else own.dtype
        value = weights.get(key)
        if not isinstance(value, torch.Tensor):
            continue  # load_state_dict names it
        if value.dtype != expected:
            raise CheckpointError(f"its {key} is {value.dtype}, not {expected}")
        if not value.isfinite().all():
            kind = "NaN" if value.isnan().any() else "infinity"
            raise CheckpointError(f"its weights are not finite ({kind} in {key}): the run that made it diverged")
        checked[key] = value.to(own.dtype)
    return checked
