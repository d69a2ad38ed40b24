"""Parts that other packages bring: by a config's `imports`, by entry points of installed packages, by full names.

Importing such a module is all it takes: its decorators register its classes. The current folder is importable for it,
as for a script that lies there.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterable
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

__all__ = ["GROUP", "find_class", "import_modules", "imported", "load_entry_points", "module_names"]

GROUP = "distill3d.plugins"

_imported: dict[str, None] = {}  # in order
_entry_points_loaded = False


def module_names(value: Any, where: str) -> list[str]:
    """What a config or the command line gives as `imports`: a list of modules, or one.

    Raises:
        ValueError: something else, or a name that no module can have.
    """
    names = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(names, (list, tuple)):
        raise ValueError(f"imports in {where} must be a list of modules such as [my_package], got {value!r}")
    for name in names:
        if not isinstance(name, str) or not all(part.isidentifier() for part in name.split(".")):
            raise ValueError(f"imports in {where}: {name!r} is no name of a module, which is written my_package.part")
    return list(names)


def import_modules(names: Iterable[str], where: str = "imports") -> None:
    """Import modules, which register what they define.

    Args:
        where: what names them, for messages.

    Raises:
        ValueError: one is not found, or fails while it is imported.
    """
    for name in names:
        _import(name, where)
        _imported[name] = None


def imported() -> tuple[str, ...]:
    """What `import_modules` has imported, for processes that start without it."""
    return tuple(_imported)


def load_entry_points() -> None:
    """Import the plugins of installed packages (entry points of the group `distill3d.plugins`), once.

    Raises:
        ValueError: one cannot be imported; the message names its package.
    """
    global _entry_points_loaded
    if _entry_points_loaded:
        return
    _entry_points_loaded = True  # while they are imported they may ask for registered classes
    try:
        for point in entry_points(group=GROUP):
            owner = f", which the installed package {point.dist.name} brings," if point.dist else ""
            _import(point.value.partition(":")[0].strip(), f"the plugin {point.name}{owner}")
    except ValueError:
        _entry_points_loaded = False
        raise


def find_class(name: str, hint: str = "", key: str = "type") -> Callable[..., Any]:
    """The class or function that a full name (`my_package.losses.MyLoss`) stands for.

    Args:
        hint: for the message if there is no such module.
        key: of the config, for messages.

    Raises:
        ValueError: the module cannot be imported, or has nothing of that name that can be called.
    """
    module_name, _, class_name = name.rpartition(".")
    module = _import(module_name, f"{key}: {name}", hint)
    found = getattr(module, class_name, None)
    if not callable(found):
        raise ValueError(f"{key}: {name}: {_place(module)} has no class or function {class_name!r}")
    return found


def _import(name: str, where: str, hint: str = "") -> ModuleType:
    if name in sys.modules:
        return sys.modules[name]
    here = os.getcwd()
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        # Its own import of something else is a fault of another kind, and said below.
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise _broken(name, where, error) from error
        if name.endswith(".py"):
            hint += f", name modules without .py ({name.removesuffix('.py')!r})"
        raise ValueError(
            f"{where}: there is no module {error.name!r}{hint}; it was looked for in the current folder ({here}), in "
            f"PYTHONPATH ({os.environ.get('PYTHONPATH') or 'not set'}) and among the packages of {sys.prefix}"
        ) from None
    except Exception as error:
        raise _broken(name, where, error) from error


def _broken(name: str, where: str, error: Exception) -> ValueError:
    spec = importlib.util.find_spec(name) if "." not in name else None
    file = f" ({spec.origin})" if spec is not None and spec.origin else ""
    return ValueError(f"{where}: the module {name}{file} cannot be imported: {type(error).__name__}: {error}")


def _place(module: ModuleType) -> str:
    file = getattr(module, "__file__", None)
    return f"{module.__name__} ({Path(file)})" if file else module.__name__
