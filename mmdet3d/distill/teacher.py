"""The teacher: complete, frozen, and good enough to teach; it answers live, or from what it answered before."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from mmdet3d.blocks import nearest
from mmdet3d.composition import is_named
from mmdet3d.distill.answers import Answers, join
from mmdet3d.distill.outline import Outline, plain_outline
from mmdet3d.interop.checkpoints import load_checkpoint
from mmdet3d.io.files import file_digest
from mmdet3d.io.weights import metadata_path, read_metadata
from mmdet3d.models import build_model
from mmdet3d.models.detectors.base import Detector, Trainable
from mmdet3d.models.folding import fold_batch_norm
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


def build_detector(block: Mapping[str, Any], key: str = "model") -> Detector:
    """The detector that a model block describes; `key` is where it stands, for messages.

    Raises:
        ValueError: it describes no detector.
    """
    model = build_model(block)
    if not isinstance(model, Detector):
        raise ValueError(f"{key} describes a {type(model).__name__}; teacher and student must be detectors")
    return model


class Teacher(ABC):
    """What a distiller asks of a teacher; whatever answers so can teach.

    It is no `nn.Module` on purpose: a model that holds it neither trains, saves nor optimises it, and copies of the
    student (an average of its weights) share it.

    Attributes:
        model: what losses look at when they are bound: a detector, frozen and in eval mode, which may still lack its
            weights, or an `Outline`.
        digest: tells it from other teachers.
        about: what it is, as plain values.
        unknown: classes of the student that it cannot teach.
    """

    model: Detector | Outline
    digest: str
    about: Mapping[str, Any] = MappingProxyType({})
    unknown: tuple[str, ...] = ()

    @property
    def taps(self) -> tuple[str, ...]:
        """Names of what it answers."""
        return self.model.taps

    @property
    def grid(self) -> BEVGrid | None:
        """See `Detector.grid`."""
        return self.model.grid

    @abstractmethod
    def extract(self, batch: Batch, taps: Collection[str]) -> dict[str, Any]:
        """Its answers to a batch, without gradient: at least the values of the named taps, see `Detector.extract`."""

    def loaded(self) -> Detector | Outline:
        """`model` with its weights, if it has any."""
        return self.model

    def move(self, function: Callable[[Tensor], Tensor]) -> None:  # noqa: B027 - nothing to do for one without tensors
        """Apply `function` (to another device, another precision) to the tensors that it holds."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Teacher:
        return self


class LiveTeacher(Teacher):
    """A trained detector that answers to each batch anew, with its batch norms folded (`fold_batch_norm`).

    Args:
        model: trained; changed in place (frozen, eval mode). Its weights are not to change after the first answer.
        digest, about: see `Teacher`.
        checkpoint: whose weights `model` still lacks; they are loaded when they are needed.

    Attributes:
        folded: the copies that answer, by the taps that are looked at; made when these are first asked for.
    """

    model: Detector

    def __init__(
        self,
        model: Detector,
        digest: str = "",
        about: Mapping[str, Any] = MappingProxyType({}),
        checkpoint: str | Path | None = None,
    ) -> None:
        self.model = model.requires_grad_(False).eval()
        self.digest, self.about = digest, about
        self._checkpoint = checkpoint
        self.folded: dict[frozenset[str], Detector] = {}
        self._moves: list[Callable[[Tensor], Tensor]] = []  # what weights miss that are not loaded yet

    @classmethod
    def load(
        cls, block: Mapping[str, Any], checkpoint: str | Path, config: str = "", later: bool = False
    ) -> LiveTeacher:
        """Build the detector that a model block describes and fill every tensor from `checkpoint`.

        Args:
            config: where the block comes from.
            later: load the weights when they are needed.

        Raises:
            FileNotFoundError: no such checkpoint.
            ValueError: see `build_detector`, or the checkpoint does not hold exactly this detector's tensors.
        """
        about = {"config": config, "checkpoint": str(checkpoint), "sha256": file_digest(checkpoint)}
        about |= {"model": _what_answers(block)}
        teacher = cls(build_detector(block, "model.teacher"), teacher_digest(block, checkpoint), about, checkpoint)
        if not later:
            teacher.loaded()
        return teacher

    @torch.no_grad()
    def extract(self, batch: Batch, taps: Collection[str]) -> dict[str, Any]:
        """In eval mode whatever was called on the model in between; nothing but the named taps."""
        wanted = frozenset(taps)
        own = self.loaded().eval()

        def answer(model: Detector) -> dict[str, Any]:
            found = model.extract(batch, wanted)
            return {tap: found[tap] for tap in taps}

        if wanted not in self.folded:
            self.folded[wanted] = fold_batch_norm(own, answer)
        return answer(self.folded[wanted])

    def loaded(self) -> Detector:
        if self._checkpoint is not None:
            load_checkpoint(self.model, self._checkpoint, part="teacher")
            self._checkpoint = None
            for function in self._moves:
                self.model._apply(function)
        return self.model

    def move(self, function: Callable[[Tensor], Tensor]) -> None:
        self.folded.clear()
        if self._checkpoint is None:
            self.model._apply(function)
        else:
            self._moves.append(function)


