"""Trains recipes with several seeds, and makes a table and a plot of accuracy against time from their run folders.

    python benchmarks/recipes.py runs/recipes                     # trains what is missing; stop it any time, and go on
    python benchmarks/recipes.py runs/recipes fast strong         # these recipes only
    python benchmarks/recipes.py runs/recipes --train 0           # from the runs that are there
    python benchmarks/recipes.py runs/recipes --jobs 8 trainer=cuda
    python benchmarks/recipes.py runs/recipes --keras             # and the published recipes in Keras

A run lies in FOLDER/RECIPE/SEED; one of Keras in FOLDER/keras/RECIPE/SEED. (Keras on TensorFlow is installed by
`pip install -e '.[benchmark]'`.) The seeds are 0 to n−1, and none is left out. The test accuracy is that of a run's
own result: of the epoch chosen on validation images, or of the last one where the recipe has none. Seconds are those
of seed 0, from the first step to the end of the last epoch, validation included: it is trained alone, with all
processors, also where --jobs has the others share them.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parents[1]
# The recipes in the order of the table, with the number of seeds of each.
SEEDS = {
    "fast": 20, "micro": 10, "tiny_strong": 10, "strong": 10, "accurate": 10,
    "baseline": 10, "tiny": 10, "deep": 10, "dropout": 10, "mlp": 10,
}  # fmt: skip
# One, because Keras computes the same (docs/keras.md): it is here for the time.
KERAS_SEEDS = dict.fromkeys(("keras/baseline", "keras/tiny", "keras/deep", "keras/dropout", "keras/mlp"), 1)
# What others have published: seconds, test accuracy in %, and where it is from.
PUBLISHED = [
    (0.76, 99.0, "T. Tuna, GTX 1660 Ti"),
    (172.0, 99.185, "PyTorch's example, GTX 1660 Ti"),
]


def train(folder: Path, recipe: str, seed: int, settings: Sequence[str], threads: int) -> str | None:
    """Train a recipe with a seed unless that is done, from where it was stopped; returns what went wrong."""
    run = folder / recipe / str(seed)
    metrics, half_done = run / "metrics.json", (run / "config.yaml").exists()
    if metrics.exists() and not json.loads(metrics.read_text())["interrupted"]:
        return None
    if recipe in KERAS_SEEDS:
        root = next((it.removeprefix("data.root=") for it in settings if it.startswith("data.root=")), "data")
        command = ["benchmarks/keras_run.py", Path(recipe).name, str(seed), str(run), "--data-root", root]
    elif half_done:
        command = ["train.py", f"resume={run}", *settings]
    else:
        command = ["train.py", f"experiment={recipe}", f"seed={seed}", f"run_dir={run}", *settings]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)} if threads else dict(os.environ)
    print(f"{recipe}, seed {seed}", file=sys.stderr)
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
    return said[-1] if done.returncode else None


def train_all(folder: Path, wanted: Sequence[tuple[str, int]], settings: Sequence[str], jobs: int) -> list[str]:
    """Train recipes with seeds, those of seed 0 first and one at a time; returns what went wrong, a line for each."""
    alone, together = ([run for run in wanted if bool(run[1]) == rest] for rest in (False, True))
    outcomes = [train(folder, *run, settings, 0) for run in alone]
    threads = 1 if jobs > 1 else 0
    with ThreadPoolExecutor(jobs) as pool:
        outcomes += pool.map(lambda run: train(folder, run[0], run[1], settings, threads), together)
    return [f"{run[0]}, seed {run[1]}: {why}" for run, why in zip(alone + together, outcomes, strict=True) if why]


def summary(folder: Path, recipe: str) -> dict[str, Any] | None:
    """What the table shows of a recipe, accuracies in %; None if it has no finished run."""
    runs = [json.loads(file.read_text()) for file in sorted(folder.glob(f"{recipe}/*/metrics.json"))]
    runs = [run for run in runs if run["seed"] < (SEEDS | KERAS_SEEDS)[recipe] and not run["interrupted"]]
    if not runs:
        return None
    tests = [100 * run["test/accuracy"] for run in runs]
    vals = [100 * run["val/accuracy"] for run in runs if run["val/accuracy"] is not None]
    seconds = [run["fit_seconds"] for run in runs if run["seed"] == 0 and run["accelerator"] == "cpu"]
    return {
        "recipe": recipe,
        "parameters": runs[0]["parameters"],
        "epochs": max(run["epochs"] for run in runs),
        "n": len(runs),
        "mean": statistics.mean(tests),
        "std": statistics.stdev(tests) if len(tests) > 1 else None,
        "min": min(tests),
        "max": max(tests),
        "loss": statistics.mean(run["test/loss"] for run in runs),
        "val": statistics.mean(vals) if vals else None,
        "seconds": seconds[0] if seconds else None,
        "test": {run["seed"]: round(value, 2) for run, value in zip(runs, tests, strict=True)},
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The table in Markdown."""
    lines = [
        "| `experiment=` | parameters | epochs | n | test accuracy, mean ± std | min – max | validation | seconds |",
        "|---|---:|---:|---:|---|---|---|---:|",
    ]
    for row in rows:
        spread = f" ± {row['std']:.3f}" if row["std"] is not None else ""
        val = f"{row['val']:.2f} %" if row["val"] is not None else "–"
        seconds = f"{row['seconds']:,.{0 if row['seconds'] >= 10 else 1}f}" if row["seconds"] is not None else "–"
        lines.append(
            f"| `{row['recipe']}` | {row['parameters']:,} | {row['epochs']} | {row['n']} | {row['mean']:.3f}{spread} % "
            f"| {row['min']:.2f} – {row['max']:.2f} | {val} | {seconds} |"
        )
    return "\n".join(lines)


