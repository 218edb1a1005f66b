"""How fast is ours, side by side with Keras, with usual Lightning, and with a loop written by hand?

    python benchmarks/speed.py --data-root data                       every comparison, about two hours on two cores
    python benchmarks/speed.py --cores 1 --data-root data             the same on one core, about three hours
    python benchmarks/speed.py --only baseline --data-root data       one of them
    python benchmarks/speed.py --guard --data-root data               two minutes: is ours still as fast as the loop?
    python benchmarks/speed.py --device cuda --data-root data         the same on a GPU

A contender's name says its precision (`bf16`; otherwise float32) and, for Keras, whether it is made to compile with XLA
(`jit`), which it does not do by itself on a CPU.

The contenders take turns, round after round, so that what else happens on the machine meets them all. An epoch is timed
from the line that a contender prints at the end of one to that of the next, validation and checkpoint included; the
first epoch, with all that happens once, counts in the whole command only. CPU seconds, of all threads, leave out the
time that other programs had the cores. Medians and spread (quartiles) over all rounds; ratios are of medians. Needs
`pip install -e '.[benchmark]'`.
"""

import argparse
import json
import math
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CONTENDERS = Path(__file__).with_name("speed_contenders.py")

# The guard fails when a `tiny` epoch of ours, where what is not computing shows most, takes longer than this by the
# loop's. 1.05 to 1.15 were measured on a shared machine; with Lightning's work in every step it would be 1.5.
GUARD_TOLERANCE = 1.25


@dataclass(frozen=True)
class Comparison:
    """The same work for several contenders; `ours` and `ours-bf16` are `python train.py`."""

    model: str
    batch_size: int
    val_fraction: float
    epochs: int
    contenders: tuple[str, ...]


KERAS = ("keras", "keras-bf16", "keras-jit", "keras-bf16-jit")
ALL = ("ours", "ours-bf16", "loop", "loop-bf16", *KERAS, "lightning")
COMPARISONS = {
    "baseline": Comparison("baseline", 128, 0.1, 3, ALL),
    "tiny": Comparison("tiny", 32, 0.3, 3, ALL),
    "dropout": Comparison("dropout", 128, 0.1, 3, ALL),
    "whole": Comparison("baseline", 128, 0.1, 12, ("ours", "ours-bf16", "keras", "keras-bf16")),
}
MOST_ROUNDS = {"dropout": 3, "whole": 3}  # the long ones
GUARD = Comparison("tiny", 32, 0.3, 3, ("ours", "loop"))


@dataclass
class Finished:
    """One run of one contender: seconds from line to line and of the whole command, and its largest memory in MB."""

    epochs: list[float]
    at: list[float]  # seconds since the start, at the end of each epoch
    val_accuracy: list[float]
    command: float
    memory: float
    weights: str = ""
    peaks: dict[str, float] = field(default_factory=dict)  # GFLOP/s, and the operations that one image takes
    cpu_epochs: list[float] = field(default_factory=list)  # CPU seconds; empty where there is no /proc
    cpu_command: float = 0
    others: float | None = None  # the part of the cores' time that other programs used meanwhile


def compare(comparison: Comparison, rounds: int, data_root: Path, device: str) -> dict[str, list[Finished]]:
    """Let the contenders take turns."""
    found: dict[str, list[Finished]] = {name: [] for name in (*comparison.contenders, "peak")}
    for number in range(rounds):
        turn = number % len(found)  # nobody is always after the same one
        for name in [*found][turn:] + [*found][:turn]:
            print(f"round {number + 1} of {rounds}: {comparison.model}, {name} …", end=" ", file=sys.stderr, flush=True)
            found[name].append(run(name, comparison, data_root, device))
            print(f"{found[name][-1].command:.1f} s", file=sys.stderr)
    return found


