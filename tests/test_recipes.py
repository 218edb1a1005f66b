"""The parts of a recipe: averaged weights, smoothed labels, a teacher, sparing decay, dropout, no validation."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from omegaconf import OmegaConf
from torch import nn
from torch.nn import functional as F

from mnist_cnn.config import select
from mnist_cnn.data.images import Preprocessing
from mnist_cnn.errors import ConfigError
from mnist_cnn.inference import checkpoint
from mnist_cnn.network import build_network
from mnist_cnn.training.callbacks import Finite
from mnist_cnn.training.checks import check_settings
from mnist_cnn.training.loss import Teacher, TrainingLoss, build_loss
from mnist_cnn.training.optimizers import build_optimizer, check_optimizer
from mnist_cnn.training.resume.saved import leaves
from tests.conftest import QUICK, ROOT, configured, metrics, train_command, weights

PLATEAU = "torch.optim.lr_scheduler.ReduceLROnPlateau"
ADAMW = {"_target_": "torch.optim.AdamW", "lr": 0.1, "weight_decay": 0.5}


# --- averaged weights -------------------------------------------------------------------------------------------


def recorded(monkeypatch: pytest.MonkeyPatch, *settings: str) -> list[dict[str, torch.Tensor]]:
    """The network's weights after each optimiser step of a run into `run`, its steps taken one by one."""
    steps: list[dict[str, torch.Tensor]] = []

    def note(self: Any, trainer: pl.Trainer, module: pl.LightningModule, *_: Any) -> None:
        steps.append({key: value.clone() for key, value in module.state_dict().items()})

    with monkeypatch.context() as patch:
        patch.setattr(Finite, "on_train_batch_end", note)
        outcome = train_command(
            *QUICK, "data.batch_size=300", "+trainer.gradient_clip_val=100", *settings, "run_dir=run"
        )
    assert outcome.status == 0, outcome.err
    return steps


def test_an_exponential_average_counts_each_step_decay_times_as_much_as_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    steps = recorded(monkeypatch, "callbacks=ema", "callbacks.averaging.decay=0.4")
    expected = steps[0]
    for number, step in enumerate(steps[1:], start=1):
        decay = min(0.4, (1 + number) / (10 + number))  # less at first, or the initial weights would count for long
        expected = {key: decay * expected[key] + (1 - decay) * value for key, value in step.items()}
    assert len(steps) > 6  # so that both were in use
    kept = weights(Path("run"))
    assert all(torch.allclose(kept[key], value, atol=1e-6) for key, value in expected.items())
    assert not torch.allclose(kept["network.0_Conv2D.weight"], steps[-1]["network.0_Conv2D.weight"], atol=1e-4)


