"""The trained models that lie in `pretrained/zoo`: small, in float16, each with a card.

`NAME.safetensors` holds the weights, `NAME.json` is the card: `config`, `recipe`, `run`, `world`, `seed`, `iterations`,
`command` and `revision` that trained them, `metrics` of these very weights on the validation frames of that world,
`small_world`, what they find in one that is made in seconds, `left_out`, parts that no prediction depends on and the
file lacks, and `sha256`. Where a file of weights is asked for, on a
command line or in a config, `zoo:NAME` names one of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from mmdet3d.blocks import nearest
from mmdet3d.io.files import read_json, record_checksum

__all__ = ["ZOO", "read_card", "weight_path", "with_zoo_files", "zoo_file", "zoo_files"]

Value = TypeVar("Value")

_PREFIX = "zoo:"
_INSTALLED = Path(__file__).resolve().parent / "pretrained" / "zoo"
ZOO = _INSTALLED if _INSTALLED.is_dir() else _INSTALLED.parents[2] / "pretrained" / "zoo"


def zoo_files() -> dict[str, Path]:
    """Weight file by name."""
    return {path.stem: path for path in sorted(ZOO.glob("*.safetensors"))}


def zoo_file(name: str) -> Path:
    """The weight file of a model.

    Raises:
        ValueError: there is no such model.
    """
    files = zoo_files()
    if name not in files:
        raise ValueError(f"no model zoo:{name}{nearest(name, files)} (there are: {', '.join(files) or 'none'})")
    return files[name]


def read_card(name: str) -> dict[str, Any]:
    """What is known of a model.

    Raises:
        ValueError: there is no such model, or its card is not there, damaged or changed.
    """
    path = zoo_file(name).with_suffix(".json")
    try:
        card: dict[str, Any] = read_json(path, "card")
        intact = card["checksum"] == record_checksum({k: v for k, v in card.items() if k != "checksum"})
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        intact = False
    if not intact:
        raise ValueError(
            f"{path}, the card of zoo:{name}, is not there or not what was shipped; bring it back (git checkout "
            "pretrained/zoo, or install the package anew), and keep models of your own elsewhere"
        )
    return card


def weight_path(word: str) -> str:
    """A word of a command line or a value of a config, with `zoo:NAME` or `OPTION=zoo:NAME` as a path.

    Raises:
        ValueError: there is no such model.
    """
    option, found, name = word.partition(_PREFIX)
    return f"{option}{zoo_file(name)}" if found and (not option or option.endswith("=")) else word


def with_zoo_files(value: Value) -> Value:
    """`value` with every `zoo:NAME` in it as a path; mappings and lists are changed in place.

    Raises:
        ValueError: there is no such model.
    """
    if isinstance(value, str):
        return weight_path(value)  # type: ignore[return-value]
    places = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for key, part in list(places):
        value[key] = with_zoo_files(part)  # type: ignore[index]
    return value
