"""Hostile run folders and command lines for `train.py`, composed, checked and built as always, up to the training.

Replaced are the training and the report, but for a small share of the cases, whose training is stopped by a signal
after its first step; and the network, which is not there.
"""

import copy
import os
import random
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import yaml
from fuzz_contract import Fault, Kind, Outcome, hold
from fuzz_files import ODD_VALUES
from fuzz_mutations import ODD, RANDOM, mutate_bytes, mutate_values
from hypothesis import strategies as st

from mnist_cnn.commands import train
from mnist_cnn.data import datasets
from mnist_cnn.data.datasets import MissingFilesError
from mnist_cnn.inference.checkpoint import to_bytes
from mnist_cnn.training import run
from mnist_cnn.training.callbacks import Finite

_STOPPED = 128 + signal.SIGTERM
GOOD = ("model=tiny", "data=digits", "trainer=cpu", "trainer.max_epochs=2")


def good_run(folder: Path) -> Path:
    """The folder of a real run, of two epochs on the bundled digits."""
    outcome = hold(lambda: _train(*GOOD, "run_dir=run"), folder, 0)
    assert outcome.status == 0, outcome.err
    return folder / "run"


def _train(*arguments: str) -> int:
    """`python train.py …`."""
    with patch.object(sys, "argv", ["train.py", *arguments]), patch.dict(os.environ):
        return train.main(arguments)


@contextmanager
def _replaced(trains: bool) -> Iterator[None]:
    """Without a network, and without training, or stopped after a step of it."""

    def offline(name: str, root: Any, mirror: str | None = None) -> None:
        if name != "digits":
            raise MissingFilesError(f"{name} is not available")

    def stop(*_: Any) -> None:
        signal.raise_signal(signal.SIGTERM)

    with patch.object(datasets, "fetch", offline):
        if trains:
            with patch.object(Finite, "on_train_batch_start", stop, create=True):
                yield
        else:
            with patch.object(run, "fit", _nothing), patch.object(run, "evaluate_and_report", _nothing):
                yield


def _nothing(*_: Any) -> None:
    return None


# --- run folders ------------------------------------------------------------------------------------------------

_STRANGE = [
    "canary.Callback", {"_target_": "canary.Callback"}, {"_target_": "os.system", "command": "true"}, "os.system",
    {"_target_": "lightning.pytorch.callbacks.LambdaCallback", "setup": {"_target_": "canary.Callback"}},
    {"_target_": "lightning.pytorch.callbacks.ModelCheckpoint", "dirpath": "/elsewhere"},
    {"_target_": "lightning.pytorch.callbacks.EarlyStopping", "monitor": "val/loss", "patience": 1},
    {"_target_": "lightning.pytorch.callbacks.LearningRateMonitor"}, {"_target_": "lightning.pytorch.callbacks.Timer"},
    {"_target_": "lightning.pytorch.loggers.CSVLogger", "save_dir": "${run_dir}/../x"},
    {"_target_": "torch.load", "f": "x"},
    {"_target_": "lightning.pytorch.loggers.CSVLogger", "save_dir": "${run_dir}", "name": ".."},
    {"_target_": "torch.optim.LBFGS", "lr": 0.1}, {"_target_": "torch.optim.SGD", "lr": 0.1, "momentum": "${seed}"},
    {"_target_": "torch.optim.lr_scheduler.LambdaLR", "lr_lambda": "canary.Callback"},
    {"_target_": "torch.optim.lr_scheduler.StepLR", "step_size": 0},
    {"_target_": "mnist_cnn.training.optimizers.KerasAdam"}, "${oc.env:HOME}", "${run_dir}", "${run_dir}/../elsewhere",
    "/elsewhere", "../elsewhere", "~/elsewhere", "http://x/", "file:///elsewhere", "\x1b[31mred", "\udcff",
    "two\nlines", "mnist", "cifar10", "auto", "gpu", "ddp", "16-mixed", "val/loss",
]  # fmt: skip
_GROUPS = ["model", "data", "trainer", "optimizer", "scheduler", "callbacks", "logger"]
_KEYS = [
    "evil", "_target_", "_partial_", "_args_", "_convert_", "default_root_dir", "num_nodes", "plugins", "profiler",
    "logger", "limit_train_batches", "accumulate_grad_batches", "max_steps", "extra", "init_from", "dirpath",
    "monitor", "a.b", "name", 1, None,
]  # fmt: skip
_CHANGES = [
    "trainer.max_epochs=3",
    "trainer.max_epochs=1",
    "trainer=cpu",
    "logger=none",
    "+callbacks.evil=null",
    "data=digits",
    "seed=0",
]


