"""Instantiate Hydra targets: find, check and construct the class that `_target_` names.

A target is a mapping whose `_target_` names a class and whose other keys are its arguments. Optimisers, schedulers,
callbacks and loggers are targets.
"""

import inspect
from collections.abc import Mapping
from importlib import import_module
from typing import Any, TypeVar, get_args

from hydra.utils import instantiate

from mnist_cnn.errors import ConfigError, did_you_mean, flat

T = TypeVar("T")

# Keys of a target that are for Hydra. Every target here is instantiated in full, whatever the last two say.
_HYDRAS = ("_target_", "_partial_", "_convert_", "_recursive_")


def class_of(target: Mapping[str, Any], key: str, kind: type[T]) -> type[T]:
    """The class that a target names; ConfigError, naming `key`, unless it is a subclass of `kind`."""
    if not isinstance(target, Mapping):
        raise ConfigError(f"{key}={target}: it must have a _target_, which names its class, and the class's arguments.")
    path = target.get("_target_")
    if path is None:
        raise ConfigError(f"{key}: _target_ is missing; it names the class.")
    module, _, name = str(path).rpartition(".")
    if not module:
        raise ConfigError(f"{key}._target_={path}: write the class with its module, such as torch.optim.SGD.")
    try:
        found = getattr(import_module(module), name, None)
    except (ImportError, ValueError) as error:
        raise ConfigError(f"{key}._target_={path}: there is no such module ({flat(error)}).") from error
    if found is None:
        near = did_you_mean(name, dir(import_module(module)))
        raise ConfigError(f"{key}._target_={path}: the module {module} has no class {name}.{near}")
    if not (isinstance(found, type) and issubclass(found, kind)):
        raise ConfigError(f"{key}._target_={path}: it must name a subclass of {kind.__module__}.{kind.__name__}.")
    return found


def make(target: Mapping[str, Any], key: str, kind: type[T], *arguments: Any, **further: Any) -> T:
    """Construct a target's class; `arguments` are passed first, `further` as extra keywords.

    ConfigError names the key of an argument that the class does not take or rejects.
    """
    found = class_of(target, key, kind)
    given = {name: value for name, value in target.items() if name not in _HYDRAS}
    _check_names_and_types(found, given, key)
    inner = dict(given)
    try:
        inner |= {name: instantiate(value) for name, value in given.items() if _is_target(value)}
        return found(*arguments, **inner, **further)
    except Exception as error:  # classes raise anything for arguments that they cannot use
        if isinstance(error, ModuleNotFoundError) and key.startswith("logger."):
            raise ConfigError(f"{key}: it is not installed; pip install -e '.[{key.partition('.')[2]}]'") from error
        for name, value in given.items():
            if _works(found, *arguments, **{other: rest for other, rest in inner.items() if other != name}, **further):
                raise ConfigError(f"{key}.{name}={_written(value)}: {flat(error.__cause__ or error)}") from error
        raise ConfigError(f"{key} ({target['_target_']}): {flat(error.__cause__ or error)}") from error


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
        default, annotation = parameters[name].default, parameters[name].annotation
        is_flag = isinstance(default, bool) or bool in (annotation, *get_args(annotation))
        if is_flag and not isinstance(value, bool) and value is not default:
            raise ConfigError(f"{key}.{name}={_written(value)}: it must be true or false.")
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if isinstance(default, float) and not (number or value is None):
            raise ConfigError(f"{key}.{name}={_written(value)}: it must be a number.")


def _written(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
