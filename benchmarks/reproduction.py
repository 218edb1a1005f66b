"""Trains each published recipe with ten seeds, exactly as published, and compares the test accuracy with the claim.

    python benchmarks/reproduction.py runs/recipes data=mnist           # trains what is missing; stop it, and go on
    python benchmarks/reproduction.py runs/recipes tiny --seeds 3       # this recipe, three seeds
    python benchmarks/reproduction.py runs/recipes --output docs/reproduction

A run lies in FOLDER/RECIPE/SEED, as recipes.py has it. Two test accuracies are taken from each: that of the epoch
chosen on validation images, and that of the last epoch, which is what a program without validation would report. A
claim is the result of one run, so it is compared with what one more run would give: the 95 % prediction interval of
the ten, mean ± t·s·√(1 + 1/n). Seconds are those of seed 0, trained alone.
"""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure
from recipes import train_all
from scipy.stats import t

import mnist_cnn
from mnist_cnn.report.statistics import Summary, summary


class Claim(NamedTuple):
    """A published test accuracy in %, exact to ± `half`, half a unit of its last digit; None: "high", no number."""

    accuracy: float | None
    half: float
    words: str


CLAIMS = {
    "baseline": Claim(99.7, 0.05, "~99.7 %"),
    "tiny": Claim(98.17, 0.005, "98.17 %, loss 0.0586"),
    "deep": Claim(99, 0.5, "~99 %"),
    "dropout": Claim(None, 0, "“high”"),
    "mlp": Claim(97.2, 0.05, "97.2 %"),
}


class Result(NamedTuple):
    """What the runs of a recipe gave: accuracies in %, one for each seed, and losses."""

    recipe: str
    chosen: list[float]  # of the epoch chosen on validation images
    last: list[float]  # of the last epoch, of the runs that still have its checkpoint
    loss: list[float]
    seconds: float | None  # of seed 0 on a CPU

    @property
    def one_run(self) -> tuple[float, float] | None:
        """The 95 % prediction interval of one more run; None if there is only one."""
        n, mean, std = summary(self.chosen)[:3]
        if std is None:
            return None
        half = t.ppf(0.975, n - 1) * std * math.sqrt(1 + 1 / n)
        return mean - half, mean + half


def result(folder: Path, recipe: str, seeds: int, root: str) -> Result | None:
    """The result of a recipe from its finished runs; None if there is none."""
    chosen, last, loss, seconds = [], [], [], None
    for seed in range(seeds):
        run = folder / recipe / str(seed)
        if not (run / "metrics.json").exists():
            continue
        metrics = json.loads((run / "metrics.json").read_text())
        if metrics["interrupted"]:
            continue
        chosen.append(100 * metrics["test/accuracy"])
        loss.append(metrics["test/loss"])
        if (run / "checkpoints" / "last.ckpt").exists():  # somebody may have removed it, for its size
            last.append(100 * mnist_cnn.load(run / "checkpoints" / "last.ckpt").evaluate(root=root).accuracy)
        if seed == 0 and metrics["accelerator"] == "cpu":
            seconds = metrics["fit_seconds"]
    return Result(recipe, chosen, last, loss, seconds) if chosen else None


def verdict(found: Result, claim: Claim) -> str:
    """In a sentence, whether the claim is reproduced."""
    mean = summary(found.chosen)
    if mean.low is None or mean.high is None or found.one_run is None:
        return f"One run gives {mean.mean:.2f} %; a verdict takes more seeds."
    low, high = found.one_run
    average = f"{mean.mean:.2f} % on average (95 % interval {mean.low:.2f} to {mean.high:.2f})"
    if claim.accuracy is None:
        return f"No number is claimed; the recipe gives {average}."
    if mean.low - claim.half <= claim.accuracy <= mean.high + claim.half:
        return f"Reproduced: {average}."
    side = "above" if claim.accuracy > mean.mean else "below"
    one = f"one run in twenty lies outside {low:.2f} to {high:.2f}"
    if low - claim.half <= claim.accuracy <= high + claim.half:
        return f"Within reach of a single run, but {side} the average: {average}; {one}."
    return f"Not reproduced: the claim lies {side} what single runs give: {average}; {one}."


