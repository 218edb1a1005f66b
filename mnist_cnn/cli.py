"""The command line: `mnist-cnn <command>`."""

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from mnist_cnn import __version__
from mnist_cnn.commands import doctor, evaluate, explain, export, import_keras, models, page, predict, train
from mnist_cnn.commands.runs import compare, leaderboard, search
from mnist_cnn.errors import one_line
from mnist_cnn.terminal import allow_any_text, run_command

COMMANDS = {
    "search": search,
    "leaderboard": leaderboard,
    "compare": compare,
    "evaluate": evaluate,
    "predict": predict,
    "explain": explain,
    "page": page,
    "models": models,
    "import-keras": import_keras,
    "export": export,
    "doctor": doctor,
}

# What `mnist-cnn --help` lists.
_LIST = """\
train a network
  train         the same as python train.py; mnist-cnn train --help lists the settings
  search        try many settings, and find those with the best validation accuracy

compare runs
  leaderboard   make one table from the folders of runs or sweeps
  compare       say whether networks or settings differ, and how sure that is

use a trained network
  evaluate      measure its accuracy on test, validation or training images
  predict       say which digit or number a picture shows
  explain       show how a network reads a picture, on an HTML page
  page          write an HTML file to draw on, with the network inside
  models        list the trained networks that come with this package

exchange networks with other programs
  import-keras  make a checkpoint from a Keras model (.keras, .h5, .hdf5)
  export        write an ONNX, .pt2 or Keras file from a checkpoint

report a problem
  doctor        describe this installation and machine, with nothing private

mnist-cnn COMMAND --help describes the options of a command.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status: 0 done, 1 failed, 2 wrong usage."""
    allow_any_text()
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["train"]:  # Hydra has a grammar of its own
        return train.main(words[1:], words[:1])
    parser = _parser()
    options, rest = parser.parse_known_args(words)
    if "settings" in options:  # argparse fills it from one unbroken group of words only
        options.settings += [word for word in rest if not word.startswith("-")]
        rest = [word for word in rest if word.startswith("-")]
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return run_command(lambda: int(options.run(options)))


class _Parser(argparse.ArgumentParser):
    """Its errors quote arguments, which may hold anything."""

    def error(self, message: str) -> NoReturn:
        super().error(one_line(message, 1000))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="mnist-cnn",
        usage="mnist-cnn [-h] [--version] COMMAND ...",
        description="Train small networks on MNIST, and use them.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"mnist-cnn {__version__}")
    commands = parser.add_subparsers(
        title="commands",
        description=_LIST,
        prog="mnist-cnn",
        required=True,
        metavar="COMMAND",
        help=argparse.SUPPRESS,
    )
    commands.add_parser("train")  # named where a command is unknown; `main` has passed it on
    for name, command in COMMANDS.items():
        added = commands.add_parser(name, description=command.DESCRIPTION)
        command.add_arguments(added)
        added.set_defaults(run=command.run)
    return parser


if __name__ == "__main__":
    sys.exit(main())
