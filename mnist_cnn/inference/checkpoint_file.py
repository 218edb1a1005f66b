"""Turns a checkpoint file into its content. Nothing in the file is run, and nothing damaged is returned.

`torch.save` writes a zip archive: a pickle, and one member with the values of each tensor. `torch.load` runs no code
from it, but it verifies no checksum, and unpacks a compressed member whatever its size. So the archive is verified here
first. Two readers may see different members in one zip file; therefore torch reads a new archive of those verified.
"""

import io
import pickle
import pickletools
import re
import shutil
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mnist_cnn.errors import CheckpointError, flat, one_line
from mnist_cnn.files import read_regular

MAX_BYTES = 2**31 - 1
MAX_MEMBERS = 20_000  # a weight has up to four: itself, and the state of its optimiser
MAX_PICKLE = 2**24  # bytes; twice the pickle of a run of 100,000 epochs
MAX_ITEMS = 2**21  # in all lists and dictionaries
MAX_DEPTH = 64  # of lists in lists

_MEMBER = b"PK\x01\x02"  # the signature of an entry in the archive's directory
_ENCRYPTED = 0x1 | 0x40  # bits of its flags
# All that a pickle of plain values and tensors names. torch allows more, such as bytearray(10**11).
_NAMES = re.compile(
    r"torch (\w+Storage|Size)|collections (OrderedDict|Counter)|torch\._utils _rebuild_(tensor_v2|parameter)"
)


def read_content(file: Path) -> Any:
    """All that a file made by `torch.save` holds, exactly as it was saved, but on the CPU.

    It consists of dict, list, tuple, str, int, float, bool, None and dense tensors. CheckpointError if the file holds
    anything else, is damaged, or is not a regular file.
    """
    try:
        return _load(_verified(read_regular(file, MAX_BYTES)))
    except OSError as error:
        raise CheckpointError(f"{one_line(file)}: {(error.strerror or str(error)).lower()}.") from error
    except _Refused as error:
        raise CheckpointError(f"{one_line(file)}: {error}.") from error
    except zipfile.BadZipFile as error:
        raise CheckpointError(f"{one_line(file)}: damaged: {one_line(flat(error), 100).rstrip('.')}.") from error
    except MemoryError:
        raise
    except Exception as error:  # for a damaged file zipfile and torch raise nearly anything
        raise CheckpointError(f"{one_line(file)}: not a checkpoint, or damaged.") from error


class _Refused(Exception):
    """Why a file is not read."""


def _verified(data: bytes) -> io.BytesIO:
    """A new archive with the same members, whose checksums were right."""
    # An archive's directory becomes Python objects that are ten times as large, so it is counted before it is read.
    if data.count(_MEMBER) > MAX_MEMBERS:
        raise _Refused("not a checkpoint: it has more parts than any network")
    if not zipfile.is_zipfile(io.BytesIO(data)):  # the directory is at the end
        raise _Refused("not a checkpoint, or truncated")
    copy = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as archive, zipfile.ZipFile(copy, "w") as verified:
        members = archive.infolist()
        if any(member.compress_type or member.flag_bits & _ENCRYPTED for member in members):
            raise _Refused("not a checkpoint: its parts are compressed or encrypted")
        if sum(member.file_size for member in members) > len(data):
            raise _Refused("damaged: its parts are larger than the file")
        if len({member.filename.lower() for member in members}) < len(members):
            raise _Refused("damaged: two of its parts have the same name")
        for member in members:
            if member.filename.endswith("data.pkl"):
                _check_pickle(archive.read(member) if member.file_size <= MAX_PICKLE else None)
            with archive.open(member) as source, verified.open(zipfile.ZipInfo(member.filename), "w") as target:
                shutil.copyfileobj(source, target, 2**20)
    copy.seek(0)
    return copy


def _check_pickle(content: bytes | None) -> None:
    """Refuse a pickle that names anything but tensors; it calls nothing that it can't name."""
    if content is None:
        raise _Refused("not a checkpoint: it describes more than any network")
    for operation, argument, _ in pickletools.genops(content):
        if operation.name == "GLOBAL" and not _NAMES.fullmatch(str(argument)):
            named = one_line(argument, 60)
            raise _Refused(f"it contains pickled Python objects ({named}), which could run code; nothing was loaded")


def _load(archive: io.BytesIO) -> Any:
    try:
        with warnings.catch_warnings(action="ignore"):  # torch warns about files that it then refuses
            content = torch.load(archive, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise _Refused("it contains more than values and tensors; nothing was loaded") from error
    _check(content, archive.getbuffer().nbytes)
    return content


def _check(content: Any, most_bytes: int) -> None:
    """Refuse anything but plain values and tensors, and tensors that together claim more bytes than the file has.

    A list that occurs in several places is counted at each, so that lists of the same list can't multiply without end.
    """
    waiting, items, size = [(content, 0)], 0, 0
    while waiting:
        value, depth = waiting.pop()
        inner: list[Any] = []
        if isinstance(value, Tensor):
            size += value.nbytes
            if size > most_bytes or value.nbytes > value.untyped_storage().nbytes() or value._backward_hooks:
                raise _Refused("damaged: its tensors claim more values than it has")
        elif isinstance(value, dict):
            inner = [*dict.keys(value), *dict.values(value)]
            # A module's state_dict is an OrderedDict with one attribute. Any other could replace a method.
            if getattr(value, "__dict__", {}).keys() - {"_metadata"}:
                raise _Refused("it contains an object that is not a plain value")
        elif isinstance(value, list | tuple):
            inner = list(value)
        elif not isinstance(value, str | int | float | bool | None):
            raise _Refused(f"it contains a value of type {type(value).__name__}, which no checkpoint has")
        items += len(inner)
        if items > MAX_ITEMS or depth > MAX_DEPTH:
            raise _Refused("its content is nested without end, or larger than that of any network")
        waiting += [(item, depth + 1) for item in inner]
