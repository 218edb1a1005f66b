"""The registry of layers: for each name that a list of layers may use, the function that builds it.

A layer is added by one function with `@layer("Name")`: it takes the shape of the layer's input and returns a Layer, and
the rest of its signature is the list of the layer's arguments. It raises ConfigError for a value that an argument can't
have; the builder adds which layer, and checks by the signature which arguments there are and that every `bool` is one.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from torch import nn

from mnist_cnn.network.arguments import Shape

# Larger kernels and outputs are refused: they are a slip or an attack, not a network for small images.
MAX_VALUES = 2**26


@dataclass(frozen=True)
class Layer:
    """A built layer: its modules in order, the shape of its output, and the formula of its number of parameters.

    A module's key, behind the layer's position, is its name in the network and in the state_dict of every checkpoint
    (`0_Conv2D.weight`), so a key must never change. `keras/weights.py` lists the weights to import and export by the
    same keys.
    """

    modules: Mapping[str, nn.Module]
    output_shape: Shape
    formula: str = ""

    @property
    def parameter_count(self) -> int:
        """As Keras counts: with the moving averages of BatchNormalization."""
        return sum(t.numel() for module in self.modules.values() for t in (*module.parameters(), *module.buffers()))


Builder = TypeVar("Builder", bound=Callable[..., Layer])

LAYERS: dict[str, Callable[..., Layer]] = {}
MERGES: dict[str, Callable[..., Layer]] = {}  # layers with several inputs: their functions take a list of shapes


def layer(name: str) -> Callable[[Builder], Builder]:
    """Register a function as the builder of the layer `name`; ValueError if there is one already."""

    def register(build: Builder) -> Builder:
        if name in LAYERS:
            raise ValueError(f"a layer called {name} is registered already")
        LAYERS[name] = build
        return build

    return register


def parameters_of(name: str) -> dict[str, inspect.Parameter]:
    """The arguments that a layer takes, as its builder's signature has them."""
    parameters = inspect.signature(LAYERS.get(name) or MERGES[name], eval_str=True).parameters
    return dict(list(parameters.items())[1:])
