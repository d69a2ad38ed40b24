"""Arguments with which a distillation loss would compute nothing, or nonsense: refused when it is built, by key."""

from __future__ import annotations

import math
from typing import Any

import pytest

from mmdet3d.blocks import ConfigKeyError
from mmdet3d.distill.terms import build_term
from mmdet3d.registry import MODELS

NAN, INF = math.nan, math.inf
BOUND = "[lower, upper, cell]"
PAIR = "[student's channels, teacher's channels]"

WRONG: list[tuple[str, dict[str, Any], str, str]] = [
    ("OccupancyLoss", {"xbound": [0, 1, 0]}, "xbound", BOUND),
    ("OccupancyLoss", {"ybound": [0, 1]}, "ybound", BOUND),
    ("OccupancyLoss", {"zbound": [0, NAN, 1]}, "zbound", "a list of numbers"),
    ("OccupancyLoss", {"zbound": [0, INF, 1]}, "zbound", BOUND),
    ("OccupancyLoss", {"zbound": [0, 1, None]}, "zbound", BOUND),
    ("OccupancyLoss", {"xbound": [1, 0, 0.5]}, "xbound", BOUND),
    ("OccupancyLoss", {"xbound": [-51.2, 51.2, 1e-6]}, "xbound", "102400000 cells along one axis"),
    ("OccupancyLoss", {"xbound": [-51.2, 51.2, 0.005], "ybound": [-51.2, 51.2, 0.01]}, "xbound", "enlarge"),
    ("ContrastiveLoss", {"channels": [4, 4], "width": -1}, "width", "at least 1, got -1"),
    ("ContrastiveLoss", {"channels": [4, 4], "temperature": 0}, "temperature", "above 0, got 0"),
    ("ContrastiveLoss", {"channels": [4, 4], "temperature": NAN}, "temperature", "a number, got nan"),
    ("ContrastiveLoss", {"channels": [4]}, "channels", PAIR),
    ("ContrastiveLoss", {"channels": [4, 4, 4]}, "channels", PAIR),
    ("ContrastiveLoss", {"channels": [4, -4]}, "channels", PAIR),
    ("ActiveFeatureLoss", {"shared": NAN}, "shared", "a number, got nan"),
    ("ActiveFeatureLoss", {"alone": INF}, "alone", "a number, got inf"),
    ("ActiveFeatureLoss", {"activity": -1}, "activity", "must not be negative, got -1"),
    ("InstanceLoss", {"count": 0}, "count", "at least 1, got 0"),
    ("InstanceLoss", {"count": -1}, "count", "at least 1, got -1"),
    ("TrajectoryFeatureLoss", {"frames": -1}, "frames", "at least 1, got -1"),
    ("TrajectoryFeatureLoss", {"interval": NAN}, "interval", "a number, got nan"),
    ("GaussianResponseLoss", {"temperature": 0}, "temperature", "above 0, got 0"),
    ("AffinityLoss", {"sizes": [32, 0]}, "sizes", "at least 1, got 0"),
    ("AffinityLoss", {"channels": -1}, "channels", "at least 1, got -1"),
    ("CenterResponseLoss", {"min_score": NAN}, "min_score", "a number, got nan"),
    ("ChannelSoftmaxLoss", {"objects": -1}, "objects", "must not be negative"),
    ("ChannelSoftmaxLoss", {"threshold": NAN}, "threshold", "a number, got nan"),
    ("CorrelationLoss", {"affinity": -1}, "affinity", "must not be negative"),
    ("CorrelationLoss", {"channels": [256, 0]}, "channels", "at least 1, got 0"),
    ("CrossHeadLoss", {"beta": -1}, "beta", "must not be negative"),
    ("CrossHeadLoss", {"projection": [4]}, "projection", PAIR),
    ("DualKLLoss", {"temperature": INF}, "temperature", "a number, got inf"),
    ("DualKLLoss", {"balance": "epoch", "epochs": -5}, "epochs", "at least 1, got -5"),
    ("FeatureLoss", {"projection": [4, 0]}, "projection", PAIR),
    ("ForegroundLoss", {"foreground": -1}, "foreground", "must not be negative"),
    ("MapResponseLoss", {"beta": -1}, "beta", "must not be negative"),
    ("MimickingLoss", {"gamma": NAN}, "gamma", "a number, got nan"),
    ("MimickingLoss", {"object_weight": -1}, "object_weight", "must not be negative"),
    ("PartitionedFeatureLoss", {"part": "label", "frames": 0}, "frames", "at least 1, got 0"),
    (
        "PartitionedFeatureLoss",
        {"part": "label", "student_channels": [], "teacher_channels": []},
        "student_channels",
        "an entry per level",
    ),
    ("PearsonFeatureLoss", {"projection": [1, 2, 3]}, "projection", PAIR),
    ("PredictionLoss", {"box_beta": -1}, "box_beta", "must not be negative"),
    ("PseudoLabelLoss", {"distance": -1}, "distance", "must not be negative"),
    ("PseudoLabelLoss", {"min_score": {"car": NAN}}, "min_score", "a number, got nan"),
    ("RegionFeatureLoss", {"background": NAN}, "background", "a number, got nan"),
    ("RegionFeatureLoss", {"blocks": -1}, "blocks", "at least 0, got -1"),
    ("ResponseLoss", {"beta": -1}, "beta", "must not be negative"),
    ("ResponseLoss", {"task_weights": [1, -1]}, "task_weights", "must not be negative"),
]


@pytest.mark.parametrize(("loss", "arguments", "key", "message"), WRONG)
def test_of_a_config_the_whole_key_is_named(loss, arguments, key, message) -> None:
    block = {"type": loss, "student": "fuser", "teacher": "fuser", **arguments}
    with pytest.raises(ConfigKeyError) as refused:
        build_term("mine", block, ("",))
    assert str(refused.value).startswith(f"config key model.losses.mine.{key} ") and message in str(refused.value)


@pytest.mark.parametrize(("loss", "arguments", "key", "message"), WRONG)
def test_of_a_loss_built_in_code_the_argument_is_named(loss, arguments, key, message) -> None:
    with pytest.raises(ConfigKeyError, match=f"^config key {key} "):
        MODELS.get(loss)(**arguments)


def test_a_projection_of_any_loss_has_two_numbers_of_channels() -> None:
    block = {"type": "AffinityLoss", "student": "fuser", "teacher": "fuser", "projection": [4, -4]}
    with pytest.raises(
        ConfigKeyError, match=r"model\.losses\.mine\.projection must be \[student's channels, teacher's"
    ):
        build_term("mine", block, ("",))
