"""`mnist-cnn predict` finds the digits of a number, and keeps the pieces of a broken digit together."""

import json
import math
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from mnist_cnn.cli import main
from mnist_cnn.errors import DataError, OutputError
from mnist_cnn.inference import checkpoint
from mnist_cnn.inference.pictures.prepare import Box, to_images
from mnist_cnn.inference.pictures.segments import MAX_DIGITS
from mnist_cnn.inference.predict import predict
from mnist_cnn.inference.sheet import write_sheet
from tests.test_predict import SHAPE, difference

Points = list[tuple[float, float]]

# Strokes in a square of side 1.
SEVEN: list[Points] = [[(0.2, 0.05), (0.8, 0.05), (0.4, 0.95)]]
ONE: list[Points] = [[(0.5, 0.05), (0.5, 0.95)]]
FOUR: list[Points] = [[(0.4, 0.05), (0.2, 0.6), (0.8, 0.6)], [(0.6, 0.3), (0.6, 0.95)]]
# Broken: a bar on its own, and a last stroke on its own.
FIVE_WITH_ITS_BAR_APART: list[Points] = [
    [(0.35, 0.05), (0.85, 0.05)],
    [(0.3, 0.2), (0.3, 0.5), (0.7, 0.55), (0.7, 0.9), (0.2, 0.95)],
]
FOUR_WITH_A_GAP: list[Points] = [
    [(0.4, 0.05), (0.2, 0.6), (0.75, 0.6)],
    [(0.62, 0.2), (0.62, 0.5)],
    [(0.62, 0.7), (0.62, 0.95)],
]


ZERO_WITH_A_SLASH: list[Points] = [
    [(0.5, 0.05), (0.2, 0.3), (0.2, 0.7), (0.5, 0.95), (0.8, 0.7), (0.8, 0.3), (0.5, 0.05)],
    [(0.57, 0.35), (0.43, 0.65)],
]


def sheet(width: int = 500, height: int = 200) -> Image.Image:
    return Image.new("L", (width, height), 240)


def write(on: Image.Image, digit: list[Points], left: float, top: float, side: float = 100, pen: int = 9) -> None:
    for stroke in digit:
        ImageDraw.Draw(on).line([(left + side * x, top + side * y) for x, y in stroke], 20, pen)


def boxes(picture: Image.Image) -> list[list[Box]]:
    return [[seen.box for seen in line] for line in to_images(picture.convert("RGBA"), SHAPE, "auto")]


def counts(picture: Image.Image) -> list[int]:
    return [len(line) for line in boxes(picture)]


def test_digits_are_found_from_left_to_right_where_they_are() -> None:
    page = sheet()
    write(page, SEVEN, 350, 60)
    write(page, FOUR, 50, 50)
    write(page, ONE, 200, 40, side=120)
    ((four, one, seven),) = boxes(page)
    for found, wanted in ((four, (70, 55, 130, 145)), (one, (256, 46, 264, 154)), (seven, (370, 65, 430, 155))):
        assert found == pytest.approx(wanted, abs=8)


def test_a_digit_of_a_number_looks_as_it_does_alone() -> None:
    page, alone = sheet(), sheet(200)
    write(page, SEVEN, 50, 50)
    write(page, FOUR, 130, 60)
    write(alone, FOUR, 40, 40)
    ((_, four),) = to_images(page.convert("RGBA"), SHAPE, "auto")
    ((wanted,),) = to_images(alone.convert("RGBA"), SHAPE, "auto")
    assert difference(four.image / 255, wanted.image / 255) < 0.03


def test_the_ink_of_a_neighbour_in_the_same_box_is_left_out() -> None:
    slanting: list[Points] = [[(0, 0.05), (1, 0.05), (0.2, 0.95)]]
    page, alone = sheet(), sheet()
    write(page, slanting, 50, 50)
    write(alone, slanting, 50, 50)
    write(page, ONE, 110, 70, side=90)  # begins under the bar of the 7
    ((seven, one),) = to_images(page.convert("RGBA"), SHAPE, "auto")
    ((wanted,),) = to_images(alone.convert("RGBA"), SHAPE, "auto")
    assert torch.equal(seven.image, wanted.image)
    assert one.box[0] < seven.box[2]
    columns = (one.image[0] > 50).any(0).nonzero()
    assert int(columns[-1] - columns[0]) < 5


def test_lines_are_found_from_top_to_bottom() -> None:
    page = sheet(height=400)
    for top, digits in ((30, 3), (150, 1), (280, 2)):
        for place in range(digits):
            write(page, FOUR, 40 + 110 * place, top + 10 * place)
    assert counts(page) == [3, 1, 2]


