"""The table of many runs: what is one setting, how settings are ranked, and what folders of strangers can do."""

import copy
import csv
import html
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from mnist_cnn.cli import main
from mnist_cnn.report.leaderboard import Leaderboard, leaderboard, write_leaderboard
from mnist_cnn.report.leaderboard import runs as reading
from mnist_cnn.report.leaderboard.scales import accuracy_scale, scale
from tests.conftest import Outcome
from tests.test_report import Page

# What a run's metrics.json holds, as far as it matters here.
SETTINGS: dict[str, Any] = {
    "seed": 0,
    "model": {"name": "tiny", "layers": ["Flatten", {"Dense": {"units": 10}}], "init_from": None},
    "data": {"name": "mnist", "root": "data", "mirror": None, "batch_size": 128, "val_fraction": 0.1, "split": "last"},
    "trainer": {"accelerator": "auto", "devices": 1, "compile": False, "max_epochs": 12},
    "optimizer": {"_target_": "mnist_cnn.training.optimizers.KerasAdam", "lr": 0.001, "betas": [0.9, 0.999]},
    "scheduler": {},
    "logger": {"csv": {"_target_": "mnist_cnn.training.log.CSVLog"}},
}
METRICS: dict[str, Any] = {
    "dataset": "mnist", "model": "tiny", "seed": 0, "epochs": 12, "best_epoch": 9, "interrupted": False,
    "parameters": 6320, "val/accuracy": 0.98, "val/loss": 0.06, "test/accuracy": 0.97, "test/loss": 0.07,
    "fit_seconds": 20.5, "history": [],
}  # fmt: skip
MODELS = {"tiny": 10, "mlp": 32, "deep": 64}  # units of the layer


def write_run(folder: Path | str, *overrides: str, hidden: Mapping[str, Any] | None = None, **results: Any) -> Path:
    """The folder of a run with these overrides; `hidden` are further settings, which nobody typed."""
    settings, folder = copy.deepcopy(SETTINGS), Path(folder)
    typed = dict(text.lstrip("+").split("=", 1) for text in overrides)
    for key, value in {**typed, **(hidden or {})}.items():
        if key == "model":
            settings["model"] |= {"name": value, "layers": ["Flatten", {"Dense": {"units": MODELS[value]}}]}
        elif "." in key or key == "seed":
            *groups, last = key.split(".")
            inner = settings
            for group in groups:
                inner = inner.setdefault(group, {})
            is_plain = isinstance(value, str) and re.match(r"[\d\[]|true|false", value)
            inner[last] = json.loads(value) if is_plain else value
    results = {name.replace("_", "/", 1) if name[:4] in ("val_", "test") else name: results[name] for name in results}
    metrics = {**METRICS, "seed": settings["seed"], **results, "overrides": list(overrides), "settings": settings}
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return folder


def write_sweep(folder: Path | str, accuracies: Mapping[Sequence[str], Sequence[float]]) -> Path:
    """A folder with a run for each validation accuracy of each setting, by seed."""
    for number, (overrides, values) in enumerate(accuracies.items()):
        for seed, value in enumerate(values):
            write_run(Path(folder) / f"{number:02}_{seed}", *overrides, f"seed={seed}", val_accuracy=value)
    return Path(folder)


def rows(made: Leaderboard) -> list[dict[str, Any]]:
    """The values of the columns of every line, with `n` and `val`, the mean validation accuracy."""
    return [
        {**row.setting.values, "n": len(row.runs), "val": row.val_accuracy and round(row.val_accuracy.mean, 4)}
        for row in made.table.rows
    ]


def command(*arguments: str) -> Outcome:
    out, err = StringIO(), StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        status = main(["leaderboard", *arguments])
    return Outcome(status, out.getvalue(), err.getvalue())


