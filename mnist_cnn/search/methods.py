"""How a search chooses values, and when it ends a trial early: Optuna's samplers and pruners, by name."""

import math
import warnings
from collections.abc import Callable
from typing import Any

from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, GPSampler, GridSampler, QMCSampler, RandomSampler, TPESampler

from mnist_cnn.config import require_one_of
from mnist_cnn.errors import ConfigError
from mnist_cnn.search.space import Space, values_of

_MOST_COMBINATIONS = 100_000  # of a grid, which Optuna writes out

# All with Optuna's own defaults; those that need further packages (CMA-ES) are left out.
_SAMPLERS: dict[str, Callable[[int | None, Space], BaseSampler]] = {
    "tpe": lambda seed, _: TPESampler(seed=seed),
    "gp": lambda seed, _: GPSampler(seed=seed),
    "qmc": lambda seed, _: QMCSampler(seed=seed),
    "random": lambda seed, _: RandomSampler(seed),
    "grid": lambda _, space: GridSampler(_grid(space), seed=0),  # which numbers the combinations alike in all workers
}
_PRUNERS: dict[str, Callable[[], BasePruner]] = {
    "median": MedianPruner,
    "asha": SuccessiveHalvingPruner,
    "hyperband": HyperbandPruner,
    "none": NopPruner,
}


def sampler(name: str, seed: int | None, space: Space) -> BaseSampler:
    """What chooses the values; ConfigError for an unknown name, and for a space that it can't choose from."""
    require_one_of("--sampler", name, *_SAMPLERS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)  # QMCSampler: its interface may change, which pins catch
        return _SAMPLERS[name](seed, space)


def pruner(name: str) -> BasePruner:
    """What ends trials early; ConfigError for an unknown name."""
    require_one_of("--pruner", name, *_PRUNERS)
    return _PRUNERS[name]()


def combinations(space: Space) -> int:
    """How many trials a grid has."""
    return math.prod(len(values) for values in _grid(space).values())


def _grid(space: Space) -> dict[str, list[Any]]:
    values = {key: values_of(distribution) for key, distribution in space.varied.items()}
    for key, listed in values.items():
        if listed is None:
            raise ConfigError(f"--sampler grid: {key} has no list of values; write them as a,b,c or range(…).")
    grid = {key: listed for key, listed in values.items() if listed is not None}
    if math.prod(map(len, grid.values())) > _MOST_COMBINATIONS:
        raise ConfigError(f"--sampler grid: there are more than {_MOST_COMBINATIONS:,} combinations.")
    return grid
