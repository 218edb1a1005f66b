"""What does each part of the fast path bring, and what did not pay?

    python benchmarks/parts.py            about ten minutes on two cores

A training step of `baseline` (batches of 128) and of `tiny` (32) as ours takes it, then with one part taken away or
something added. Each is timed in a process of its own, on made-up images; they take turns, and medians are compared.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from itertools import cycle

from speed import ROOT

BATCH = {"baseline": 128, "tiny": 32}

# name in the table: (what is switched on or off, environment)
VARIANTS: dict[str, tuple[str, dict[str, str]]] = {
    "as ours": ("", {}),
    "unused pixels computed too": ("uncut", {}),
    "torch's layout instead of oneDNN's": ("unblocked", {}),
    "both: layer by layer": ("uncut,unblocked", {}),
    "layer by layer, weights not channels-last": ("uncut,unblocked,contiguous", {}),
    "layer by layer, ReLU before its pooling": ("relu-first", {}),
    "optimiser not fused": ("unfused", {}),
    "memory given back to the kernel": ("give-back", {}),
    "deterministic mode fills new memory": ("fill", {}),
    "one thread": ("one-thread", {}),
    "one gather and scaling for each batch": ("single-gather", {}),
    "bf16-mixed": ("bf16", {}),
    "bf16-mixed, layer by layer": ("bf16,uncut,unblocked", {}),
    "with huge pages (THP_MEM_ALLOC_ENABLE=1)": ("", {"THP_MEM_ALLOC_ENABLE": "1"}),
    "with torch.compile": ("compile", {}),
    "bf16-mixed with torch.compile": ("bf16,compile", {}),
}


def steps(model: str, switches: set[str], seconds: float) -> None:
    """Print the median time of a step in milliseconds, and the seconds before the first one was done."""
    import mnist_cnn  # noqa: F401, I001  # before torch: it bounds how long OpenMP's threads spin
    import torch
    from speed_contenders import hand_built, layers_of
    from torch import nn
    from torch.nn import functional as F

    from mnist_cnn import machine
    from mnist_cnn.network import build_network
    from mnist_cnn.network.cut import Cut
    from mnist_cnn.training.optimizers import KerasAdam

    if "give-back" not in switches:
        machine.keep_freed_memory()
    torch.use_deterministic_algorithms(True)
    setattr(torch.utils.deterministic, "fill_uninitialized_memory", "fill" in switches)  # noqa: B010
    torch.manual_seed(0)
    ours = build_network(layers_of(model), (1, 28, 28), 10)
    network: nn.Module = ours
    machine.use_threads(3 * ours.operations * BATCH[model])
    if "one-thread" in switches:
        torch.set_num_threads(1)
    if "uncut" in switches:
        ours._cut = Cut("", (0, 0), (0, 0))
    if "unblocked" in switches:
        ours._blocked = {}
    if "relu-first" in switches:
        network = hand_built(model)
    if "contiguous" not in switches:
        network.to(memory_format=torch.channels_last)
    if "compile" in switches:
        network.compile()
    optimizer = KerasAdam(network.parameters(), 1e-3, (0.9, 0.999), 1e-7, fused="unfused" not in switches)
    size = BATCH[model]
    together = size if "single-gather" in switches else 2048
    images = torch.randint(0, 256, (60_000, 1, 28, 28), dtype=torch.uint8)
    labels = torch.randint(0, 10, (60_000,))
    full = [chosen for chosen in torch.split(torch.randperm(60_000), together) if len(chosen) == together]
    mixed = torch.autocast("cpu", torch.bfloat16, enabled="bf16" in switches)
    taken: list[float] = []
    begin, first = time.perf_counter(), 0.0
    for chosen in cycle(full):
        start = time.perf_counter()
        x, y = images.index_select(0, chosen).float().div_(255), labels.index_select(0, chosen)
        for pictures, wanted in zip(torch.split(x, size), torch.split(y, size), strict=True):
            optimizer.zero_grad()
            with mixed:
                loss = F.cross_entropy(network(pictures), wanted)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            first = first or time.perf_counter() - begin
        taken.append((time.perf_counter() - start) * size / together)
        if len(taken) > 1 and time.perf_counter() - begin - first > seconds:
            break
    print(statistics.median(taken[1:]) * 1e3, first)


def main() -> None:
    """Measure, as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3, help="of steps, for each variant and round (3)")
    parser.add_argument("--one", nargs=2, metavar=("MODEL", "SWITCHES"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    sys.path[:0] = [str(ROOT)]
    if options.one:
        steps(options.one[0], set(options.one[1].split(",")), options.seconds)
        return
    print("| | " + " | ".join(f"`{model}`, ms | by ours" for model in BATCH) + " |\n|---|" + "---:|---:|" * len(BATCH))
    found: dict[tuple[str, str], list[float]] = {}
    first: dict[tuple[str, str], list[float]] = {}
    for _ in range(options.rounds):
        for name, (switches, environment) in VARIANTS.items():
            for model in BATCH:
                command = [sys.executable, __file__, "--seconds", str(options.seconds), "--one", model, switches]
                environ = {**os.environ, **environment}
                said = subprocess.run(command, env=environ, capture_output=True, text=True, check=True).stdout.split()
                found.setdefault((name, model), []).append(float(said[-2]))
                first.setdefault((name, model), []).append(float(said[-1]))
    for name in VARIANTS:
        cells = []
        for model in BATCH:
            own, ours = (statistics.median(found[which, model]) for which in (name, "as ours"))
            cells.append(f"{own:.2f} | {own / ours:.2f}")
        print(f"| {name} | {' | '.join(cells)} |")
    for name in ("with torch.compile", "bf16-mixed with torch.compile"):
        waits = ", ".join(f"`{model}` {max(first[name, model]):.0f} s" for model in BATCH)
        print(f"\n{name}, until the first step is done: {waits}")


if __name__ == "__main__":
    main()
