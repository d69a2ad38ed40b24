"""YAML text of plain values, with YAML 1.2's numbers, from anybody."""

from __future__ import annotations

import re
from typing import Any

import yaml

__all__ = ["MOST_VALUES", "parse_yaml", "yaml_text"]

MOST_VALUES = 1_000_000  # that a text may stand for

# YAML 1.2's: `1e-3` is a number, which in YAML 1.1 (PyYAML's) needs a dot and a signed exponent.
_FLOAT = re.compile(
    r"[-+]?(?:(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.(?:inf|Inf|INF))$"
    r"|\.(?:nan|NaN|NAN)$"
)


def _with_our_floats(cls: Any) -> Any:
    tag = "tag:yaml.org,2002:float"
    resolvers = cls.yaml_implicit_resolvers.items()
    cls.yaml_implicit_resolvers = {first: [r for r in rules if r[0] != tag] for first, rules in resolvers}
    cls.add_implicit_resolver(tag, _FLOAT, list("-+.0123456789"))
    return cls


@_with_our_floats
class _Loader(yaml.SafeLoader):
    pass


@_with_our_floats
class _Dumper(yaml.SafeDumper):
    """Quotes the text that the loader would take for a number."""


def parse_yaml(text: str | bytes) -> Any:
    """The content of YAML text, with YAML 1.2's numbers (`1e-3`).

    Raises:
        yaml.YAMLError: it is not valid, nested too deeply, or stands for more than a million values by its aliases.
    """
    try:
        content = yaml.load(text, Loader=_Loader)
        size = _size(content, {})
    except (ValueError, RecursionError) as error:  # a date that there is not, for one
        raise yaml.YAMLError(str(error)) from error
    if size > MOST_VALUES:
        raise yaml.YAMLError(f"aliases make {size} values of it, more than {MOST_VALUES}")
    return content


def _size(value: Any, known: dict[int, int | None]) -> int:
    """How many values there are with aliases written out."""
    if not isinstance(value, (dict, list)):
        return 1
    if id(value) not in known:
        known[id(value)] = None
        items = value.values() if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_size(item, known) for item in items)
    size = known[id(value)]
    if size is None:
        raise yaml.YAMLError("an alias stands for something that it lies in itself")
    return size


def yaml_text(value: Any) -> str:
    """Plain values as YAML text that `parse_yaml` reads as the same."""
    text: str = yaml.dump(value, Dumper=_Dumper, sort_keys=False, default_flow_style=None, width=120)
    return text
