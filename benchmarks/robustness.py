"""How well do trained networks do on digits that are unlike their training images, and how far do their seeds agree?

    python benchmarks/robustness.py runs/tiny runs/deep --data-root data -o docs/robustness.md --json robustness.json
    python benchmarks/robustness.py runs/tiny --wrong docs/images/always-wrong.png --pictures PICTURES
    python benchmarks/robustness.py --sheet docs/images/corruptions.png --data-root data

Each FOLDER holds the runs of a recipe over several seeds, as `python train.py -m experiment=tiny seed=0,1,2
run_dir=runs/tiny` leaves them; a single run or a checkpoint will do too. A recipe is a model, the name of the folder,
and what the name of a run says apart from its number and its seed. Runs without metrics.json are not finished and are
left out. Everything is computed from `best.ckpt`, on the test images.

Takes ten seconds for the corruptions of MNIST, and for each run 17 times as long as `mnist-cnn evaluate` computes.
PICTURES is a folder of people's pictures. The first character of a file's name is its label, and `pictures.json` in the
same folder may tell the `kind` of each `file`.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import robustness_tables as tables
import torch
from corruptions import CORRUPTIONS, corrupt
from robustness_measures import always_wrong, calibration, logits_of
from robustness_recipes import CLEAN, Recipe, find_recipes
from robustness_sheets import corruption_sheet, failures_sheet, grey_png, wrong_sheet
from torch import Tensor

from mnist_cnn.data import datasets
from mnist_cnn.data.datasets import DataFiles
from mnist_cnn.data.images import Images
from mnist_cnn.data.sources import SOURCES
from mnist_cnn.errors import ConfigError, UserError
from mnist_cnn.inference.images import check_suits, images_for
from mnist_cnn.inference.predict import predict


def report(options: argparse.Namespace, recipes: Sequence[Recipe]) -> str:
    """Measure, draw and write what the command line asks for; returns the tables as Markdown."""
    name = _dataset(options.data, recipes)
    datasets.fetch(name, options.data_root, _mirror())
    dataset = datasets.load(name, options.data_root)
    test, classes = dataset.test, dataset.classes
    if options.sheet:
        _write(options.sheet, grey_png(corruption_sheet(test)))
    if not recipes:
        return ""
    measure(recipes, test, options.data_root)
    named = [recipe for recipe in recipes if recipe.name in (options.wrong_by or [recipe.name])]
    predicted = torch.cat([torch.stack(recipe.predicted) for recipe in named])
    wrong = always_wrong(predicted, test.labels).tolist()
    if options.wrong:
        given = {index: [answer for recipe in named for answer in recipe.answers_to(index)] for index in wrong}
        _write(options.wrong, grey_png(wrong_sheet(test, given, classes)))
    parts = [
        tables.corruptions(recipes),
        tables.calibration(recipes),
        tables.agreement(recipes, test.labels),
        tables.wrong(named, wrong, test.labels, classes),
    ]
    if options.pictures:
        classify(recipes, options.pictures)
        parts += [tables.pictures(recipes, tables.kinds(options.pictures)), tables.failures(recipes)]
        failed = tables.failed(recipes)
        if options.failures and failed:
            _write(options.failures, grey_png(failures_sheet(options.pictures, failed)))
    if options.json:
        measured = {recipe.name: recipe.to_dict(test.labels) for recipe in recipes}
        content = {"dataset": name, "wrong_in_every_run": wrong, "recipes": measured}
        _write(options.json, json.dumps(content, indent=1).encode())
    return "\n\n".join(parts)


def measure(recipes: Sequence[Recipe], test: Images, root: Path) -> None:
    """Fill in everything but the answers to people's pictures."""
    for recipe in recipes:
        with _timed(f"{recipe.name}: {len(recipe.runs)} runs, test and validation images"):
            for run in recipe.runs:
                logits = logits_of(run, test)
                recipe.predicted.append(logits.argmax(1))
                if run.split.get("val_fraction"):  # not for an imported network, or one trained on all images
                    val = images_for(run, "val", DataFiles(run.dataset, root, _mirror()))
                    fitted_on = (logits_of(run, val), val.labels)
                    recipe.calibration.append(calibration(fitted_on, (logits, test.labels)))
            recipe.accuracy[CLEAN] = [_accuracy(predicted, test.labels) for predicted in recipe.predicted]
    for number, name in enumerate(CORRUPTIONS, 1):
        with _timed(f"corruption {number} of {len(CORRUPTIONS)}, {name}"):
            corrupted = Images(corrupt(name, test.images), test.labels)
            for recipe in recipes:
                classes = [logits_of(run, corrupted).argmax(1) for run in recipe.runs]
                recipe.accuracy[name] = [_accuracy(predicted, test.labels) for predicted in classes]


