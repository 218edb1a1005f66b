"""A search: what it searches over, how many trials it runs, how it goes on, and what it reports."""

import io
import json
import os
import re
import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing, redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from lightning.pytorch.callbacks import Callback
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

from mnist_cnn import cli
from mnist_cnn.config import Config
from mnist_cnn.errors import ConfigError, DataError, Interrupted, UserError
from mnist_cnn.hydra_cli.configure import configured
from mnist_cnn.report.run import EpochRow, Run
from mnist_cnn.search import database, report, trials
from mnist_cnn.search.methods import pruner, sampler
from mnist_cnn.search.space import Space, describe, read_space, values_of
from mnist_cnn.search.trials import Worker
from mnist_cnn.search.winner import write_winner
from mnist_cnn.training import run
from mnist_cnn.training.callbacks import EndedEarly, EpochWatch
from tests.conftest import Outcome, metrics

FIXED = ("model=tiny", "data=digits", "trainer=cpu", "trainer.max_epochs=3")
RATES = "optimizer.lr=tag(log, interval(1e-3, 1e-2))"
SEARCH = (*FIXED, RATES, "-o", "found")


def search(*words: str) -> Outcome:
    """`mnist-cnn search …` in this process."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            status = cli.main(["search", *words])
        except SystemExit as end:
            status = int(end.code or 0)
    return Outcome(status, out.getvalue(), err.getvalue())


def study(folder: str = "found") -> optuna.Study:
    return optuna.load_study(study_name="search", storage=f"sqlite:///{folder}/search.db")


def states(folder: str = "found") -> list[str]:
    return [trial.state.name for trial in study(folder).trials]


# What stands in for training: takes the configuration, returns the validation accuracy of each epoch.
Accuracies = Callable[[Config], Sequence[float]]


@pytest.fixture(scope="session")
def base() -> Config:
    return configured(FIXED)[0]


@pytest.fixture
def trained(base: Config, monkeypatch: pytest.MonkeyPatch) -> Callable[[Accuracies], list[Config]]:
    """Replaces training, and composing, which takes longer; returns the configurations that are trained."""

    def compose(settings: Sequence[str]) -> tuple[Config, str]:
        values = dict(setting.split("=", 1) for setting in settings)
        optimizer = {**base.optimizer, "lr": float(values["optimizer.lr"])}
        data = replace(base.data, batch_size=int(values.get("data.batch_size", 128)))
        return replace(base, run_dir=values["run_dir"], optimizer=optimizer, data=data), "the command"

    def stand_in(accuracies: Accuracies) -> list[Config]:
        configs: list[Config] = []

        def train(config: Config, command: str, callbacks: Sequence[Callback]) -> Any:
            configs.append(config)
            Path(str(config.run_dir or config.resume)).mkdir(exist_ok=True)
            (watch,) = callbacks
            assert isinstance(watch, EpochWatch)
            rows: list[EpochRow] = []
            for epoch, accuracy in enumerate(accuracies(config), 1):
                if not watch._goes_on(rows):
                    raise EndedEarly(f"ended after epoch {epoch - 1}")
                rows.append({"epoch": epoch, "val/accuracy": accuracy})
            best = max(row["val/accuracy"] for row in rows)
            return SimpleNamespace(val=SimpleNamespace(accuracy=best), history=rows)

        monkeypatch.setattr(trials, "train", train)
        monkeypatch.setattr(trials, "configured", compose)
        monkeypatch.setattr(report, "plots_of", lambda study: [])  # they take a second
        return configs

    return stand_in


def work(count: int, *settings: str, by: str = "tpe", until: str = "median", seed: int | None = None) -> None:
    """One worker on the search in the folder `found`, until there are so many trials."""
    folder, space = Path("found"), read_space([*FIXED, *(settings or [RATES])])
    folder.mkdir(exist_ok=True)
    url = database.database_url(None, folder)
    words = [*space.words("digits"), by, until]
    opened = database.open_study(url, folder, words, sampler(by, seed, space), pruner(until), is_shared=False)
    Worker(space, opened, folder, count, by, seed).run()


def test_a_search_over_other_images_of_ones_own_is_another_search() -> None:
    def words(dataset: str, *settings: str) -> list[str]:
        return Space(settings, {}).words(dataset)

    assert words("npz", "data=npz", "data.file=a.npz") != words("npz", "data=npz", "data.file=b.npz")
    assert words("folder", "data=folder", "data.root=a") != words("folder", "data=folder", "data.root=b")
    assert words("folder", "experiment=mine", "data.root=a") != words("folder", "experiment=mine", "data.root=b")
    assert words("mnist", "data=mnist", "data.root=a") == words("mnist", "data=mnist", "data.root=b")


def good(config: Config) -> list[float]:
    return [0.5, 0.6, 0.7 + config.optimizer["lr"]]


@pytest.mark.parametrize(
    ("setting", "distribution", "text"),
    [
        ("optimizer.lr=tag(log, interval(1e-4,1e-2))", FloatDistribution(1e-4, 1e-2, log=True), None),
        ("optimizer.lr=interval(0,1)", FloatDistribution(0, 1), "interval(0.0,1.0)"),
        ("seed=int(interval(1,8))", IntDistribution(1, 8), "int(interval(1,8))"),
        ("seed=range(4,33,4)", IntDistribution(4, 32, step=4), "range(4,36,4)"),
        ("seed=range(9,0,-3)", IntDistribution(3, 9, step=3), "range(3,12,3)"),
        ("optimizer.lr=range(0.1,1,0.2)", FloatDistribution(0.1, 0.9, step=0.2), None),
        ("data.batch_size=32,64,64", CategoricalDistribution((32, 64)), "32,64"),
        ("model=tiny,mlp", CategoricalDistribution(("tiny", "mlp")), "tiny,mlp"),
        ("+optimizer.amsgrad=true,false", CategoricalDistribution(("True", "False")), None),
        ("model.name='a,b','c'", CategoricalDistribution(("'a,b'", "'c'")), None),
    ],
)
def test_hydras_grammar_says_what_a_setting_is_chosen_from(setting: str, distribution: Any, text: str | None) -> None:
    space = read_space(["trainer=cpu", setting])
    ((key, found),) = space.varied.items()
    assert key == setting.partition("=")[0]
    assert found == distribution
    assert describe(found) == (text or describe(found))
    assert space.fixed == ("trainer=cpu",)


@pytest.mark.parametrize(
    "text", ["range(4,33,4)", "range(0.1,1,0.2)", "32,64", "tag(log,interval(0.1,1.0))", "0.5,1.5"]
)
def test_a_distribution_is_described_so_that_it_is_read_as_the_same(text: str) -> None:
    (found,) = read_space([f"optimizer.lr={text}"]).varied.values()
    assert read_space([f"optimizer.lr={describe(found)}"]).varied["optimizer.lr"] == found


def test_the_values_of_a_range_are_those_that_hydra_gives() -> None:
    (numbers,) = read_space(["optimizer.lr=range(0.1,1,0.2)"]).varied.values()
    assert values_of(numbers) == [0.1, 0.3, 0.5, 0.7, 0.9]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "nothing to search for"),
        (("optimizer.lrr=1,2",), "Did you mean optimizer.lr?"),
        (("model=mlp,tinyy",), "model=tinyy: no such option. Did you mean tiny?"),
        (("data.batch_size=interval(0,8)",), "data.batch_size"),
        (("optimizer.lr=interval(0,1)",), "optimizer.lr=0.0: the learning rate must be a number above 0"),
        (("optimizer.lr=tag(log,interval(0,1))",), "low > 0"),
        (("optimizer.lr=interval(1,0)",), "low <= high"),
        (("optimizer.lr=interval(0,inf)",), "finite"),
        (("optimizer.lr=tag(nice,interval(0,1))",), "the only tag here is log"),
        (("optimizer.lr=range(0,0)",), "0 values"),
        (("optimizer.lr=range(0,1,1e-9)",), "1,000,000,000 values"),
        (("model=glob(*)",), "write the names out"),
        ((RATES, "optimizer.lr=1"), "given twice"),
        ((RATES, "optimizer.lr=1,2"), "given twice"),
        (("seed=0,1",), "seed: trials that differ in it can't be compared"),
        (("data.val_fraction=0.1,0.2",), "can't be compared"),
        ((RATES, "data.val_fraction=0"), "keep some images"),
        ((RATES, "trainer=ddp"), "a trial is trained in one process"),
        ((RATES, "run_dir=x"), "-o names that of the search"),
        ((RATES, "resume=x"), "-o names that of the search"),
        ((RATES, "--sampler", "tp"), "Did you mean tpe?"),
        ((RATES, "--pruner", "medan"), "Did you mean median?"),
        ((RATES, "--sampler", "grid"), "optimizer.lr has no list of values"),
        ((RATES, "--storage", "here"), "not the address of a database"),
        ((RATES, "--storage", "olap://me:secret@host/x"), "olap://me:***@host/x: there is no such kind of database"),
    ],
    ids=range(25),
)
def test_what_can_not_be_searched_is_refused_in_a_line_and_leaves_nothing(words: tuple[str, ...], says: str) -> None:
    fixed = [
        setting for setting in FIXED if not any(word.startswith(setting.partition("=")[0] + "=") for word in words)
    ]
    outcome = search(*fixed, "-o", "found", *words)
    assert outcome.status == 2
    assert says in outcome.err
    assert len(outcome.err.strip().splitlines()) == 1
    assert not Path("found").exists()


def test_an_unknown_option_is_refused_and_settings_may_stand_between_options() -> None:
    assert "unrecognized arguments: --trails" in search(*SEARCH, "--trails=3", "seed=1").err
    assert "seed=x" in search("--trials", "3", RATES, "--seed", "1", "seed=x").err


def test_a_folder_that_is_not_of_a_search_is_refused() -> None:
    Path("found").mkdir()
    Path("found/mine.txt").touch()
    outcome = search(*SEARCH)
    assert outcome.status == 2
    assert "-o found: it exists already, and is not the folder of a search" in outcome.err


def test_a_search_ends_after_its_trials_and_goes_on_when_more_are_asked_for(trained: Any) -> None:
    configs = trained(good)
    work(3)
    work(3)
    assert len(configs) == 3
    work(5)
    assert states() == ["COMPLETE"] * 5
    assert [Path(str(config.run_dir)).name for config in configs] == [f"trial_{number:03}" for number in range(5)]


def test_with_a_seed_a_search_that_goes_on_chooses_as_one_that_was_not_stopped(trained: Any) -> None:
    configs = trained(good)
    work(6, seed=7)
    Path("found/search.db").unlink()
    work(2, seed=7)
    work(6, seed=7)
    rates = [config.optimizer["lr"] for config in configs]
    assert rates[:6] == rates[6:]
    assert len(set(rates)) == 6


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["optimizer.lr=interval(0.001,0.01)"], "with optimizer.lr=tag(log,interval(0.001,0.01)) and without"),
        ([RATES, "seed=1"], "without seed=1"),
        ([RATES, "trainer.max_epochs=4"], "without trainer.max_epochs=4"),
    ],
)
def test_a_changed_search_is_refused_in_the_folder_of_another(trained: Any, settings: list[str], says: str) -> None:
    trained(good)
    work(1)
    with pytest.raises(ConfigError, match=re.escape(f"-o found: its search was begun {says}")):
        work(1, *settings)


def test_a_setting_that_is_written_otherwise_or_of_the_machine_changes_nothing(trained: Any) -> None:
    trained(good)
    work(1)
    work(2, "optimizer.lr=tag(log,interval(0.001,0.01))", "data.root=elsewhere")
    assert states() == ["COMPLETE"] * 2


def test_a_failed_trial_does_not_count_and_says_why(trained: Any) -> None:
    def sometimes(config: Config) -> list[float]:
        if config.data.batch_size == 32:
            raise UserError("the loss is\nnan")
        return [0.5]

    configs = trained(sometimes)
    work(3, RATES, "data.batch_size=32,64", by="random", seed=0)
    failed = [number for number, config in enumerate(configs) if config.data.batch_size == 32]
    assert failed
    assert states().count("COMPLETE") == 3
    for number in failed:
        assert study().trials[number].user_attrs == {"error": "the loss is\\nnan"}
        assert Path(f"found/trial_{number:03}/error.txt").read_text() == "the loss is\\nnan\n"


def test_a_search_whose_every_trial_fails_gives_up(trained: Any) -> None:
    def never(config: Config) -> list[float]:
        assert len(configs) <= 10
        raise UserError("too bad")

    configs = trained(never)
    with pytest.raises(UserError, match="10 trials in a row have failed, the last one because: too bad"):
        work(20)
    assert len(configs) == 10


def test_a_grid_has_each_combination_once_even_if_one_fails(trained: Any) -> None:
    def sometimes(config: Config) -> list[float]:
        if (config.data.batch_size, config.optimizer["lr"]) == (32, 0.1):
            raise UserError("too bad")
        return [0.5]

    configs = trained(sometimes)
    for count in (2, 50):  # it goes on with those that are left
        work(count, "data.batch_size=32,64", "optimizer.lr=0.1,0.2,0.3", by="grid", seed=count)
    assert len({(config.data.batch_size, config.optimizer["lr"]) for config in configs}) == len(configs) == 6


@pytest.mark.parametrize("name", ["gp", "qmc"])
def test_every_sampler_works_with_every_kind_of_setting(trained: Any, name: str) -> None:
    configs = trained(good)
    work(4, RATES, "data.batch_size=int(interval(8,99))", by=name, seed=1)
    assert len({config.data.batch_size for config in configs}) > 1


def test_a_hopeless_trial_is_pruned_after_an_epoch(trained: Any) -> None:
    begun = []

    def worse_and_worse(config: Config) -> list[float]:
        begun.append(config)
        return [0.5 / len(begun)] * 3

    trained(worse_and_worse)
    work(8)
    assert states() == ["COMPLETE"] * 5 + ["PRUNED"] * 3  # the median of five is asked for
    assert [len(trial.intermediate_values) for trial in study().trials] == [3] * 5 + [1] * 3


@pytest.mark.parametrize("name", ["asha", "hyperband", "none"])
def test_other_pruners_end_a_search_too(trained: Any, name: str) -> None:
    trained(lambda config: [config.optimizer["lr"]] * 3)
    work(4, until=name, seed=0)
    done = [state for state in states() if state in ("COMPLETE", "PRUNED")]
    assert len(done) == 4
    assert name != "none" or done == ["COMPLETE"] * 4


def test_three_workers_share_a_study_and_double_nothing(trained: Any) -> None:
    def slowly(config: Config) -> list[float]:
        time.sleep(0.05)
        return good(config)

    configs = trained(slowly)
    workers = [threading.Thread(target=work, args=[12]) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert states().count("COMPLETE") == 12
    assert len({config.run_dir for config in configs}) == len(configs) == 12


def test_the_trial_of_a_killed_worker_is_taken_over_and_goes_on_in_its_folder(
    trained: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "HEARTBEAT_SECONDS", 1)
    monkeypatch.setattr(database, "GRACE_SECONDS", 1)
    configs = trained(good)
    work(1)
    killed = study().ask({"optimizer.lr": FloatDistribution(1e-3, 1e-2, log=True)})
    killed.report(0.5, 1)
    database._storage(database.database_url(None, Path("found"))).record_heartbeat(killed._trial_id)
    Path("found/trial_001").mkdir()
    time.sleep(2.1)
    work(3)
    assert states() == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
    again = configs[1]
    assert (again.resume, again.run_dir) == ("found/trial_001", None)
    assert again.optimizer["lr"] == killed.params["optimizer.lr"]
    assert list(study().trials[2].intermediate_values) == [1, 2, 3]


def test_a_worker_that_was_silent_for_too_long_leaves_its_trial_to_another(
    trained: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    def is_given_up(config: Config) -> list[float]:
        if len(configs) == 1:
            running = study().trials[0]
            study()._storage.set_trial_state_values(running._trial_id, TrialState.FAIL)
        return good(config)

    configs = trained(is_given_up)
    work(2)
    assert "this worker was silent for so long" in capsys.readouterr().err
    assert states() == ["FAIL", "COMPLETE", "COMPLETE"]
    assert "error" not in study().trials[0].user_attrs


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_search_and_its_trial_is_begun_again(trained: Any, number: int, status: int) -> None:
    def once(config: Config) -> list[float]:
        if len(configs) == 1:
            os.kill(os.getpid(), number)
        return good(config)

    configs = trained(once)
    outcome = search(*SEARCH, "--trials", "2")
    assert outcome.status == status
    assert "to go on with the search, repeat the command with -o found\ninterrupted\n" in outcome.err
    assert states() == ["FAIL", "WAITING"]
    assert search(*SEARCH, "--trials", "2").status == 0
    assert configs[1].resume == "found/trial_000"
    assert configs[1].optimizer == configs[0].optimizer
    assert states() == ["FAIL", "COMPLETE", "COMPLETE"]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_what_is_wrong_with_the_machine_ends_the_search_and_spoils_no_trial(trained: Any) -> None:
    def no_images(config: Config) -> list[float]:
        raise DataError("no images here")

    trained(no_images)
    with pytest.raises(DataError):
        work(2)
    assert states() == ["FAIL", "WAITING"]
    assert not Path("found/trial_000/error.txt").exists()


def test_a_value_that_can_not_be_chosen_is_not_taken_from_the_database(trained: Any) -> None:
    configs = trained(good)
    distribution = FloatDistribution(1, 9, log=True)
    work(1)
    params: dict[str, Any] = {"params": {"optimizer.lr": 5.0}, "distributions": {"optimizer.lr": distribution}}
    study().add_trial(create_trial(state=TrialState.WAITING, **params))
    study().enqueue_trial({"optimizer.lr": 0.002})  # this one can
    work(3)
    assert states() == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
    assert "can't be chosen" in study().trials[1].user_attrs["error"]
    assert configs[1].optimizer["lr"] == 0.002
    assert len(configs) == 3


def test_a_best_trial_with_settings_of_somebody_else_is_not_the_winner(trained: Any) -> None:
    trained(good)
    settings = (*FIXED, "data.batch_size=32,64", "optimizer.lr=0.01,0.02", "-o", "found", "--trials", "1")
    assert search(*settings).status == 0
    with closing(sqlite3.connect("found/search.db")) as connection, connection:
        tampered = (
            "UPDATE trial_params SET distribution_json = replace(distribution_json, '32, 64', '\"{x: y}\", \"z\"')"
        )
        assert connection.execute(tampered).rowcount == 2
    outcome = search(*settings)
    assert outcome.status == 1
    assert "no trial of the search is complete" in outcome.err


def test_a_password_is_neither_shown_nor_written(trained: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("psycopg")
    url = "postgresql+psycopg://me:secret@127.0.0.1:1/x?password=secret"
    outcome = search(*SEARCH, "--storage", url)
    assert outcome.status == 1
    assert "error: --storage postgresql+psycopg://me:***@127.0.0.1:1/x: connection failed" in outcome.err
    assert "secret" not in outcome.err
    assert not Path("found").exists()

    trained(good)
    here = database.database_url(None, Path("elsewhere"))
    Path("elsewhere").mkdir()
    storage = database._storage
    monkeypatch.setattr(database, "_storage", lambda url: storage(here))
    outcome = search(*SEARCH, "--storage", url, "--trials", "1")
    assert outcome.status == 0
    assert "secret" not in outcome.out + outcome.err
    written = [file for file in Path("found").rglob("*") if file.is_file()]
    assert [file for file in written if b"me:***@127.0.0.1:1/x" in file.read_bytes()]
    assert not [file for file in written if b"secret" in file.read_bytes()]


@pytest.mark.parametrize(
    ("settings", "can_be_a_file"),
    [([], True), (["~optimizer.betas"], False), (["callbacks=[early_stopping,ema]"], True)],
)
def test_a_winner_is_only_a_file_that_says_the_same(settings: list[str], can_be_a_file: bool) -> None:
    Path("found").mkdir()
    arguments = write_winner(Path("found"), [*FIXED, *settings], ["found somewhere"])
    assert (arguments == "--config-dir found -m experiment=winner seed=0,1,2") == can_be_a_file
    assert Path("found/experiment/winner.yaml").exists() == can_be_a_file


def test_a_search_trains_reports_and_writes_its_winner_as_an_experiment() -> None:
    settings = ("experiment=tiny", "data=digits", "trainer=cpu", "trainer.max_epochs=2", "optimizer=adam,sgd")
    filters = "model.layers.0.Conv2D.filters=range(4,9,4)"
    outcome = search(*settings, filters, "-o", "a, b", "--trials", "3", "--json", "--seed", "1")
    assert outcome.status == 0, outcome.err
    assert "fast steps are off" not in outcome.err
    found = json.loads(outcome.out)
    assert found["trials"] == {"complete": 3, "pruned": 0, "failed": 0}
    best = Path("a, b") / f"trial_{found['best']['trial']:03}"
    assert found["best"]["val/accuracy"] == metrics(best)["val/accuracy"]
    assert "test" not in outcome.out
    page = (Path("a, b") / "search.html").read_text()
    assert page.count("<img") == 5
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    assert "Failed trials" not in page
    params = found["best"]["params"]
    trial, _ = configured([*settings[:-1], *(f"{key}={value}" for key, value in params.items())])
    winner, _ = configured([f"hydra.searchpath=['file://{Path('a, b').absolute()}']", "experiment=winner"])
    assert winner == trial


def test_a_trial_that_was_stopped_ends_as_if_it_was_not(monkeypatch: pytest.MonkeyPatch) -> None:
    def ctrl_c_in_the_second_epoch(rows: Sequence[EpochRow]) -> bool:
        if len(rows) == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return True

    def interrupted(config: Config, command: str, callbacks: Sequence[Callback]) -> Run | None:
        return run.train(config, command, [*callbacks, EpochWatch(ctrl_c_in_the_second_epoch)])

    work(1, seed=3)
    Path("found").rename("whole")
    with monkeypatch.context() as patch:
        patch.setattr(trials, "train", interrupted)
        with pytest.raises(Interrupted):
            work(1, seed=3)
    work(1, seed=3)
    assert metrics(Path("found/trial_000")) == metrics(Path("whole/trial_000"))
    whole, stopped = study("whole").trials[-1], study().trials[-1]
    assert stopped.intermediate_values == whole.intermediate_values
    assert list(whole.intermediate_values) == [1, 2, 3]
    assert stopped.value == whole.value
    assert states() == ["FAIL", "COMPLETE"]


def test_samples_have_every_choice_and_both_ends_of_a_range() -> None:
    space = Space(("seed=1",), {"a": IntDistribution(1, 9), "+b": CategoricalDistribution(("x", "y", "z"))})
    assert list(space.samples()) == [
        ["seed=1", "a=1", "+b=x"],
        ["seed=1", "a=9", "+b=x"],
        ["seed=1", "a=1", "+b=y"],
        ["seed=1", "a=1", "+b=z"],
    ]