def table(results: Sequence[Result]) -> str:
    """The table in Markdown."""
    lines = [
        "| `experiment=` | claimed | n | test accuracy, chosen epoch | min – max | last epoch | min – max | loss "
        "| seconds | verdict |",
        "|---|---|---:|---|---|---|---|---:|---:|---|",
    ]
    for found in results:
        claim = CLAIMS[found.recipe]
        chosen, last = (
            (spread(summary(values)), f"{min(values):.2f} – {max(values):.2f}") if values else ("–", "–")
            for values in (found.chosen, found.last)
        )
        some = "" if len(found.last) == len(found.chosen) else f" ({len(found.last)} seeds)"
        loss = f"{summary(found.loss).mean:.4f}"
        seconds = "–" if found.seconds is None else f"{found.seconds:.1f}"
        start = f"| `{found.recipe}` | {claim.words} | {len(found.chosen)}"
        lines.append(
            f"{start} | {' | '.join((*chosen, last[0] + some, last[1], loss, seconds))} | {verdict(found, claim)} |"
        )
    return "\n".join(lines)


def spread(values: Summary) -> str:
    """Mean ± standard deviation."""
    return f"{values.mean:.2f} %" if values.std is None else f"{values.mean:.2f} ± {values.std:.2f} %"


def plot(results: Sequence[Result]) -> Figure:
    """Every run's test accuracy, the mean with its interval, what one run gives, and the claim."""
    figure = Figure(figsize=(7.2, 0.8 + 0.62 * len(results)), layout="constrained")
    axes = figure.subplots()
    for place, found in enumerate(results):
        mean, claim = summary(found.chosen), CLAIMS[found.recipe]
        if found.one_run:
            low, high = found.one_run
            axes.barh(place, high - low, 0.5, low, color="#dbe6f3", label="what one run gives (95 %)")
        axes.plot(found.chosen, [place] * len(found.chosen), "o", color="#1f5fa8", ms=4, alpha=0.6, label="each run")
        if mean.low is not None and mean.high is not None:
            half = mean.mean - mean.low
            axes.errorbar(mean.mean, place, xerr=half, fmt="|", color="#12395f", capsize=5, ms=12, label="mean (95 %)")
        if claim.accuracy is not None:
            axes.errorbar(claim.accuracy, place, xerr=claim.half, fmt="D", color="#d9730d", capsize=3, label="claimed")
    axes.use_sticky_edges = False  # of the bars, which would end at the frame
    axes.set_yticks(range(len(results)), [found.recipe for found in results])
    axes.invert_yaxis()
    axes.set(xlabel="test accuracy, %")
    axes.grid(alpha=0.3, axis="x")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    labelled = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))  # each label once
    figure.legend(labelled.values(), labelled, frameon=False, fontsize=8, loc="outside upper center", ncols=4)
    return figure


def main() -> int:
    """Read the arguments, train what is missing, and write the table and the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "arguments", nargs="*", metavar="RECIPE|SETTING", help="recipes (all five), and settings of each run"
    )
    parser.add_argument("--seeds", type=int, default=10, metavar="N", help="the seeds 0 to N-1 (10)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once, each with one thread if more than one (1)")
    parser.add_argument("--output", type=Path, help="write OUTPUT.json and OUTPUT.svg, such as docs/reproduction")
    options = parser.parse_intermixed_args()
    recipes = [name for name in options.arguments if "=" not in name] or list(CLAIMS)
    settings = [setting for setting in options.arguments if "=" in setting]
    if unknown := set(recipes) - set(CLAIMS):
        parser.error(f"no such recipe: {', '.join(sorted(unknown))}")
    folder = options.folder.resolve()
    wanted = [(recipe, seed) for recipe in recipes for seed in range(options.seeds)]
    failures = train_all(folder, wanted, settings, options.jobs)
    root = next((one.removeprefix("data.root=") for one in settings if one.startswith("data.root=")), "data")
    results = [found for recipe in recipes if (found := result(folder, recipe, options.seeds, root))]
    print(table(results))
    if options.output and results:
        content: list[dict[str, Any]] = [
            {**found._asdict(), "one_run": found.one_run, "verdict": verdict(found, CLAIMS[found.recipe])}
            for found in results
        ]
        options.output.with_suffix(".json").write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
        plot(results).savefig(options.output.with_suffix(".svg"), metadata={"Date": None})
    for failure in failures:
        print(failure, file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
