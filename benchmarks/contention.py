"""How long does a run take on a busy machine, and does it end with the same weights?

    python benchmarks/contention.py --data-root data                         about ten minutes a round on two cores
    python benchmarks/contention.py --data-root data --spin 1000 300000      ours against libgomp's own value

"training" is from the line of the first epoch to that of the last, "command" is everything, imports and report
included; of several runs at once, the slowest counts. Medians (quartiles) over the rounds; ratios are of medians.
Batches are those of the recipes, and half of the images are validation, which keeps an epoch short.

Weights are compared to the bit, seed by seed: with those of the run alone, and of the sweep side by side with those of
a sweep one after another on as many threads, because joblib divides the cores among its jobs, and the number of threads
changes rounding. The sweep side by side needs hydra-joblib-launcher, and is left out where that is not installed.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from importlib.metadata import distributions
from itertools import product
from pathlib import Path

from speed import CONTENDERS, machine, spread, watch, weights_of

BATCH = {"baseline": 128, "tiny": 32}
CORES = len(os.sched_getaffinity(0))
SEEDS = 4
AT_ONCE = min(SEEDS, CORES)
LAUNCHER = "hydra-joblib-launcher"


@dataclass(frozen=True)
class Situation:
    """What runs at the same time, and how long its training may take, as a multiple of the run alone."""

    what: str
    runs: int = 1
    beside_busy_core: bool = False
    sweep: bool = False
    threads: int = 0  # 0: as many as the run thinks right
    settings: tuple[str, ...] = ()
    target: float = math.inf
    same_as: str = "alone"


SHARE = max(1, CORES // AT_ONCE)  # threads that joblib gives each job
SWEEP = f"sweep of {SEEDS}"
SITUATIONS = {
    "alone": Situation("one run alone"),
    "busy": Situation("beside one busy core", beside_busy_core=True, target=3),
    "two": Situation("two runs at once", runs=2, target=2.3),
    "four": Situation("four runs at once", runs=4),
    "sweep": Situation(f"{SWEEP}, one after another", sweep=True),
    "share": Situation(f"{SWEEP}, one after another, threads: {SHARE}", sweep=True, threads=SHARE, same_as="share"),
    "joblib": Situation(
        f"{SWEEP}, {AT_ONCE} at once by joblib, threads: {SHARE} each",
        sweep=True, settings=("hydra/launcher=joblib", f"hydra.launcher.n_jobs={AT_ONCE}"), same_as="share",
    ),
}  # fmt: skip


@dataclass
class Measured:
    """The slowest run's seconds, and the weights of every run as (seed, digest)."""

    training: float
    command: float
    weights: set[tuple[int, str]]


Found = dict[tuple[str, str], list[Measured]]  # by situation and GOMP_SPINCOUNT; "": as the package sets it


@contextmanager
def busy_core() -> Iterator[None]:
    """Another process that never waits. It also ends when this one is gone, however that comes about."""
    loop = f"import os\nwhile os.getppid() == {os.getpid()}: sum(range(100_000))"
    with subprocess.Popen([sys.executable, "-c", loop]) as process:
        try:
            yield
        finally:
            process.kill()


def measure(situation: Situation, settings: Sequence[str], spin: str) -> Measured:
    """Start the situation's runs together, and wait for all of them."""
    variables = [f"GOMP_SPINCOUNT={spin}"] if spin else []
    if situation.threads:
        variables += [f"{name}_NUM_THREADS={situation.threads}" for name in ("OMP", "MKL")]
    several = ["-m", f"seed={','.join(map(str, range(SEEDS)))}"] if situation.sweep else ["seed=0"]
    command = ["env", *variables, sys.executable, "train.py", *several, *settings, *situation.settings]
    with tempfile.TemporaryDirectory() as folder:
        runs = [Path(folder) / str(number) for number in range(situation.runs)]
        with busy_core() if situation.beside_busy_core else nullcontext(), ThreadPoolExecutor(len(runs)) as pool:
            finished = list(pool.map(watch, [[*command, f"run_dir={run}"] for run in runs]))
        seeds = range(SEEDS) if situation.sweep else [0]
        parts = [(seed, run / f"{seed:02}_seed-{seed}" if situation.sweep else run) for run in runs for seed in seeds]
        weights = {(seed, weights_of(part)) for seed, part in parts}
    return Measured(max(sum(one.epochs) for one in finished), max(one.command for one in finished), weights)


