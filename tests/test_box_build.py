"""benchmarks/box.py: which of a recipe's runs gets into the package, in which form, and what its card says."""

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import box as builder  # benchmarks/box.py
import pytest
import torch
from box_card import text_of

from mnist_cnn.errors import ConfigError
from mnist_cnn.inference import box, checkpoint
from tests.conftest import QUICK, train_command


@pytest.fixture
def runs(digits_run: Path, tmp_path: Path) -> Path:
    """Three copies of a run, as if they had been trained with the seeds 0, 1, 2."""
    folder = tmp_path / "sweep" / "tiny_strong"
    for seed in range(3):
        change(Path(shutil.copytree(digits_run, folder / f"{seed}_seed={seed}")), seed=seed)
    return folder


def change(folder: Path, **values: Any) -> None:
    """Change figures in a run's `metrics.json`; None removes one."""
    file = folder / "metrics.json"
    figures = json.loads(file.read_text()) | {key.replace("__", "/"): value for key, value in values.items()}
    file.write_text(json.dumps({key: value for key, value in figures.items() if value is not None}))


def change_weights(folder: Path, edit: Callable[[dict[str, torch.Tensor]], None]) -> None:
    file = folder / "checkpoints" / "best.ckpt"
    content = torch.load(file, weights_only=True)
    edit(content["state_dict"])
    torch.save(content, file)


def built(runs: Path, robustness: dict[str, box.Spread] | None = None) -> box.Card:
    output = runs.parent / "box"
    output.mkdir(exist_ok=True)
    return builder.build(runs, "data", robustness or {}, output)


def test_the_seed_that_is_best_on_validation_is_taken_and_the_test_images_choose_nothing(runs: Path) -> None:
    for seed, (val, loss, test) in enumerate([(0.90, 0.3, 0.99), (0.95, 0.2, 0.90), (0.95, 0.1, 0.80)]):
        change(runs / f"{seed}_seed={seed}", val__accuracy=val, val__loss=loss, test__accuracy=test)
    card = built(runs)
    assert (card.seed, card.validation_accuracy) == (2, 0.95)  # of two, that with the lower loss
    assert card.seeds == [0, 1, 2]
    assert card.test_accuracy_of_seeds.mean == pytest.approx(0.8966667)
    assert card.test_accuracy_of_seeds.std == pytest.approx(0.0950438)


def test_without_validation_images_seed_0_is_taken_and_the_card_says_so(runs: Path) -> None:
    for seed in range(3):
        change(runs / f"{seed}_seed={seed}", val__accuracy=None, val__loss=None, test__accuracy=0.9 + seed / 100)
    card = built(runs)
    assert (card.seed, card.validation_accuracy) == (0, None)
    assert "no images were kept for it" in text_of(card)
    assert "fixed beforehand, since no images were kept for validation" in text_of(card)
    shutil.rmtree(runs / "0_seed=0")
    with pytest.raises(ConfigError, match="none has seed 0"):
        built(runs)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "truncated"),
        ('{"recipes": {"a": {"accuracy": 1}}}', "missing required field `corrupted`"),
        ('{"recipes": {"a": {"corrupted": {"mean": 94.1, "std": 0.5}}}}', "<= 1"),  # per cent
    ],
)
def test_a_robustness_file_of_another_kind_is_refused(text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "it.json").write_text(text)
    with pytest.raises(ConfigError, match=rf"it\.json: .*{says}.*; it should have "):
        builder.corrupted_accuracies(tmp_path / "it.json")


def test_what_is_built_is_a_small_checkpoint_with_the_figures_of_its_card(runs: Path, digits_run: Path) -> None:
    for seed in range(3):  # such as the network that a distilled one learned from
        change_weights(runs / f"{seed}_seed={seed}", lambda state: state.update({"teacher.weight": torch.zeros(9)}))
    card = built(runs)
    file = runs.parent / "box" / "tiny_strong.ckpt"
    trained = checkpoint.load(file)
    whole = digits_run / "checkpoints" / "best.ckpt"
    assert (trained.model, trained.epoch, trained.training) == (
        "tiny_strong", checkpoint.load(whole).epoch, checkpoint.load(whole).training,
    )  # fmt: skip
    assert card.test_accuracy == pytest.approx(json.loads((digits_run / "metrics.json").read_text())["test/accuracy"])
    assert not [key for key in checkpoint.read(file)["state_dict"] if not key.startswith(checkpoint.PREFIX)]
    assert card.weights == "float16"
    assert card.bytes < whole.stat().st_size / 4
    assert built(runs) == card  # to the last bit, by its SHA-256


