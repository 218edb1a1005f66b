"""Whom is ours compared with in speed? Each of them trains one network in a process of its own, started by `speed.py`.

    python benchmarks/speed_contenders.py loop --model baseline --epochs 3 --data-root data

Each does the same work: the same layers, the same training and validation images, batch size and epochs, Keras' Adam or
the nearest that it has, loss and accuracy of both parts after every epoch, and a checkpoint. At the end of an epoch it
prints a line, and `speed.py` takes the time from line to line:

    epoch 2 0.9871          the number of the epoch, and the accuracy on the validation images
"""

import argparse
import gzip
import hashlib
import math
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

# Images validated at once, by each of them.
VALIDATION_BATCH = 250


class Task(NamedTuple):
    """What is to be trained."""

    model: str
    epochs: int
    batch_size: int
    val_fraction: float
    data_root: Path
    device: str
    precision: str
    jit: bool


# --- Keras on TensorFlow ------------------------------------------------------------------------------------------


def keras(task: Task) -> None:
    """Keras' own `fit` on its TensorFlow backend, with the arrays in memory and the best epoch's weights saved.

    Left to itself, Keras 3.15 compiles with XLA where there is a GPU, and never on a CPU; `task.jit` makes it.
    """
    os.environ.update(KERAS_BACKEND="tensorflow", TF_CPP_MIN_LOG_LEVEL="3")
    if task.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    import keras as k  # before keras_recipes, which would choose another backend
    import numpy as np
    import tensorflow
    from keras_recipes import compiled

    if task.device == "cuda" and not tensorflow.config.list_physical_devices("GPU"):
        raise SystemExit("this TensorFlow finds no GPU; leave keras out: --contenders ours ours-bf16 loop lightning")

    pixels = np.frombuffer(_read(task.data_root, "train-images-idx3-ubyte"), np.uint8, offset=16)
    images = pixels.reshape(-1, 28, 28, 1).astype("float32") / 255
    labels = np.frombuffer(_read(task.data_root, "train-labels-idx1-ubyte"), np.uint8, offset=8)
    if task.precision == "bf16-mixed":
        k.mixed_precision.set_global_policy("mixed_bfloat16")

    class Lines(k.callbacks.Callback):  # type: ignore[misc]  # Keras has no types
        def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
            say(epoch + 1, logs["val_accuracy"])

    with tempfile.TemporaryDirectory() as folder:
        keep = k.callbacks.ModelCheckpoint(f"{folder}/best.keras", monitor="val_accuracy", save_best_only=True)
        network = compiled(task.model)
        if task.jit:
            network.jit_compile = True
        network.fit(
            images, labels,
            batch_size=task.batch_size, epochs=task.epochs, validation_split=task.val_fraction,
            validation_batch_size=VALIDATION_BATCH, callbacks=[Lines(), keep], verbose=0,
        )  # fmt: skip


# --- PyTorch by hand ----------------------------------------------------------------------------------------------


def loop(task: Task) -> None:
    """A loop in plain PyTorch that trains the network of ours to the same weights, without Lightning.

    Dropout draws the same random numbers.
    """
    import mnist_cnn  # noqa: F401, I001  # before torch: it bounds how long OpenMP's threads spin
    import torch
    from torch.nn import functional as F

    from mnist_cnn import machine
    from mnist_cnn.data import datasets
    from mnist_cnn.data.split import split_indices
    from mnist_cnn.network import build_network
    from mnist_cnn.training.optimizers import KerasAdam

    machine.keep_freed_memory()
    if task.device == "cuda":  # as ours does, or the last bits differ
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)  # noqa: B010
    torch.manual_seed(0)
    network = build_network(layers_of(task.model), (1, 28, 28), 10)
    network.to(task.device).to(memory_format=torch.channels_last)
    machine.use_threads(3 * network.operations * task.batch_size)
    optimizer = KerasAdam(network.parameters(), 1e-3, (0.9, 0.999), 1e-7, fused=True)

    mnist = datasets.load("mnist", task.data_root).train
    parts = split_indices(mnist.labels, task.val_fraction, "last", 0)
    (x, y), (val_x, val_y) = (
        (mnist.images[part].to(task.device), mnist.labels[part].to(task.device)) for part in parts
    )
    mixed = torch.autocast(task.device, torch.bfloat16, enabled=task.precision == "bf16-mixed")
    # The two chains of random numbers that ours has: the order of the images, and dropout.
    order = torch.Generator()
    with tempfile.TemporaryDirectory() as folder:
        for epoch in range(task.epochs):
            torch.manual_seed(epoch * 1009)
            order.manual_seed(epoch)
            loss_sum, right = torch.zeros((), device=task.device), torch.zeros((), device=task.device)
            network.train()
            for chosen in torch.randperm(len(y), generator=order).to(task.device).split(task.batch_size):  # type: ignore[no-untyped-call]
                images, labels = x.index_select(0, chosen).float().div_(255), y.index_select(0, chosen)
                optimizer.zero_grad()
                with mixed:
                    logits = network(images)
                    loss = F.cross_entropy(logits, labels)
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                loss_sum += loss.detach() * len(labels)
                right += (logits.detach().argmax(1) == labels).sum()
            network.eval()
            val_loss, val_right = torch.zeros((), device=task.device), torch.zeros((), device=task.device)
            with torch.inference_mode(), mixed:
                for images, labels in zip(
                    *(torch.split(part, VALIDATION_BATCH) for part in (val_x, val_y)), strict=True
                ):
                    logits = network(images.float().div_(255))
                    val_loss += F.cross_entropy(logits, labels, reduction="sum")
                    val_right += (logits.argmax(1) == labels).sum()
            float(loss_sum), float(right), float(val_loss)
            torch.save({"network": network.state_dict(), "optimizer": optimizer.state_dict()}, f"{folder}/last.ckpt")
            say(epoch + 1, float(val_right) / len(val_y))
    _say_weights(network)