def table(found: Found) -> str:
    """Markdown: a line for each situation and GOMP_SPINCOUNT, and the target beside it."""
    heads = ["", "GOMP_SPINCOUNT", "training, s", "by alone", "target", "command, s", "by alone", "same weights"]
    lines = [f"| {' | '.join(heads)} |", "|---|---:|---|---:|---|---|---:|---|"]
    for (name, spin), runs in found.items():
        situation, alone = SITUATIONS[name], found["alone", spin]
        training, command = [run.training for run in runs], [run.command for run in runs]
        by_training = statistics.median(training) / statistics.median(run.training for run in alone)
        by_command = statistics.median(command) / statistics.median(run.command for run in alone)
        cells = [situation.what, spin or "the package's"]
        cells += ["–", "–"] if situation.sweep else [spread(training), f"{by_training:.2f}"]
        verdict = "met" if by_training <= situation.target else "MISSED"
        cells += [f"≤ {situation.target}: {verdict}" if situation.target < math.inf else "–"]
        lines.append(
            f"| {' | '.join([*cells, spread(command), f'{by_command:.2f}', same_weights(runs, name, found)])} |"
        )
    return "\n".join(lines)


def same_weights(runs: list[Measured], name: str, found: Found) -> str:
    """Whether these runs and those that they are compared with end with one digest for each seed that both have."""
    pairs = {pair for run in runs for pair in run.weights}
    others = [run for (other, _), runs in found.items() if other == SITUATIONS[name].same_as for run in runs]
    wanted = {pair for run in others for pair in run.weights}
    seeds = dict(pairs).keys() & dict(wanted).keys()
    digests = [digest for seed, digest in pairs | wanted if seed in seeds]
    return "–" if not seeds else "yes" if len(digests) == len(seeds) else "NO"


def main() -> None:
    """Measure, as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, default=Path("data"))
    parser.add_argument("--models", nargs="+", choices=BATCH, default=list(BATCH))
    parser.add_argument("--only", nargs="+", choices=SITUATIONS, default=list(SITUATIONS), help="and the run alone")
    parser.add_argument("--spin", nargs="+", default=[""], help="GOMP_SPINCOUNT, instead of what the package sets")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=3, help="at least 2, because the first is not timed")
    options = parser.parse_args()
    if options.epochs < 2:
        parser.error("--epochs: at least 2, because the first is not timed")
    root = options.data_root.resolve()
    watch([sys.executable, str(CONTENDERS), "fetch", "--data-root", str(root)])
    names = [name for name in SITUATIONS if name == "alone" or name in options.only]
    if "joblib" in names and not any(distributions(name=LAUNCHER)):
        names.remove("joblib")
        print(f"left out, because {LAUNCHER} is not installed: {SITUATIONS['joblib'].what}\n")
    for model in options.models:
        settings = [f"model={model}", "data=mnist", f"data.root={root}", f"data.batch_size={BATCH[model]}"]
        settings += ["data.val_fraction=0.5", f"trainer.max_epochs={options.epochs}", "trainer=cpu"]
        found: Found = {}
        for number, name, spin in product(range(options.rounds), names, options.spin):
            what = f"{model}, {SITUATIONS[name].what}, spin {spin or 'as set'}"
            print(f"round {number + 1} of {options.rounds}: {what} …", end=" ", file=sys.stderr, flush=True)
            found.setdefault((name, spin), []).append(measure(SITUATIONS[name], settings, spin))
            print(f"{found[name, spin][-1].command:.1f} s", file=sys.stderr)
        print(f"`{model}`, batches of {BATCH[model]}, {options.epochs} epochs, {options.rounds} rounds\n")
        print(f"{table(found)}\n", flush=True)
    print(json.dumps(machine()))


if __name__ == "__main__":
    main()
