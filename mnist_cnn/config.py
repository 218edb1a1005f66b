"""The settings of a run as typed values, and the checks that they pass before anything is made or fetched.

`conf/` holds the values and says what they mean. Hydra composes them against the dataclasses here, which hold their
types and what must be true of them.
"""

import difflib
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, make_dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigIndexError, ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException

from mnist_cnn.errors import ConfigError, did_you_mean, one_line

# Stands for the run's folder in paths of callbacks and loggers, until there is one.
RUN_DIR = "${run_dir}"
# Learn from the labels alone. `from` names a checkpoint, whose answers count with this weight at this temperature.
NO_TEACHER = {"from": None, "weight": 0.9, "temperature": 4.0}
# Where a run computes and finds its files, not what it computes: a run, or a sweep, may go on with others.
OF_THE_MACHINE = (
    "trainer.accelerator", "trainer.devices", "trainer.strategy", "trainer.compile", "data.root", "data.file",
    "data.mirror", "data.eval_batch_size",
)  # fmt: skip
# Keys, and what other programs call them.
_SYNONYMS = {
    "trainer.max_epochs": ("epochs", "n_epochs", "nb_epoch"),
    "trainer.devices": ("gpus", "n_gpus", "num_gpus"),
    "trainer.accelerator": ("device",),
    "trainer.precision": ("amp", "fp16"),
    "optimizer": ("optim", "opt"),
    "optimizer.lr": ("learning_rate",),
    "data": ("dataset",),
    "data.batch_size": ("batch", "bs"),
    "data.root": ("data_dir", "data_path"),
    "data.val_fraction": ("validation_split", "val_split"),
    "model": ("arch", "net", "network"),
    "model.init_from": ("checkpoint", "ckpt", "pretrained", "weights"),
    "run_dir": ("log_dir", "output", "output_dir", "save_dir"),
    "seed": ("random_seed", "random_state"),
}
# Control characters, which a terminal obeys, and halves of characters, which stand for bytes that are not UTF-8.
_NOT_TEXT = re.compile("[\0-\x1f\x7f-\x9f\ud800-\udfff]")


@dataclass
class ModelConfig:
    """A network: its name and its list of layers, which `build_network` checks, or the checkpoint it starts from."""

    name: str
    layers: list[Any]
    init_from: str | None

    def __post_init__(self) -> None:
        _require(bool(self.name.strip()), "model.name", self.name, "it can't be empty")


@dataclass
class DataConfig:
    """Which images, where they come from, and how they are split, scaled and batched."""

    name: str
    root: str
    mirror: str | None
    batch_size: int
    eval_batch_size: int
    val_fraction: float
    split: str
    normalize: str
    file: str | None = None  # for npz only
    size: int | None = None  # these two for folder only
    color: bool | None = None

    def __post_init__(self) -> None:
        require_one_of("data.split", self.split, "last", "random", "stratified")
        require_one_of("data.normalize", self.normalize, "unit", "standard")
        for key in ("batch_size", "eval_batch_size"):
            size = getattr(self, key)
            _require(1 <= size <= 2**24, f"data.{key}", size, f"it must be at least 1 and at most {2**24:,}")
        why = (
            "the fraction of the training images kept for validation must lie between 0 and 1, e.g. 0.1, or 0 for none"
        )
        _require(0 <= self.val_fraction < 1, "data.val_fraction", self.val_fraction, why)
        if self.size is not None:
            _require(1 <= self.size <= 2048, "data.size", self.size, "it must lie between 1 and 2048")


@dataclass
class AugmentationConfig:
    """How training images are varied, as `conf/augmentation/none.yaml` explains; not at all where every value is 0."""

    rotation: float = 0.0
    shift: float = 0.0
    scale: float = 0.0
    shear: float = 0.0
    elastic: float = 0.0
    erasing: float = 0.0

    def __post_init__(self) -> None:
        for key, most in (("rotation", 180), ("shift", 1000), ("scale", 0.9), ("shear", 10), ("elastic", 1000)):
            value = getattr(self, key)
            _require(0 <= value <= most, f"augmentation.{key}", value, f"it must lie between 0 and {most}")
        _require(0 <= self.erasing <= 1, "augmentation.erasing", self.erasing, "it must lie between 0 and 1")

    def __bool__(self) -> bool:
        return any(asdict(self).values())


@dataclass
class LossConfig:
    """What training minimises beside the plain cross-entropy."""

    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        why = "it must be at least 0 and below 1"
        _require(0 <= self.label_smoothing < 1, "loss.label_smoothing", self.label_smoothing, why)


