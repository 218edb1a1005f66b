"""`mnist-cnn compare`: its statistics against scipy and textbook formulas, its sentences, what it refuses and tells."""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from scipy.stats import binom, norm, ttest_ind

from mnist_cnn.cli import main
from mnist_cnn.data.images import Preprocessing
from mnist_cnn.inference import checkpoint
from mnist_cnn.inference.evaluate import Evaluation
from mnist_cnn.report import figures
from mnist_cnn.report.compare.difference import Difference, differences
from mnist_cnn.report.compare.sides import EvaluatedSide
from tests.test_own_data import make
from tests.trained import trained

IMAGES = 1000


def evaluated(wrong: Sequence[int], total: int = IMAGES) -> Evaluation:
    """Three classes in turn, all images of which are classified correctly but these."""
    labels = torch.arange(total) % 3
    answers = labels.clone()
    answers[list(wrong)] = (answers[list(wrong)] + 1) % 3
    probabilities = torch.nn.functional.one_hot(answers, 3).float()
    return Evaluation("made up", "test", ("a", "b", "c"), probabilities, labels, 0.0)


def network(name: str, wrong: Sequence[int]) -> EvaluatedSide:
    return EvaluatedSide(name, [], [evaluated(wrong)])


def setting(name: str, mistakes: Sequence[int]) -> EvaluatedSide:
    """A side with a run for each number of mistakes."""
    return EvaluatedSide(name, [], [evaluated(range(number)) for number in mistakes])


def only(*sides: EvaluatedSide) -> Difference:
    (found,) = differences(sides)
    return found


def noisy(run: Path, folder: Path, seed: int, noise: float = 0.1, **training: Any) -> Path:
    """A run folder with the network of another, its weights disturbed: as different as another seed makes them."""
    network = checkpoint.load(run)
    torch.manual_seed(seed)
    for weights in network.network.parameters():
        weights.add_(torch.randn_like(weights) * weights.std().nan_to_num() * noise)
    (folder / "checkpoints").mkdir(parents=True)
    settings = {**network.training, "seed": seed, **training}
    checkpoint.save(folder / "checkpoints" / "best.ckpt", replace(network, training=settings))
    (folder / "metrics.json").write_text('{"interrupted": false}')
    return folder