def _kind(recipe: str) -> str:
    if recipe in KERAS_SEEDS:
        return "keras"
    return "published" if f"keras/{recipe}" in KERAS_SEEDS else "ours"


def plot(rows: Sequence[dict[str, Any]]) -> Figure:
    """Mean test accuracy against training time; the axis of accuracy is one of errors, from many to few."""
    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    axes = figure.subplots()
    for kind, colour, label in (
        ("ours", "#1f5fa8", "recipes of this project"),
        ("published", "#5b6573", "published recipes, here"),
        ("keras", "#b0413e", "published recipes, in Keras on TensorFlow"),
    ):
        points = [row for row in rows if _kind(row["recipe"]) == kind and row["seconds"] is not None]
        if points:
            x, errors = [row["seconds"] for row in points], [100 - row["mean"] for row in points]
            axes.errorbar(x, errors, [row["std"] or 0 for row in points], fmt="o", color=colour, capsize=3, label=label)
        for row in points if kind != "keras" else ():
            name, offset, side = row["recipe"], -7, "right"
            if kind == "ours":
                name, offset, side = f"{row['recipe']}, {row['parameters']:,} parameters", 7, "left"
            axes.annotate(
                name, (row["seconds"], 100 - row["mean"]), (offset, 5),
                textcoords="offset points", ha=side, fontsize=8, color=colour,
            )  # fmt: skip
    for seconds, accuracy, name in PUBLISHED:
        axes.plot(seconds, 100 - accuracy, "D", color="#d9730d")
        axes.annotate(
            name, (seconds, 100 - accuracy), (7, -11), textcoords="offset points", fontsize=8, color="#d9730d"
        )
    axes.set(
        xscale="log", yscale="log", xlim=(0.5, 5000),
        xlabel="seconds of training on 2 cores (log scale)", ylabel="test accuracy, %",
    )  # fmt: skip
    axes.set_xticks([1, 10, 100, 1000], ["1", "10", "100", "1,000"])
    ticks = [3, 2, 1, 0.5, 0.3, 0.2]
    axes.set_yticks(ticks, [f"{100 - tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.invert_yaxis()
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper left", fontsize=8)
    return figure


def main() -> int:
    """Read the arguments, train, and write the table and the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "arguments", nargs="*", metavar="RECIPE|SETTING", help="recipes (all), and settings of each run"
    )
    parser.add_argument("--train", type=int, metavar="N", help="train at most the seeds below N; 0: train nothing")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once, each with one thread if more than one (1)")
    parser.add_argument("--keras", action="store_true", help="also the published recipes in Keras")
    parser.add_argument("--output", type=Path, help="write OUTPUT.json and OUTPUT.svg, such as docs/recipes")
    options = parser.parse_intermixed_args()
    seeds = SEEDS | (KERAS_SEEDS if options.keras else {})
    recipes = [name for name in options.arguments if "=" not in name] or list(seeds)
    settings = [setting for setting in options.arguments if "=" in setting]
    if unknown := set(recipes) - set(seeds):
        parser.error(f"no such recipe: {', '.join(sorted(unknown))}")
    folder = options.folder.resolve()
    wanted = [
        (recipe, seed)
        for recipe in recipes
        for seed in range(seeds[recipe] if options.train is None else min(options.train, seeds[recipe]))
    ]
    failures = train_all(folder, wanted, settings, options.jobs)
    rows = [row for recipe in recipes if (row := summary(folder, recipe))]
    print(table(rows))
    if options.output:
        options.output.with_suffix(".json").write_text(json.dumps(rows, indent=1) + "\n")
        plot(rows).savefig(options.output.with_suffix(".svg"), metadata={"Date": None})
    for failure in failures:
        print(failure, file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
