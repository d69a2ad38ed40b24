"""Modules of OpenMMLab libraries by name (`type: mmdet.ResNeXt` in a config)."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from collections.abc import Callable
from typing import Any

from mmdet3d.blocks import nearest

__all__ = ["LIBRARIES", "find_class"]

# Per library: the module whose import registers its models, and the one that holds the registry.
LIBRARIES = {
    "mmcv": ("mmcv.cnn", "mmengine.registry"),
    "mmdet": ("mmdet.models", "mmdet.registry"),
    "mmengine": ("mmengine.model", "mmengine.registry"),
}


def find_class(name: str) -> Callable[..., Any]:
    """The model class that an OpenMMLab library registers.

    The library is imported here and nowhere else. Without mmcv's compiled operators everything works that calls none of
    them; calling one (deformable convolution, for instance) raises NotImplementedError with the operator's name.

    Args:
        name: `library.Class`, for instance `mmdet.ResNeXt`.

    Raises:
        ValueError: an unknown library or class, or a library that is not installed or cannot be imported.
    """
    library, _, class_name = name.partition(".")
    if library not in LIBRARIES:
        raise ValueError(f"unknown library in {name!r}{nearest(library, LIBRARIES)} (known: {', '.join(LIBRARIES)})")
    models, registry = (_import(module, name) for module in LIBRARIES[library])
    found = registry.MODELS.get(class_name)
    if found is None:
        known = registry.MODELS.module_dict
        raise ValueError(f"{library} registers no model {class_name!r}{nearest(class_name, known)} ({models.__name__})")
    return found


def _import(module: str, wanted: str) -> types.ModuleType:
    _provide_mmcv_operators()
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ValueError(
            f"{wanted} needs {module}, which cannot be imported ({error}); "
            "pip install -e '.[openmmlab]' in the checkout"
        ) from error


def _provide_mmcv_operators() -> None:
    """Let `mmcv.ops`, which every model of mmdet imports, load where mmcv was installed without compiled operators."""
    if "mmcv._ext" in sys.modules or importlib.util.find_spec("mmcv") is None:
        return
    if importlib.util.find_spec("mmcv._ext") is None:
        sys.modules["mmcv._ext"] = _MissingOperators("mmcv._ext")


class _MissingOperators(types.ModuleType):
    """Stands for mmcv's extension module: has every operator, and each says that it is not there."""

    def __getattr__(self, operator: str) -> Callable[..., Any]:
        if operator.startswith("__"):
            raise AttributeError(operator)

        def missing(*args: Any, **kwargs: Any) -> Any:
            raise NotImplementedError(
                f"mmcv's operator {operator} is not compiled; install mmcv with operators instead of mmcv-lite"
            )

        return missing
