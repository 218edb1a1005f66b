"""A sweep goes on after a run that failed, and where it was stopped; it names every failed run at the end."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hydra.core.plugins import Plugins
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from omegaconf import DictConfig

from mnist_cnn.config import to_config
from mnist_cnn.errors import DataError
from mnist_cnn.hydra_cli.run import run_hydra
from mnist_cnn.machine import processors
from mnist_cnn.run_folder import lock
from tests.conftest import CONF, ROOT, assert_equal_runs, run_process, train_command

SETTINGS = ("model=tiny", "debug=smoke", "trainer=cpu")


def test_every_failed_run_is_named_with_its_settings_and_its_error() -> None:
    outcome = train_command("-m", *SETTINGS, "optimizer.lr=0,0.1,nan", "run_dir=sweep")
    assert outcome.status == 1
    assert "Traceback" not in outcome.err
    assert [folder.name for folder in sorted(Path("sweep").iterdir()) if folder.is_dir()] == [
        "00_optimizer.lr-0",
        "01_optimizer.lr-0.1",
        "02_optimizer.lr-nan",
    ]
    assert Path("sweep/00_optimizer.lr-0/error.txt").read_text().startswith("optimizer.lr=0: the learning rate")
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
        (("model=tiny,nope", "run_dir=a/b"), "model=nope: no such option"),
        (("trainer.foo=1,2",), "trainer.foo"),
        (("seed=1,x",), "seed"),
        (("model=glob(zz*)",), "has no run"),
        (("model=glob(zz*)", "run_dir=a/b"), "has no run"),
        (("seed=range(0,-1)",), "has no run"),
        (("seed=interval(0,1)",), "INTERVAL"),
        (("seed=1,2", f"run_dir={'x' * 300}"), "too long"),
        (("seed=1,2", "run_dir=a\0b"), "control characters"),
    ],
    ids=range(10),
)
def test_a_sweep_that_can_not_start_leaves_nothing(settings: tuple[str, ...], says: str) -> None:
    outcome = train_command("-m", *SETTINGS, *settings)
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
    assert capsys.readouterr().err.endswith(
        "error: 1 run of the sweep failed:\n  run 0 (seed=1): no images\ninterrupted\n"  # and nothing to go on with
    )


def test_a_launcher_with_processes_of_its_own_has_every_error_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Such as joblib's: nothing that a run says to its own process comes back, but for what it leaves in its folder."""
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
    assert capsys.readouterr().err.endswith(
        "error: 2 runs of the sweep failed:\n  run 0 (seed=1): no images\n  run 1 (seed=2): no images\n"
    )


