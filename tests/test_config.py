from collections.abc import Callable
from pathlib import Path

import pytest
from hydra.errors import MissingConfigException
from omegaconf import DictConfig

from mnist_cnn.config import nearest_key
from mnist_cnn.errors import ConfigError
from mnist_cnn.hydra_cli.explain import PLUGINS, explain
from mnist_cnn.hydra_cli.run import run_hydra
from mnist_cnn.training.targets import class_of
from tests.conftest import CONF, composed, configured, train_command

# What a user may well get wrong, and what of it the answer must name.
WRONG = [
    ("trainer.max_epochs=abc", "trainer.max_epochs=abc", "Integer"),
    ("trainer.max_epochs=0", "trainer.max_epochs=0", "at least 1"),
    ("trainer.max_epoch=5", "trainer.max_epoch", "Did you mean trainer.max_epochs?"),
    ("max_epochs=5", "max_epochs", "Did you mean trainer.max_epochs?"),
    ("epochs=5", "epochs=5", "Did you mean trainer.max_epochs?"),
    ("optimizer.learning_rate=1", "optimizer.learning_rate=1", "Did you mean optimizer.lr?"),
    ("bs=32", "bs=32", "Did you mean data.batch_size?"),
    ("gpus=1", "gpus=1", "Did you mean trainer.devices?"),
    ("rotation=10", "rotation=10", "Did you mean augmentation.rotation?"),
    ("name=x", "name=x", "Did you mean model.name or data.name?"),
    (
        "weight_decay=0.1",
        "weight_decay=0.1",
        "optimizer.weight_decay comes with optimizer=adam_pytorch, optimizer=adamw",
    ),
    ("patience=3", "patience=3", "callbacks.early_stopping.patience comes with callbacks=early_stopping"),
    ("trainer.gradient_clip_val=1", "trainer.gradient_clip_val=1", "write +trainer.gradient_clip_val=1 instead"),
    ("trainer.min_epochs=1", "trainer.min_epochs=1", "write +trainer.min_epochs=1 instead"),
    ("trainer.gradient_clip=1", "trainer.gradient_clip=1", "Did you mean +trainer.gradient_clip_val=1?"),
    ("trainer.fast_dev_run=true", "trainer.fast_dev_run=true", "no such key."),
    ("model.layers.2.Conv2D.padding=same", "model.layers.2.Conv2D.padding", "+model.layers.2.Conv2D.padding=same"),
    ("model=tinny", "model=tinny", "Did you mean tiny?"),
    ("modle=tiny", "modle", "Did you mean model?"),
    ("data=cifar", "data=cifar", "Did you mean cifar10?"),
    ("data.val_fraction=1.2", "data.val_fraction=1.2", "between 0 and 1"),
    ("data.batch_size=0", "data.batch_size=0", "at least 1"),
    ("data.split=lst", "data.split=lst", "Did you mean last?"),
    ("data.mirror=ftp://example.org", "data.mirror=ftp://example.org", "https://"),
    ("data.mirror=/no/such/folder", "/no/such/folder", "neither a folder nor an address"),
    ("optimizer.lr=-1", "optimizer.lr=-1", "above 0"),
    ("optimizer.momentum=0.9", "optimizer.momentum=0.9", "optimizer=sgd"),
    ("optimizer.weight_decay=0.1", "optimizer.weight_decay=0.1", "optimizer=adamw"),
    ("optimizer.betas=[0.9]", "optimizer.betas", "two numbers"),
    ("trainer.precision=fp16", "trainer.precision=fp16", "bf16-mixed"),
    ("trainer.accelerator=gqu", "trainer.accelerator=gqu", "Did you mean gpu?"),
    ("+trainer.gradient_clip=1", "trainer.gradient_clip", "Did you mean gradient_clip_val?"),
    ("+data.foo=1", "data.foo", "no such key"),
    ("+trainer.extra.limit_train_batches=0", "trainer.extra", "takes no such argument here"),
    ("resume=", "resume=", "name a path"),
    ("experiment=null", "experiment=null", "name one of its options: accurate, baseline"),
    ("optimizer=3", "optimizer", ""),
    ("=5", "=5", ""),
    ("callbacks.checkpoint.dirpath=foo", "callbacks.checkpoint.dirpath", "can't be changed"),
    ("+callbacks.x=[1]", "callbacks.x=[1]", "it must have a _target_"),
    ("+callbacks.x._target_=Boom", "callbacks.x._target_=Boom", "with its module"),
    ("callbacks.checkpoint.monitor=val_loss", "callbacks.checkpoint.monitor=val_loss", "Did you mean val/loss?"),
    ("seed=-1", "seed=-1", "between 0"),
    ("model=tiny,mlp", "model=tiny,mlp", "-m"),
    ("foo", "foo", "key=value"),
    ("model.name=é/☃", "model.name=é/☃", "quote"),
    ("model.name=''", "model.name", "can't be empty"),
    ("model=null", "model=null", "name one of its options: accurate, baseline"),
    ("optimizer.betas=0.9", "optimizer.betas=0.9", "must be a list"),
    ("trainer.precision=64-true", "trainer.precision=64-true", "32-true"),
    ("trainer.strategy=ddp_spawn", "trainer.strategy=ddp_spawn", "Did you mean ddp?"),
    ("+trainer.max_steps=3", "trainer.max_steps", "takes no such argument here"),
    ("+trainer.limit_train_batches=0", "trainer.limit_train_batches=0", "nothing would be left"),
    ("--epochs=5", "--epochs=5", "without dashes"),
    ("data.split=${nothing}", "data.split", "nothing"),
    ("resume=nowhere", "resume=nowhere", "not a run folder"),
    ("+model.layers.0.Conv2D.padding=sam", "layer 0 (Conv2D)", "Did you mean same?"),
    ("+model.layers.4.Flatten.padding=same", "layer 4 (Flatten)", "no argument 'padding'"),
    ("+model.layers.0.Conv2D.paddin=same", "layer 0 (Conv2D)", "Did you mean padding?"),
    ("+model.layers.0.Conv2D.kernel_regularizer=l2", "layer 0 (Conv2D)", "optimizer=adamw optimizer.weight_decay=0.01"),
    ("model.layers=[{RandomRotation: {factor: 0.1}}]", "no layer is called RandomRotation", "augmentation.rotation=10"),
    ("model.layers.1.MaxPooling2D.pool_size=14", "layer 2 (Conv2D)", "nothing is left of its input, 32×1×1"),
    ("model.layers.6.Dense.units=9", "layer 6 (Dense)", "10 classes"),
    ("model.layers.9.Dense.units=9", "model.layers.9.Dense.units", "not that long"),
    ("~model", "model.name", "it is missing"),
    ("~model.layers.2", "~model.layers.2", "no layer can be taken out of the list"),
    ("model.layers.0.Conv2d.filters=9", "model.layers.0.Conv2d.filters", "Did you mean model.layers.0.Conv2D.filters?"),
]


