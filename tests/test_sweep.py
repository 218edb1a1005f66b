"""A sweep goes on after a run that failed, and names every one of them at the end."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hydra.core.plugins import Plugins
from omegaconf import DictConfig

from mnist_cnn.errors import DataError
from mnist_cnn.hydra_cli.run import run_hydra
from tests.conftest import CONF, train_command

SETTINGS = ("model=tiny", "debug=smoke", "trainer=cpu")


def test_every_failed_run_is_named_with_its_settings_and_its_error() -> None:
    outcome = train_command("-m", *SETTINGS, "optimizer.lr=0,0.1,nan", "run_dir=sweep")
    assert outcome.status == 1
    assert "Traceback" not in outcome.err
    assert [folder.name for folder in sorted(Path("sweep").iterdir())] == ["1_optimizer.lr=0.1", "multirun.yaml"]
    first, last = "run 0 (optimizer.lr=0): optimizer.lr=0: the l", "run 2 (optimizer.lr=nan): optimizer.lr=nan: the l"
    said, listed = outcome.err.split("error: 2 runs of the sweep failed:\n")
    assert f"error: {first}" in said
    assert f"error: {last}" in said
    assert said.index(first) < said.index("epoch  1/1") < said.index(last)  # each as it happens
    lines = listed.splitlines()
    assert len(lines) == 2
    assert first in lines[0]
    assert last in lines[1]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (("model=tiny,nope",), "model=nope: no such option"),
        (("trainer.foo=1,2",), "trainer.foo"),
        (("seed=1,x",), "seed"),
        (("model=glob(zz*)",), "has no run"),
        (("seed=range(0,-1)",), "has no run"),
        (("seed=interval(0,1)",), "INTERVAL"),
        (("seed=1,2", f"run_dir={'x' * 300}"), "too long"),
        (("seed=1,2", "run_dir=a\0b"), "control characters"),
    ],
    ids=range(8),
)
@pytest.mark.parametrize("run_dir", [(), ("run_dir=a/b",)], ids=["runs", "own"])
def test_a_sweep_that_can_not_start_leaves_nothing(
    settings: tuple[str, ...], says: str, run_dir: tuple[str, ...]
) -> None:
    outcome = train_command("-m", *SETTINGS, *run_dir, *settings)
    assert outcome.status == 2, outcome.err
    assert says in outcome.err
    assert len(outcome.err.strip().splitlines()) == 1
    assert "epoch" not in outcome.err
    assert list(Path.cwd().iterdir()) == []


def test_a_sweep_whose_runs_all_fail_leaves_nothing_but_what_was_there() -> None:
    Path("mine/empty").mkdir(parents=True)
    outcome = train_command("-m", *SETTINGS, "optimizer.lr=0,-1", "run_dir=mine/empty/sweep")
    assert outcome.status == 1
    assert [str(path) for path in Path().rglob("*")] == ["mine", "mine/empty"]


def sweep(task: Any, monkeypatch: pytest.MonkeyPatch, *settings: str) -> int:
    arguments = ["-m", "run_dir=sweep", *settings]
    monkeypatch.setattr("sys.argv", ["train.py", *arguments])
    return run_hydra(task, CONF, arguments)


def test_a_bug_in_a_run_keeps_its_traceback_and_hides_no_other(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def task(composed: DictConfig) -> None:
        if composed.seed == 1:
            raise ZeroDivisionError("a bug")
        if composed.seed == 2:
            raise DataError("no\x1b images")

    assert sweep(task, monkeypatch, "seed=1,2,3") == 1
    said = capsys.readouterr().err
    assert said.count("Traceback") == 1
    assert said.endswith(
        "error: 2 runs of the sweep failed:\n"
        "  run 0 (seed=1): ZeroDivisionError: a bug\n"
        "  run 1 (seed=2): no\\x1b images\n"
    )


def test_ctrl_c_ends_a_sweep_and_names_what_had_failed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def task(composed: DictConfig) -> None:
        if composed.seed == 2:
            raise KeyboardInterrupt
        raise DataError("no images")

    assert sweep(task, monkeypatch, "seed=1,2,3") == 130
    assert capsys.readouterr().err.endswith("error: 1 run of the sweep failed:\n  run 0 (seed=1): no images\n")


def test_a_launcher_with_processes_of_its_own_has_its_first_error_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Such as joblib's: what the members record stays in their processes; Hydra raises the first error here."""
    cloudpickle = pytest.importorskip("cloudpickle")
    Plugins.instance()  # makes the class
    from hydra._internal.core_plugins.basic_launcher import BasicLauncher

    launch = BasicLauncher.launch

    def elsewhere(self: BasicLauncher, jobs: Sequence[Sequence[str]], initial_job_idx: int) -> Any:
        self.task_function = cloudpickle.loads(cloudpickle.dumps(self.task_function))
        return launch(self, jobs, initial_job_idx)

    monkeypatch.setattr(BasicLauncher, "launch", elsewhere)

    def task(composed: DictConfig) -> None:
        raise DataError("no images")

    assert sweep(task, monkeypatch, "seed=1,2") == 1
    said = capsys.readouterr().err
    assert "error: run 1 (seed=2): no images\n" in said
    assert said.endswith("error: no images\n")


def test_a_sweep_is_not_repeated_into_the_same_folder() -> None:
    settings = ("-m", *SETTINGS, "seed=1,2", "run_dir=sweep")
    assert train_command(*settings).status == 0
    before = sorted(Path("sweep").rglob("*"))
    outcome = train_command(*settings)
    assert outcome.status == 2
    assert "run_dir=sweep: it exists already; name another" in outcome.err
    assert sorted(Path("sweep").rglob("*")) == before
