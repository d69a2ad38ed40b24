"""Where the settings lie that must agree: the data sets of a config, and the networks that it names."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmdet3d.registry import DATASETS, MODELS, TRANSFORMS, Registry

__all__ = ["DataSide", "Disagreement", "ModelSide", "data_sides", "model_sides", "shown"]


@dataclass(frozen=True)
class Disagreement:
    """Two settings that do not go together.

    Args:
        sentence: both keys, and what to do.
        refused: whether nothing sensible can be meant by it.
    """

    sentence: str
    refused: bool = True


@dataclass(frozen=True)
class DataSide:
    """A data set of a config: `get("frame")` is an argument of it, `get("GTDepth.keyframe_only")` one of a transform.

    Args:
        key: where it stands, `data.train`.
        block: its arguments.
        whose: the config that it is of, for messages; empty for the one at hand.
    """

    key: str
    block: Mapping[str, Any]
    whose: str = ""

    def has(self, key: str) -> bool:
        return self.get(key) is not None

    def get(self, key: str) -> Any:
        """The value, or the default of its class; None where there is neither."""
        kind, dot, argument = key.partition(".")
        if not dot:
            return _argument(DATASETS, self.block, key)
        for transform in self.block.get("pipeline") or ():
            if isinstance(transform, Mapping) and transform.get("type") == kind:
                return _argument(TRANSFORMS, transform, argument)
        return None

    def name(self, key: str) -> str:
        return self.names([self], key)

    @staticmethod
    def names(sides: Sequence[DataSide], key: str) -> str:
        """What to call a setting that several data sets share: `frame of data.val and data.test`."""
        places = [side.key for side in sides]
        listed = " and ".join([", ".join(places[:-1]), places[-1]] if len(places) > 1 else places)
        return f"{key} of {listed}{sides[0].whose}"


@dataclass(frozen=True)
class ModelSide:
    """A network of a config.

    Args:
        key: where it stands, `model`, or `model` of another file.
        block: its arguments.
        trained_on: the data sets of the config that trained it, if that is another one.
        part: its name in the model that names its config, such as `teacher`; empty for that model itself.
        maps_classes: it teaches with a centre-based head, whose classes are matched to the student's by name.
    """

    key: str
    block: Mapping[str, Any]
    trained_on: tuple[DataSide, ...] = ()
    part: str = ""
    maps_classes: bool = False

    def has(self, key: str) -> bool:
        return self.get(key) is not None

    def get(self, key: str) -> Any:
        """The value at a dotted key, or the default of the class whose argument it is; None where there is neither."""
        *path, last = key.split(".")
        node: Any = self.block
        for part in path:
            node = node.get(part) if isinstance(node, Mapping) else None
        return _argument(MODELS, node, last) if isinstance(node, Mapping) else None

    def name(self, key: str) -> str:
        where, _, file = self.key.partition(" ")
        return f"{where}.{key}{f' {file}' if file else ''}"


def data_sides(cfg: Mapping[str, Any], whose: str = "") -> list[DataSide]:
    """Those of `data` that there are, without what repeats or wraps them; `unlabelled` is `train` with its changes."""
    sides = []
    for split in ("train", "val", "test"):
        block = (cfg.get("data") or {}).get(split)
        if isinstance(block, Mapping):
            inner = block["dataset"] if isinstance(block.get("dataset"), Mapping) else block
            sides.append(DataSide(f"data.{split}", inner, whose))
    extra = (cfg.get("data") or {}).get("unlabelled")
    if isinstance(extra, Mapping) and sides and sides[0].key == "data.train":
        changes = {key: value for key, value in extra.items() if key != "share"}
        sides.append(DataSide("data.unlabelled", {**sides[0].block, **changes}, whose))
    return sides


def model_sides(cfg: Mapping[str, Any], where: str = "") -> list[ModelSide]:
    """The model of a config and those of the configs that it names, such as a teacher's and a student's.

    A network that starts from no checkpoint was trained on nothing yet.
    """
    model = cfg.get("model")
    if not isinstance(model, Mapping):
        return []
    sides = [ModelSide(f"model{where}", model)]
    several = model.get("teachers") or {}
    for key, block in [*model.items(), *((f"teachers.{name}", several[name]) for name in several)]:
        if not isinstance(block, Mapping) or not isinstance(block.get("model"), Mapping):
            continue
        whose = f" of {block['config']} (model.{key})" if "config" in block else f" of model.{key}"
        trained = tuple(data_sides(block, whose)) if block.get("checkpoint") else ()
        if inner := model_sides(block, whose):
            first, *others = inner
            maps_classes = key.startswith("teacher") and first.get("heads.object.tasks") is not None
            sides += [ModelSide(first.key, first.block, trained, key, maps_classes), *others]
    return sides


def shown(value: Any) -> str:
    """As a message shows it; equal settings look the same, whether their numbers are whole or not."""
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(shown, value))}]"
    return f"{value:g}" if isinstance(value, (int, float)) and not isinstance(value, bool) else str(value)


def _argument(registry: Registry, block: Mapping[str, Any], key: str) -> Any:
    if key in block or not isinstance(block.get("type"), str):
        return block.get(key)
    try:
        parameter = inspect.signature(registry.get(block["type"])).parameters.get(key)
    except ValueError:  # an unknown type, which the builder names
        return None
    return None if parameter is None or parameter.default is inspect.Parameter.empty else parameter.default
