"""The contract that a command is held to while somebody hostile has written its input.

It ends by itself, used or refused in a line or two; runs no code but the program's; opens and writes files in its own
folder only; starts no process; connects to nothing but this test's own server; and bounds its time and its memory.
Python's audit events prove it: the forbidden thing is reported and does not happen.
"""

import io
import os
import resource
import signal
import sys
import sysconfig
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Generic, TypeVar
from unittest.mock import patch

from hypothesis.strategies import SearchStrategy

C = TypeVar("C")

ROOT = Path(__file__).parent.parent
SECONDS = 20
# More than the process had before the case, which is 0.5 GB with torch imported and 0.8 GB with Lightning.
MEMORY, MEMORY_BY_FILE = 600_000_000, 3
LINES, LINE = 2, 2000  # of a refusal, and characters in one

_LIBRARIES = tuple(
    {
        os.path.realpath(path)
        for name in ("stdlib", "platstdlib", "purelib", "platlib")
        if (path := sysconfig.get_path(name))
    }
)
_CODE = (*_LIBRARIES, str(ROOT))
_READABLE = (*_CODE, sys.prefix, sys.base_prefix, "/usr", "/proc", "/sys/devices", "/sys/fs/cgroup", "/dev/null")
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGES = {
    "os.remove", "os.rmdir", "os.mkdir", "os.rename", "os.link", "os.symlink", "os.chmod", "os.chown", "os.truncate",
    "os.utime", "os.setxattr", "shutil.rmtree", "shutil.move", "shutil.copyfile", "shutil.copytree",
}  # fmt: skip
_NEVER = ("subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.startfile", "pty.",
          "socket.bind", "socket.sendto", "pickle.find_class", "webbrowser.", "ftplib.", "smtplib.")  # fmt: skip


class Fault(Exception):
    """How a case broke the contract. `signature` is the same for cases that break it at the same place."""

    def __init__(self, what: str, signature: str = "") -> None:
        super().__init__(what)
        self.signature = signature or what


class Forbidden(BaseException):
    """Raised where the forbidden thing would happen; no `except Exception` stops it."""


@dataclass(frozen=True)
class Outcome:
    """How a command ended: refused if its status is 1 or 2, with an error on standard error."""

    status: int
    out: str
    err: str
    seconds: float
    memory: int  # bytes, at most, more than before

    @property
    def refused(self) -> bool:
        return self.status in (1, 2)


@dataclass(frozen=True)
class Kind(Generic[C]):
    """Something that takes input from strangers: what to try it with, and how; `hold` raises Fault."""

    cases: SearchStrategy[C]
    hold: Callable[[C], Outcome]


@dataclass
class _Watch:
    folder: str
    port: int | None
    seen: list[str] = field(default_factory=list)

    def check(self, event: str, arguments: tuple[Any, ...]) -> str | None:
        """What is forbidden about an event, or None."""
        if event == "open":
            path, mode, flags = arguments
            writes = bool((flags or 0) & _WRITING) or (isinstance(mode, str) and not set(mode).isdisjoint("wax+"))
            if not self.allows(path, (self.folder,) if writes else (self.folder, *_READABLE)):
                return f"{'writes' if writes else 'reads'} {path!r}"
        elif event in _CHANGES:
            if not all(self.allows(path, (self.folder,)) for path in arguments if isinstance(path, str | bytes | Path)):
                return f"{event}{arguments}"
        elif event == "socket.connect":
            if self.port is None or arguments[1][:2] != ("127.0.0.1", self.port):
                return f"connects to {arguments[1]}"
        elif event == "exec":
            file, places = str(getattr(arguments[0], "co_filename", "<")), _CODE
            if file.startswith("<") and not file.startswith("<frozen"):
                # Libraries make data classes and named tuples of texts.
                file, places = sys._getframe(2).f_code.co_filename, _LIBRARIES
            if not file.startswith(("<frozen", *places)):
                return f"runs code from {file}"
        elif event.startswith(_NEVER):
            return f"{event}{arguments}"
        return None

    def allows(self, path: Any, places: tuple[str, ...]) -> bool:
        if isinstance(path, int) or path in (os.devnull, os.fsencode(os.devnull)):
            return True  # what is open already was allowed
        try:
            real = os.path.realpath(os.fsdecode(path))
        except ValueError:  # it has a NUL, so there is no such file
            return True
        return any(real == place or real.startswith(place.rstrip("/") + "/") for place in places)


