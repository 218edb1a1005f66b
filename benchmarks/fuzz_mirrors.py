"""Hostile mirrors: a server of this process answers with anything, and a small MNIST is fetched from it and read.

The real fetch and the real reader run. MNIST's files are replaced by small ones, its addresses by this server's, and
the limits of time and size by lower ones, so that nearly every case takes milliseconds.
"""

import gzip
import hashlib
import os
import random
import shutil
import socketserver
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from fuzz_contract import Fault, Kind, Outcome, hold
from fuzz_mutations import RANDOM, mutate_bytes, splice
from hypothesis import strategies as st

from mnist_cnn.data import datasets, download
from mnist_cnn.data.sources import SOURCES
from mnist_cnn.terminal import run_command

NAMES = [
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
]
_LINES = 14  # of a refusal: one for each address, and what to do now with each of the files
_LIMITS = {"PATIENCE": 6.0, "STALLED": 2.0, "MAX_BYTES": 2**20}

_STATUS = [
    b"HTTP/1.1 200 OK", b"HTTP/1.0 200 OK", b"HTTP/1.1 206 Partial Content", b"HTTP/1.1 204 No Content",
    b"HTTP/1.1 301 Moved", b"HTTP/1.1 302 Found", b"HTTP/1.1 307 Temporary Redirect", b"HTTP/1.1 304 Not Modified",
    b"HTTP/1.1 401 Unauthorized", b"HTTP/1.1 404 Not Found", b"HTTP/1.1 404 \x1b[31mred\x1b[0m",
    b"HTTP/1.1 404 " + b"x" * 5000, b"HTTP/1.1 407 Proxy", b"HTTP/1.1 429 Too Many Requests", b"HTTP/1.1 500 Error",
    b"HTTP/1.1 503 \xff\xfe", b"HTTP/1.1 999 ?", b"HTTP/1.1 -1 ?", b"HTTP/1.1 100 Continue",
    b"HTTP/1.1 101 Switching Protocols", b"HTTP/9.9 200 OK", b"HTTP/1.1", b"220 ftp ready", b"ICY 200 OK", b"",
    b"HTTP/1.1 2" + b"0" * 70_000,
]  # fmt: skip
_PLACES = [
    "/second/{name}", "/{name}", "http://127.0.0.1:{port}/second/{name}", "file:///etc/passwd",
    "ftp://127.0.0.1:{port}/{name}", "//", "", "http://[", "http://127.0.0.1:{port}:x/", "data:,x", "javascript:1",
    "/\x1b[31m", "/ü",  "http://user:secret@127.0.0.1:{port}/second/{name}",
    "/" + "x" * 3000, "https://127.0.0.1:{port}/{name}", "/" + "%00" * 9,
]  # fmt: skip
_HEADERS = [
    "Content-Encoding: gzip", "Transfer-Encoding: chunked", "Transfer-Encoding: \x1b[31m", "Content-Length: -5",
    "Content-Length: 99999999999999999999", "Content-Length: x\x1b[31m", "Content-Length: 1e3", "Content-Length: ١٢٣",
    "Content-Length: 1_0", "Content-Length: 0", "Content-Type: text/html", "WWW-Authenticate: Basic realm=x",
    "WWW-Authenticate: Digest", "Refresh: 0", "Set-Cookie: a=b", "no colon", ": no name", " folded",
    "X: " + "x" * 70_000, "\n".join(f"X{number}: y" for number in range(200)), "Content-Range: bytes 0-1/2",
    "Connection: keep-alive", "X: \x00", "Content-Disposition: attachment; filename=../../x",
]  # fmt: skip


@dataclass(frozen=True)
class Answer:
    """What the server sends for one file, as it goes over the wire, and the seconds that it waits before."""

    wire: bytes
    silence: float = 0

    def __repr__(self) -> str:
        return f"Answer({self.wire[:300]!r}… of {len(self.wire):,} bytes, {self.silence})"


class Server(socketserver.ThreadingTCPServer):
    """Sends `answers`, by name of file, or the right file below /second/."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files, self.answers = files, dict[str, Answer]()
        self.port = int(self.server_address[1])
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # the other side has given up


class _Handler(socketserver.StreamRequestHandler):
    server: Server
    timeout = 2

    def handle(self) -> None:
        asked = self.rfile.readline(2**16).split(b" ")
        while self.rfile.readline(2**16).strip():
            pass
        path = asked[1].decode("latin-1") if len(asked) > 1 else ""
        name = path.rpartition("/")[2]
        answer = self.server.answers.get(name)
        if path.startswith("/second/") and name in self.server.files:
            answer = Answer(whole(self.server.files[name]))
        if answer:
            time.sleep(answer.silence)
            with suppress(OSError):
                self.wfile.write(answer.wire)


def whole(content: bytes) -> bytes:
    """The honest answer."""
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(content), content)


def small_mnist() -> dict[str, bytes]:
    """20 + 10 images in MNIST's format."""
    rng, files = np.random.default_rng(0), {}
    for name in NAMES:
        count = 20 if name.startswith("train") else 10
        images = "images" in name
        array = rng.integers(0, 256, (count, 28, 28), np.uint8) if images else np.arange(count, dtype=np.uint8) % 10
        header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
        files[name] = gzip.compress(header + array.tobytes(), mtime=0)
    return files