def test_a_line_is_a_setting_and_its_seeds_are_repetitions_whatever_their_order() -> None:
    write_sweep(
        "sweep", {("model=tiny", "optimizer.lr=1e-3"): [0.97, 0.98, 0.99], ("model=mlp", "optimizer.lr=1e-3"): [0.96]}
    )
    made = leaderboard([Path("sweep")])
    assert rows(made) == [{"model": "tiny", "n": 3, "val": 0.98}, {"model": "mlp", "n": 1, "val": 0.96}]
    found = made.table.rows[0].val_accuracy
    assert found
    assert found.std == pytest.approx(0.01)
    assert found.high == pytest.approx(0.98 + 4.302653 * 0.01 / math.sqrt(3))  # Student's t for 2 degrees of freedom


def test_the_test_accuracy_ranks_nothing() -> None:
    for name, val, test in (("tiny", 0.95, 0.99), ("mlp", 0.96, 0.90), ("deep", None, 0.999)):
        write_run(f"sweep/{name}", f"model={name}", val_accuracy=val, val_loss=None, test_accuracy=test)
    made = leaderboard([Path("sweep")])
    assert [row["model"] for row in rows(made)] == ["mlp", "tiny", "deep"]
    assert [row.is_best for row in made.table.rows] == [True, False, False]
    assert "1 setting has no validation images and so no rank" in made.text()
    assert re.search(r"^ *–  +deep", made.text(), re.M)


def test_values_are_those_that_were_used_however_they_were_typed() -> None:
    write_run("a", "optimizer.lr=1e-3", "seed=0")
    write_run("b", "optimizer.lr=0.001", "seed=1")
    write_run("c", "optimizer.lr=3e-3", "seed=0", val_accuracy=0.5)
    write_run("d", "seed=2")  # which has 0.001 from conf/
    assert rows(leaderboard([Path()])) == [
        {"optimizer.lr": 0.001, "n": 3, "val": 0.98},
        {"optimizer.lr": 0.003, "n": 1, "val": 0.5},
    ]


def test_a_whole_number_is_one_value_with_and_without_a_point_but_not_true() -> None:
    for seed, value in enumerate((1, 1.0, True, [1, 2], [1.0, 2.0])):
        write_run(f"{seed}", f"seed={seed}", hidden={"trainer.x": value})
    assert sorted(row["n"] for row in rows(leaderboard([Path()]))) == [1, 2, 2]


def test_an_option_of_a_group_is_known_where_it_was_not_typed() -> None:
    write_run("a", "optimizer=adam", "model=tiny", "optimizer.lr=1e-2")
    write_run("b", "model=mlp")
    write_run("c", "model=mlp", "experiment=mlp", "optimizer=adamw", hidden={"optimizer._target_": "torch.optim.AdamW"})
    write_run("d", "optimizer.lr=1e-2", "seed=1")
    made = {(row["model"], row["optimizer"], row["experiment"], row["n"]) for row in rows(leaderboard([Path()]))}
    assert made == {("tiny", "adam", None, 2), ("mlp", "adam", None, 1), ("mlp", "adamw", "mlp", 1)}
    assert re.search(r"adam +mlp +0.001 +– ", leaderboard([Path()]).text())


def test_runs_that_differ_in_what_nobody_typed_are_not_lumped_together() -> None:
    write_run("old/a", "model=tiny", "seed=0")
    write_run("new/a", "model=tiny", "seed=1", hidden={"data.batch_size": 64})
    made = leaderboard([Path("old"), Path("new")])
    assert [(row["data.batch_size"], row["n"]) for row in rows(made)] == [(128, 1), (64, 1)]


def test_of_many_differences_columns_show_as_many_as_tell_settings_apart_and_a_line_names_the_others() -> None:
    for number in range(3):
        hidden = {f"trainer.x{index}": number for index in range(9)}
        write_run(f"{number}", hidden=hidden)
    made = leaderboard([Path()])
    assert [(row["trainer.x0"], row["n"]) for row in rows(made)] == [(0, 1), (1, 1), (2, 1)]
    assert made.table.columns == ["trainer.x0"]
    for number in range(3):
        hidden = {f"trainer.x{index}": number for index in range(9)}
        write_run(f"recipes/{number}", f"experiment={number}", hidden=hidden)
    assert "also differ" not in leaderboard([Path("recipes")]).text()  # the recipes' names say all
    assert "differ in trainer.x1, trainer.x2, trainer.x3, trainer.x4 and 4 more, which no column shows" in made.text()


