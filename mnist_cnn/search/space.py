"""The settings of a search: those that are the same in every trial, and what the others are chosen from.

Both are written as for `python train.py -m`, in Hydra's grammar: `data.batch_size=32,64`, `seed=range(4,33,4)`,
`optimizer.lr=tag(log, interval(1e-4, 1e-2))`.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from hydra.core.override_parser.types import ChoiceSweep, Glob, IntervalSweep, Override, RangeSweep
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import Trial

from mnist_cnn.config import Config
from mnist_cnn.data.sources import OWN
from mnist_cnn.errors import ConfigError, UserError, one_line
from mnist_cnn.hydra_cli.configure import configured, overrides

# The most values that a setting is chosen from; intervals have no such limit.
_MOST_VALUES = 1000
# Settings that depend on the machine, which is another one for each worker of a search, and not on what is searched.
_OF_THE_MACHINE = ("data.root", "data.mirror")
_EXAMPLE = "'optimizer.lr=tag(log, interval(1e-4, 1e-2))'"


@dataclass(frozen=True)
class Space:
    """`fixed` are settings as typed. `varied` has a distribution for each key, with its `+` or `++` if it has one."""

    fixed: tuple[str, ...]
    varied: dict[str, BaseDistribution]

    def suggest(self, trial: Trial) -> list[str]:
        """The settings of a trial. UserError if the database holds a value for it that is not in the space."""
        before = trial.distributions  # a trial that is begun again has its values already
        values = {
            key: _suggest(trial, key, distribution)
            for key, distribution in self.varied.items()
            if before.get(key, distribution) == distribution
        }
        if not self.has(values):
            raise UserError(f"the database has values for this trial that can't be chosen: {one_line(trial.params)}")
        return self.settings(values)

    def has(self, values: Mapping[str, Any]) -> bool:
        """Whether each setting has a value that can be chosen. A database may hold any, which would become settings."""
        return values.keys() == self.varied.keys() and all(
            _contains(distribution, values[key]) for key, distribution in self.varied.items()
        )

    def settings(self, values: Mapping[str, Any]) -> list[str]:
        """All settings of the trial that has these values."""
        return [*self.fixed, *(f"{key}={values[key]}" for key in self.varied)]

    def samples(self) -> Iterator[list[str]]:
        """Settings of trials such that every choice, and both ends of every range, occur in one of them."""
        ends = {key: _ends(distribution) for key, distribution in self.varied.items()}
        first = {key: values[0] for key, values in ends.items()}
        yield self.settings(first)
        for key, values in ends.items():
            yield from (self.settings({**first, key: value}) for value in values[1:])

    def words(self, dataset: str) -> list[str]:
        """What makes this search another one than the next, as text: every setting that is not of the machine.

        `dataset` is `data.name`: the user's own images are other ones in another place.
        """
        aside = {*_OF_THE_MACHINE} - ({"data.root"} if dataset in OWN else set())
        fixed = [setting for setting in self.fixed if setting.partition("=")[0] not in aside]
        return sorted([*fixed, *(f"{key}={describe(distribution)}" for key, distribution in self.varied.items())])


def read_space(settings: Sequence[str]) -> Space:
    """The space that settings describe; ConfigError for one that is wrong, or can't be searched over."""
    for key in ("run_dir", "resume"):
        if any(setting.startswith(f"{key}=") for setting in settings):
            raise ConfigError(f"{key}: each trial has a folder of its own; -o names that of the search.")
    fixed: list[str] = []
    varied: dict[str, BaseDistribution] = {}
    for override in overrides(settings):
        key = str(override.get_key_element())
        if not override.is_sweep_override():
            fixed.append(str(override.input_line))
        elif key in varied:
            raise ConfigError(f"{key}: it is given twice.")
        else:
            varied[key] = _distribution(override)
    for key in varied:
        if any(setting.partition("=")[0] == key for setting in fixed):
            raise ConfigError(f"{key}: it is given twice.")
    if not varied:
        raise ConfigError(f"nothing to search for: give a setting several values, such as {_EXAMPLE}")
    return Space(tuple(fixed), varied)


def check_space(space: Space) -> Config:
    """The configuration of a first sample. ConfigError if a choice, or an end of a range, is no possible setting.

    Every trial must be measured on the same validation images, in one process.
    """
    first: Config | None = None
    for settings in space.samples():
        config, _ = configured(settings)
        if not config.data.val_fraction:
            raise ConfigError("data.val_fraction=0: a search compares validation accuracies; keep some images for it.")
        if config.trainer.strategy != "auto" or _process_count(config.trainer.devices) != 1:
            raise ConfigError(
                f"trainer.devices={config.trainer.devices}: a trial is trained in one process; to train several "
                "trials at once, start the search several times."
            )
        if first is not None and _measured_on(config) != _measured_on(first):
            key = next(key for key, value in _measured_on(config).items() if _measured_on(first)[key] != value)
            raise ConfigError(f"{key}: trials that differ in it can't be compared by their validation accuracy.")
        first = first or config
    assert first is not None
    return first


