"""`mnist-cnn train` and `python train.py`: trains a network, as Hydra composes the settings."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from mnist_cnn import quick_imports
from mnist_cnn.errors import missing_package
from mnist_cnn.terminal import columns, command_line, failed, run_command

if TYPE_CHECKING:
    from omegaconf import DictConfig


def main(arguments: Sequence[str], words: Sequence[str] = ()) -> int:
    """Train with these settings and flags; returns the exit status. `words` are those before them, such as `train`."""
    if find_spec("hydra") is None:
        return failed(str(missing_package("hydra")))
    from mnist_cnn.hydra_cli.compose import CONF
    from mnist_cnn.hydra_cli.run import run_hydra

    return run_hydra(train, CONF, arguments, words, leaderboard)


def train(composed: "DictConfig") -> float | None:
    """One run, as composed; returns the validation accuracy, which is what a search may optimise."""
    from mnist_cnn.config import to_config

    config = to_config(composed)  # checks types and ranges, before Lightning, which takes seconds, is imported
    with quick_imports():
        from mnist_cnn.training.run import train as train_network

    run = train_network(config, command_line())
    return run.val.accuracy if run and run.val else None


def leaderboard(sweep: Path) -> int:
    """Write the leaderboard of a sweep into its folder, and print it; returns the exit status."""

    def write() -> int:
        with quick_imports():
            from mnist_cnn.report.leaderboard import write_leaderboard

        made = write_leaderboard([sweep], sweep)
        print(f"\n{made.text(columns(), with_failed=False)}")  # which follow, as errors
        return 0

    return run_command(write)
