"""Reads a Keras file: the model's configuration, its weights, and the version that wrote it. Nothing in it is run.

Both kinds are read: `.keras` (Keras 2.12 to 3), and HDF5 with or without a configuration (Keras 1 to 3). Another
process, `keras/arrays.py`, opens the file, because a damaged one may crash it.
"""

import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnist_cnn.errors import KerasFileError, missing_package
from mnist_cnn.files import open_regular, read_regular
from mnist_cnn.keras import arrays as reader
from mnist_cnn.network.arguments import show

Array = NDArray[np.float32]

_SECONDS = 60  # for the other process, with its start


@dataclass(frozen=True)
class KerasFile:
    """The content of a file. Its weights are to be found `by_layer`, in order, or where that is None, `by_path`."""

    path: Path
    config: dict[str, Any]  # of the model: class_name and config
    version: str  # of Keras; "1" if the file does not say
    backend: str
    training: dict[str, Any]  # the arguments of `compile`: optimizer, loss, …
    by_layer: list[tuple[str, list[Array]]] | None  # HDF5: layers with their weights, in the model's order
    by_path: dict[str, Array]  # `.keras` files: layers/conv2d/vars/0

    @property
    def keras_major(self) -> int:
        return {"1": 1, "2": 2}.get(self.version[:1], 3)


def read(path: Path, architecture: Path | None = None, weights_only: bool = False) -> KerasFile:
    """Read a file, with its configuration from the JSON file `architecture` if that is given.

    With `weights_only` it needs none, and has none. KerasFileError says why a file can't be used.
    """
    _check_kind(path)
    if find_spec("h5py") is None:
        raise missing_package("h5py")
    header, arrays = _arrays(path)
    attributes = header["attributes"]
    root = attributes.get("", {})
    written = root | attributes.get("model_weights", {})
    metadata = header.get("metadata", {})
    by_layer = _by_layer(path, attributes, arrays, header["others"])
    by_path = {key.replace("\\", "/"): array for key, array in arrays.items()}
    if weights_only:
        config = {}
    elif architecture is not None:
        config = _read_json(architecture)
    else:
        config = header.get("config") or _json(path, root.get("model_config"), "model_config")
    if not config and not weights_only:
        raise KerasFileError(
            f"{path}: it has weights only; name its layers with --architecture FILE: the JSON that model.to_json() "
            f"wrote, or a YAML list as in conf/model. Its weights: {shapes(by_layer, by_path)}."
        )
    if not isinstance(config, dict) or not isinstance(metadata, dict):
        raise KerasFileError(f"{architecture or path}: its configuration is not that of a Keras model.")
    if isinstance(config.get("compile_config"), dict):
        training = config["compile_config"]
    else:
        training = _json(path, root.get("training_config"), "training_config") or {}
    version = metadata.get("keras_version") or written.get("keras_version") or config.get("keras_version")
    backend = written.get("backend") or config.get("backend") or ""
    return KerasFile(
        path,
        config,
        version=_text(version) or "1",
        backend=_text(backend),
        training=training if isinstance(training, dict) else {},
        by_layer=by_layer,
        by_path=by_path,
    )


def shapes(by_layer: list[tuple[str, list[Array]]] | None, by_path: Mapping[str, Array]) -> str:
    """The weights of each layer in words: `conv2d_1 (3×3×1×32, 32), dense_1 (5408×10, 10)`."""
    found = dict(by_layer or ())
    if by_layer is None:
        for path in sorted(by_path):
            layer = re.sub(r"^(layers|_layer_checkpoint_dependencies)/|(/vars)?/[^/]*$", "", path)
            found.setdefault(layer, []).append(by_path[path])
    return ", ".join(
        f"{layer} ({', '.join(show(array.shape) or 'a number' for array in arrays)})"
        for layer, arrays in found.items()
        if arrays
    )


