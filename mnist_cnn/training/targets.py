"""Instantiate Hydra targets: find, check and construct the class that `_target_` names.

A target is a mapping whose `_target_` names a class and whose other keys are its arguments. Optimisers, schedulers,
callbacks and loggers are targets.
"""

import inspect
import math
from collections.abc import Mapping
from importlib import import_module
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin

from hydra.utils import instantiate

from mnist_cnn.config import written
from mnist_cnn.errors import ConfigError, did_you_mean, flat

T = TypeVar("T")

# Keys of a target that are for Hydra, not for the class. Only nested targets are Hydra's to instantiate: elsewhere, all
# but `_target_` have no effect.
_HYDRA_KEYS = ("_target_", "_partial_", "_convert_", "_recursive_")
# What messages call the types that a setting can have.
_NAMES: dict[type, str] = {
    bool: "true or false", int: "a whole number", float: "a number", str: "a text", NoneType: "null"
}  # fmt: skip


def class_of(target: Mapping[str, Any], key: str, kind: type[T]) -> type[T]:
    """The class that a target names; ConfigError, naming `key`, unless it is a subclass of `kind`."""
    if not isinstance(target, Mapping):
        raise ConfigError(f"{written(key, target)}: it must have a _target_, which names its class, and arguments.")
    path = target.get("_target_")
    if path is None:
        rest = [f"'~{key}'"] if "." in key else [f"'~{key}.{name}'" for name in target]  # such as a recipe's values
        hint = f" To have none, add {' '.join(rest)}." if key != "optimizer" else ""
        raise ConfigError(f"{key}: _target_ is missing; it names the class.{hint}")
    shown = written(f"{key}._target_", path)
    module, _, name = str(path).rpartition(".")
    if not all(part.isidentifier() for part in (*module.split("."), name)):
        raise ConfigError(f"{shown}: write the class with its module, such as torch.optim.SGD.")
    try:
        found = getattr(import_module(module), name, None)
    except Exception as error:  # a module of the user's own may raise anything
        raise ConfigError(f"{shown}: the module can't be imported: {flat(error)}.") from error
    if found is None:
        near = did_you_mean(name, dir(import_module(module)))
        raise ConfigError(f"{shown}: the module {module} has no class {name}.{near}")
    if not (isinstance(found, type) and issubclass(found, kind)):
        raise ConfigError(f"{shown}: it must name a subclass of {kind.__module__}.{kind.__name__}.")
    return found


def check(target: Mapping[str, Any], key: str, kind: type[T]) -> type[T]:
    """`class_of`; ConfigError as well for an argument that the class does not take, or whose type is wrong."""
    found = class_of(target, key, kind)
    parameters = inspect.signature(found).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    for name, value in _arguments(target).items():
        if isinstance(value, float) and math.isnan(value):  # classes compare it with their limits, which finds nothing
            raise ConfigError(f"{written(f'{key}.{name}', value)}: it must be a number.")
        if name in parameters:
            check_type(parameters[name], value, f"{key}.{name}")
        elif not takes_any:
            near = did_you_mean(name, parameters)
            raise ConfigError(f"{written(f'{key}.{name}', value)}: {found.__name__} takes no such argument.{near}")
    return found


def check_type(parameter: inspect.Parameter, value: Any, key: str) -> None:
    """Raise ConfigError, naming `key`, if the parameter's annotation or default rules out the type of the value."""
    default, annotation = parameter.default, parameter.annotation
    kinds = set(get_args(annotation)) if get_origin(annotation) in (Union, UnionType) else {annotation}
    if not kinds <= set(_NAMES):  # it says more than plain types, or nothing; the default says something too
        is_flag = bool in kinds or isinstance(default, bool)
        kinds = {bool} if is_flag else {float, NoneType} if isinstance(default, float) else {type(value)}
    if float in kinds:
        kinds.discard(int)  # a whole number is a number
    kind = float if type(value) is int and float in kinds else type(value)
    if kind not in kinds and value is not default:
        wanted = " or ".join(name for plain, name in _NAMES.items() if plain in kinds)
        raise ConfigError(f"{written(key, value)}: it must be {wanted}.")


def make(target: Mapping[str, Any], key: str, kind: type[T], *arguments: Any, **further: Any) -> T:
    """Construct a target's class; `arguments` are passed first, `further` as extra keywords.

    ConfigError names the key of an argument that the class does not take or rejects.
    """
    found = check(target, key, kind)
    given = _arguments(target)
    inner = dict(given)
    try:
        inner |= {name: instantiate(value) for name, value in given.items() if _is_target(value)}
        return found(*arguments, **inner, **further)
    except Exception as error:  # classes raise anything for arguments that they cannot use
        if isinstance(error, ModuleNotFoundError) and key.startswith("logger."):
            raise ConfigError(f"{key}: it is not installed; pip install -e '.[{key.partition('.')[2]}]'") from error
        for name, value in given.items():
            if _works(found, *arguments, **{other: rest for other, rest in inner.items() if other != name}, **further):
                raise ConfigError(f"{written(f'{key}.{name}', value)}: {flat(error.__cause__ or error)}") from error
        raise ConfigError(f"{key} ({target['_target_']}): {flat(error.__cause__ or error)}") from error


def _arguments(target: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in target.items() if name not in _HYDRA_KEYS}


def _is_target(value: Any) -> bool:
    return isinstance(value, Mapping) and "_target_" in value


def _works(found: type, *arguments: Any, **given: Any) -> bool:
    try:
        found(*arguments, **given)
    except Exception:
        return False
    return True
