"""The Python interface: what docs/python.md shows works as it stands there, and mistakes are answered in a line."""

import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from lightning.pytorch import Trainer
from PIL import Image
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset

import mnist_cnn
from mnist_cnn.api.train import TrainingRun
from mnist_cnn.data import datasets
from mnist_cnn.errors import CheckpointError, ConfigError, DataError, UserError
from mnist_cnn.inference import checkpoint
from mnist_cnn.training.module import Classifier
from tests.conftest import CONF, ROOT, FakeMnist, train_command, weights

QUICK = ("model=tiny", "data=digits", "trainer=cpu", "trainer.max_epochs=2")


@pytest.fixture(scope="module")
def digits() -> datasets.Dataset:
    return datasets.load("digits", "data")


@pytest.fixture
def picture() -> Image.Image:
    return Image.fromarray(load_digits().images[7].astype("uint8") * 15).resize((200, 200))


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*", "ignore:.*LeafSpec.*")
@pytest.mark.parametrize(("page", "count"), [("docs/python.md", 8), ("README.md", 1)])
def test_every_line_of_the_page_works(
    page: str,
    count: int,
    digits_run: Path,
    fake_mnist: FakeMnist,
    picture: Image.Image,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("h5py")
    picture.save("picture.png")
    Path("my_run").symlink_to(digits_run)
    assert subprocess.run([sys.executable, "-m", "mnist_cnn", "export", str(digits_run), "--format", "keras",
                           "-o", "mine.keras"], check=False).returncode == 0  # fmt: skip
    monkeypatch.setenv("MNIST_MIRROR", str(fake_mnist.mirror))
    names: dict[str, Any] = {}
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.M | re.S)
    for block in blocks:
        exec(compile(block, page, "exec"), names)
    assert len(blocks) == count
    assert names["run"].metrics["test/accuracy"] > 0


def test_the_interface_is_load_and_train_and_is_imported_when_it_is_used() -> None:
    assert mnist_cnn.__all__ == ["load", "train"]
    program = "import sys, mnist_cnn; assert 'torch' not in sys.modules; mnist_cnn.load; mnist_cnn.train; "
    program += "assert {'load', 'train'} <= set(dir(mnist_cnn)); assert 'lightning' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
    with pytest.raises(AttributeError, match="no attribute 'predict'"):
        _ = mnist_cnn.predict


