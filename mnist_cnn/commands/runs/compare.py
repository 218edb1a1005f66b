"""`mnist-cnn compare`: says whether trained networks differ."""

import argparse

from mnist_cnn import quick_imports
from mnist_cnn.commands.arguments import add_images, add_json, check_output, data_files, file_path, images_of
from mnist_cnn.errors import ConfigError, one_line
from mnist_cnn.terminal import print_json

DESCRIPTION = (
    "Say whether networks differ in accuracy, on the same images. Two networks are compared image by image (McNemar's "
    "test); settings are compared over several seeds each (Welch's t-test). Ends with a sentence for a paper."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "runs", metavar="RUN", nargs="+",
        help="a checkpoint, a run folder, a network that mnist-cnn models lists, or a folder with the runs of several "
        "seeds; each is compared with the first",
    )  # fmt: skip
    parser.add_argument(
        "--with", dest="others", metavar="RUN", nargs="+", action="append", default=[],
        help="compare all runs before --with, as one side, with those after it as the other",
    )  # fmt: skip
    parser.add_argument(
        "-o", "--output", metavar="FILE.html", type=file_path,
        help="also write a page with the results and the images that changed sides",
    )  # fmt: skip
    add_images(parser)
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    with quick_imports():
        from mnist_cnn.files import write_file
        from mnist_cnn.report.compare.comparison import Comparison
        from mnist_cnn.report.compare.sides import common_dataset, evaluate_sides, read_sides

    groups = [options.runs, *options.others] if options.others else [[word] for word in options.runs]
    if len(groups) < 2:
        raise ConfigError("there is nothing to compare it with: mnist-cnn compare RUN_A RUN_B")
    if options.output:
        check_output("-o", options.output, ".html", ".htm")
    sides = read_sides(groups)
    files = data_files(options, options.data or common_dataset(sides))
    evaluated, images = evaluate_sides(
        sides, files.name, options.split, lambda trained: images_of(trained, options.split, files)
    )
    comparison = Comparison(evaluated)
    if options.output:
        from mnist_cnn.report.compare.page import page

        write_file(options.output, page(comparison, images).encode("utf-8", "backslashreplace"), replace=False)
    if options.json:
        print_json(comparison.to_dict())
    else:
        print(comparison.to_text())
        if options.output:
            print(f"\nwritten to {one_line(options.output)}")
    return 0
