"""What `training/fast_steps.py` gains: an epoch with it, and with Lightning taking every step by itself.

    python benchmarks/fast_steps.py --data-root data            about ten minutes on two cores

Both run `python train.py` on MNIST, in turn, and must end with the same weights. Seconds are from the end of an epoch
to the end of the next, validation and checkpoint included.
"""

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

from speed import CONTENDERS, spread, watch, weights_of

BATCH = {"tiny": 32, "mlp": 32, "baseline": 128}
# An argument that changes nothing, but that only Lightning's own steps can follow.
HOW = {"fast steps": [], "Lightning's steps": ["+trainer.log_every_n_steps=50"]}


def main() -> None:
    """Measure, as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, default=Path("data"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=3)
    options = parser.parse_args()
    root = options.data_root.resolve()
    watch([sys.executable, str(CONTENDERS), "fetch", "--data-root", str(root)])
    print("| | fast steps, s per epoch | Lightning's steps, s per epoch | fast / Lightning's | same weights |")
    print("|---|---|---|---:|---|")
    for model, batch in BATCH.items():
        seconds: dict[str, list[float]] = {name: [] for name in HOW}
        weights = set()
        for _ in range(options.rounds):
            for name, arguments in HOW.items():
                with tempfile.TemporaryDirectory() as folder:
                    settings = [f"model={model}", "data=mnist", f"data.root={root}", f"data.batch_size={batch}"]
                    settings += [f"trainer.max_epochs={options.epochs}", f"run_dir={folder}/run", *arguments]
                    seconds[name] += watch([sys.executable, "train.py", *settings]).epochs
                    weights.add(weights_of(Path(folder) / "run"))
        fast, plain = (statistics.median(seconds[name]) for name in HOW)
        same = "yes" if len(weights) == 1 else "NO"
        cells = [f"`{model}`", *map(spread, seconds.values()), f"{fast / plain:.2f}", same]
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