def test_runs_side_by_side_share_the_processors_and_end_as_one_after_another(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    monkeypatch.delenv("OMP_NUM_THREADS")  # joblib gives each of its processes a share, unless the user has
    threads = "+callbacks.threads._target_=tests.test_sweep.Threads"
    settings = ("model=mlp", "data=digits", "trainer=cpu", "trainer.max_epochs=1", "seed=0,1", threads)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    outcome = run_process("-m", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", *settings, "run_dir=beside")
    assert outcome.status == 0, outcome.err
    monkeypatch.setenv("OMP_NUM_THREADS", share := str(max(1, processors() // 2)))
    before = torch.get_num_threads()
    torch.set_num_threads(int(share))
    assert train_command("-m", *settings, "run_dir=after").status == 0
    torch.set_num_threads(before)
    for name in ("00_seed-0", "01_seed-1"):
        assert_equal_runs(Path("beside", name), Path("after", name))
        assert Path("beside", name, "threads").read_text() == Path("after", name, "threads").read_text()


class Threads(Callback):
    """Notes how many threads the training has."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        Path(trainer.default_root_dir, "threads").write_text(str(torch.get_num_threads()))


def finish(composed: DictConfig) -> float:
    """A run that takes no time."""
    folder = Path(composed.resume or composed.run_dir)
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    (folder / "checkpoints" / "last.ckpt").touch()
    (folder / "config.yaml").write_text(yaml.safe_dump({**to_config(composed).to_dict(), "run_dir": None}))
    (folder / "metrics.json").write_text(json.dumps({"interrupted": False, "val/accuracy": composed.seed}))
    return float(composed.seed)


def files(folder: str) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in sorted(Path(folder).rglob("*")) if path.name != "multirun.yaml"}


@pytest.mark.parametrize("again", [("run_dir=sweep", "seed=1,2,3"), ("resume_sweep=sweep",)], ids=["same", "named"])
def test_a_sweep_goes_on_where_it_stopped(again: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    begun = []

    def task(composed: DictConfig) -> float:
        begun.append((composed.seed, composed.resume, composed.run_dir))
        if composed.seed == 2 and not composed.resume:
            Path(composed.run_dir, "checkpoints").mkdir(parents=True)
            raise KeyboardInterrupt
        return finish(composed)

    assert sweep(task, monkeypatch, "seed=1,2,3") == 130
    before = files("sweep/00_seed-1")
    assert run_hydra(task, CONF, ["-m", *again]) == 0
    assert begun == [
        (1, None, "sweep/00_seed-1"),
        (2, None, "sweep/01_seed-2"),
        (2, "sweep/01_seed-2", None),
        (3, None, "sweep/02_seed-3"),
    ]
    assert files("sweep/00_seed-1") == before


def test_a_run_that_failed_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def task(composed: DictConfig) -> float:
        if composed.seed == 2:
            raise DataError("no images")
        return finish(composed)

    assert sweep(task, monkeypatch, "seed=1,2") == 1
    assert Path("sweep/01_seed-2/error.txt").read_text() == "no images\n"
    assert sweep(finish, monkeypatch, "seed=1,2") == 0
    assert not Path("sweep/01_seed-2/error.txt").exists()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (("seed=1,2",), "was begun with seed=1,2,3, without seed=1,2"),
        (("seed=1,2,3", "optimizer.lr=0.1"), "was begun without optimizer.lr=0.1"),
        (("seed=3,2,1",), "with seed=1,2,3, without seed=3,2,1"),
        (("model=tiny,mlp",), "model=tiny,mlp"),
    ],
)
def test_a_changed_sweep_is_not_mixed_into_an_old_folder(
    settings: tuple[str, ...], says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep(finish, monkeypatch, "seed=1,2,3") == 0
    before = files("sweep")
    assert sweep(finish, monkeypatch, *settings) == 2
    assert says in capsys.readouterr().err
    assert files("sweep") == before


def test_a_sweep_does_not_go_on_with_files_of_conf_that_have_changed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("mine/optimizer").mkdir(parents=True)
    own = Path("mine/optimizer/own.yaml")
    own.write_text("_target_: torch.optim.SGD\nlr: 0.1\n")
    settings = ("--config-dir=mine", "optimizer=own", "seed=1,2")
    assert sweep(finish, monkeypatch, *settings) == 0
    assert sweep(finish, monkeypatch, *settings) == 0
    own.write_text("_target_: torch.optim.SGD\nlr: 0.2\n")
    assert sweep(finish, monkeypatch, *settings) == 2
    assert "00_seed-1 was begun with optimizer.lr=0.1, which is now 0.2" in capsys.readouterr().err


def test_the_place_and_the_machine_of_a_sweep_may_change(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sweep(finish, monkeypatch, "seed=1,2") == 0
    assert sweep(finish, monkeypatch, "data.root=elsewhere", "trainer=cpu", "seed=1,2", "logger=none") == 0
    Path("sweep").rename("moved")
    assert run_hydra(finish, CONF, ["-m", "resume_sweep=moved"]) == 0


@pytest.mark.parametrize(
    "setting",
    [
        "+callbacks.evil._target_=joblib.load",
        "optimizer={_target_:joblib.load,filename:x}",
        "+callbacks.evil=${oc.create:x}",
        "data.root=nowhere",
        "logger=wandb",
        "model=../../evil",
        "model.init_from=evil/a.ckpt",
        "callbacks.checkpoint.dirpath=/",
    ],
)
def test_the_folder_of_a_sweep_runs_no_code_and_chooses_no_place(
    setting: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep(finish, monkeypatch, "seed=1,2") == 0
    record = json.loads(Path("sweep/sweep.json").read_text())
    Path("sweep/sweep.json").write_text(json.dumps({**record, "settings": [*record["settings"], setting]}))
    assert run_hydra(finish, CONF, ["-m", "resume_sweep=sweep"]) == 2
    assert f"its {setting} is not trusted" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"settings": 1, "runs": {}}', b"\xff", b" " * 2**25])
def test_a_damaged_record_is_refused(
    content: bytes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("sweep").mkdir()
    Path("sweep/sweep.json").write_bytes(content)
    assert sweep(finish, monkeypatch, "seed=1,2") == 2
    assert "run_dir=sweep: " in capsys.readouterr().err


def test_two_sweeps_do_not_share_a_folder(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    Path("sweep").mkdir()
    with lock(Path("sweep")):
        assert sweep(finish, monkeypatch, "seed=1,2") == 1
    assert "another process is training in it" in capsys.readouterr().err


def test_a_run_that_another_process_finishes_has_not_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(composed: DictConfig) -> float:
        raise DataError("another process is training in it")

    assert sweep(finish, monkeypatch, "seed=1,2") == 0
    (metrics := Path("sweep/01_seed-2/metrics.json")).rename("metrics.json")
    assert sweep(busy, monkeypatch, "seed=1,2") == 1
    Path("metrics.json").rename(metrics)
    assert sweep(finish, monkeypatch, "seed=1,2") == 0


def test_the_folders_of_a_sweep_need_no_quotes_and_are_resumed_as_printed() -> None:
    settings = ("+model.layers.2.Conv2D.padding=same", "optimizer.betas=[0.8,0.99]", "model.name='a b',\"c=d, é\"")
    outcome = train_command("-m", *SETTINGS, *settings, "run_dir=a sweep")
    assert outcome.status == 0, outcome.err
    names = [path.name for path in sorted(Path("a sweep").iterdir()) if path.is_dir()]
    assert len(names) == 2
    assert all(re.fullmatch(r"[\w.-]+", name, re.ASCII) for name in names)
    for setting in (f"resume=a sweep/{names[0]}", f"resume='a sweep/{names[1]}'"):
        resumed = train_command(setting, "trainer.max_epochs=2")
        assert resumed.status == 0, resumed.err


def test_a_bug_in_the_leaderboard_keeps_its_traceback_and_hides_no_failed_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def task(composed: DictConfig) -> float:
        if composed.seed == 2:
            raise DataError("no images")
        return finish(composed)

    def leaderboard(folder: Path) -> int:
        raise ZeroDivisionError("a bug")

    with pytest.raises(ZeroDivisionError):
        run_hydra(task, CONF, ["-m", "run_dir=sweep", "seed=1,2"], (), leaderboard)
    assert "run 1 (seed=2): no images" in capsys.readouterr().err


def test_a_sweep_does_not_go_on_with_other_pictures_of_ones_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep(finish, monkeypatch, "data=npz", "data.file=a.npz", "seed=1,2") == 0
    assert sweep(finish, monkeypatch, "data=npz", "data.file=b.npz", "seed=1,2") == 2
    assert "was begun with data.file=a.npz, without data.file=b.npz" in capsys.readouterr().err


def test_a_run_of_a_strangers_sweep_does_not_write_where_a_link_leads(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep(finish, monkeypatch, "seed=1,2") == 0
    Path("sweep/00_seed-1/config.yaml").unlink()
    Path("sweep/00_seed-1/metrics.json").unlink()
    Path("sweep/00_seed-1/metrics.csv").symlink_to("/etc/passwd")
    assert sweep(finish, monkeypatch, "seed=1,2") == 2
    assert "metrics.csv is a link" in capsys.readouterr().err