class StoredTeacher(Teacher):
    """A teacher whose answers are kept on disk; the teacher itself is asked what it was not asked before.

    What it says is what the file says, also when it has just been written, see `answers`. What it says under autocast
    is kept apart: it differs from its answers in full precision by more than the rounding of the file.

    Args:
        source: the teacher.
        folder: of answers; those of other teachers may be there too.
    """

    def __init__(self, source: Teacher, folder: str | Path) -> None:
        if not str(folder):
            raise ValueError("model.teacher.answers is empty; name a folder for the answers, or set it to null")
        self.source, self.model, self.digest = source, source.model, source.digest
        self.about = {**source.about, "digest": source.digest, **plain_outline(source.model)}
        self.answers = Answers(Path(folder) / self.digest, self.about)
        self._rounded: dict[torch.dtype, Answers] = {}

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
        answers = self.kept_on(batch.device)
        found = [self._answer(batch.alone(k), taps, answers) for k in range(len(batch))]
        return {tap: join([answer[tap] for answer in found], batch.device) for tap in taps}

    def loaded(self) -> Detector | Outline:
        return self.source.loaded()

    def move(self, function: Callable[[Tensor], Tensor]) -> None:
        self.source.move(function)

    def kept_on(self, device: torch.device) -> Answers:
        """Its answers in the precision that `device` computes in now."""
        if not torch.is_autocast_enabled(device.type):
            return self.answers
        dtype = torch.get_autocast_dtype(device.type)
        if dtype not in self._rounded:
            precision = str(dtype).removeprefix("torch.")
            folder = self.answers.folder.with_name(f"{self.digest}-{precision}")
            self._rounded[dtype] = Answers(folder, {**self.about, "precision": precision})
        return self._rounded[dtype]

    def _answer(self, sample: Batch, taps: Collection[str], answers: Answers) -> dict[str, Any]:
        stored = answers.read(sample, taps)
        missing = [tap for tap in taps if tap not in stored]
        if missing:
            said = self.source.extract(sample, missing)
            stored |= answers.write(sample, {tap: said[tap] for tap in missing})
        return stored


def teacher_digest(block: Mapping[str, Any], checkpoint: str | Path) -> str:
    """Of what decides a teacher's answers: its weights and its model block.

    Checkpoints that the block names are no part of it, as the teacher's own holds all weights.

    Raises:
        FileNotFoundError: no such checkpoint.
    """
    content = {"weights": file_digest(checkpoint), "model": _what_answers(block)}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _what_answers(value: Any) -> Any:
    """A model block without files, demands on scores, and where named models in it come from."""
    if isinstance(value, Mapping):
        left_out = {"checkpoint", "min_score", "metric"}
        if is_named(value):
            left_out |= {"config", "overrides", "data", "config_digest"}
        return {k: _what_answers(v) for k, v in value.items() if k not in left_out}
    return [_what_answers(v) for v in value] if isinstance(value, (list, tuple)) else value


def check_score(
    teacher: Teacher, checkpoint: str | None, metric: str, min_score: float, evaluate: Evaluate, key: str
) -> float:
    """The teacher's validation score: of its metadata, recorded beside its checkpoint, or measured now.

    Args:
        key: of its block in the config.

    Raises:
        ValueError: the score is below `min_score`, or nowhere to be had.
    """
    score, source = (teacher.about.get("metrics") or {}).get(metric), "recorded with its answers"
    if score is None and checkpoint is not None:
        score, source = recorded_score(checkpoint, metric), f"recorded in {metadata_path(checkpoint)}"
    if score is None:
        model = teacher.loaded()
        if not isinstance(model, Trainable):
            raise ValueError(
                f"no {metric} of the teacher {key} is recorded, and only detectors of this project can be evaluated "
                f"here, so it cannot be compared with {key}.min_score; set that to null"
            )
        metrics = evaluate(model)
        if metric not in metrics:
            raise ValueError(f"the evaluation gives no {metric!r}{nearest(metric, metrics)}; set {key}.metric")
        score, source = metrics[metric], "measured now"
    refuse_weak(float(score), checkpoint or teacher.digest, metric, min_score, source, key)
    return float(score)


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
    record = read_metadata(checkpoint)
    if not record.get("metrics") or record.get("sha256") != file_digest(checkpoint):
        return {}
    metrics: dict[str, float] = record["metrics"]
    return metrics