@pytest.mark.parametrize(
    "digit",
    [FIVE_WITH_ITS_BAR_APART, FOUR_WITH_A_GAP, ZERO_WITH_A_SLASH],
    ids=["a bar apart", "a gap in the last stroke", "a slash inside"],
)
@pytest.mark.parametrize(("side", "pen"), [(24, 3), (100, 5), (100, 12), (400, 20)])
def test_a_broken_digit_is_one_digit(digit: list[Points], side: int, pen: int) -> None:
    page = sheet(side * 2, side * 2)
    write(page, digit, side / 2, side / 2, side, pen)
    assert counts(page) == [1]
    number = sheet(side * 4, side * 2)
    for place in range(3):
        write(number, digit, side * (0.2 + 1.1 * place), side / 2, side, pen)
    assert counts(number) == [3]


def test_pieces_that_faint_ink_connects_are_one_digit() -> None:
    page = sheet()
    write(page, SEVEN, 50, 50)
    ImageDraw.Draw(page).rectangle((50, 95, 150, 125), 240)  # with nothing left in between, these are two lines
    assert counts(page) == [1, 1]
    trace = sheet()
    write(trace, SEVEN, 50, 50)
    weak = Image.blend(sheet(), trace, 0.2)
    page.paste(weak.crop((50, 95, 151, 126)), (50, 95))
    assert counts(page) == [1]


@pytest.mark.parametrize("gap", [1, 2], ids=["dashed", "dotted"])
def test_the_dashes_of_a_pen_are_one_digit(gap: int) -> None:
    page = np.array(sheet())
    for left in (50, 200):
        for angle in np.arange(0, 2 * math.pi, 0.12 * (1 + gap)):
            y, x = round(100 + 60 * math.sin(angle)), round(left + 45 + 35 * math.cos(angle))
            page[y - 3 : y + 4, x - 3 : x + 4] = 20
    assert counts(Image.fromarray(page)) == [2]


def test_specks_points_signs_and_underlines_are_no_digits() -> None:
    page = sheet()
    write(page, FOUR, 40, 40)
    write(page, SEVEN, 200, 40)
    pen = ImageDraw.Draw(page)
    pen.ellipse((320, 130, 330, 140), 20)  # a decimal point
    pen.line((140, 95, 185, 95), 20, 12)  # a minus sign
    pen.line((20, 165, 330, 165), 20, 6)
    for place in range(30):
        page.putpixel((330 + 5 * place, 20 + 4 * place), 20)
    assert counts(page) == [2]


def test_a_small_digit_beside_large_ones_that_touch_is_found() -> None:
    page = sheet()
    for left in (40, 90, 140):
        write(page, FOUR, left, 20, 150, 14)
    write(page, ONE, 280, 100, 70, 14)
    assert counts(page) == [2]


def test_digits_that_touch_are_one_answer() -> None:
    page = sheet()
    write(page, FOUR, 40, 40)
    write(page, FOUR, 95, 40)
    assert counts(page) == [1]


def test_boxes_are_in_pixels_of_the_picture_even_if_it_is_very_large() -> None:
    small, large = sheet(), sheet(5000, 2000)
    write(small, SEVEN, 350, 60)
    write(small, FOUR, 50, 50)
    write(large, SEVEN, 3500, 600, 1000, 90)
    write(large, FOUR, 500, 500, 1000, 90)
    for found, wanted in zip(boxes(large)[0], boxes(small)[0], strict=True):
        assert [side / 10 for side in found] == pytest.approx(list(wanted), abs=1.5)


