"""Compares training steps here and in Keras, from the same weights and on the same batches.

    python benchmarks/keras_steps.py baseline --output docs/keras-steps.svg

Trains one epoch on MNIST, in single and in double precision; prints the largest differences and draws them.
"""

import argparse
import math
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from hydra import compose, initialize_config_dir
from keras_recipes import NETWORKS, RECIPES, keras
from torch import Tensor

from mnist_cnn.config import to_config
from mnist_cnn.data import datasets
from mnist_cnn.data.images import Preprocessing
from mnist_cnn.keras.weights import Variable, variables
from mnist_cnn.network import Network, build_network
from mnist_cnn.training.module import Classifier
from mnist_cnn.training.optimizers import build_optimizer

ROOT = Path(__file__).resolve().parents[1]
Batch = tuple[Tensor, Tensor]


class Step(NamedTuple):
    """One step of both, with the largest absolute differences of logits, gradients, and weights after the step."""

    loss: float
    keras_loss: float
    logits: float
    gradients: float
    weights: float

    @property
    def relative(self) -> float:
        """The difference of the losses, relative to Keras'."""
        return abs(self.loss - self.keras_loss) / abs(self.keras_loss)


def compare(name: str, batches: Iterable[Batch], dtype: torch.dtype = torch.float32) -> Iterator[Step]:
    """Train one of the five networks in both, from Keras' initial weights and without dropout."""
    with keras_precision(dtype):
        pair = Pair(name, dtype)
        for images, labels in batches:
            yield pair.step(images, labels)


