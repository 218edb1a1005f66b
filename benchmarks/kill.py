"""Kill runs at random moments, resume them, and compare what comes out with a run that was left alone.

    python benchmarks/kill.py --times 200

Every trial starts `python train.py` on the bundled digits, kills it with a random signal, resumes it with the command
that a user would type, may kill that too, and lets the last one finish. A third of the kills are aimed: they come while
a file is being written. Weights, optimiser, metrics and log must then be those of the undisturbed run, to the last bit.
It ends with exit status 1 if any trial differs or can't be resumed.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from difflib import unified_diff
from multiprocessing import get_context
from multiprocessing.process import _children  # type: ignore[attr-defined]  # it has no public name
from pathlib import Path
from typing import Any

from mnist_cnn.inference import checkpoint

TRAIN = Path(__file__).parent.parent / "train.py"
COMMON = ("data=digits", "trainer=cpu", "trainer.max_epochs=3")
OFTEN = "callbacks.checkpoint.every_n_train_steps=5"
CASES: dict[str, Sequence[str]] = {
    "whole epochs only": ("model=tiny",),
    "several steps together": ("model=dropout", "data.batch_size=64", OFTEN),
    "single steps": ("model=dropout", "data.batch_size=64", "+trainer.gradient_clip_val=1.0", OFTEN),
    "one-cycle, SGD": ("model=mlp", "optimizer=sgd", "scheduler=onecycle", "data.batch_size=8", OFTEN),
    "early stopping": ("model=mlp", "callbacks=early_stopping", "callbacks.early_stopping.patience=1",
                       "optimizer.lr=0.05", "trainer.max_epochs=8", OFTEN),
    "plateau": ("model=mlp", "+scheduler._target_=torch.optim.lr_scheduler.ReduceLROnPlateau",
                "+scheduler.monitor=val/loss", "+scheduler.patience=0", "+scheduler.threshold=0.5", OFTEN),
    "averaged weights": ("model=mlp", "+callbacks.average._target_=lightning.pytorch.callbacks.EMAWeightAveraging",
                         OFTEN),
    "bfloat16": ("model=mlp", "trainer.precision=bf16-mixed", "data.batch_size=8", OFTEN),
    "two processes": ("model=mlp", "data.batch_size=16", "trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2",
                      OFTEN),
}  # fmt: skip
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
# Imported once, in the process that the runs are forked from.
CONTEXT = get_context("forkserver")
CONTEXT.set_forkserver_preload(["mnist_cnn.training.run", "mnist_cnn.hydra_cli.run"])
MOST_KILLS = 3  # in one trial
AIMED = 1 / 3  # of the kills: while a file is being written


class Run:
    """`python train.py` in a process of its own, which leads a process group.

    It is forked from a process that has already imported the packages, so that what is killed is the training, not the
    start of Python. A run of several processes starts from scratch.
    """

    def __init__(self, arguments: Sequence[str], errors: Path) -> None:
        self.errors = errors
        self.process = CONTEXT.Process(target=_train, args=(arguments, errors))
        self.process.start()
        _children.discard(self.process)  # or starting another one in another thread takes away its exit status

    def wait(self) -> int:
        self.process.join()
        assert self.process.exitcode is not None
        return self.process.exitcode

    def kill(self, folder: Path, seconds: float, number: int, aimed: bool) -> bool:
        """Kill it after so many seconds or, if aimed, when it next writes a file; False if it had ended before."""
        deadline = time.monotonic() + seconds
        while self.process.is_alive():
            if time.monotonic() >= deadline and (not aimed or any(folder.rglob(".*.part"))):
                with suppress(ProcessLookupError):
                    os.kill(self.process.pid or 0, number)
                    if number == signal.SIGKILL:
                        os.killpg(self.process.pid or 0, number)  # the other process of the run as well
                self.wait()
                return True
            time.sleep(0 if aimed else 0.005)
        return False


def _train(arguments: Sequence[str], errors: Path) -> None:
    os.setsid()
    with errors.open("w") as file:
        os.dup2(file.fileno(), 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = [str(TRAIN), *arguments]
    if "trainer=ddp" in arguments or _is_of_two_processes(arguments):
        os.execv(sys.executable, [sys.executable, *sys.argv])
    from mnist_cnn.commands import train

    sys.exit(train.main(sys.argv[1:]))


def _is_of_two_processes(arguments: Sequence[str]) -> bool:
    config = Path(arguments[0].removeprefix("resume="), "config.yaml")
    return config.exists() and "strategy: ddp" in config.read_text()


def outcome(folder: Path) -> dict[str, Any]:
    """What two runs must agree on, from the folder of a finished run."""
    content = checkpoint.read(folder / "checkpoints" / "last.ckpt")
    metrics = json.loads((folder / "metrics.json").read_text())
    rows = [{key: value for key, value in row.items() if key != "seconds"} for row in metrics.pop("history")]
    networks = [checkpoint.load(folder / "checkpoints" / name).network for name in ("best.ckpt", "last.ckpt")]
    return {
        "weights": [network.state_dict() for network in networks],
        "optimiser": content["optimizer_states"],
        "schedulers": content["lr_schedulers"],
        "metrics": {key: value for key, value in metrics.items() if "second" not in key},
        "history": rows,
        "log": (folder / "metrics.csv").read_text(),
    }  # fmt: skip


def same(one: Any, other: Any) -> bool:
    """Equality to the bit, also of tensors in lists and dictionaries."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool((one == other).all()) if hasattr(one, "shape") else one == other


