"""The page of all keys, from the classes that read them: `python -m mmdet3d.engine.config_keys PAGE.md`."""

from __future__ import annotations

import inspect
import re
import sys
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mmdet3d.blocks import block_type, kind_name
from mmdet3d.datasets.synthetic.worlds import LAYOUTS
from mmdet3d.distill.balance import BalanceSettings
from mmdet3d.distill.class_gate import ClassGate
from mmdet3d.distill.distiller import StudentBlock
from mmdet3d.distill.label_detector import EncoderBlock, TrainedDetector
from mmdet3d.distill.providers import DetectorBlock, ModuleBlock, RecordedBlock
from mmdet3d.distill.schedule import LossSchedule
from mmdet3d.distill.terms import TermBlock
from mmdet3d.engine.optimizer import Multipliers, ParamwiseSettings
from mmdet3d.engine.recipe_file import Recipe, RunBlock
from mmdet3d.engine.schedule import MOMENTUM_POLICIES, POLICIES
from mmdet3d.engine.settings import Settings
from mmdet3d.registry import DATASETS, MODELS, TRANSFORMS, Registry

__all__ = ["key_page"]

_HEAD = """# Configuration keys

Made by `python -m mmdet3d.engine.config_keys docs/configuration_keys.md` from the classes that read the keys.

A *block* is a mapping of the keys below; a *part* is a mapping with `type: NAME` and the keys of that class. A key
without a default must be given. Any key can be set on the command line by its dotted place
(`--model.heads.object.train_cfg.min_radius 3`), and what is wrong with one is said with that place. Keys at the top of
a YAML that are not listed here, such as `point_cloud_range`, are names that `${...}` refers to; comments in the YAMLs
say what they mean.
"""

# Blocks that no annotation of a class leads to: which key holds them, and what reads them.
_TRAINING: Mapping[str, type] = {
    "the top of a config": Settings,
    "`optimizer.paramwise_cfg`": ParamwiseSettings,
    "`optimizer.paramwise_cfg.custom_keys.NAME`": Multipliers,
    **{f"`lr_config`, policy `{name}`": policy for name, policy in POLICIES.items()},
    **{f"`momentum_config`, policy `{name}`": policy for name, policy in MOMENTUM_POLICIES.items()},
    "`model.student` of a Distiller": StudentBlock,
    "`model.teacher` or `model.teachers.NAME` of a Distiller": DetectorBlock,
    "the same, any module": ModuleBlock,
    "the same, answers on disk": RecordedBlock,
    "`model.losses.NAME` of a Distiller, beside the arguments of the loss": TermBlock,
    "`model.losses.NAME.schedule` of a Distiller": LossSchedule,
    "`model.balance` of a Distiller": BalanceSettings,
    "`model.class_gate` of a Distiller": ClassGate,
    "`model.detector` of a LabelEncoderDetector": TrainedDetector,
    "`model.label_encoder` of a LabelEncoderDetector": EncoderBlock,
}
_RECIPES: Mapping[str, type] = {
    "the top of a recipe": Recipe,
    "`runs.NAME` of a recipe": RunBlock,
    **{f"`data` of a recipe with `layout: {name}`": layout.settings for name, layout in LAYOUTS.items()},
}


def key_page() -> str:
    """The page as Markdown."""
    blocks: dict[type, None] = {}
    sections = [
        _HEAD,
        "## Training\n",
        *(_entry(f"{cls.__name__}: {place}", cls, blocks) for place, cls in _TRAINING.items()),
        "## Recipes\n",
        *(_entry(f"{cls.__name__}: {place}", cls, blocks) for place, cls in _RECIPES.items()),
    ]
    for title, registry in {"Models and losses": MODELS, "Data sets": DATASETS, "Transforms": TRANSFORMS}.items():
        sections += [f"## {title}\n", *(_entry(name, cls, blocks) for name, cls in _own(registry))]
    sections.append("## Blocks\n")
    shown = set(_TRAINING.values()) | set(_RECIPES.values())
    while waiting := [block for block in blocks if block not in shown]:
        for block in sorted(waiting, key=lambda b: b.__name__):
            shown.add(block)
            sections.append(_entry(block.__name__, block, blocks))
    return "\n".join(sections)


def _own(registry: Registry) -> Iterator[tuple[str, Any]]:
    """What this package registers, not a plugin that happens to be installed."""
    for name in registry.names():
        cls = registry.get(name)
        if cls.__module__.startswith("mmdet3d."):
            yield name, cls


def _entry(title: str, cls: Any, blocks: dict[type, None]) -> str:
    """Heading, summary and table of keys; adds the blocks that it refers to."""
    meanings = _meanings(cls)
    hints = typing.get_type_hints(cls if not inspect.isclass(cls) else cls.__init__)
    rows = []
    for name, parameter in inspect.signature(cls).parameters.items():
        hint = hints.get(name, Any)
        if block := block_type(hint):
            blocks[block] = None
        rows.append(f"| `{name}` | {_kind(hint)} | {_default(parameter.default)} | {meanings.get(name, '')} |")
    table = ["| key | kind | default | meaning |", "|---|---|---|---|", *rows, ""] if rows else []
    summary = inspect.cleandoc(cls.__doc__ or "").split("\n\n")[0].replace("\n", " ")
    return "\n".join([f"### {title}\n", f"{summary}\n", *table])


def _kind(hint: Any) -> str:
    if hint is Any or hint is inspect.Parameter.empty:
        return ""
    if hint is type(None):
        return "null"
    null = " or null" if type(None) in typing.get_args(hint) else ""
    block = block_type(hint)
    if block is None:
        return kind_name(hint) + null
    others = [kind_name(each) for each in typing.get_args(hint) if each is not type(None) and not block_type(each)]
    return " or ".join([*others, f"block [{block.__name__}](#{_anchor(block)})"]) + null


def _anchor(block: type) -> str:
    """As GitHub makes it of the block's heading."""
    places = [f"{cls.__name__}: {place}" for place, cls in {**_TRAINING, **_RECIPES}.items() if cls is block]
    title = places[0] if places else block.__name__
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def _default(value: Any) -> str:
    if value is inspect.Parameter.empty:
        return ""
    if value is None or isinstance(value, bool):
        return f"`{str(value).lower()}`" if value is not None else "`null`"
    if isinstance(value, (tuple, list)):
        return f"`{list(value)}`".replace("'", "")
    if isinstance(value, (str, int, float)):
        return f"`{value}`"
    return "`{}`"  # a block or mapping whose keys have defaults themselves


def _meanings(cls: Callable[..., Any]) -> dict[str, str]:
    """What docstrings say of the arguments of a class, those of its bases included."""
    found: dict[str, str] = {}
    for each in reversed(inspect.getmro(cls) if inspect.isclass(cls) else [cls]):
        text = inspect.cleandoc(each.__doc__ or "")
        section = re.search(r"^Args:\n((?:    .*\n?|\n)+)", text, re.MULTILINE)
        for entry in re.split(r"\n(?=    \S)", section[1].rstrip() if section else ""):
            names, _, meaning = entry.strip().partition(":")
            words = " ".join(meaning.split()).replace("|", "\\|")
            found |= {name.strip(): words for name in names.split(",") if meaning}
    return found


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(key_page())
