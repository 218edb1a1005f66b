"""Damages bytes, values and archives, at random; `benchmarks/fuzz.py` and `keras_fuzz.py` share it.

All randomness comes from the generator that is passed.
"""

import copy
import io
import json
import random
import zipfile
from collections.abc import Callable, Sequence
from typing import Any

from hypothesis import strategies as st

# Even random numbers: those of Hypothesis' own generator are near zero, and most cases would damage the same place.
RANDOM = st.randoms(use_true_random=True)

ODD: list[Any] = [
    -1, 0, 1, 3, 10**3, 10**6, 2**31, 2**63, 10**400, 0.5, -1e308, True, None, "", "x" * 5000, "Lambda",
    "../../etc/passwd", [], [[]], {}, [None] * 9, {"class_name": "Lambda", "config": {}}, [2, 3, 4], "relu",
    "channels_first", "os.system",
]  # fmt: skip


def mutate_bytes(content: bytes, rng: random.Random) -> bytes:
    """Damage bytes in one of several ways."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        at, length = rng.randrange(max(len(data), 1)), rng.choice((1, 2, 8, 64, 4096))
        match rng.randrange(6):
            case 0 | 1:
                data[at : at + 1] = bytes([rng.randrange(256)])
            case 2:
                data[at : at + length] = bytes([rng.choice((0, 255))]) * len(data[at : at + length])
            case 3:
                del data[at : at + length]
            case 4:
                data[at:at] = data[at : at + length]
            case 5:
                if rng.random() < 0.2:
                    del data[at:]
    return bytes(data)


def mutate_values(value: Any, rng: random.Random, odd: Sequence[Any] = ODD) -> Any:
    """Replace, remove or double values of nested dictionaries and lists, in place."""
    places: list[tuple[Any, Any]] = []
    waiting = [value]
    while waiting:
        item = waiting.pop()
        keys = list(item) if isinstance(item, dict) else range(len(item)) if isinstance(item, list) else []
        places += [(item, key) for key in keys]
        waiting += [item[key] for key in keys]
    for _ in range(rng.choice((1, 1, 2, 5))):
        item, key = rng.choice(places)
        if isinstance(item, dict) and rng.random() < 0.2:
            item.pop(key, None)
        elif isinstance(item, list) and rng.random() < 0.2 and item:
            item.insert(rng.randrange(len(item)), rng.choice(item))
        elif not isinstance(item, list) or key < len(item):
            item[key] = copy.deepcopy(rng.choice(odd))  # the next case finds it as it was
    return value


def mutate_zip(content: bytes, rng: random.Random, part: Callable[[str, bytes, random.Random], bytes]) -> bytes:
    """Damage one member of a zip archive by `part`; its checksum is right again."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer, "w") as new:
        chosen = rng.choice(old.namelist())
        for name in old.namelist():
            new.writestr(name, part(name, old.read(name), rng) if name == chosen else old.read(name))
    return buffer.getvalue()


def splice(one: bytes, other: bytes, rng: random.Random) -> bytes:
    """The beginning of one file and the end of another."""
    return one[: rng.randrange(len(one) + 1)] + other[rng.randrange(len(other) + 1) :]


def mutate_keras(content: bytes, rng: random.Random) -> bytes:
    """A damaged copy of a Keras file."""
    if not content.startswith(b"PK") or rng.random() < 0.2:
        return mutate_bytes(content, rng)
    return mutate_zip(content, rng, _keras_part)


def _keras_part(name: str, content: bytes, rng: random.Random) -> bytes:
    if name.endswith(".json") and rng.random() < 0.8:
        return json.dumps(mutate_values(json.loads(content), rng)).encode()
    return mutate_bytes(content, rng)