@pytest.fixture(scope="module")
def settings(digits_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two folders, `good` and `bad`, each with three runs of tiny on the bundled digits."""
    folder = tmp_path_factory.mktemp("settings")
    for seed in range(3):
        noisy(digits_run, folder / "good" / str(seed), seed)
        noisy(digits_run, folder / "bad" / str(seed), seed, noise=1.5, max_epochs=1)
    return folder


def compare(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    capsys.readouterr()
    try:
        status = main(["compare", *map(str, arguments)])
    except SystemExit as end:
        status = int(end.code or 0)
    return status, *capsys.readouterr()


# --- the tests and their wording ----------------------------------------------------------------------------------


def test_two_networks_are_compared_by_mcnemars_exact_test_and_the_spread_over_images() -> None:
    found = only(network("A", range(20)), network("B", range(14, 23)))  # 14 right only by B, 3 only by A
    assert found.table == [[977, 3], [14, 6]]
    assert found.p == pytest.approx(2 * binom.cdf(3, 17, 0.5))
    assert found.value == pytest.approx(0.011)
    # The usual interval of a paired difference; Student's t and n - 1 make no difference with 1,000 images.
    half = norm.ppf(0.975) * math.sqrt(17 - (14 - 3) ** 2 / IMAGES) / IMAGES
    assert (found.low, found.high) == pytest.approx((0.011 - half, 0.011 + half), rel=0.01)
    assert [*found.only_one] == [20, 21, 22]
    assert [*found.only_other] == [*range(14)]
    assert found.by_class() == [("a", 334, 1, 5), ("b", 333, 1, 5), ("c", 333, 1, 4)]


def test_settings_are_compared_over_seeds_as_by_scipys_welch_test() -> None:
    mistakes = ([10, 14, 12, 15], [9, 8, 12, 7, 9, 6])
    found = only(*(setting(name, counts) for name, counts in zip("AB", mistakes, strict=True)))
    one, other = (1 - np.array(counts) / IMAGES for counts in mistakes)
    theirs = ttest_ind(other, one, equal_var=False)
    interval = theirs.confidence_interval(0.95)
    assert found.p == pytest.approx(theirs.pvalue)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.value == pytest.approx(other.mean() - one.mean())


def test_several_sides_are_compared_with_the_first_and_corrected_by_holm() -> None:
    sides = [network("A", range(20)), network("B", range(8, 20)), network("C", range(12, 20)), network("D", range(19))]
    raw = [only(sides[0], side).p for side in sides[1:]]
    assert raw == pytest.approx([2 * 0.5**8, 2 * 0.5**12, 1])
    found = differences(sides)
    assert [each.p for each in found] == pytest.approx([2 * 2 * 0.5**8, 3 * 2 * 0.5**12, 1])
    assert [each.significant for each in found] == [True, True, False]
    assert "after Holm's correction for 3 tests" in found[0].sentence


def test_the_sentence_names_the_better_one_first_whichever_side_it_is() -> None:
    expected = (
        "On the 1,000 test images of made up, B (99.10 %) is more accurate than A (98.00 %) by 1.10 percentage points "
        "(95 % interval of the difference 0.29 to 1.91; McNemar's exact test, n = 1,000, p = 0.013)."
    )
    a, b = network("A", range(20)), network("B", range(14, 23))
    assert only(a, b).sentence == expected
    assert only(b, a).sentence == expected
    assert (only(b, a).value, only(b, a).low) == (-only(a, b).value, -(only(a, b).high or 0))


def test_no_significant_difference_is_never_called_none() -> None:
    found = only(setting("A", [10, 14, 12]), setting("B", [11, 12, 14])).sentence
    assert found == (
        "On the 1,000 test images of made up, we found no significant difference in accuracy between A (98.80 ± 0.20 "
        "%, n = 3) and B (98.77 ± 0.15 %, n = 3): 0.03 percentage points (mean ± standard deviation over n runs; "
        "95 % interval of the difference −0.38 to 0.45; Welch's t-test, p = 0.831)."
    )
    same = only(network("A", [1]), network("B", [1])).sentence
    assert "no significant difference" in same
    assert "p = 1.000" in same
    assert not re.search("equal|same|identical|as accurate", found + same)


def test_runs_without_any_spread_are_not_tested() -> None:
    found = only(setting("A", [10, 10]), setting("B", [20, 20, 20]))
    assert (found.p, found.low, found.significant) == (None, None, False)
    assert "A (99.00 ± 0.00 %, n = 2) is 1.00 percentage points above B" in found.sentence
    assert "no test is possible" in found.sentence
    mixed = differences([setting("A", [10, 10]), setting("B", [20, 20]), setting("C", [20, 21])])
    assert [each.tests for each in mixed] == [1, 1]  # nothing to correct
    assert mixed[1].p is not None


def test_where_the_test_and_the_approximate_interval_disagree_the_test_decides() -> None:
    found = only(network("A", range(5)), network("B", []))  # p = 2 * 0.5**5 = 0.0625
    assert found.low is not None
    assert found.low > 0
    assert not found.significant
    assert any("the test decides" in note for note in found.notes)
    assert len(only(network("A", range(20)), network("B", [])).notes) == 1


# --- the command --------------------------------------------------------------------------------------------------


def test_two_runs_are_compared_on_the_images_that_evaluate_uses(
    settings: Path, digits_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, err = compare(capsys, digits_run, settings / "bad" / "0", "--json")
    assert (status, err) == (0, "")
    found = json.loads(out)
    for side, run in zip(found["sides"], (digits_run, settings / "bad" / "0"), strict=True):
        main(["evaluate", str(run), "--json"])
        alone = json.loads(capsys.readouterr().out)
        assert side["mean"] == side["runs"][0]["accuracy"] == alone["accuracy"]
        assert (found["dataset"], found["split"], found["total"]) == ("digits", "test", alone["total"])
    (difference,) = found["differences"]
    (_, only_one), (only_other, _) = difference["table"]
    assert (len(difference["only_one"]), len(difference["only_other"])) == (only_one, only_other)
    assert difference["difference"] == pytest.approx((only_other - only_one) / found["total"])
    assert sum(row["only_one"] for row in difference["by_class"]) == only_one
    assert difference["test"] == "McNemar's exact test"
    assert difference["significant"]
    _, text, _ = compare(capsys, digits_run, settings / "bad" / "0")
    assert difference["sentence"] in text
    assert found["notes"][0] in text


def test_a_folder_of_runs_is_a_side_as_its_runs_with_an_option_are(
    settings: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = settings / "good", settings / "bad"
    _, folders, _ = compare(capsys, good, bad, "--json")
    _, listed, _ = compare(capsys, *(good / n for n in "012"), "--with", *(bad / n for n in "012"), "--json")
    assert json.loads(folders) == json.loads(listed)
    assert [side["name"] for side in json.loads(folders)["sides"]] == ["good", "bad"]
    assert [side["n"] for side in json.loads(folders)["sides"]] == [3, 3]
    assert json.loads(folders)["differences"][0]["test"] == "Welch's t-test"


def test_the_page_shows_every_image_that_changed_sides(
    settings: Path, digits_run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    titles = list[Sequence[str]]()
    draw = figures.gallery

    def gallery(images: torch.Tensor, found: Sequence[str], columns: int) -> Figure:
        titles.append(found)
        return draw(images, found, columns)

    monkeypatch.setattr(figures, "gallery", gallery)
    status, out, _ = compare(capsys, digits_run, settings / "good" / "0", "-o", "two.html", "--json")
    assert status == 0
    (difference,) = json.loads(out)["differences"]
    assert [len(found) for found in titles] == [len(difference["only_other"]), len(difference["only_one"])]
    assert all(re.fullmatch(r"(\d) → (?!\1)\d", title) for found in titles for title in found)
    content = Path("two.html").read_text()
    assert difference["sentence"].replace("'", "&#x27;") in content
    assert content.count("data:image/png") == sum(map(bool, titles))
    status, _, err = compare(capsys, digits_run, settings / "good" / "0", "-o", "two.html")
    assert (status, "two.html: the file exists already" in err) == (1, True)


def test_the_page_of_settings_shows_every_run(settings: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = compare(capsys, settings / "good", settings / "bad", "-o", "seeds.html")
    assert status == 0
    assert out.endswith("written to seeds.html\n")
    content = Path("seeds.html").read_text()
    assert content.count("data:image/png") == 1
    assert "<h1>good and bad on digits</h1>" in content


def test_what_can_not_be_compared_is_refused_in_a_line(
    settings: Path, digits_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = settings / "good", settings / "bad"
    copy = noisy(good / "0", Path("copy").absolute(), 0, noise=0)
    Path("empty").mkdir()
    Path("cut.ckpt").write_bytes((good / "0/checkpoints/best.ckpt").read_bytes()[:2000])
    other_split = noisy(digits_run, Path("split").absolute(), 7)
    described = checkpoint.load(other_split)
    (other_split / "checkpoints/best.ckpt").unlink()
    checkpoint.save(
        other_split / "checkpoints/best.ckpt", replace(described, split={**described.split, "val_fraction": 0.3})
    )
    three = trained(["Flatten", {"Dense": {"units": "classes"}}], (1, 8, 8), ["x", "y", "z"], "digits")
    checkpoint.save(Path("three.ckpt"), three)
    checkpoint.save(Path("other.ckpt"), replace(checkpoint.load(digits_run), dataset="mnist"))
    for arguments, status, line in (
        ([good / "0"], 2, "there is nothing to compare it with: mnist-cnn compare RUN_A RUN_B"),
        ([good / "0", good / "0/checkpoints/best.ckpt"], 2, "are the same checkpoint, "),
        ([good, bad / "0", "--with", bad], 2, "are the same checkpoint, "),
        ([good / "0", copy, "--with", bad], 2, "have the same settings and the seed 0: they are one run"),
        ([good / "0", bad], 2, "is a single run, which can't be compared with several"),
        ([digits_run, "three.ckpt"], 2, r"other classes, 10 \(0, 1, 2, …\) and 3 \(x, y, z, …\)"),
        ([digits_run, "other.ckpt"], 2, r"was trained on digits, other.ckpt on mnist; .* --data NAME"),
        ([digits_run, other_split, "--split", "val"], 2, "split: its val images are not those of .*; --split test"),
        ([good, "empty"], 1, "empty: not a run folder"),
        ([digits_run, "cut.ckpt"], 1, "cut.ckpt: not a checkpoint, or truncated"),
        ([digits_run, "nowhere"], 1, "nowhere: no such file or folder"),
        ([digits_run, good / "0", "-o", "page.png"], 2, "the name must end in .html"),
    ):  # fmt: skip
        found, out, err = compare(capsys, *arguments)
        assert (found, out) == (status, ""), err
        assert re.search(line, err), err
        assert err.startswith("error: ")
        assert err.count("\n") == 1
    assert not Path("page.png").exists()


def test_what_a_reader_must_know_of_the_runs_is_told(
    settings: Path, digits_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stopped, killed = (noisy(digits_run, Path(name).absolute(), seed) for seed, name in ((5, "stopped"), (6, "killed")))
    (stopped / "metrics.json").write_text('{"interrupted": true}')
    (killed / "metrics.json").unlink()
    _, out, _ = compare(capsys, settings / "good/0", settings / "good/1")
    assert "0 and 1 have the same settings, except for the seed." in out
    _, out, _ = compare(capsys, settings / "good", "--with", settings / "bad/0", stopped, killed, "--json")
    notes = json.loads(out)["notes"]
    assert [re.sub(".*/", "", note) for note in notes[1:]] == [
        "stopped: the run was interrupted; its accuracy is that of the epochs before.",
        "killed: it has no metrics.json, so the run was not finished; its accuracy is that of the epochs before.",
    ]
    assert "mixes runs of different settings (max_epochs" in notes[0]
    _, out, _ = compare(capsys, settings / "good", settings / "bad", "--json")
    assert json.loads(out)["notes"] == []
    _, out, _ = compare(capsys, settings / "good/0", settings / "bad/0", settings / "bad/1")
    assert "note: Holm's method corrects the p-values together" in out


def test_failed_runs_of_a_side_are_told(digits_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in range(2):
        for side in ("one", "other"):
            noisy(digits_run, Path(side, str(seed)).absolute(), seed, max_epochs=3 if side == "one" else 4)
    for failed in ("one/2", "one/3", "other/2"):
        Path(failed).mkdir()
        Path(failed, "error.txt").write_text("no images")
    _, out, _ = compare(capsys, "one", "other", "--json")
    assert json.loads(out)["notes"] == [
        "one: 2 of its 4 runs failed and are left out.",
        "other: 1 of its 3 runs failed and is left out.",
    ]


def test_a_failed_run_beside_those_of_a_side_is_not_its_own(
    digits_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in range(2):
        for side in ("one", "other"):
            noisy(digits_run, Path("sweep", f"{side}_{seed}").absolute(), seed, max_epochs=3 if side == "one" else 4)
    Path("sweep/third_0").mkdir()
    Path("sweep/third_0/error.txt").write_text("no images")
    one, other = (["sweep/one_0", "sweep/one_1"], ["sweep/other_0", "sweep/other_1"])
    _, out, _ = compare(capsys, *one, "--with", *other, "--json")
    assert json.loads(out)["notes"] == []


@pytest.mark.parametrize("channels", [1, 3])
def test_networks_of_ones_own_pictures_may_take_other_sizes(channels: int, capsys: pytest.CaptureFixture[str]) -> None:
    make("shades", ("dark", "light", "$x<b>"))
    for size in (8, 12):
        layers = ["Flatten", {"Dense": {"units": "classes"}}]
        preprocessing = Preprocessing(size=(size, size))
        made = trained(layers, (channels, size, size), ("$x<b>", "dark", "light"), "folder:shades", preprocessing)
        checkpoint.save(Path(f"{size}.ckpt"), made)
    status, out, err = compare(capsys, "8.ckpt", "12.ckpt", "--data-root", "shades", "-o", "page.html", "--json")
    assert (status, err) == (0, "")
    assert json.loads(out)["dataset"] == "folder:shades"
    content = Path("page.html").read_text()
    assert "$x<b>" not in content
    assert ('class="drawn"' in content) == (channels == 1)
