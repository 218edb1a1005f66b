"""Images of the user's own: a folder of pictures for each class, or arrays in an npz file."""

import json
import os
import pickle
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mnist_cnn.cli import main
from mnist_cnn.data import datasets, folder, npz
from mnist_cnn.data.datasets import DataFiles, Dataset
from mnist_cnn.data.reading import as_image, read
from mnist_cnn.errors import DataError
from mnist_cnn.inference import checkpoint
from tests.conftest import metrics, train_command

SHADES = {"dark": 40, "light": 200, "middle": 120}
Arrays = dict[str, Any]


def draw(file: Path, shade: int | tuple[int, ...], size: tuple[int, int] = (9, 7)) -> None:
    """A noisy picture of one shade or colour."""
    rng = np.random.default_rng(len(file.name) + hash(shade) % 1000)
    channels = (3,) if isinstance(shade, tuple) else ()
    values = np.clip(shade + rng.normal(0, 5, (*size, *channels)), 0, 255).astype(np.uint8)
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(file)


def make(root: str, classes: Sequence[str] = tuple(SHADES), count: int = 20) -> Path:
    """A folder with pictures of classes that differ in brightness."""
    for name in classes:
        for number in range(count):
            draw(Path(root, name, f"{number}.png"), SHADES.get(name, 90))
    return Path(root)


def load(root: Path, shape: tuple[int, int, int] = (1, 8, 8)) -> Dataset:
    return datasets.load("folder", root, datasets.source_of(DataFiles("folder", root), shape))


def arrays(**changes: Any) -> Arrays:
    """60 + 12 images of three classes, as in an npz file; a change to None leaves an array out."""
    images = np.random.default_rng(0).integers(0, 256, (60, 8, 6), np.uint8)
    labels = np.arange(60) % 3
    made = {"x_train": images, "y_train": labels, "x_test": images[:12], "y_test": labels[:12], **changes}
    return {key: array for key, array in made.items() if array is not None}


def saved(**changes: Any) -> Path:
    np.savez("own.npz", **arrays(**changes))
    return Path("own.npz")


# --- a run, from the pictures to the answers ----------------------------------------------------------------------

TRAIN = ("model=tiny", "trainer=cpu", "trainer.max_epochs=8", "data.batch_size=8", "optimizer.lr=0.003")


def test_a_folder_is_trained_on_evaluated_and_predicted_by_the_names_of_its_classes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    make("my shades=1")
    outcome = train_command(*TRAIN, "data=folder", "data.root=my shades=1", "run_dir=run")
    assert outcome.status == 0, outcome.err
    found = metrics(Path("run"))
    assert found["dataset"] == "folder:my shades=1"
    assert found["test/accuracy"] == 1.0
    assert "mnist-cnn evaluate run --data-root 'my shades=1'" in outcome.out
    trained = checkpoint.load("run")
    assert trained.classes == ("dark", "light", "middle")
    assert trained.network.output_shape == (3,)

    assert main(["evaluate", "run", "--data-root", "my shades=1", "--json"]) == 0
    evaluated = json.loads(capsys.readouterr().out)
    assert (evaluated["accuracy"], evaluated["total"]) == (1.0, 12)
    assert main(["evaluate", "run"]) == 2
    assert "folder:my shades=1: say where these images are: --data-root FOLDER" in capsys.readouterr().err
    assert main(["export", "run", "--format", "pt2", "--data-root", "."]) == 1  # not checked on random images instead
    assert list(Path().glob("*.pt2")) == []

    assert main(["predict", "run", "my shades=1/light/3.png", "my shades=1/dark/4.png", "--json"]) == 0
    answers = [json.loads(line)["digit"] for line in capsys.readouterr().out.splitlines()]
    assert answers == ["light", "dark"]  # whole pictures, not inverted


def test_a_folder_in_colour_brings_three_channels_and_its_size() -> None:
    for name, colour in (("blue", (60, 60, 200)), ("red", (200, 60, 60))):
        for number in range(12):
            draw(Path("colours", name, f"{number}.jpg"), colour)
    settings = ("data=folder", "data.root=colours", "data.color=true", "data.size=12", "data.val_fraction=0.2")
    outcome = train_command(*TRAIN, "model=mlp", *settings, "run_dir=run")
    assert outcome.status == 0, outcome.err
    assert metrics(Path("run"))["test/accuracy"] == 1.0
    assert checkpoint.load("run").network.input_shape == (3, 12, 12)


