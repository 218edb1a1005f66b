"""Odd settings, flags and environments end in one line and leave nothing behind."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import QUICK, ROOT, Outcome, train_command

LONG = "x" * 300

ODD: list[tuple[str, str]] = [
    ("data.batch_size=10000000000000000000000", "data.batch_size=10000000000000000000000: it must be at least 1"),
    (
        "+trainer.accumulate_grad_batches=0",
        "trainer.accumulate_grad_batches=0: it must be a finite number of at least 1",
    ),
    ("+trainer.accumulate_grad_batches=1.5", "it must be a whole number"),
    ("+trainer.accumulate_grad_batches=true", "trainer.accumulate_grad_batches=true: it must be a whole number"),
    ("+trainer.benchmark=x", "trainer.benchmark=x: it must be true or false or null"),
    ("+trainer.gradient_clip_val=x", "trainer.gradient_clip_val=x: it must be a number or null"),
    ("+trainer.gradient_clip_val=nan", "trainer.gradient_clip_val=nan: it must be a finite number of at least 0"),
    ("+trainer.gradient_clip_val=-1", "trainer.gradient_clip_val=-1: it must be a finite number of at least 0"),
    ("+trainer.gradient_clip_algorithm=x", "`gradient_clip_algorithm` x is invalid"),
    ("+trainer.limit_train_batches=1.5", "limit_train_batches"),
    ("+trainer.limit_train_batches=x", "trainer.limit_train_batches=x: it must be a number or null"),
    ("+trainer.overfit_batches=x", "trainer.overfit_batches=x: it must be a number"),
    ("+trainer.log_every_n_steps=x", "trainer.log_every_n_steps=x: it must be a whole number"),
    ("+trainer.detect_anomaly=x", "trainer.detect_anomaly=x: it must be true or false"),
    ("+trainer.profiler=x", "profiler"),
    ("+trainer.barebones=true", "trainer.barebones=true: Lightning's Trainer takes no such argument here"),
    ("trainer.devices=99", "trainer.devices=99: each is a process"),
    ("trainer.devices=0", "trainer.devices=0: it must be a number from 1"),
    ("trainer.devices=-1", "trainer.devices=-1: it must be"),
    ("trainer.devices='1,2'", "trainer.devices=1,2: it must be"),
    ("trainer.devices=[0,0]", "trainer.devices=[0, 0]: it must be"),
    ("trainer.devices=[0]", "processors have no numbers"),
    ("trainer.devices=x", "trainer.devices=x: it must be"),
    ("trainer.devices=1.5", "trainer.devices=1.5: it must be"),
    ("trainer.max_epochs=null", "trainer.max_epochs=null: "),
    ("optimizer=3", "optimizer=3: name one of its options: adam"),
    ("optimizer={}", "optimizer={}: name one of its options: adam"),
    ("optimizer=[1]", "optimizer=[1]: name one of its options: adam"),
    ("scheduler=[1]", "scheduler=[1]: name one of its options: cosine"),
    ("optimizer._target_=..x", "optimizer._target_=..x: write the class with its module"),
    ("optimizer._target_='torch.optim.'", "write the class with its module"),
    ("optimizer.lr=nan", "optimizer.lr=nan: the learning rate"),
    ("optimizer.lr=null", "optimizer.lr=null: the learning rate"),
    ("data.val_fraction=nan", "data.val_fraction=nan: the fraction"),
    ("seed=null", "seed=null: "),
    ("seed=1e3", "seed=1e3: "),
    ("~trainer", "trainer: it is missing"),
    ("model.layers=null", "model.layers=null: "),
    (f"run_dir={LONG}", "File name too long"),
    (f"data.mirror={LONG}", "File name too long"),
    (f"data.root={LONG}", "File name too long"),
    (f"run_dir={'a/' * 2000}", "File name too long"),
    (f"resume={LONG}", "File name too long"),
    *((f"{key}=a\0b", f"{key}=a\\x00b: it must be UTF-8 text") for key in ("run_dir", "resume", "model.init_from")),
    *((f"{key}='a\0b'", "it must be UTF-8 text") for key in ("data.root", "data.mirror", "model.name")),
    *((f"{key}='\udcff'", "it must be UTF-8 text") for key in ("data.root", "model.name", "run_dir", "data.mirror")),
    *((f"{key}='a\x1b[31m\n'", "a\\x1b[31m\\n") for key in ("data.root", "model.name", "run_dir", "data.mirror")),
]


def assert_told(outcome: Outcome, says: str, status: int = 2) -> None:
    assert "Traceback" not in outcome.err
    assert outcome.status == status, outcome.err
    assert says in outcome.err
    assert len(outcome.err.strip().splitlines()) == 1
    assert outcome.err.strip().isprintable()
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.parametrize(("setting", "says"), ODD, ids=range(len(ODD)))
def test_an_odd_setting_is_one_line_and_leaves_nothing(setting: str, says: str) -> None:
    assert_told(train_command("data=digits", setting), says)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (("callbacks=early_stopping", "callbacks.early_stopping.patience=x"), "patience=x: it must be a whole number"),
        (("callbacks=early_stopping", "callbacks.early_stopping.patience=true"), "patience=true: it must be a whole"),
        (("callbacks=early_stopping", "+callbacks.early_stopping.x=1"), "EarlyStopping takes no such argument"),
        (("scheduler=cosine", "scheduler.interval=x"), "scheduler.interval=x: not one of epoch, step"),
        (("scheduler=cosine", "scheduler.interval=null"), "scheduler.interval=null: not one of epoch, step"),
        (("scheduler=cosine", "scheduler.interval=[1]"), "scheduler.interval=[1]: not one of epoch, step"),
        ((f"model.init_from={LONG}",), LONG[:50]),
    ],
    ids=range(7),
)
def test_so_are_odd_settings_of_an_option(settings: tuple[str, ...], says: str) -> None:
    outcome = train_command("data=digits", *settings)
    assert_told(outcome, says, outcome.status)
    assert outcome.status in (1, 2)


@pytest.mark.parametrize("name", ["5", '"q"', "'5'", "null ", "1e3", "0x10"])
def test_an_odd_name_of_a_folder_is_a_name(name: str) -> None:
    assert train_command(*QUICK, "debug=smoke", f"run_dir={name}").status == 0
    (folder,) = Path.cwd().iterdir()
    assert folder.name == name.strip("\"'") or folder.name == name


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({"SLURM_NTASKS": "x"}, "SLURM_NTASKS=x in the environment: it must be a whole number"),
        ({"RANK": "x"}, "RANK=x in the environment: it must be a whole number"),
        ({"RANK": "-1"}, "RANK=-1 in the environment"),
        ({"RANK": "3"}, "RANK=3 in the environment: WORLD_SIZE is 1, so there is no such process"),
        ({"LOCAL_RANK": "2", "WORLD_SIZE": "2"}, "LOCAL_RANK=2 in the environment"),
        ({"RANK": "1", "WORLD_SIZE": "2"}, "not the first of several processes"),
        ({"WORLD_SIZE": "²"}, "WORLD_SIZE=² in the environment"),
        ({"MNIST_MIRROR": "a\nb"}, "data.mirror=a\\nb: it must be UTF-8 text"),
    ],
    ids=str,
)
def test_a_wrong_environment_is_one_line(
    environment: dict[str, str], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert_told(train_command("data=mnist"), says)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--shell-completion"], "install"),
        (["--shell-completion", "install=nosh"], "nosh"),
        (["--shell-completion", "query=bash"], "COMP_LINE"),
        (["--experimental-rerun", "x.pickle"], "it unpickles a file"),
        (["--experimental-rerun"], "expected one argument"),
        (["-m", "seed=1,2", "--cfg", "job"], "Only one of"),
        (["--config-dir", "/nope"], "/nope"),
        (["--config-name", "nope"], "nope"),
        (["--config-path", "x"], "'x'"),
        (["--info", "x"], "invalid choice: 'x'"),
        (["--cfg"], "expected one argument"),
        (["--package", "x"], "add --cfg job"),
        (["--resolve"], "--cfg"),
        (["--conf", "x"], "ambiguous"),
        (["-h", "model=nope"], "model=nope: no such option"),
        (["-h", "a\x1b"], "a\\x1b"),
        (["-x"], "without dashes"),
        (["hydra/launcher=nope"], "hydra/launcher=nope: no such option."),
        (["hydra=1"], "int"),
    ],
    ids=str,
)
def test_an_odd_flag_is_one_line_and_leaves_nothing(arguments: list[str], says: str) -> None:
    assert_told(train_command(*arguments), says)


def test_no_pickle_is_read_for_a_rerun() -> None:
    import pickle

    Path("x.pickle").write_bytes(pickle.dumps(Marker()))
    assert train_command("--experimental-rerun=x.pickle").status == 2
    assert not Path("owned").exists()


class Marker:
    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (Path("owned"),)


def test_help_with_settings_is_the_help() -> None:
    outcome = train_command("--help", "model=tiny", "debug=smoke")
    assert outcome.status == 0
    assert "python train.py" in outcome.out
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.parametrize(("setting", "status"), [("model=tiny", 0), ("model.name='ü☃'", 2)])
def test_any_locale_will_do(setting: str, status: int) -> None:
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "train.py"), "model=tiny", "debug=smoke", setting]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    assert ("4\\xb74\\xb71\\xb78 + 8" in done.stderr) == (status == 0)  # 4·4·1·8 + 8
