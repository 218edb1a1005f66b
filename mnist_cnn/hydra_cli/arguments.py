"""Checks the settings and flags of a command line before Hydra reads them."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from hydra._internal.utils import get_args_parser  # Hydra has no public list of its flags
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from mnist_cnn import config
from mnist_cnn.errors import ConfigError
from mnist_cnn.terminal import train_command

# Settings whose value is a path, taken as it is written: `=`, `,` and quotes mean something else to Hydra.
PATHS = ("resume", "resume_sweep", "run_dir", "model.init_from", "distill.from", "data.root", "data.file")
# Of Hydra's own settings, those that this program decides, and what to write instead.
_OURS = {"hydra.mode": "-m", "hydra.sweep.dir": "run_dir=FOLDER", "hydra.sweep.subdir": "run_dir=FOLDER"}


class Arguments(NamedTuple):
    """A command line as Hydra wants it: the settings, and the flags, which follow them."""

    settings: list[str]
    flags: list[str]
    is_sweep: bool  # -m, and not --help or the like, which run nothing
    config_dir: str | None  # --config-dir: a folder with files of the user's own

    @property
    def words(self) -> list[str]:
        return self.settings + self.flags


def checked_arguments(arguments: Sequence[str], conf: Path) -> Arguments:
    """The arguments as Hydra wants them; ConfigError for what Hydra would answer with a page of text."""
    for argument in arguments:
        key, _, text = argument.partition("=")
        config.require_text(key, text or key)
    arguments = [quoted_path(argument) for argument in arguments]
    parser = get_args_parser()
    setattr(parser, "error", _refuse_flag)  # noqa: B010  # it would print its usage and exit
    options, unknown = parser.parse_known_intermixed_args(arguments)
    if unknown:
        see = f"See: {train_command()} --help"
        raise ConfigError(f"{unknown[0]}: settings are written key=value, without dashes. {see}")
    if options.experimental_rerun is not None:
        raise ConfigError("--experimental-rerun: it unpickles a file, which may run any code; take resume=FOLDER.")
    if options.package is not None and options.cfg is None:
        raise ConfigError("--package: it chooses what --cfg shows; add --cfg job.")
    settings, multirun = list(options.overrides), bool(options.multirun)
    overrides = OverridesParser.create().parse_overrides(settings)
    keys = [override.key_or_group for override in overrides]
    for key, override in zip(keys, overrides, strict=True):
        if "model.init_from" in keys and (key == "model" or key.startswith("model.")) and key != "model.init_from":
            raise ConfigError(f"{key}: model.init_from brings its own network; leave one of them out.")
        if key == "resume" and multirun:
            raise ConfigError("resume: one run is resumed at a time; leave out -m.")
        if key in _OURS:
            raise ConfigError(f"{override.input_line}: write {_OURS[key]} instead.")
        if override.is_sweep_override() and not multirun:
            raise ConfigError(f"{override.input_line}: several values are a sweep; put -m before them.")
        if override.is_delete() and re.search(r"^model\.layers\.\d+$", key):
            raise ConfigError(
                f"~{key}: no layer can be taken out of the list; write the whole list (docs/settings.md)."
            )
        if override.is_sweep_override() or override.is_delete():
            continue
        value = override.value()
        if not key:
            raise ConfigError(f"{override.input_line}: the key is missing.")
        if key in PATHS and value == "":
            raise ConfigError(f"{override.input_line}: name a path, or leave it out.")
        named: list[Any] = value if isinstance(value, list) else [value]
        if (conf / key).is_dir() and not (named and all(name and isinstance(name, str) for name in named)):
            names = ", ".join(sorted(file.stem for file in (conf / key).glob("*.yaml")))
            raise ConfigError(f"{override.input_line}: name one of its options: {names}.")
    flags = list(arguments)
    for setting in settings:
        flags.remove(setting)
    runs_nothing = options.help or options.hydra_help or options.cfg or options.info
    is_sweep = multirun and not (runs_nothing or options.shell_completion)
    return Arguments(settings, flags, is_sweep, options.config_dir)


def _refuse_flag(message: str) -> NoReturn:
    raise ConfigError(f"{message}. See: {train_command()} --hydra-help")


def quoted_path(argument: str) -> str:
    """A path setting in Hydra's quotes; another setting as it is."""
    key, _, value = argument.partition("=")
    in_quotes = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
    is_plain = re.fullmatch(r"[a-z_./][\w./-]*", value, re.ASCII) and value not in ("true", "false", "nan", "inf")
    if key not in PATHS or value == "" or is_plain or (in_quotes and not Path(value).exists()):
        return argument  # as Hydra takes it; `null` is no path
    return f"{key}={quoted(value)}"


def quoted(value: str) -> str:
    """A text in Hydra's quotes, with what has a meaning to Hydra or OmegaConf escaped."""
    value = re.sub(r"(\\*)\$\{", lambda found: f"{found[1] * 2}\\${{", value)
    value = re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), value)
    return f"'{value}'"


def value_of(settings: Sequence[str], key: str) -> str | None:
    """The last value that the settings give to a key, as OmegaConf reads it; None if there is none."""
    overrides = OverridesParser.create().parse_overrides(list(settings))
    values = [override.value() for override in overrides if override.key_or_group == key]
    value = OmegaConf.create({"value": values[-1]}).value if values else None
    return None if value is None else str(value)


def keys_of(settings: Sequence[str]) -> list[str]:
    """The keys of settings, `key=value`."""
    return [override.key_or_group for override in OverridesParser.create().parse_overrides(list(settings))]
