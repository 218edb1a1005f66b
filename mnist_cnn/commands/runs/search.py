"""`mnist-cnn search`: searches for good settings, with many runs."""

import argparse
import shlex
import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from mnist_cnn import quick_imports
from mnist_cnn.commands.arguments import add_json, file_path
from mnist_cnn.errors import ConfigError, one_line
from mnist_cnn.terminal import print_json, train_command

if TYPE_CHECKING:
    from sqlalchemy import URL

_SAMPLER, _PRUNER = "tpe", "median"  # the usual ones
DESCRIPTION = (
    "Search for the settings with the best validation accuracy. A setting that is searched over has several values, "
    "a,b,c, or range(…) or interval(…), as in: mnist-cnn search model=tiny data.batch_size=32,64 "
    "'optimizer.lr=tag(log, interval(1e-4, 1e-2))' --trials 40"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="settings, as for mnist-cnn train -m")
    parser.add_argument(
        "--trials", type=_count, default=20, metavar="N",
        help="how many trials, of all workers together (20); those that fail don't count",
    )  # fmt: skip
    parser.add_argument(
        "--sampler", default=_SAMPLER, metavar="NAME", help="%(default)s (default), gp, qmc, random or grid"
    )
    parser.add_argument(
        "--pruner", default=_PRUNER, metavar="NAME",
        help="what ends hopeless trials early: %(default)s (default), asha, hyperband or none",
    )  # fmt: skip
    parser.add_argument(
        "--storage", metavar="URL", help="the study's database, which several machines may share (a file in FOLDER)"
    )
    parser.add_argument("--seed", type=_seed, help="makes the choices of one worker repeatable")
    parser.add_argument(
        "-o", "--output", metavar="FOLDER", type=file_path,
        help="the folder of the search; with that of an earlier one, it goes on (a new one in runs/)",
    )  # fmt: skip
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    with quick_imports():
        from mnist_cnn.search import database, methods
        from mnist_cnn.search.report import report, text
        from mnist_cnn.search.space import check_space, read_space
        from mnist_cnn.search.trials import Worker
        from mnist_cnn.training.checks import check_machine, check_settings

    space = read_space(options.settings)
    sampler = methods.sampler(options.sampler, options.seed, space)
    pruner = methods.pruner(options.pruner)
    first = check_space(space)
    check_settings(first)
    check_machine(first)
    folder = options.output or Path("runs") / f"{datetime.now():%Y-%m-%d_%H-%M-%S}_search"
    url = database.database_url(options.storage, folder)
    command = _command(options, url)
    words = [*space.words(first.data.name), f"--sampler {options.sampler}", f"--pruner {options.pruner}"]
    is_new = _make_folder(folder, options.storage is None)
    try:
        study = database.open_study(url, folder, words, sampler, pruner, options.storage is not None)
    except BaseException:
        if is_new and not any(folder.iterdir()):
            folder.rmdir()
        raise
    try:
        with database.database_errors(url):
            Worker(space, study, folder, options.trials, options.sampler, options.seed).run()
    except BaseException:
        print(f"to go on with the search, repeat the command with -o {shlex.quote(str(folder))}", file=sys.stderr)
        raise
    with database.database_errors(url):
        findings = report(study, space, folder, command)
    if options.json:
        print_json({"folder": str(folder), **findings.to_dict()})
        return 0
    print(f"\n{text(findings)}\n\nreport  {one_line(folder / 'search.html')}")
    if findings.winner:
        print(f"winner  {train_command()} {findings.winner}")
    else:
        best = shlex.join(space.settings(findings.best[0].params))
        print(
            f"winner  no experiment file can hold its settings; train them with: {train_command()} -m {best} seed=0,1,2"
        )
    return 0


def _make_folder(folder: Path, has_database: bool) -> bool:
    """Make the folder, if there is none; ConfigError if it is there, and is not that of a search."""
    from mnist_cnn.search.database import FILE

    try:
        is_taken = folder.exists() and (not folder.is_dir() or (has_database and any(folder.iterdir())))
        if is_taken and not (folder / FILE).is_file():
            raise ConfigError(f"-o {one_line(folder)}: it exists already, and is not the folder of a search.")
        is_new = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"-o {one_line(folder)}: it can't be created: {error.strerror}.") from error
    return is_new


def _command(options: argparse.Namespace, url: "URL") -> str:
    """The command of the search, as it is recorded: without the password of its database."""
    from mnist_cnn.search.database import shown

    words = ["mnist-cnn", "search", *options.settings, "--trials", str(options.trials)]
    for option, usual in (("sampler", _SAMPLER), ("pruner", _PRUNER), ("seed", None)):
        value = getattr(options, option)
        words += [f"--{option}", str(value)] if value != usual else []
    return shlex.join([*words, *(["--storage", shown(url)] if options.storage else [])])


def _count(text: str) -> int:
    return _whole(text, 1, 100_000)


def _seed(text: str) -> int:
    return _whole(text, 0, 2**32 - 1)


def _whole(text: str, low: int, high: int) -> int:
    if not text.isascii() or not text.isdecimal() or not low <= int(text[:20]) <= high:
        raise argparse.ArgumentTypeError(f"it must be a whole number from {low:,} to {high:,}")
    return int(text)
