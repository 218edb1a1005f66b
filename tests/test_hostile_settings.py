"""What a stranger's run folder may not do on `resume=`, attack by attack, under the eyes of an audit hook."""

import os
import pickle
import shutil
import site
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import joblib
import pytest
import torch
import yaml

from mnist_cnn.errors import ConfigError
from mnist_cnn.training.resume.saved import read_saved
from tests.conftest import QUICK, ROOT, FakeMnist, metrics, train_command

# --- what the process does while it resumes ----------------------------------------------------------------------

_watching: list[tuple[str, str]] | None = None
_STARTS = (
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "os.fork",
    "os.forkpty",
    "pty.spawn",
)
_SENDS = ("socket.connect", "socket.bind", "socket.getaddrinfo", "socket.sendto", "urllib.Request", "smtplib.connect")
_CHANGES = (
    "os.remove",
    "os.rename",
    "os.rmdir",
    "os.mkdir",
    "os.link",
    "os.symlink",
    "os.truncate",
    "os.chmod",
    "shutil.rmtree",
)
_HARMLESS = tuple(
    os.path.realpath(str(place))
    for place in (ROOT, sys.prefix, sys.base_prefix, *site.getsitepackages(), *sysconfig.get_paths().values(),
                  "/proc", "/sys", "/dev/null", "/dev/shm", "/etc", "/usr/share", "/usr/lib")
)  # fmt: skip


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if _watching is None:
        return
    if event in _STARTS or event in _SENDS:
        _watching.append((event, repr(arguments[:1])))
    elif event == "os.mkdir" and os.path.isdir(arguments[0]):
        pass  # Hydra makes sure that the current folder is there
    elif event in (*_CHANGES, "open") and arguments and isinstance(arguments[0], str | bytes | os.PathLike):
        _watching.append((event, os.path.realpath(os.fsdecode(arguments[0]))))


sys.addaudithook(_watch)  # can't be removed again, so it is switched


@contextmanager
def watched() -> Iterator[list[tuple[str, str]]]:
    global _watching
    seen: list[tuple[str, str]] = []
    _watching = seen
    try:
        yield seen
    finally:
        _watching = None


def assert_harmless(seen: list[tuple[str, str]], run: Path) -> None:
    """No process, no connection, and no file but those of the run, the program and the system."""
    started_or_sent = [item for item in seen if item[0] in _STARTS or item[0] in _SENDS]
    assert started_or_sent == []
    # Files that torch or Lightning writes first and then moves into the run's folder
    temporary = os.path.join(os.path.realpath(tempfile.gettempdir()), "tmp")
    places = (str(run.resolve()), temporary)
    elsewhere = [(event, path) for event, path in seen if not path.startswith(places)]
    assert [(event, path) for event, path in elsewhere if event != "open" or not path.startswith(_HARMLESS)] == []


def test_the_watch_sees_what_it_should(tmp_path: Path) -> None:
    import socket
    import subprocess

    with watched() as seen:
        subprocess.run(["true"], check=True)
        (tmp_path / "x").write_text("x")
        with socket.socket() as connection:
            connection.bind(("127.0.0.1", 0))
    events = {event for event, _ in seen}
    assert {"subprocess.Popen", "open", "socket.bind"} <= events
    assert ("open", str((tmp_path / "x").resolve())) in seen