@pytest.mark.parametrize(
    "elsewhere",
    [
        {"data.root": "/data"}, {"data.mirror": "file:///x"}, {"data.eval_batch_size": 1}, {"logger.csv": {}},
        {"trainer.accelerator": "cpu"}, {"trainer.compile": True}, {"data.name": "auto"},
    ],
    ids=str,
)  # fmt: skip
def test_what_is_no_other_experiment_makes_no_other_setting(elsewhere: Mapping[str, Any]) -> None:
    write_run("a", "seed=0")
    write_run("b", "seed=1", hidden=elsewhere)
    assert rows(leaderboard([Path()])) == [{"n": 2, "val": 0.98}]


@pytest.mark.parametrize(
    "other", [{"data.split": "random"}, {"trainer.devices": 2}, {"trainer.precision": "bf16-mixed"}]
)
def test_what_is_another_experiment_makes_another_setting(other: Mapping[str, Any]) -> None:
    write_run("a", "seed=0")
    write_run("b", "seed=1", hidden=other)
    assert [row["n"] for row in rows(leaderboard([Path()]))] == [1, 1]


def test_the_machine_is_a_column_only_where_it_was_swept() -> None:
    write_run("swept/a", "trainer.compile=true")
    write_run("swept/b", "trainer.compile=false", val_accuracy=0.9)
    assert [row["trainer.compile"] for row in rows(leaderboard([Path("swept")]))] == [True, False]
    write_run("others/a", "trainer.compile=true", "seed=0")
    write_run("others/b", "seed=1")
    assert rows(leaderboard([Path("others")])) == [{"n": 2, "val": 0.98}]


def test_folders_of_pictures_with_one_name_are_two_data_sets() -> None:
    for name in ("a", "b"):
        write_run(name, hidden={"data.root": f"/{name}/animals"}, dataset="folder:animals")
    assert [row["data.root"] for row in rows(leaderboard([Path()]))] == ["/a/animals", "/b/animals"]


def test_the_same_setting_with_the_same_seed_counts_once_and_a_line_says_so() -> None:
    write_run("a", "model=tiny", "seed=0")
    write_run("b", "seed=0", val_accuracy=0.5)
    made = leaderboard([Path()])
    assert rows(made) == [{"n": 1, "val": 0.98}]
    assert "1 run repeats a setting with a seed that another run has, and is not counted: b" in made.text().replace(
        "B", "b"
    )


def test_each_data_set_is_ranked_by_itself() -> None:
    for dataset, accuracy in (("mnist", 0.98), ("fashion_mnist", 0.9)):
        for seed in range(3):
            value = accuracy + seed / 1000
            write_run(f"{dataset}{seed}", "data=x", f"seed={seed}", dataset=dataset, val_accuracy=value)
    made = leaderboard([Path()])
    assert [(row["data"], row["n"]) for row in rows(made)] == [("fashion_mnist", 3), ("mnist", 3)]
    assert [row.is_best for row in made.table.rows] == [True, True]
    assert "can't be compared" in made.text()


def test_settings_that_can_not_be_told_from_the_best_are_marked_and_only_then_explained() -> None:
    write_sweep("sweep", {("model=tiny",): [0.98, 0.981, 0.982], ("model=deep",): [0.979, 0.98, 0.981]})
    write_sweep("sweep/more", {("model=mlp",): [0.9, 0.901, 0.902]})
    made = leaderboard([Path("sweep")])
    assert [row.not_separable for row in made.table.rows] == [True, True, False]
    table = made.text().split("\n\n")[1]
    assert re.findall(r"^(\d≈?) +(\w+) ", table, re.M) == [("1", "tiny"), ("2≈", "deep"), ("3", "mlp")]
    assert "≈ can't be told from the best" in made.text()
    write_sweep("other", {("model=tiny",): [0.98, 0.981, 0.982], ("model=mlp",): [0.9, 0.901, 0.902]})
    assert "≈" not in leaderboard([Path("other")]).text()


