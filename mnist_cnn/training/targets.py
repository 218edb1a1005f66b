"""Hydra targets: the one place where a setting becomes code.

A target is a mapping whose `_target_` names a class and whose other keys are the arguments. Optimisers, schedulers,
callbacks and loggers are given so.
"""

import inspect
from collections.abc import Mapping
from importlib import import_module
from typing import Any, TypeVar

from hydra.utils import instantiate

from mnist_cnn.errors import ConfigError, did_you_mean

T = TypeVar("T")


def class_of(target: Mapping[str, Any], key: str, kind: type[T]) -> type[T]:
    """The class that a target names; ConfigError, naming `key`, unless it is a subclass of `kind`."""
    path = target.get("_target_")
    if path is None:
        raise ConfigError(f"{key}: it has no _target_, which names its class.")
    module, _, name = str(path).rpartition(".")
    try:
        found = getattr(import_module(module or name), name, None)
    except (ImportError, ValueError) as error:
        raise ConfigError(f"{key}._target_={path}: there is no such module ({_line(error)}).") from error
    if found is None:
        near = did_you_mean(name, dir(import_module(module or name)))
        raise ConfigError(f"{key}._target_={path}: the module {module or name} has no class {name}.{near}")
    if not (isinstance(found, type) and issubclass(found, kind)):
        raise ConfigError(f"{key}._target_={path}: it must name a subclass of {kind.__module__}.{kind.__name__}.")
    return found


def make(target: Mapping[str, Any], key: str, kind: type[T], *arguments: Any, **further: Any) -> T:
    """An object of a target's class, with `arguments` in front and `further` ones behind those of the target.

    ConfigError names the key of an argument that the class does not take or refuses.
    """
    found = class_of(target, key, kind)
    given = {name: value for name, value in target.items() if not name.startswith("_")}
    _check_names_and_types(found, given, key)
    try:
        inner = {name: instantiate(value) if _is_target(value) else value for name, value in given.items()}
        return found(*arguments, **inner, **further)
    except Exception as error:  # classes raise anything for arguments that they cannot use
        for name, value in given.items():
            if _works(found, *arguments, **{other: rest for other, rest in given.items() if other != name}, **further):
                raise ConfigError(f"{key}.{name}={_written(value)}: {_line(error)}") from error
        raise ConfigError(f"{key} ({target['_target_']}): {_line(error)}") from error


def _is_target(value: Any) -> bool:
    return isinstance(value, Mapping) and "_target_" in value


def _works(found: type, *arguments: Any, **given: Any) -> bool:
    try:
        found(*arguments, **given)
    except Exception:
        return False
    return True


def _check_names_and_types(found: type, given: Mapping[str, Any], key: str) -> None:
    parameters = inspect.signature(found).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    for name, value in given.items():
        if name not in parameters and takes_any:
            continue
        if name not in parameters:
            near = did_you_mean(name, parameters)
            raise ConfigError(f"{key}.{name}={_written(value)}: {found.__name__} takes no such argument.{near}")
        default = parameters[name].default
        if isinstance(default, bool) and not isinstance(value, bool):
            raise ConfigError(f"{key}.{name}={_written(value)}: it must be true or false.")
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if isinstance(default, float) and not (number or value is None):
            raise ConfigError(f"{key}.{name}={_written(value)}: it must be a number.")


def _written(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _line(error: BaseException) -> str:
    return " ".join(str(error.__cause__ or error).split()) or type(error).__name__