@dataclass
class TrainerConfig:
    """Which machine to train on, and for how long. `extra` goes to Lightning's Trainer as it is."""

    accelerator: str
    devices: Any  # how many, or a list of their numbers, or "auto"
    strategy: str
    precision: str
    compile: bool
    max_epochs: int
    deterministic: bool
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _require(self.max_epochs >= 1, "trainer.max_epochs", self.max_epochs, "it must be at least 1")
        require_one_of("trainer.accelerator", self.accelerator, "auto", "cpu", "gpu", "cuda", "mps")
        require_one_of("trainer.strategy", self.strategy, "auto", "ddp")
        require_one_of("trainer.precision", self.precision, "32-true", "bf16-mixed", "16-mixed")
        counted = type(self.devices) is int and self.devices >= 1
        listed = self.devices if isinstance(self.devices, list) else []
        named = all(type(number) is int and number >= 0 for number in listed) and len(listed) == len(set(listed)) > 0
        why = "it must be a number from 1, a list such as [0,1], or auto"
        _require(counted or named or self.devices == "auto", "trainer.devices", self.devices, why)
        limit = self.extra.get("limit_train_batches", 1)
        _require(limit != 0, "trainer.limit_train_batches", limit, "nothing would be left to train on")


@dataclass
class Config:
    """One run. The four from `optimizer` are Hydra targets: `_target_` names a class, other keys are its arguments."""

    seed: int
    run_dir: str | None
    resume: str | None
    model: ModelConfig
    data: DataConfig
    trainer: TrainerConfig
    optimizer: dict[str, Any]
    scheduler: dict[str, Any]  # empty: the learning rate stays as it is
    callbacks: dict[str, Any]  # a target for each name
    logger: dict[str, Any]  # likewise
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    distill: dict[str, Any] = field(default_factory=lambda: dict(NO_TEACHER))  # `from` can't be a field's name

    def __post_init__(self) -> None:
        _require(0 <= self.seed < 2**32, "seed", self.seed, "it must lie between 0 and 4294967295")
        if "lr" in self.optimizer:
            rate = self.optimizer["lr"]
            positive = isinstance(rate, int | float) and not isinstance(rate, bool) and 0 < rate < math.inf
            _require(positive, "optimizer.lr", rate, "the learning rate must be a number above 0")
        for key, value in self.distill.items():
            if key not in NO_TEACHER:
                raise ConfigError(f"distill.{key}: no such key.{did_you_mean(key, NO_TEACHER)}")
            if key == "from":
                _require(value is None or isinstance(value, str), "distill.from", value, "it must name a checkpoint")
            else:
                is_number = isinstance(value, int | float) and not isinstance(value, bool)
                fits = is_number and (0 < value <= 1 if key == "weight" else 0.1 <= value <= 1000)
                why = "it must be above 0, at most 1" if key == "weight" else "it must lie between 0.1 and 1000"
                _require(fits, f"distill.{key}", value, why)

    def to_dict(self) -> dict[str, Any]:
        """As plain values under the keys of the command line."""
        values = asdict(self)
        extra = values["trainer"].pop("extra")
        values["trainer"] |= extra
        return values


# Hydra checks the types of what it composes against this; `conf/config.yaml` names it first. `trainer` stays open: any
# further argument of Lightning's Trainer may be added to it, also in a recipe.
_TYPES = [(item.name, dict[str, Any] if item.name == "trainer" else item.type) for item in fields(Config)]
ConfigStore.instance().store(name="schema", node=make_dataclass("Schema", _TYPES))


def to_config(composed: DictConfig) -> Config:
    """The composed configuration as dataclasses; ConfigError where a value is not possible."""
    unresolved = composed.copy()  # the caller's stays as the user wrote it
    unresolved.run_dir = f"\\{RUN_DIR}"  # escaped, so that it is still there after interpolation
    try:
        values = OmegaConf.to_container(unresolved, resolve=True, throw_on_missing=True)
        assert isinstance(values, dict)
        return config_of({**values, "run_dir": composed.run_dir})
    except OmegaConfBaseException as error:
        raise ConfigError(explain(error)) from error


def config_of(values: Mapping[Any, Any]) -> Config:
    """Plain values, such as `Config.to_dict` gives, as dataclasses; ConfigError where a value is not possible."""
    for key in keys_of(values):
        require_text(key, key)
        require_text(key, select(values, key))
    own = {item.name for item in fields(TrainerConfig)} - {"extra"}
    trainer = dict(values["trainer"])
    trainer["extra"] = {key: trainer.pop(key) for key in list(trainer) if key not in own}
    try:
        merged = OmegaConf.merge(OmegaConf.structured(Config), literal({**values, "trainer": trainer}))
        config = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise ConfigError(explain(error)) from error
    assert isinstance(config, Config)
    return config