def weights(file: Path) -> None:
    """The line about weights that `loop` ends with, for a checkpoint of ours."""
    from mnist_cnn.inference import checkpoint

    _say_weights(checkpoint.load(file).network)


def _say_weights(network: Any) -> None:
    digest = hashlib.sha256()
    for weight in network.parameters():
        digest.update(weight.detach().cpu().contiguous().numpy().tobytes())
    print(f"weights {digest.hexdigest()[:16]}", flush=True)


def layers_of(name: str) -> Any:
    """The list of layers of a published network, as `conf/model` has it."""
    from omegaconf import OmegaConf

    file = Path(__file__).resolve().parents[1] / "conf" / "model" / f"{name}.yaml"
    return OmegaConf.to_container(OmegaConf.load(file))["layers"]  # type: ignore[call-overload,index]


# --- Lightning, as it is usually written --------------------------------------------------------------------------


def lightning(task: Task) -> None:
    """torchvision's data set with a transform for every picture, DataLoader, `self.log` in every step, a bar.

    The network has ReLU before its pooling. No worker processes: on two cores they are slower.
    """
    import lightning.pytorch as pl
    import torch
    from torch import Tensor
    from torch.nn import functional as F
    from torch.utils.data import DataLoader, Subset
    from torchmetrics.classification import MulticlassAccuracy
    from torchvision import transforms
    from torchvision.datasets import MNIST

    class Model(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = hand_built(task.model)
            self.accuracy, self.val_accuracy = (MulticlassAccuracy(10, average="micro") for _ in range(2))

        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            logits = self.network(batch[0])
            loss = F.cross_entropy(logits, batch[1])
            self.accuracy(logits, batch[1])
            self.log("train_loss", loss, prog_bar=True)
            self.log("train_acc", self.accuracy, on_step=False, on_epoch=True, prog_bar=True)
            return loss

        def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
            logits = self.network(batch[0])
            self.val_accuracy(logits, batch[1])
            self.log("val_loss", F.cross_entropy(logits, batch[1]), prog_bar=True)
            self.log("val_acc", self.val_accuracy, prog_bar=True)

        def on_train_epoch_end(self) -> None:
            say(self.current_epoch + 1, float(self.trainer.callback_metrics["val_acc"]))

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), lr=1e-3)

    with tempfile.TemporaryDirectory() as folder:
        for part in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
            name = f"{part}-ubyte"  # torchvision wants them unpacked
            raw = Path(folder) / "MNIST" / "raw" / name
            raw.parent.mkdir(parents=True, exist_ok=True)
            raw.write_bytes(_read(task.data_root, name))
        mnist = MNIST(folder, train=True, transform=transforms.ToTensor())
        first = math.ceil(len(mnist) * (1 - task.val_fraction))
        train, val = Subset(mnist, range(first)), Subset(mnist, range(first, len(mnist)))
        accelerator = "cpu" if task.device == "cpu" else "gpu"
        trainer = pl.Trainer(max_epochs=task.epochs, accelerator=accelerator, devices=1, default_root_dir=folder)
        trainer.fit(
            Model(), DataLoader(train, task.batch_size, shuffle=True, num_workers=0), DataLoader(val, VALIDATION_BATCH)
        )