def overflowing(state: dict[str, torch.Tensor]) -> None:
    state["network.0_Conv2D.bias"][0] = 1e5  # float16 ends at 65,504


def nearly_undecided(state: dict[str, torch.Tensor]) -> None:
    state["network.6_Dense.weight"].zero_()
    state["network.6_Dense.bias"][:] = torch.tensor([1.0, 1.0001] + [0.0] * 8)  # equal in float16


@pytest.mark.parametrize("edit", [overflowing, nearly_undecided])
def test_weights_stay_float32_where_float16_would_change_an_answer(
    edit: Callable[[dict[str, torch.Tensor]], None], runs: Path
) -> None:
    for seed in range(3):
        change_weights(runs / f"{seed}_seed={seed}", edit)
    assert built(runs).weights == "float32"
    trained = checkpoint.load(runs.parent / "box" / "tiny_strong.ckpt")
    original = checkpoint.load(runs / "0_seed=0")
    assert all(map(torch.equal, trained.network.parameters(), original.network.parameters()))


def test_the_card_states_the_commands_without_the_places_of_a_machine(runs: Path) -> None:
    for seed in range(3):
        config = runs / f"{seed}_seed={seed}" / "config.yaml"
        places = f"data.root=/home/me data.mirror=file:///x run_dir='my runs/{seed}'"
        commands = f"# python train.py experiment=mine seed={seed} {places}\n# python train.py resume=runs/a/{seed}\n"
        config.write_text(commands + re.sub("(?m)^#.*\n", "", config.read_text()).replace("root: data", "root: /home"))
    card = built(runs)
    assert card.commands == [
        command
        for seed in range(3)
        for command in (f"python train.py experiment=mine seed={seed}", f"python train.py resume={seed}")
    ]
    assert card.recipe == "mine"


def test_robustness_is_stated_if_it_was_measured_for_the_recipe(runs: Path) -> None:
    assert "| on corrupted test images | not measured |" in text_of(built(runs))
    file = runs.parent / "robustness.json"
    file.write_text('{"recipes": {"tiny_strong": {"corrupted": {"mean": 0.9412, "std": 0.0049}, "model": "x"}}}')
    card = built(runs, builder.corrupted_accuracies(file))
    assert card.corrupted_accuracy == box.Spread(0.9412, 0.0049)
    assert "| on corrupted test images | 94.12 ± 0.49 % |" in text_of(card)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda run: change(run, seed=1), "two of its runs have the same seed"),
        (lambda run: change(run, interrupted=True), "this run was interrupted"),
        (
            lambda run: (run / "config.yaml").write_text(
                (run / "config.yaml").read_text().replace("lr: 0.001", "lr: 0.002")
            ),
            r"differ in more than the seed: optimizer\.lr\.",
        ),
    ],
)
def test_runs_that_are_not_those_of_one_recipe_are_refused(
    runs: Path, spoil: Callable[[Path], object], says: str
) -> None:
    spoil(runs / "0_seed=0")
    with pytest.raises(ConfigError, match=says):
        built(runs)


def test_the_documented_commands_build_a_network_from_a_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in (builder, box):
        monkeypatch.setattr(module, "BOX", tmp_path)
    assert train_command("-m", *QUICK, "seed=0,1", "run_dir=strong").status == 0
    monkeypatch.setattr(sys, "argv", ["box.py", "strong"])
    assert builder.main() == 0
    assert box.card("strong").dataset == "digits"
    assert box.card("strong").seeds == [0, 1]
    assert checkpoint.load(box.find("strong")).model == "strong"
    monkeypatch.setattr(sys, "argv", ["box.py", "stong"])
    assert builder.main() == 2
    assert "stong: say in PURPOSES" in capsys.readouterr().err
