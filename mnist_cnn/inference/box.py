"""The box: trained networks that come with the package and are used by name, each with a card that says what it is.

`benchmarks/box.py` writes both files, `NAME.ckpt` and `NAME.md`. A card is Markdown below YAML with the same facts.
"""

import hashlib
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from mnist_cnn.errors import CheckpointError, ConfigError, did_you_mean, flat, one_line

BOX = Path(__file__).parents[1] / "box"
DEFAULT = "accurate"  # the network that is used where none is named
MOST_BYTES = 2_000_000  # of all its checkpoints together, so that the package stays small

_LINE = "---\n"  # above and below the YAML of a card

Ratio = Annotated[float, msgspec.Meta(ge=0, le=1)]


class Spread(msgspec.Struct, frozen=True):
    """Mean and sample standard deviation of an accuracy over several seeds; of one seed, there is no deviation."""

    mean: Ratio
    std: Ratio | None

    def __str__(self) -> str:
        return percent(self.mean) if self.std is None else f"{100 * self.mean:.2f} ± {100 * self.std:.2f} %"


class Card(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a network in the box. Accuracies are from 0 to 1."""

    name: str
    purpose: str  # what it is for, in one line
    recipe: str  # as in experiment=RECIPE
    commands: list[str]  # that trained it and the other seeds
    dataset: str
    parameters: int
    epoch: int  # the epoch that its weights are from
    seed: int
    chosen: str  # why this seed
    seeds: list[int]  # all that were trained
    validation_accuracy: Ratio | None  # None if no images were kept for validation
    test_accuracy: Ratio  # of this very file
    test_accuracy_of_seeds: Spread
    corrupted_accuracy: Spread | None  # over the seeds, on corrupted test images; None if not measured
    weights: Literal["float32", "float16"]
    bytes: int
    sha256: str
    versions: dict[str, str]
    built: str  # the date, as 2026-11-30
    licence: str

    def to_dict(self) -> dict[str, Any]:
        facts: dict[str, Any] = msgspec.to_builtins(self)
        return facts


def names() -> list[str]:
    """The networks in the box, the default one first."""
    return sorted((file.stem for file in BOX.glob("*.md")), key=lambda name: (name != DEFAULT, name))


def card(name: str) -> Card:
    """The facts of a card; ConfigError if there is no network of this name, CheckpointError if its card is damaged."""
    try:
        return msgspec.yaml.decode(_split(name)[0], type=Card)
    except msgspec.MsgspecError as error:
        raise _damaged(name, f"its card is damaged ({one_line(flat(error))})") from error


def card_of(file: Path) -> Card | None:
    """The card of a checkpoint, None if it is not in the box."""
    return card(file.stem) if file.parent == BOX else None


def text(name: str) -> str:
    """A card in Markdown, without the YAML; raises what `card` raises."""
    return _split(name)[1].strip()


def find(name: str) -> Path:
    """The checkpoint of a network in the box, checked against the SHA-256 in its card; raises what `card` raises.

    This guards against a file that was damaged or replaced by mistake, not against somebody who changes both.
    """
    file, expected = BOX / f"{name}.ckpt", card(name).sha256
    try:
        found = hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        raise _damaged(name, f"{one_line(file)}: {error.strerror}") from error
    if found != expected:
        raise _damaged(name, f"{one_line(file)} is not the file that its card describes (SHA-256 {found[:12]}…)")
    return file


def table() -> str:
    """A line for each network: name, parameters, test accuracy, size, purpose."""
    rows = [("name", "parameters", "test", "size", "purpose")]
    for it in map(card, names()):
        size = f"{it.bytes / 1000:,.0f} kB"
        rows.append((it.name, f"{it.parameters:,}", percent(it.test_accuracy), size, it.purpose))
    return "\n".join(f"{row[0]:<12} {row[1]:>10}  {row[2]:>8}  {row[3]:>8}  {row[4]}" for row in rows)


def percent(accuracy: float) -> str:
    """`99.65 %` for 0.9965."""
    return f"{100 * accuracy:.2f} %"


def _split(name: str) -> tuple[str, str]:
    """The YAML and the Markdown of a card."""
    there = names()
    if name not in there:
        hint = f" There are: {', '.join(there)}." if there else " It is empty; install the package again."
        raise ConfigError(f"{one_line(name)}: no network in the box has this name.{did_you_mean(name, there)}{hint}")
    try:
        content = (BOX / f"{name}.md").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise _damaged(name, f"its card can't be read ({one_line(flat(error))})") from error
    _, _, rest = content.partition(_LINE)
    facts, _, markdown = rest.partition(_LINE)
    return facts, markdown


def _damaged(name: str, why: str) -> CheckpointError:
    return CheckpointError(f"{name}: {why}; install the package again.")
