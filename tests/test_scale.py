"""Jobs of SLURM and processes that others start; tests/test_training.py trains with several."""

import sys
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from mnist_cnn import processes
from mnist_cnn.errors import ConfigError
from tests.conftest import QUICK, train_command

# What srun sets for the first of two tasks.
SRUN = {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "2", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0",
        "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NUM_NODES": "1"}  # fmt: skip
TORCHRUN = {"TORCHELASTIC_RUN_ID": "1", "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({"SLURM_NTASKS": "2"}, "this one process was not started by srun"),
        ({"SLURM_NTASKS": "2", "SLURM_JOB_ID": "1", "SLURM_JOB_NAME": "train"}, "write srun before the command"),
        (SRUN, "add trainer=ddp"),
        ({**SRUN, "SLURM_STEP_NUM_TASKS": "3", "SLURM_STEP_NUM_NODES": "2", "SLURM_NTASKS": "3"}, "--ntasks-per-node"),
        (TORCHRUN, "torchrun has started 2 processes, and this run is one; add trainer=ddp"),
        ({"RANK": "two"}, "it must be a whole number"),
    ],
)
def test_processes_that_do_not_fit_the_settings_are_refused_in_a_line(
    environment: dict[str, str], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    outcome = train_command(*QUICK)
    assert outcome.status == 2
    (line,) = (line for line in outcome.err.splitlines() if line.startswith("error: "))
    assert says in line
    assert "Traceback" not in outcome.err


def test_a_command_typed_into_an_interactive_job_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"SLURM_NTASKS": "2", "SLURM_JOB_ID": "1", "SLURM_JOB_NAME": "interactive"}.items():
        monkeypatch.setenv(name, value)
    processes.check_environment()
    monkeypatch.setenv("SLURM_JOB_NAME", "train")
    with pytest.raises(ConfigError):
        processes.check_environment()


def test_a_run_that_is_told_to_exit_leaves_at_once() -> None:
    """As submitit does, when it has requeued a job that reaches its time limit."""
    outcome = train_command(*QUICK, "+callbacks.leave._target_=tests.test_scale.Leave", "run_dir=run")
    assert outcome.status == 75
    assert "test " not in outcome.out
    assert not Path("run/metrics.json").exists()
    assert train_command("resume=run", "+callbacks.leave=null").status == 0


class Leave(Callback):
    """Exits in the second epoch."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.current_epoch == 1:
            sys.exit(75)


def test_a_stopped_job_of_slurm_waits_to_be_requeued(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    waited: list[float] = []
    monkeypatch.setattr("time.sleep", waited.append)
    processes.wait_for_slurm()
    assert waited == []
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    monkeypatch.setenv("SLURM_JOB_NAME", "interactive")
    processes.wait_for_slurm()
    assert waited == []
    monkeypatch.setenv("SLURM_JOB_NAME", "train")
    processes.wait_for_slurm()
    assert waited == [600]
    assert "SLURM" in capsys.readouterr().err