def test_a_plain_average_is_the_mean_of_all_steps_from_its_first_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = recorded(monkeypatch, "callbacks=swa", "callbacks.averaging.first_epoch=2")
    second = steps[len(steps) // 2 :]
    kept = weights(Path("run"))
    for key, value in kept.items():
        assert torch.allclose(value, torch.stack([step[key] for step in second]).mean(0), atol=1e-6)


def test_before_the_average_begins_the_weights_themselves_are_validated_and_kept() -> None:
    settings = ("callbacks=swa", "callbacks.averaging.first_epoch=99")
    assert train_command(*QUICK, "run_dir=plain").status == 0
    outcome = train_command(*QUICK, *settings, "run_dir=later")
    assert outcome.status == 0, outcome.err
    assert "mean over the steps" not in outcome.out
    note = "note: averaging has no effect: it would begin with epoch 99, and the run ends with epoch 2"
    assert note in outcome.err
    plain, later = weights(Path("plain")), weights(Path("later"))
    assert all(torch.equal(value, later[key]) for key, value in plain.items())
    assert metrics(Path("plain"))["history"] == metrics(Path("later"))["history"]


def test_a_dropout_schedule_without_dropout_is_a_note() -> None:
    note = "note: the dropout schedule has no effect: the network has no dropout layer"
    settings = ("data=digits", "trainer=cpu", "trainer.max_epochs=1", "callbacks=dropout_schedule")
    assert note in train_command(*settings, "model=mlp").err
    assert note not in train_command(*settings, "model.layers=[Flatten,{Dropout:{rate:0.5}},{Dense:{units:10}}]").err


def test_averages_are_the_same_whether_steps_are_taken_together_or_one_by_one() -> None:
    settings = (*QUICK, "callbacks=ema", "callbacks.averaging.decay=0.9", "augmentation=affine")
    assert train_command(*settings, "run_dir=together").status == 0
    single = train_command(*settings, "+trainer.log_every_n_steps=7", "run_dir=single")
    assert "fast steps are off" in single.err
    together = weights(Path("together"))
    assert all(torch.equal(value, weights(Path("single"))[key]) for key, value in together.items())


def test_the_average_is_what_is_validated_kept_and_tested_and_the_results_say_so() -> None:
    outcome = train_command(*QUICK, "callbacks=ema", "callbacks.averaging.decay=0.97", "run_dir=run")
    assert "exponential average (decay 0.97)" in outcome.out
    assert "exponential average (decay 0.97)" in Path("run/report/index.html").read_text()
    found = metrics(Path("run"))
    best = found["history"][found["best_epoch"] - 1]
    assert best["val/accuracy"] == pytest.approx(found["val/accuracy"])  # found again with best.ckpt alone
    assert best["val/loss"] == pytest.approx(found["val/loss"], rel=1e-5)


# --- the loss ---------------------------------------------------------------------------------------------------


def trained() -> checkpoint.TrainedNetwork:
    train_command(*QUICK, "trainer.max_epochs=1", "run_dir=teacher")
    return checkpoint.load("teacher")


def test_without_smoothing_and_teacher_the_loss_is_the_cross_entropy_to_the_bit() -> None:
    logits, labels = torch.randn(20, 10), torch.randint(10, (20,))
    assert torch.equal(TrainingLoss()(torch.empty(0), logits, labels), F.cross_entropy(logits, labels))


def test_smoothing_counts_every_class_a_little() -> None:
    logits, labels = torch.randn(20, 10), torch.randint(10, (20,))
    targets = 0.8 * F.one_hot(labels, 10) + 0.2 / 10
    expected = -(targets * logits.log_softmax(1)).sum(1).mean()
    assert torch.allclose(TrainingLoss(0.2)(torch.empty(0), logits, labels), expected)


def test_smoothing_leaves_the_validation_loss_a_cross_entropy() -> None:
    assert train_command(*QUICK, "loss.label_smoothing=0.3", "run_dir=run").status == 0
    found = metrics(Path("run"))
    row = found["history"][found["best_epoch"] - 1]
    assert row["val/loss"] == pytest.approx(found["val/loss"], rel=1e-5)
    assert row["train/loss"] > row["val/loss"]


def test_a_student_that_answers_like_its_teacher_has_nothing_left_to_learn() -> None:
    teacher = Teacher(trained(), Preprocessing(), weight=1.0, temperature=3.0)
    images = torch.rand(8, 1, 28, 28)
    logits = teacher(images).requires_grad_()
    loss = TrainingLoss(0.1, teacher)(images, logits, torch.zeros(8, dtype=torch.int64))
    assert float(loss.detach()) == pytest.approx(0, abs=1e-6)
    assert torch.autograd.grad(loss, logits)[0].abs().max() < 1e-6


def test_a_teacher_is_asked_about_images_in_the_scaling_that_it_knows() -> None:
    known = trained()
    standard = Preprocessing((0.13,), (0.31,))
    pixels = torch.randint(0, 256, (8, 1, 28, 28), dtype=torch.uint8)
    answers = Teacher(known, standard, 0.5, 2.0)(standard(pixels))
    assert torch.allclose(answers, known.network(known.preprocessing(pixels)), atol=1e-4)


def test_a_teacher_is_in_no_checkpoint_and_changes_what_is_learnt() -> None:
    trained()
    assert train_command(*QUICK, "distill.from=teacher", "callbacks=ema", "run_dir=taught").status == 0
    assert train_command(*QUICK, "callbacks=ema", "run_dir=alone").status == 0
    taught, alone = weights(Path("taught")), weights(Path("alone"))
    assert set(taught) == set(alone)
    assert not all(torch.equal(value, alone[key]) for key, value in taught.items())


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (("distill.from=nowhere",), "nowhere: no such file or folder"),
        (("distill.from=",), "distill.from=: name a path"),
        (("distill.weight=2",), "distill.weight=2"),
        (("distill.temperature=0",), "distill.temperature=0"),
        (("distill.temperature=1e-30",), "distill.temperature=1e-30: it must lie between 0.1 and 1000"),
        (("+distill.form=x",), "distill.form"),
    ],
)
def test_a_teacher_that_cannot_teach_is_refused_in_a_line(settings: tuple[str, ...], says: str) -> None:
    outcome = train_command(*QUICK, *settings)
    assert outcome.status in (1, 2)
    assert says in outcome.err
    assert "Traceback" not in outcome.err


