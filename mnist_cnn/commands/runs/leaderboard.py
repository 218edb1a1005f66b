"""`mnist-cnn leaderboard`: makes one table from the folders of runs."""

import argparse
import sys
from pathlib import Path

from mnist_cnn import quick_imports
from mnist_cnn.commands.arguments import add_json, file_path
from mnist_cnn.errors import UserError
from mnist_cnn.terminal import columns, print_json

DESCRIPTION = (
    "Make one table from run folders: a line for each setting, with the mean over its seeds and its 95 % interval, "
    "ranked by validation accuracy."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folders", metavar="FOLDER", nargs="+", type=file_path,
        help="a sweep, a run, or a folder that holds them at any depth",
    )  # fmt: skip
    parser.add_argument(
        "-o", "--output", metavar="FOLDER", type=file_path,
        help="where to write leaderboard.html, .md and .csv (the folder itself, if there is only one; else nowhere)",
    )  # fmt: skip
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    with quick_imports():
        from mnist_cnn.report.leaderboard import leaderboard, write_leaderboard

    folders: list[Path] = options.folders
    output = options.output or (folders[0] if len(folders) == 1 else None)
    made = write_leaderboard(folders, output) if output else leaderboard(folders)
    if options.json:
        print_json(made.to_dict())
    else:
        print(made.text(columns()))
        if output is None:
            print("not written to files: -o FOLDER names a place", file=sys.stderr)
    if not made.table.rows:
        raise UserError("there is no finished run in these folders.")
    return 0