def test_with_one_run_a_setting_nothing_is_tested_and_a_line_says_what_to_do() -> None:
    write_sweep("sweep", {("model=tiny",): [0.98], ("model=deep",): [0.9]})
    text = leaderboard([Path("sweep")]).text()
    assert "Each setting has one run, so no difference from the best can be tested there: add seed=0,1,2." in text
    assert "±" not in text


def test_runs_without_a_result_are_listed_with_their_overrides_and_what_happened() -> None:
    write_run("sweep/00_a", "seed=0")
    for name in ("01_b", "02_c"):
        (Path("sweep") / name / "checkpoints").mkdir(parents=True)
    Path("sweep/01_b/error.txt").write_text("optimizer.lr=0: the learning rate\x1b[31m must be above 0\n")
    Path("sweep/02_c/config.yaml").write_text("seed: 2\n")
    write_run("sweep/03_d", "seed=3", interrupted=True, epochs=4)
    members = {"01_b": ["optimizer.lr=0", "seed=1"], "02_c": ["seed=2"], "04_e": ["seed=4"], "../../etc": []}
    members = {name: ["model=tiny", *varied] for name, varied in members.items()}
    Path("sweep/sweep.json").write_text(json.dumps({"settings": [], "runs": members}))
    made = leaderboard([Path("sweep")])
    assert [(one.folder.name, one.overrides, one.why) for one in made.table.failed] == [
        ("01_b", ["optimizer.lr=0", "seed=1"], r"optimizer.lr=0: the learning rate\x1b[31m must be above 0"),
        ("02_c", ["seed=2"], "not finished"),
        ("03_d", ["seed=3"], "stopped after 4 epochs"),
        ("04_e", ["seed=4"], "not started"),
    ]
    assert "4 runs have no result:\n  sweep/01_b (optimizer.lr=0, seed=1): optimizer.lr=0: the" in made.text()
    assert [one.overrides for one in leaderboard([Path("sweep/01_b")]).table.failed] == [["optimizer.lr=0", "seed=1"]]


def test_a_tree_of_runs_is_found_and_links_are_not_followed() -> None:
    write_run("runs/recipes/tiny/0", "seed=0")
    write_run("elsewhere/0", "model=mlp")
    write_run("runs/a/b/c/d/e/f/g/too_deep", "model=deep")
    os.symlink(Path("elsewhere").absolute(), "runs/link")
    twice = leaderboard([Path("runs"), Path("runs/recipes"), Path("runs/recipes/tiny/0")])
    assert "repeat" not in twice.text()
    assert rows(leaderboard([Path("runs"), Path("runs/recipes"), Path("runs/recipes/tiny/0")])) == [
        {"n": 1, "val": 0.98}
    ]


def test_a_tree_of_too_many_folders_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MAX_FOLDERS", 20)
    for number in range(20):
        Path(f"tree/{number}").mkdir(parents=True)
    outcome = command("tree")
    assert outcome.status == 1
    assert outcome.err == "error: tree: more than 20 folders; name those that hold the runs.\n"


def test_a_run_of_an_earlier_version_has_the_settings_of_its_config_yaml() -> None:
    for seed, clip in enumerate((1.5, math.inf)):
        folder = write_run(f"runs/{seed}", f"seed={seed}", hidden={"trainer.clip": clip})
        metrics = json.loads((folder / "metrics.json").read_text())
        (folder / "config.yaml").write_text(yaml.safe_dump(metrics.pop("settings")))
        del metrics["overrides"]
        (folder / "metrics.json").write_text(json.dumps(metrics))
    assert [row["trainer.clip"] for row in rows(leaderboard([Path("runs")]))] == [1.5, "inf"]
    assert command("runs", "--json").status == 0


