"""One way to read a block, and one kind of sentence about its keys."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import pytest

from mmdet3d.blocks import ConfigKeyError, at_least, check_kind, not_negative, read_block
from mmdet3d.config import load_config
from mmdet3d.models import build_model
from mmdet3d.registry import Registry


@dataclass(frozen=True)
class Inner:
    size: int
    name: str = "x"

    def __post_init__(self) -> None:
        at_least(1, self.size, "size")


@dataclass(frozen=True)
class Outer:
    without_effect: ClassVar[Mapping[str, str]] = {"old": "it was never read"}

    inner: Inner
    weights: Sequence[float] = ()
    mode: Literal["fast", "exact"] = "fast"
    other: bool | Inner = False
    maybe: Inner | None = field(default=None)


def test_blocks_in_blocks_become_objects() -> None:
    block = read_block(Outer, {"inner": {"size": 2}, "other": {"size": 3, "name": "y"}, "maybe": None}, "a")
    assert block == Outer(Inner(2), other=Inner(3, "y"))
    assert read_block(Outer, {"inner": Inner(2), "other": True}, "a") == Outer(Inner(2), other=True)
    assert read_block(Outer, block, "a") is block


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (3, "config key a must be a mapping, got 3"),
        ({"inner": 3}, "config key a.inner must be a mapping, got 3"),
        ({}, "config key a.inner is missing"),
        ({"inner": None}, "config key a.inner is missing"),
        ({"inner": {}}, "config key a.inner.size is missing"),
        ({"inner": {"sise": 1}}, "unknown config key a.inner.sise, did you mean 'size'? (known: size, name)"),
        ({"inner": {"size": "big"}}, "config key a.inner.size must be a whole number, got 'big'"),
        ({"inner": {"size": 0}}, "config key a.inner.size must be an integer of at least 1, got 0"),
        ({"inner": {"size": 1}, "weights": ["x"]}, "config key a.weights must be a list of numbers, got ['x']"),
        ({"inner": {"size": 1}, "mode": "slow"}, "config key a.mode must be one of fast, exact, got 'slow'"),
        ({"inner": {"size": 1}, "other": 3}, "config key a.other must be true or false or a mapping, got 3"),
        (
            {"inner": {"size": 1}, "other": {"size": -1}},
            "config key a.other.size must be an integer of at least 1, got -1",
        ),
        ({"inner": {"size": 1}, "old": 3}, "config key a.old has no effect (it was never read); remove it"),
    ],
)
def test_every_mistake_is_one_sentence_with_the_dotted_key(given: Any, message: str) -> None:
    with pytest.raises(ConfigKeyError) as caught:
        read_block(Outer, given, "a")
    assert str(caught.value) == message
    assert caught.value.key == message.split("config key ")[1].split()[0].rstrip(",")


def test_a_part_in_a_part_is_named_by_the_whole_way_to_it() -> None:
    parts = Registry("part", ())

    @parts.register
    class Leaf:
        def __init__(self, size: int) -> None:
            at_least(1, size, "size")

    @parts.register
    class Tree:
        def __init__(self, leaf: Mapping[str, Any]) -> None:
            parts.build(leaf, "leaf")

    for value in ("big", 0):
        with pytest.raises(ConfigKeyError, match=r"config key model\.leaf\.size must be"):
            parts.build({"type": "Tree", "leaf": {"type": "Leaf", "size": value}}, "model")


@pytest.mark.parametrize(
    ("override", "start"),
    [
        ({"model.encoders.lidar.voxelize.max_voxel": 3}, "unknown config key model.encoders.lidar.voxelize.max_voxel,"),
        (
            {"model.encoders.lidar.backbone.spares_shape": 1},
            "unknown config key model.encoders.lidar.backbone.spares_sh",
        ),
        ({"model.heads.object.train_cfg.min_radios": 1}, "unknown config key model.heads.object.train_cfg.min_radios,"),
        (
            {"model.heads.object.test_cfg.nms_type": ["soft"] * 6},
            "config key model.heads.object.test_cfg.nms_type must",
        ),
        (
            {"model.heads.object.loss_cls": {"type": "GaussianFocalLoss", "alpa": 1}},
            "unknown config key model.heads.obj",
        ),
        (
            {"model.decoder.neck.upsample_cfg": {"typ": 1}},
            "unknown config key model.decoder.neck.upsample_cfg.typ, did",
        ),
        ({"model.decoder": None}, "config key model.decoder is missing"),
    ],
)
def test_the_key_in_the_message_is_the_one_to_override(override: dict[str, Any], start: str) -> None:
    config = load_config("nuscenes/det/centerhead/secfpn/lidar/voxelnet_0p075.yaml", override)
    with pytest.raises(ConfigKeyError) as caught:
        build_model(config.model)
    assert str(caught.value).startswith(start)


@pytest.mark.parametrize("value", [math.nan, [1.0, math.nan]])
def test_what_is_no_number_is_refused_wherever_numbers_are_read(value) -> None:
    with pytest.raises(ConfigKeyError, match=r"config key block\.size must be a (list of )?numbers?, got .*nan"):
        check_kind(value, list[float] if isinstance(value, list) else float, "block.size")


@pytest.mark.parametrize("value", [-1, -1e-9, math.inf, math.nan, True, "1"])
def test_not_negative(value) -> None:
    assert [not_negative(good, "key") for good in (0, 0.5)] == [0, 0.5]
    with pytest.raises(ConfigKeyError, match=r"config key key must (not be negative|be a number), got"):
        not_negative(value, "key")