def run(name: str, comparison: Comparison, data_root: Path, device: str) -> Finished:
    """Run a contender once."""
    program, *variant = name.split("-")
    precision = "bf16-mixed" if "bf16" in variant else "32-true"
    with tempfile.TemporaryDirectory() as folder:
        if program == "ours":
            command = [
                "train.py", f"model={comparison.model}", "data=mnist", f"data.root={data_root.resolve()}",
                f"data.batch_size={comparison.batch_size}", f"data.val_fraction={comparison.val_fraction}",
                f"trainer.max_epochs={comparison.epochs}", f"trainer.precision={precision}",
                f"trainer={device}", f"run_dir={folder}/run",
            ]  # fmt: skip
        else:
            command = [
                str(CONTENDERS), program, "--model", comparison.model, "--device", device,
                "--epochs", str(comparison.epochs), "--batch-size", str(comparison.batch_size),
                "--val-fraction", str(comparison.val_fraction), "--data-root", str(data_root.resolve()),
                "--precision", precision, *(["--jit"] if "jit" in variant else []),
            ]  # fmt: skip
        finished = watch([sys.executable, *command])
        if program == "ours":
            finished.weights = weights_of(Path(folder) / "run")
    return finished


def watch(command: Sequence[str]) -> Finished:
    """Run a command and note when its lines about epochs come."""
    start, busy = time.perf_counter(), _busy_seconds()
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    lines, at, cpu, accuracy = [], [], [], []
    done = Finished([], [], [], 0, 0)
    with process.stdout:
        for line in process.stdout:
            lines.append(line)
            if match := re.search(r"^epoch +\d+ ([\d.]+)$|^epoch +\d+/\d+ .*val accuracy ([\d.]+)%", line):
                at.append(time.perf_counter() - start)
                cpu.append(_cpu_seconds(process.pid))
                accuracy.append(float(match[1]) if match[1] else float(match[2]) / 100)
            elif match := re.match(r"weights (\w+)", line):
                done.weights = match[1]
            elif match := re.match(r"peak ([\d.]+) (.+)", line):
                done.peaks[match[2]] = float(match[1])
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{' '.join(command)}\n{''.join(lines[-20:])}")
    done.command, done.memory = time.perf_counter() - start, used.ru_maxrss / 1000
    done.cpu_command = used.ru_utime + used.ru_stime
    if busy is not None and (busy_after := _busy_seconds()) is not None:
        others = busy_after - busy - done.cpu_command
        done.others = max(0.0, others / done.command / len(os.sched_getaffinity(0)))
    done.at, done.val_accuracy = at, accuracy
    done.epochs = [after - before for before, after in pairwise(at)]
    done.cpu_epochs = [after - before for before, after in pairwise(cpu) if before is not None and after is not None]
    return done


def _cpu_seconds(process: int) -> float | None:
    """What all threads of a process have computed until now, or None where there is no /proc."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    user, system = fields[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def _busy_seconds() -> float | None:
    """What the cores that this process may use have computed for anyone, or None where there is no /proc."""
    try:
        lines = [line.split() for line in Path("/proc/stat").read_text().splitlines()]
    except OSError:
        return None
    ours = {f"cpu{core}" for core in os.sched_getaffinity(0)}
    # user, nice, system; not idle and iowait; irq, softirq, and what the hypervisor gave to other machines
    busy = [sum(map(int, (*line[1:4], *line[6:9]))) for line in lines if line[0] in ours]
    return sum(busy) / os.sysconf("SC_CLK_TCK")


def weights_of(run: Path) -> str:
    """A digest of the weights in the last checkpoint of a run of ours."""
    # Not in this process, which must stay small: Linux counts the memory of who starts a command as the command's own.
    last = run / "checkpoints" / "last.ckpt"
    return watch([sys.executable, str(CONTENDERS), "weights", "--checkpoint", str(last)]).weights


def table(comparison: Comparison, found: dict[str, list[Finished]]) -> str:
    """Markdown: for each contender the seconds of an epoch and of the whole command, and ours as a part of them."""
    epochs = {name: [second for run in runs for second in run.epochs] for name, runs in found.items()}
    commands = {name: [run.command for run in runs] for name, runs in found.items()}
    rows = []
    for name in comparison.contenders:
        cpu_epochs = [second for run in found[name] for second in run.cpu_epochs]
        cells = [name, spread(epochs[name]), f"{statistics.median(cpu_epochs):.2f}" if cpu_epochs else "–"]
        cells += [*_ratios(epochs, name), spread(commands[name])]
        cells += [f"{statistics.median(run.cpu_command for run in found[name]):.2f}", *_ratios(commands, name)]
        rows.append(" | ".join([*cells, f"{statistics.median(run.memory for run in found[name]):,.0f}"]))
    cores = len(os.sched_getaffinity(0))
    what = f"`{comparison.model}`, batches of {comparison.batch_size}, {comparison.epochs} epochs"
    ratios = ["ours / it, same precision", "ours-bf16 / it, in float32"]
    heads = ["", "s per epoch", "CPU s per epoch", *ratios, "whole command, s", "CPU s", *ratios, "peak memory, MB"]
    lines = [
        f"{what}, {len(found['peak'])} rounds, on {cores} core{'s' if cores > 1 else ''}",
        "",
        f"| {' | '.join(heads)} |",
        "|---|---|---:|---:|---:|---|---:|---:|---:|---:|",
        *(f"| {row} |" for row in rows),
    ]
    return "\n".join([*lines, *_others(found), *_same_weights(found), *_roofline(comparison, found, epochs)])


def _ratios(measured: dict[str, list[float]], name: str) -> tuple[str, str]:
    """Ours by a contender: in the contender's own precision, and ours in bfloat16 by a contender in float32."""

    def ratio(ours: str) -> str:
        if ours not in measured:
            return "–"
        return f"{statistics.median(measured[ours]) / statistics.median(measured[name]):.3f}"

    return (ratio("ours-bf16"), "–") if "-bf16" in name else (ratio("ours"), ratio("ours-bf16"))


