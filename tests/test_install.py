"""A wheel trains without the repository, and a trained network is used without what only training needs."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from PIL import Image
from sklearn.datasets import load_digits

from mnist_cnn.errors import EXTRAS
from mnist_cnn.inference import box
from tests.conftest import CONF, ROOT

BUILD = "from hatchling.build import build_wheel; import sys; build_wheel(sys.argv[1])"
# Makes `import NAME` fail as it does where NAME is not installed, in every program that finds it on its path.
WITHOUT = f"""
import sys
class Without:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {set(EXTRAS)}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Without())
import importlib.util
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name.partition(".")[0] in {set(EXTRAS)} else found(name)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-c", BUILD, str(folder)], cwd=ROOT, check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the wheel installs, and nothing else of this project."""
    folder = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture(scope="module")
def without_extras(installed: Path) -> Path:
    """The same, where the packages of the extras can't be imported."""
    folder = installed.with_name("without")
    folder.mkdir()
    (folder / "mnist_cnn").symlink_to(installed / "mnist_cnn")
    (folder / "sitecustomize.py").write_text(WITHOUT)
    return folder


def command(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """`mnist-cnn …` of the package in this folder, in the current folder."""
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    return subprocess.run(
        [sys.executable, "-m", "mnist_cnn", *arguments], env=environment, capture_output=True, text=True, check=False
    )


def test_the_wheel_has_the_configuration_and_the_box_and_is_small(installed: Path, wheel: Path) -> None:
    files = {str(file.relative_to(CONF)): file.read_bytes() for file in CONF.rglob("*.yaml")}
    conf = installed / "mnist_cnn" / "conf"
    assert {str(file.relative_to(conf)): file.read_bytes() for file in conf.rglob("*.yaml")} == files
    assert {path.name for path in installed.iterdir()} == {"mnist_cnn", "mnist_cnn-0.1.0.dist-info"}
    assert wheel.stat().st_size < 3_000_000
    for file in box.BOX.iterdir():
        assert (installed / "mnist_cnn" / "box" / file.name).read_bytes() == file.read_bytes()


def test_the_wheel_alone_trains_sweeps_and_takes_a_folder_of_settings(installed: Path) -> None:
    (Path("mine") / "model").mkdir(parents=True)
    (Path("mine") / "model" / "small.yaml").write_text("name: small\nlayers: [Flatten, {Dense: {units: 10}}]\n")
    quick = ("data=digits", "trainer.max_epochs=1", "trainer=cpu")
    done = command(installed, "train", "--config-dir", "mine", "model=small", *quick, "run_dir=run")
    assert done.returncode == 0, done.stderr
    assert json.loads(Path("run/metrics.json").read_text())["model"] == "small"
    resumed = command(installed, "train", "resume=run", "trainer.max_epochs=2")
    assert resumed.returncode == 0, resumed.stderr
    swept = command(installed, "train", "-m", "model=tiny,mlp", *quick, "run_dir=sweep")
    assert swept.returncode == 0, swept.stderr
    assert {file.parent.name for file in Path("sweep").glob("*/metrics.json")} == {"00_model-tiny", "01_model-mlp"}
    assert "  mnist-cnn train model=tiny trainer.max_epochs=5" in command(installed, "train", "--help").stdout


def test_a_mistake_is_answered_with_the_name_of_this_command(installed: Path) -> None:
    done = command(installed, "train", "trainer.max_epoch=1")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.endswith("See: mnist-cnn train --help\n")
    assert len(done.stderr.splitlines()) == 1


def test_a_network_is_used_without_what_training_needs(without_extras: Path) -> None:
    Image.fromarray(load_digits().images[7].astype("uint8") * 15).save("7.png")
    predicted = command(without_extras, "predict", "7.png", "--json", "--show", "seen.png")
    assert json.loads(predicted.stdout)["digit"] == "7", predicted.stderr
    assert Path("seen.png").exists()
    assert command(without_extras, "models").returncode == 0
    diagnosed = command(without_extras, "doctor", "--json")
    assert "Traceback" not in diagnosed.stderr
    assert json.loads(diagnosed.stdout)["packages"]
    program = "import mnist_cnn; print(mnist_cnn.load('strong').predict('7.png')[0].digit)"
    environment = {**os.environ, "PYTHONPATH": str(without_extras)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == "7\n", done.stderr


@pytest.mark.parametrize(
    ("arguments", "package", "extra"),
    [
        (["train", "model=tiny"], "hydra", "train"),
        (["evaluate", "strong", "--data", "digits"], "sklearn", "train"),
        (["export", "strong", "--format", "keras"], "h5py", "keras"),
        (["search", "seed=1,2"], "optuna", "search"),
    ],
)
def test_what_needs_more_says_what_to_install(
    arguments: list[str], package: str, extra: str, without_extras: Path
) -> None:
    done = command(without_extras, *arguments)
    assert done.returncode == 1
    said = f"error: this needs {package}, which is not installed: pip install 'mnist-cnn[{extra}]'"
    assert done.stderr.splitlines()[-1] == said
