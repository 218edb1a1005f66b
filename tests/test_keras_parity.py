"""Training here is what it is in Keras, which runs beside it on its torch backend."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from keras_recipes import NETWORKS, compiled, keras
from keras_seeds import compare as compare_means
from keras_steps import Step, batches_of, compare, layout_of, our_module
from omegaconf import OmegaConf
from scipy.stats import ks_2samp
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from mnist_cnn.data import datasets
from mnist_cnn.data.split import split_indices
from mnist_cnn.inference import checkpoint
from mnist_cnn.network import LAYERS, build_network
from mnist_cnn.network.layers.initializers import INITIALIZERS
from mnist_cnn.training import fast_steps
from tests.conftest import Outcome, composed, train_command

STEPS = 50


@pytest.fixture(scope="module")
def batches() -> list[tuple[Tensor, Tensor]]:
    digits = datasets.load("digits", "nowhere").train
    return batches_of(digits.images, digits.labels, 16)[:STEPS]


@pytest.fixture(autouse=True)
def _keras_seed() -> None:
    keras.utils.set_random_seed(0)


# --- the same steps ---


@pytest.mark.parametrize("name", NETWORKS)
def test_every_step_is_that_of_keras_in_double_precision(name: str, batches: list[tuple[Tensor, Tensor]]) -> None:
    steps = list(compare(name, batches, torch.float64))
    assert len(steps) == STEPS
    assert steps[-1].loss < 0.95 * steps[0].loss  # it does learn
    assert _worst(steps, "relative") < 1e-12
    for what in ("logits", "gradients", "weights"):
        assert _worst(steps, what) < 1e-11, what


@pytest.mark.parametrize("name", NETWORKS)
def test_in_single_precision_only_rounding_parts_them(name: str, batches: list[tuple[Tensor, Tensor]]) -> None:
    # Later on, a ReLU or a pooling that rounding has tipped over makes them differ by more; in double none does.
    steps = list(compare(name, batches[:5]))
    assert _worst(steps, "relative") < 1e-5
    assert steps[0].logits < 1e-6
    assert steps[0].gradients < 1e-4


@pytest.mark.full
@pytest.mark.mnist
def test_a_whole_epoch_of_baseline_is_that_of_keras(real_mnist: Callable[..., Outcome]) -> None:
    outcome = real_mnist("debug=smoke", "run_dir=found")  # brings the files, and says where they are
    assert outcome.status == 0, outcome.err
    root = OmegaConf.load("found/config.yaml").data.root
    train = datasets.load("mnist", root).train
    batches = batches_of(train.images[:54_000], train.labels[:54_000], 128)
    assert (len(batches), len(batches[-1][1])) == (422, 112)
    assert _worst(list(compare("baseline", batches, torch.float64)), "relative") < 1e-10
    single = [step.relative for step in compare("baseline", batches)]
    assert max(single[:3]) < 1e-5
    assert np.median(single) < 0.1


def _worst(steps: list[Step], what: str) -> float:
    return max(float(getattr(step, what)) for step in steps)


# --- the same distributions ---

RANDOM = sorted(set(INITIALIZERS) - {"zeros", "ones"})


@pytest.mark.parametrize("shape", [(300, 500), (3, 3, 40, 200)], ids=["dense", "convolution"])
@pytest.mark.parametrize("name", RANDOM)
def test_initial_weights_are_drawn_as_keras_draws_them(name: str, shape: tuple[int, ...]) -> None:
    theirs = keras.initializers.get(name)(shape)
    if len(shape) == 2:
        layer = LAYERS["Dense"]((shape[0],), units=shape[1], kernel_initializer=name)
    else:
        layer = LAYERS["Conv2D"]((shape[2], 9, 9), filters=shape[3], kernel_size=shape[0], kernel_initializer=name)
    ours = next(next(iter(layer.modules.values())).parameters())
    assert ours.numel() == math.prod(shape)
    assert ks_2samp(ours.detach().flatten().numpy(), theirs.numpy().flatten()).pvalue > 1e-3


@pytest.mark.parametrize("name", NETWORKS)
def test_fresh_networks_have_keras_distribution_in_every_layer(name: str) -> None:
    ours: list[list[Tensor]] = []
    theirs: list[list[Tensor]] = []
    for _ in range(5):
        network = our_module(name)[0].network
        state = network.state_dict()
        ours.append([variable.to_keras(state[variable.key]).flatten() for variable in layout_of(network)])
        theirs.append([weight.value.detach().flatten() for weight in compiled(name).weights])
    for a, b in zip(zip(*ours, strict=True), zip(*theirs, strict=True), strict=True):
        x, y = torch.cat(a).numpy(), torch.cat(b).numpy()
        assert x.shape == y.shape
        assert (not x.any() and not y.any()) or ks_2samp(x, y).pvalue > 1e-4


@pytest.mark.parametrize("rate", [0.25, 0.5])
def test_dropout_drops_the_same_fraction_and_scales_the_rest_the_same(rate: float) -> None:
    ones = torch.ones(1000, 1000)
    ours = LAYERS["Dropout"]((1000,), rate=rate).modules["Dropout"].train()(ones)
    theirs = keras.layers.Dropout(rate)(ones, training=True)
    for x in (ours, theirs):
        dropped = float((x == 0).double().mean())
        assert abs(dropped - rate) < 5 * math.sqrt(rate * (1 - rate) / ones.numel())
        assert torch.all((x == 0) | (x == 1 / (1 - rate)))


@pytest.mark.parametrize(("n", "fraction"), [(60_000, 0.1), (60_000, 0.3), (60_000, 0.2), (1437, 0.1), (7, 0.3)])
def test_the_validation_cut_is_that_of_keras(n: int, fraction: float) -> None:
    from keras.src.trainers.data_adapters.array_slicing import train_validation_split

    labels = np.arange(n)
    (theirs,), (their_validation,) = train_validation_split((labels,), fraction)
    ours, validation = split_indices(torch.from_numpy(labels), fraction, "last", seed=0)
    assert np.array_equal(ours, theirs)
    assert np.array_equal(validation, their_validation)


@pytest.mark.parametrize("reason", [None, "the test says so"], ids=["fast steps", "Lightning's steps"])
def test_an_epochs_loss_and_accuracy_weigh_the_last_small_batch_as_keras_does(
    reason: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fast_steps, "why_not", lambda *_: reason)
    still = ("optimizer=sgd", "optimizer.lr=1e-30", "optimizer.momentum=0")  # so that the order makes no difference
    settings = ("model=mlp", "data=digits", "data.batch_size=100", "trainer=cpu", "trainer.max_epochs=1", "run_dir=run")
    assert train_command(*settings, *still).status == 0
    ours = json.loads(Path("run/metrics.json").read_text())["history"][0]

    network, theirs = checkpoint.load("run").network, compiled("mlp")
    for variable, weight in zip(layout_of(network), theirs.weights, strict=True):
        weight.assign(variable.to_keras(network.state_dict()[variable.key]))
    theirs.optimizer.learning_rate = 0.0
    train = datasets.load("digits", "nowhere").train.subset(torch.arange(1293))
    assert len(train) % 100 == 93
    images = train.images.permute(0, 2, 3, 1) / 255
    history = theirs.fit(images, train.labels, batch_size=100, epochs=1, verbose=0).history
    for what in ("loss", "accuracy"):
        assert ours[f"train/{what}"] == pytest.approx(float(history[what][0]), rel=1e-5)


class GivenLosses(pl.LightningModule):
    """Trains nothing; its validation losses and accuracies are given, one for each epoch."""

    def __init__(self, losses: list[float]) -> None:
        super().__init__()
        self.losses = losses
        self.weight = nn.Parameter(torch.zeros(()))

    def training_step(self, batch: list[Tensor]) -> Tensor:
        return self.weight * batch[0].sum()

    def validation_step(self, batch: list[Tensor]) -> None:
        loss = self.losses[self.current_epoch]
        self.log_dict({"val/loss": loss, "val/accuracy": loss})  # so that the best epoch by accuracy is another one

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


@pytest.mark.parametrize("patience", [1, 2, 5])
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")  # Lightning's, on its own and on workers
def test_the_configured_early_stopping_stops_and_keeps_the_epoch_that_keras_does(patience: int, tmp_path: Path) -> None:
    stopped_early = 0
    for index, losses in enumerate(torch.rand(20, 12, generator=torch.Generator().manual_seed(patience)).tolist()):
        theirs = keras.callbacks.EarlyStopping("val_loss", patience=patience)
        theirs.set_model(compiled("mlp"))
        theirs.model.stop_training = False
        theirs.on_train_begin()
        for epoch, loss in enumerate(losses):
            theirs.on_epoch_end(epoch, {"val_loss": loss})
            if theirs.model.stop_training:
                break
        run = tmp_path / str(index)
        settings = ("callbacks=early_stopping", f"callbacks.early_stopping.patience={patience}", f"run_dir={run}")
        callbacks = [instantiate(callback) for callback in composed(*settings).callbacks.values()]
        trainer = pl.Trainer(
            accelerator="cpu", max_epochs=len(losses), callbacks=callbacks, logger=False, num_sanity_val_steps=0,
            enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        data = DataLoader(TensorDataset(torch.ones(1)))
        trainer.fit(GivenLosses(losses), data, data)
        assert trainer.current_epoch == epoch + 1
        best = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
        assert best["epoch"] == theirs.best_epoch == min(range(epoch + 1), key=losses.__getitem__)
        stopped_early += trainer.current_epoch < len(losses)
    assert stopped_early > 0


@pytest.mark.parametrize(("shape", "axis"), [((3, 5, 4), -1), ((3, 5, 4), 1), ((7,), -1), ((6, 4), -1)])
def test_batch_normalization_trains_as_in_keras(shape: tuple[int, ...], axis: int) -> None:
    ours = build_network([{"BatchNormalization": {"axis": axis}}, "Flatten"], shape)
    theirs = keras.layers.BatchNormalization(axis=axis)
    for batch in (8, 3, 1):
        x = (torch.rand(batch, *shape) * 5).requires_grad_()
        last = x.permute(0, 2, 3, 1) if x.dim() == 4 else x
        results = ours.train()(x), theirs(last, training=True).flatten(1)
        torch.testing.assert_close(*results)
        gradients = [torch.autograd.grad(result.pow(3).sum(), x)[0] for result in results]
        torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(ours.eval()(x), theirs(last, training=False).flatten(1))


# --- the comparison of seeds ---


def test_the_interval_of_a_difference_of_means_is_welchs() -> None:
    difference, low, high = compare_means([1.0, 2.0, 3.0, 4.0], [2.0, 2.5, 3.0])
    assert difference == pytest.approx(0.0)
    # By hand: variances 5/3 and 1/4 over 4 and 3; standard error 0.7071, 4.08 degrees of freedom, t = 2.7554.
    assert [low, high] == pytest.approx([-1.947, 1.947], abs=2e-3)
