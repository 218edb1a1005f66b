"""`mnist-cnn predict`: a digit keeps its class wherever it stands, at any size, dark on light or light on dark."""

import dataclasses
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from mnist_cnn.cli import main
from mnist_cnn.data import datasets, reading
from mnist_cnn.data.images import Preprocessing
from mnist_cnn.data.reading import MAX_PIXELS, read
from mnist_cnn.errors import CheckpointError, DataError
from mnist_cnn.inference import checkpoint
from mnist_cnn.inference.pictures.prepare import Placing, to_images
from mnist_cnn.inference.predict import Prediction, predict
from mnist_cnn.network import build_network

SHAPE = (1, 28, 28)


def stroke(thickness: int = 3) -> Tensor:
    """A 7 of 20×12 pixels in an image of 28×28, light on dark, in [0, 1]."""
    canvas = torch.zeros(28, 28)
    canvas[4 : 4 + thickness, 8:20] = 1
    for row in range(20):
        left = 17 - row // 3
        canvas[4 + row, left : left + thickness] = 1
    return canvas


def picture(grey: Tensor) -> Image.Image:
    return Image.fromarray((255 * grey).round().numpy().astype(np.uint8)).convert("RGBA")


def to_image(shown: Image.Image, placing: Placing = "fit", shape: tuple[int, int, int] = SHAPE) -> Tensor:
    """The image of the one digit in a picture."""
    (((image, _),),) = to_images(shown, shape, placing)
    return image


def trained_on(grey: Tensor) -> Tensor:
    return to_image(picture(grey)).float() / 255


def probabilities(found: Prediction) -> dict[str, float]:
    """The probabilities of the classes of the one digit in a picture."""
    (digit,) = found.digits
    return digit.probabilities


def difference(one: Tensor, other: Tensor) -> float:
    """The mean difference between two pixels, relative to the mean ink."""
    return float((one - other).abs().mean() / one.mean())


WANTED = trained_on(stroke())


def test_a_digit_that_is_placed_as_in_mnist_hardly_changes() -> None:
    (rows, columns) = ((WANTED[0] > 0.2).any(dim).nonzero().flatten() for dim in (1, 0))
    assert int(rows[-1] - rows[0] + 1) == 20
    assert int(columns[-1] - columns[0] + 1) < 20
    middle = (WANTED[0].sum(1) * torch.arange(28)).sum() / WANTED.sum()
    assert float(middle) == pytest.approx(13.5, abs=0.6)
    assert difference(trained_on(WANTED[0]), WANTED) < 0.15


@pytest.mark.parametrize("shift", [(-3, -5), (3, 7)])
def test_position_color_and_size_make_no_difference(shift: tuple[int, int]) -> None:
    moved = torch.roll(stroke(), shift, (0, 1))
    assert torch.equal(trained_on(moved), WANTED)
    assert difference(trained_on(1 - moved), WANTED) < 0.01
    assert difference(trained_on(0.55 - 0.3 * moved), WANTED) < 0.05  # a pencil on grey paper
    large = moved.repeat_interleave(9, 0).repeat_interleave(9, 1)
    assert difference(trained_on(large), WANTED) < 0.1
    wide = torch.zeros(300, 500)
    wide[20:272, 40:292] = large
    assert difference(trained_on(wide), WANTED) < 0.1


def test_uneven_light_on_the_paper_is_no_ink() -> None:
    light = torch.linspace(0.55, 0.95, 28).expand(28, 28)
    assert difference(trained_on(light - 0.45 * stroke()), WANTED) < 0.1


@pytest.mark.parametrize("drawn", [0, 255])
def test_transparent_pixels_are_paper(drawn: int) -> None:
    values = np.full((28, 28, 4), drawn, np.uint8)
    values[..., 3] = (255 * stroke()).numpy()
    found = to_image(Image.fromarray(values, "RGBA")).float() / 255
    assert difference(found, WANTED) < 0.01