def _check_kind(path: Path) -> None:
    """Refuse a file that is not one of Keras, and say what it is; its name tells nothing."""
    if path.is_dir():
        saved = (path / "saved_model.pb").exists()
        raise KerasFileError(
            f"{path}: a folder{' with a TensorFlow SavedModel' if saved else ''}, not a .keras or .h5 file."
        )
    try:
        with open_regular(path) as file:
            head = file.read(4096)
    except FileNotFoundError:
        raise KerasFileError(f"{path}: no such file.") from None
    except OSError as error:
        raise KerasFileError(f"{path}: it can't be read: {error.strerror}.") from error
    kind = None
    if not head:
        kind = "it is empty"
    elif head.startswith(b"version https://git-lfs"):
        kind = "it is a pointer of Git LFS, not the file itself; fetch it with git lfs pull"
    elif head.lstrip()[:1] == b"<":
        kind = "it is a web page; download the file itself (on GitHub: Raw)"
    elif re.match(rb"\x89HDF(?!\r\n\x1a\n)|(\xef\xbf\xbd|\xc2\x89|\?)HDF", head):
        kind = "it is an HDF5 file that a text conversion (of line ends or characters) has damaged; get the original"
    elif not head.startswith(b"PK") and b"\x89HDF\r\n\x1a\n" not in head:
        kind = "it is neither a .keras nor an HDF5 file"
    if kind:
        raise KerasFileError(f"{path}: {kind}.")


def _arrays(path: Path) -> tuple[dict[str, Any], dict[str, Array]]:
    """The header and the arrays by path, from the process that opens the file."""
    command = [sys.executable, "-P", reader.__file__, os.path.abspath(path)]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}  # each thread would reserve memory
    try:
        process = subprocess.run(command, capture_output=True, timeout=_SECONDS, env=environment, check=False)
    except subprocess.TimeoutExpired:
        raise KerasFileError(
            f"{path}: damaged: reading it does not come to an end within {_SECONDS} seconds."
        ) from None
    first, _, rest = process.stdout.partition(b"\n")
    if process.returncode != 0 or not first:
        raise KerasFileError(f"{path}: damaged: it makes the HDF5 library fail.")
    header = json.loads(first, object_hook=_plain)
    if "error" in header:
        raise KerasFileError(f"{path}: {header['error']}.")
    arrays, start = {}, 0
    for entry in header["arrays"]:
        shape = tuple(entry["shape"])
        count = math.prod(shape)
        arrays[entry["path"]] = np.frombuffer(rest, "<f4", count, start).reshape(shape)
        start += 4 * count
    return header, arrays


def _by_layer(
    path: Path, attributes: Mapping[str, Mapping[str, Any]], arrays: Mapping[str, Array], others: Collection[str]
) -> list[tuple[str, list[Array]]] | None:
    """The weights of an HDF5 file: its root lists the layers in order, and each layer its weights."""
    for root in ("model_weights", ""):
        layers = _names(attributes.get(root, {}), "layer_names")
        if layers is None:
            continue
        found = []
        for layer in layers:
            place = f"{root}/{layer}" if root else layer
            names = _names(attributes.get(place, {}), "weight_names") or []
            try:
                paths = [f"{place}/{name}" for name in names]
                found.append((layer, [arrays[item] for item in paths if item not in others]))
            except KeyError as error:
                raise KerasFileError(f"{path}: damaged: {error.args[0]} is listed, but missing.") from None
        return found
    return None


def _names(attributes: Mapping[str, Any], name: str) -> list[str] | None:
    """A list of names, which Keras splits into name0, name1, … if it is too long for one attribute."""
    if name in attributes:
        value = attributes[name]
        return [value] if isinstance(value, str) else list(value)
    parts: list[Any] = []
    while f"{name}{len(parts)}" in attributes:
        parts.append(attributes[f"{name}{len(parts)}"])
    return [item for part in parts for item in part] if parts else None


def _json(path: Path, text: Any, what: str) -> Any:
    if text is None:
        return None
    try:
        return json.loads(text, object_hook=_plain)
    except (ValueError, TypeError, RecursionError) as error:
        raise KerasFileError(f"{path}: damaged: its {what} is not JSON.") from error


def _plain(entry: dict[str, Any]) -> Any:
    """A list, which TensorFlow's Keras wraps in an object if it was a tuple or a shape; anything else unchanged."""
    wrapped = entry.get("class_name") in ("__tuple__", "TensorShape") and isinstance(entry.get("items"), list)
    return entry["items"] if wrapped else entry


def _read_json(path: Path) -> Any:
    try:
        return _json(path, read_regular(path, reader.MAX_JSON).decode(), "content")
    except OSError as error:
        raise KerasFileError(f"{path}: it can't be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise KerasFileError(f"{path}: not a JSON file.") from error


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