@pytest.mark.parametrize("digits", [MAX_DIGITS, MAX_DIGITS + 1])
def test_so_many_digits_are_answered_and_no_more(digits: int) -> None:
    page = sheet(60 * 13, 70 * 6)
    for place in range(digits):
        write(page, SEVEN, 60 * (place % 12) + 10, 70 * (place // 12) + 5, 50, 5)
    if digits <= MAX_DIGITS:
        assert counts(page) == [12] * 5 + [4]
    else:
        with pytest.raises(DataError, match="more than 64 digits"):
            boxes(page)


@pytest.mark.parametrize("share", [0.0003, 0.01, 0.2, 0.5])
def test_noise_is_answered_or_refused_in_two_seconds(share: float) -> None:
    noise = np.random.default_rng(0).random((2000, 2000)) < share
    begin = time.process_time()
    try:
        assert boxes(Image.fromarray(noise))
    except DataError as error:
        assert "\n" not in str(error)  # noqa: PT017
    assert time.process_time() - begin < 2


# --- the command ---


@pytest.fixture
def number(tmp_path: Path) -> Path:
    page = sheet(height=300)
    for place, digit in enumerate((FOUR, SEVEN, ONE)):
        write(page, digit, 40 + 120 * place, 30)
    write(page, SEVEN, 60, 170)
    page.save(tmp_path / "number.png")
    return tmp_path / "number.png"


def test_a_number_is_answered_by_digit_and_line(
    digits_run: Path, number: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    single = tmp_path / "single.png"
    Image.open(number).crop((0, 0, 500, 150)).save(single)
    assert main(["predict", str(digits_run), str(number), "--json"]) == 0
    first, second = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert (first["line"], second["line"]) == (1, 2)
    assert len(first["digit"]) == len(first["digits"]) == len(first["probabilities"]) == 3
    assert first["digit"] == "".join(digit["digit"] for digit in first["digits"])
    assert first["probability"] == pytest.approx(math.prod(digit["probability"] for digit in first["digits"]))
    for digit, probabilities in zip(first["digits"], first["probabilities"], strict=True):
        assert digit["probability"] == probabilities[digit["digit"]] == max(probabilities.values())
        assert digit["box"] == sorted(digit["box"][::2])[:1] + digit["box"][1:]
    assert second["probability"] == second["probabilities"][second["digit"]]
    assert "digits" not in second
    assert all(found.line is None for found in predict(checkpoint.load(digits_run), [single]))
    assert main(["predict", str(digits_run), str(number)]) == 0
    first_line, second_line = capsys.readouterr().out.splitlines()
    assert first_line.startswith(f"{first['digit']} ")
    assert first_line.count("%") == 4
    assert "number.png, line 1 " in first_line
    assert "number.png, line 2   (then " in second_line


def test_more_digits_than_a_batch_are_answered_like_a_few(
    digits_run: Path, number: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = checkpoint.load(digits_run)
    together = list(predict(trained, [number] * 3))
    monkeypatch.setattr("mnist_cnn.inference.predict._BATCH", 2)
    for one, other in zip(predict(trained, [number] * 3), together, strict=True):
        assert one.digit == other.digit
        assert one.probability == pytest.approx(other.probability, abs=1e-5)


def test_show_draws_each_digit_under_the_name_of_its_file(
    digits_run: Path, number: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = tmp_path / "seen.png"
    assert main(["predict", str(digits_run), str(number), "missing.png", "--show", str(shown), "--json"]) == 1
    said = capsys.readouterr()
    assert f"what the network saw, 4 images, is in {shown}" in said.err
    assert all(json.loads(line) for line in said.out.splitlines())
    with Image.open(shown) as drawn:
        seen = torch.from_numpy(np.array(drawn.convert("L")))
    assert seen.shape[1] == 4 * 156
    digits = [digit for found in predict(checkpoint.load(digits_run), [number]) for digit in found.digits]
    for place, digit in enumerate(digits):
        enlarged = digit.image[0].repeat_interleave(5, 0).repeat_interleave(5, 1)
        assert torch.equal(seen[8:148, 156 * place + 8 : 156 * place + 148], enlarged)
        assert bool((seen[150:, 156 * place : 156 * (place + 1)] < 100).any())


@pytest.mark.parametrize(
    ("name", "status", "says"),
    [
        ("there.png", 1, "exists already"),
        ("seen.jpg", 2, "name it seen.png"),
        ("no/seen.png", 1, "there is no folder no"),
    ],
)
def test_show_never_replaces_a_file_and_says_so_before_it_reads_pictures(
    name: str, status: int, says: str, digits_run: Path, number: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("there.png").write_text("mine")
    assert main(["predict", str(digits_run), str(number), "--show", name]) == status
    said = capsys.readouterr()
    assert said.out == ""
    assert says in said.err
    assert said.err.count("\n") == 1
    assert Path("there.png").read_text() == "mine"


def test_a_file_that_appears_meanwhile_is_not_replaced(digits_run: Path, number: Path) -> None:
    Path("seen.png").write_text("mine")
    with pytest.raises(OutputError, match="exists already"):
        write_sheet(Path("seen.png"), list(predict(checkpoint.load(digits_run), [number])))
    assert Path("seen.png").read_text() == "mine"


def test_without_an_image_nothing_is_shown(digits_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(digits_run), "missing.png", "--show", "seen.png"]) == 1
    assert not Path("seen.png").exists()
    assert "seen.png" not in capsys.readouterr().err
