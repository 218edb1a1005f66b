"""Do several processes train the network that one process trains, however they are started?

    python benchmarks/ddp.py                                      on the bundled digits, a minute
    python benchmarks/ddp.py --data-root data --model tiny        on MNIST

Each way of starting trains with the same global batch: two processes with half of it each. The table has the results,
the largest difference of a weight from that of one process, whether the processes together have seen every training
and validation image once an epoch, and how many of them have written files. The ways with two machines are two network
namespaces of Linux, joined by a cable (`veth`); they need root, and srun a SLURM cluster. What is missing is left out.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback

from mnist_cnn.data.datamodule import Batch
from mnist_cnn.training.module import Classifier

ADDRESSES = {"mnist-cnn-a": "10.213.0.1", "mnist-cnn-b": "10.213.0.2"}  # of the two machines, by their namespaces
PORT = 29713
TIMEOUT = 600  # seconds for one way of starting


class Seen(Callback):
    """Counts how often this process sees each image in the first epoch, and leaves the counts in $SEEN."""

    def __init__(self) -> None:
        self.train, self.val = Counter[str](), Counter[str]()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, Classifier)
        if trainer.current_epoch == 0 and pl_module._weight(batch_idx):  # 0: an image that counts for nothing
            self.train.update(_digests(batch))

    def on_validation_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Batch, *_: Any) -> None:
        if trainer.current_epoch == 0:
            self.val.update(_digests(batch))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        file = Path(os.environ["SEEN"]) / f"{trainer.global_rank}.json"
        file.write_text(json.dumps([self.train, self.val]))


def _digests(batch: Batch) -> list[str]:
    return [sha256(image.numpy().tobytes()).hexdigest() for image in batch[0].cpu()]


@contextmanager
def two_machines() -> Iterator[None]:
    """Two network namespaces, with a cable between them."""
    (first, _), (second, _) = ADDRESSES.items()
    commands = [
        f"ip netns add {first}",
        f"ip netns add {second}",
        f"ip link add cable netns {first} type veth peer name cable netns {second}",
    ]
    for name, address in ADDRESSES.items():
        commands += [f"ip -n {name} address add {address}/24 dev cable"]
        commands += [f"ip -n {name} link set {device} up" for device in ("cable", "lo")]
    try:
        for command in commands:
            subprocess.run(command.split(), check=True)
        yield
    finally:
        for name in ADDRESSES:
            subprocess.run(["ip", "netns", "delete", name], check=False)


def ways(settings: Sequence[str], size: int) -> dict[str, list[list[str]]]:
    """The commands of each way of starting, one for each machine."""
    one, several = ["trainer=cpu", f"data.batch_size={size}"], ["trainer=ddp", "trainer.accelerator=cpu"]
    several = [*settings, *several, f"data.batch_size={size // 2}"]
    train = [sys.executable, "train.py"]
    torchrun = [sys.executable, "-m", "torch.distributed.run"]
    found = {
        "one process": [[*train, *settings, *one]],
        "trainer=ddp trainer.devices=2": [[*train, *several, "trainer.devices=2"]],
        "torchrun --nproc-per-node 2": [[*torchrun, "--nproc-per-node", "2", "train.py", *several]],
    }
    if shutil.which("srun") and subprocess.run(["sinfo"], capture_output=True, check=False).returncode == 0:
        found["srun -n 2"] = [["srun", "-n", "2", *train, *several]]
    if shutil.which("ip") and os.geteuid() == 0:
        by_torchrun, by_hand, meeting = [], [], next(iter(ADDRESSES.values()))
        for rank, name in enumerate(ADDRESSES):
            inside = ["ip", "netns", "exec", name, "env", "GLOO_SOCKET_IFNAME=cable"]
            options = ["--nnodes", "2", "--node-rank", str(rank), "--nproc-per-node", "1"]
            options += ["--master-addr", meeting, "--master-port", str(PORT)]
            by_torchrun.append([*inside, *torchrun, *options, "train.py", *several])
            variables = [f"MASTER_ADDR={meeting}", f"MASTER_PORT={PORT}", f"NODE_RANK={rank}"]
            by_hand.append([*inside, *variables, *train, *several, "trainer.devices=1", "+trainer.num_nodes=2"])
        found |= {"two machines, torchrun --nnodes 2": by_torchrun, "two machines, NODE_RANK=0 and 1": by_hand}
    return found


def run(commands: Sequence[Sequence[str]], folder: Path) -> str:
    """Run the commands at the same time; returns everything they print. SystemExit if one fails."""
    (folder / "seen").mkdir(parents=True)
    added = ["+callbacks.seen._target_=ddp.Seen", f"run_dir={folder / 'run'}"]
    search = os.pathsep.join([str(Path.cwd()), str(Path(__file__).parent)])
    environment = {**os.environ, "SEEN": str(folder / "seen"), "OMP_NUM_THREADS": "1", "PYTHONPATH": search}
    processes = [
        subprocess.Popen(
            [*command, *added], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for command in commands
    ]
    said = "".join(process.communicate(timeout=TIMEOUT)[0] for process in processes)
    if any(process.returncode for process in processes):
        sys.exit(f"{said[-4000:]}\nfailed: {commands}")
    return said


def row(name: str, said: str, folder: Path, alone: Path) -> list[str]:
    """The cells of the table for one way of starting."""
    found = json.loads((folder / "run" / "metrics.json").read_text())
    weights, others = (_weights(path / "run" / "checkpoints" / "last.ckpt") for path in (folder, alone))
    difference = max(float((weights[key] - others[key]).abs().max()) for key in others)
    seen, wanted = (
        [
            sum((Counter(json.loads(file.read_text())[stage]) for file in path.glob("seen/*")), Counter())
            for stage in (0, 1)
        ]
        for path in (folder, alone)
    )
    return [
        name,
        *(f"{found[key]:.2%}" if key.endswith("accuracy") else f"{found[key]:.6f}"
          for key in ("val/accuracy", "val/loss", "test/accuracy", "test/loss")),
        f"{difference:.1e}",
        "yes" if seen == wanted else f"NO: {seen[0].total()} and {seen[1].total()}",
        str(len(list(folder.glob("seen/*")))),
        str(said.count("run folder")),
    ]  # fmt: skip


def _weights(file: Path) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = torch.load(file, weights_only=True)["state_dict"]
    return weights


def main() -> None:
    """Try all ways, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", help="the folder with MNIST (default: the bundled digits)")
    parser.add_argument("--model", default="mlp")
    parser.add_argument("--batch-size", type=int, default=32, help="of all processes together")
    parser.add_argument("--epochs", type=int, default=2)
    options = parser.parse_args()
    data = ["data=mnist", f"data.root={options.data_root}"] if options.data_root else ["data=digits"]
    settings = [f"model={options.model}", *data, f"trainer.max_epochs={options.epochs}"]
    heads = ["started by", "val accuracy", "val loss", "test accuracy", "test loss", "weights differ by",
             "same images", "processes", "reports"]  # fmt: skip
    print(f"| {' | '.join(heads)} |\n|---{'|---:' * (len(heads) - 1)}|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        alone = Path(folder, "0")
        for number, (name, commands) in enumerate(ways(settings, options.batch_size).items()):
            here = Path(folder, str(number))
            if len(commands) > 1:
                with two_machines():
                    said = run(commands, here)
            else:
                said = run(commands, here)
            print(f"| {' | '.join(row(name, said, here, alone))} |", flush=True)


if __name__ == "__main__":
    main()
