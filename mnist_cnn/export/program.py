"""A trained network as one program, from pixels to probabilities, which is converted to each format."""

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from mnist_cnn.data.sources import SOURCES
from mnist_cnn.errors import UserError, flat, one_line
from mnist_cnn.inference.checkpoint import TrainedNetwork
from mnist_cnn.inference.pictures.prepare import MNIST_SIZE
from mnist_cnn.network.registry import MERGES

INPUT, OUTPUT = "images", "probabilities"

Result = TypeVar("Result")


class Program(nn.Module):
    """uint8 images (N, H, W), or (N, H, W, C) in colour → probabilities (N, classes); it scales and resizes itself."""

    def __init__(self, trained: TrainedNetwork) -> None:
        super().__init__()
        # torch.export.save warns of weights in another layout than torch's own, which a checkpoint's are loaded into.
        self.network = copy.deepcopy(trained.network).to(memory_format=torch.contiguous_format)
        self.preprocessing = trained.preprocessing

    def forward(self, images: Tensor) -> Tensor:
        pixels = images.unsqueeze(1) if images.dim() == 3 else images.permute(0, 3, 1, 2)
        # Not the network's `forward`, whose shortcuts hold for torch on this kind of processor only.
        *_, logits = self.network.outputs(self.preprocessing(pixels))
        return logits.softmax(1)


def image_shape(trained: TrainedNetwork) -> tuple[int, int, int]:
    """(C, H, W) of the images that the program takes: the network's, or before they are resized for it."""
    channels, height, width = trained.network.input_shape
    if trained.preprocessing.size is None:
        return channels, height, width
    return SOURCES[trained.dataset].image_shape if trained.dataset in SOURCES else (channels, *MNIST_SIZE)


def as_input(images: Tensor) -> Tensor:
    """Images (N, C, H, W) as the program takes them: (N, H, W) in grey, else (N, H, W, C)."""
    return images[:, 0] if images.shape[1] == 1 else images.permute(0, 2, 3, 1).contiguous()


def converted(trained: TrainedNetwork, convert: Callable[[ExportedProgram], Result]) -> Result:
    """The program in another format; UserError that names the layer that can't be converted.

    All layers of this package can. One of a user's own may compute what torch can't trace, or what a format lacks.
    """
    with quiet():
        return _converted(trained, convert)


@contextmanager
def quiet() -> Iterator[None]:
    """Leave out torch's warnings of its own code, which differ from version to version."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _converted(trained: TrainedNetwork, convert: Callable[[ExportedProgram], Result]) -> Result:
    example = as_input(torch.zeros(2, *image_shape(trained), dtype=torch.uint8))
    try:
        return convert(_traced(Program(trained), example))
    except Exception as error:  # torch documents no common class of what may go wrong
        shapes = [trained.network.input_shape, *(node.output_shape for node in trained.network.nodes)]
        for index, node in enumerate(trained.network.nodes):
            if node.parts and node.kind not in MERGES:
                layer = nn.Sequential(*map(trained.network.get_submodule, node.parts))
                try:
                    convert(_traced(layer.eval(), torch.zeros(2, *shapes[node.sources[0]])))
                except Exception as reason:
                    raise _refused(f"layer {index} ({node.kind})", reason) from reason
        raise _refused(one_line(trained.model), error) from error


def _traced(module: nn.Module, example: Tensor) -> ExportedProgram:
    """The module for any number of images. Its trace names no file of this machine, as torch's own does."""
    program = torch.export.export(module.eval(), (example,), dynamic_shapes=({0: Dim("N")},))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    return program


def _refused(what: str, reason: BaseException) -> UserError:
    while reason.__cause__ is not None:  # the exporter wraps what happened in advice to its own developers
        reason = reason.__cause__
    return UserError(f"{what}: it can't be exported: {one_line(flat(reason), 200)}")
