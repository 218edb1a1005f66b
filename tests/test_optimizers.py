import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hydra.utils import get_class
from torch import nn

from mnist_cnn.training.muon import Muon, orthogonal
from mnist_cnn.training.optimizers import KerasAdam, build_optimizer, build_scheduler
from tests.conftest import CONF, configured, train_command

RUN = ("model=tiny", "data=digits", "trainer=cpu", "trainer.max_epochs=2")


def test_adam_moves_weights_as_keras_formula_does() -> None:
    """Keras 3: w -= lr·√(1−β₂ᵗ)/(1−β₁ᵗ) · m / (√v + ε), with tiny gradients so that ε matters."""
    rng = np.random.default_rng(0)
    start = rng.normal(size=20)
    weight = nn.Parameter(torch.tensor(start))
    optimizer = KerasAdam([weight], 1e-2, (0.9, 0.999), 1e-7)
    w, m, v = start.copy(), np.zeros(20), np.zeros(20)
    for step in range(1, 51):
        gradient = rng.normal(size=20) * 1e-6
        weight.grad = torch.tensor(gradient)
        optimizer.step()
        m = 0.9 * m + 0.1 * gradient
        v = 0.999 * v + 0.001 * gradient**2
        w -= 1e-2 * math.sqrt(1 - 0.999**step) / (1 - 0.9**step) * m / (np.sqrt(v) + 1e-7)
        np.testing.assert_allclose(weight.detach().numpy(), w, rtol=1e-9)


def test_adam_goes_on_from_its_state_as_if_it_had_not_stopped() -> None:
    weights = [nn.Parameter(torch.ones(3)) for _ in range(2)]
    first, second = (KerasAdam([weight], 1e-2, (0.9, 0.999), 1e-7) for weight in weights)
    for step in range(6):
        for weight, optimizer in zip(weights, (first, second), strict=True):
            weight.grad = torch.full((3,), 1e-6)
            optimizer.step()
        if step == 2:
            state = first.state_dict()
            first = KerasAdam([weights[0]], 1e-2, (0.9, 0.999), 1e-7)
            first.load_state_dict(state)
    assert torch.equal(*weights)


def optimizer_of(*settings: str) -> torch.optim.Optimizer:
    return build_optimizer(configured(*settings).optimizer, [nn.Parameter(torch.ones(2, 2))])


@pytest.mark.parametrize("file", sorted((CONF / "optimizer").glob("*.yaml")), ids=lambda file: file.stem)
def test_every_option_makes_the_optimizer_that_its_file_names(file: Path) -> None:
    target = yaml.safe_load(file.read_text())
    optimizer = optimizer_of(f"optimizer={file.stem}")
    assert type(optimizer) is get_class(target["_target_"])
    assert optimizer.param_groups[0]["lr"] == float(target["lr"])


# Muon takes matrices only, SparseAdam sparse gradients, and LBFGS weights that are not channels-last.
CLASSES = sorted(
    name
    for name, kind in vars(torch.optim).items()
    if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer) and kind is not torch.optim.Optimizer
)
NOT_FOR_CONVOLUTIONS = ("LBFGS", "Muon", "SparseAdam")


@pytest.mark.parametrize("name", [name for name in CLASSES if name not in NOT_FOR_CONVOLUTIONS])
def test_one_line_of_configuration_trains_with_any_class_of_torch(name: str) -> None:
    settings = (f"optimizer._target_=torch.optim.{name}", "~optimizer.betas", "~optimizer.eps")
    outcome = train_command(*RUN, *settings, "run_dir=run")
    assert outcome.status == 0, outcome.err
    history = json.loads(Path("run/metrics.json").read_text())["history"]
    assert history[-1]["train/loss"] < history[0]["train/loss"]


LR = "torch.optim.lr_scheduler"


def step_lr(size: Any) -> tuple[str, ...]:
    return f"+scheduler._target_={LR}.StepLR", f"+scheduler.step_size={size}", "+scheduler.gamma=0.5"


SWA = "lightning.pytorch.callbacks.StochasticWeightAveraging"
NO_ARGUMENTS = ("~optimizer.betas", "~optimizer.eps")