class Pair:
    """A network here and in Keras with the same weights, and the optimiser of each."""

    def __init__(self, name: str, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.module, self.optimizer = our_module(name, dtype)
        self.keras = keras_network(name)
        self.layout = list(layout_of(self.module.network))
        self.state = self.module.network.state_dict(keep_vars=True)
        with torch.no_grad():
            for variable, weight in zip(self.layout, self.keras.weights, strict=True):
                self.state[variable.key].copy_(variable.to_torch(weight.value, self.state[variable.key]))
        self.loss_of = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        self.keras_optimizer = keras.optimizers.Adam()
        self.keras_optimizer.build(self.keras.trainable_variables)
        self._logits = torch.empty(0)
        self.module.network.register_forward_hook(self._keep)

    def step(self, images: Tensor, labels: Tensor) -> Step:
        """Train both on a batch of images (N, C, H, W) and labels (N,)."""
        images = images.to(self.dtype)
        self.optimizer.zero_grad()
        _, loss = self.module.logits_and_loss((images, labels))
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        gradients = [self.state[variable.key].grad for variable in self.layout]
        self.optimizer.step()

        theirs = self.keras
        theirs.zero_grad()
        keras_logits = theirs(images.permute(0, 2, 3, 1), training=True)
        keras_loss = self.loss_of(labels, keras_logits)
        keras_loss.backward()
        keras_gradients = [weight.value.grad for weight in theirs.trainable_weights]
        with torch.no_grad():  # what Keras' torch trainer does after backward()
            self.keras_optimizer.apply(keras_gradients, theirs.trainable_weights)
            pairs = zip(self.layout, gradients, keras_gradients, theirs.weights, strict=True)
            far = [
                (_far(v.to_keras(a), b), _far(v.to_keras(self.state[v.key]), w.value))
                for v, a, b, w in pairs
                if a is not None
            ]
            logits = _far(self._logits, keras_logits)
        return Step(
            float(loss.detach()), float(keras_loss.detach()), logits, max(g for g, _ in far), max(w for _, w in far)
        )

    @torch.inference_mode()
    def logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The logits of both, (N, classes) each."""
        parts = torch.split(images.to(self.dtype), 1000)
        ours = [self.module.network(part) for part in parts]
        theirs = [self.keras(part.permute(0, 2, 3, 1), training=False) for part in parts]
        return torch.cat(ours), torch.cat(theirs)

    def _keep(self, _module: object, _inputs: object, logits: Tensor) -> None:
        self._logits = logits.detach()


@contextmanager
def keras_precision(dtype: torch.dtype) -> Iterator[None]:
    """Make Keras compute in this precision throughout."""
    precision = str(dtype).removeprefix("torch.")
    table = keras.src.backend.common.dtypes.BIT64_TO_BIT32_DTYPE
    single = table["float64"]
    keras.config.set_floatx(precision)
    keras.config.set_dtype_policy(precision)
    table["float64"] = precision  # otherwise it multiplies matrices in single precision
    try:
        yield
    finally:
        table["float64"] = single
        keras.config.set_floatx("float32")
        keras.config.set_dtype_policy("float32")


def keras_network(name: str) -> keras.Sequential:
    """One of the five networks in Keras, with initial weights and without dropout, in Keras' current precision."""
    layers = [layer for layer in NETWORKS[name]() if not isinstance(layer, keras.layers.Dropout)]
    return keras.Sequential([keras.Input((28, 28, 1)), *layers])


def our_module(name: str, dtype: torch.dtype = torch.float32) -> tuple[Classifier, torch.optim.Optimizer]:
    """One of the five networks here, without dropout, and the default optimiser."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = to_config(compose("config", [f"model={name}"]))
    layers = [layer for layer in config.model.layers if "Dropout" not in layer]
    network = build_network(layers, (1, 28, 28), 10).to(dtype)
    return Classifier(network, config.optimizer, config.scheduler, {}), build_optimizer(
        config.optimizer, network.parameters()
    )


def batches_of(images: Tensor, labels: Tensor, size: int) -> list[Batch]:
    """All images once, in a random order; the last batch is smaller."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    scaled = Preprocessing()(images)
    return [(scaled[chosen], labels[chosen]) for chosen in torch.split(order, size)]


def layout_of(network: Network) -> Iterator[Variable]:
    """All weights, in Keras' order."""
    for index in range(len(network.nodes)):
        yield from variables(network, index)


def _far(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


def main() -> None:
    """Compare one epoch, print the largest differences and draw them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=NETWORKS)
    parser.add_argument("--data-root", default="data")
    parser.add_argument("--output", type=Path, help="draw a figure, .svg or .png")
    options = parser.parse_args()
    datasets.fetch("mnist", options.data_root, os.environ.get("MNIST_MIRROR"))
    train = datasets.load("mnist", options.data_root).train
    recipe = RECIPES[options.network]
    kept = math.floor(len(train) * (1 - recipe.val_fraction))
    batches = batches_of(train.images[:kept], train.labels[:kept], recipe.batch_size)
    found = {}
    print("precision  steps  largest relative difference of the loss   logits    gradients  weights")
    for dtype in (torch.float32, torch.float64):
        keras.utils.set_random_seed(0)
        steps = found[str(dtype).removeprefix("torch.")] = list(compare(options.network, batches, dtype))
        worst = [max(getattr(step, what) for step in steps) for what in ("relative", "logits", "gradients", "weights")]
        print(f"{dtype!s:<15}{len(steps)}  {worst[0]:>39.1e}  {worst[1]:>8.1e}  {worst[2]:>9.1e}  {worst[3]:>7.1e}")
        kept = next((index for index, step in enumerate(steps) if step.relative > 1e-5), len(steps))
        print(f"the loss agrees within 1e-5 for the first {kept} steps")
    if options.output:
        _draw(options.network, found, options.output)


def _draw(name: str, found: dict[str, list[Step]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure((7, 3.2), layout="constrained")
    axes = figure.subplots()
    for precision, steps in found.items():
        # A logarithmic axis has no zero; the smallest double stands for it.
        axes.semilogy(range(1, len(steps) + 1), [max(step.relative, 1e-17) for step in steps], lw=0.9, label=precision)
    axes.axhline(1e-5, color="grey", lw=0.8, ls="--")
    axes.set(
        xlabel="step", ylabel="relative difference", title=f"{name}: loss here and in Keras, from the same weights"
    )
    axes.legend()
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


if __name__ == "__main__":
    main()
