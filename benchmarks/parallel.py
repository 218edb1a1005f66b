"""How much sooner does a sweep end when joblib starts its runs side by side?

    python benchmarks/parallel.py --data-root data

Each sweep runs one after another and side by side, with as many runs at once as there are processors, in turns. The
seconds are those of the whole command, from the start of Python to the leaderboard. Nothing else should run meanwhile.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TRAIN = Path(__file__).parent.parent / "train.py"
SWEEPS = {
    "`tiny` × 4": ("model=tiny", "data.batch_size=32", "seed=0,1,2,3"),
    "`baseline` × 2": ("model=baseline", "seed=0,1"),
}


def seconds(settings: tuple[str, ...], launcher: str) -> float:
    """The time that a sweep takes."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    with tempfile.TemporaryDirectory() as place:
        command = [sys.executable, str(TRAIN), "-m", f"hydra/launcher={launcher}", *settings, f"run_dir={place}/sweep"]
        began = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True, env=environment)
        return time.perf_counter() - began


def main() -> None:
    """Read the arguments, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", default="data", help="the folder of MNIST's files (data)")
    parser.add_argument("--epochs", type=int, default=3, help="epochs of each run (3)")
    parser.add_argument("--rounds", type=int, default=2, help="how often each sweep runs in each way (2)")
    options = parser.parse_args()
    common = ("data=mnist", f"data.root={options.data_root}", "trainer=cpu", f"trainer.max_epochs={options.epochs}")
    print("| sweep | one after another | side by side | ratio |\n|---|---:|---:|---:|")
    for name, settings in SWEEPS.items():
        pairs = [
            (seconds((*settings, *common), "basic"), seconds((*settings, *common), "joblib"))
            for _ in range(options.rounds)
        ]
        after, beside = (statistics.median(times) for times in zip(*pairs, strict=True))
        ratio = statistics.median(one / other for one, other in pairs)
        print(f"| {name} | {after:.0f} s | {beside:.0f} s | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
