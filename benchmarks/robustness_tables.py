"""Writes the Markdown tables of the robustness benchmark."""

import json
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import torch
from corruptions import CORRUPTIONS
from robustness_measures import Calibration, always_wrong, pairwise_agreement, unanimous
from robustness_recipes import CLEAN, Recipe
from robustness_sheets import answers
from torch import Tensor

HEAD = """# Robustness

Made by `python benchmarks/robustness.py runs/recipes/*/[0-2] -o docs/robustness.md --wrong docs/images/always-wrong.png
--wrong-by accurate strong`, from the best checkpoint of each run of `benchmarks/recipes.py`. The corruptions are in the
manner of MNIST-C (Mu and Gilmer 2019), each of one strength."""

_MOST = 40  # lines in a table of mistakes


def corruptions(recipes: Sequence[Recipe]) -> str:
    """Accuracy under each corruption, and the mean over all of them."""
    rows = [
        [name.replace("_", " "), *(_percent(one.accuracy[name]) for one in recipes)] for name in (CLEAN, *CORRUPTIONS)
    ]
    means = [_percent(one.corrupted) for one in recipes]
    title = "## Corruptions\n\nTest accuracy in %, mean ± standard deviation over the seeds; `none`: as they are."
    return _table(title, ["corruption", *(one.name for one in recipes)], [*rows, ["mean of the fifteen", *means]])


def calibration(recipes: Sequence[Recipe]) -> str:
    """Likelihood and calibration error before and after temperature scaling."""
    columns: list[tuple[str, Callable[[Calibration], float], int]] = [
        ("temperature", lambda one: one.temperature, 3),
        ("NLL", lambda one: one.nll, 4),
        ("NLL, scaled", lambda one: one.scaled_nll, 4),
        ("ECE, %", lambda one: 100 * one.ece, 2),
        ("ECE, scaled, %", lambda one: 100 * one.scaled_ece, 2),
    ]
    rows = [
        [one.name, *(_spread([of(run) for run in one.calibration], digits) for _, of, digits in columns)]
        for one in recipes
    ]
    title = (
        "## Calibration\n\nNegative log-likelihood (nats) and expected calibration error (15 bins) on the test images, "
        "before and after temperature scaling (Guo et al. 2017). Each run's temperature is fitted on its validation "
        "images."
    )
    return _table(title, ["recipe", *(name for name, _, _ in columns)], rows)


def agreement(recipes: Sequence[Recipe], labels: Tensor) -> str:
    """How often the seeds of each recipe give the same class, and how many images all of them get wrong."""
    rows = []
    for one in recipes:
        predicted = torch.stack(one.predicted)
        several = len(predicted) > 1
        cells = [f"{100 * of(predicted):.2f}" if several else "–" for of in (unanimous, pairwise_agreement)]
        rows.append([one.name, one.runs[0].model, f"{one.runs[0].network.parameter_count:,}", str(len(predicted))])
        rows[-1] += [_percent(one.accuracy[CLEAN]), *cells, f"{len(always_wrong(predicted, labels)):,}"]
    title = (
        "## Agreement of the seeds\n\nThe share of the test images that get the same class from all seeds of a recipe, "
        "the share that get it from two seeds (mean over all pairs), and how many images every seed gets wrong."
    )
    heads = ["recipe", "model", "parameters", "seeds", "accuracy, %", "all agree, %", "two agree, %", "always wrong"]
    return _table(title, heads, rows)


def wrong(recipes: Sequence[Recipe], indices: Sequence[int], labels: Tensor, classes: Sequence[str]) -> str:
    """The test images at these indices, their labels, and the answers of each recipe."""
    rows = [
        [f"{index:,}", classes[int(labels[index])]] + [answers(one.answers_to(index)) for one in recipes]
        for index in indices[:_MOST]
    ]
    names = ", ".join(one.name for one in recipes)
    title = f"## Always wrong\n\nTest images that every seed of {names} gets wrong: {len(indices):,}"
    heads = ["image, counted from 0", "label", *(one.name for one in recipes)]
    return _table(title + _shown(len(indices)), heads, rows)


def pictures(recipes: Sequence[Recipe], kinds: Mapping[str, str]) -> str:
    """How many of people's pictures are classified correctly, by kind; a picture that `kinds` lacks is an "other"."""
    files = sorted(recipes[0].pictures)
    by_kind: dict[str, list[str]] = {}
    for file in files:
        by_kind.setdefault(kinds.get(file, "other"), []).append(file)
    rows = [[kind, f"{len(some)}", *_right(recipes, some)] for kind, some in [*sorted(by_kind.items()), ("all", files)]]
    title = "## People's pictures\n\nNumber classified correctly: mean ± standard deviation over the seeds."
    return _table(title, ["kind", "pictures", *(one.name for one in recipes)], rows)


def failures(recipes: Sequence[Recipe]) -> str:
    """The pictures that any run gets wrong, with the answers of each recipe."""
    names = sorted(failed(recipes))
    title = f"Pictures that some run gets wrong: {len(names)}"
    rows = [[name, *(answers(one.pictures[name]) for one in recipes)] for name in names[:_MOST]]
    return _table(title + _shown(len(names)), ["file", *(one.name for one in recipes)], rows)


def failed(recipes: Iterable[Recipe]) -> dict[str, list[str]]:
    """The answers of all runs to each picture that any of them gets wrong, by the name of its file."""
    given: dict[str, list[str]] = {}
    for recipe in recipes:
        for name, some in recipe.pictures.items():
            given.setdefault(name, []).extend(some)
    return {name: some for name, some in given.items() if set(some) != {name[0]}}


def kinds(folder: Path) -> dict[str, str]:
    """The kind of each picture in a folder by its file name, from `pictures.json`; empty where there is none."""
    file = folder / "pictures.json"
    return {entry["file"]: entry["kind"] for entry in json.loads(file.read_text())} if file.exists() else {}


def _right(recipes: Sequence[Recipe], files: Sequence[str]) -> list[str]:
    """The number of these pictures that the runs of each recipe classify correctly."""
    cells = []
    for one in recipes:
        runs = zip(*(one.pictures[file] for file in files), strict=True)
        right = [sum(answer == file[0] for answer, file in zip(run, files, strict=True)) for run in runs]
        cells.append(_spread(right, 1) if len(right) > 1 else f"{right[0]}")
    return cells


def _percent(values: Sequence[float]) -> str:
    return _spread([100 * value for value in values], 2)


def _spread(values: Sequence[float], digits: int) -> str:
    """Mean ± sample standard deviation; the mean alone of one value, and a dash where there is none."""
    if not values:
        return "–"
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{digits}f}{spread}"


def _shown(count: int) -> str:
    return f". The first {_MOST} are shown." if count > _MOST else "."


def _table(title: str, heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Markdown; the title alone where there are no rows."""
    lines = [f"| {' | '.join(cells)} |" for cells in rows]
    alignment = f"|---{'|---:' * (len(heads) - 1)}|"
    return "\n".join([title, "", f"| {' | '.join(heads)} |", alignment, *lines]) if lines else title