def test_an_npz_file_is_trained_on_and_evaluated(capsys: pytest.CaptureFixture[str]) -> None:
    np.savez("a = b, c.npz", **arrays())
    outcome = train_command(*TRAIN, "model=mlp", "data=npz", "data.file=a = b, c.npz", "run_dir=run")
    assert outcome.status == 0, outcome.err
    assert metrics(Path("run"))["dataset"] == "npz:a = b, c.npz"
    assert "mnist-cnn evaluate run --data-file 'a = b, c.npz'" in outcome.out
    assert main(["evaluate", "run", "--data-file", "a = b, c.npz", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["accuracy"] == metrics(Path("run"))["test/accuracy"]
    assert main(["evaluate", "run"]) == 2
    assert "say where these images are: --data-file FILE.npz" in capsys.readouterr().err


def test_a_run_goes_on_with_the_same_pictures_only(capsys: pytest.CaptureFixture[str]) -> None:
    make("shades")
    assert train_command(*TRAIN, "data=folder", "data.root=shades", "trainer.max_epochs=1", "run_dir=run").status == 0
    os.rename("shades", "moved")
    same = train_command("resume=run", "trainer.max_epochs=2", "model=tiny", "data=folder", "data.root=moved")
    assert same.status == 0, same.err
    draw(Path("moved/dark/new.png"), 40)
    changed = train_command("resume=run", "trainer.max_epochs=3", "data.root=moved")
    assert changed.status == 1
    assert "error: resume=run: the images have changed (" in changed.err
    assert metrics(Path("run"))["epochs"] == 2
    assert main(["evaluate", "run", "--data-root", "moved"]) == 0
    assert "note: the images have changed since the network was trained" in capsys.readouterr().err


def test_another_network_is_evaluated_on_a_folder_by_the_names_of_its_classes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    test = datasets.load("mnist_5k", "data").test
    for name in ("3", "7"):
        for number, image in enumerate(test.images[test.labels == int(name)][:20]):
            file = Path("some", name, f"{number}.png")
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image[0].numpy()).save(file)
    assert main(["evaluate", "tiny_strong", "--data", "folder", "--data-root", "some", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["total"] == 8
    assert [row["support"] for row in found["per_class"]] == [0, 0, 0, 4, 0, 0, 0, 4, 0, 0]
    assert found["accuracy"] > 0.5  # 0.1 by guessing, and 0 with classes 0 and 1 in their places
    os.rename("some/7", "some/seven")
    assert main(["evaluate", "tiny_strong", "--data", "folder", "--data-root", "some"]) == 1
    assert "the network does not know its class seven" in capsys.readouterr().err


def test_classes_that_only_their_position_matches_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    saved_network = replace(checkpoint.load("tiny_strong"), classes=tuple("abcdefghij"), dataset="my own")
    checkpoint.save(Path("letters.ckpt"), saved_network)
    assert main(["evaluate", "letters.ckpt", "--data", "digits"]) == 0
    assert "note: classes are matched by position, not by name: 0 of digits counts as a\n" in capsys.readouterr().err
    assert main(["evaluate", "tiny_strong", "--data", "digits"]) == 0
    assert "by position" not in capsys.readouterr().err


def test_a_network_of_digits_in_a_folder_finds_them_in_a_picture(capsys: pytest.CaptureFixture[str]) -> None:
    digits = datasets.load("mnist_5k", "data").train
    for number, (image, label) in enumerate(zip(digits.images[:600, 0], digits.labels[:600].tolist(), strict=True)):
        file = Path("digits", str(label), f"{number}.png")
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.numpy()).save(file)
    settings = ("model=mlp", "trainer=cpu", "trainer.max_epochs=6", "data.batch_size=16", "run_dir=run")
    assert train_command(*settings, "data=folder", "data.root=digits").status == 0
    paper = Image.new("L", (160, 80), 255)
    for place, index in ((10, 1), (90, 7)):  # the images are 0, 1, 2 … in turn
        paper.paste(Image.fromarray(255 - digits.images[index, 0].numpy()).resize((60, 60)), (place, 10))
    paper.save("number.png")
    assert main(["predict", "run", "number.png", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["digit"]) == 2
    assert main(["predict", "run", "number.png", "--as-is", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["digit"]) == 1


def test_a_network_with_classes_to_spare_is_not_trained_further_under_wrong_names(digits_run: Path) -> None:
    make("shades")
    outcome = train_command("data=folder", "data.root=shades", f"model.init_from={digits_run}")
    assert outcome.status == 2
    assert "its network has 10 classes and folder:shades has 3" in outcome.err


# --- how a folder is read -----------------------------------------------------------------------------------------


def test_classes_are_in_natural_order_and_hidden_folders_are_none() -> None:
    make("numbers", ("10", "9", "b2", "b10", ".ipynb_checkpoints", "__MACOSX"), count=2)
    assert load(Path("numbers")).classes == ("9", "10", "b2", "b10")


def hash_of_name(file: Path) -> str:
    return sha256(f"{file.parent.name}/{file.name}".encode()).hexdigest()


def test_a_fifth_of_each_class_is_for_testing_and_stays_so_when_pictures_are_added() -> None:
    for number in range(50):
        draw(Path("a", "one", f"{number}.png"), number, (8, 8))
        draw(Path("a", "two", f"{number}.png"), number + 100, (8, 8))

    def test_images() -> set[bytes]:
        return {image.numpy().tobytes() for image in load(Path("a")).test.images}

    dataset, before = load(Path("a")), test_images()
    assert dataset.test.labels.bincount().tolist() == [10, 10]
    assert dataset.train.labels.bincount().tolist() == [40, 40]
    assert not before & {image.numpy().tobytes() for image in dataset.train.images}
    assert dataset.train.labels[-20:].bincount().tolist() != [0, 20]  # mixed: the last part is for validation
    chosen = sorted((Path("a", "one", f"{number}.png") for number in range(50)), key=hash_of_name)[:10]
    assert {as_image(read(file, ""), (1, 8, 8)).tobytes() for file in chosen} <= before  # for any seed and version
    draw(Path("a", "one", "new.png"), 99, (8, 8))
    assert len(before & test_images()) >= 19


def test_train_and_test_folders_are_taken_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    make("own/train", count=6)
    make("own/test", count=2)
    make("own/val", count=2)
    dataset = load(Path("own"))
    assert dataset.train.labels.bincount().tolist() == [6, 6, 6]
    assert dataset.test.labels.bincount().tolist() == [2, 2, 2]
    assert capsys.readouterr().err == "note: own: only train and test are used, not val\n"


def test_a_picture_is_stretched_and_keeps_its_brightness_and_white_shows_through() -> None:
    half = Image.new("RGBA", (40, 20), (0, 0, 0, 255))
    half.paste((255, 0, 0, 255), (0, 0, 20, 20))
    half.putpixel((39, 19), (0, 0, 0, 0))
    half.save("half.png")
    colour = as_image(read(Path("half.png"), ""), (3, 20, 40))
    assert colour.shape == (3, 20, 40)
    assert colour[:, 3, 3].tolist() == [255, 0, 0]
    assert colour[:, 19, 39].tolist() == [255, 255, 255]
    grey = as_image(read(Path("half.png"), ""), (1, 10, 10))
    assert grey.shape == (1, 10, 10)
    assert [int(grey[0, 2, 1]), int(grey[0, 2, 7])] == [76, 0]


def test_pictures_that_can_not_be_read_are_counted_and_named(capsys: pytest.CaptureFixture[str]) -> None:
    root = make("shades")
    (root / "dark/3.png").write_bytes((root / "dark/3.png").read_bytes()[:50])
    (root / "light/text.png").write_text("text")
    os.mkfifo(root / "dark/pipe.png")
    os.symlink("loop.png", root / "dark/loop.png")
    dataset = load(root)
    assert len(dataset.train) + len(dataset.test) == 59
    said = capsys.readouterr().err
    assert said.startswith("warning: shades: 4 of 63 pictures can't be read and are left out: ")
    assert said.count("\n") == 1
    assert "; and 1 more" in said


def break_class(root: Path) -> None:
    for file in (root / "light").iterdir():
        file.write_bytes(b"x")


def one_picture(root: Path) -> None:
    for file in list((root / "light").iterdir())[1:]:
        file.unlink()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda root: (root / "empty").mkdir(), r"shades/empty: a folder without pictures"),
        (break_class, r"shades/light: none of its pictures can be read: light/\d+.png: not a picture"),
        (one_picture, r"shades/light: one picture; at least 2"),
        (lambda root: (root / "light").rename("light"), r"at least 2 class folders are needed; found only one, dark\."),
        (lambda root: (root / "light").rename(root / "l\x1b[31m"), r"shades: its folder l\\x1b\[31m must be renamed"),
        (lambda root: (root / "light").rename(root / "l\udcff"), r"shades: its folder l\\udcff must be renamed"),
        (lambda root: make("shades/train", count=2), r"there is a folder train but no test"),
    ],
)
def test_a_folder_that_is_no_data_set_is_refused(change: Any, says: str) -> None:
    root = make("shades", ("dark", "light"), count=4)
    change(root)
    with pytest.raises(DataError, match=says):
        load(root)


def test_a_folder_that_is_missing_a_file_or_too_large_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"^nowhere: no such file or directory\.$"):
        load(Path("nowhere"))
    Path("file").touch()
    with pytest.raises(DataError, match=r"^file: not a directory\.$"):
        load(Path("file"))
    make("both/train", ("a", "b"), count=1)
    make("both/test", ("a", "c"), count=1)
    with pytest.raises(DataError, match="train and test have different classes: b is in only one of them"):
        load(Path("both"))
    monkeypatch.setattr(folder, "MAX_BYTES", 60 * 8 * 8 - 1)
    with pytest.raises(DataError, match=r"60 pictures of 1×8×8 take 0\.0 GB of memory; the limit is"):
        load(make("shades"))
    monkeypatch.setattr(folder, "MAX_CLASSES", 2)
    with pytest.raises(DataError, match="3 folders; the limit is 2 classes"):
        load(Path("shades"))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["data=folder"], "data.root: name the folder that has your pictures"),
        (["data=npz"], "data.file: name the file that has your images"),
        (["data=digits", "data.size=32"], "data.size=32: only data=folder takes it, not data=digits."),
        (["data=digits", "data.color=false"], "data.color=false: only data=folder takes it"),
        (["data=digits", "data.file=x.npz"], "data.file=x.npz: only data=npz takes it"),
        (["data=folder", "data.root=x", "data.size=0"], "data.size=0: it must lie between 1 and 2048"),
    ],
)
def test_a_setting_that_is_missing_or_of_another_data_set_is_refused(settings: list[str], says: str) -> None:
    outcome = train_command(*settings)
    assert outcome.status == 2
    assert says in outcome.err


