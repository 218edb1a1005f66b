"""Composes configurations for programs that are not Hydra's: the Python interface, and `mnist-cnn search`."""

import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from mnist_cnn import config
from mnist_cnn.config import Config
from mnist_cnn.errors import ConfigError
from mnist_cnn.hydra_cli import compose
from mnist_cnn.hydra_cli.arguments import checked_arguments
from mnist_cnn.hydra_cli.compose import CONF, compose_run, config_loader
from mnist_cnn.hydra_cli.explain import explain


def configured(settings: Sequence[str]) -> tuple[Config, str]:
    """The typed configuration that these settings ask for, and the command that would do the same.

    ConfigError for a wrong setting, and for flags, which belong on a command line.
    """
    flag = _first_flag(settings)
    if flag is not None:
        raise ConfigError(f"{flag}: flags are for the command line; only settings, key=value, can be given here.")
    with _explained(settings):
        checked = checked_arguments(settings, CONF).settings
        composed = compose_run(config_loader(CONF, None), checked)
    return config.to_config(composed), shlex.join(["mnist-cnn", "train", *checked])


def chosen_options(settings: Sequence[str]) -> dict[str, Any]:
    """The option, or the list of options, that these settings choose in each group of `conf/`."""
    with _explained(settings):
        checked = checked_arguments(settings, CONF).settings
        return compose.chosen_options(config_loader(CONF, None), checked)


def overrides(settings: Sequence[str]) -> list[Override]:
    """Settings as Hydra's grammar reads them; each may have several values, or say what they lie between."""
    flag = _first_flag(settings)
    if flag is not None:
        raise ConfigError(f"{flag}: there is no such option. Settings are written key=value.")
    with _explained(settings):
        parsed: list[Override] = OverridesParser.create().parse_overrides(
            checked_arguments([*settings, "-m"], CONF).settings
        )
        return parsed


def _first_flag(settings: Sequence[str]) -> str | None:
    return next((setting for setting in settings if setting.startswith("-")), None)


@contextmanager
def _explained(settings: Sequence[str]) -> Iterator[None]:
    """Turn what Hydra refuses into a ConfigError of one line."""
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(explain(error, CONF, list(settings))) from error
