import json
import re
import signal
import sys
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from tqdm import tqdm

from mnist_cnn.data.datamodule import MNISTDataModule
from mnist_cnn.errors import ConfigError
from mnist_cnn.inference import checkpoint
from mnist_cnn.inference.evaluate import evaluate
from mnist_cnn.network import build_network
from mnist_cnn.training.callbacks import BestAndLast
from mnist_cnn.training.trainer import build_classifier, build_trainer, fit
from tests.conftest import QUICK, assert_equal_runs, configured, metrics, run_process, train_command, weights


def test_a_run_folder_tells_the_whole_story(digits_run: Path) -> None:
    files = {str(file.relative_to(digits_run)) for file in digits_run.rglob("*") if file.is_file()}
    assert files == {
        "config.yaml", "metrics.json", "metrics.csv", ".lock",
        "checkpoints/best.ckpt", "checkpoints/last.ckpt", "report/index.html", "report/per_class.csv",
        *(f"report/{name}.png" for name in ("accuracy", "loss", "confusion_matrix", "mistakes", "training_samples",
                                            "least_certain", "reliability", "hidden_map")),
    }  # fmt: skip
    found = json.loads((digits_run / "metrics.json").read_text())
    assert found["dataset"] == "digits"
    assert (found["model"], found["seed"], found["epochs"], found["parameters"]) == ("tiny", 0, 3, 6320)
    assert [row["epoch"] for row in found["history"]] == [1, 2, 3]
    assert {"train/loss", "train/accuracy", "val/loss", "val/accuracy", "lr"} < set(found["history"][0])
    assert found["fit_seconds"] > 0
    assert found["train_images_per_second"] > 0


def test_the_last_lines_say_what_came_out_and_how_to_see_it_again() -> None:
    outcome = train_command(*QUICK, "run_dir=run")
    found = json.loads(Path("run/metrics.json").read_text())
    for part in ("digits", "6,320", "of 2", f"{found['test/accuracy']:.2%}", f"{found['val/loss']:.4f}", "index.html",
                 "mnist-cnn evaluate run"):  # fmt: skip
        assert part in outcome.out
    assert "4·4·1·8 + 8" in outcome.err
    assert len(re.findall(r"^epoch  \d/2  loss .* val accuracy", outcome.err, re.M)) == 2


def test_the_bar_of_every_epoch_counts_the_images_of_that_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    bars: list[tqdm[Any]] = []

    class Bar(tqdm):  # type: ignore[type-arg]  # which tqdm itself does not have when it runs
        def close(self) -> None:
            bars.append(self)
            super().close()

    monkeypatch.setattr("mnist_cnn.training.callbacks.epochs.tqdm", Bar)
    notebook = SimpleNamespace(get_ipython=lambda: SimpleNamespace(kernel=True))  # which is no terminal
    monkeypatch.setitem(sys.modules, "IPython", notebook)
    assert train_command(*QUICK, "run_dir=run").status == 0
    assert [(bar.initial, bar.n, bar.total) for bar in bars] == [(0, 1293, 1293)] * 2


def test_the_figures_of_a_run_are_those_of_its_best_checkpoint(digits_run: Path) -> None:
    found = json.loads((digits_run / "metrics.json").read_text())
    trained = checkpoint.load(digits_run)
    data = MNISTDataModule(configured("data=digits").data, 0)
    data.setup()
    for split, images in (("val", data.val), ("test", data.test)):
        again = evaluate(trained, images, "digits", split)
        assert (again.accuracy, again.loss) == (found[f"{split}/accuracy"], found[f"{split}/loss"])
    best = max(found["history"], key=lambda row: row["val/accuracy"])
    assert best["epoch"] == found["best_epoch"] == trained.epoch
    assert best["val/accuracy"] == pytest.approx(found["val/accuracy"])
    assert best["val/loss"] == pytest.approx(found["val/loss"], rel=1e-5)


