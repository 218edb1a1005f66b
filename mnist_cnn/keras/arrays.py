"""Reads the JSON and the arrays of a Keras file, in a process of its own: `python arrays.py FILE`.

A damaged or hostile file can crash the HDF5 library, which is written in C, keep it busy or use up all memory. So
`keras/file.py` runs this script, which limits itself before it opens the file, and reads its standard output: one line
of JSON, then the arrays in float32, one after the other. It follows no link, writes no file, and imports only h5py and
numpy.
"""

import contextlib
import io
import json
import math
import os
import sys
import zipfile
from collections.abc import Iterator
from typing import Any

MAX_VALUES = 2**26  # in all arrays together; 256 MiB as float32
MAX_JSON = 2**24  # bytes of a configuration
MAX_ITEMS = 20_000  # groups and arrays
MAX_DEPTH = 24  # of groups in groups
MAX_MEMORY = 2**32  # bytes of address space
MAX_SECONDS = 20  # of processor time; a small network takes 0.1

# Groups that training leaves in a file, and that are not the weights of layers.
_NOT_LAYERS = ("optimizer", "metrics", "compile_metrics", "loss_tracker", "seed_generator", "_metrics", "_loss_tracker")


class Refused(Exception):
    """A file that is not read; the message says why."""


def main(path: str) -> int:
    """Write what the file holds to standard output, or `{"error": …}`."""
    os.environ["HDF5_PLUGIN_PRELOAD"] = "::"  # no compression plug-ins, which are libraries
    os.environ["HDF5_USE_FILE_LOCKING"] = "FALSE"  # the folder may be read-only
    import h5py  # noqa: F401  # before the limits, which loading its libraries may exceed

    _limit()
    try:
        header, arrays = read(path)
        line = json.dumps(header)
    except Refused as refused:
        line, arrays = json.dumps({"error": str(refused)}), []
    except MemoryError:
        line, arrays = json.dumps({"error": "it needs more memory than any small network"}), []
    except Exception as error:  # for a damaged file h5py, zipfile and zlib raise almost anything
        line, arrays = json.dumps({"error": f"damaged: {' '.join(str(error).split())[:200]}"}), []
    out = sys.stdout.buffer
    out.write(line.encode() + b"\n")
    for array in arrays:
        out.write(array.tobytes())
    return 0


def read(path: str) -> tuple[dict[str, Any], list[Any]]:
    """The header, and the arrays of real numbers.

    The header has `config` and `metadata` if the file has them, the text `attributes` of each group, the path and shape
    of each of the `arrays`, and the paths of all `others`.
    """
    import h5py

    header: dict[str, Any] = {}
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = set(archive.namelist())
            for name in ("config.json", "metadata.json"):
                if name in names:
                    header[name.removesuffix(".json")] = json.loads(_member(archive, name, MAX_JSON))
            if "config" not in header or "model.weights.h5" not in names:
                raise Refused("a zip file, but not one of Keras: config.json or model.weights.h5 is missing")
            source: Any = io.BytesIO(_member(archive, "model.weights.h5", 8 * MAX_VALUES))
    else:
        with open(path, "rb") as file:
            if file.read(2) == b"PK":
                raise Refused("damaged: a truncated zip file")
        source = path
    with h5py.File(source, "r") as file:
        return _hdf5(file, header)


def _member(archive: zipfile.ZipFile, name: str, most: int) -> bytes:
    """A file of a zip archive; unpacks no more than `most` bytes, whatever size the archive states."""
    with archive.open(name) as stream:
        content = stream.read(most + 1)
    if len(content) > most:
        raise Refused(f"its {name} unpacks to more than {most:,} bytes, too many for a small network")
    return content


def _hdf5(file: Any, header: dict[str, Any]) -> tuple[dict[str, Any], list[Any]]:
    import h5py
    import numpy as np

    attributes: dict[str, dict[str, Any]] = {}
    found: list[dict[str, Any]] = []
    others: list[str] = []
    arrays: list[Any] = []
    total = 0
    for path, item in _walk(file):
        if isinstance(item, h5py.Group):
            texts = {name: value for name in item.attrs if (value := _text(item, name)) is not None}
            if texts:
                attributes[path] = texts
            continue
        if item.dtype.kind != "f":
            others.append(path)  # counters, and the random states of augmentation layers
            continue
        if item.external or item.is_virtual:
            raise Refused(f"its array {path} is in another file, which is not followed")
        size = math.prod(item.shape)
        total += max(size, math.prod(item.chunks or ()))
        if total > MAX_VALUES:
            raise Refused(f"its arrays have more than {MAX_VALUES:,} values, too many for a small network")
        found.append({"path": path, "shape": list(item.shape)})
        arrays.append(np.asarray(item[()], dtype="<f4"))
        if arrays[-1].shape != item.shape:
            raise Refused(f"its array {path} is damaged")
    return {**header, "attributes": attributes, "arrays": found, "others": others}, arrays


def _walk(root: Any) -> Iterator[tuple[str, Any]]:
    """Every group and array with its path. h5py's own `visititems` has no limits."""
    import h5py

    left = MAX_ITEMS
    waiting = [("", root, 0)]
    while waiting:
        path, group, depth = waiting.pop()
        yield path, group
        for name in group:
            left -= 1
            inner = f"{path}/{name}" if path else name
            if left < 0 or depth >= MAX_DEPTH:
                raise Refused("it has more groups, or deeper ones, than any network")
            if not path and name.replace("\\", "/").split("/")[0].startswith(_NOT_LAYERS):
                continue
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise Refused(f"its {inner} is a link, which is not followed")
            item = group[name]
            if isinstance(item, h5py.Group):
                waiting.append((inner, item, depth + 1))
            elif isinstance(item, h5py.Dataset):
                yield inner, item


def _text(group: Any, name: str) -> Any:
    """An attribute if it is a text or a list of texts, else None."""
    import h5py

    attribute = h5py.h5a.open(group.id, name.encode())
    if math.prod(attribute.shape) > MAX_ITEMS or math.prod(attribute.shape) * attribute.dtype.itemsize > MAX_JSON:
        raise Refused(f"its attribute {name} is larger than that of any small network")
    if attribute.dtype.kind not in "SOU":
        return None
    value = group.attrs[name]
    values = [value] if isinstance(value, str | bytes) else list(getattr(value, "flat", value))
    texts = [item.decode("utf-8", "replace") if isinstance(item, bytes) else item for item in values]
    if not all(isinstance(item, str) for item in texts) or sum(map(len, texts)) > MAX_JSON:
        return None
    return texts[0] if isinstance(value, str | bytes) else texts


def _limit() -> None:
    with contextlib.suppress(ImportError):  # Windows has none; there the caller's time limit must do
        import resource

        for what, most in (
            (resource.RLIMIT_AS, MAX_MEMORY),
            (resource.RLIMIT_CPU, MAX_SECONDS),
            (resource.RLIMIT_FSIZE, 0),
            (resource.RLIMIT_CORE, 0),
        ):
            with contextlib.suppress(ValueError, OSError):  # a system may forbid one, and macOS has no RLIMIT_AS
                resource.setrlimit(what, (most, most))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