def describe(distribution: BaseDistribution) -> str:
    """What a setting is chosen from, in Hydra's grammar and always written alike."""
    if isinstance(distribution, CategoricalDistribution):
        return ",".join(str(choice) for choice in distribution.choices)
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    is_int = isinstance(distribution, IntDistribution)
    ends = f"{distribution.low},{distribution.high}"
    if distribution.step is not None and not (is_int and distribution.step == 1):
        return f"range({distribution.low},{distribution.high + distribution.step},{distribution.step})"
    text = f"int(interval({ends}))" if is_int else f"interval({ends})"
    return f"tag(log,{text})" if distribution.log else text


def values_of(distribution: BaseDistribution) -> list[Any] | None:
    """All values that can be chosen, or None if they can't be counted."""
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    if distribution.log or distribution.step is None:
        return None
    count = round((distribution.high - distribution.low) / distribution.step) + 1
    step, low = Decimal(str(distribution.step)), Decimal(str(distribution.low))
    kind = int if isinstance(distribution, IntDistribution) else float
    return [kind(low + number * step) for number in range(count)] if count <= _MOST_VALUES else None


def _distribution(override: Override) -> BaseDistribution:
    value, line = override.value(), one_line(override.input_line, 200)
    tags: set[str] = getattr(value, "tags", set())
    if tags - {"log"} or (tags and not isinstance(value, IntervalSweep)):
        raise ConfigError(f"{line}: the only tag here is log, and only for an interval.")
    try:
        if isinstance(value, IntervalSweep):
            low: Any = value.start
            high: Any = value.end
            if isinstance(low, int) and isinstance(high, int):
                return IntDistribution(low, high, log="log" in tags)
            return FloatDistribution(_finite(low), _finite(high), log="log" in tags)
        if isinstance(value, RangeSweep) and not value.shuffle:
            return _range(value)
        if isinstance(value, Glob):
            raise ValueError("write the names out, such as model=tiny,mlp")
        choices: tuple[Any, ...] = tuple(dict.fromkeys(override.sweep_string_iterator()))
        if isinstance(value, ChoiceSweep) and all(_is_number(choice) for choice in value.list):  # plots have an axis
            choices = tuple(dict.fromkeys(value.list))
        if not 1 <= len(choices) <= _MOST_VALUES:
            raise ValueError(f"it has {len(choices):,} values; 1 to {_MOST_VALUES:,} are possible")
        return CategoricalDistribution(choices)
    except ValueError as error:  # Optuna's own too, such as for an interval whose end is below its start
        raise ConfigError(f"{line}: {one_line(str(error).rstrip('.'))}.") from error


def _range(sweep: RangeSweep) -> BaseDistribution:
    """As Hydra's `range`, which leaves out `stop` and may count down."""
    numbers = [_finite(number) for number in (sweep.start, sweep.stop, sweep.step)]
    start, stop, step = (Decimal(str(number)) for number in numbers)
    count = math.ceil((stop - start) / step) if step else 0
    if not 1 <= count <= _MOST_VALUES:
        raise ValueError(f"it has {max(count, 0):,} values; 1 to {_MOST_VALUES:,} are possible")
    low, high = sorted((start, start + (count - 1) * step))
    if all(isinstance(number, int) for number in numbers):
        return IntDistribution(int(low), int(high), step=abs(int(step)))
    return FloatDistribution(float(low), float(high), step=abs(float(step)))


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _finite(number: float | None) -> float:
    if number is None or not math.isfinite(number):
        raise ValueError("both ends must be finite numbers")
    return number


def _suggest(trial: Trial, key: str, distribution: BaseDistribution) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        return trial.suggest_categorical(key, distribution.choices)
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    low, high, log = distribution.low, distribution.high, distribution.log
    if isinstance(distribution, IntDistribution):
        return trial.suggest_int(key, int(low), int(high), step=distribution.step, log=log)
    return trial.suggest_float(key, low, high, step=distribution.step, log=log)


def _contains(distribution: BaseDistribution, value: Any) -> bool:
    if isinstance(distribution, CategoricalDistribution):
        return value in distribution.choices
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    kinds = int if isinstance(distribution, IntDistribution) else float
    return isinstance(value, kinds) and distribution.low <= value <= distribution.high


def _ends(distribution: BaseDistribution) -> list[Any]:
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    return list(dict.fromkeys((distribution.low, distribution.high)))


def _process_count(devices: Any) -> int:
    return len(devices) if isinstance(devices, list) else devices if isinstance(devices, int) else 0


def _measured_on(config: Config) -> dict[str, Any]:
    """What decides which images a trial is validated on, and by which chance it is trained."""
    data = {f"data.{key}": getattr(config.data, key) for key in ("name", "root", "file", "val_fraction", "split")}
    return {"seed": config.seed, **data}
