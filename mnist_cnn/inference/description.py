"""The description of a network in its checkpoint, as a schema that every value is checked against."""

import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, TypedDict

import msgspec
from msgspec import Meta
from torch import Tensor

from mnist_cnn.data.images import Preprocessing
from mnist_cnn.errors import unicode_text

# A name that a terminal shows on one line; that it is printable is checked below.
Name = Annotated[str, Meta(min_length=1, max_length=200)]
Side = Annotated[int, Meta(ge=1, le=2**14)]

MAX_INPUT = 2**24  # values of an image; 4096×4096 in grey


class Split(TypedDict, total=False):
    """How the validation images were chosen; empty if not known."""

    val_fraction: Annotated[float, Meta(ge=0, lt=1)]
    method: Literal["last", "random", "stratified"]
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)]


class KerasFacts(TypedDict, total=False):
    """What is known of the Keras model that a network was imported from."""

    file: Name
    version: Name
    input_shape: Annotated[list[Side], Meta(min_length=1, max_length=3)]
    optimizer: Name
    loss: Name
    lr: Annotated[float, Meta(ge=-1e30, le=1e30)]


class Description(msgspec.Struct, frozen=True):
    """What a checkpoint says about its network. `build_network` checks the layers."""

    model: Name
    layers: Annotated[list[Any], Meta(min_length=1, max_length=2000)]
    input_shape: tuple[Side, Side, Side]
    preprocessing: Preprocessing
    classes: Annotated[list[Name], Meta(min_length=2, max_length=1000)]
    dataset: Name
    split: Split
    training: dict[str, Any]
    versions: dict[Name, Name]
    epoch: Annotated[int, Meta(ge=-1, le=10**9)]
    weights: Literal["float32", "float16"] = "float32"  # how the file stores what is float32 in the network

    def __post_init__(self) -> None:
        msgspec.convert(self.training.get("settings", {}), dict[str, Any])
        keras = msgspec.convert(self.training.get("keras", {}), KerasFacts)
        names = [self.model, self.dataset, *self.classes, *self.versions, *self.versions.values(), *keras.values()]
        channels, *size = self.input_shape
        for holds, what in (
            (all(name.isprintable() for name in names if isinstance(name, str)), "a name has control characters"),
            (len(set(self.classes)) == len(self.classes), "two classes have the same name"),
            (self.dataset != "auto", "its data set is called auto, which stands for one of several"),
            (math.prod(self.input_shape) <= MAX_INPUT, "its images are too large"),
            (len(self.preprocessing.mean) in (1, channels), "preprocessing has more channels than the images"),
            (self.preprocessing.size in (None, tuple(size)), "preprocessing has another size than the images"),
            (len(self.split) in (0, len(Split.__annotations__)), "split is incomplete"),
        ):
            if not holds:
                raise ValueError(what)


def description_of(metadata: Mapping[str, Any]) -> Description:
    """A checkpoint's metadata with its epoch, checked; msgspec.ValidationError if no checkpoint has such metadata."""
    for value in _leaves(metadata):  # for these, msgspec raises other exceptions
        if isinstance(value, Tensor):
            raise msgspec.ValidationError("it holds a tensor")
        if isinstance(value, str) and unicode_text(value) != value:
            raise msgspec.ValidationError("it holds a text that is not Unicode")
    return msgspec.convert(metadata, Description)


def _leaves(value: Any) -> Iterator[Any]:
    """Every value in nested lists and dictionaries, and every key."""
    if isinstance(value, Mapping):
        value = [*value.keys(), *value.values()]
    if isinstance(value, list | tuple):
        for inner in value:
            yield from _leaves(inner)
    else:
        yield value