def spread(values: Sequence[float]) -> str:
    """`median (lower quartile – upper quartile)`."""
    if len(values) < 2:
        return f"{values[0]:.2f}"
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{middle:.2f} ({low:.2f} – {high:.2f})"


def _others(found: dict[str, list[Finished]]) -> list[str]:
    """How far to trust the seconds: with others on the cores they say as much about the others."""
    shares = [run.others for runs in found.values() for run in runs if run.others is not None]
    if not shares:
        return []
    middle, most = statistics.median(shares), max(shares)
    return ["", f"other programs used {middle:.0%} of the cores' time during a run (median), at most {most:.0%}"]


def _same_weights(found: dict[str, list[Finished]]) -> list[str]:
    lines = []
    for ours, loop in (("ours", "loop"), ("ours-bf16", "loop-bf16")):
        if ours in found and loop in found:
            weights = {run.weights for name in (ours, loop) for run in found[name]}
            same = "bit-identical" if len(weights) == 1 else f"DIFFERENT: {', '.join(sorted(weights))}"
            lines += ["", f"weights of {ours} and {loop} after the last epoch, in all rounds: {same}"]
    return lines


def _roofline(comparison: Comparison, found: dict[str, list[Finished]], epochs: dict[str, list[float]]) -> list[str]:
    """The share of the best measured rate that training reaches, validation and all."""
    operations = found["peak"][0].peaks["operations"]
    images = 60_000 * (3 * (1 - comparison.val_fraction) + comparison.val_fraction)  # a training step counts thrice
    lines = []
    for name, kind in (("ours", "float32"), ("ours-bf16", "bfloat16")):
        if name in found:
            rates = {
                what: statistics.median(run.peaks[what] for run in found["peak"])
                for what in found["peak"][0].peaks
                if what.startswith(kind)
            }
            best = max(rates.values())
            reached = operations * images / statistics.median(epochs[name]) / 1e9
            each = ", ".join(f"{what.removeprefix(kind).strip()} {rate:.0f}" for what, rate in rates.items())
            part = f"{reached / best:.0%} of the best rate in {kind}"
            lines += ["", f"{name}: {reached:.0f} of {best:.0f} GFLOP/s, {part} ({each})"]
    return lines