HOSTILE = [
    b"", b"{}", b"[]", b"null", b"\xff\xfe", b'{"dataset":', b"[" * 100_000, b'{"settings":' + b'{"a":' * 5000 + b"1",
    *(json.dumps({**METRICS, "settings": SETTINGS, **change}).encode() for change in list[dict[str, Any]]((
        {"val/accuracy": math.nan}, {"val/accuracy": 1e999}, {"val/accuracy": 1.5}, {"test/accuracy": None},
        {"test/accuracy": "0.9"}, {"seed": -1}, {"seed": 10**400}, {"seed": True}, {"parameters": 2**70},
        {"dataset": ""}, {"dataset": "x" * 1000}, {"dataset": ["mnist"]}, {"interrupted": 0}, {"overrides": "seed=0"},
        {"overrides": [1]}, {"settings": []}, {"settings": {"a\x1b[31m": 1}}, {"settings": {"a.b": 1}},
        {"settings": None}, {"settings": {"a": [[0]] * 30_000}}, {"fit_seconds": -1},
    ))),
]  # fmt: skip


@pytest.mark.parametrize("content", HOSTILE, ids=range(len(HOSTILE)))
def test_a_damaged_run_is_skipped_in_one_printable_line_and_the_others_are_shown(content: bytes) -> None:
    write_run("runs/good")
    Path("runs/bad").mkdir()
    Path("runs/bad/metrics.json").write_bytes(content)
    outcome = command("runs")
    assert (outcome.status, outcome.err) == (0, "")
    (line,) = (line for line in outcome.out.splitlines() if "runs/bad" in line)
    assert line.startswith("  runs/bad: skipped, because its metrics.json is damaged or not that of a run: ")
    assert line.isprintable()
    assert len(line) < 400
    assert "1 setting, 1 run on mnist" in outcome.out


def test_what_is_no_file_or_too_large_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    write_run("runs/good")
    for name in ("pipe", "folder", "large"):
        Path(f"runs/{name}").mkdir()
    os.mkfifo("runs/pipe/metrics.json")
    Path("runs/folder/metrics.json").mkdir()
    Path("runs/large/metrics.json").write_bytes(b" " * 5000)
    monkeypatch.setattr(reading, "_MAX_BYTES", 4000)
    made = leaderboard([Path("runs")])
    assert [one.folder.name for one in made.table.failed] == ["folder", "large", "pipe"]
    assert all("skipped, because its metrics.json can't be read: " in one.why for one in made.table.failed)


NASTY = [
    "=cmd|' /C calc'!A0",
    "+1+1",
    "-2+3",
    "@SUM(A1)",
    "\t=1",
    "<script>alert(1)</script>",
    "a|b`*[x](y)",
    "$x$",
    "\x1b[31m",
    "é\u202e" * 90,
]


def test_no_value_is_a_formula_markup_or_a_control_character_anywhere() -> None:
    for number, text in enumerate(NASTY):
        write_run(
            f"runs/{number}",
            f"experiment={text}",
            f"+model.name={text}",
            hidden={"model.name": text},
            dataset="mnist<b>",
        )
    Path("runs/bad").mkdir()
    Path("runs/bad/error.txt").write_text("<img src=x>\x07=1+1\n")
    made = write_leaderboard([Path("runs")], Path("runs"))
    with Path("runs/leaderboard.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            for key in ("experiment", "model.name"):
                assert not re.match(r"\s*[=+\-@]", row[key]), row[key]
                assert row[key].isprintable()
    assert len(made.table.rows) == len(NASTY)
    page = Path("runs/leaderboard.html").read_text(encoding="utf-8")
    markdown = Path("runs/leaderboard.md").read_text(encoding="utf-8")
    for text in (page, markdown, made.text()):
        assert all(character.isprintable() or character == "\n" for character in text)
    assert "<script" not in page
    assert "<img src=x" not in page
    assert html.escape("<script>alert(1)</script>") in page
    table = [line for line in markdown.splitlines() if line.startswith("|")]
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table}) == 1  # every line has as many cells
    assert not re.search(r"(?<!\\)[<\[`]", markdown)
    parser = Page()
    parser.feed(page)
    assert parser.open == []


