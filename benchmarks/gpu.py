"""Measures how many seconds a warm GPU trains for a test accuracy of 99.0, 99.5 and 99.6 %: the mean of 50 runs.

    python benchmarks/gpu.py --data-root data --output gpu.json

The images are on the GPU, the kernels compiled, and a whole training step is one CUDA graph; Lightning takes no part.
The clock runs from the first step to the end of the last, augmentation included. For each target the candidates are
tried in the order of their cost on validation images; the first whose mean over 5 seeds reaches the target is trained
50 times (seeds 100 to 149) on the same 54,000 images, and only these runs are tested.
"""

import argparse
import json
import math
import statistics
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from mnist_cnn.config import AugmentationConfig
from mnist_cnn.data import datasets
from mnist_cnn.data.augmentation import Augmentation
from mnist_cnn.data.images import Images
from mnist_cnn.network import Network, build_network

FEW, MANY = 5, 50  # seeds to choose by, and to report


def _block(filters: int, kernel: int = 3, strides: int = 1, padding: str = "same", pool: bool = False) -> list[Any]:
    convolution = {"filters": filters, "kernel_size": kernel, "strides": strides, "padding": padding, "use_bias": False}
    pooling = [{"MaxPooling2D": {"pool_size": 2}}] if pool else []
    return [{"Conv2D": convolution}, *pooling, {"BatchNormalization": {"momentum": 0.8}}, "ReLU"]


def _deep(width: int) -> list[Any]:
    """Three pairs of convolutions, each twice as wide as the one before."""
    return [
        *_block(width), *_block(width, pool=True), *_block(2 * width), *_block(2 * width, pool=True),
        *_block(4 * width, padding="valid"), *_block(4 * width, padding="valid"),
        "Flatten", {"Dropout": {"rate": 0.2}}, {"Dense": {"units": 10}},
    ]  # fmt: skip


_FAST = [*_block(16, 4, 2), *_block(32, pool=True), *_block(64), "Flatten", {"Dense": {"units": 10}}]
_WEAK = AugmentationConfig(rotation=7, shift=1, scale=0.07, shear=0.07)


class Candidate(NamedTuple):
    """A way to train."""

    layers: list[Any]
    epochs: int
    batch: int
    rate: float
    augmentation: AugmentationConfig


TARGETS = {
    99.0: [Candidate(_FAST, 1, batch, 2e-2, AugmentationConfig()) for batch in (512, 384, 256, 128)],
    99.5: [Candidate(_deep(width), n, 256, 1e-2, _WEAK) for width, n in ((16, 3), (16, 4), (16, 6), (24, 5), (16, 9))],
    99.6: [Candidate(_deep(width), n, 256, 1e-2, _WEAK) for width, n in ((16, 8), (24, 7), (24, 9), (32, 9), (32, 14))],
}