_watch: _Watch | None = None


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    watch = _watch
    if watch is not None and (what := watch.check(event, arguments)):
        watch.seen.append(what)
        raise Forbidden(what)


sys.addaudithook(_audit)


def hold(
    command: Callable[[], int], folder: Path, size: int, *, port: int | None = None, lines: int = LINES, ends: int = 0
) -> Outcome:
    """Run a command in its folder; Fault where it breaks the contract.

    `size` is that of its input in bytes, `port` that of the server that it may connect to, `lines` how many lines a
    refusal may have, and `ends` a further exit status of success.
    """
    global _watch
    watch, status, broken = _Watch(os.path.realpath(folder), port), -1, None
    with _text("strict") as out, _text("backslashreplace") as err, tempfile.TemporaryFile() as by_libraries:
        os.chdir(folder)
        before, begin = _memory(), time.monotonic()
        try:
            keras_cache = patch.dict(os.environ, {"KERAS_HOME": str(folder)})  # where MNIST is looked for
            with _alarm(), _descriptors(by_libraries), redirect_stdout(out), redirect_stderr(err), keras_cache:
                _watch = watch
                status = command()
        except KeyboardInterrupt:
            raise
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
        except BaseException as error:
            broken = error
        finally:
            _watch = None
        seconds, memory = time.monotonic() - begin, _memory(peak=True) - before
        outcome = Outcome(status, _content(out), _content(err), seconds, memory)
        if watch.seen:
            raise Fault(watch.seen[0])
        if broken is not None:
            raise Fault(f"a traceback:\n{''.join(traceback.format_exception(broken)[-6:])}", _place(broken)) from broken
        by_libraries.seek(0)
        if printed := by_libraries.read():
            raise Fault(f"a library prints {printed[:300]!r}", "a library prints")
    _check(outcome, size, lines, ends)
    return outcome


def _text(errors: str) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(), "utf-8", errors)


def _content(stream: io.TextIOWrapper) -> str:
    stream.seek(0)
    return stream.read()


def _place(error: BaseException) -> str:
    """The exception's class and the innermost line of this project that it came through."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "mnist_cnn" in frame.filename]
    return f"{type(error).__name__} at {frames[-1].filename}:{frames[-1].lineno}" if frames else type(error).__name__


def _check(outcome: Outcome, size: int, lines: int, ends: int) -> None:
    if outcome.seconds > SECONDS:
        raise Fault(f"{outcome.seconds:.1f} s", "too slow")
    if outcome.memory > MEMORY + MEMORY_BY_FILE * size:
        raise Fault(f"{outcome.memory / 1e6:.0f} MB for a file of {size:,} bytes", "too much memory")
    if outcome.status not in (0, 1, 2, ends):
        raise Fault(f"exit status {outcome.status}")
    for line in (outcome.out + outcome.err).splitlines():
        if not line.replace("\t", " ").isprintable():
            raise Fault(f"prints {line!r}", "prints what a terminal obeys")
        if len(line) > LINE:
            raise Fault(f"prints a line of {len(line):,} characters: {line[:200]}", "prints a long line")
    if outcome.refused:
        _, found, told = f"\n{outcome.err}".rpartition("\nerror: ")
        if not found or len(told.strip().split("\n")) > lines:
            raise Fault(f"a refusal of another form: {outcome.err!r}", "a refusal of another form")


@contextmanager
def _descriptors(file: IO[bytes]) -> Iterator[None]:
    """Let a file have what is written to the descriptors of standard output and error."""
    former = {number: os.dup(number) for number in (1, 2)}
    try:
        for number in former:
            os.dup2(file.fileno(), number)
        yield
    finally:
        for number, kept in former.items():
            os.dup2(kept, number)
            os.close(kept)


@contextmanager
def _alarm() -> Iterator[None]:
    """Break off what takes far too long."""

    def ring(*_: Any) -> None:
        raise Forbidden(f"takes more than {SECONDS} s")

    former = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, SECONDS + 1)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)


def _memory(peak: bool = False) -> int:
    """Bytes of this process in memory: now, where Linux lets the peak be reset, or the peak since then."""
    if not peak:
        with suppress(OSError), open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def empty_folder() -> Path:
    """A new folder for cases, in memory where the system has such a place: files are written durably here."""
    return Path(tempfile.mkdtemp(prefix="fuzz-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
