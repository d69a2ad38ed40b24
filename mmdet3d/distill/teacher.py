"""The teacher: complete, frozen, and good enough to teach; it answers live, or from what it answered before."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmdet3d.config import load_config
from mmdet3d.distill.answers import Answers, join
from mmdet3d.interop.checkpoints import file_digest, load_weights, metadata_path
from mmdet3d.models import build_model
from mmdet3d.models.detectors.base import Detector, Trainable
from mmdet3d.models.folding import fold_batch_norm
from mmdet3d.registry import nearest
from mmdet3d.structures import Batch, BEVGrid

__all__ = [
    "Evaluate",
    "LiveTeacher",
    "StoredTeacher",
    "Teacher",
    "build_detector",
    "check_score",
    "recorded_metrics",
    "recorded_score",
    "refuse_weak",
    "teacher_digest",
]

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


class Teacher(ABC):
    """What a distiller asks of a teacher.

    It is no `nn.Module` on purpose: a model that holds it neither trains, saves nor optimises it, and copies of the
    student (an average of its weights) share it.

    Attributes:
        model: the detector that answers, frozen and in eval mode; losses look at its parts when they are bound. It
            may still lack its weights, see `loaded`.
        digest: tells it from other teachers, see `teacher_digest`.
    """

    model: Detector
    digest: str

    @property
    def taps(self) -> tuple[str, ...]:
        return self.model.taps

    @property
    def grid(self) -> BEVGrid | None:
        """See `Detector.grid`."""
        return self.model.grid

    @abstractmethod
    def extract(self, batch: Batch, taps: Collection[str]) -> dict[str, Any]:
        """Its answers to a batch, without gradient: at least the values of the named taps, see `Detector.extract`."""

    @abstractmethod
    def loaded(self) -> Detector:
        """`model` with its weights."""

    @abstractmethod
    def move(self, function: Callable[[Tensor], Tensor]) -> None:
        """Apply `function` (to another device, another precision) to the tensors that it holds."""

    def __deepcopy__(self, memo: dict) -> Teacher:
        return self


class LiveTeacher(Teacher):
    """A trained detector that answers to each batch anew, with its batch norms folded (`fold_batch_norm`).

    Args:
        model: trained; changed in place (frozen, eval mode). Its weights are not to change after the first answer.
        digest: see `Teacher`.

    Attributes:
        folded: the copies that answer, by the taps that are looked at; made when these are first asked for.
    """

    def __init__(self, model: Detector, digest: str = "") -> None:
        self.model = model.requires_grad_(False).eval()
        self.digest = digest
        self.folded: dict[frozenset[str], Detector] = {}

    @classmethod
    def load(
        cls, config: str | Path, checkpoint: str | Path, overrides: Mapping[str, Any] | None = None
    ) -> LiveTeacher:
        """Build the detector that `config` with `overrides` describes and fill every tensor from `checkpoint`.

        Raises:
            FileNotFoundError: no such config or checkpoint.
            ValueError: see `build_detector`, or the checkpoint does not hold exactly this detector's tensors.
        """
        model = build_detector(config, overrides)
        load_weights(model, checkpoint, part="teacher")
        return cls(model, teacher_digest(config, checkpoint, overrides))

    @torch.no_grad()
    def extract(self, batch: Batch, taps: Collection[str]) -> dict[str, Any]:
        """In eval mode whatever was called on the model in between; nothing but the named taps."""
        wanted = frozenset(taps)
        self.model.eval()

        def answer(model: Detector) -> dict[str, Any]:
            found = model.extract(batch, wanted)
            return {tap: found[tap] for tap in taps}

        if wanted not in self.folded:
            self.folded[wanted] = fold_batch_norm(self.model, answer)
        return answer(self.folded[wanted])

    def loaded(self) -> Detector:
        return self.model

    def move(self, function: Callable[[Tensor], Tensor]) -> None:
        self.model._apply(function)
        self.folded.clear()


class StoredTeacher(Teacher):
    """A teacher whose answers are kept on disk; its weights are loaded when it is first asked something new.

    What it says is what the file says, also when it has just been written: float16 numbers, see `answers`.

    Args:
        config, checkpoint: of the detector.
        folder: of answers; those of other teachers may be there too.
        overrides: of the config by dotted key.

    Raises:
        FileNotFoundError: no such config or checkpoint.
        ValueError: see `build_detector`.
    """

    def __init__(
        self,
        config: str | Path,
        checkpoint: str | Path,
        folder: str | Path,
        overrides: Mapping[str, Any] | None = None,
    ) -> None:
        self.model = build_detector(config, overrides).requires_grad_(False).eval()
        self.digest = teacher_digest(config, checkpoint, overrides)
        about = {"config": str(config), "checkpoint": str(checkpoint), "sha256": file_digest(checkpoint)}
        about |= {"overrides": dict(overrides)} if overrides else {}
        self.answers = Answers(Path(folder) / self.digest, about)
        self._checkpoint = checkpoint
        self._live: LiveTeacher | None = None

    def extract(self, batch: Batch, taps: Collection[str]) -> dict[str, Any]:
        """
        Raises:
            ValueError: a sample that does not come back, an answer to another sample of its name, or one that cannot be
                stored.
        """
        for token, view in zip(batch.tokens, batch.views, strict=True):
            if view is None:
                raise ValueError(
                    f"model.teacher.answers stores answers, but sample {token} is augmented anew in every epoch and "
                    "would never be asked about again; set views to the number of fixed augmentations per sample "
                    "(such as 4), or model.teacher.answers to null"
                )
        found = [self._answer(batch.alone(k), taps) for k in range(len(batch))]
        return {tap: join([answer[tap] for answer in found], batch.device) for tap in taps}

    def loaded(self) -> Detector:
        return self._ask(next(self.model.parameters()).device).model

    def move(self, function: Callable[[Tensor], Tensor]) -> None:
        if self._live is not None:
            self._live.move(function)

    def _answer(self, sample: Batch, taps: Collection[str]) -> dict[str, Any]:
        stored = self.answers.read(sample, taps)
        missing = [tap for tap in taps if tap not in stored]
        if missing:
            answers = self._ask(sample.device).extract(sample, missing)
            stored |= self.answers.write(sample, {tap: answers[tap] for tap in missing})
        return stored

    def _ask(self, device: torch.device) -> LiveTeacher:
        if self._live is None:
            load_weights(self.model, self._checkpoint, part="teacher")
            self._live = LiveTeacher(self.model.to(device), self.digest)
        return self._live


def teacher_digest(config: str | Path, checkpoint: str | Path, overrides: Mapping[str, Any] | None = None) -> str:
    """Of what decides a teacher's answers: its weights, and the `model` block of its config with `overrides`.

    Configs that this block names are part of it; checkpoints are not, as the teacher's own holds all weights.

    Raises:
        FileNotFoundError: no such config or checkpoint.
        ValueError: an override has an unknown key.
    """
    content = {"weights": file_digest(checkpoint), "model": _resolved(load_config(config, overrides or {}).model)}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _resolved(value: Any) -> Any:
    if isinstance(value, Mapping):
        own = {k: _resolved(v) for k, v in value.items() if k not in ("checkpoint", "min_score", "metric")}
        if isinstance(value.get("config"), str):
            own["config"] = _resolved(load_config(value["config"]).model)
        return own
    return [_resolved(v) for v in value] if isinstance(value, (list, tuple)) else value


def check_score(teacher: Teacher, checkpoint: str | Path, metric: str, min_score: float, evaluate: Evaluate) -> float:
    """The teacher's validation score, recorded beside its checkpoint or measured now.

    Raises:
        ValueError: the score is below `min_score`.
    """
    score, source = recorded_score(checkpoint, metric), f"recorded in {metadata_path(checkpoint)}"
    if score is None:
        metrics = evaluate(teacher.loaded())
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
    """One of `recorded_metrics`; None if it is not among them."""
    value = recorded_metrics(checkpoint).get(metric)
    return None if value is None else float(value)


def recorded_metrics(checkpoint: str | Path) -> dict[str, float]:
    """`metrics` of the JSON beside the checkpoint, if its `sha256` is that of this checkpoint; else empty."""
    side = metadata_path(checkpoint)
    if not side.is_file():
        return {}
    record = json.loads(side.read_text())
    if not record.get("metrics") or record.get("sha256") != file_digest(checkpoint):
        return {}
    return record["metrics"]