@pytest.mark.parametrize(("setting", "names", "says"), WRONG, ids=[wrong[0] for wrong in WRONG])
def test_a_wrong_setting_is_refused_in_two_lines_before_anything_is_made(setting: str, names: str, says: str) -> None:
    outcome = train_command(setting)
    message = outcome.err[outcome.err.index("error: ") :]
    assert outcome.status == 2
    assert names in message
    assert says in message
    assert len(message.strip().splitlines()) <= 2
    assert "Traceback" not in outcome.err
    assert outcome.out == ""
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.parametrize("option", [f"{group}={name}" for group, names in PLUGINS.items() for name in names])
def test_an_option_of_a_package_that_is_not_installed_names_the_package(option: str) -> None:
    group, _, name = option.partition("=")
    missing = MissingConfigException("", missing_cfg_file=f"{group}/{name}")
    assert explain(missing, CONF, [option]) == (
        f"{option}: it comes with a package that is not installed: pip install {PLUGINS[group][name]}"
    )


def test_a_launcher_that_is_not_there_ends_the_sweep_before_it_begins() -> None:
    said = train_command("-m", "hydra/launcher=basik", "seed=0,1").err
    assert "hydra/launcher=basik: no such option. Did you mean basic? There are: basic" in said
    assert list(Path.cwd().iterdir()) == []


@pytest.fixture
def names_of(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """What the networks of a command's runs are called."""

    def names_of(*settings: str) -> list[str]:
        names: list[str] = []

        def task(composed: DictConfig) -> None:
            names.append(composed.model.name)
            if "-m" in settings:
                Path("sweep/run").touch()  # a sweep that leaves nothing is an error

        monkeypatch.setattr("sys.argv", ["train.py", *settings])
        assert run_hydra(task, CONF, settings) == 0
        return names

    return names_of


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        (["model.layers.1.Dense.units=40"], "custom"),
        (["+model.layers.1.Dense.use_bias=false"], "custom"),
        (["model.layers=[Flatten,{Dense:{units:10}}]"], "custom"),
        (["model.layers.1.Dense.units=40", "model.name=mlp"], "mlp"),
        (["model.layers.1.Dense.units=40", "model.name=wide"], "wide"),
        (["model.layers.1.Dense.units=50"], "mlp"),  # as the file has it
        (["experiment=tiny"], "mlp"),
    ],
    ids=str,
)
def test_a_network_is_called_custom_where_its_layers_are_not_those_of_its_file(
    settings: list[str], name: str, names_of: Callable[..., list[str]]
) -> None:
    assert names_of("model=mlp", *settings) == [name]


