"""How long does a command take before it does something?

    python benchmarks/startup.py RUN PICTURE --data-root data       a minute

RUN is a run folder, PICTURE a picture of a digit. Each command is started five times, in turn; medians and quartiles.
"""

import argparse
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from speed import ROOT, spread, watch

BASE = "python -c 'import torch'"


def until_training(data_root: str) -> float:
    """From the command to the first step of training: when its first epoch is over, less the epoch's own time."""
    with tempfile.TemporaryDirectory() as folder:
        settings = [
            "model=mlp",
            "data=mnist",
            f"data.root={data_root}",
            "trainer.max_epochs=1",
            f"run_dir={folder}/run",
        ]
        command = [sys.executable, "train.py", *settings, "trainer=cpu"]
        start = time.perf_counter()
        with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as run:
            assert run.stderr is not None
            for line in run.stderr:
                if match := re.match(r"epoch .* ([\d.]+) s$", line):
                    found = time.perf_counter() - start - float(match[1])
    return found


def main() -> None:
    """Measure, as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--data-root", type=Path, default=Path("data"))
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    run, picture, root = (str(path.resolve()) for path in (options.run, options.picture, options.data_root))
    ours = [sys.executable, "-m", "mnist_cnn"]
    commands = {
        BASE: [sys.executable, "-c", "import torch"],
        "python train.py --help": [sys.executable, "train.py", "--help"],
        "mnist-cnn --help": [*ours, "--help"],
        "mnist-cnn predict RUN PICTURE": [*ours, "predict", run, picture],
        "mnist-cnn evaluate RUN": [*ours, "evaluate", run, "--data-root", root],
        "python -c 'import lightning.pytorch'": [sys.executable, "-c", "import lightning.pytorch"],
    }
    first_step = "python train.py, until the first step"
    found: dict[str, list[float]] = {name: [] for name in (*commands, first_step)}
    for _ in range(options.rounds):
        for name, command in commands.items():
            found[name].append(watch(command).command)
        found[first_step].append(until_training(root))
    base = statistics.median(found[BASE])
    print(f"| command | s | by `{BASE}` |\n|---|---|---:|")
    for name, values in found.items():
        print(f"| `{name}` | {spread(values)} | {statistics.median(values) / base:.2f} |")


if __name__ == "__main__":
    main()