def trial(
    case: str, folder: Path, whole: dict[str, Any], seconds: float, chance: random.Random
) -> tuple[str, list[str]]:
    """Kill and resume one run until it ends; returns `identical` or what differs from `whole`, and the kills.

    `seconds` is how long the undisturbed run took.
    """
    killed: list[str] = []
    arguments = [*COMMON, *CASES[case], f"run_dir={folder}"]
    while True:
        process = Run(arguments, folder.with_suffix(".err"))
        number, aimed = chance.choice(SIGNALS), chance.random() < AIMED
        if len(killed) == MOST_KILLS or not process.kill(folder, chance.uniform(0, seconds), number, aimed):
            break
        killed.append(f"{signal.Signals(number).name}{' (writing)' if aimed else ''}")
        if (folder / "config.yaml").exists():
            arguments = [f"resume={folder}"]
        elif folder.exists():
            shutil.rmtree(folder)  # killed before it was a run
    if status := process.wait():
        return f"exit status {status}: {process.errors.read_text().strip().splitlines()[-1:]}", killed
    found = outcome(folder)
    differing = [key for key, value in found.items() if not same(value, whole[key])]
    if "log" in differing:
        lines = unified_diff(whole["log"].splitlines(), found["log"].splitlines(), "undisturbed", "killed", "", "", 0)
        differing += lines
    return (f"differs in {', '.join(differing)}" if differing else "identical"), killed


def main() -> None:
    """Run the trials and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=200, help="trials in all (200)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="trials at the same time (2)")
    parser.add_argument("--case", choices=tuple(CASES), help="one kind of run only")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # rounding depends on the number of threads
    cases = [options.case] if options.case else list(CASES)
    with tempfile.TemporaryDirectory() as temporary, ThreadPoolExecutor(options.jobs) as pool:
        root = Path(temporary)
        whole, seconds = {}, {}
        warm_up = CONTEXT.Process(target=os.getpid)  # starts the process that the others are forked from
        warm_up.start()
        warm_up.join()
        for number, case in enumerate(cases):
            start = time.monotonic()
            folder = root / f"whole-{number}"
            process = Run([*COMMON, *CASES[case], f"run_dir={folder}"], folder.with_suffix(".err"))
            assert process.wait() == 0, process.errors.read_text()
            whole[case], seconds[case] = outcome(folder), time.monotonic() - start

        def one(number: int) -> tuple[str, str, list[str]]:
            case, folder = cases[number % len(cases)], root / f"run-{number}"
            result, killed = trial(case, folder, whole[case], seconds[case], random.Random(f"{options.seed} {number}"))
            if result != "identical":
                print(f"trial {number}, {case}: {result}, after {', '.join(killed)}", file=sys.stderr)
            shutil.rmtree(folder, ignore_errors=True)
            return case, result, killed

        results: dict[str, Counter[str]] = defaultdict(Counter)
        for case, result, killed in pool.map(one, range(options.times)):
            results[case].update({"trials": 1, "kills": len(killed), "identical": int(result == "identical")})
            results[case].update(name.partition(" ")[0] for name in killed)
            results[case]["writing"] += sum("writing" in name for name in killed)
    columns = ["trials", "kills", *(number.name for number in SIGNALS), "writing", "identical"]
    print(f"| {' | '.join(['run', *columns])} |\n|---|{'---:|' * len(columns)}")
    results["all"] = sum(results.values(), Counter())
    for case, counts in results.items():
        print(f"| {case} | {' | '.join(str(counts[column]) for column in columns)} |")
    sys.exit(results["all"]["identical"] != options.times)


if __name__ == "__main__":
    main()
