"""Names in configs (`type: GatedFuser`) to classes, with errors that help."""

from __future__ import annotations

import difflib
import importlib
import inspect
import math
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmdet3d import plugins

__all__ = ["DATASETS", "MODELS", "TRANSFORMS", "Registry", "check_kind", "check_kinds", "nearest", "number"]

_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


def nearest(name: str, known: Iterable[str]) -> str:
    """`", did you mean X?"` for the known name closest to `name`, or an empty string."""
    match = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f", did you mean {match[0]!r}?" if match else ""


def number(value: Any, key: str) -> float:
    """`value` of the config's `key`; raises ValueError if it is no finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"config key {key} must be a number, got {value!r}")
    return float(value)


def check_kinds(function: Callable[..., Any], arguments: Mapping[str, Any], where: str = "") -> None:
    """Raise ValueError for an argument of another kind than `function`, or a dataclass, declares it to be.

    Args:
        function: annotated; what is not, or cannot be resolved, is not compared.
        arguments: by name.
        where: what to put before a name in a message, such as `model.balance.`.
    """
    try:
        hints = typing.get_type_hints(function.__init__ if inspect.isclass(function) else function)
    except (NameError, TypeError):
        return
    for name, value in arguments.items():
        if name in hints:
            key = f"{where}{name}" if where else f"{name!r} of {function.__name__}"
            check_kind(value, hints[name], key)


def check_kind(value: Any, hint: Any, key: str) -> None:
    """Raise ValueError, with the config's `key`, unless `value` is of the kind that the annotation `hint` names.

    Text, numbers, true and false, lists and mappings are told apart, and what is in a list; null passes. A class that
    takes nothing but null says itself why.
    """
    if hint is not types.NoneType and value is not None and not _fits(value, hint):
        raise ValueError(f"config key {key} must be {_named(hint)}, got {value!r}")


def _fits(value: Any, hint: Any) -> bool:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, each) for each in inner)
    if hint is int:
        return _fits(value, float) and float(value).is_integer()
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint in (bool, str, types.NoneType):
        return isinstance(value, hint)
    if origin in (list, tuple, Sequence):
        if isinstance(value, (str, Mapping)) or not isinstance(value, Iterable):
            return False
        element = inner[0] if len(set(inner) - {...}) == 1 else Any
        return not isinstance(value, (list, tuple)) or all(v is None or _fits(v, element) for v in value)
    return isinstance(value, Mapping) if origin in (dict, Mapping) else True


def _named(hint: Any) -> str:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(_named(each) for each in inner if each is not types.NoneType))
    if origin in (list, tuple, Sequence):
        element = _KINDS.get(inner[0], "") if inner else ""
        return f"a list of {element.removeprefix('a ')}s" if element.startswith("a ") else "a list"
    return _KINDS.get(hint, "a mapping")


class Registry:
    """Classes by name; the modules that register them are imported at the first look-up.

    Args:
        kind: what is registered, for messages ("model", "transform").
        packages: modules whose import fills the registry, before the plugins of installed packages do.
    """

    def __init__(self, kind: str, packages: Iterable[str]) -> None:
        self.kind = kind
        self._packages = tuple(packages)
        self._classes: dict[str, Callable[..., Any]] = {}
        self._filled = False

    def register(self, cls: Callable[..., Any]) -> Callable[..., Any]:
        """Class decorator; the class's own name is the config's `type`.

        Raises:
            ValueError: another class has that name.
        """
        name = cls.__name__
        if not cls.__module__.startswith("mmdet3d."):
            self._fill()  # a name that is taken is then found here, and not when ours are registered
        known = self._classes.get(name)
        # A module that is imported again (in a notebook) brings its classes again.
        if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ValueError(
                f"{self.kind} {name} of {cls.__module__}: {known.__module__} has registered that name; choose another"
            )
        self._classes[name] = cls
        return cls

    def names(self) -> list[str]:
        self._fill()
        return sorted(self._classes)

    def get(self, name: str) -> Callable[..., Any]:
        """The class called `name`.

        `scope.Name` (`mmdet.ResNeXt`) is looked up in that OpenMMLab library, `timm.name` among timm's models, and any
        other `module.Name` in that module, which need not register it.

        Raises:
            ValueError: nothing of that name is registered, or the module cannot be imported or has no such class.
        """
        if "." in name:
            from mmdet3d.interop import openmmlab, timm_models

            scope = name.partition(".")[0]
            if scope in openmmlab.LIBRARIES:
                return openmmlab.find_class(name)
            if scope == timm_models.LIBRARY:
                return timm_models.find_class(name)
            return plugins.find_class(name, nearest(scope, [*openmmlab.LIBRARIES, timm_models.LIBRARY]))
        self._fill()
        if name not in self._classes:
            raise ValueError(f"unknown {self.kind} type {name!r}{_unregistered(name) or nearest(name, self._classes)}")
        return self._classes[name]

    def build(self, cfg: Mapping[str, Any], **extra: Any) -> Any:
        """Instantiate `cfg["type"]` with the remaining keys of `cfg` and `extra`.

        Raises:
            ValueError: no `type`, an unknown type, an unknown key or a missing one, or a value of another kind than the
                class declares.
        """
        if not isinstance(cfg, Mapping) or "type" not in cfg:
            raise ValueError(f"a {self.kind} config needs a `type` key, got {cfg!r}")
        arguments = {k: v for k, v in cfg.items() if k != "type"} | extra
        cls = self.get(cfg["type"])
        _check_arguments(cls, arguments)
        check_kinds(cls, arguments)
        return cls(**arguments)

    def _fill(self) -> None:
        if not self._filled:
            self._filled = True  # what is imported now may ask, too
            try:
                for package in self._packages:
                    importlib.import_module(package)
                plugins.load_entry_points()
            except Exception:
                self._filled = False
                raise


def _unregistered(name: str) -> str:
    """Where in this package a class of that name is written that no import reaches; empty if there is none."""
    root = Path(__file__).resolve().parent
    for file in sorted(root.rglob("*.py")):
        if re.search(rf"^class {re.escape(name)}\b", file.read_text(errors="replace"), re.MULTILINE):
            where = file.relative_to(root.parent)
            return (
                f": the class is in {where}, but is not registered; decorate it with @MODELS.register (or DATASETS, "
                f"TRANSFORMS) and import it in {where.parent / '__init__.py'}"
            )
    return ""


def _check_arguments(cls: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
    parameters = inspect.signature(cls).parameters.values()
    named = {p.name: p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        for key in arguments:
            if key not in named:
                raise ValueError(
                    f"unknown key {key!r} for {cls.__name__}{nearest(key, named)} (known: {', '.join(named)})"
                )
    missing = [n for n, p in named.items() if p.default is p.empty and n not in arguments]
    if missing:
        raise ValueError(f"{cls.__name__} needs {', '.join(map(repr, missing))}, which the config does not give")


MODELS = Registry("model", ("mmdet3d.models", "mmdet3d.distill"))
DATASETS = Registry("dataset", ("mmdet3d.datasets",))
TRANSFORMS = Registry("transform", ("mmdet3d.datasets.transforms",))
