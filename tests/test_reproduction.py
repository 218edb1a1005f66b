"""benchmarks/reproduction.py: its verdicts follow from the runs, and its figures from their checkpoints."""

import json
import sys
from pathlib import Path

import pytest
import reproduction
from reproduction import Claim, Result, verdict

from mnist_cnn import cli
from tests.conftest import QUICK, metrics, train_command


def result(*accuracies: float) -> Result:
    return Result("tiny", list(accuracies), list(accuracies), [0.05] * len(accuracies), 20.0)


def accuracy_of_the_last_epoch(run: Path, capsys: pytest.CaptureFixture[str]) -> float:
    assert cli.main(["evaluate", str(run / "checkpoints" / "last.ckpt"), "--json"]) == 0
    return float(json.loads(capsys.readouterr().out)["accuracy"])


@pytest.mark.parametrize(
    ("claim", "says"),
    [
        (Claim(98.1, 0.05, ""), "Reproduced: 98.10 % on average (95 % interval 97.95 to 98.25)."),
        (Claim(98.28, 0.05, ""), "Reproduced"),  # as rounded
        (Claim(98.32, 0.05, ""), "Within reach of a single run, but above the average"),
        (Claim(97.7, 0.05, ""), "Within reach of a single run, but below the average"),
        (Claim(98.6, 0.05, ""), "Not reproduced: the claim lies above what single runs give"),
        (Claim(97.6, 0.05, ""), "Not reproduced: the claim lies below what single runs give"),
        (Claim(None, 0, ""), "No number is claimed; the recipe gives 98.10 % on average"),
    ],
)
def test_a_verdict_compares_the_claim_with_the_mean_and_with_a_single_run(claim: Claim, says: str) -> None:
    assert verdict(result(97.9, 98.0, 98.1, 98.2, 98.3, 98.1), claim).startswith(says)


def test_one_run_gives_no_verdict() -> None:
    assert verdict(result(98.1), Claim(98.1, 0.05, "")) == "One run gives 98.10 %; a verdict takes more seeds."
    assert len(reproduction.plot([result(98.1)]).axes) == 1


def test_nineteen_of_twenty_further_runs_lie_in_the_prediction_interval() -> None:
    import numpy as np

    draws = np.random.default_rng(0).normal(98, 0.3, (2000, 11))
    inside = [low <= row[10] <= high for row in draws for low, high in [result(*row[:10]).one_run or (0, 0)]]
    assert sum(inside) / len(inside) == pytest.approx(0.95, abs=0.015)


def test_the_command_trains_what_is_missing_and_tells_the_chosen_from_the_last_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, output = tmp_path / "runs", tmp_path / "reproduction"
    settings = [*QUICK[1:3], "optimizer.lr=0.02", "trainer.max_epochs=8"]
    assert train_command("experiment=mlp", "seed=0", f"run_dir={folder}/mlp/0", *settings).status == 0
    arguments = ["reproduction.py", str(folder), "mlp", "--seeds", "2", "--output", str(output), *settings]
    monkeypatch.setattr(sys, "argv", arguments)
    assert reproduction.main() == 0
    assert "| `mlp` | 97.2 % | 2 |" in capsys.readouterr().out
    (row,) = json.loads(output.with_suffix(".json").read_text())
    assert row["chosen"] == [100 * metrics(folder / "mlp" / seed)["test/accuracy"] for seed in "01"]
    assert row["last"] == [100 * accuracy_of_the_last_epoch(folder / "mlp" / seed, capsys) for seed in "01"]
    assert row["last"] != row["chosen"]
    assert output.with_suffix(".svg").read_text().count("<svg") == 1
