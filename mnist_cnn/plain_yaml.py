"""Reads YAML that may come from anybody: plain values only, and not too many."""

import re
from typing import Any

import yaml

# More than any configuration of this project has.
_MAX_EVENTS, _MAX_DEPTH = 20_000, 40


class Loader(yaml.SafeLoader):
    """Takes `1e-3` for a number, as Hydra does; YAML 1.1 wants `1.0e-3`."""


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+\Z"), list("-+0123456789")
)


def load(text: str, loader: type[yaml.SafeLoader] = Loader) -> Any:
    """The values in a YAML text, which must be small enough to be parsed.

    ValueError if there are aliases, which can stand for any number of values, tags, which name types, or too many or
    too deep values. PyYAML raises nearly anything for a text that is not YAML.
    """
    depth = 0
    for number, event in enumerate(yaml.parse(text, Loader=loader)):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if isinstance(event, yaml.AliasEvent):
            raise ValueError("it has aliases")
        if getattr(event, "tag", None) is not None:
            raise ValueError("it has tags")
        if number > _MAX_EVENTS or depth > _MAX_DEPTH:  # PyYAML's time grows with the square of the depth
            raise ValueError("it has more values, or deeper ones, than any configuration")
    return yaml.load(text, Loader=loader)