def test_each_network_of_a_sweep_has_its_own_name(names_of: Callable[..., list[str]]) -> None:
    assert names_of("-m", "model=mlp", "model.layers.1.Dense.units=50,40", "run_dir=sweep") == ["mlp", "custom"]


def test_a_file_in_a_folder_of_the_users_own_names_its_network(names_of: Callable[..., list[str]]) -> None:
    Path("own/model").mkdir(parents=True)
    Path("own/model/mine.yaml").write_text("name: mine\nlayers: [Flatten, {Dense: {units: 10}}]\n")
    assert names_of("--config-dir=own", "model=mine") == ["mine"]
    assert names_of("--config-dir=own", "model=mine", "+model.layers.1.Dense.use_bias=false") == ["custom"]


def test_tracebacks_are_to_be_had_by_asking_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(ConfigError):
        train_command("data.batch_size=0")


def test_a_gpu_that_is_not_there_is_refused_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    outcome = train_command("trainer=cuda", "data=digits")
    assert outcome.status == 2
    assert "trainer=cpu" in outcome.err


def test_one_bad_run_of_a_sweep_is_named_and_the_others_are_made() -> None:
    settings = ("data=digits", "model=mlp", "trainer.max_epochs=1", "data.val_fraction=1.2,0.5", "run_dir=sweep")
    outcome = train_command("-m", *settings)
    assert outcome.status == 1
    assert "data.val_fraction=1.2" in outcome.err
    assert "0.5" in outcome.out


@pytest.mark.parametrize("name", ["baseline", "tiny", "deep", "dropout", "mlp"])
def test_a_recipe_trains_the_model_of_its_name(name: str) -> None:
    assert configured(f"experiment={name}").model.name == name


def test_recipes_have_the_published_batch_size_epochs_and_split() -> None:
    recipes = {name: configured(f"experiment={name}") for name in ("baseline", "tiny", "deep", "dropout", "mlp")}
    found = {
        k: (c.data.batch_size, c.trainer.max_epochs, c.data.val_fraction, c.data.split) for k, c in recipes.items()
    }
    assert found == {
        "baseline": (128, 12, 0.1, "last"),
        "tiny": (32, 5, 0.3, "last"),
        "deep": (64, 5, 0.2, "last"),
        "dropout": (128, 12, 0.1, "last"),
        "mlp": (32, 10, 0.1, "last"),
    }
    early = composed("experiment=tiny").callbacks
    assert (early.early_stopping.monitor, early.checkpoint.monitor, early.checkpoint.mode) == (
        "val/loss",
        "val/loss",
        "min",
    )


def test_the_command_line_reaches_into_the_list_of_layers() -> None:
    assert configured("model=tiny", "model.layers.0.Conv2D.filters=16").model.layers[0]["Conv2D"]["filters"] == 16


def test_further_arguments_go_to_lightnings_trainer_and_only_there() -> None:
    config = configured("+trainer.gradient_clip_val=1.0")
    assert config.trainer.extra == {"gradient_clip_val": 1.0}


@pytest.mark.parametrize("file", sorted(CONF.glob("*/*.yaml")), ids=lambda file: f"{file.parent.name}={file.stem}")
def test_every_option_composes_and_names_classes_that_exist(file: Path) -> None:
    config = configured(f"{file.parent.name}={file.stem}")
    targets = {"optimizer": config.optimizer, "scheduler": config.scheduler}
    for group in ("callbacks", "logger"):
        targets |= {f"{group}.{name}": target for name, target in getattr(config, group).items()}
    for key, target in targets.items():
        if target:
            class_of(target, key, object)


def test_help_shows_every_group_and_option() -> None:
    page = train_command("--help").out
    for file in CONF.glob("*/*.yaml"):
        line = next(line for line in page.splitlines() if line.startswith(f"{file.parent.name}: "))
        assert file.stem in line
    assert page.count("python train.py") >= 5


def test_flags_may_stand_anywhere() -> None:
    assert (
        train_command("model=tiny", "--cfg", "job", "seed=3").out
        == train_command("--cfg", "job", "seed=3", "model=tiny").out
    )


def test_cfg_job_prints_the_configuration_and_runs_nothing() -> None:
    outcome = train_command("--cfg", "job", "model=tiny")
    assert outcome.status == 0
    assert "name: tiny" in outcome.out
    assert "epoch" not in outcome.err


@pytest.mark.parametrize(
    ("key", "near"),
    [("trainer.max_epoch", "trainer.max_epochs"), ("lr", "optimizer.lr"), ("dta.rot", "data.root"), ("xyz", "")],
)
def test_the_nearest_key_is_found_part_by_part(key: str, near: str) -> None:
    known = ["seed", "trainer", "trainer.max_epochs", "optimizer", "optimizer.lr", "data", "data.root"]
    assert nearest_key(key, known) == (f" Did you mean {near}?" if near else "")
