"""A resumed run ends as the undisturbed one, keeps its recipe, and takes nothing else from a stranger's folder."""

import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import joblib
import lightning.pytorch as pl
import pytest
import torch
import yaml
from lightning.pytorch.loggers import CSVLogger

from mnist_cnn.inference import checkpoint
from mnist_cnn.training.callbacks import Finite
from tests.conftest import (
    QUICK,
    ROOT,
    FakeMnist,
    Outcome,
    assert_equal_runs,
    metrics,
    run_process,
    train_command,
    weights,
)
from tests.test_training import CTRL_C

# --- the same as if it had not been stopped ---------------------------------------------------------------------


def test_resume_after_ctrl_c_gives_identical_weights_also_in_another_place() -> None:
    layers = "[{Conv2D:{filters:8,kernel_size:4}},Flatten,{Dropout:{rate:0.5}},{Dense:{units:10}}]"
    slow = (f"model.layers={layers}", "data=digits", "trainer=cpu", "trainer.max_epochs=6", "data.batch_size=4")
    stopped = run_process(*slow, "run_dir=stopped", interrupt_after=r"epoch  1/6")
    assert stopped.status == 130
    assert "Traceback" not in stopped.err
    assert "interrupted" in stopped.out
    done = metrics(Path("stopped"))
    assert done["interrupted"]
    assert 1 <= done["epochs"] < 6
    shutil.move("stopped", "moved")
    assert train_command("resume=moved").status == 0
    assert train_command(*slow, "run_dir=whole").status == 0
    assert_equal_runs(Path("moved"), Path("whole"))
    best, whole = weights(Path("moved"), "best"), weights(Path("whole"), "best")
    assert all(torch.equal(best[key], whole[key]) for key in best)


