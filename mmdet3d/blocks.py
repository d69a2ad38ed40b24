"""Blocks of a config as typed objects, and the one kind of sentence that says what is wrong with a key.

What a block may hold is said once, by the dataclass or the class that it becomes: its names, types and defaults. Every
complaint is a `ConfigKeyError`: the dotted key as an override names it, what was given, and what is allowed or nearest.
"""

from __future__ import annotations

import contextlib
import difflib
import inspect
import math
import types
import typing
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from typing import Any, Literal, TypeVar

__all__ = [
    "MOST_SEED",
    "ConfigKeyError",
    "at_least",
    "block_type",
    "check_keys",
    "check_kind",
    "check_seed",
    "find_key",
    "find_tail",
    "hints_from",
    "kind_name",
    "nearest",
    "not_negative",
    "number",
    "numbers",
    "positive",
    "read_block",
]

Block = TypeVar("Block")

MOST_SEED = 2**32 - 1  # the largest that all generators of random numbers take, which is NumPy's

_UNKNOWN = "unknown config key"
_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


class ConfigKeyError(ValueError):
    """What is wrong with one key of a config.

    Args:
        key: dotted; of a block that does not know its place, as seen from that block.
        problem: the rest of the sentence.
        kind: its beginning.
    """

    def __init__(self, key: str, problem: str = "", kind: str = "config key") -> None:
        super().__init__(key, problem, kind)
        self.key, self.problem, self.kind = key, problem, kind

    def __str__(self) -> str:
        return f"{self.kind} {self.key}{self.problem}"

    def look_around(self, config: Mapping[str, Any]) -> None:
        """Of an unknown key that is like none beside it, name the key of another level of `config`."""
        if self.kind == _UNKNOWN and "did you mean" not in self.problem:
            name = self.key.rpartition(".")[2]
            self.problem = find_key(name, config, other_than=self.key) + self.problem

    def put_into(self, block: str) -> None:
        """Say where the block lies, unless the key is already seen from the top of the config."""
        if self.key != block and not self.key.startswith(f"{block}."):
            self.key = _below(block, self.key)


