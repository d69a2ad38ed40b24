"""Names in configs (`type: GatedFuser`) to classes, with errors that help."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from mmdet3d import plugins
from mmdet3d.blocks import ConfigKeyError, nearest, read_block

__all__ = ["DATASETS", "MODELS", "STEPS", "TRANSFORMS", "Registry"]


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

    def build(self, cfg: Mapping[str, Any], key: str = "", /, **extra: Any) -> Any:
        """Instantiate `cfg["type"]` with the remaining keys of `cfg` and `extra`, see `blocks.read_block`.

        Args:
            key: of the config, where `cfg` stands, as seen by whoever builds it; by default the class's name.

        Raises:
            ValueError: no `type`, or an unknown one.
            ConfigKeyError: an unknown key or a missing one, or a value of another kind than the class declares.
        """
        if not isinstance(cfg, Mapping) or "type" not in cfg:
            where = f" ({key})" if key else ""
            raise ValueError(f"a {self.kind} config{where} needs a `type` key, got {cfg!r}")
        if not isinstance(cfg["type"], str) or not cfg["type"]:
            place = f"{key}.type" if key else "type"
            raise ConfigKeyError(place, f" must name a {self.kind} type, got {cfg['type']!r}")
        cls = self.get(cfg["type"])
        arguments = {k: v for k, v in cfg.items() if k != "type"} | extra
        return read_block(cls, arguments, key or cls.__name__)

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


MODELS = Registry("model", ("mmdet3d.models", "mmdet3d.distill"))
DATASETS = Registry("dataset", ("mmdet3d.datasets",))
TRANSFORMS = Registry("transform", ("mmdet3d.datasets.transforms",))
# What is done before and after an exported network.
STEPS = Registry("step", ("mmdet3d.models",))