# Settings whose state an epoch in its middle must keep: dropout, momentum, a scheduler, averages, single steps.
RECIPES = {
    "steps together": ("model=dropout", "data.batch_size=100"),
    "single steps": ("model=dropout", "data.batch_size=100", "+trainer.gradient_clip_val=1.0"),
    "one-cycle": ("optimizer=sgd", "scheduler=onecycle"),
    "bfloat16": ("model=mlp", "trainer.precision=bf16-mixed"),
    "accumulated": ("model=mlp", "+trainer.accumulate_grad_batches=2", "data.batch_size=50"),
    "averaged": ("model=mlp", "+callbacks.average._target_=lightning.pytorch.callbacks.EMAWeightAveraging"),
    "plateau": (
        "model=mlp", "+scheduler._target_=torch.optim.lr_scheduler.ReduceLROnPlateau", "+scheduler.monitor=val/loss",
        "+scheduler.patience=0", "+scheduler.threshold=0.5",
    ),
    "augmented": (
        "model=dropout", "augmentation=elastic", "augmentation.erasing=0.5", "loss.label_smoothing=0.1",
        "callbacks=ema", "optimizer=adamw", "optimizer.decay_kernels_only=true", "scheduler=onecycle",
    ),
    "averaged later, one by one": (
        "model=dropout", "optimizer=muon", "callbacks=swa", "callbacks.averaging.first_epoch=2",
        "+trainer.gradient_clip_val=1.0",
        "+callbacks.rates._target_=mnist_cnn.training.callbacks.DropoutSchedule",
    ),
    "without validation": ("model=mlp", "data.val_fraction=0", "callbacks=ema", "callbacks.averaging.decay=0.9"),
    "early stopping": ("callbacks=early_stopping", "callbacks.early_stopping.patience=1", "optimizer.lr=0.1"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("recipe", "number"),
    [
        *(
            (name, signal.SIGTERM)
            for name in (
                "steps together",
                "augmented",
                "averaged later, one by one",
                "without validation",
                "plateau",
                "early stopping",
            )
        ),
        ("steps together", signal.SIGINT),
        *(
            pytest.param(name, signal.SIGHUP, marks=pytest.mark.full)
            for name in ("averaged", "single steps", "one-cycle", "bfloat16", "accumulated")
        ),
    ],
)
def test_a_run_that_is_stopped_in_mid_epoch_goes_on_as_if_it_had_not_been(
    recipe: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = (*QUICK, "trainer.max_epochs=3", *RECIPES[recipe], "callbacks.checkpoint.every_n_train_steps=3")
    assert train_command(*settings, "run_dir=whole").status == 0
    with monkeypatch.context() as patch:  # not a callback of our own: steps would not be taken together
        patch.setattr(Finite, "on_train_batch_start", partial(signal_in_second_epoch, number), raising=False)
        stopped = train_command(*settings, "run_dir=stopped")
    assert stopped.status == 128 + number, stopped.err
    assert "continue with" in stopped.out + stopped.err
    resumed = train_command("resume=stopped")
    assert resumed.status == 0, resumed.err
    assert "resuming stopped in epoch 2, at step" in resumed.err
    assert_equal_runs(Path("stopped"), Path("whole"))


def signal_in_second_epoch(number: int, trainer: pl.Trainer, *_: Any) -> None:
    if trainer.current_epoch == 1 and trainer.fit_loop.epoch_loop.batch_progress.current.ready == 2:
        signal.raise_signal(number)


def test_a_plateau_is_noticed_in_the_same_epoch_whether_or_not_the_run_was_stopped_there() -> None:
    settings = (*QUICK[1:3], *RECIPES["plateau"])
    assert train_command(*settings, "trainer.max_epochs=4", "run_dir=whole").status == 0
    rates = [row["lr"] for row in metrics(Path("whole"))["history"]]
    assert rates == pytest.approx([1e-3, 1e-3, 1e-4, 1e-5])  # as PyTorch documents it for patience=0
    assert train_command(*settings, "trainer.max_epochs=2", "run_dir=run").status == 0
    assert train_command("resume=run", "trainer.max_epochs=4").status == 0
    assert_equal_runs(Path("run"), Path("whole"))


def test_ctrl_c_in_the_first_epoch_leaves_a_usable_checkpoint() -> None:
    stopped = train_command(*QUICK, "run_dir=stopped", CTRL_C[0], f"{CTRL_C[1]}5")
    assert stopped.status == 130
    assert "none was finished" in stopped.out
    assert "python train.py resume=stopped" in stopped.out
    assert metrics(Path("stopped"))["epochs"] == 0
    assert checkpoint.load("stopped").network.parameter_count == 6320
    refused = train_command("resume=stopped", "+callbacks.ctrl_c=null")  # which takes several steps at once
    assert refused.status == 1
    assert "batches of 128 images were taken" in refused.err
    assert train_command("resume=stopped", CTRL_C[0], f"{CTRL_C[1]}5").status == 0
    assert train_command(*QUICK, "run_dir=whole", CTRL_C[0], f"{CTRL_C[1]}99").status == 0
    assert_equal_runs(Path("stopped"), Path("whole"))


@pytest.mark.parametrize("lost", [["last.ckpt"], ["best.ckpt", "last.ckpt"]], ids=" and ".join)
def test_a_run_goes_on_from_what_is_left_of_its_checkpoints(lost: list[str], digits_run: Path) -> None:
    shutil.copytree(digits_run, "run")
    for name in lost:
        Path("run/checkpoints", name).unlink()
    outcome = train_command("resume=run", "trainer.max_epochs=4")
    assert outcome.status == 0, outcome.err
    assert {1: "from best.ckpt", 2: "from the beginning"}[len(lost)] in outcome.err
    assert train_command("model=tiny", *QUICK[1:3], "trainer.max_epochs=4", "run_dir=whole").status == 0
    assert_equal_runs(Path("run"), Path("whole"))


@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_a_run_that_has_lost_its_best_epoch_does_not_present_another_one_as_the_best(
    damage: str, digits_run: Path
) -> None:
    shutil.copytree(digits_run, "run")
    best = Path("run/checkpoints/best.ckpt")
    best.unlink() if damage == "missing" else best.write_bytes(best.read_bytes()[:-9])
    outcome = train_command("resume=run", "trainer.max_epochs=4")
    assert outcome.status == 1
    assert "It may have been the best epoch. To begin again, remove run/checkpoints" in outcome.err


def test_an_early_stopped_run_stays_stopped() -> None:
    settings = (*QUICK, "callbacks=early_stopping", "callbacks.early_stopping.patience=1", "optimizer.lr=0.1")
    assert train_command(*settings, "trainer.max_epochs=30", "run_dir=run").status == 0
    before = metrics(Path("run"))
    assert before["epochs"] < 30
    assert train_command("resume=run", "trainer.max_epochs=40").status == 0
    assert metrics(Path("run")) == before


def test_a_second_process_is_kept_out_of_a_run_until_the_first_one_ends() -> None:
    slow = "+callbacks.wait._target_=tests.test_resume.Wait"
    command = [sys.executable, str(ROOT / "train.py"), *QUICK, slow, "run_dir=run"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    first = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    assert first.stderr is not None
    while "waiting" not in first.stderr.readline():
        assert first.poll() is None
    second = train_command("resume=run", slow)
    assert second.status == 1
    assert "run: another process is training in it" in second.err
    first.kill()  # and leaves its lock behind, which nobody holds any more
    first.communicate()  # closes the pipe
    assert train_command("resume=run", "+callbacks.wait=null").status == 0


def test_a_finished_run_goes_on_with_more_epochs(digits_run: Path, tmp_path: Path) -> None:
    shutil.copytree(digits_run, tmp_path / "copy")
    assert train_command(f"resume={tmp_path / 'copy'}", "trainer.max_epochs=4").status == 0
    whole = ("model=tiny", "data=digits", "trainer=cpu", "trainer.max_epochs=4", "run_dir=whole")
    assert train_command(*whole).status == 0
    assert_equal_runs(tmp_path / "copy", Path("whole"))


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ("optimizer.lr=0.5", "optimizer.lr can't be changed when a run is resumed (it was 0.001)"),
        ("scheduler=cosine", "scheduler._target_ can't be changed"),
        ("data=mnist", "data.name can't be changed when a run is resumed (it was digits)"),
        ("data.val_fraction=0.5", "data.val_fraction can't be changed"),
        ("seed=7", "seed can't be changed"),
        ("model=mlp", "model.layers can't be changed"),
        ("trainer.max_epochs=2", "it already has 3 epochs"),
        (
            "callbacks.checkpoint.monitor=val/loss",
            "callbacks.checkpoint.monitor can't be changed when a run is resumed (it was val/acc",
        ),
        ("callbacks=early_stopping", "callbacks can't be changed"),
        (
            "+callbacks.x._target_=lightning.pytorch.callbacks.LearningRateMonitor",
            "callbacks.x._target_ can't be",
        ),
        ("+trainer.limit_train_batches=3", "trainer.limit_train_batches can't be changed"),
        ("trainer.precision=bf16-mixed", "trainer.precision can't be changed"),
        ("experiment=tiny", "experiment can't be changed"),
        ("run_dir=other", "leave out run_dir"),
    ],
)
def test_a_resumed_run_keeps_its_recipe_and_a_refusal_leaves_it_as_it_was(
    digits_run: Path, tmp_path: Path, changed: str, says: str
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(digits_run, copy)
    outcome = train_command(f"resume={copy}", changed)
    assert outcome.status == 2, outcome.err
    assert says in outcome.err
    for name in ("config.yaml", "metrics.json"):
        assert (copy / name).read_bytes() == (digits_run / name).read_bytes()


@pytest.mark.parametrize("damage", ["cut", "flipped", "text", "empty"])
def test_a_damaged_last_checkpoint_is_told_and_the_best_one_taken(damage: str, digits_run: Path) -> None:
    shutil.copytree(digits_run, "run")
    last = Path("run/checkpoints/last.ckpt")
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 1
    last.write_bytes({"cut": bytes(content[:-500]), "flipped": bytes(content), "text": b"text", "empty": b""}[damage])
    outcome = train_command("resume=run", "trainer.max_epochs=4")
    assert outcome.status == 0, outcome.err
    assert "warning: run/checkpoints/last.ckpt: " in outcome.err
    assert "from best.ckpt" in outcome.err
    assert train_command("model=tiny", *QUICK[1:3], "trainer.max_epochs=4", "run_dir=whole").status == 0
    assert_equal_runs(Path("run"), Path("whole"))


def test_where_every_checkpoint_is_damaged_nothing_is_changed(digits_run: Path) -> None:
    shutil.copytree(digits_run, "run")
    for name in ("last.ckpt", "best.ckpt"):
        Path("run/checkpoints", name).write_bytes(b"text")
    outcome = train_command("resume=run", "trainer.max_epochs=4")
    assert outcome.status == 1
    assert "last.ckpt: " in outcome.err
    assert "best.ckpt: " in outcome.err
    assert "remove run/checkpoints" in outcome.err
    assert Path("run/checkpoints/best.ckpt").read_bytes() == b"text"


def test_a_run_that_fell_back_to_a_part_of_mnist_goes_on_with_it(fake_mnist: FakeMnist) -> None:
    settings = ("model=mlp", "trainer.max_epochs=1", "run_dir=run")
    assert train_command(*settings, "data.mirror=http://127.0.0.1:1/").status == 0
    outcome = train_command("resume=run", "trainer.max_epochs=2", f"data.mirror={fake_mnist.mirror}")
    assert outcome.status == 0, outcome.err
    assert (metrics(Path("run"))["dataset"], metrics(Path("run"))["epochs"]) == ("mnist_5k", 2)
    assert "NOT MNIST" in outcome.out


# --- paths as they are printed ----------------------------------------------------------------------------------


def test_a_run_of_a_sweep_is_resumed_under_the_name_that_is_printed() -> None:
    settings = ("model=mlp", "optimizer.lr=1e-3,3e-3", "seed=1")
    assert train_command("-m", *QUICK, "trainer.max_epochs=1", *settings, "run_dir=sw").status == 0
    (run,) = Path("sw").glob("01_*")
    outcome = train_command(f"resume={run}", "trainer.max_epochs=2")
    assert outcome.status == 0, outcome.err
    assert metrics(run)["epochs"] == 2
    assert yaml.safe_load((run / "config.yaml").read_text())["optimizer"]["lr"] == 3e-3


ODD = [
    "a=b,c",
    "it's",
    'say "x"',
    "ü (1)",
    "a\\b",
    "end\\",
    "${oc.env:HOME}",
    "[1]",
    "{x: 1}",
    "a b",
    "x,'",
    "'q'",
    "~x",
    "!é☃",
]


@pytest.mark.parametrize("name", ODD)
def test_paths_are_taken_literally(name: str, digits_run: Path) -> None:
    outcome = train_command("model=mlp", *QUICK[1:], "trainer.max_epochs=1", f"run_dir=runs of/{name}")
    assert outcome.status == 0, outcome.err
    assert [folder.name for folder in Path("runs of").iterdir()] == [name]
    assert train_command(f"resume=runs of/{name}", "trainer.max_epochs=2").status == 0
    assert metrics(Path("runs of") / name)["epochs"] == 2
    shutil.copytree(digits_run, name)
    further = train_command(f"model.init_from={name}", *QUICK[1:], "trainer.max_epochs=1", "run_dir=further")
    assert further.status == 0, further.err
    assert yaml.safe_load(Path("further/config.yaml").read_text())["model"]["init_from"] == name


def test_a_quoted_path_means_what_is_in_the_quotes() -> None:
    assert train_command(*QUICK, "trainer.max_epochs=1", "run_dir='a=b'").status == 0
    assert train_command("resume='a=b'", "trainer.max_epochs=2").status == 0
    assert metrics(Path("a=b"))["epochs"] == 2


def test_a_sweep_can_not_resume() -> None:
    outcome = train_command("-m", "resume=x", "seed=1,2")
    assert outcome.status == 2
    assert "one run is resumed at a time" in outcome.err


# --- what a stranger's folder may say ---------------------------------------------------------------------------


class Wait(pl.Callback):
    """Trains for a long time."""

    def on_train_batch_start(self, *_: Any) -> None:
        print("waiting", file=sys.stderr, flush=True)
        time.sleep(60)


class Marker(pl.Callback):
    """Leaves a file behind when it is made: code of a stranger's choice was run."""

    def __init__(self, file: str = "owned") -> None:
        Path(file).touch()


class MarkerOptimizer(torch.optim.SGD):
    """The same, of the kind that an optimiser must be."""

    def __init__(self, params: Any) -> None:
        Path("owned").touch()
        super().__init__(params)


class MarkerLogger(CSVLogger):
    """The same, of the kind that a logger must be."""

    def __init__(self) -> None:
        Path("owned").touch()
        super().__init__("elsewhere")


class Pickled:
    """Leaves a file behind when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("owned"),))


MARKER = f"{__name__}.Marker"
ELSEWHERE = str(Path(tempfile.gettempdir(), f"elsewhere-{os.getpid()}"))


def put(**values: Any) -> Callable[[dict[str, Any]], None]:
    def change(config: dict[str, Any]) -> None:
        for key, value in values.items():
            *path, last = key.split("__")
            place = config
            for part in path:
                place = place[part]
            place[last] = value

    return change


EVIL = {
    "a class of its own": put(callbacks__evil={"_target_": MARKER}),
    "a function that unpickles": put(callbacks__evil={"_target_": "joblib.load", "filename": "x.pkl"}),
    "torch.load": put(callbacks__evil={"_target_": "torch.load", "f": "x.pt", "weights_only": False}),
    "a function of Lightning": put(
        callbacks__evil={"_target_": "lightning.fabric.utilities.cloud_io._load", "path_or_url": "x.pt"}
    ),
    "a function of Lightning's trainer": put(
        callbacks__evil={"_target_": "lightning.pytorch.core.saving.load_hparams_from_yaml", "config_yaml": "x"}
    ),
    "nested in an argument": put(
        callbacks__evil={"_target_": "lightning.pytorch.callbacks.LambdaCallback", "setup": {"_target_": MARKER}}
    ),
    "in place of the checkpoints": put(callbacks__checkpoint___target_=MARKER),
    "an optimizer": put(optimizer={"_target_": f"{MARKER}Optimizer"}),
    "nested in the optimizer": put(optimizer__betas={"_target_": MARKER}),
    "a scheduler": put(scheduler={"_target_": MARKER}),
    "a logger": put(logger__evil={"_target_": f"{MARKER}Logger"}),
    "the command line of the package": put(callbacks__evil={"_target_": "mnist_cnn.__main__.X"}),
    "a logger that sends data away": put(
        logger__evil={"_target_": "lightning.pytorch.loggers.WandbLogger", "offline": False, "project": "x"}
    ),
    "a logger that sends data away without a word": put(
        logger__evil={"_target_": "lightning.pytorch.loggers.WandbLogger", "offline": False}
    ),
    "an interpolation as a class": put(callbacks__evil={"_target_": "${oc.decode:\"'" + MARKER + "'\"}"}),
    "an interpolation": put(callbacks__evil='${oc.create:"{\\"_target_\\": ' + MARKER + '}"}'),
    "checkpoints elsewhere": put(callbacks__checkpoint__dirpath="elsewhere"),
    "checkpoints above": put(callbacks__checkpoint__dirpath="${run_dir}/../elsewhere"),
    "a log elsewhere": put(logger__csv__file="elsewhere"),
    "a log at an absolute path": put(logger__csv__file=ELSEWHERE),
    "a log above": put(logger__csv__file="${run_dir}/../../elsewhere"),
    "a profile elsewhere": put(trainer__default_root_dir="elsewhere"),
    "a second machine": put(trainer__num_nodes=2),
    "a registry of models": put(trainer__model_registry="x"),
    "a callback of the run's own": put(callbacks__evil={"_target_": "mnist_cnn.training.callbacks.History"}),
}


def strange(run: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """A copy of a run, `stranger`, with its configuration changed, and files beside it that must not be unpickled."""
    shutil.copytree(run, "stranger")
    file = Path("stranger/config.yaml")
    config = yaml.safe_load(file.read_text())
    change(config)
    file.write_text(yaml.safe_dump(config))
    joblib.dump(Pickled(), "x.pkl")
    Path("x.pt").write_bytes(pickle.dumps(Pickled()))
    torch.save({"x": Pickled()}, "x.pt")


@pytest.mark.parametrize("change", EVIL.values(), ids=EVIL)
def test_a_strangers_folder_runs_no_code_and_writes_nothing_elsewhere(
    change: Callable[[dict[str, Any]], None], digits_run: Path
) -> None:
    strange(digits_run, change)
    outcome = train_command("resume=stranger", "trainer.max_epochs=4")
    assert outcome.status == 2
    assert "Traceback" not in outcome.err
    assert len(outcome.err[outcome.err.index("error: ") :].strip().splitlines()) == 1
    assert sorted(path.name for path in Path().iterdir()) == ["stranger", "x.pkl", "x.pt"]
    assert not Path(ELSEWHERE).exists()
    assert metrics(Path("stranger"))["epochs"] == 3


# Seven levels of aliases, seven of each in the next: 800,000 lists
BOMB = "a: &a [x]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{inner}'] * 7)}]\n" for inner, name in zip("abcdefg", "bcdefgh", strict=True)
)


@pytest.mark.parametrize("names", ["..", "../../elsewhere", "/elsewhere", "file:///elsewhere"])
@pytest.mark.parametrize("place", ["best_k_models", "kth_best_model_path", "dirpath"])
def test_a_strangers_checkpoint_can_not_have_files_elsewhere_removed(place: str, names: str, digits_run: Path) -> None:
    shutil.copytree(digits_run, "stranger")
    file = Path("stranger/checkpoints/last.ckpt")
    content = torch.load(file, weights_only=True)
    (state,) = (state for state in content["callbacks"].values() if "dirpath" in state)
    state[place] = {names: torch.tensor(0.0)} if place == "best_k_models" else names
    torch.save(content, file)
    outcome = train_command("resume=stranger", "trainer.max_epochs=4")
    assert outcome.status == 1
    assert "names files outside its folder" in outcome.err


@pytest.mark.parametrize(
    "name", ["config.yaml", "checkpoints/last.ckpt", "metrics.json.part", "report/x", "checkpoints"]
)
@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_links_and_pipes_in_a_run_folder_are_refused(name: str, kind: str, digits_run: Path) -> None:
    shutil.copytree(digits_run, "stranger")
    Path("victim").write_text("mine")
    path = Path("stranger", name)
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    path.symlink_to(Path("victim").absolute()) if kind == "link" else os.mkfifo(path)
    outcome = train_command("resume=stranger", "trainer.max_epochs=4")
    assert outcome.status == 2
    assert name in outcome.err
    assert Path("victim").read_text() == "mine"


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:pathlib.Path.touch [owned]",
        "x: !!python/name:os.system",
        BOMB,
        "[" * 5000,
        "x: [" * 100 + "]" * 100,
        "- " * 30_000,
        "a" * 300_000,
        "\0", "{", "seed: 0", "[]", "", "model: 3\ndata: 4", "model: 2026-01-02", "\xff\xfe",
    ],
    ids=range(15),
)  # fmt: skip
def test_a_damaged_or_hostile_configuration_is_refused_in_a_line(text: str, digits_run: Path) -> None:
    shutil.copytree(digits_run, "stranger")
    Path("stranger/config.yaml").write_bytes(text.encode("latin-1"))
    outcome = train_command("resume=stranger")
    assert outcome.status == 2
    assert "Traceback" not in outcome.err
    assert len(outcome.err.strip().splitlines()) == 1
    assert not Path("owned").exists()


def test_aliases_are_refused_before_they_are_followed(digits_run: Path) -> None:
    shutil.copytree(digits_run, "stranger")
    with Path("stranger/config.yaml").open("a") as file:
        file.write(BOMB)
    outcome = train_command("resume=stranger")
    assert outcome.status == 2
    assert "it has aliases" in outcome.err


@pytest.mark.parametrize(
    "change",
    [
        put(seed="x"), put(seed=None), put(model__layers=[{"os.system": {"command": "touch owned"}}]),
        put(model__layers="x"), put(data__batch_size=-1), put(data__name="../x"), put(trainer__max_epochs="x"),
        put(trainer__no_such_thing=1), put(callbacks={}), put(callbacks__checkpoint=None), put(logger__csv=3),
        put(optimizer={}), put(optimizer__lr="x"), put(optimizer__lr="${oc.decode:'0.001'}"),
        put(optimizer__momentum=0.9), put(data__further=1),
        put(scheduler={"_target_": "torch.optim.lr_scheduler.LambdaLR", "lr_lambda": "x"}),
    ],
    ids=range(17),
)  # fmt: skip
def test_wrong_values_in_a_run_folder_are_refused_in_a_line(
    change: Callable[[dict[str, Any]], None], digits_run: Path
) -> None:
    strange(digits_run, change)
    outcome = train_command("resume=stranger")
    assert outcome.status == 2, outcome.err
    assert len(outcome.err[outcome.err.index("error: ") :].strip().splitlines()) == 1
    assert "Traceback" not in outcome.err
    assert not Path("owned").exists()


def test_no_secret_leaves_by_the_mirror_and_no_image_is_written_where_the_folder_says(
    digits_run: Path, fake_mnist: FakeMnist
) -> None:
    settings = ("model=mlp", "data=mnist", f"data.mirror={fake_mnist.mirror}", "trainer.max_epochs=1", "run_dir=run")
    assert train_command(*settings).status == 0
    config = yaml.safe_load(Path("run/config.yaml").read_text())
    config["data"] |= {"mirror": "http://127.0.0.1:1/${oc.env:HOME}/", "root": "elsewhere"}
    Path("run/config.yaml").write_text(yaml.safe_dump(config))
    shutil.rmtree("data")
    outcome = train_command("resume=run", "trainer.max_epochs=2")
    assert outcome.status == 1
    assert "127.0.0.1:1" not in outcome.err
    assert os.environ["HOME"] + "/" not in outcome.err
    assert not Path("elsewhere").exists()
    assert train_command("resume=run", "trainer.max_epochs=2", f"data.mirror={fake_mnist.mirror}").status == 0


def test_images_are_found_where_they_were_when_the_run_was_stopped(fake_mnist: FakeMnist) -> None:
    settings = ("model=mlp", "data=mnist", f"data.mirror={fake_mnist.mirror}", "data.root=my images", "run_dir=run")
    assert train_command(*settings, "trainer.max_epochs=1").status == 0
    assert train_command("resume=run", "trainer.max_epochs=2").status == 0
    assert not Path("data").exists()


def test_a_class_of_ones_own_is_said_again_or_left_out() -> None:
    own = ("+callbacks.own._target_=tests.test_resume.Marker", "+callbacks.own.file=made")
    assert train_command(*QUICK, "trainer.max_epochs=1", *own, "run_dir=run").status == 0
    Path("made").unlink()
    refused = train_command("resume=run", "trainer.max_epochs=2")
    assert refused.status == 2
    assert "callbacks.own._target_" in refused.err
    assert "name it again" in refused.err
    assert train_command("resume=run", "trainer.max_epochs=2", *own).status == 0
    assert Path("made").exists()
    Path("made").unlink()
    assert train_command("resume=run", "trainer.max_epochs=3", "+callbacks.own=null").status == 0
    assert not Path("made").exists()
    assert metrics(Path("run"))["epochs"] == 3


def test_the_machine_and_the_loggers_may_change_and_the_recipe_stays(digits_run: Path) -> None:
    shutil.copytree(digits_run, "run")
    before = yaml.safe_load(Path("run/config.yaml").read_text())
    settings = ("trainer=auto", "trainer.devices=auto", "logger=none", "data.eval_batch_size=50")
    outcome = train_command("resume=run", *settings, "trainer.max_epochs=4")
    assert outcome.status == 0, outcome.err
    config = yaml.safe_load(Path("run/config.yaml").read_text())
    before["trainer"] |= {"accelerator": "auto", "devices": "auto", "max_epochs": 4}
    before["data"]["eval_batch_size"] = 50
    assert config == {**before, "logger": {}}
    text = Path("run/config.yaml").read_text()
    assert len(re.findall(r"^# python train\.py ", text, re.M)) == 2  # both commands are on record


def test_resuming_reads_the_saved_settings_not_todays_defaults(digits_run: Path) -> None:
    settings = ("model=mlp", "data=digits", "data.batch_size=50", "optimizer=sgd", "optimizer.momentum=0.5", "seed=3")
    assert train_command(*settings, "trainer=cpu", "trainer.max_epochs=1", "run_dir=run").status == 0
    before = yaml.safe_load(Path("run/config.yaml").read_text())
    assert train_command("resume=run", "trainer.max_epochs=2").status == 0
    after = yaml.safe_load(Path("run/config.yaml").read_text())
    before["trainer"]["max_epochs"] = 2
    assert before == after


@pytest.mark.parametrize("setting", ["+callbacks.checkpoint.save_top_k=2", "+callbacks.checkpoint.filename=foo"])
def test_results_can_not_be_those_of_another_epoch_than_the_best(setting: str) -> None:
    outcome = train_command(*QUICK, setting, "run_dir=run")
    assert outcome.status == 2
    assert f"{setting.removeprefix('+')}: BestAndLast takes no such argument" in outcome.err
    assert not Path("run").exists()


def test_further_checkpoints_leave_the_best_one_alone() -> None:
    more = ("+callbacks.more._target_=lightning.pytorch.callbacks.ModelCheckpoint", "+callbacks.more.save_top_k=-1",
            "+callbacks.more.dirpath='${run_dir}/checkpoints'", "+callbacks.more.filename='{epoch}'")  # fmt: skip
    settings = ("trainer.max_epochs=6", "optimizer.lr=0.05", "run_dir=run")
    outcome: Outcome = train_command(*QUICK, *settings, *more)
    assert outcome.status == 0, outcome.err
    found = metrics(Path("run"))
    best = max(found["history"], key=lambda row: row["val/accuracy"])["epoch"]
    assert found["best_epoch"] == checkpoint.load("run").epoch == best
    assert len(list(Path("run/checkpoints").glob("epoch=*.ckpt"))) == 6


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("trainer__limit_train_batches", 5),
        ("trainer__gradient_clip_val", 0.5),
        ("trainer__accumulate_grad_batches", 2),
        ("callbacks__checkpoint__monitor", "val/loss"),
        ("optimizer__lr", 0.5),
    ],
)
def test_an_edited_configuration_does_not_make_a_run_another_experiment(key: str, value: Any, digits_run: Path) -> None:
    strange(digits_run, put(**{key: value}))
    outcome = train_command("resume=stranger", "trainer.max_epochs=4")
    assert outcome.status == 2
    assert f"{key.replace('__', '.')} can't be changed" in outcome.err


def test_another_learning_rate_in_the_state_of_the_optimizer_is_told(digits_run: Path) -> None:
    shutil.copytree(digits_run, "stranger")
    file = Path("stranger/checkpoints/last.ckpt")
    content = torch.load(file, weights_only=True)
    content["optimizer_states"][0]["param_groups"][0]["lr"] = 0.5
    torch.save(content, file)
    outcome = train_command("resume=stranger", "trainer.max_epochs=4")
    assert outcome.status == 1
    assert "its lr is 0.5, but optimizer.lr=0.001" in outcome.err


@pytest.mark.parametrize(
    "spoil",
    [
        lambda content: content["loops"]["fit_loop"]["epoch_progress"].pop("current"),
        lambda content: content["loops"]["fit_loop"]["epoch_progress"]["current"].update(ready=-1),
        lambda content: content["loops"].update(fit_loop="x"),
        lambda content: content["callbacks"]["History"].update(rows=[{"epoch": "1"}]),
        lambda content: content["callbacks"].update(History=3),
        lambda content: content["callbacks"]["History"]["rows"][0].update({"val/loss": torch.zeros(3)}),
        lambda content: content["callbacks"]["History"]["rows"].clear(),
        lambda content: content["optimizer_states"][0]["param_groups"][0].update(maximize=True),
        lambda content: content["loops"]["fit_loop"]["epoch_progress"]["current"].update(started=4),
        lambda content: content["optimizer_states"][0].pop("state"),
        lambda content: content["optimizer_states"][0]["state"][0].update(exp_avg=torch.zeros(3)),
        lambda content: content["optimizer_states"].clear(),
        lambda content: content.update({"pytorch-lightning_version": "x"}),
        lambda content: content.update({"pytorch-lightning_version": "9999.1"}),
    ],
    ids=range(14),
)
def test_a_state_that_is_not_that_of_a_run_is_a_line_and_changes_nothing(
    spoil: Callable[[dict[str, Any]], Any], digits_run: Path
) -> None:
    shutil.copytree(digits_run, "stranger")
    file = Path("stranger/checkpoints/last.ckpt")
    content = torch.load(file, weights_only=True)
    spoil(content)
    torch.save(content, file)
    before = {path: path.read_bytes() for path in Path("stranger").rglob("*") if path.is_file()}
    outcome = train_command("resume=stranger", "trainer.max_epochs=4")
    assert outcome.status == 1, outcome.err
    assert "Traceback" not in outcome.err
    assert "last.ckpt" in outcome.err[outcome.err.index("error: ") :]
    assert {path: path.read_bytes() for path in Path("stranger").rglob("*") if path.is_file()} == before


def test_a_network_to_start_from_is_named_again_where_no_checkpoint_has_it(digits_run: Path) -> None:
    settings = (*QUICK[1:], f"model.init_from={digits_run}", "run_dir=run")
    assert train_command(*settings).status == 0
    shutil.rmtree("run/checkpoints")
    Path("run/checkpoints").mkdir()
    refused = train_command("resume=run")
    assert refused.status == 2
    assert "model.init_from" in refused.err
    assert train_command("resume=run", f"model.init_from={digits_run}").status == 0


@pytest.mark.full
def test_two_processes_go_on_in_mid_epoch() -> None:
    two = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "callbacks.checkpoint.every_n_train_steps=7")
    layers = "[Flatten,{Dropout:{rate:0.5}},{Dense:{units:10}}]"
    settings = (f"model.layers={layers}", "data=digits", "data.batch_size=8", "trainer.max_epochs=2", *two)
    assert run_process(*settings, "run_dir=whole").status == 0
    stop = ("+callbacks.ctrl_c._target_=tests.test_training.CtrlC", "+callbacks.ctrl_c.step=100")
    assert run_process(*settings, "run_dir=run", *stop).status == 130
    one = train_command("resume=run", "+callbacks.ctrl_c=null", "trainer.devices=1", "trainer.strategy=auto")
    assert one.status == 1
    assert "trainer.devices=2" in one.err
    assert run_process("resume=run", "+callbacks.ctrl_c=null").status == 0
    assert_equal_runs(Path("run"), Path("whole"))
