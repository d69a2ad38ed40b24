"""Overrides that a user gives, each of which must do something."""

from __future__ import annotations

import ast
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmdet3d.composition import TRAINING
from mmdet3d.config import Config, assembled, find_config, load_config, parse_overrides
from mmdet3d.shell import command

__all__ = ["configured", "options_beside", "without_effect"]


def configured(
    path: str | Path,
    overrides: Sequence[str] | Mapping[str, Any],
    spare: Collection[str] = (),
    with_model: bool = True,
) -> Config:
    """A config with the overrides of a command line, as `load_config` takes them.

    In the config of a run, which stands in full, `dataset_root` moves the data sets that lie there.

    Args:
        spare: keys that need not have an effect: they are meant for another config, or for the command itself.
        with_model: the config must describe a model.

    Raises:
        ValueError: an override changes a constant that nothing refers to, or there is no model; see also `load_config`.
        FileNotFoundError: see `load_config`.
    """
    overrides = overrides if isinstance(overrides, Mapping) else parse_overrides(overrides)
    idle = without_effect(path, overrides)
    config = load_config(path, overrides)
    if with_model and not config.get("model"):
        if "runs" in config:
            raise ValueError(f"{path} is a recipe of several trainings, no config: {command('recipe')} runs it")
        raise ValueError(f"{path} describes no model: it is what other configs inherit; name one beside or below it")
    if "dataset_root" in idle:
        before = load_config(path)
        moved = _moved(config.get("data"), before.get("dataset_root"), config.dataset_root)
        if moved != config.get("data") or config.dataset_root == before.get("dataset_root"):
            config["data"] = moved
            idle.pop("dataset_root")
    for key, sentence in idle.items():
        if key not in spare:
            raise ValueError(sentence)
    return config


def options_beside(checkpoint: str | Path, config: str | Path) -> dict[str, Any]:
    """Overrides of `config` that converted weights need, as `convert` writes them into the JSON beside.

    Empty where the JSON says nothing, or is about another config.

    Raises:
        ValueError: the JSON is damaged.
        FileNotFoundError: no such config.
    """
    from mmdet3d.io.weights import read_metadata  # with torch, which reading a command line does not need

    record = read_metadata(checkpoint)
    options, named = record.get("options"), record.get("config")
    if not isinstance(options, Mapping) or not isinstance(named, str):
        return {}
    return dict(options) if find_config(named) == find_config(config) else {}


def without_effect(path: str | Path, overrides: Mapping[str, Any]) -> dict[str, str]:
    """Overrides of constants that nothing in the config refers to, each with the sentence that says so.

    Raises:
        ValueError, FileNotFoundError: see `load_config`.
    """
    heads = {key: key.partition(".")[0] for key in overrides}
    if set(heads.values()) <= {*TRAINING, "data"}:
        return {}
    read = _keys_that_are_read(assembled(find_config(path), overrides)[0])
    model = load_config(path).get("model")
    named = [part for part in ("student", "teacher") if isinstance(model, Mapping) and _has_file(model.get(part))]

    def sentence(key: str, head: str) -> str:
        others = "".join(f" or --model.{part}.overrides.{key}" for part in named)
        return (
            f"--{key} has no effect: nothing that is read in {path} refers to {head}; give the key that is meant by "
            f"its full name, --a.b.c VALUE{others}"
        )

    return {key: sentence(key, head) for key, head in heads.items() if head not in read}


def _keys_that_are_read(config: Config) -> set[str]:
    """Top-level keys that the engine reads, and those that an expression in what is read refers to."""
    read: set[str] = set()
    waiting = {"data", *TRAINING}
    while waiting:
        read |= waiting
        waiting = {name for key in waiting for name in _names(config.get(key))} - read
    return read


def _names(value: Any) -> set[str]:
    """Keys that the `${expression}`s in a value begin with."""
    if isinstance(value, (Mapping, list)):
        return {name for item in (value.values() if isinstance(value, Mapping) else value) for name in _names(item)}
    if isinstance(value, str) and value.startswith("${") and value.endswith("}"):
        return {node.id for node in ast.walk(ast.parse(value[2:-1].strip())) if isinstance(node, ast.Name)}
    return set()


def _has_file(block: Any) -> bool:
    return isinstance(block, Mapping) and isinstance(block.get("config"), str)


def _moved(value: Any, old: Any, new: str) -> Any:
    """Data sets whose folder was the config's one `dataset_root`, in another folder."""
    if isinstance(value, Mapping):
        return Config({k: new if (k, v) == ("dataset_root", old) else _moved(v, old, new) for k, v in value.items()})
    return [_moved(v, old, new) for v in value] if isinstance(value, list) else value
