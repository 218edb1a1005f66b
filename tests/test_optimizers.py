import math

import numpy as np
import pytest
import torch
from torch import nn

from mnist_cnn.training.optimizers import KerasAdam, build_optimizer, build_scheduler
from tests.conftest import configured


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


@pytest.mark.parametrize(
    ("name", "kind"),
    [("adam", KerasAdam), ("adam_pytorch", torch.optim.Adam), ("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)],
)
def test_every_optimizer_is_the_one_that_its_name_says(name: str, kind: type) -> None:
    config = configured(f"optimizer={name}").optimizer
    optimizer = build_optimizer(config, [nn.Parameter(torch.ones(1))])
    assert type(optimizer) is kind
    assert optimizer.param_groups[0]["lr"] == config.lr


@pytest.mark.parametrize(
    ("name", "first", "highest", "last"), [("onecycle", 0.004, 0.1, 4e-7), ("cosine", 0.1, 0.1, 0.0)]
)
def test_schedules_begin_peak_and_end_where_they_should(name: str, first: float, highest: float, last: float) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], 0.1, momentum=0.9)
    scheduler = build_scheduler(configured(f"scheduler={name}").scheduler, optimizer, steps=100)
    assert scheduler is not None
    rates = []
    for _ in range(100):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if len(rates) < 100:
            scheduler.step()
    assert (rates[0], max(rates)) == (pytest.approx(first), pytest.approx(highest))
    assert rates[-1] == pytest.approx(last, abs=1e-4)


def test_without_a_schedule_the_rate_stays() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], 0.1)
    assert build_scheduler(configured().scheduler, optimizer, 100) is None