@dataclass(frozen=True)
class Folder:
    """A run's folder: its files by name, or None for a link, and the further settings that resume it."""

    files: dict[str, bytes | None]
    changes: tuple[str, ...]
    trains: bool

    def __repr__(self) -> str:
        sizes = {name: len(content or b"") for name, content in self.files.items()}
        return f"Folder({sizes}, {self.changes}, {self.trains})"


def runs(folder: Path, run: Path) -> Kind[Folder]:
    """Folders of a run whose configuration and checkpoints are damaged, or changed by somebody who knows them."""
    names = ("config.yaml", "checkpoints/last.ckpt", "checkpoints/best.ckpt")
    good = {name: (run / name).read_bytes() for name in names}
    contents = {name: torch.load(run / name, weights_only=True) for name in names[1:]}
    values = yaml.safe_load(good["config.yaml"])
    (folder / "canary.py").write_text("raise SystemExit('code of the run folder was run')\n")

    def configuration(rng: random.Random) -> bytes:
        if rng.random() < 0.2:
            return mutate_bytes(good["config.yaml"], rng)
        changed = copy.deepcopy(values)
        if rng.random() < 0.5:
            mutate_values(changed, rng, [*ODD, *_STRANGE])
        for _ in range(rng.choice((0, 1, 1, 2))):
            group = changed.get(rng.choice(_GROUPS))
            if isinstance(group, dict):
                group[rng.choice(_KEYS)] = copy.deepcopy(rng.choice([*_STRANGE, *ODD]))
        return yaml.safe_dump(changed, sort_keys=False).encode("utf-8", "surrogateescape")

    def checkpoint(name: str, rng: random.Random) -> bytes | None:
        if rng.random() < 0.2:
            return rng.choice([mutate_bytes(good[name], rng), None])
        content = copy.deepcopy(contents[name])
        part = rng.choice([content, *(content[key] for key in ("loops", "callbacks", "optimizer_states", "mnist_cnn"))])
        mutate_values(part, rng, [*ODD_VALUES, "/elsewhere/x.ckpt", "../x.ckpt", 10**9, 2, 5])
        return to_bytes(content)

    def made(what: int, changes: list[str], trains: bool, rng: random.Random) -> Folder:
        files: dict[str, bytes | None] = dict(good)
        if what & 1:
            files["config.yaml"] = configuration(rng)
        if what & 2:
            files["checkpoints/last.ckpt"] = checkpoint("checkpoints/last.ckpt", rng)
        if what & 4:
            files["checkpoints/best.ckpt"] = checkpoint("checkpoints/best.ckpt", rng)
        return Folder(files, tuple(changes), trains)

    def hold_one(case: Folder) -> Outcome:
        target = folder / "run"
        shutil.rmtree(target, ignore_errors=True)
        (target / "checkpoints").mkdir(parents=True)
        for name, content in case.files.items():
            if content is None:
                (target / name).symlink_to("../../canary.py")
            else:
                (target / name).write_bytes(content)
        size = sum(len(content or b"") for content in case.files.values())
        with _replaced(case.trains):
            outcome = hold(lambda: _train("resume=run", *case.changes), folder, size, lines=3, ends=_STOPPED)
        if "canary" in sys.modules:
            raise Fault("imported a module that a run folder names")
        if extra := {path.name for path in folder.iterdir()} - {"run", "canary.py"}:
            raise Fault(f"left {extra} beside the run folder")
        return outcome

    changes = st.lists(st.sampled_from(_CHANGES), max_size=2) | st.just(["trainer.max_epochs=3"])
    trains = st.integers(0, 7).map(lambda number: number == 7)
    return Kind(st.builds(made, st.sampled_from([1, 1, 2, 2, 3, 4, 6, 7]), changes, trains, RANDOM), hold_one)


# --- command lines ----------------------------------------------------------------------------------------------

