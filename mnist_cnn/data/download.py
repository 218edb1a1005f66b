"""Download files from a list of mirrors, each verified by its MD5 before it takes its place."""

import hashlib
import http.client
import queue
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from tqdm import tqdm

from mnist_cnn.errors import ConfigError, DataError, flat, one_line
from mnist_cnn.files import remove_parts, write_file

# Seconds to wait in all for mirrors that don't answer: a machine behind a firewall must not wait for long.
PATIENCE = 15.0
# A mirror that sends less than this many bytes in this many seconds is given up: EMNIST, the largest data set, takes a
# day at that rate.
STALLED = 10.0
LEAST_BYTES = 2**16
# EMNIST has 0.56 GB; whatever is longer than this is not one of our files.
MAX_BYTES = 2**30
_CHUNK = 2**18


class _MirrorError(Exception):
    """Why a mirror did not deliver a file; one that `may_have_others` is asked for the next file too."""

    def __init__(self, why: str, may_have_others: bool) -> None:
        super().__init__(why)
        self.may_have_others = may_have_others


def fetch_files(files: Sequence[tuple[str, str]], folder: Path, addresses: Sequence[str]) -> None:
    """Put each (name, MD5) into `folder`, from the first of these base addresses that has it.

    DataError, with a line for each address, where none has it; OSError where `folder` can't be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    remove_parts(folder)
    mirrors = _Mirrors(addresses)
    for name, md5 in files:
        mirrors.fetch(name, md5, folder / name)


def mirror_address(mirror: str, setting: str = "") -> str:
    """The base address of a mirror given as http(s)://, file:// or a folder.

    ConfigError where it is none of these; `setting` is what the user wrote in front of it, such as `--mirror `.
    """
    try:
        scheme = urlsplit(mirror).scheme
    except ValueError as error:
        raise ConfigError(f"{setting}{mirror}: not an address ({error}).") from error
    if scheme in ("http", "https", "file"):
        return mirror.rstrip("/") + "/"
    if "://" in mirror:
        raise ConfigError(f"{setting}{mirror}: an address must begin with http://, https:// or file://.")
    folder = Path(mirror).expanduser()
    if not folder.is_dir():
        raise ConfigError(f"{setting}{mirror}: neither a folder nor an address (http://, https:// or file://).")
    return folder.resolve().as_uri() + "/"


def md5_of(file: Path) -> str | None:
    """The MD5 of a file in hexadecimal, or None where it can't be read. It guards against damage, not malice."""
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    except OSError:
        return None


class _RedirectedByHttp(HTTPRedirectHandler):
    """Follows a mirror to http and https addresses; urllib would also go to ftp, which names further addresses."""

    def redirect_request(self, req: Request, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Request | None:
        if urlsplit(newurl).scheme not in ("http", "https"):
            raise HTTPError(req.full_url, code, f"it leads to {newurl}", headers, fp)
        fp.close()  # urllib would read the whole answer into memory, however long it is
        return super().redirect_request(req, fp, code, msg, headers, newurl)


_OPENER = build_opener(_RedirectedByHttp)


class _Mirrors:
    """Base addresses in the order in which they are tried; one that does not answer is not asked again."""

    def __init__(self, addresses: Sequence[str]) -> None:
        self.addresses, self.patience = list(addresses), PATIENCE

    def fetch(self, name: str, md5: str, target: Path) -> None:
        failures = []
        for address in list(self.addresses):
            try:
                write_file(target, _verified(self._transfer(address + name), md5))
                return
            except _MirrorError as error:
                failures.append(f"{address}{name}: {error}")
                if not error.may_have_others:
                    self.addresses.remove(address)
        raise DataError("\n".join(failures))

    def _transfer(self, url: str) -> Iterator[bytes]:
        """The file in pieces, as they come; _MirrorError for whatever goes wrong on the way."""
        try:
            with closing(self._open(url)) as response:
                yield from _pieces(response, url.rpartition("/")[2])
        except HTTPError as error:
            error.close()
            raise _MirrorError(one_line(flat(error), 200), may_have_others=True) from error
        except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: an address that can't be one
            why = getattr(error, "reason", None) or error
            raise _MirrorError(one_line(flat(why), 200), may_have_others=False) from error

    def _open(self, url: str) -> Any:
        """A request, abandoned when patience ends: its own timeout bounds neither name look-up nor slow headers."""
        answer: queue.Queue[Any] = queue.Queue(1)

        def connect() -> None:
            try:
                answer.put(_OPENER.open(Request(url, headers={"User-Agent": "mnist-cnn"}), timeout=STALLED))
            except Exception as error:  # raised again below, where somebody waits for it
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


def _pieces(response: Any, name: str) -> Iterator[bytes]:
    length = response.headers.get("Content-Length")
    try:
        expected = int(length) if length else None
    except ValueError:
        raise OSError(f"its answer has the impossible Content-Length {length[:20]!r}") from None
    have, wanted, deadline = 0, LEAST_BYTES, time.monotonic() + STALLED
    with tqdm(total=expected, desc=name, unit="B", unit_scale=True, leave=False, disable=None) as bar:
        while piece := response.read1(_CHUNK):  # read1 returns what has come, read would wait for a whole chunk
            have += len(piece)
            if have > MAX_BYTES:
                raise OSError(f"more than {MAX_BYTES:,} bytes came")
            if have >= wanted:
                wanted, deadline = have + LEAST_BYTES, time.monotonic() + STALLED
            elif time.monotonic() > deadline:
                raise OSError(f"too slow: {have:,} bytes came before it was given up")
            yield piece
            bar.update(len(piece))
    if expected is not None and have < expected:
        raise OSError(f"broke off after {have:,} of {expected:,} bytes")


def _verified(pieces: Iterator[bytes], md5: str) -> Iterator[bytes]:
    """The same pieces; _MirrorError after the last one if together they are not the file with this MD5."""
    digest = hashlib.md5(usedforsecurity=False)
    for piece in pieces:
        digest.update(piece)
        yield piece
    if digest.hexdigest() != md5:
        raise _MirrorError("what came is not the file (its MD5 differs)", may_have_others=True)
