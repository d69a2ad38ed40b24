"""The teacher: complete, frozen, and good enough to teach."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch

from mmdet3d.config import load_config
from mmdet3d.interop.checkpoints import file_digest, load_weights, metadata_path
from mmdet3d.models import build_model
from mmdet3d.models.detectors.base import Detector, Trainable
from mmdet3d.registry import nearest
from mmdet3d.structures import Batch

__all__ = ["Evaluate", "Teacher", "build_detector", "check_score", "recorded_score", "refuse_weak"]

Evaluate = Callable[[Trainable], Mapping[str, float]]


def build_detector(config: str | Path, overrides: Mapping[str, Any] | None = None) -> Detector:
    """The detector that a config file describes.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it describes no detector, or an override has an unknown key.
    """
    model = build_model(load_config(config, overrides or {}).get("model"))
    if not isinstance(model, Detector):
        raise ValueError(f"{config} describes a {type(model).__name__}; teacher and student must be detectors")
    return model


class Teacher:
    """A trained detector that only answers.

    It is no `nn.Module` on purpose: a model that holds it neither trains, saves nor optimises it. Its parameters take
    no gradient, it runs in eval mode without a graph, and copies of the student (an average of its weights) share it.

    Args:
        model: trained; changed in place (frozen, eval mode).
    """

    def __init__(self, model: Detector) -> None:
        self.model = model.requires_grad_(False).eval()

    @classmethod
    def load(cls, config: str | Path, checkpoint: str | Path) -> Teacher:
        """Build the detector that `config` describes and fill every tensor from `checkpoint`.

        Raises:
            FileNotFoundError: no such config or checkpoint.
            ValueError: the checkpoint does not hold exactly this detector's tensors.
        """
        model = build_detector(config)
        load_weights(model, checkpoint, part="teacher")
        return cls(model)

    def __deepcopy__(self, memo: dict) -> Teacher:
        return self

    @torch.no_grad()
    def extract(self, batch: Batch, taps: Collection[str]) -> dict[str, Any]:
        """See `Detector.extract`; in eval mode whatever was called on the model in between."""
        return self.model.eval().extract(batch, taps)


def check_score(teacher: Teacher, checkpoint: str | Path, metric: str, min_score: float, evaluate: Evaluate) -> float:
    """The teacher's validation score, recorded beside its checkpoint or measured now.

    Raises:
        ValueError: the score is below `min_score`.
    """
    score, source = recorded_score(checkpoint, metric), f"recorded in {metadata_path(checkpoint)}"
    if score is None:
        metrics = evaluate(teacher.model)
        if metric not in metrics:
            raise ValueError(f"the evaluation gives no {metric!r}{nearest(metric, metrics)}; set model.teacher.metric")
        score, source = float(metrics[metric]), "measured now"
    refuse_weak(score, checkpoint, metric, min_score, source, "model.teacher")
    return score


def refuse_weak(score: float, checkpoint: str | Path, metric: str, min_score: float, source: str, key: str) -> None:
    """Raises ValueError if `score` is below `min_score`; `key` is the config block that names the checkpoint."""
    # A comparison that NaN fails.
    if not score >= min_score:
        raise ValueError(
            f"the teacher {checkpoint} scores {metric} {score:.4f} ({source}), less than {key}.min_score "
            f"{min_score}, and a weak teacher makes a weak student: check its checkpoint and the validation data, or "
            f"pass --{key}.min_score null to teach anyway"
        )


def recorded_score(checkpoint: str | Path, metric: str) -> float | None:
    """`metrics[metric]` of the JSON beside the checkpoint, if its `sha256` is the digest of this very checkpoint."""
    side = metadata_path(checkpoint)
    if not side.is_file():
        return None
    record = json.loads(side.read_text())
    value = (record.get("metrics") or {}).get(metric)
    if value is None or record.get("sha256") != file_digest(checkpoint):
        return None
    return float(value)
