"""Hostile checkpoints and pictures for `mnist-cnn predict`, which is run as a whole: nothing in it is replaced."""

import copy
import io
import math
import os
import random
import re
import shutil
import zlib
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from fuzz_contract import Fault, Kind, Outcome, hold
from fuzz_mutations import ODD, RANDOM, mutate_bytes, mutate_values, mutate_zip, splice
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from torch import Tensor

from mnist_cnn.cli import main
from mnist_cnn.inference import checkpoint
from mnist_cnn.network import build_network


@dataclass(frozen=True)
class File:
    """A file, and how it was damaged or what it is called."""

    how: str
    content: bytes

    def __repr__(self) -> str:
        return f"File({self.how!r}, {len(self.content):,} bytes)"


class Evil:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, ("true",))


# --- checkpoints ------------------------------------------------------------------------------------------------

ODD_VALUES = [
    *ODD, math.nan, math.inf, Evil(), b"bytes", {1: 2}, OrderedDict(a=1), (1, (2,)), "\x1b[31m", "a\nb", "\udcff",
    torch.zeros(2), torch.full((10,), math.nan), torch.zeros(10, dtype=torch.float64), torch.zeros(1).expand(10**9),
    torch.zeros(8, 1, 4, 4, dtype=torch.complex64), torch.eye(2).to_sparse(), torch.zeros(0),
    torch.nn.Parameter(torch.ones(10)), {"Dense": {"units": 10**9}}, {"Conv2D": {"filters": 10**5, "kernel_size": 28}},
    "Flatten", {"Dense": {"units": 10}},
]  # fmt: skip
# Operations of a pickle: names of code, calls, attributes, memory, numbers.
_OPERATIONS = [
    b"cos\nsystem\n", b"\x8c\x02os\x8c\x06system\x93", b"cbuiltins\nbytearray\n", b"ctorch\nload\n", b"ios\nsystem\n",
    b"ctorch._utils\n_rebuild_tensor_v2\n", b"ccollections\nOrderedDict\n", b"\x8c\x04true\x85R", b"R", b"\x81", b"b",
    b"(", b"t", b"\x85", b"\x86", b"u", b"s", b"a", b"e", b"2", b"0", b"Q", b"}", b"]", b")", b"N", b".", b"h\x00",
    b"h\x05", b"q\x00", b"K\xff", b"J\xff\xff\xff\x7f", b"\x8a\x08" + b"\xff" * 7 + b"\x7f", b"X\xff\xff\xff\xff",
]  # fmt: skip


def checkpoints(folder: Path, run: Path) -> Kind[File]:
    """Checkpoints that are damaged as bytes, as an archive, as a pickle and as values."""
    sources = [(run / "checkpoints" / name).read_bytes() for name in ("best.ckpt", "last.ckpt")]
    contents = [torch.load(io.BytesIO(source), weights_only=True) for source in sources]
    file, picture = folder / "case.ckpt", folder / "picture.png"
    drawn("L").save(picture)

    def damaged(how: str, rng: random.Random) -> File:
        source = rng.choice(sources)
        match how:
            case "bytes":
                return File(how, mutate_bytes(source, rng))
            case "splice":
                return File(how, splice(source, rng.choice(sources), rng))
            case "part":
                return File(how, mutate_zip(source, rng, _checkpoint_part))
        content = copy.deepcopy(rng.choice(contents))
        described = content[checkpoint.METADATA_KEY]
        part = rng.choice([content, described, described["layers"], content["state_dict"], content["state_dict"]])
        mutate_values(part, rng, ODD_VALUES)
        return File(how, checkpoint.to_bytes(content))

    def hold_one(case: File) -> Outcome:
        how, content = case.how, case.content
        file.write_bytes(content)
        outcome = hold(lambda: main(["predict", str(file), str(picture)]), folder, len(content))
        if not outcome.refused:
            _check_probability(outcome)
            _check_weights(file)
            if how in ("bytes", "splice") and not any(_identical(checkpoint.read(file), known) for known in contents):
                raise Fault("damaged bytes are read as other values")
        return outcome

    return Kind(st.builds(damaged, st.sampled_from(["bytes", "splice", "part", "values"]), RANDOM), hold_one)


def _checkpoint_part(name: str, content: bytes, rng: random.Random) -> bytes:
    if not name.endswith("data.pkl") or rng.random() < 0.3:
        return mutate_bytes(content, rng)
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 5))):
        at = rng.randrange(len(data))
        data[at : at + rng.choice((0, 0, 1, 2))] = rng.choice(_OPERATIONS)
    return bytes(data)


def _check_weights(file: Path) -> None:
    """Raise Fault unless a network that was loaded has the weights that its layers say."""
    trained = checkpoint.load(file)
    with torch.device("meta"):
        wanted = build_network(trained.network.layers, trained.network.input_shape, len(trained.classes)).state_dict()
    state = trained.network.state_dict()
    if {key: (value.shape, value.dtype) for key, value in state.items()} != {
        key: (value.shape, value.dtype) for key, value in wanted.items()
    }:
        raise Fault("a network was loaded whose weights are not those of its layers")
    if not all(value.isfinite().all() and value.dtype == torch.float32 for value in state.values()):
        raise Fault("a network was loaded whose weights are not finite numbers in single precision")


def _identical(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict | list | tuple) and type(one) is type(other) and len(one) == len(other):
        pairs = zip(*(value.items() if isinstance(value, dict) else value for value in (one, other)), strict=True)
        return all(_identical(*pair) for pair in pairs)
    return type(one) is type(other) and bool(one == other)


