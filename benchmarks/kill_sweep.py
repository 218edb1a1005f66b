"""Kill a sweep with SIGKILL at random moments, go on with it each time, and compare its end with an undisturbed one.

    python benchmarks/kill_sweep.py --kills 10

Every run of the sweep must have the same weights, optimiser, metrics and log to the last bit, and the leaderboard must
be the same but for the seconds. It ends with exit status 1 if anything differs.
"""

import argparse
import csv
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from kill import TRAIN, outcome, same

SWEEP = ("-m", "model=mlp,tiny", "optimizer.lr=1e-3,3e-3", "seed=0,1", "data=digits", "trainer=cpu",
         "trainer.max_epochs=20", "callbacks.checkpoint.every_n_train_steps=5")  # fmt: skip


def start(folder: Path) -> "subprocess.Popen[str]":
    """Start the sweep, or go on with it."""
    return subprocess.Popen(
        [sys.executable, str(TRAIN), *SWEEP, f"run_dir={folder}"],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def table(folder: Path) -> list[dict[str, str]]:
    """The leaderboard without its times."""
    with (folder / "leaderboard.csv").open(newline="") as file:
        return [{key: value for key, value in row.items() if "second" not in key} for row in csv.DictReader(file)]


def main() -> int:
    """Kill, go on, and compare; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10, help="how often the sweep is killed (10)")
    parser.add_argument("--seed", type=int, default=0, help="decides the moments")
    options = parser.parse_args()
    moments = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as place:
        undisturbed, killed = Path(place, "undisturbed"), Path(place, "killed")
        began = time.monotonic()
        if start(undisturbed).wait():
            raise SystemExit("the undisturbed sweep has failed")
        seconds = time.monotonic() - began
        began = time.monotonic()
        start(undisturbed).wait()  # everything is finished, so this is the time of starting and ending
        startup = time.monotonic() - began
        runs = len(list(undisturbed.glob("*/metrics.json")))
        for number in range(1, options.kills + 1):
            process = start(killed)
            # Some come while the program starts, most while it trains, and the sweep must outlast all of them.
            moment = moments.uniform(0.5 * startup, startup + (seconds - startup) / (0.7 * options.kills))
            try:
                process.wait(moment)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
            else:
                print(f"it ended after {number - 1} kills; ask for fewer, or give it longer runs")
                return 1
            done = len(list(killed.glob("*/metrics.json")))
            print(f"{number}: killed after {moment:.1f} s, {done} of {runs} runs finished")
        process = start(killed)
        said = process.communicate()[1]
        if process.returncode:
            print(said)
            return 1
        names = sorted(path.parent.name for path in undisturbed.glob("*/config.yaml"))
        different = [name for name in names if not same(outcome(undisturbed / name), outcome(killed / name))]
        if table(undisturbed) != table(killed):
            different.append("leaderboard.csv")
        print(f"different: {', '.join(different)}" if different else f"the same: {len(names)} runs and the leaderboard")
        return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
