"""Writes files whole or not at all, so that they survive a kill, a full disk and a power cut, and reads regular ones.

Every file that this package writes goes through `write_file`, the checkpoints of Lightning included. Files that
somebody else names are opened by `open_regular`: opening a pipe would wait without end.
"""

import errno
import os
import secrets
import stat
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from mnist_cnn.errors import OutputError, UserError, one_line

# The name of a file until it is complete. A process that is killed while it writes leaves one of these behind.
_PART = ".{}.part"
_PARTS = _PART.format("[0-9a-f]" * 8)


def write_file(path: Path, content: bytes | Iterable[bytes], *, replace: bool = True) -> None:
    """Write `path`. At any moment, also after a power cut, it has its old content or the whole of its new.

    `content` is the bytes, or pieces of them; a UserError raised by producing them is passed on, and `path` stays
    as it was. OutputError if the file can't be written, or if it exists and `replace` is false.
    """
    part = path.with_name(_PART.format(secrets.token_hex(4)))
    try:
        if not replace:
            check_is_new(path)
        with part.open("xb") as file:
            for piece in (content,) if isinstance(content, bytes) else content:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        _rename(part, path, replace)
        _sync_folder(path.parent)
    except FileExistsError:
        check_is_new(path)
        raise
    except UserError:  # from producing the pieces; some are OSErrors too
        raise
    except OSError as error:
        raise OutputError(f"{one_line(str(path))}: can't be written: {error.strerror or error}.") from error
    finally:
        with suppress(OSError):  # or it would hide the error that the user must see
            part.unlink(missing_ok=True)


def check_is_new(path: Path) -> None:
    """Raise OutputError if the file exists already, or its folder does not."""
    if os.path.lexists(path):
        raise OutputError(f"{one_line(str(path))}: the file exists already; remove it or choose another name.")
    if not path.parent.is_dir():
        raise OutputError(f"{one_line(str(path))}: there is no folder {one_line(str(path.parent))}.")


def remove_parts(folder: Path) -> None:
    """Remove half-written files of killed processes from a folder, in which no other process may be writing."""
    for part in folder.rglob(_PARTS):
        part.unlink(missing_ok=True)


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading, without waiting; OSError if it can't be read or is not a regular file."""
    # Windows has no O_NONBLOCK, and needs O_BINARY.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(path, flags)
    except ValueError as error:  # the path has a NUL
        raise OSError(errno.EINVAL, "no file can have this name") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "a folder, a pipe or a device, not a file")
    return os.fdopen(descriptor, "rb")


def read_regular(path: Path, most: int) -> bytes:
    """The content of a regular file; OSError if it can't be read or has more than `most` bytes."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        content = file.read(size) if size <= most else b""
    if size > most:
        raise OSError(errno.EFBIG, f"larger than the limit of {most:,} bytes")
    return content


def _rename(part: Path, path: Path, replace: bool) -> None:
    if not replace:
        try:
            os.link(part, path)  # unlike a rename, it fails if somebody else has made the file meanwhile
            return
        except FileExistsError:
            raise
        except OSError:  # a file system without hard links
            check_is_new(path)
    part.replace(path)


def _sync_folder(folder: Path) -> None:
    """Make the new name of a file survive a power cut, on systems where a folder can be synchronised."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems have no such operation
            raise
    finally:
        os.close(descriptor)