def test_numbers_stay_numbers_in_the_csv_file() -> None:
    write_run("runs/a", "trainer.x=1", hidden={"trainer.x": -1})
    write_run("runs/b", "trainer.x=2.5")
    write_leaderboard([Path("runs")], Path("out"))
    with Path("out/leaderboard.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    assert [row["trainer.x"] for row in found] == ["-1", "2.5"]
    assert [row["n"] for row in found] == ["1", "1"]
    assert {
        f"{part}/{what}/{of}" for part in ("val", "test") for what in ("accuracy", "loss") for of in ("mean", "std")
    } <= set(found[0])
    assert (found[0]["val/accuracy/mean"], found[0]["val/accuracy/std"]) == ("0.98", "")
    assert found[0]["not_separable_from_best"] == "true"


def test_the_page_loads_nothing_links_each_report_by_a_relative_path_and_says_how_to_make_it_again() -> None:
    folder = write_sweep("a sweep", {("model=tiny",): [0.97, 0.98], ("model=mlp",): [0.96, 0.95]})
    report = folder / "00_1" / "report"
    report.mkdir()
    (report / "index.html").write_text("")
    write_leaderboard([folder], Path("out"))
    page = Path("out/leaderboard.html").read_text()
    parser = Page()
    parser.feed(page)
    assert parser.open == []
    images = [source for source in parser.sources if source.startswith("data:image/png;base64,")]
    assert len(images) == 2  # by model, and by time
    assert [source for source in parser.sources if source not in images] == ["../a%20sweep/00_1/report/index.html"]
    assert "://" not in page
    assert html.escape("mnist-cnn leaderboard 'a sweep' -o out") in page


def test_every_swept_setting_has_a_plot_and_two_have_one_together() -> None:
    for number, (lr, batch) in enumerate([(1e-4, 32), (1e-3, 32), (1e-3, 64), (1e-2, 64)]):
        write_run(f"runs/{number}", f"optimizer.lr={lr}", f"data.batch_size={batch}", val_accuracy=0.9 + number / 100)
    write_leaderboard([Path("runs")], Path("runs"))
    titles = re.findall("<h2>(.*?)</h2>", Path("runs/leaderboard.html").read_text())
    assert titles[:-1] == [
        "Validation accuracy by optimizer.lr", "Validation accuracy by data.batch_size",
        "Which values go together", "Validation accuracy and time",
    ]  # fmt: skip


def test_an_axis_is_logarithmic_where_values_span_a_factor_of_twenty() -> None:
    assert scale([1e-3, 1e-2, 1e-1]) == (
        [0, pytest.approx(0.5), 1],
        [(0, "0.001"), (pytest.approx(0.5), "0.01"), (1, "0.1")],
        "logarithmic",
    )
    assert scale([1, 2, 3]).places == [0, 0.5, 1]
    assert scale([1, 5, 19]).kind == "numbers"
    assert scale([1, 2, 19]).kind == "names"  # 1 and 2 would be written over each other


@pytest.mark.parametrize(
    "values",
    [
        [True, False], [None, "a"], ["b", 1, 2.5], [[0.8, 0.99], [0.9, 0.99]], [0, 1e-9, 1], [1.0, 1], [5],
        [10**300, 1], [math.inf, 1.0], [math.nan, 1.0], list(range(200)), [f"name {number}" for number in range(99)],
        [10.0**-number for number in range(50)], [-1e99, 1e99],
    ],
    ids=range(14),
)  # fmt: skip
def test_any_values_have_places_within_the_axis_and_labels_apart(values: list[Any]) -> None:
    found = scale(values)
    assert len(found.places) == len(values)
    assert all(0 <= place <= 1 for place in found.places)
    ticks = sorted(at for at, _ in found.ticks)
    assert 1 <= len(ticks) <= 25
    assert all(after - before > 0.03 for before, after in pairwise(ticks))


def test_accuracies_that_a_plain_axis_would_show_as_one_are_spread() -> None:
    wide = accuracy_scale([0.1, 0.9, 0.99, 0.999])
    low, middle, high = wide([0.9, 0.99, 0.999])
    assert high - middle == pytest.approx(middle - low)
    assert accuracy_scale([0.97, 0.98])([0.97, 0.98]) == [0.97, 0.98]
    assert accuracy_scale([1.0, 1.0]).ticks == [(1.0, "100 %")]
    assert len(accuracy_scale([0.97312345] * 2).ticks) == 1
    perfect = accuracy_scale([0.1, 0.9999, 1.0])
    assert perfect([1.0]) > perfect([0.9999]) > perfect([0.99])


def test_the_terminal_shows_a_hundred_columns_and_names_what_has_no_room() -> None:
    write_sweep(
        "sweep",
        {
            ("model=tiny", "+trainer.a_rather_long_name=8"): [0.98, 0.97],
            ("model=mlp", "+trainer.a_rather_long_name=16"): [0.9],
        },
    )
    made = leaderboard([Path("sweep")])
    table = made.text(100).split("\n\n")[1]
    assert max(map(len, table.splitlines())) <= 100
    assert "no room here for: " in made.text(100)
    assert "test loss" in made.text(100)
    assert "no room here for" not in made.text(400)
    assert "parameters" in made.text(400).split("\n\n")[1]


def test_more_settings_than_a_terminal_shows_are_all_in_the_files() -> None:
    for number in range(60):
        write_run(f"runs/{number}", f"data.batch_size={number + 1}", val_accuracy=number / 100)
        Path(f"runs/x{number}").mkdir()
        Path(f"runs/x{number}/error.txt").write_text("no\n")
    made = write_leaderboard([Path("runs")], Path("runs"))
    assert "… and 20 more settings" in made.text()
    assert "… and 40 more" in made.text()
    assert len(made.text().splitlines()) < 75
    assert len(Path("runs/leaderboard.csv").read_text().splitlines()) == 61
    assert Path("runs/leaderboard.html").read_text().count("<li>runs/x") == 60


def test_the_command_writes_into_the_folder_or_where_it_is_told_and_again() -> None:
    write_sweep("a", {("model=tiny",): [0.9]})
    write_sweep("b", {("model=mlp",): [0.8]})
    names = ["leaderboard.csv", "leaderboard.html", "leaderboard.md"]
    for _ in range(2):
        assert command("a").status == 0
        assert sorted(path.name for path in Path("a").glob("leaderboard.*")) == names
    both = command("a", "b")
    assert both.status == 0
    assert "2 settings, 2 runs" in both.out
    assert "-o FOLDER names a place" in both.err
    assert list(Path("b").glob("leaderboard.*")) == []
    assert command("a", "b", "-o", "new/out").status == 0
    assert sorted(path.name for path in Path("new/out").iterdir()) == names


def test_the_command_prints_one_json_object() -> None:
    write_sweep("a", {("model=tiny",): [0.9, 0.8], ("model=mlp",): [0.7]})
    outcome = command("a", "--json")
    found = json.loads(outcome.out)
    assert outcome.out.count("\n") == 1
    assert [(row["values"], row["n"]) for row in found["settings"]] == [({"model": "tiny"}, 2), ({"model": "mlp"}, 1)]
    assert found["settings"][0]["val/accuracy"]["mean"] == pytest.approx(0.85)
    assert found["files"] == ["a/leaderboard.csv", "a/leaderboard.md", "a/leaderboard.html"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["empty"], "there is no finished run in these folders."),
        (["nowhere"], "nowhere: No such file or directory."),
        (["file"], "file: Not a directory."),
        (["a\0b"], "no folder can have this name."),
        (["failed"], "there is no finished run in these folders."),
    ],
)
def test_where_there_is_nothing_to_show_the_command_says_so_and_writes_nothing(arguments: list[str], says: str) -> None:
    Path("empty").mkdir()
    Path("file").touch()
    Path("failed/0").mkdir(parents=True)
    Path("failed/0/error.txt").write_text("no images\n")
    before = sorted(Path().rglob("*"))
    outcome = command(*arguments)
    assert outcome.status == 1
    assert outcome.err.startswith("error: ")
    assert outcome.err.endswith(f"{says}\n")
    assert ("no images" in outcome.out) == (arguments == ["failed"])
    assert sorted(Path().rglob("*")) == before


def test_a_real_run_has_a_line(digits_run: Path) -> None:
    made = leaderboard([digits_run])
    assert made.table.failed == []
    (row,) = made.table.rows
    assert row.runs[0].settings["optimizer.lr"] == 0.001
    assert row.runs[0].typed["model"] == "tiny"
