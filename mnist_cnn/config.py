"""What may a user set, and can what was set be?

`conf/` holds the values and says what they mean; the dataclasses here hold their types, and what must be true of them.
"""

import difflib
import inspect
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mnist_cnn.errors import ConfigError, did_you_mean


@dataclass
class ModelConfig:
    """A network: its name and its list of layers, which `network.build_network` checks, or `from` where it comes."""

    name: str
    layers: list[Any]
    from_: str | None

    def __post_init__(self) -> None:
        _require(bool(self.name.strip()), "model.name", self.name, "it can't be empty")


@dataclass
class DataConfig:
    """Which images, from where, cut and scaled how."""

    name: str
    root: str
    mirror: str | None
    batch_size: int
    eval_batch_size: int
    val_fraction: float
    split: str
    normalize: str

    def __post_init__(self) -> None:
        from mnist_cnn.data.sources import SOURCES  # here, for nothing of ours is imported by this module

        _one_of("data.name", self.name, "auto", *SOURCES)
        _one_of("data.split", self.split, "last", "random", "stratified")
        _one_of("data.normalize", self.normalize, "unit", "standard")
        _require(self.batch_size >= 1, "data.batch_size", self.batch_size, "it must be at least 1")
        _require(self.eval_batch_size >= 1, "data.eval_batch_size", self.eval_batch_size, "it must be at least 1")
        why = "the part of the training images kept for validation must lie between 0 and 1, e.g. 0.1"
        _require(0 < self.val_fraction < 1, "data.val_fraction", self.val_fraction, why)


@dataclass
class OptimizerConfig:
    """How the weights move. `momentum` and `nesterov` belong to sgd, `betas` and `eps` to the others."""

    name: str
    lr: float
    betas: list[float]
    eps: float
    weight_decay: float
    momentum: float
    nesterov: bool

    def __post_init__(self) -> None:
        _one_of("optimizer.name", self.name, "adam", "adam_pytorch", "adamw", "sgd")
        positive = math.isfinite(self.lr) and self.lr > 0
        _require(positive, "optimizer.lr", self.lr, "the learning rate must be a number above 0")
        right_betas = len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas)
        _require(right_betas, "optimizer.betas", self.betas, "they must be two numbers in [0, 1)")
        _require(self.eps > 0, "optimizer.eps", self.eps, "it must be above 0")
        _require(self.weight_decay >= 0, "optimizer.weight_decay", self.weight_decay, "it must not be negative")
        _require(0 <= self.momentum < 1, "optimizer.momentum", self.momentum, "it must lie in [0, 1)")
        decays = self.weight_decay > 0 and self.name == "adam"
        _require(not decays, "optimizer.weight_decay", self.weight_decay, "Keras' Adam has none; take optimizer=adamw")
        needs_sgd = self.momentum > 0 and self.name != "sgd"
        _require(not needs_sgd, "optimizer.momentum", self.momentum, f"{self.name} has none; take optimizer=sgd")
        needs_momentum = self.nesterov and not self.momentum
        _require(not needs_momentum, "optimizer.nesterov", self.nesterov, "it needs optimizer.momentum above 0")


@dataclass
class SchedulerConfig:
    """How the learning rate moves."""

    name: str
    warmup_fraction: float

    def __post_init__(self) -> None:
        _one_of("scheduler.name", self.name, "none", "onecycle", "cosine")
        inside = 0 < self.warmup_fraction < 1
        _require(inside, "scheduler.warmup_fraction", self.warmup_fraction, "it must lie between 0 and 1")


@dataclass
class TrainerConfig:
    """On which machine, and for how long. `extra` goes to Lightning's Trainer as it is."""

    accelerator: str
    devices: Any  # a number, a list of them or "auto", as Lightning takes it
    strategy: str
    precision: str
    compile: bool
    max_epochs: int
    deterministic: bool
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _require(self.max_epochs >= 1, "trainer.max_epochs", self.max_epochs, "it must be at least 1")
        _one_of("trainer.accelerator", self.accelerator, "auto", "cpu", "gpu", "cuda", "mps")
        _one_of("trainer.strategy", self.strategy, "auto", "ddp")
        _one_of("trainer.precision", self.precision, "32-true", "bf16-mixed", "16-mixed")


