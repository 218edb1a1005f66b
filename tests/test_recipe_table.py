"""benchmarks/recipes.py: its table says what the run folders say, and nothing is trained twice."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import recipes

from tests.conftest import QUICK


def finished(folder: Path, recipe: str, seed: int, **changes: Any) -> None:
    run = folder / recipe / str(seed)
    run.mkdir(parents=True)
    metrics = {
        "seed": seed, "interrupted": False, "parameters": 6320, "epochs": 5, "accelerator": "cpu", "fit_seconds": 20.0,
        "test/accuracy": 0.98, "test/loss": 0.05, "val/accuracy": 0.985,
    }  # fmt: skip
    (run / "metrics.json").write_text(json.dumps(metrics | changes))


def test_a_row_is_mean_and_deviation_over_the_seeds_and_the_time_of_seed_0_on_a_cpu(tmp_path: Path) -> None:
    for seed, (accuracy, accelerator) in enumerate([(0.98, "cpu"), (0.99, "cuda"), (0.985, "cpu")]):
        changes = {"test/accuracy": accuracy, "accelerator": accelerator, "fit_seconds": 10.0 * (seed + 1)}
        finished(tmp_path, "tiny", seed, **changes)
    row = recipes.summary(tmp_path, "tiny")
    assert row is not None
    assert (row["n"], row["min"], row["max"]) == (3, pytest.approx(98), pytest.approx(99))
    assert row["mean"] == pytest.approx(98.5)
    assert row["std"] == pytest.approx(0.5)
    assert row["seconds"] == 10.0
    assert "| `tiny` | 6,320 | 5 | 3 | 98.500 ± 0.500 % | 98.00 – 99.00 | 98.50 % | 10 |" in recipes.table([row])


def test_without_a_run_of_seed_0_on_a_cpu_there_is_no_time(tmp_path: Path) -> None:
    finished(tmp_path, "tiny", 0, accelerator="cuda")
    finished(tmp_path, "tiny", 1)
    row = recipes.summary(tmp_path, "tiny")
    assert row is not None
    assert row["seconds"] is None
    assert recipes.table([row]).endswith("| 98.50 % | – |")


def test_interrupted_runs_and_seeds_beyond_those_announced_do_not_count(tmp_path: Path) -> None:
    finished(tmp_path, "tiny", 0)
    finished(tmp_path, "tiny", 1, interrupted=True)
    finished(tmp_path, "tiny", recipes.SEEDS["tiny"], **{"test/accuracy": 1.0})
    row = recipes.summary(tmp_path, "tiny")
    assert row is not None
    assert (row["n"], row["max"], row["std"]) == (1, 98.0, None)


def test_a_recipe_without_validation_images_is_shown_without_a_validation_accuracy(tmp_path: Path) -> None:
    finished(tmp_path, "fast", 0, **{"val/accuracy": None})
    row = recipes.summary(tmp_path, "fast")
    assert row is not None
    assert "| 98.00 – 98.00 | – | 20 |" in recipes.table([row])
    recipes.plot([row])


def test_what_is_finished_is_not_trained_again_and_what_is_half_done_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []

    def note(command: list[str], **_: Any) -> Any:
        commands.append(command)
        return type("Done", (), {"returncode": 0, "stderr": ""})

    monkeypatch.setattr("subprocess.run", note)
    finished(tmp_path, "tiny", 0)
    finished(tmp_path, "tiny", 1, interrupted=True)  # by Ctrl-C
    (tmp_path / "tiny/2").mkdir()  # killed before it wrote a checkpoint
    for seed in (1, 2):
        (tmp_path / f"tiny/{seed}/config.yaml").touch()
    for seed in range(4):
        assert recipes.train(tmp_path, "tiny", seed, ["trainer=cpu"], 1) is None
    *resumed, started = ([*command[2:]] for command in commands)
    assert resumed == [[f"resume={tmp_path}/tiny/{seed}", "trainer=cpu"] for seed in (1, 2)]
    assert started == ["experiment=tiny", "seed=3", f"run_dir={tmp_path}/tiny/3", "trainer=cpu"]


def test_published_recipes_are_trained_in_keras_on_the_same_images_and_have_rows_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []

    def note(command: list[str], **_: Any) -> Any:
        commands.append(command[1:])
        return type("Done", (), {"returncode": 0, "stderr": ""})

    monkeypatch.setattr("subprocess.run", note)
    assert recipes.train(tmp_path, "keras/tiny", 0, ["data.root=there"], 0) is None
    assert commands == [
        ["benchmarks/keras_run.py", "tiny", "0", str(tmp_path / "keras/tiny/0"), "--data-root", "there"]
    ]
    finished(tmp_path, "tiny", 0)
    finished(tmp_path, "keras/tiny", 0, **{"test/accuracy": 0.97})
    rows = [recipes.summary(tmp_path, name) for name in ("tiny", "keras/tiny")]
    assert [row and row["mean"] for row in rows] == [pytest.approx(98), pytest.approx(97)]


def test_the_command_trains_and_writes_the_table_and_the_plot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, output = tmp_path / "runs", tmp_path / "recipes"
    settings = [*QUICK[1:], "trainer.max_epochs=1"]
    monkeypatch.setattr(
        sys, "argv", ["recipes.py", str(folder), "tiny", "--train", "1", "--output", str(output), *settings]
    )
    assert recipes.main() == 0
    assert "| `tiny` | 6,320 | 1 | 1 |" in capsys.readouterr().out
    assert json.loads(output.with_suffix(".json").read_text())[0]["recipe"] == "tiny"
    assert output.with_suffix(".svg").read_text().count("<svg") == 1