def _check_probability(outcome: Outcome) -> None:
    """Raise Fault unless `predict` has printed a class or a number, and its probability, in each line."""
    answer = r"\S+ +(\d+\.\d\d)%   .*\((?:then )?\S+: \d+\.\d\d%(?:, \S+: \d+\.\d\d%)*\)"
    found = [re.fullmatch(answer, line) for line in outcome.out.splitlines()]
    if not found or not all(line and 0 <= float(line[1]) <= 100 for line in found):
        raise Fault(f"no prediction: {outcome.out!r}", "no prediction")


# --- pictures ---------------------------------------------------------------------------------------------------

_FILES: list[tuple[str, str, dict[str, Any]]] = [  # mode, format, and arguments of Pillow's save
    ("L", "PNG", {}), ("RGB", "PNG", {}), ("RGBA", "PNG", {"optimize": True}), ("P", "PNG", {}), ("1", "PNG", {}),
    ("I;16", "PNG", {}), ("L", "JPEG", {}), ("RGB", "JPEG", {"progressive": True}), ("CMYK", "JPEG", {}),
    ("RGB", "BMP", {}), ("P", "BMP", {}), ("1", "BMP", {}), ("P", "GIF", {}), ("L", "GIF", {"save_all": True}),
    ("RGB", "WEBP", {}), ("RGBA", "WEBP", {"lossless": True}), ("L", "TIFF", {}), ("F", "TIFF", {}), ("I", "TIFF", {}),
    ("RGB", "TIFF", {"compression": "tiff_lzw"}), ("L", "TIFF", {"compression": "tiff_adobe_deflate"}),
    ("1", "TIFF", {"compression": "group4"}), ("RGB", "TIFF", {"compression": "jpeg"}), ("CMYK", "TIFF", {}),
    ("LAB", "TIFF", {}), ("L", "PPM", {}), ("RGB", "PPM", {}), ("1", "PPM", {}), ("I", "PPM", {}),
]  # fmt: skip
_NAMES = [
    "picture.png",
    "a b.jpg",
    "é☃.gif",
    "\x1b[31m.png",
    "two\nlines.png",
    "\udcff.png",
    "x" * 200,
    ".png",
    "a.ckpt.png",
]
_SIDES = [1, 2, 3, 5, 17, 28, 64, 100, 1000]


def drawn(mode: str, size: tuple[int, int] = (64, 48)) -> Image.Image:
    """A 7, dark on light, in one of Pillow's modes."""
    picture = Image.new("L", size, 230)
    width, height = size
    ImageDraw.Draw(picture).line(
        [(width * 0.2, height * 0.2), (width * 0.7, height * 0.2), (width * 0.4, height * 0.9)], 20, 4
    )
    return picture.convert("RGB").convert("LAB") if mode == "LAB" else picture.convert(mode)


def pictures(folder: Path, run: Path) -> Kind[File]:
    """Pictures of every format that is read, whole and damaged, of any size, under any name."""
    model = str(shutil.copy(run / "checkpoints" / "best.ckpt", folder / "model.ckpt"))
    sources = [_saved(drawn(mode), form, arguments) for mode, form, arguments in _FILES]

    def made(how: str, name: str, rng: random.Random) -> File:
        source = rng.choice(sources)
        match how:
            case "bytes":
                return File(name, mutate_bytes(source, rng))
            case "splice":
                return File(name, splice(source, rng.choice(sources), rng))
            case "chunk":
                return File(name, _mutate_png(rng.choice(sources[:6]), rng))
        mode, form, arguments = rng.choice(_FILES)
        sides = _SIDES if rng.random() < 0.98 else [30, 5000, 9000, 49_000_000]
        size = rng.choice(sides), rng.choice(sides)
        if size[0] * size[1] > 5 * 10**7 or max(size) > 60_000:
            size = 7000, 7000
        if max(size) > 2000 or rng.random() < 0.3:
            picture = Image.new("L", size, rng.choice((0, 128, 255))).convert(
                mode if mode not in ("LAB", "I;16") else "L"
            )
        else:
            picture = drawn(mode, size)
        return File(
            name, _saved(picture, form if picture.mode == mode else "PNG", arguments if picture.mode == mode else {})
        )

    def hold_one(case: File) -> Outcome:
        file, content = folder / case.how, case.content
        file.write_bytes(content)
        try:
            outcome = hold(lambda: main(["predict", model, str(file)]), folder, len(content))
        finally:
            file.unlink()
        if not outcome.refused:
            _check_probability(outcome)
        return outcome

    how = st.sampled_from(["bytes", "splice", "chunk", "whole"])
    return Kind(st.builds(made, how, st.sampled_from(_NAMES), RANDOM), hold_one)


def _saved(picture: Image.Image, form: str, arguments: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, form, **arguments)
    return buffer.getvalue()


def _mutate_png(content: bytes, rng: random.Random) -> bytes:
    """A PNG with one chunk damaged, doubled or left out, and the checksums right."""
    chunks, at = list[tuple[bytes, bytes]](), 8
    while at < len(content):
        length = int.from_bytes(content[at : at + 4], "big")
        chunks.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + length]))
        at += 12 + length
    chosen = rng.randrange(len(chunks))
    kind, data = chunks[chosen]
    kinds = [kind, kind, kind, b"IHDR", b"PLTE", b"tRNS", b"iTXt", b"zTXt", b"eXIf", b"acTL", b"fcTL", b"fdAT", b"iCCP"]
    changed = (
        rng.choice(kinds),
        mutate_bytes(data, rng) if data else bytes([rng.randrange(256)]) * rng.choice((1, 26)),
    )
    chunks[chosen : chosen + rng.choice((0, 1, 1, 1))] = rng.choice(([], [changed], [changed], [changed, (kind, data)]))
    return content[:8] + b"".join(
        len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big") for kind, data in chunks
    )
