"""How does a file get here whole? From the first mirror that has it, checked against its MD5, or not at all."""

import hashlib
import http.client
import os
import queue
import threading
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from tqdm import tqdm

from mnist_cnn.errors import ConfigError, DataError

# Seconds that a call spends in all on mirrors that don't answer: a firewalled machine must not wait for long.
PATIENCE = 15.0
# Seconds without a byte after which a mirror that did answer is given up.
STALLED = 10.0
# No data set of ours is larger than EMNIST's 0.56 GB; what goes on longer is not the file.
MAX_BYTES = 2**30
_CHUNK = 2**18


@dataclass
class Mirrors:
    """Base addresses in the order in which they are tried. One that does not answer is not asked again."""

    addresses: list[str]
    patience: float = field(default_factory=lambda: PATIENCE)

    def fetch(self, name: str, md5: str, folder: Path) -> None:
        """Put `name` into `folder`. DataError with a line for each mirror where none has the right file.

        What a broken transfer has brought stays in `name.part`, and the next call goes on from there.
        """
        failures = []
        for address in list(self.addresses):
            url = address + name
            try:
                _download(url, md5, folder / name, self._connect)
                return
            except (OSError, http.client.HTTPException) as error:
                failures.append(f"{url}: {getattr(error, 'reason', None) or error}")
                if isinstance(error, HTTPError):
                    error.close()
                elif not isinstance(error, _WrongFileError):  # not even an answer
                    self.addresses.remove(address)
        raise DataError("\n".join(failures))

    def _connect(self, request: Request) -> Any:
        """`urlopen`, given up when patience ends: its own timeout covers neither name look-up nor every address."""
        answer: queue.Queue[Any] = queue.Queue(1)

        def connect() -> None:
            try:
                answer.put(urlopen(request, timeout=STALLED))
            except Exception as error:  # handed to the caller below
                answer.put(error)

        start = time.monotonic()
        threading.Thread(target=connect, daemon=True).start()
        try:
            response = answer.get(timeout=max(min(self.patience, PATIENCE / 2), 0.1))
        except queue.Empty:
            response = TimeoutError("no answer")
        if isinstance(response, Exception):
            self.patience -= time.monotonic() - start
            raise response
        return response


class _WrongFileError(OSError):
    """The transfer worked, and brought something else."""


def mirror_address(mirror: str) -> str:
    """The base address of a mirror given as http(s)://, file:// or a folder. ConfigError where it is none."""
    scheme = urlsplit(mirror).scheme
    if scheme in ("http", "https", "file"):
        return mirror.rstrip("/") + "/"
    if "://" in mirror:
        raise ConfigError(f"data.mirror={mirror}: an address must begin with http://, https:// or file://.")
    folder = Path(mirror).expanduser()
    if not folder.is_dir():
        raise ConfigError(f"data.mirror={mirror}: neither a folder nor an address (http://, https:// or file://).")
    return folder.resolve().as_uri() + "/"


def md5_of(file: Path) -> str | None:
    """The MD5 of a file in hexadecimal, or None where it can't be read. It guards against damage, not malice."""
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    except OSError:
        return None


def _download(url: str, md5: str, target: Path, connect: Any) -> None:
    part = target.with_name(target.name + ".part")
    if md5_of(part) == md5:  # all had come, and then the power failed
        os.replace(part, target)
        return
    have = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "mnist-cnn"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        answer = connect(Request(url, headers=headers))
    except HTTPError as error:
        if error.code == 416:  # no such range: what we have is not a beginning of it
            part.unlink()
        raise
    with closing(answer) as response:
        resumed = getattr(response, "status", None) == 206
        have = have if resumed else 0
        _copy(response, part, have)
    if md5_of(part) != md5:
        part.unlink()
        raise _WrongFileError("what came is not the file (its MD5 differs)")
    os.replace(part, target)


def _copy(response: Any, part: Path, have: int) -> None:
    length = response.headers.get("Content-Length")
    expected = have + int(length) if length else None
    bar = tqdm(total=expected, initial=have, desc=part.stem, unit="B", unit_scale=True, leave=False, disable=None)
    part.parent.mkdir(parents=True, exist_ok=True)
    with bar, part.open("ab" if have else "wb") as file:
        while chunk := response.read(_CHUNK):
            have += len(chunk)
            if have > MAX_BYTES:
                raise _WrongFileError(f"more than {MAX_BYTES:,} bytes came")
            file.write(chunk)
            bar.update(len(chunk))
    if expected is not None and have < expected:
        raise OSError(f"broke off after {have:,} of {expected:,} bytes")


def fetch_all(files: Sequence[tuple[str, str]], folder: Path, addresses: Sequence[str]) -> None:
    """Put every (name, MD5) into `folder` from the mirrors at these addresses; those that are right already stay."""
    mirrors = Mirrors(list(addresses))
    for name, md5 in files:
        if md5_of(folder / name) != md5:
            mirrors.fetch(name, md5, folder)