@pytest.mark.parametrize("ink", [(0, 0, 0), (255, 255, 255), (200, 30, 60), (128, 128, 128)])
@pytest.mark.parametrize("size", [(6, 60), (60, 6)], ids=["upright", "level"])
def test_a_straight_stroke_on_a_transparent_background_is_seen(
    ink: tuple[int, int, int], size: tuple[int, int]
) -> None:
    drawing = Image.new("RGBA", (100, 100))
    drawing.paste((*ink, 255), (20, 20, 20 + size[0], 20 + size[1]))
    found = to_image(drawing, "auto")[0] > 128
    sides = [int(found.any(dim).sum()) for dim in (0, 1)]
    assert max(sides) == 20
    assert min(sides) <= 4
    assert sides.index(20) == size.index(60)


def test_a_transparent_margin_is_cropped() -> None:
    values = np.zeros((60, 50, 4), np.uint8)
    values[10:38, 12:40] = np.array(picture(1 - stroke()))
    found = to_image(Image.fromarray(values, "RGBA")).float() / 255
    assert difference(found, WANTED) < 0.01


def test_a_small_digit_on_a_large_sheet_with_a_speck_of_dust_is_found() -> None:
    sheet = torch.full((900, 700), 0.9)
    sheet[300:384, 500:584] -= 0.6 * stroke().repeat_interleave(3, 0).repeat_interleave(3, 1)
    sheet[40:45, 60:64] = 0.2
    assert difference(trained_on(sheet), WANTED) < 0.15


@pytest.mark.parametrize("shape", [(1, 28, 10), (1, 10, 28), (1, 2000, 2000)])
def test_a_digit_fits_into_an_image_of_any_shape(shape: tuple[int, int, int]) -> None:
    image = to_image(picture(stroke()), "fit", shape)
    assert image.shape == shape
    assert image.max() == 255


def test_thin_strokes_become_as_wide_as_in_mnist() -> None:
    thin = trained_on(stroke(1).repeat_interleave(8, 0).repeat_interleave(8, 1))
    assert 0.6 < float(thin.sum() / WANTED.sum()) < 1.1


def test_pictures_for_color_networks_and_of_other_things_are_only_resized() -> None:
    red = Image.new("RGBA", (64, 40), (255, 0, 0, 255))
    assert torch.equal(to_image(red, "auto", (3, 32, 32))[:, 7, 9], torch.tensor([255, 0, 0], dtype=torch.uint8))
    shirt = torch.zeros(1, 28, 28, dtype=torch.uint8)
    shirt[:, 3:25, 4:24] = torch.randint(0, 256, (22, 20))
    grey = shirt[0].float() / 255
    assert torch.equal(to_image(picture(grey), "as-is"), shirt)
    assert torch.equal(to_image(picture(1 - grey), "as-is"), shirt)


@pytest.fixture
def placed() -> Tensor:
    """An image like MNIST's, uint8 (1, 28, 28), with soft edges, as an enlarged digit becomes."""
    return to_image(picture(stroke()).resize((280, 280), Image.Resampling.BICUBIC))


def test_an_image_that_is_placed_as_in_mnist_is_taken_as_it_is(placed: Tensor) -> None:
    grey = placed[0].float() / 255
    assert torch.equal(to_image(picture(grey), "auto"), placed)
    assert torch.equal(to_image(picture(1 - grey), "auto"), placed)  # printed on paper
    assert not torch.equal(to_image(picture(grey), "fit"), placed)
    larger = to_image(picture(grey), "auto", (1, 32, 32))
    assert torch.equal(larger, to_image(picture(grey), "as-is", (1, 32, 32)))