def classify(recipes: Sequence[Recipe], folder: Path) -> None:
    """Fill in the answers to the pictures in a folder, which are those of `mnist-cnn predict`."""
    for recipe in recipes:
        with _timed(f"{recipe.name}: {len(recipe.runs)} runs, pictures"):
            for run in recipe.runs:
                for prediction in predict(run, [folder]):
                    answer = prediction.digit if prediction.error is None else "error"
                    given = recipe.pictures.setdefault(Path(prediction.file).name, [])
                    if prediction.line in (None, 1):
                        given.append(answer)
                    else:  # a further line of digits in the same picture
                        given[-1] += f"/{answer}"


def _dataset(wanted: str | None, recipes: Sequence[Recipe]) -> str:
    """The name of the data set to test on; ConfigError or DataError if it doesn't suit the runs or the corruptions."""
    runs = [run for recipe in recipes for run in recipe.runs]
    names = [wanted] if wanted else sorted({run.dataset for run in runs}) or ["mnist"]
    if len(names) > 1:
        raise ConfigError(f"the runs were trained on {', '.join(names)}; choose one, such as --data {names[0]}")
    for run in runs:
        check_suits(run, names[0], SOURCES[names[0]])
    if SOURCES[names[0]].image_shape[0] != 1:
        raise ConfigError(f"{names[0]} has colour images, and the corruptions are for grey ones.")
    return names[0]


def _accuracy(predicted: Tensor, labels: Tensor) -> float:
    return float((predicted == labels).double().mean())


def _mirror() -> str | None:
    return os.environ.get("MNIST_MIRROR")


@contextmanager
def _timed(what: str) -> Iterator[None]:
    start = time.perf_counter()
    print(f"{what} …", end=" ", file=sys.stderr, flush=True)
    yield
    print(f"{time.perf_counter() - start:.1f} s", file=sys.stderr)


def _write(file: Path, content: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)


def main() -> None:
    """Measure, as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="*", metavar="FOLDER")
    parser.add_argument("--data", help="the data set to test on, instead of the one that the runs were trained on")
    parser.add_argument("--data-root", type=Path, default=Path("data"))
    parser.add_argument("-o", "--output", type=Path, help="write the tables to this file too, as a page of its own")
    parser.add_argument("--json", type=Path, help="write every measurement to this file")
    parser.add_argument("--sheet", type=Path, help="draw one digit of each class under each corruption")
    parser.add_argument("--wrong", type=Path, help="draw the test images that every run gets wrong")
    parser.add_argument("--wrong-by", nargs="+", metavar="RECIPE", help="that every run of these recipes gets wrong")
    parser.add_argument("--pictures", type=Path, help="a folder of people's pictures to classify as well")
    parser.add_argument("--failures", type=Path, help="draw those of them that some run gets wrong")
    options = parser.parse_args()
    if not options.folders and not options.sheet:
        parser.error("name a folder of runs, or --sheet FILE")
    if options.failures and not options.pictures:
        parser.error("--failures needs --pictures")
    try:
        recipes = find_recipes(options.folders)
        unknown = set(options.wrong_by or ()) - {recipe.name for recipe in recipes}
        if unknown:
            parser.error(f"--wrong-by: no recipe {unknown.pop()}; there are {', '.join(one.name for one in recipes)}")
        text = report(options, recipes)
    except UserError as error:
        raise SystemExit(f"error: {error}") from error
    if text:
        print(text)
    if options.output:
        _write(options.output, f"{tables.HEAD}\n\n{text}\n".encode())


if __name__ == "__main__":
    main()