# --- how an npz file is read --------------------------------------------------------------------------------------


def npz_dataset(file: Path) -> Dataset:
    return datasets.load("npz", "", datasets.source_of(DataFiles("npz", file=file)))


def test_images_and_labels_are_read_in_every_shape_and_type_that_keras_users_have() -> None:
    plain = npz_dataset(saved())
    assert plain.classes == ("0", "1", "2")
    assert plain.train.images.shape == (60, 1, 8, 6)
    fractions, whole = {}, {}
    for key, array in arrays().items():
        fractions[key] = (array / 255)[..., None] if key.startswith("x") else array[:, None].astype(np.uint8)
        whole[key] = array.astype(np.int64)
    for changed in (fractions, whole):
        same = npz_dataset(saved(**changed))
        assert torch.equal(same.train.images, plain.train.images)
        assert torch.equal(same.test.labels, plain.test.labels)
    colour = {key: np.stack([arrays()[key]] * 2 + [arrays()[key] // 2], -1) for key in ("x_train", "x_test")}
    red_green_blue = npz_dataset(saved(**colour)).train.images
    assert torch.equal(red_green_blue[:, 1], plain.train.images[:, 0])
    assert torch.equal(red_green_blue[:, 2], plain.train.images[:, 0] // 2)


X, Y = arrays()["x_train"], arrays()["y_train"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"x_test": None, "y_test": None}, "it has x_train, y_train, but no x_test, y_test"),
        ({"x_train": X / 200}, r"x_train holds float64 from 0\.0 to 1\.27"),
        ({"x_train": np.full((60, 8, 6), np.nan)}, "x_train holds float64 from nan to nan"),
        ({"x_train": X.astype(int) - 1}, "x_train holds int64 from -1 to 254"),
        ({"x_train": X > 9}, "x_train holds bool"),
        ({"x_train": X.reshape(60, -1)}, r"x_train has the shape \(60, 48\); images are"),
        ({"x_train": X[:, None]}, r"x_train has the shape \(60, 1, 8, 6\); images are"),
        ({"x_train": X[:0], "y_train": Y[:0]}, "x_train has no images"),
        ({"x_test": X[:12, :4]}, "their images must be alike"),
        ({"y_train": Y - 1}, "y_train has labels from -1 to 1"),
        ({"y_train": Y * 5000}, "y_train has labels from 0 to 10000; they must be 0 to 999"),
        ({"y_train": Y * 2}, "y_train has labels up to 4, but none of 1, 3"),
        ({"y_train": Y * 0, "y_test": Y[:12] * 0}, "y_train has one class only"),
        ({"y_test": Y[:12] + 1}, "y_test has labels up to 3, y_train only up to 2"),
        ({"y_train": Y[:50]}, "y_train has 50 labels for 60 images"),
        ({"y_train": np.eye(3)[Y]}, r"y_train is float64 \(60, 3\)"),
        ({"y_train": np.array(["cat"] * 60)}, "y_train is <U3"),
    ],
)
def test_arrays_that_are_no_data_set_are_refused(changes: Arrays, says: str) -> None:
    with pytest.raises(DataError, match=f"own.npz: .*{says}"):
        npz_dataset(saved(**changes))


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("made by a pickle",)


def test_nothing_pickled_is_read() -> None:
    with pytest.raises(DataError, match=r"y_train\.npy: it holds Python objects, which could run code"):
        npz_dataset(saved(y_train=np.array([Evil()] * 60, dtype=object)))
    Path("own.npz").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(DataError, match="not an npz file, or damaged"):
        npz_dataset(Path("own.npz"))
    assert not Path("made by a pickle").exists()


def test_a_file_that_unpacks_to_more_than_it_should_is_not_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez_compressed("own.npz", **arrays(x_train=np.zeros((60, 100, 100), np.uint8)))
    monkeypatch.setattr(npz, "MAX_BYTES", 500_000)
    assert Path("own.npz").stat().st_size < 10_000
    with pytest.raises(DataError, match="larger than the limit of 500,000 bytes"):
        npz_dataset(Path("own.npz"))


def test_a_header_that_claims_more_than_the_file_has_is_refused() -> None:
    saved()
    with zipfile.ZipFile("own.npz") as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    for shape in ("(90, 8, 6)", "(9000000000000, 8, 6)"):
        header = parts["x_train.npy"][:128].replace(b"(60, 8, 6), }", f"{shape}, }}".encode()).replace(b"  \n", b"\n")
        header = header[:127].rstrip().ljust(127) + b"\n"
        with zipfile.ZipFile("own.npz", "w") as archive:
            for name, content in {**parts, "x_train.npy": header + parts["x_train.npy"][128:]}.items():
                archive.writestr(name, content)
        with pytest.raises(DataError, match=r"own.npz: x_train.npy: (EOF|too large|Failed|cannot)"):
            npz_dataset(Path("own.npz"))


def test_what_is_no_whole_npz_file_is_refused() -> None:
    content = saved().read_bytes()
    flipped = bytearray(content)
    flipped[1000] ^= 255
    for damaged in (b"", b"text", content[:-500], bytes(flipped)):
        Path("own.npz").write_bytes(damaged)
        with pytest.raises(DataError, match=r"^own\.npz: not an npz file, or damaged\.$"):
            npz_dataset(Path("own.npz"))
    with pytest.raises(DataError, match=r"^none\.npz: no such file or directory\.$"):
        npz_dataset(Path("none.npz"))
    os.mkfifo("pipe.npz")
    with pytest.raises(DataError, match="a pipe or a device, not a file"):
        npz_dataset(Path("pipe.npz"))


def test_a_class_without_validation_images_is_told() -> None:
    labels = np.sort(Y)
    outcome = train_command(*TRAIN, "model=mlp", "data=npz", f"data.file={saved(y_train=labels)}", "run_dir=run")
    assert outcome.status == 0, outcome.err
    assert "note: classes without a validation image: 0, 1; data.split=stratified avoids it" in outcome.err