def literal(value: Any) -> Any:
    """Plain values for OmegaConf, with every `${` escaped: none of them is an interpolation."""
    if isinstance(value, Mapping):
        return {key: literal(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [literal(inner) for inner in value]
    return value.replace("${", "\\${") if isinstance(value, str) else value


def explain(error: OmegaConfBaseException, setting: str | None = None) -> str:
    """What OmegaConf refuses, in one line with the key and its value in front, and the nearest key that exists.

    `setting` is the `key=value` that caused it, if known: the error may name only the first wrong part of the key.
    """
    key = key_of(error)
    shown, key = setting or key, setting.partition("=")[0] if setting else key
    root = error.parent_node._get_root() if error.parent_node is not None else OmegaConf.create()
    values = OmegaConf.to_container(root, resolve=False)
    if isinstance(error, ConfigIndexError):
        return (
            f"{shown}: the list is not that long; layers are counted from 0, and to add one, write the whole list "
            "(docs/settings.md)."
        )
    if isinstance(error, ConfigKeyError | AttributeError):
        return f"{shown}: no such key.{nearest_key(key, list(keys_of(values)))}"
    if isinstance(error, MissingMandatoryValue):
        return f"{key}: it is missing; add it, or the file that has it to `defaults`."
    reason = one_line(str(error.msg or error).splitlines()[0].rstrip("."))
    if setting is None:
        value = error.value if error.value is not None else select(values, key)
        shown = key if value is None else written(key, None if value == "???" else value)
    return f"{one_line(shown, 200)}: {reason}." if shown else f"{reason}."


def key_of(error: OmegaConfBaseException) -> str:
    """The dotted key that an error is about, as it is written on the command line: `model.layers.9`."""
    return str(error.full_key or error.key or "").replace("[", ".").replace("]", "")


def select(values: Any, key: str) -> Any:
    """The value at a dotted key of plain values, or None where there is none; parts of a list are numbered."""
    for part in key.split("."):
        if isinstance(values, list) and part.isdigit() and int(part) < len(values):
            values = values[int(part)]
        else:
            values = values.get(part) if isinstance(values, Mapping) else None
    return values


def keys_of(node: Any, path: str = "") -> Iterator[str]:
    """Every dotted key of a configuration given as plain values, inner ones included."""
    inner = enumerate(node) if isinstance(node, list) else node.items() if isinstance(node, Mapping) else ()
    for key, value in inner:
        name = f"{path}.{key}" if path else str(key)
        yield name
        yield from keys_of(value, name)


def nearest_key(key: str, known: list[str]) -> str:
    """` Did you mean x?` for a dotted key, or an empty string if none is near.

    In this order: the key that other programs call like this; for a single word, the keys that end in it; the key with
    each part corrected; a key in another group whose last part is similar.
    """
    leaf = key.rpartition(".")[2]
    usual = next((ours for ours, others in _SYNONYMS.items() if leaf in others and ours in known), None)
    if usual and key.count(".") < 2:
        return f" Did you mean {usual}?"
    leaves = [(name.rpartition(".")[2], name) for name in known if not name.startswith("hydra.")]
    exact = [name for last, name in leaves if last == leaf]
    if exact and leaf == key:
        return f" Did you mean {' or '.join(exact[:2])}?"
    path: list[str] = []
    for part in key.split("."):
        depth = len(path)
        options = {
            name.split(".")[depth] for name in known if name.split(".")[:depth] == path and name.count(".") >= depth
        }
        near = [part] if part in options else difflib.get_close_matches(part, sorted(options), n=1)
        path += near
        if not near:
            break
    else:
        return f" Did you mean {'.'.join(path)}?"
    near = difflib.get_close_matches(leaf, [last for last, _ in leaves], n=1, cutoff=0.8)
    return f" Did you mean {next(name for last, name in leaves if last == near[0])}?" if near else ""


def written(key: str, value: Any) -> str:
    """A setting as it is written on the command line, short and safe to print."""
    text = str(value).lower() if isinstance(value, bool) else "null" if value is None else str(value)
    return f"{key}={one_line(text, 120)}"


def require_text(key: str, value: Any) -> None:
    """Raise ConfigError for a text with control characters, or with bytes that are not UTF-8."""
    if isinstance(value, str) and _NOT_TEXT.search(value):
        raise ConfigError(f"{written(one_line(key, 80), value)}: it must be UTF-8 text without control characters.")


def require_one_of(key: str, value: Any, *known: str) -> None:
    """Raise ConfigError, with the nearest known value, if the value is none of those known."""
    if value not in known:
        listed = ", ".join(known)
        raise ConfigError(f"{written(key, value)}: not one of {listed}.{did_you_mean(str(value), known)}")


def _require(condition: bool, key: str, value: object, why: str) -> None:
    if not condition:
        raise ConfigError(f"{written(key, value)}: {why}.")