class NoClosure(torch.optim.SGD):
    """Somebody's optimiser that forgets the closure, which Lightning relies on."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        super().step()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (("optimizer=sgd", "optimizer.nesterov='no'"), "optimizer.nesterov=no: it must be true or false"),
        (("optimizer=sgd", "optimizer.momentum=0", "optimizer.nesterov=true"), "optimizer.nesterov=true: Nesterov"),
        (("optimizer=adamw", "optimizer.weight_decay=-1"), "optimizer.weight_decay=-1: Invalid weight_decay"),
        (("optimizer.eps=abc",), "optimizer.eps=abc: it must be a number"),
        (("+optimizer.momentum=0.9",), "optimizer.momentum=0.9: KerasAdam takes no such argument"),
        (
            ("optimizer._target_=torch.optim.Adamm",),
            "the module torch.optim has no class Adamm. Did you mean Adam",
        ),
        (("~optimizer._target_",), "optimizer: _target_ is missing"),
        (
            ("experiment=fast", "scheduler=none"),
            "scheduler: _target_ is missing; it names the class. To have none, add '~s",
        ),
        (
            ("optimizer._target_=nowhere.Adam",),
            "optimizer._target_=nowhere.Adam: the module can't be imported: No module named",
        ),
        (("optimizer._target_=tests.test_optimizers.NoClosure", *NO_ARGUMENTS), "must call the closure"),
        (("optimizer._target_=torch.nn.Linear",), "must name a subclass of torch.optim"),
        *(
            (
                (f"optimizer._target_=torch.optim.{name}", "~optimizer.betas", "~optimizer.eps"),
                f"(torch.optim.{name}): ",
            )
            for name in NOT_FOR_CONVOLUTIONS
        ),
        (("scheduler=onecycle", "scheduler.pct_start=2"), "scheduler.pct_start=2: "),
        (("+optimizer.fused=maybe",), "optimizer.fused=maybe: it must be true or false"),
        (("+optimizer._args_=[1]",), "optimizer._args_=[1]: KerasAdam takes no such argument"),
        (("scheduler=cosine", "scheduler.interval=stepp"), "scheduler.interval=stepp: not one of epoch, step. Did you"),
        (("scheduler=cosine", "+scheduler.frequency=x"), "scheduler.frequency=x: it must be a whole number"),
        (("scheduler=cosine", "scheduler.T_max=0"), "scheduler.T_max=0: it must be above 0"),
        (("scheduler=onecycle", "scheduler.max_lr=-1"), "scheduler.max_lr=-1: it must be above 0"),
        (("scheduler=onecycle", "scheduler.max_lr=[-1]"), "scheduler.max_lr=[-1]: it must be above 0"),
        (("scheduler=onecycle", "scheduler.pct_start=nan"), "scheduler.pct_start=nan: it must be a number"),
        (("optimizer=sgd", "optimizer.momentum=nan"), "optimizer.momentum=nan: it must be a number"),
        (("scheduler=onecycle", "scheduler.pct_start=1.0"), "scheduler.pct_start=1.0: OneCycleLR divides by zero"),
        (
            (f"+callbacks.x._target_={SWA}", "+callbacks.x.swa_lrs=0.1"),
            "callbacks.x: Lightning's StochasticWeightAveraging sets the average only after the last checkpoint",
        ),
        ((*step_lr("x"),), "scheduler (torch.optim.lr_scheduler.StepLR): "),
        ((f"+scheduler._target_={LR}.ReduceLROnPlateau",), "scheduler.monitor is missing"),
        (("scheduler=cosine", "+scheduler.gamma=2"), "scheduler.gamma=2: CosineAnnealingLR takes no such argument"),
    ],
    ids=str,
)
def test_a_wrong_argument_is_one_line_that_names_its_key_before_anything_is_made(
    settings: tuple[str, ...], says: str
) -> None:
    outcome = train_command(*settings)
    assert outcome.status == 2
    assert says in outcome.err
    assert len(outcome.err[outcome.err.index("error: ") :].strip().splitlines()) == 1
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["scheduler.total_steps=5"], "planned for 5 steps, but moves the rate 22 times in this run"),
        (["scheduler.total_steps=1", "scheduler.interval=epoch"], "planned for 1 steps, but moves the rate 2 times"),
        (["+trainer.limit_train_batches=2"], "scheduler.pct_start=0.25: OneCycleLR divides by zero"),  # 4 steps
    ],
    ids=str,
)
def test_a_schedule_that_the_run_can_not_follow_to_its_end_is_refused(settings: list[str], says: str) -> None:
    outcome = train_command(
        "model=mlp", "data=digits", "trainer=cpu", "trainer.max_epochs=2", "scheduler=onecycle", *settings
    )
    assert outcome.status == 2
    assert says in outcome.err
    assert "Traceback" not in outcome.err
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.parametrize("fraction", [0.01, 0.001, 0.02])
def test_a_short_rise_is_refused_only_where_it_is_one_step_of_this_very_run(fraction: float) -> None:
    settings = (f"scheduler.pct_start={fraction}", "trainer.max_epochs=1", "data=digits", "model=mlp", "trainer=cpu")
    assert train_command(*settings, "scheduler=onecycle").status == 0


def rates(name: str, steps: int, peak: float) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], peak, momentum=0.9)
    target = configured(f"scheduler={name}", f"optimizer.lr={peak}").scheduler
    built = build_scheduler(target, optimizer, steps)
    assert built is not None
    assert built["interval"] == "step"
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if len(found) < steps:
            built["scheduler"].step()
    return found


@pytest.mark.parametrize(
    ("name", "first", "highest", "last"), [("onecycle", 0.004, 0.1, 4e-7), ("cosine", 0.1, 0.1, 0.0)]
)
def test_schedules_begin_peak_and_end_where_they_should(name: str, first: float, highest: float, last: float) -> None:
    found = rates(name, 100, 0.1)
    assert found[0] == pytest.approx(first)
    assert max(found) == pytest.approx(highest)
    assert found[-1] == pytest.approx(last, rel=0.01, abs=5e-5)


def test_without_a_schedule_the_rate_stays() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], 0.1)
    assert build_scheduler(configured().scheduler, optimizer, 100) is None
    assert train_command(*RUN, "run_dir=run").status == 0
    history = json.loads(Path("run/metrics.json").read_text())["history"]
    assert [row["lr"] for row in history] == [1e-3, 1e-3]


def test_a_scheduler_of_torch_moves_the_rate_after_every_epoch() -> None:
    assert train_command(*RUN, *step_lr(1), "trainer.max_epochs=2", "run_dir=run").status == 0
    assert train_command("resume=run", "trainer.max_epochs=3").status == 0  # its course does not depend on the length
    history = json.loads(Path("run/metrics.json").read_text())["history"]
    assert [row["lr"] for row in history] == pytest.approx([5e-4, 2.5e-4, 1.25e-4])


def test_a_run_whose_schedule_depends_on_its_length_keeps_it() -> None:
    assert train_command(*RUN, "scheduler=onecycle", "run_dir=run").status == 0
    outcome = train_command("resume=run", "trainer.max_epochs=3")
    assert outcome.status == 2
    assert "trainer.max_epochs can't be changed when a run is resumed (it was 2, and its schedule" in outcome.err


@pytest.mark.parametrize("shape", [(16, 9), (10, 400), (64, 288), (30, 30)])
def test_muon_makes_a_kernel_move_alike_in_all_directions(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    turned = orthogonal(matrix)
    values = torch.linalg.svdvals(turned)
    assert values.min() > 0.6
    assert values.max() < 1.3
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    assert float((u @ v - turned).abs().max()) < 0.35


def test_muon_takes_steps_of_orthogonal_kernels_and_leaves_the_rest_to_adamw() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(16, 3)).to(memory_format=torch.channels_last)
    kernel, *others = network.parameters()
    copies = [nn.Parameter(value.detach().clone()) for value in others]
    muon = Muon(network.parameters(), 1e-2, (0.9, 0.99), 1e-8, 0.5)
    decaying = [{"params": [copies[1]], "weight_decay": 0.5}, {"params": [copies[0], copies[2]], "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(decaying, 1e-2, (0.9, 0.99), 1e-8)
    momentum = torch.zeros(4, 9)
    for _ in range(3):
        gradients = [torch.randn_like(value) for value in network.parameters()]
        for value, gradient in zip(network.parameters(), gradients, strict=True):
            value.grad = gradient
        for copy, gradient in zip(copies, gradients[1:], strict=True):
            copy.grad = gradient.clone()
        momentum = 0.9 * momentum + 0.1 * gradients[0].flatten(1)
        step = orthogonal(0.1 * gradients[0].flatten(1) + 0.9 * momentum).view(4, 1, 3, 3)
        expected = kernel.detach() * (1 - 0.5e-2) - 1e-2 * 0.2 * 3 * step
        muon.step()
        adamw.step()
        assert torch.allclose(kernel, expected, atol=1e-4)
        assert all(torch.allclose(value, copy, atol=1e-6) for value, copy in zip(others, copies, strict=True))