_SETTING_KEYS = [
    "seed", "run_dir", "resume", "model", "model.name", "model.layers", "model.layers.0",
    "model.layers.0.Conv2D.filters", "model.layers.9", "model.layers.1.MaxPooling2D.pool_size", "model.init_from",
    "data", "data.name", "data.root", "data.mirror", "data.batch_size", "data.eval_batch_size", "data.val_fraction",
    "data.split", "data.normalize", "trainer", "trainer.accelerator", "trainer.devices", "trainer.strategy",
    "trainer.precision", "trainer.compile", "trainer.max_epochs", "trainer.deterministic",
    "+trainer.limit_train_batches", "+trainer.max_steps", "+trainer.gradient_clip_val", "+trainer.profiler",
    "+trainer.x", "optimizer", "optimizer.lr", "optimizer.betas", "optimizer.eps", "optimizer._target_",
    "+optimizer.weight_decay", "scheduler", "+scheduler._target_", "+scheduler.step_size", "+scheduler.interval",
    "callbacks", "callbacks.checkpoint", "callbacks.checkpoint.monitor", "callbacks.checkpoint.mode",
    "callbacks.checkpoint.dirpath", "callbacks.checkpoint.every_n_train_steps", "callbacks.checkpoint.every_n_minutes",
    "+callbacks.x._target_", "+callbacks.x", "logger", "logger.csv.file", "+logger.x._target_", "experiment", "debug",
    "~scheduler", "~callbacks.checkpoint", "~trainer", "++seed", "+seed", "hydra.job.name", "hydra/launcher",
    "hydra.verbose", "+", "", "~", "model@x", "seeds", "traner.max_epochs", "x.y.z",
]  # fmt: skip
_SETTING_VALUES = [
    "0", "1", "-1", "3", "0.5", "1e-3", "1e999", "nan", "inf", "-0", "00", "true", "false", "null", "", "''", "' '",
    "x", "auto", "cpu", "gpu", "ddp", "digits", "tiny", "mlp", "cosine", "onecycle", "sgd", "adamw", "early_stopping",
    "none", "csv", "tensorboard", "smoke", "overfit", "last", "stratified", "standard", "16-mixed", "bf16-mixed",
    "max", "min", "val/loss", "val/x", "[]", "{}", "[1,2]", "{a:1}", "[Flatten,{Dense:{units:10}}]", "[Flatten]",
    "{Dense:{units:10}}", "[{Dense:{units:1e9}}]", "{_target_:os.system}", "torch.optim.SGD", "torch.optim.LBFGS",
    "torch.optim.SparseAdam", "torch.optim.lr_scheduler.StepLR", "os.system", "x.y", "..", ".",
    "lightning.pytorch.callbacks.Timer", "lightning.pytorch.callbacks.EarlyStopping",
    "lightning.pytorch.loggers.CSVLogger", "1,2", "${seed}", "${x}", "${oc.env:NOTHING}", "${oc.env:HOME}",
    "${now:%Y}", "${", "}", "[", "{a", "'", "\"", "\\", "a=b", "a b", "é☃", "\udcff", "\x1b[31m", "two\nlines", "\x00",
    "x" * 3000, "99999999999999999999999", "1_000", "0x10", "range(1,3)", "choice(1,2)", "glob(*)", "interval(0,1)",
    "int(1.5)", "str(1)", "http://", "ftp://x", "file:///nowhere", "good", "canary.py", "%s", "{}.{}",
]  # fmt: skip
_FLAGS = [
    "-m", "--multirun", "--help", "-h", "--cfg=job", "--cfg=x", "--info", "--info=plugins", "--resolve", "--package=x",
    "--version", "--run", "--hydra-help", "--x", "-x", "--", "-", "--config-name=x", "-cn", "--config-dir=nowhere",
    "--shell-completion",
]  # fmt: skip


def settings(folder: Path, run: Path) -> Kind[tuple[list[str], bool]]:
    """Command lines of real and of misspelt keys, with values of every kind; flags; and any text."""
    shutil.copytree(run, folder / "good")
    kept = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    value = st.sampled_from(_SETTING_VALUES) | st.integers().map(str) | st.floats().map(str)
    setting = st.builds("{}={}".format, st.sampled_from(_SETTING_KEYS), value)
    texts = st.text(st.characters(exclude_characters="\x00/"), max_size=12)  # no path out of the folder
    argument = st.one_of(setting, setting, setting, st.sampled_from(_FLAGS), st.sampled_from(_SETTING_KEYS), texts)
    trains = st.integers(0, 49).map(lambda number: number == 49)

    def hold_one(case: tuple[list[str], bool]) -> Outcome:
        arguments, trains = case
        with _replaced(trains):
            outcome = hold(lambda: _train(*arguments), folder, 0, lines=3, ends=_STOPPED)
        _clean(folder, kept)
        return outcome

    line = st.lists(argument, min_size=1, max_size=5) | st.lists(argument, max_size=2).map(lambda more: [*GOOD, *more])
    return Kind(st.tuples(line, trains), hold_one)


def _clean(folder: Path, kept: dict[Path, bytes]) -> None:
    """Remove what a command has written."""
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir() and not path.is_symlink():
            if not any(path.iterdir()):
                path.rmdir()
        elif path not in kept:
            path.unlink()
    for path, content in kept.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