@pytest.mark.parametrize("change", ["moved", "smaller", "on grey", "hard edges", "in a corner of a larger picture"])
def test_an_image_that_differs_from_mnists_is_cut_out_and_centred(change: str, placed: Tensor) -> None:
    grey = placed[0].float() / 255
    match change:
        case "moved":
            grey = grey.roll((2, 3), (0, 1))
        case "smaller":
            grey = (
                torch.nn.functional.pad(
                    torch.from_numpy(np.array(picture(grey).convert("L").resize((22, 22)))), (3,) * 4
                )
                / 255
            )
        case "on grey":
            grey = 0.3 + 0.7 * grey
        case "hard edges":
            grey = (grey > 0.3).float()
        case _:
            grey = torch.nn.functional.pad(grey, (0, 12, 0, 12))
    found = to_image(picture(grey), "auto")
    assert torch.equal(found, to_image(picture(grey), "fit"))
    assert difference(found / 255, placed / 255) < 0.35


def test_as_is_takes_the_whole_of_every_picture() -> None:
    two = torch.cat([stroke(), torch.zeros(28, 28), stroke()], 1)
    wanted = np.array(Image.fromarray((255 * two).numpy().astype(np.uint8)).resize((28, 28), Image.Resampling.BILINEAR))
    assert difference(to_image(picture(two), "as-is") / 255, torch.from_numpy(wanted)[None] / 255) < 0.05
    assert not to_image(picture(torch.zeros(40, 40)), "as-is").any()


def test_the_centre_of_mass_is_where_mnist_has_it() -> None:
    """Between the middle and one pixel below and to the right of it, as in MNIST."""
    for shift in range(0, 9, 2):
        image = trained_on(torch.roll(stroke().repeat_interleave(3, 0).repeat_interleave(3, 1), shift, 0))
        for dim in (1, 2):
            ink = image.sum(3 - dim)[0]
            middle = float((ink * (torch.arange(28) + 0.5)).sum() / ink.sum())
            assert 14 <= middle <= 15


def test_a_faint_pencil_gives_as_much_ink_as_a_pen() -> None:
    """Its strokes are fainter than its darkest grains."""
    large = stroke().repeat_interleave(6, 0).repeat_interleave(6, 1)
    grains = 0.25 + 0.05 * torch.rand(large.shape, generator=torch.Generator().manual_seed(0))
    grains[::40, ::3] = 0.7
    assert difference(trained_on(0.85 - large * grains), WANTED) < 0.15


def test_a_blank_picture_is_refused() -> None:
    with pytest.raises(DataError, match="nothing to see"):
        trained_on(torch.full((40, 40), 0.9))


def test_sixteen_bits_and_a_rotation_in_the_exif_data_are_understood(tmp_path: Path) -> None:
    deep = tmp_path / "deep.png"
    Image.fromarray((65535 * stroke()).numpy().astype(np.uint16)).save(deep)
    found = to_image(read(deep, "deep")).float() / 255
    assert difference(found, WANTED) < 0.01
    turned, exif = tmp_path / "turned.jpg", Image.Exif()
    exif[0x0112] = 6  # rotate by 90° clockwise to display
    lying = torch.rot90(stroke().repeat_interleave(9, 0).repeat_interleave(9, 1))
    picture(lying).convert("RGB").save(turned, exif=exif, quality=95)
    found = to_image(read(turned, "turned")).float() / 255
    assert difference(found, WANTED) < 0.15


