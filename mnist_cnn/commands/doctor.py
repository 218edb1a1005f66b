"""`mnist-cnn doctor`: describes the installation for a bug report."""

import argparse

from mnist_cnn.commands.arguments import add_json, file_path
from mnist_cnn.terminal import print_json

DESCRIPTION = "Describe this installation and this machine, to be pasted into a bug report."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data-root", default="data", metavar="FOLDER", type=file_path, help="where images are (data)")
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    from mnist_cnn.doctor import examine

    diagnosis = examine(options.data_root)
    if options.json:
        print_json(diagnosis.to_dict())
    else:
        print(diagnosis.summary())
    return 1 if diagnosis.problems else 0