def test_a_teacher_of_other_images_is_refused() -> None:
    trained()
    config = configured(*QUICK, "distill.from=teacher")
    colour = build_network(["Flatten", {"Dense": {"units": 10}}], (3, 32, 32), 10)
    with pytest.raises(ConfigError, match=r"teacher takes images of 1×28×28, the network of 3×32×32"):
        build_loss(config, colour, Preprocessing())


def test_a_strangers_run_folder_does_not_choose_a_teacher_by_itself() -> None:
    trained()
    assert train_command(*QUICK, "distill.from=teacher", "run_dir=taught").status == 0
    refused = train_command("resume=taught", "trainer.max_epochs=3")
    assert refused.status == 2
    assert "distill.from, teacher, is not trusted from a run folder; name it again" in refused.err
    Path("teacher").rename("moved")
    again = train_command("resume=taught", "trainer.max_epochs=3", "distill.from=moved")
    assert again.status == 0, again.err
    assert train_command(*QUICK, "seed=5", "run_dir=other").status == 0
    another = train_command("resume=taught", "trainer.max_epochs=4", "distill.from=other")
    assert another.status == 2
    assert train_command(*QUICK, "run_dir=alone").status == 0
    taught = train_command("resume=alone", "trainer.max_epochs=3", "distill.from=other")
    assert "distill.from can't be changed when a run is resumed (it had none)" in taught.err
    assert "distill.from can't be changed" in another.err


def test_the_teacher_of_a_resumed_run_is_the_file_that_was_read_even_if_the_best_one_is_damaged() -> None:
    trained()
    kept = Path("teacher/checkpoints")
    (kept / "best.ckpt").write_bytes(b"damaged")
    taught = train_command(*QUICK, "distill.from=teacher", "run_dir=taught")
    assert taught.status == 0, taught.err
    assert "Using the last epoch instead" in taught.err
    assert train_command(*QUICK, "seed=5", "run_dir=other").status == 0
    (kept / "last.ckpt").write_bytes(Path("other/checkpoints/last.ckpt").read_bytes())
    another = train_command("resume=taught", "trainer.max_epochs=3", "distill.from=teacher")
    assert another.status == 2
    assert "distill.from can't be changed" in another.err


# --- weight decay -----------------------------------------------------------------------------------------------


def test_decay_of_kernels_only_spares_biases_and_normalisation() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3))
    before = {name: value.clone() for name, value in network.named_parameters()}
    for value in network.parameters():
        value.grad = torch.zeros_like(value)  # nothing but decay moves the weights
    build_optimizer({**ADAMW, "decay_kernels_only": True}, network.parameters()).step()
    for name, value in network.named_parameters():
        assert torch.allclose(value, before[name] * (0.95 if value.dim() > 1 else 1))


@pytest.mark.parametrize("target", [{**ADAMW, "weight_decay": 0.0}, {"_target_": "torch.optim.Rprop"}])
def test_sparing_weights_from_no_decay_is_refused(target: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="no weight_decay"):
        build_optimizer({**target, "decay_kernels_only": True}, [nn.Parameter(torch.ones(2, 2))])


# --- dropout ----------------------------------------------------------------------------------------------------