@st.composite
def _answers(draw: st.DrawFn, files: dict[str, bytes], port: int) -> Answer:
    name = draw(st.sampled_from(NAMES))
    rng = draw(RANDOM)
    if draw(st.integers(0, 9)) < 4:
        return Answer(whole(files[name]))
    body = _body(draw(st.integers(0, 7)), files, name, rng)
    status = draw(st.sampled_from(_STATUS) | st.sampled_from(_STATUS[:1] * 9))
    lines = [line.encode() for line in draw(st.lists(st.sampled_from(_HEADERS), max_size=3))]
    redirects = b" 30" in status[:13]
    if redirects:
        place = draw(st.sampled_from(_PLACES)).format(name=name, port=port)
        lines.append(b"Location: " + place.encode())
    if draw(st.booleans()):
        lines.insert(
            0, b"Content-Length: %d" % draw(st.sampled_from([len(body), len(body), len(body) + 1, len(body) // 2]))
        )
    if b"Transfer-Encoding: chunked" in lines and draw(st.booleans()):
        body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    wire = b"\r\n".join([status, *lines, b"", body])
    if not redirects and draw(st.integers(0, 9)) < 2:  # damage would lead to another server
        wire = mutate_bytes(wire, rng)
    return Answer(wire, 10.0 if rng.random() < 0.003 else 0.0)


def _body(kind: int, files: dict[str, bytes], name: str, rng: random.Random) -> bytes:
    other = files[rng.choice(NAMES)]
    match kind:
        case 0 | 1:
            return files[name]
        case 2 | 3:
            return mutate_bytes(files[name], rng)
        case 4:
            return splice(files[name], other, rng)
        case 5:
            return other
        case 6:
            return b"<html>Please log in \x1b[31m</html>"
    return b"" if rng.random() < 0.9 else bytes(2 * int(_LIMITS["MAX_BYTES"]))


def mirrors(folder: Path, run: Path) -> Kind[tuple[dict[str, Answer], bool]]:
    """Answers for each of the four files, and whether there is another mirror, which is honest."""
    os.environ["no_proxy"] = "127.0.0.1"
    files = small_mnist()
    server = Server(files)
    resources = [(name, hashlib.md5(content).hexdigest()) for name, content in files.items()]
    first, second = (f"http://127.0.0.1:{server.port}/{part}" for part in ("", "second/"))

    def fetch_and_read() -> int:
        datasets.fetch("mnist", "data", first)
        print(int(datasets.load("mnist", "data").train.images.sum()))
        return 0

    def hold_one(case: tuple[dict[str, Answer], bool]) -> Outcome:
        server.answers, has_second = case
        former = SOURCES["mnist"], {name: getattr(download, name) for name in _LIMITS}
        SOURCES["mnist"] = replace(SOURCES["mnist"], files=resources, mirrors=[second] if has_second else [])
        for name, value in _LIMITS.items():
            setattr(download, name, value)
        try:
            outcome = hold(lambda: run_command(fetch_and_read), folder, 2**20, port=server.port, lines=_LINES)
        finally:
            SOURCES["mnist"], limits = former
            for name, value in limits.items():
                setattr(download, name, value)
        _check_folder(folder / "data", outcome)
        if outcome.refused and has_second and not any(answer.silence for answer in server.answers.values()):
            raise Fault(f"an honest mirror was not used: {outcome.err}", "an honest mirror was not used")
        return outcome

    def _check_folder(data: Path, outcome: Outcome) -> None:
        """Raise Fault unless every file that was kept is the right one, and nothing else was."""
        kept = {path.name: path.read_bytes() for path in data.rglob("*") if path.is_file()}
        shutil.rmtree(data, ignore_errors=True)
        kept.pop(".mnist.lock", None)
        if any(files.get(name) != content for name, content in kept.items()):
            raise Fault(f"kept what is not MNIST: {list(kept)}")
        if not outcome.refused and kept != files:
            raise Fault("read MNIST without its files")

    answers = st.fixed_dictionaries(dict.fromkeys(NAMES, _answers(files, server.port)))
    return Kind(st.tuples(answers, st.booleans()), hold_one)