class Pickled:
    """Leaves a file behind when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("owned"),)


class Marked(torch.optim.SGD):
    """Leaves a file behind when it is made."""

    def __init__(self, params: Any) -> None:
        Path("owned").touch()
        super().__init__(params)


BOMB = "a: &a [x]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{inner}'] * 7)}]\n" for inner, name in zip("abcdefg", "bcdefgh", strict=True)
)

# Each attack of faults.md no. 1, as a change of the saved values …
ATTACKS: dict[str, dict[str, Any]] = {
    "oc.create and joblib.load": {
        "callbacks.evil": '${oc.create:"{\\"_\\x74arget_\\": joblib.load, filename: stranger/x.pkl}"}'
    },
    "joblib.load": {"callbacks.evil": {"_target_": "joblib.load", "filename": "stranger/x.pkl"}},
    "torch.load": {"callbacks.evil": {"_target_": "torch.load", "f": "stranger/x.pt", "weights_only": False}},
    "a path in the target": {"optimizer": {"_target_": "stranger.code.Evil"}},
    "a class of the tests": {"optimizer": {"_target_": f"{__name__}.Marked"}},
    "the logger's save_dir": {"logger.csv.save_dir": "elsewhere"},
    "the checkpoints' dirpath": {"callbacks.checkpoint.dirpath": "elsewhere"},
    "the environment in the mirror": {"data.mirror": "http://127.0.0.1:9/${oc.env:HOME}/"},
    "a root elsewhere": {"data.root": "elsewhere"},
    "a run_dir elsewhere": {"run_dir": "elsewhere"},
    "another run to resume": {"resume": "elsewhere"},
    "Hydra's launcher": {"hydra": {"launcher": {"_target_": "os.system"}}},
    "another checkpoint": {"model.init_from": "elsewhere.ckpt"},
    "defaults": {"defaults": [{"callbacks": "evil"}]},
}
# These keys of a folder are simply not read.
IGNORED = ("the environment in the mirror", "a root elsewhere", "a run_dir elsewhere", "another run to resume",
           "Hydra's launcher", "defaults", "another checkpoint")  # fmt: skip


def stranger(run: Path) -> Path:
    """A copy of a run with files beside its own that must not be read."""
    folder = Path("stranger")
    shutil.copytree(run, folder)
    joblib.dump(Pickled(), folder / "x.pkl")
    torch.save({"x": Pickled()}, folder / "x.pt")
    (folder / "x.pickle").write_bytes(pickle.dumps(Pickled()))
    (folder / "code.py").write_text("from pathlib import Path\nPath('owned').touch()\n")
    (folder / "overrides.yaml").write_text(
        "- --experimental-rerun=stranger/x.pickle\n- callbacks=evil\n- --config-dir=c\n"
    )
    (folder / "c" / "callbacks").mkdir(parents=True)
    (folder / "c" / "callbacks" / "evil.yaml").write_text(f"evil:\n  _target_: {__name__}.Marked\n")
    return folder


def changed(run: Path, values: dict[str, Any]) -> Path:
    folder = stranger(run)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    for key, value in values.items():
        *path, last = key.split(".")
        place = config
        for part in path:
            place = place[part]
        place[last] = value
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_starts_nothing_sends_nothing_and_touches_nothing_elsewhere(attack: str, digits_run: Path) -> None:
    folder = changed(digits_run, ATTACKS[attack])
    with watched() as seen:
        outcome = train_command("resume=stranger")  # all its epochs are there: only what it says is looked at
    assert_harmless(seen, folder)
    assert "Traceback" not in outcome.err
    assert (outcome.status == 0) == (attack in IGNORED), outcome.err
    assert [path.name for path in Path().iterdir()] == ["stranger"]


@pytest.mark.parametrize("group", ["model", "augmentation", "loss", "distill"])
def test_a_group_that_is_no_group_is_refused_in_a_line(group: str, digits_run: Path) -> None:
    folder = stranger(digits_run)
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    (folder / "config.yaml").write_text(yaml.safe_dump({**settings, group: "text"}))
    outcome = train_command("resume=stranger")
    assert outcome.status == 2
    assert "config.yaml is damaged or not that of a run" in outcome.err


def test_old_overrides_are_not_read_any_more(digits_run: Path) -> None:
    folder = stranger(digits_run)
    with watched() as seen:
        outcome = train_command("resume=stranger", "trainer.max_epochs=4")
    assert outcome.status == 0, outcome.err
    assert_harmless(seen, folder)
    touched = {Path(path).name for _, path in seen}
    assert "config.yaml" in touched
    assert not touched & {"overrides.yaml", "x.pickle", "x.pkl", "x.pt", "code.py", "evil.yaml"}
    assert [path.name for path in Path().iterdir()] == ["stranger"]


def test_a_bomb_of_aliases_ends_at_once(digits_run: Path) -> None:
    folder = stranger(digits_run)
    with (folder / "config.yaml").open("a") as file:
        file.write(BOMB)
    with watched() as seen:
        outcome = train_command("resume=stranger")
    assert_harmless(seen, folder)
    assert outcome.status == 2
    assert "it has aliases" in outcome.err


def test_the_environment_does_not_leave_by_the_mirror(digits_run: Path, fake_mnist: FakeMnist) -> None:
    settings = ("model=mlp", "data=mnist", f"data.mirror={fake_mnist.mirror}", "trainer.max_epochs=1", "run_dir=run")
    assert train_command(*settings).status == 0
    folder = changed(Path("run"), ATTACKS["the environment in the mirror"])
    with watched() as seen:
        outcome = train_command("resume=stranger", "trainer.max_epochs=2")
    assert outcome.status == 0, outcome.err  # the images are there
    assert [item for item in seen if item[0] in _STARTS or item[0] in _SENDS] == []
    assert "${" not in (folder / "config.yaml").read_text().replace("${run_dir}", "")


# --- the YAML of a stranger ---------------------------------------------------------------------------------------

BASE = "seed: 0\nmodel: {x: %s}\n" + "".join(
    f"{group}: {{}}\n" for group in ("data", "trainer", "optimizer", "scheduler", "callbacks", "logger")
)
PLAIN = {
    "1": 1, "-3": -3, "1.5": 1.5, "1.0e-03": 0.001, "1.0e-07": 1e-07, "1e-3": "1e-3",
    ".inf": float("inf"), "-.inf": float("-inf"),
    "true": True, "null": None, "~": None, "yes": "yes", "on": "on", "2026-01-02": "2026-01-02",
    "2001-12-14t21:59:43.10-05:00": "2001-12-14t21:59:43.10-05:00", "'1:30:00'": "1:30:00", "1:30:00": "1:30:00",
    "0x1f": "0x1f", "010": "010", "0b1": "0b1", "1_000": "1_000", "<<": "<<", "=": "=", "9" * 5000: "9" * 5000,
    "'${oc.env:HOME}'": "${oc.env:HOME}", '"\\u00e9\\u2603"': "é☃", "''": "",
}  # fmt: skip


@pytest.mark.parametrize("text", PLAIN, ids=range(len(PLAIN)))
def test_a_plain_value_is_itself(text: str) -> None:
    Path("run").mkdir()
    Path("run/config.yaml").write_text(BASE % text)
    found = read_saved("run")["model"]["x"]
    assert found == PLAIN[text]
    assert type(found) is type(PLAIN[text])


def test_every_plain_value_is_read_back_as_it_was_written() -> None:
    Path("run").mkdir()
    values = [0, -1, 2**40, 0.1, 1e-7, 1e22, -1e-300, 5e-324, float("inf"), True, None, "", "null", "1", "1e-3", "~",
              "2026-01-02", "1:30", "<<", "=", "no", ".inf", "'", '"', "a: b", "- x", "#", "ü☃", "é" * 500,
              "x " * 200]  # fmt: skip
    groups = ("data", "trainer", "optimizer", "scheduler", "callbacks", "logger")
    saved = {"seed": 0, "model": {"x": values, "y": {"z": [[], {}]}}, **{group: {} for group in groups}}
    Path("run/config.yaml").write_text(yaml.safe_dump(saved, allow_unicode=True, width=120), encoding="utf-8")
    assert read_saved("run")["model"] == saved["model"]


NOT_PLAIN = [
    '!!int ""', "!!float x", "!!binary aGk=", "!!timestamp 2026-01-02", "!!set {a, b}", "!!omap [a: 1]", "!!str 3",
    "!!python/object/apply:os.system [true]", "!!python/name:os.system", "!local x", "{1: 2}", "{true: 2}", "{null: 2}",
    "{a: 1, a: 2}", "{'<<': {b: 1}, '<<': 1}", "{[1]: 2}", "{{a: 1}: 2}", "{a.b: 1}", '"\\ud800"', '"\\0"', '"\\e[31m"',
    '{"\\0": 1}', '{"\\ud800": 1}', "&a [*a]", "[&a x, *a]", "[" + "1," * 20_000 + "]", "[" * 41 + "]" * 41, "'", "@",
    "*a", "%", "\t- x", "? ", "!<tag:yaml.org,2002:int> 3",
]  # fmt: skip


@pytest.mark.parametrize("text", NOT_PLAIN, ids=range(len(NOT_PLAIN)))
def test_what_is_no_plain_value_is_one_line(text: str) -> None:
    Path("run").mkdir()
    Path("run/config.yaml").write_text(BASE % text)
    with pytest.raises(ConfigError) as told:
        read_saved("run")
    assert str(told.value).isprintable()
    assert len(str(told.value)) < 400
    outcome = train_command("resume=run")
    assert outcome.status == 2
    assert len(outcome.err.strip().splitlines()) == 1


@pytest.mark.parametrize("kind", ["pipe", "link", "link to nothing", "device", "folder", "socket"])
def test_a_configuration_that_is_no_ordinary_file_is_refused_without_waiting(kind: str) -> None:
    Path("run").mkdir()
    path = Path("run/config.yaml")
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "socket":
        import socket

        short = Path(tempfile.mkdtemp()) / "s"  # a socket's path has at most 107 characters
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(short))
        short.rename(path)
    else:
        Path("other.yaml").write_text(BASE % "1")
        path.symlink_to({"link": "../other.yaml", "device": "/dev/zero"}.get(kind, "nowhere"))
    outcome = train_command("resume=run")
    assert outcome.status == 2
    assert "it is no ordinary file" in outcome.err
    assert len(outcome.err.strip().splitlines()) == 1


# --- the same experiment ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recipe_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipes") / "run"
    more = ("+trainer.limit_train_batches=4", "+trainer.gradient_clip_val=1.0", "+trainer.accumulate_grad_batches=2")
    assert train_command(*QUICK, "trainer.max_epochs=1", *more, f"run_dir={folder}").status == 0
    return folder


@pytest.mark.parametrize(
    "setting",
    [
        "+trainer.limit_train_batches=5", "+trainer.limit_train_batches=null", "+trainer.gradient_clip_val=2",
        "+trainer.gradient_clip_algorithm=value", "+trainer.accumulate_grad_batches=1", "+trainer.overfit_batches=2",
        "callbacks.checkpoint.monitor=val/loss", "callbacks.checkpoint.mode=min",
    ],
)  # fmt: skip
def test_clipping_accumulation_batches_and_the_watched_metric_can_not_change(setting: str, recipe_run: Path) -> None:
    shutil.copytree(recipe_run, "run")
    outcome = train_command("resume=run", "trainer.max_epochs=2", setting)
    assert outcome.status == 2, outcome.err
    key = setting.lstrip("+").partition("=")[0]
    assert f"{key} can't be changed when a run is resumed" in outcome.err
    assert metrics(Path("run")) == metrics(recipe_run)


def test_they_may_be_said_again_and_stay_when_they_are_not(recipe_run: Path) -> None:
    for name, again in (("a", ("+trainer.accumulate_grad_batches=2", "+trainer.limit_train_batches=4")), ("b", ())):
        shutil.copytree(recipe_run, name)
        assert train_command(f"resume={name}", "trainer.max_epochs=2", *again).status == 0
        saved = yaml.safe_load(Path(name, "config.yaml").read_text())["trainer"]
        assert (saved["limit_train_batches"], saved["gradient_clip_val"], saved["accumulate_grad_batches"]) == (4, 1, 2)
    assert metrics(Path("a")) == metrics(Path("b"))