@pytest.mark.parametrize("model", ["tiny", "dropout"])
def test_the_same_command_twice_gives_identical_weights_and_figures(model: str) -> None:
    for folder in ("a", "b"):
        settings = (*QUICK, f"model={model}", "+trainer.limit_train_batches=4", f"run_dir={folder}")
        assert train_command(*settings).status == 0
    assert_equal_runs(Path("a"), Path("b"))


def test_another_seed_gives_another_run() -> None:
    for seed in (0, 1):
        train_command(*QUICK, "trainer.max_epochs=1", f"seed={seed}", f"run_dir={seed}")
    assert metrics(Path("0"))["val/loss"] != metrics(Path("1"))["val/loss"]


def test_runs_of_the_same_second_have_folders_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    import datetime

    class Frozen(datetime.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> "Frozen":
            return cls(2026, 1, 2, 3, 4, 5)

    monkeypatch.setattr("mnist_cnn.run_folder.datetime", Frozen)
    from mnist_cnn.run_folder import open_run_dir

    with ExitStack() as runs:
        made = [runs.enter_context(open_run_dir(configured("model=tiny"), "digits")) for _ in range(3)]
    assert [str(folder) for folder in made] == [
        "runs/2026-01-02_03-04-05_tiny_digits",
        "runs/2026-01-02_03-04-05_tiny_digits-2",
        "runs/2026-01-02_03-04-05_tiny_digits-3",
    ]


def test_a_folder_that_another_run_has_made_is_refused() -> None:
    from mnist_cnn.run_folder import open_run_dir

    config = configured("run_dir=here")
    with open_run_dir(config, "digits") as folder:
        assert folder == Path("here")
        with pytest.raises(ConfigError, match="it exists already"):
            open_run_dir(config, "digits").__enter__()


def test_a_folder_that_holds_a_run_is_not_written_over(digits_run: Path) -> None:
    before = (digits_run / "metrics.json").read_bytes()
    outcome = train_command(*QUICK, f"run_dir={digits_run}")
    assert outcome.status == 2
    assert f"resume={digits_run}" in outcome.err
    assert (digits_run / "metrics.json").read_bytes() == before


def test_a_sweep_makes_one_complete_folder_a_setting() -> None:
    varied = ("model=tiny,mlp", "optimizer.lr=3e-3")
    outcome = train_command("-m", "data=digits", "trainer=cpu", "trainer.max_epochs=1", *varied)
    assert outcome.status == 0, outcome.err
    (sweep,) = Path("runs").iterdir()
    folders = sorted(folder for folder in sweep.iterdir() if folder.is_dir())
    assert [folder.name for folder in folders] == [
        "00_model-tiny",
        "01_model-mlp",
    ]
    assert all((folder / "report" / "index.html").exists() for folder in folders)
    assert len({metrics(folder)["val/loss"] for folder in folders}) == 2


def test_a_sweep_over_a_layers_argument_changes_the_network() -> None:
    settings = ("-m", *QUICK, "trainer.max_epochs=1", "model.layers.0.Conv2D.filters=4,16", "run_dir=sweep")
    assert train_command(*settings).status == 0
    assert {metrics(folder)["parameters"] for folder in Path("sweep").iterdir() if folder.is_dir()} == {5228, 8504}


class CtrlC(pl.Callback):
    """Ctrl-C, or another signal, at a certain step."""

    def __init__(self, step: int, number: int = signal.SIGINT) -> None:
        self.step, self.number = step, number

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            signal.raise_signal(self.number)


CTRL_C = ("+callbacks.ctrl_c._target_=tests.test_training.CtrlC", "+callbacks.ctrl_c.step=")


def test_ctrl_c_before_training_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(BestAndLast, "setup", interrupted)
    stopped = train_command(*QUICK, "run_dir=stopped")
    assert (stopped.status, stopped.out) == (130, "")
    assert not Path("stopped").exists()


def test_ctrl_c_ends_a_sweep_too() -> None:
    settings = ("seed=0,1", "run_dir=sweep", CTRL_C[0], f"{CTRL_C[1]}13")
    assert train_command("-m", *QUICK, *settings).status == 130
    assert [folder.name for folder in Path("sweep").iterdir() if folder.is_dir()] == ["00_seed-0"]


@pytest.mark.parametrize("steps", [(), ("+trainer.gradient_clip_val=1e30",)], ids=["together", "one by one"])
def test_a_loss_that_is_not_finite_ends_the_run_with_the_step_and_the_rate(steps: tuple[str, ...]) -> None:
    outcome = train_command(*QUICK, "optimizer=sgd", "optimizer.lr=1e20", "run_dir=run", *steps)
    assert outcome.status == 1
    (line,) = (line for line in outcome.err.splitlines() if line.startswith("error: "))
    assert line.startswith("error: step 2 (epoch 1): the loss is ")
    assert "at a learning rate of 1e+20" in line
    assert "no checkpoint was written" in line
    assert not Path("run").exists()


class Spoil(pl.Callback):
    """Makes the gradient of the last weight infinite at a certain step, which the loss of that step does not show."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, _: Any) -> None:
        if trainer.global_step == self.step:
            list(pl_module.parameters())[-1].grad.fill_(float("inf"))  # type: ignore[union-attr]


@pytest.mark.parametrize(("step", "often"), [(15, "null"), (21, "null"), (15, "1")])
def test_a_gradient_that_is_not_finite_ends_the_run_and_spoils_no_checkpoint(step: int, often: str) -> None:
    spoil = ("+callbacks.spoil._target_=tests.test_training.Spoil", f"+callbacks.spoil.step={step}",
             f"callbacks.checkpoint.every_n_train_steps={often}")  # fmt: skip
    outcome = train_command(*QUICK, "trainer.max_epochs=3", "run_dir=run", *spoil)
    assert outcome.status == 1
    assert re.search(r"error: step (1[67]|22) \(epoch 2\): .*last.ckpt", outcome.err)
    assert checkpoint.load("run/checkpoints/last.ckpt").epoch == (1 if often == "null" else 2)
    assert train_command("resume=run", "+callbacks.spoil=null").status == 0


def test_a_run_of_a_sweep_that_diverges_is_a_failed_one() -> None:
    outcome = train_command("-m", *QUICK, "optimizer=sgd", "optimizer.lr=1e20,1e-3", "run_dir=sweep")
    assert outcome.status == 1
    assert "the loss is " in outcome.err
    assert len(list(Path("sweep").glob("*/metrics.json"))) == 1


def test_early_stopping_ends_training_and_keeps_the_epoch_of_the_lowest_loss() -> None:
    settings = ("trainer.max_epochs=30", "callbacks=early_stopping", "callbacks.early_stopping.patience=1")
    assert train_command(*QUICK, *settings, "optimizer.lr=0.05", "run_dir=run").status == 0
    found = metrics(Path("run"))
    assert found["epochs"] < 30
    assert found["best_epoch"] == min(found["history"], key=lambda row: row["val/loss"])["epoch"]
    assert found["best_epoch"] < found["epochs"]
    kept = [checkpoint.load(f"run/checkpoints/{name}.ckpt").epoch for name in ("best", "last")]
    assert kept == [found["best_epoch"], found["epochs"]]


@pytest.fixture(scope="module")
def plain_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of `QUICK` without any option."""
    folder = tmp_path_factory.mktemp("plain") / "run"
    assert train_command(*QUICK, "trainer.max_epochs=1", f"run_dir={folder}").status == 0
    return folder


@pytest.mark.parametrize(
    "option",
    ["optimizer=adamw", "optimizer=adam_pytorch", "scheduler=onecycle", "scheduler=cosine", "data.normalize=standard",
     "data.split=stratified", "trainer.precision=bf16-mixed", "+trainer.gradient_clip_val=0.05", "debug=smoke"],
)  # fmt: skip
def test_an_option_changes_what_is_learned(option: str, plain_run: Path) -> None:
    outcome = train_command(*QUICK, "trainer.max_epochs=1", option, "run_dir=run")
    assert outcome.status == 0, outcome.err
    found, plain = weights(Path("run")), weights(plain_run)
    assert any(not torch.equal(found[key], plain[key]) for key in plain)


def test_without_a_logger_the_same_is_learned_and_nothing_is_logged(plain_run: Path) -> None:
    assert train_command(*QUICK, "trainer.max_epochs=1", "logger=none", "run_dir=run").status == 0
    found, plain = weights(Path("run")), weights(plain_run)
    assert all(torch.equal(found[key], plain[key]) for key in plain)
    assert (plain_run / "metrics.csv").exists()
    assert not Path("run/metrics.csv").exists()


def test_debug_overfit_learns_a_few_batches_by_heart() -> None:
    assert train_command("debug=overfit", "model=mlp", "data=digits", "data.batch_size=32", "run_dir=run").status == 0
    assert metrics(Path("run"))["history"][-1]["train/accuracy"] == 1.0


def test_a_logger_or_callback_that_is_none_is_refused_without_leaving_a_folder() -> None:
    for setting in (
        "+logger.x._target_=builtins.dict",
        "+callbacks.x._target_=no.such.Thing",
        "callbacks.checkpoint=null",
    ):
        outcome = train_command(*QUICK, setting, "run_dir=run")
        assert outcome.status == 2
        assert setting.lstrip("+").partition("=")[0].removesuffix("._target_") in outcome.err
        assert not Path("run").exists()


def test_a_callback_that_watches_what_is_never_measured_is_a_users_mistake() -> None:
    outcome = train_command(*QUICK, "callbacks.checkpoint.monitor=val/acc", "run_dir=run")
    assert outcome.status == 2
    assert "val/acc" in outcome.err
    assert "Traceback" not in outcome.err
    assert not Path("run").exists()


def test_dropout_acts_in_training_mode_only() -> None:
    network = build_network([{"Dropout": {"rate": 0.5}}, "Flatten", {"Dense": {"units": 10}}], (1, 28, 28), 10)
    x = torch.rand(2, 1, 28, 28)
    assert not torch.equal(network.train()(x), network(x))
    assert torch.equal(network.eval()(x), network(x))


def test_lightnings_own_test_loop_agrees_with_evaluate(tmp_path: Path) -> None:
    config = configured(*QUICK, "logger=none")
    data = MNISTDataModule(config.data, config.seed)
    data.prepare_data()
    data.setup()
    trainer = build_trainer(config, tmp_path, "a test")
    module = build_classifier(config, build_network(config.model.layers, (1, 28, 28), 10), data, trainer, None)
    fit(trainer, module, data, config)
    (measured,) = trainer.test(module, datamodule=data, verbose=False)
    found = evaluate(checkpoint.load(tmp_path / "checkpoints" / "last.ckpt"), data.test, "digits", "test")
    assert measured["test/accuracy"] == pytest.approx(found.accuracy)
    assert measured["test/loss"] == pytest.approx(found.loss, rel=1e-5)


def test_two_processes_train_one_network_and_evaluate_every_image_once() -> None:
    common = ("model=mlp", "data=digits", "trainer.accelerator=cpu", "trainer.max_epochs=1")
    two = ("trainer=ddp", "trainer.devices=2", "data.batch_size=16", "run_dir=run")
    outcome = run_process(*common, *two)
    assert outcome.status == 0, outcome.err
    found = metrics(Path("run"))
    # They train as one process does with batches twice as large, though the 1,293rd image has no partner.
    assert train_command(*common, "data.batch_size=32", "run_dir=one").status == 0
    pairs = zip(found["history"], metrics(Path("one"))["history"], strict=True)
    assert all(several == pytest.approx(one, rel=1e-5) for several, one in pairs)
    # Each process measured its share: their common figure is that of all images in one process.
    assert found["history"][0]["val/loss"] == pytest.approx(found["val/loss"], rel=1e-5)
    assert found["history"][0]["val/accuracy"] == pytest.approx(found["val/accuracy"])
    assert outcome.out.count("test ") == 1


def test_several_processes_can_not_share_a_sweep() -> None:
    outcome = train_command("-m", "trainer.accelerator=cpu", "trainer.devices=2", "seed=0,1", "data=digits")
    assert outcome.status == 1, outcome.err
    assert "one run after another" in outcome.err