def test_files_that_are_not_pictures_or_too_large_are_refused(tmp_path: Path) -> None:
    text, cut, bomb = (tmp_path / name for name in ("text.png", "cut.png", "bomb.png"))
    text.write_text("not a picture")
    buffer = io.BytesIO()
    picture(torch.rand(60, 60)).save(buffer, "PNG")
    cut.write_bytes(buffer.getvalue()[:2000])
    Image.new("1", (10_000, MAX_PIXELS // 10_000 + 1)).save(bomb)
    for file, says in ((text, "not a picture"), (cut, "not a picture"), (bomb, "pixels"), (tmp_path / "x", "no such")):
        with pytest.raises(DataError, match=says):
            read(file, str(file))
    with pytest.raises(DataError, match="not a picture"):
        read(b"", "-")


# --- the command ---


@pytest.fixture
def sevens(tmp_path: Path) -> Path:
    folder = tmp_path / "sevens"
    folder.mkdir()
    picture(stroke()).save(folder / "a.png")
    picture(1 - stroke()).convert("RGB").save(folder / "b.JPG", "JPEG")
    (folder / "notes.txt").write_text("not a picture, and skipped")
    return folder


def test_most_test_images_saved_as_pictures_keep_their_prediction(digits_run: Path, tmp_path: Path) -> None:
    trained, images = checkpoint.load(digits_run), datasets.load("digits", "data").test
    for index in range(50):
        Image.fromarray(images.images[index, 0].numpy()).save(tmp_path / f"{index:02d}.png")
    seen = [found.digit for found in predict(trained, [tmp_path])]
    known = trained.network(trained.preprocessing(images.images[:50])).argmax(1).tolist()
    # Not all: some are not placed as in MNIST, and predict scales and centres them.
    assert sum(one == str(other) for one, other in zip(seen, known, strict=True)) >= 35


def test_each_picture_gets_a_json_object_even_after_one_that_fails(
    digits_run: Path, sevens: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (sevens / "aa.png").write_text("no picture")
    (sevens / "empty").mkdir()
    assert main(["predict", str(digits_run), str(sevens / "empty"), str(sevens), "--json"]) == 1
    empty, one, bad, other = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert [Path(found["file"]).name for found in (empty, one, bad, other)] == ["empty", "a.png", "aa.png", "b.JPG"]
    assert set(bad) == set(empty) == {"file", "error"}
    assert one["probability"] == one["probabilities"][one["digit"]] == max(one["probabilities"].values())
    assert sum(one["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    assert one["digit"] == other["digit"]


@pytest.fixture
def many(tmp_path: Path) -> list[Path]:
    """150 different digits, so several batches."""
    for index, image in enumerate(datasets.load("digits", "data").test.images[:150]):
        Image.fromarray(image[0].numpy()).save(tmp_path / f"{index:03d}.png")
    return sorted(tmp_path.glob("*.png"))


def test_only_one_way_to_place_digits_is_taken_and_only_where_there_are_digits(
    digits_run: Path, sevens: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as wrong:
        main(["predict", str(digits_run), str(sevens), "--as-is", "--fit"])
    assert wrong.value.code == 2
    assert "--fit: not allowed with argument --as-is" in capsys.readouterr().err
    clothing = dataclasses.replace(checkpoint.load(digits_run), dataset="fashion_mnist")
    with pytest.raises(CheckpointError, match="--fit: the network does not take digits"):
        next(predict(clothing, [sevens], "fit"))
    assert next(predict(clothing, [sevens])) == next(predict(clothing, [sevens], "as-is"))


def test_a_network_whose_images_are_padded_gets_digits_of_mnists_size(digits_run: Path, sevens: Path) -> None:
    """LeNet takes 32×32: an image of MNIST, 28×28, with a margin."""
    trained = checkpoint.load(digits_run)
    network = build_network(["Flatten", {"Dense": {"units": 10}}], (1, 32, 32)).eval()
    padded = dataclasses.replace(trained, network=network, preprocessing=Preprocessing(size=(32, 32)))
    (digit,) = next(predict(padded, [sevens])).digits
    assert digit.image.shape == SHAPE
    assert int((digit.image[0] > 50).any(1).sum()) == 20


@pytest.mark.parametrize(("option", "digits"), [([], 2), (["--fit"], 2), (["--as-is"], 1)])
def test_two_digits_are_one_picture_only_as_it_is(
    option: list[str], digits: int, digits_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture(torch.cat([stroke(), stroke()], 1)).save(tmp_path / "two.png")
    assert main(["predict", str(digits_run), str(tmp_path), "--json", *option]) == 0
    assert len(json.loads(capsys.readouterr().out)["digit"]) == digits


def test_every_picture_of_a_folder_gets_in_its_turn_what_it_gets_alone(digits_run: Path, many: list[Path]) -> None:
    trained = checkpoint.load(digits_run)
    alone = [next(predict(trained, [file])) for file in many]
    together = list(predict(trained, [many[0].parent]))
    assert [found.file for found in together] == [str(file) for file in many]
    for one, other in zip(alone, together, strict=True):
        assert list(probabilities(one)) == list(probabilities(other))
        assert [*probabilities(one).values()] == pytest.approx([*probabilities(other).values()], abs=1e-5)  # rounding


def test_a_picture_that_fails_changes_nothing_for_those_beside_it(
    digits_run: Path, many: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    trained, whole = checkpoint.load(digits_run), many[120]
    before = list(predict(trained, many))
    many[90].write_text("no picture")
    Image.new("L", (28, 28)).save(many[91])
    read = reading.read

    def without_memory(file: Path | bytes, name: str) -> Image.Image:
        if name == str(many[93]):
            raise MemoryError
        return read(file, name)

    def overflow(_: torch.nn.Module, inputs: tuple[Tensor], logits: Tensor) -> Tensor:
        return logits.masked_fill((inputs[0] == pixels).all((1, 2, 3))[:, None], torch.inf)

    pixels = trained.preprocessing(to_image(read(whole, ""), "auto"))
    monkeypatch.setattr(reading, "read", without_memory)
    trained.network.register_forward_hook(overflow)
    after = list(predict(trained, [*many[:100], Path("missing"), *many[100:]]))
    assert after.pop(100).error == "missing: no such file or directory."
    failed = {index: found.error for index, found in enumerate(after) if found.error}
    assert list(failed) == [90, 91, 93, 120]
    for error, says in zip(failed.values(), ("not a picture", "nothing to see", "memory", "not finite"), strict=True):
        assert says in str(error)
    for index, (one, other) in enumerate(zip(before, after, strict=True)):
        if index not in failed:
            assert [*probabilities(one).values()] == pytest.approx([*probabilities(other).values()], abs=1e-5)


def test_results_come_early_and_only_a_few_pictures_are_held(
    digits_run: Path, many: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    read, names = reading.read, list[str]()

    def counted(file: Path | bytes, name: str) -> Image.Image:
        names.append(name)
        return read(file, name)

    monkeypatch.setattr(reading, "read", counted)
    for given, _ in enumerate(predict(checkpoint.load(digits_run), many * 2)):
        assert len(names) <= min(2 * given + 1, given + 64)


def test_the_pictures_before_standard_input_are_classified_before_it_is_read(
    digits_run: Path, sevens: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    results = predict(checkpoint.load(digits_run), [sevens, sevens, Path("-"), sevens])
    assert [next(results).error for _ in range(4)] == [None] * 4
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO((sevens / "a.png").read_bytes())))
    assert [(Path(found.file).name, found.error) for found in results] == [
        ("-", None),
        ("a.png", None),
        ("b.JPG", None),
    ]


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["RUN"], 2, "no picture given"),
        (["RUN", "nowhere.png"], 1, "nowhere.png: no such file"),
        (["RUN", "."], 1, "a folder without pictures"),
        (["nowhere.ckpt", "x.png"], 1, "nowhere.ckpt: no such file"),
        (["RUN", ""], 2, "the name of a picture is empty"),
        ([""], 2, "the name of a picture is empty"),
        (["RUN", "/dev/zero"], 1, "/dev/zero: a folder, a pipe or a device, not a file"),
    ],
)
def test_a_users_mistake_gets_one_line_and_a_status(
    arguments: list[str], status: int, says: str, digits_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", *(str(digits_run) if argument == "RUN" else argument for argument in arguments)]) == status
    said = capsys.readouterr()
    assert says in said.err
    assert "Traceback" not in said.err
    assert said.out == ""


def test_a_picture_is_read_from_standard_input_without_importing_anything_slow(digits_run: Path, sevens: Path) -> None:
    program = f"import sys; from mnist_cnn.cli import main; main(['predict', {str(digits_run)!r}, '-', '--json'])\n"
    program += "heavy = {'lightning', 'torchvision', 'torchmetrics', 'hydra', 'matplotlib', 'sklearn'}\n"
    program += "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    command = [sys.executable, "-c", program]
    said = subprocess.run(command, input=(sevens / "a.png").read_bytes(), capture_output=True, check=False)
    assert said.returncode == 0
    assert said.stderr == b""
    assert json.loads(said.stdout)["file"] == "-"


def test_a_pipe_is_an_error_and_not_waited_for(
    digits_run: Path, sevens: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(sevens / "aa.png")
    assert main(["predict", str(digits_run), str(sevens), str(sevens / "aa.png")]) == 1
    said = capsys.readouterr()
    assert said.out.count("\n") == 2  # the pictures beside it
    assert said.err == f"error: {sevens / 'aa.png'}: a folder, a pipe or a device, not a file.\n" * 2


def test_pictures_whose_names_are_not_utf_8_are_classified_and_shown_as_escapes(
    digits_run: Path, sevens: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    strange = os.fsdecode(os.fsencode(sevens) + b"/\xff\x1b[31m.png")
    shutil.copy(sevens / "a.png", strange)
    shutil.copy(sevens / "notes.txt", strange.replace(".png", "2.png"))
    assert main(["predict", str(digits_run), str(sevens)]) == 1
    said = capsys.readouterr()
    assert "\\udcff\\x1b[31m.png" in said.out
    assert "\\udcff\\x1b[31m2.png: not a picture" in said.err
    assert "\x1b" not in said.out + said.err
    assert main(["predict", str(digits_run), str(sevens), "--json"]) == 1
    lines = capsys.readouterr().out.splitlines()
    names = {Path(json.loads(line)["file"]).name for line in lines}
    assert "\\udcff\x1b[31m.png" in names
    assert all("\\\\udcff" in line for line in lines if "dcff" in line)  # a text, not half a character


def test_standard_input_larger_than_the_limit_is_refused_not_cut(
    digits_run: Path, sevens: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = (sevens / "a.png").read_bytes()
    for limit, status in ((len(whole), 0), (len(whole) - 1, 1)):
        monkeypatch.setattr(reading, "MAX_BYTES", limit)
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(whole)))
        assert main(["predict", str(digits_run), "-"]) == status
    assert f"error: -: larger than the limit of {len(whole) - 1} bytes." in capsys.readouterr().err
    monkeypatch.setattr(sys, "stdin", None)
    assert main(["predict", str(digits_run), "-"]) == 1
    assert "error: -: standard input can't be read." in capsys.readouterr().err


def test_an_answer_that_is_no_number_is_an_error_of_that_picture(digits_run: Path, sevens: Path) -> None:
    trained = checkpoint.load(digits_run)
    for weight in trained.network.parameters():
        weight.fill_(3e38)
    for found in predict(trained, [sevens]):
        assert str(found.error).startswith(f"{found.file}: the network's outputs are not finite numbers")
        assert "nan" not in json.dumps(found.to_dict(), allow_nan=False).lower()


def test_predict_uses_the_last_epoch_where_the_best_checkpoint_is_damaged(
    digits_run: Path, sevens: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(digits_run, "runs/mine")
    (Path("runs/mine/checkpoints/best.ckpt")).write_text("damaged")
    assert main(["predict", "runs/mine", str(sevens / "a.png")]) == 0
    said = capsys.readouterr()
    assert said.err.startswith("warning: runs/mine/checkpoints/best.ckpt: ")
    assert said.err.endswith("Using the last epoch instead: runs/mine/checkpoints/last.ckpt\n")
    assert main(["predict", "runs/mine", str(sevens / "a.png")]) == 0
    assert capsys.readouterr().out == said.out