@pytest.mark.parametrize("layout", ["NHW", "NHWC", "NCHW", "float", "tensor"])
def test_an_array_gives_the_same_probabilities_in_every_layout(
    layout: str, digits_run: Path, digits: datasets.Dataset
) -> None:
    images = digits.test.images[:50]
    trained = checkpoint.load(digits_run)
    expected = trained.network(trained.preprocessing(images)).softmax(1).numpy()
    grey = images[:, 0].numpy()
    arrays: dict[str, Any] = {
        "NHW": grey,
        "NHWC": grey[..., None],
        "NCHW": images.numpy(),
        "float": grey / 255,
        "tensor": images,
    }
    found = mnist_cnn.load(digits_run).predict(arrays[layout])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_pictures_are_answered_as_by_the_command(picture: Image.Image) -> None:
    picture.save("7.png")
    model = mnist_cnn.load("tiny_strong")
    from_file, from_image, missing = model.predict(["7.png", picture, Path("nowhere.png")])
    assert from_file.digit == from_image.digit == "7"
    assert from_file.probability == pytest.approx(from_image.probability, abs=1e-5)
    assert (from_file.file, from_image.file) == ("7.png", "picture 2")
    assert missing.error == "nowhere.png: no such file or directory."
    assert model.predict(picture)[0].digit == "7"


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.zeros((28, 28)), r"images of shape \(28, 28\): the network takes \(N, H, W\)"),
        (np.zeros((2, 3, 28, 28)), r"images of shape \(2, 3, 28, 28\)"),
        (np.zeros((2, 20, 28)), "images of 20×28 pixels: the network takes 28×28"),
        (np.full((2, 28, 28), 255.0), "images from 255 to 255: floats must be in"),
        (np.full((2, 28, 28), np.nan), "images from nan to nan"),
        (np.zeros((2, 28, 28), int), "images of type int64: they must be uint8"),
        (np.zeros((2, 28, 28), object), "an array of object: it must hold numbers"),
    ],
)  # fmt: skip
def test_an_array_that_is_no_images_is_refused(array: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        mnist_cnn.load("tiny_strong").predict(array)


def test_no_images_have_no_answers() -> None:
    assert mnist_cnn.load("tiny_strong").predict(np.zeros((0, 28, 28), np.uint8)).shape == (0, 10)


def test_evaluate_gives_the_figures_of_the_command_and_of_arrays(digits_run: Path, digits: datasets.Dataset) -> None:
    model = mnist_cnn.load(digits_run)
    result = model.evaluate()
    assert (result.dataset, result.split, result.total) == ("digits", "test", 360)
    again = model.evaluate((digits.test.images[:, 0].numpy(), digits.test.labels.numpy()))
    assert (again.correct, again.loss) == (result.correct, result.loss)
    assert model.evaluate(split="val").total == 144


@pytest.mark.parametrize(
    "classes", [np.arange(3), np.full(5, 10), np.full(5, -1), np.zeros(5), np.zeros((5, 1), int), np.zeros(0, int)]
)
def test_classes_that_do_not_fit_the_images_are_refused(classes: Any) -> None:
    with pytest.raises(DataError, match=r"whole numbers|one class for each image"):
        mnist_cnn.load("tiny_strong").evaluate((np.zeros((5, 28, 28), np.uint8), classes))


@pytest.mark.parametrize(("name", "argument"), [("folder", "root=FOLDER"), ("npz", "file=FILE.npz")])
def test_images_of_ones_own_are_evaluated_only_where_one_says_they_are(name: str, argument: str) -> None:
    Path("data/train").mkdir(parents=True)
    with pytest.raises(ConfigError, match=f"^{name}: say where these images are: {argument}$"):
        mnist_cnn.load("tiny_strong").evaluate(name)


@pytest.mark.parametrize(
    ("mistake", "said"),
    [
        (lambda model: model.evaluate("mnist", split="validation"), "split='validation': not one of test, val, train"),
        (lambda model: model.predict("7.png", placing="asis"), "placing='asis': not one of .* Did you mean as-is?"),
        (lambda model: model.predict([np.zeros((28, 28), np.uint8)]), "pictures are paths, PIL images, or a list"),
        (lambda model: model.predict(7), "pictures are paths, PIL images, or a list"),
        (lambda model: model.predict(torch.empty(1, 28, 28, device="meta")), "it must hold numbers"),
        (lambda model: model.evaluate((np.zeros((5, 28, 28), np.uint8), [0] * 5)), "list: an array or a tensor"),
        (lambda model: model.evaluate([1, 2]), "data is the name of a data set, or a pair"),
        (lambda model: model.evaluate((np.zeros((5, 28, 28), np.uint8), np.zeros(5, bool))), "whole numbers"),
    ],
)  # fmt: skip
def test_another_mistake_is_one_line(mistake: Callable[[Any], Any], said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        mistake(mnist_cnn.load("tiny_strong"))
    assert "\n" not in str(caught.value)


def test_big_endian_numbers_are_read() -> None:
    model = mnist_cnn.load("tiny_strong")
    images = np.random.default_rng(0).random((3, 28, 28), np.float32)
    np.testing.assert_array_equal(model.predict(images.astype(">f4")), model.predict(images))


def test_a_program_of_hydra_can_train_and_keeps_its_state() -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        run = mnist_cnn.train(*QUICK)
        assert compose("config").model.name == "baseline"
    assert run.folder.is_absolute()


def test_an_input_scale_is_for_keras_files_only() -> None:
    with pytest.raises(CheckpointError, match="accurate: input_scale is for Keras files"):
        mnist_cnn.load("accurate", input_scale="1/255")


def test_training_gives_the_run_of_the_same_command(capsys: pytest.CaptureFixture[str]) -> None:
    run = mnist_cnn.train(*QUICK, "run_dir=mine")
    assert "test        accuracy" in capsys.readouterr().out
    assert train_command(*QUICK, "run_dir=theirs").status == 0
    first, second = weights(Path("mine")), weights(Path("theirs"))
    assert all(torch.equal(first[key], second[key]) for key in first)
    command = "# mnist-cnn train model=tiny data=digits trainer=cpu trainer.max_epochs=2 run_dir=mine"
    assert (run.folder / "config.yaml").read_text().splitlines()[0] == command
    assert run.report.exists()
    assert [row["epoch"] for row in run.history] == [1, 2]
    assert run.model.evaluate().accuracy == run.metrics["test/accuracy"]
    shown = run._repr_html_()
    assert f"<td>{run.metrics['test/accuracy']:.4f}</td>" in shown
    assert shown.count("data:image/png;base64,") == 2


def test_a_run_can_be_trained_in_another_thread() -> None:
    runs: list[TrainingRun] = []
    thread = threading.Thread(target=lambda: runs.append(mnist_cnn.train(*QUICK)))
    thread.start()
    thread.join()
    assert runs[0].metrics["epochs"] == 2


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("epochs=3", "epochs=3: no such key"),
        ("-m", "-m: flags are for the command line"),
        ("--help", "--help: flags are for the command line"),
        ("optimizer.lr=1e-3,1e-2", "several values are a sweep"),
        ("model=nothing", "model=nothing: no such option"),
        ("trainer=ddp", "trainer.strategy=ddp: mnist_cnn.train trains in this process"),
        ("resume=nowhere", "resume=nowhere: "),
        ("data.name", "data.name: not understood"),
        (3, "settings are strings"),
    ],
)  # fmt: skip
def test_a_wrong_setting_is_one_line_and_leaves_nothing(setting: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        mnist_cnn.train("model=tiny", "data=digits", setting)
    assert "\n" not in str(caught.value)
    assert list(Path.cwd().iterdir()) == []


def test_without_hydra_training_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mnist_cnn.api.train.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'mnist-cnn\[train\]'"):
        mnist_cnn.train("model=tiny")


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*", "ignore:.*LeafSpec.*")
def test_a_module_from_a_checkpoint_tests_trains_and_is_saved_as_lightnings_users_expect(
    digits_run: Path, digits: datasets.Dataset
) -> None:
    model = mnist_cnn.load(digits_run)
    module = Classifier.load_from_checkpoint(digits_run / "checkpoints" / "best.ckpt")
    scaled = model.trained.preprocessing(digits.test.images)
    loader = DataLoader(TensorDataset(scaled, digits.test.labels), batch_size=100)
    trainer = Trainer(max_epochs=1, logger=False, enable_checkpointing=False, accelerator="cpu",
                      enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
    (tested,) = trainer.test(module, loader, verbose=False)
    assert tested["test/accuracy"] == pytest.approx(model.evaluate().accuracy)
    before = {key: value.clone() for key, value in module.network.state_dict().items()}
    trainer.fit(module, loader, loader)
    assert not any(torch.equal(value, before[key]) for key, value in module.network.state_dict().items())
    trainer.save_checkpoint("again.ckpt")
    assert mnist_cnn.load("again.ckpt").trained.model == "tiny"
    sgd = {"_target_": "torch.optim.SGD", "lr": 0.1}
    assert Classifier.load_from_checkpoint("again.ckpt", "cpu", optimizer=sgd).optimizer_target == sgd
    with pytest.raises(CheckpointError, match="no such file"):
        Classifier.load_from_checkpoint("nowhere.ckpt")