def hand_built(name: str) -> Any:
    """A published network out of torch's modules as people usually write it.

    ReLU comes before the pooling, where ours computes it after; the first weights are those that ours draws.
    """
    from torch import nn

    from mnist_cnn.network import build_network
    from mnist_cnn.network.layers.modules import Flatten

    ours = build_network(layers_of(name), (1, 28, 28), 10)

    def convolution(channels: int, filters: int, size: int) -> list[nn.Module]:
        return [nn.Conv2d(channels, filters, size), nn.ReLU()]

    def dense(features: int, units: int) -> list[nn.Module]:
        return [nn.Linear(features, units), nn.ReLU()]

    modules: dict[str, list[nn.Module]] = {
        "baseline": [
            *convolution(1, 32, 3), nn.MaxPool2d(2), *convolution(32, 64, 3), nn.MaxPool2d(2),
            Flatten(), *dense(1600, 128), nn.Linear(128, 10),
        ],
        "tiny": [
            nn.ZeroPad2d((1, 2, 1, 2)), *convolution(1, 8, 4), nn.MaxPool2d(2), *convolution(8, 16, 4), nn.MaxPool2d(2),
            Flatten(), *dense(400, 10), nn.Linear(10, 10),
        ],
        "deep": [
            *convolution(1, 32, 3), nn.MaxPool2d(2), *convolution(32, 64, 3), nn.MaxPool2d(2), *convolution(64, 64, 3),
            Flatten(), *dense(576, 64), nn.Linear(64, 10),
        ],
        "dropout": [
            *convolution(1, 32, 3), *convolution(32, 64, 3), nn.MaxPool2d(2), nn.Dropout(0.25),
            Flatten(), *dense(9216, 128), nn.Dropout(0.5), nn.Linear(128, 10),
        ],
        "mlp": [Flatten(), *dense(784, 50), *dense(50, 50), nn.Linear(50, 10)],
    }  # fmt: skip
    network = nn.Sequential(*modules[name])
    for mine, theirs in zip(network.parameters(), ours.parameters(), strict=True):
        mine.data.copy_(theirs.data)
    return network


# --- the roofline ---------------------------------------------------------------------------------------------------


def peak(task: Task) -> None:
    """The rates of large products and of a convolution, in GFLOP/s: what a step could reach if it were nothing else.

    Several, because none is the best everywhere: in float32 on an AMD EPYC, oneDNN reaches twice the rate of MKL, which
    torch's own matrix product uses there.
    """
    import torch
    from torch.nn import functional as F

    from mnist_cnn import machine

    machine.keep_freed_memory()
    size, images = (1024, 128) if task.device == "cpu" else (8192, 1024)

    def measure(kind: str) -> None:
        to = {"device": task.device, "dtype": getattr(torch, kind)}
        a, b = torch.rand(size, size, **to), torch.rand(size, size, **to)
        x, weight = (
            torch.rand(*shape, **to).to(memory_format=torch.channels_last)
            for shape in ((images, 64, 28, 28), (64, 64, 3, 3))
        )
        computed: dict[str, tuple[float, Callable[[], torch.Tensor]]] = {
            "matrix product": (2 * size**3, lambda: a @ b),
            "3×3 convolution": (2 * x.numel() * weight[0].numel(), lambda: F.conv2d(x, weight, padding=1)),
        }
        if task.device == "cpu" and hasattr(torch.ops.mkldnn, "_linear_pointwise"):
            linear = torch.ops.mkldnn._linear_pointwise
            computed["oneDNN's matrix product"] = (2 * size**3, lambda: linear(a, b, None, "none", [], ""))
        for name, (operations, compute) in computed.items():
            best, end = math.inf, time.perf_counter() + 1
            while (start := time.perf_counter()) < end:
                compute().flatten()[0].item()  # waits for a GPU too
                best = min(best, time.perf_counter() - start)
            print(f"peak {operations / best / 1e9:.1f} {kind} {name}", flush=True)

    with torch.inference_mode():
        for kind in ("float32", "bfloat16"):
            measure(kind)
    print(f"peak {_operations(task.model)} operations", flush=True)


def _operations(name: str) -> int:
    """How many floating-point operations ours computes for an image, without the pixels that it cuts off."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from mnist_cnn.network import build_network

    network = build_network(layers_of(name), (1, 28, 28), 10)
    # The counter does not know convolutions in oneDNN's layout.
    with torch.backends.mkldnn.flags(enabled=False), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 1, 28, 28))
    return int(counter.get_total_flops())


def _read(root: Path, name: str) -> bytes:
    packed = root / "MNIST" / "raw" / f"{name}.gz"
    return gzip.decompress(packed.read_bytes()) if packed.exists() else packed.with_suffix("").read_bytes()


def fetch(task: Task) -> None:
    """MNIST's files, if they are not there yet."""
    from mnist_cnn.data import datasets

    datasets.fetch("mnist", task.data_root, os.environ.get("MNIST_MIRROR"))


def say(epoch: int, val_accuracy: float) -> None:
    """The line that `speed.py` waits for."""
    print(f"epoch {epoch} {val_accuracy:.4f}", flush=True)


CONTENDERS: dict[str, Callable[[Task], None]] = {
    "keras": keras, "loop": loop, "lightning": lightning, "peak": peak, "fetch": fetch,
}  # fmt: skip


def main() -> None:
    """Train, as the command line says."""
    parser = argparse.ArgumentParser(description="One contender of speed.py.")
    parser.add_argument("contender", choices=[*CONTENDERS, "weights"])
    parser.add_argument("--checkpoint", type=Path, help="whose weights")
    parser.add_argument("--model", default="baseline")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--val-fraction", type=float, default=0.1)
    parser.add_argument("--data-root", type=Path, default=Path("data"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="32-true")
    parser.add_argument("--jit", action="store_true", help="compile with XLA; Keras only")
    options = vars(parser.parse_args())
    contender, file = options.pop("contender"), options.pop("checkpoint")
    if contender == "weights":
        weights(file)
    else:
        CONTENDERS[contender](Task(**options))


if __name__ == "__main__":
    main()
