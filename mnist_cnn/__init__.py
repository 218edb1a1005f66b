"""Small networks for MNIST in PyTorch Lightning: train, evaluate, use and export them."""

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mnist_cnn.api.model import load
    from mnist_cnn.api.train import train

__all__ = ["load", "train"]

__version__ = "0.1.0"

# An OpenMP thread that waits for work first spins, which keeps its core from other programs. Measured on two cores, one
# of them busy with something else: by default, a run takes up to 50 times as long as alone; with 10,000 spins, 3.5
# times; with 2,000, 2.3 times. 1,000 would bring that to 1.8 times, but `baseline` alone would take 6 % longer. libgomp
# reads the variable when torch is imported.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")


@contextmanager
def quick_imports() -> Iterator[None]:
    """Import large libraries in a `with` block, without garbage collection.

    Importing Lightning makes 700,000 objects that stay. The collector would search them again and again, which takes a
    quarter of the time, and once more when the program ends, for a second. From now on, it leaves them out.
    """
    modules, is_on = len(sys.modules), gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if is_on:
            gc.enable()
    if len(sys.modules) > modules:  # or, in a sweep, the garbage of the run before would be kept
        gc.freeze()


def __getattr__(name: str) -> Any:
    """Import the Python interface when it is used: importing torch takes a second."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(f"{__name__}.api.{'model' if name == 'load' else 'train'}")
    return getattr(module, name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