def test_dropout_grows_from_nothing_to_the_rates_of_the_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[list[float]] = []

    def note(self: Any, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        rates.append([part.p for part in module.modules() if isinstance(part, nn.Dropout)])

    monkeypatch.setattr(Finite, "on_train_epoch_end", note)
    settings = ("debug=smoke", "trainer=cpu", "model=dropout", "callbacks=dropout_schedule", "trainer.max_epochs=3")
    outcome = train_command(*settings, "run_dir=run")
    assert outcome.status == 0, outcome.err
    assert rates == [pytest.approx([0, 0]), pytest.approx([0.125, 0.25]), pytest.approx([0.25, 0.5])]


def test_the_course_of_dropout_keeps_a_resumed_run_from_being_longer() -> None:
    assert train_command(*QUICK, "callbacks=dropout_schedule", "run_dir=run").status == 0
    outcome = train_command("resume=run", "trainer.max_epochs=3")
    assert outcome.status == 2
    assert "trainer.max_epochs can't be changed" in outcome.err


def test_an_infinite_factor_of_dropout_is_refused() -> None:
    outcome = train_command(*QUICK, "callbacks=dropout_schedule", "callbacks.dropout_schedule.start=inf")
    assert outcome.status == 2
    assert "callbacks.dropout_schedule.start=inf: start and end must be finite numbers of at least 0" in outcome.err


# --- no validation images ---------------------------------------------------------------------------------------


def test_without_validation_images_all_are_trained_on_and_the_last_epoch_counts() -> None:
    outcome = train_command(*QUICK, "data.val_fraction=0", "run_dir=run")
    assert outcome.status == 0, outcome.err
    assert "the last one: there are no validation images to choose by" in outcome.out
    page = re.sub(r"data:image[^\"]*", "", Path("run/report/index.html").read_text())
    assert "validation curves" not in page
    assert "training and validation" not in page
    found = json.loads(Path("run/metrics.json").read_text())
    assert (found["val/accuracy"], found["val/loss"], found["best_epoch"]) == (None, None, 2)
    best, last = weights(Path("run"), "best"), weights(Path("run"), "last")
    assert all(torch.equal(value, best[key]) for key, value in last.items())
    assert found["train_images_per_second"] * found["fit_seconds"] == pytest.approx(2 * 1437, rel=0.01)


@pytest.mark.parametrize(
    ("settings", "who"),
    [
        (("callbacks=early_stopping",), "callbacks.early_stopping"),
        (
            (f"+scheduler._target_={PLATEAU}", "+scheduler.monitor=val/loss"),
            "scheduler",
        ),
    ],
)
def test_nothing_can_watch_a_validation_that_there_is_not(settings: tuple[str, ...], who: str) -> None:
    outcome = train_command(*QUICK, "data.val_fraction=0", *settings)
    assert outcome.status == 2
    assert f"{who}: it watches val/loss, but data.val_fraction=0" in outcome.err


# --- the recipes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(file.stem for file in (ROOT / "conf/experiment").glob("*.yaml")))
def test_a_recipe_says_its_command_time_and_accuracy_and_runs(name: str) -> None:
    head = (ROOT / f"conf/experiment/{name}.yaml").read_text().partition("defaults:")[0]
    assert f"python train.py experiment={name}\n" in head
    for word in ("Time:", "Measured:", "seed"):
        assert word in head


@pytest.mark.parametrize("name", sorted(file.stem for file in (ROOT / "conf/experiment").glob("*.yaml")))
def test_every_value_of_a_recipe_counts(name: str) -> None:
    written = OmegaConf.to_container(OmegaConf.load(ROOT / f"conf/experiment/{name}.yaml"))
    assert isinstance(written, dict)
    found = configured(f"experiment={name}").to_dict()
    for key, value in leaves({group: values for group, values in written.items() if group != "defaults"}):
        assert select(found, key) == value, key


DOCUMENTED = re.findall(r"^python train\.py ([^#\n]+)", (ROOT / "docs" / "recipes.md").read_text(), re.M)


@pytest.mark.parametrize("settings", DOCUMENTED)
def test_the_settings_in_the_docs_are_understood_and_do_something(settings: str) -> None:
    config, plain = configured(*shlex.split(settings)), configured()
    check_settings(config)
    assert config != plain
    check_optimizer(
        config, [nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))]
    )