def draw(results: dict[str, dict[str, list[Finished]]], file: Path) -> None:
    """Seconds per epoch of each contender, and accuracy on the validation images against wall time."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot as plt

    rows = math.ceil((len(results) + 1) / 2)
    figure, grid = plt.subplots(rows, 2, figsize=(11, 3.6 * rows), layout="constrained", squeeze=False)
    axes = [*grid.flat]
    for axis, (name, found) in zip(axes, results.items(), strict=False):
        names = [contender for contender in COMPARISONS[name].contenders if contender in found]
        axis.boxplot([[s for run in found[who] for s in run.epochs] for who in names], orientation="horizontal")
        axis.set_yticks(range(1, len(names) + 1), names)
        axis.invert_yaxis()
        axis.set_xlim(left=0)
        axis.set(title=f"{name}: seconds per epoch", xlabel="s")
    longest = results.get("whole") or next(iter(results.values()))
    accuracy = axes[len(results)]
    for who, runs in longest.items():
        if who != "peak":
            accuracy.plot(runs[0].at, [100 * value for value in runs[0].val_accuracy], marker=".", label=who)
    accuracy.set(title="accuracy against wall time (round 1)", xlabel="s since the command", ylabel="validation, %")
    accuracy.set_xlim(left=0)
    accuracy.legend()
    for axis in axes[len(results) + 1 :]:
        axis.set_axis_off()
    figure.savefig(file, metadata={"Date": None})


def machine() -> dict[str, Any]:
    """Where and with what was measured."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists() and (match := re.search(r"model name\s*: (.*)", info.read_text())):
        cpu = match[1]
    gpu = shutil.which("nvidia-smi")
    if gpu:
        query = [gpu, "--query-gpu=name", "--format=csv,noheader"]
        cpu += f", {subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()}"
    versions = {"python": platform.python_version()}
    for package in ("torch", "lightning", "keras", "tensorflow-cpu", "tensorflow"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {"processor": cpu, "cores": len(os.sched_getaffinity(0)), **versions}


def guard(data_root: Path) -> int:
    """0 if ours takes no longer than the loop, within the tolerance; else 1."""
    found = compare(GUARD, 3, data_root, "cpu")
    print(table(GUARD, found))
    ours, loop = (statistics.median(s for run in found[name] for s in run.epochs) for name in ("ours", "loop"))
    good = ours / loop <= GUARD_TOLERANCE and len({run.weights for who in ("ours", "loop") for run in found[who]}) == 1
    verdict = "as fast as it was" if good else "SLOWER THAN IT WAS, or other weights"
    print(f"\n{verdict}: {ours / loop:.3f}, tolerance {GUARD_TOLERANCE}")
    return 0 if good else 1


def main() -> int:
    """Measure, as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=COMPARISONS, default=list(COMPARISONS))
    parser.add_argument("--rounds", type=int, default=5, help="5; of the long `dropout` and `whole` at most 3")
    parser.add_argument("--epochs", type=int, help="fewer or more than usual, but at least 2, e.g. to try this out")
    parser.add_argument("--cores", type=int, help="how many cores each contender may use (as many as there are)")
    parser.add_argument("--contenders", nargs="+", help="fewer of them, e.g. without keras where it is not installed")
    parser.add_argument("--guard", action="store_true")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--data-root", type=Path, default=Path("data"))
    parser.add_argument("--output", type=Path, help="write everything that was measured to OUTPUT.json and OUTPUT.svg")
    options = parser.parse_args()
    if options.epochs is not None and options.epochs < 2:
        parser.error("--epochs: an epoch is timed from the end of the one before, so it takes at least 2")
    if options.cores is not None:
        cores = sorted(os.sched_getaffinity(0))
        if not 1 <= options.cores <= len(cores):
            parser.error(f"--cores: this machine lets it have 1 to {len(cores)}")
        os.sched_setaffinity(0, cores[: options.cores])  # the commands that it starts inherit this
    watch([sys.executable, str(CONTENDERS), "fetch", "--data-root", str(options.data_root.resolve())])
    if options.guard:
        return guard(options.data_root)
    results: dict[str, dict[str, list[Finished]]] = {}
    for name in options.only:
        chosen = COMPARISONS[name]
        kept = tuple(who for who in chosen.contenders if who in (options.contenders or chosen.contenders))
        chosen = replace(chosen, epochs=options.epochs or chosen.epochs, contenders=kept)
        rounds = min(options.rounds, MOST_ROUNDS.get(name, options.rounds))
        results[name] = compare(chosen, rounds, options.data_root, options.device)
        print(f"{table(chosen, results[name])}\n", flush=True)
        if options.output:
            plain = {
                name: {who: list(map(asdict, runs)) for who, runs in found.items()} for name, found in results.items()
            }
            options.output.with_suffix(".json").write_text(json.dumps({"machine": machine(), **plain}, indent=1))
    print(json.dumps(machine()))
    if options.output:
        draw(results, options.output.with_suffix(".svg"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