def read_block(cls: Callable[..., Block], given: Any, key: str) -> Block:
    """`given`, the block `key` of a config, as a `cls`.

    Names, kinds and defaults are those of the constructor's annotated arguments. An argument that is annotated as a
    dataclass is a block itself. Names in `cls.without_effect` are refused with the reason that it gives.

    Args:
        cls: a dataclass or any class.
        key: where the block lies; empty for the top of a config.
        given: a mapping, or what is a `cls` already.

    Raises:
        ConfigKeyError: no mapping, an unknown or a missing key, a value of another kind, or what `cls` refuses.
    """
    if inspect.isclass(cls) and isinstance(given, cls):
        return typing.cast(Block, given)  # to the checker a class is one, not what calling it gives
    if not isinstance(given, Mapping):
        raise ConfigKeyError(key, f" must be a mapping, got {given!r}")
    parameters = inspect.signature(cls).parameters.values()
    named = {p.name: p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    for name, reason in getattr(cls, "without_effect", {}).items():
        if name in given:
            raise ConfigKeyError(_below(key, name), f" has no effect ({reason}); remove it")
    hints = _hints(cls)
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        check_keys(given, named, key)
    for name, value in given.items():
        check_kind(value, hints.get(name, Any), _below(key, name))
        default = named[name].default if name in named else None
        if value is None and default not in (None, inspect.Parameter.empty) and not _fits(None, hints.get(name, Any)):
            kind = kind_name(hints[name])
            raise ConfigKeyError(_below(key, name), f" must be {kind}, got null; leave it out for {default!r}")
    required = [name for name, p in named.items() if p.default is p.empty]
    check_keys([n for n, v in given.items() if v is not None or _fits(v, hints.get(n, Any))], given, key, required)
    values = {}
    for name, value in given.items():
        inner = block_type(hints.get(name, Any)) if isinstance(value, Mapping) else None
        values[name] = value if inner is None else read_block(inner, value, _below(key, name))
    try:
        return cls(**values)
    except ConfigKeyError as error:
        error.put_into(key)
        raise


def check_keys(given: Iterable[str], known: Collection[str], key: str, required: Iterable[str] = ()) -> None:
    """Raise ConfigKeyError if a name `given` in the block `key` is not `known`, or a `required` one is missing."""
    given = list(given)
    for name in given:
        if name not in known:
            hint = nearest(str(name), known)
            raise ConfigKeyError(_below(key, name), f"{hint} (known: {', '.join(known)})", _UNKNOWN)
    missing = [name for name in required if name not in given]
    if missing:
        others = f", and so {'are' if missing[2:] else 'is'} {', '.join(missing[1:])}" if missing[1:] else ""
        raise ConfigKeyError(_below(key, missing[0]), f" is missing{others}")


def nearest(name: str, known: Iterable[str]) -> str:
    """`", did you mean X?"` for the known name closest to `name`, or an empty string."""
    match = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f", did you mean {match[0]!r}?" if match else ""


@contextlib.contextmanager
def hints_from(config: Mapping[str, Any]) -> Iterator[None]:
    """Unknown keys of blocks of `config` are answered with a key of another level where none beside them is similar."""
    try:
        yield
    except ConfigKeyError as error:
        error.look_around(config)
        raise


def find_key(name: str, config: Mapping[str, Any], cutoff: float = 0.8, other_than: str = "") -> str:
    """`", did you mean 'a.b.X'?"` for a key at any level of a config whose name is that similar; the outermost one."""
    paths = [path for path in _paths(config) if path != other_than]
    names = difflib.get_close_matches(name, {path.rpartition(".")[2] for path in paths}, n=1, cutoff=cutoff)
    found = sorted((path for path in paths if path.rpartition(".")[2] in names), key=lambda path: path.count("."))
    return f", did you mean {found[0]!r}?" if found else ""


def find_tail(key: str, config: Mapping[str, Any]) -> str:
    """`", did you mean 'a.b.KEY'?"` if one key of a config ends in `key`."""
    found = {path for path in _paths(config) if path.endswith(f".{key}")}
    return f", did you mean {found.pop()!r}?" if len(found) == 1 else ""


def _paths(value: Any, within: str = "") -> Iterable[str]:
    """Dotted keys of a mapping, and of those in it."""
    for name, item in value.items() if isinstance(value, Mapping) else ():
        yield _below(within, name)
        yield from _paths(item, _below(within, name))


def number(value: Any, key: str) -> float:
    """`value` of the config's `key`; raises ConfigKeyError if it is no finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ConfigKeyError(key, f" must be a number, got {value!r}")
    return float(value)


def numbers(names: str, value: Sequence[Any], key: str) -> Sequence[Any]:
    """`value` of the config's `key`; raises ConfigKeyError unless it has one number for each of the words `names`."""
    wanted = names.split()
    if len(value) != len(wanted) or any(each is None for each in value):
        raise ConfigKeyError(key, f" must be [{', '.join(wanted)}], got {list(value)}")
    return value


def at_least(least: int, value: Any, key: str) -> int:
    """`value` of the config's `key`; raises ConfigKeyError if it is no integer or a smaller one."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigKeyError(key, f" must be an integer of at least {least}, got {value!r}")
    return value


def check_seed(value: Any, key: str) -> int:
    """`value` of the config's `key`; raises ConfigKeyError if it is no integer that generators take."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MOST_SEED:
        raise ConfigKeyError(key, f" must be an integer from 0 to {MOST_SEED}, got {value!r}")
    return value


def positive(value: Any, key: str) -> float:
    """`value` of the config's `key`; raises ConfigKeyError if it is no finite number above 0."""
    if number(value, key) <= 0:
        raise ConfigKeyError(key, f" must be above 0, got {value!r}")
    return float(value)


def not_negative(value: Any, key: str) -> float:
    """`value` of the config's `key`; raises ConfigKeyError if it is no finite number of at least 0."""
    if number(value, key) < 0:
        raise ConfigKeyError(key, f" must not be negative, got {value!r}")
    return float(value)


def check_kind(value: Any, hint: Any, key: str) -> None:
    """Raise ConfigKeyError unless `value` is of the kind that the annotation `hint` names.

    Texts, numbers, true and false, lists and mappings are told apart, what is in a list, and one of several words; null
    passes. A class that takes nothing but null says itself why.
    """
    if hint is not types.NoneType and value is not None and not _fits(value, hint):
        raise ConfigKeyError(key, f" must be {kind_name(hint)}, got {value!r}")


def block_type(hint: Any) -> type | None:
    """The dataclass that a value annotated as `hint` is read into, if it is a block."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        blocks = [block_type(each) for each in typing.get_args(hint)]
        return next((block for block in blocks if block is not None), None)
    return hint if inspect.isclass(hint) and is_dataclass(hint) else None


def kind_name(hint: Any) -> str:
    """The words for a kind in a message, such as "a number or a list of numbers"."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(kind_name(each) for each in inner if each is not types.NoneType))
    if origin is Literal:
        return f"one of {', '.join(map(str, inner))}" if inner[1:] else str(inner[0])
    if origin in (list, tuple, Sequence):
        element = _KINDS.get(inner[0], "") if inner else ""
        return f"a list of {element.removeprefix('a ')}s" if element.startswith("a ") else "a list"
    return _KINDS.get(hint, "a mapping")


def _below(block: str, name: Any) -> str:
    return f"{block}.{name}" if block else str(name)


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    """Annotations of the arguments; none where one cannot be resolved."""
    try:
        return typing.get_type_hints(function.__init__ if inspect.isclass(function) else function)
    except (NameError, TypeError):
        return {}


def _fits(value: Any, hint: Any) -> bool:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, each) for each in inner)
    if origin is Literal:
        return value in inner
    if hint is int:
        return _fits(value, float) and float(value).is_integer()
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and not math.isnan(value)
    if hint in (bool, str, types.NoneType):
        return isinstance(value, hint)
    if origin in (list, tuple, Sequence):
        if isinstance(value, (str, Mapping)) or not isinstance(value, Iterable):
            return False
        element = inner[0] if len(set(inner) - {...}) == 1 else Any
        return not isinstance(value, (list, tuple)) or all(v is None or _fits(v, element) for v in value)
    if block_type(hint) is not None:
        return isinstance(value, (Mapping, hint))
    return isinstance(value, Mapping) if origin in (dict, Mapping) else value is not None or hint is Any