class Training:
    """A network, its optimiser and one captured training step, reused for every seed."""

    def __init__(self, candidate: Candidate, images: Images) -> None:
        self.candidate, self.device = candidate, images.images.device
        self.images, self.labels = images.images, images.labels
        self.steps = len(images) // candidate.batch  # an incomplete last batch is left out
        self.network = self._fresh(0)
        kernels = [weight for weight in self.network.parameters() if weight.dim() > 1]
        others = [weight for weight in self.network.parameters() if weight.dim() < 2]
        self.rate = torch.zeros((), device=self.device)
        on_gpu = self.device.type == "cuda"
        self.optimizer = torch.optim.AdamW(
            [{"params": kernels, "weight_decay": 0.02}, {"params": others, "weight_decay": 0.0}],
            lr=self.rate, betas=(0.9, 0.99), fused=on_gpu, capturable=on_gpu,
        )  # fmt: skip
        self.rates = self._rates().to(self.device)
        self.count = torch.zeros(1, dtype=torch.int64, device=self.device)  # steps taken
        self.order = torch.zeros(candidate.epochs * self.steps, candidate.batch, dtype=torch.int64, device=self.device)
        self.varied = torch.zeros(images.images.shape, device=self.device)
        self.graph = self._capture() if on_gpu else None

    def run(self, seed: int) -> float:
        """Train with a seed; returns the seconds from the first step to the end of the last."""
        self._reset(seed)
        augment = Augmentation(self.candidate.augmentation, seed, len(self.labels), (28, 28))
        self._wait()
        start = time.perf_counter()
        for epoch in range(self.candidate.epochs):
            order = torch.randperm(len(self.labels), device=self.device)[: self.steps * self.candidate.batch]
            self.order[epoch * self.steps : (epoch + 1) * self.steps] = order.view(self.steps, -1)
            if self.candidate.augmentation:
                augment.start_epoch(epoch, self.device)
                torch.div(
                    augment(self.images, torch.arange(len(self.labels), device=self.device)), 255, out=self.varied
                )
            elif not epoch:
                torch.div(self.images, 255, out=self.varied)
            for _ in range(self.steps):
                self.graph.replay() if self.graph else self._step()
        self._wait()
        return time.perf_counter() - start

    @torch.no_grad()
    def accuracy(self, images: Images) -> float:
        """The share of correctly classified images, in %."""
        self.network.eval()
        correct = 0
        for start in range(0, len(images), 1000):
            part = slice(start, start + 1000)
            answers = self._logits(images.images[part].float() / 255).argmax(1)
            correct += int((answers == images.labels[part]).sum())
        self.network.train()
        return 100 * correct / len(images)

    def _logits(self, images: Tensor) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, cache_enabled=False):
            logits: Tensor = self.network(images.contiguous(memory_format=torch.channels_last))
        return logits.float()

    def _step(self) -> None:
        indices = self.order.index_select(0, self.count)[0]
        self.rate.copy_(self.rates.index_select(0, self.count)[0])
        self.optimizer.zero_grad()
        logits = self._logits(self.varied.index_select(0, indices))
        F.cross_entropy(logits, self.labels.index_select(0, indices), label_smoothing=0.05).backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.count += 1

    def _capture(self) -> torch.cuda.CUDAGraph:
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        with torch.cuda.stream(stream):
            for _ in range(3):  # so that everything is compiled, chosen and allocated
                self._step()
        torch.cuda.current_stream().wait_stream(stream)
        self.count.zero_()
        self.optimizer.zero_grad()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._step()
        return graph

    def _rates(self) -> Tensor:
        """The learning rate of each step: up in a quarter of the steps, then down to nothing along half a cosine."""
        total = self.candidate.epochs * self.steps
        up = max(total // 4, 1)
        return self.candidate.rate * torch.tensor(
            [
                step / up if step < up else (1 + math.cos(math.pi * (step - up) / (total - up))) / 2
                for step in range(total)
            ]
        )

    def _fresh(self, seed: int) -> Network:
        torch.manual_seed(seed)
        network = build_network(self.candidate.layers, (1, 28, 28), 10)
        return network.to(self.device).to(memory_format=torch.channels_last).train()

    @torch.no_grad()
    def _reset(self, seed: int) -> None:
        fresh = self._fresh(seed)
        for mine, new in zip(
            [*self.network.parameters(), *self.network.buffers()], [*fresh.parameters(), *fresh.buffers()], strict=True
        ):
            mine.copy_(new)
        for state in self.optimizer.state.values():
            for value in state.values():
                value.zero_()
        self.count.zero_()

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def measure(target: float, train: Images, val: Images, test: Images, few: int, many: int) -> dict[str, Any]:
    """Seconds and test accuracy of the first candidate that reaches the target on validation images, or of the last."""
    tried: list[dict[str, Any]] = []
    for candidate in TARGETS[target]:
        training = Training(candidate, train)
        training.run(0)  # warms up
        seconds, vals = zip(*((training.run(seed), training.accuracy(val)) for seed in range(few)), strict=True)
        width = candidate.layers[0]["Conv2D"]["filters"]
        tried.append(
            {"first filters": width, "epochs": candidate.epochs, "batch": candidate.batch,
             "val": statistics.mean(vals), "seconds": statistics.mean(seconds)}
        )  # fmt: skip
        print(target, tried[-1], file=sys.stderr, flush=True)
        if statistics.mean(vals) >= target:
            break
    runs = [(training.run(seed), training.accuracy(test)) for seed in range(100, 100 + many)]
    seconds, tests = zip(*runs, strict=True)
    return {
        "target": target,
        "parameters": sum(weight.numel() for weight in training.network.parameters()),
        "seconds": statistics.mean(seconds),
        "seconds std": statistics.stdev(seconds),
        "test": statistics.mean(tests),
        "test std": statistics.stdev(tests),
        "n": many,
        "tried": tried,
    }


def main() -> None:
    """Read the arguments, measure and print one JSON object per target."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", default="data")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--runs", type=int, default=MANY, help="at least 2")
    parser.add_argument("--images", type=int, default=54_000, help="training images, fewer to try the script out")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    mnist = datasets.load("mnist", options.data_root)
    train = mnist.train.subset(torch.arange(options.images)).to(device)
    val, test = mnist.train.subset(torch.arange(54_000, 60_000)).to(device), mnist.test.to(device)
    found = []
    for target in TARGETS:
        found.append(measure(target, train, val, test, min(FEW, options.runs), options.runs))
        print(json.dumps(found[-1]), flush=True)
        if options.output:
            options.output.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