@dataclass
class Config:
    """One run, but for `callbacks` and `logger`: those name classes, which `training` instantiates."""

    seed: int
    run_dir: str | None
    resume: str | None
    model: ModelConfig
    data: DataConfig
    optimizer: OptimizerConfig
    scheduler: SchedulerConfig
    trainer: TrainerConfig

    def __post_init__(self) -> None:
        _require(0 <= self.seed < 2**32, "seed", self.seed, "it must lie between 0 and 4294967295")


def typed(composed: DictConfig) -> Config:
    """The composed configuration as dataclasses; ConfigError where a value can't be."""
    plain = OmegaConf.create(composed)  # a copy: the caller's stays as the user wrote it
    OmegaConf.set_struct(plain, False)
    own = {item.name for item in fields(TrainerConfig)}
    plain.model.from_ = plain.model.pop("from")  # a word that Python keeps for itself
    plain.trainer.extra = {key: plain.trainer.pop(key) for key in list(plain.trainer) if key not in own}
    _check_trainer_arguments(list(plain.trainer.extra))
    limit = plain.trainer.extra.get("limit_train_batches", 1)
    _require(limit != 0, "trainer.limit_train_batches", limit, "nothing would be left to train on")
    del plain["callbacks"], plain["logger"]
    try:
        config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), plain))
    except OmegaConfBaseException as error:
        raise ConfigError(explain_value(error, plain)) from error
    assert isinstance(config, Config)
    return config


def explain_value(error: OmegaConfBaseException, config: DictConfig) -> str:
    """What OmegaConf refuses, with the key and its value in front."""
    key = str(error.full_key or error.key or "")
    reason = str(error.msg or error).splitlines()[0].rstrip(".")
    if "is not a ListConfig" in reason:
        reason = "it must be a list, [a,b,…]"
    if f"Key '{key.rpartition('.')[2]}' not in" in reason:
        return f"{key}: no such key.{nearest_key(key, list(_schema_keys(Config)))} See: python train.py --help"
    value = OmegaConf.select(config, key, throw_on_resolution_failure=False) if key else None
    return f"{key}={value}: {reason}." if value is not None else f"{key}: {reason}."


def nearest_key(key: str, known: list[str]) -> str:
    """` Did you mean x?` for a dotted key: each wrong part mended on its own, or a missing group added."""
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
    leaf = key.rpartition(".")[2]
    leaves = {name.rpartition(".")[2]: name for name in reversed(known)}
    near = difflib.get_close_matches(leaf, leaves, n=1, cutoff=0.8)
    return f" Did you mean {leaves[near[0]]}?" if near else ""


def _schema_keys(schema: Any, path: str = "") -> Iterator[str]:
    for item in fields(schema):
        yield f"{path}{item.name.rstrip('_')}"
        if hasattr(item.type, "__dataclass_fields__"):
            yield from _schema_keys(item.type, f"{path}{item.name}.")


def _check_trainer_arguments(extra: list[str]) -> None:
    if not extra:
        return
    from lightning.pytorch import Trainer  # takes seconds; only needed where there is something to check

    ours = {"callbacks", "logger", "default_root_dir", "use_distributed_sampler", "num_sanity_val_steps"}
    ours |= {"enable_progress_bar", "enable_model_summary"}
    # A run is measured, and its checkpoints are kept, at the end of every epoch.
    clashing = {"fast_dev_run", "enable_checkpointing", "max_steps", "min_steps", "max_time", "limit_val_batches"}
    clashing |= {"check_val_every_n_epoch", "val_check_interval"}
    known = set(inspect.signature(Trainer.__init__).parameters) - {"self"} - ours - clashing
    for key in extra:
        if key not in known:
            near = did_you_mean(key, known)
            raise ConfigError(f"trainer.{key}: Lightning's Trainer takes no such argument here.{near}")


def _one_of(key: str, value: str, *known: str) -> None:
    if value not in known:
        raise ConfigError(f"{key}={value}: not one of {', '.join(known)}.{did_you_mean(value, known)}")


def _require(true: bool, key: str, value: object, why: str) -> None:
    """Raise ConfigError that names the key, unless what must be true is."""
    if not true:
        raise ConfigError(f"{key}={value}: {why}.")
