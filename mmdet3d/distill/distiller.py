"""Teacher + student + a list of losses."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mmdet3d.blocks import nearest, number, read_block
from mmdet3d.distill.balance import Balance, BalanceSettings
from mmdet3d.distill.blocks import check_file
from mmdet3d.distill.class_gate import ClassGate
from mmdet3d.distill.losses import DistillLoss
from mmdet3d.distill.losses.center_heads import center_head
from mmdet3d.distill.schedule import LossSchedule
from mmdet3d.distill.teacher import Evaluate, LiveTeacher, StoredTeacher, Teacher, build_detector, check_score
from mmdet3d.interop.checkpoints import load_weights
from mmdet3d.models.detectors.base import Detector, Trainable
from mmdet3d.registry import MODELS
from mmdet3d.structures import Batch, BEVGrid, Detections3D

__all__ = ["Distiller"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _TeacherSpec:
    config: str
    checkpoint: str
    overrides: Mapping[str, Any] | None = None
    min_score: float | None = None
    metric: str = "object/map"
    answers: str | None = None


@dataclass(frozen=True)
class _StudentSpec:
    config: str
    checkpoint: str | None = None
    overrides: Mapping[str, Any] | None = None
    new_modules: Sequence[str] = ()
    init_from_teacher: Sequence[str] | Mapping[str, str] = ()


@dataclass(frozen=True)
class _Term:
    """Where a distillation loss reads, how much it counts and when."""

    student: str | Sequence[str]
    teacher: str | Sequence[str]
    weight: float
    schedule: LossSchedule


@MODELS.register
class Distiller(Trainable):
    """Trains a student detector on its own losses plus distillation losses against a frozen teacher.

    Only the student and the losses' own parameters are part of `state_dict()` and `parameters()`. The teacher is built
    by `setup_training`; for testing it is not needed, nor is its file.

    Args:
        teacher: `config` and `checkpoint` of a trained detector; `overrides` of that config by dotted key; `min_score`,
            the least value of the validation metric `metric` (default `object/map`) it must reach; `answers`, a folder
            where its answers are kept and found again (see `StoredTeacher`), by default none.
        student: `config` of the student; `overrides` of that config by dotted key; `checkpoint` to start from;
            `new_modules`, prefixes of keys that this checkpoint need not hold; `init_from_teacher`, names of modules
            that start with the weights of the teacher's modules of these names, or by name that of the teacher's.
        losses: by name, each `type`, `student` tap, `teacher` tap (or lists of taps), `weight` (default 1), `schedule`
            (see `LossSchedule`) and the arguments of its class. A loss that is null is off. Without any loss this is
            the control of an experiment: the same student and schedule, no distillation, and no teacher is needed.
        balance: see `BalanceSettings`; weights are then shares of detection's gradient. None takes them as they are.
        class_gate: see `ClassGate`; losses that tell classes apart then leave out those that the teacher does not know
            better than a student of old. None lets all count.

    Raises:
        ValueError: unknown keys, types, or taps of the student.
        FileNotFoundError: no such student config.
    """

    def __init__(
        self,
        teacher: Mapping[str, Any] | None,
        student: Mapping[str, Any],
        losses: Mapping[str, Mapping[str, Any] | None],
        balance: Mapping[str, Any] | None = None,
        class_gate: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self._teacher: Teacher | None = None
        self._student_spec = read_block(_StudentSpec, student, "model.student")
        self.student = build_detector(self._student_spec.config, self._student_spec.overrides)
        self._balance = None if balance is None else Balance(read_block(BalanceSettings, balance, "model.balance"))
        self._gate = None if class_gate is None else read_block(ClassGate, class_gate, "model.class_gate")
        self._progress = 0.0
        self._reported: set[tuple[str, str]] = set()
        self._terms: dict[str, _Term] = {}
        self.losses = nn.ModuleDict()
        for name, cfg in losses.items():
            if cfg is not None:
                self._terms[name], self.losses[name] = _build_loss(name, cfg)
        self._teacher_spec = (
            read_block(_TeacherSpec, teacher or {}, "model.teacher") if self._terms or teacher else None
        )
        self._check_taps(self.student, "student")

    @property
    def inputs(self) -> tuple[str, ...]:
        """The student's."""
        return self.student.inputs

    @property
    def grid(self) -> BEVGrid | None:
        """The student's BEV raster, if it has one."""
        return self.student.grid

    @property
    def teacher(self) -> Detector:
        """The frozen detector; one whose answers are stored may lack its weights.

        Raises:
            ValueError: `setup_training` was not called.
        """
        return self.instructor.model

    @property
    def instructor(self) -> Teacher:
        """Who answers in its name.

        Raises:
            ValueError: `setup_training` was not called.
        """
        if self._teacher is None:
            raise ValueError("the distiller has no teacher yet: call setup_training(evaluate) before training")
        return self._teacher

    def init_weights(self) -> None:
        """Start the student from its checkpoint; without one from the pretrained parts that its config names.

        Modules of `init_from_teacher` get the teacher's weights. Not called for testing, nor when a run is resumed.

        Raises:
            FileNotFoundError: no such checkpoint.
            ValueError: a checkpoint does not fit the student, or one of the modules does not exist.
        """
        spec = self._student_spec
        if spec.checkpoint is not None:
            check_file(spec.checkpoint, "model.student.checkpoint")
            load_weights(self.student, spec.checkpoint, tuple(spec.new_modules), part="student")
        else:
            self.student.init_weights(spec.init_from_teacher)
        inherited = spec.init_from_teacher
        for name in inherited:
            self._copy_from_teacher(name, inherited[name] if isinstance(inherited, Mapping) else name)

    def _copy_from_teacher(self, name: str, source: str) -> None:
        key = "model.student.init_from_teacher"
        modules = dict(self.student.named_modules())
        if name not in modules:
            raise ValueError(f"{key}: the student has no module {name!r}{nearest(name, modules)}")
        if self._teacher_spec is None:
            raise ValueError(f"{key} names {name!r}, but there is no model.teacher to take it from")
        check_file(self._teacher_spec.checkpoint, "model.teacher.checkpoint")
        load_weights(modules[name], self._teacher_spec.checkpoint, prefix=f"{source}.")

    def setup_training(self, evaluate: Evaluate) -> None:
        """Build, check and freeze the teacher, if there is anything to distil.

        Call it once before training, on the final device.

        Args:
            evaluate: scores a model on the validation set, as `{metric: value}`.

        Raises:
            FileNotFoundError: the teacher's config or checkpoint does not exist.
            ValueError: the checkpoint does not fit the teacher, the two BEV grids differ, a tap does not exist, the
                teacher's score is below `min_score`, or `class_gate` has nothing to compare or to gate.
        """
        wanted = self._teacher_spec
        if wanted is None or not self._terms:
            return
        check_file(wanted.checkpoint, "model.teacher.checkpoint")
        if wanted.answers is None:
            teacher: Teacher = LiveTeacher.load(wanted.config, wanted.checkpoint, wanted.overrides)
        else:
            teacher = StoredTeacher(wanted.config, wanted.checkpoint, wanted.answers, wanted.overrides)
        if not _same_grid(teacher.grid, self.student.grid):
            raise ValueError(
                f"teacher and student see different BEV grids: {teacher.grid} ({wanted.config}) and "
                f"{self.student.grid} ({self._student_spec.config}), but distillation compares them cell by cell"
            )
        self._check_taps(teacher, "teacher")
        device = next(self.student.parameters()).device
        teacher.move(lambda tensor: tensor.to(device))
        if wanted.min_score is not None:
            check_score(teacher, wanted.checkpoint, wanted.metric, wanted.min_score, evaluate)
        for loss in self.losses.values():
            loss.bind(teacher.loaded() if loss.uses_teacher else teacher.model, self.student)
        if self._gate is not None:
            self._gate_classes(wanted.checkpoint)
        self._teacher = teacher

    def _gate_classes(self, checkpoint: str) -> None:
        classes = [name for task in center_head(self.student, "student", "model.class_gate").tasks for name in task]
        check_file(self._gate.student, "model.class_gate.student")
        taught = self._gate.taught(checkpoint, classes)
        gated = [name for name, loss in self.losses.items() if loss.gate(taught)]
        if not gated:
            raise ValueError("model.class_gate: no loss tells classes apart, such as ResponseLoss or CrossHeadLoss")
        logger.info("%s teach %s", ", ".join(f"model.losses.{n}" for n in gated), ", ".join(taught) or "no class")

    def start_epoch(self, epoch: int) -> None:
        self.student.start_epoch(epoch)
        faults = self._balance.faults() if self._balance else {}
        for name, loss in self.losses.items():
            loss.start_epoch(epoch)
            for fault in (*loss.faults(), *([faults[name]] if name in faults else [])):
                if (name, fault) not in self._reported:
                    self._reported.add((name, fault))
                    logger.warning("model.losses.%s: %s", name, fault)

    def start_step(self, progress: float) -> None:
        self._progress = progress
        self.student.start_step(progress)

    def training_state(self) -> dict[str, Any]:
        """The student's, and the balance of the losses."""
        return self.student.training_state() | ({"balance": self._balance.state()} if self._balance else {})

    def load_training_state(self, state: Mapping[str, Any]) -> None:
        self.student.load_training_state(state)
        if self._balance and "balance" in state:
            self._balance.load_state(state["balance"])

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """The student's own terms, and `loss/kd/<name>` or `loss/kd/<name>/<part>` per distillation loss.

        What a loss only reports becomes `stats/kd/<name>/<part>`. Losses that need labels see the samples that have
        some; if all need them, the teacher is asked about those alone.
        """
        asked = batch.labelled if all(loss.needs_labels for loss in self.losses.values()) else batch
        taught = self.taught(asked) if self._terms else {}
        features = self.student.extract(batch, {*self.student.loss_taps, *self._taps("student")})
        entries = self.student.supervised(features, batch)
        factors = {name: term.weight * term.schedule.factor(self._progress) for name, term in self._terms.items()}
        counting = [name for name, factor in factors.items() if factor]
        measured = self._balance.measurement(entries.values(), counting) if self._balance and self.training else None
        for name in counting:
            term, factor = self._terms[name], factors[name]
            loss = self.losses[name]
            seen, answers, samples = features, taught, batch
            if loss.needs_labels and batch.unlabelled:
                seen, samples = self.student.of_labelled(features, batch), batch.labelled
                answers = self.student.of_labelled(taught, batch) if asked is batch else taught
            try:
                value = loss(_pick(seen, term.student), _pick(answers, term.teacher), samples)
            except torch.OutOfMemoryError:
                raise
            except (RuntimeError, AttributeError, LookupError, TypeError) as error:
                raise ValueError(_misfit(name, term, seen, answers, error)) from error
            if measured and name in measured.wanted:
                tap = self._compared_at(term, features)
                measured.take(name, _total(value), tap, features[tap])
            if self._balance:
                factor *= self._balance.factor(name)
            entries |= _entries(name, value, factor)
        if self._balance:
            entries |= {f"stats/kd/{key}": torch.tensor(value) for key, value in self._balance.stats().items()}
        return entries

    def taught(self, batch: Batch) -> dict[str, Any]:
        """What the teacher says to a batch: the values of the taps that the losses read."""
        return self.instructor.extract(batch, self._taps("teacher"))

    def _compared_at(self, term: _Term, features: Mapping[str, Any]) -> str:
        """The tap where gradients of a loss and of detection are compared: the one that it reads, if a single map."""
        tap = term.student if isinstance(term.student, str) else ""
        tap = tap if isinstance(features.get(tap), Tensor) else self._balance.settings.at
        if not isinstance(features.get(tap), Tensor):
            maps = ", ".join(k for k, v in features.items() if isinstance(v, Tensor))
            raise ValueError(f"model.balance.at: {tap!r} is no map of the student that is computed here (maps: {maps})")
        return tap

    def predict(self, batch: Batch) -> list[Detections3D]:
        """The student's detections."""
        return self.student.predict(batch)

    def _taps(self, side: str) -> set[str]:
        return {tap for term in self._terms.values() for tap in _listed(getattr(term, side))}

    def _check_taps(self, detector: Detector | Teacher, side: str) -> None:
        for name, term in self._terms.items():
            for tap in _listed(getattr(term, side)):
                if tap not in detector.taps:
                    raise ValueError(
                        f"model.losses.{name}.{side}: the {side} has no tap {tap!r}{nearest(tap, detector.taps)} "
                        f"(taps: {', '.join(detector.taps)})"
                    )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Distiller:
        if self._teacher is not None:
            self._teacher.move(fn)
        return super()._apply(fn, recurse)


def _build_loss(name: str, cfg: Mapping[str, Any]) -> tuple[_Term, DistillLoss]:
    for key in ("type", "student", "teacher"):
        if key not in cfg:
            raise ValueError(f"model.losses.{name} needs `{key}`, got {sorted(cfg)}")
    arguments = dict(cfg)
    schedule = LossSchedule.from_config(arguments.pop("schedule", None), f"model.losses.{name}.schedule")
    weight = number(arguments.pop("weight", 1.0), f"model.losses.{name}.weight")
    term = _Term(arguments.pop("student"), arguments.pop("teacher"), weight, schedule)
    loss = MODELS.build(arguments)
    if not isinstance(loss, DistillLoss):
        raise ValueError(f"model.losses.{name}: {cfg['type']} is no distillation loss")
    return term, loss


def _entries(name: str, value: Tensor | Mapping[str, Tensor], weight: float) -> dict[str, Tensor]:
    """What the loss `name` returned, weighted, by the names that the engine sums or logs."""
    if not isinstance(value, Mapping):
        return {f"loss/kd/{name}": weight * value}
    entries = {}
    for part, scalar in value.items():
        reported = part.startswith("stats/")
        key = f"stats/kd/{name}/{part.removeprefix('stats/')}" if reported else f"loss/kd/{name}/{part}"
        entries[key] = scalar if reported else weight * scalar
    return entries


def _misfit(name: str, term: _Term, seen: Mapping[str, Any], answers: Mapping[str, Any], error: Exception) -> str:
    pairs = [("student", tap, seen[tap]) for tap in _listed(term.student)]
    pairs += [("teacher", tap, answers[tap]) for tap in _listed(term.teacher)]
    shapes = [f"{side} {tap}: {_shapes(value)}" for side, tap, value in pairs]
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return (
        f"model.losses.{name} cannot compare {', '.join(shapes)} ({reason}); name taps of the kind and in the order "
        "that its type reads, of equal shapes, or give the loss a projection or adapter if it has one"
    )


def _shapes(value: Any) -> Any:
    if isinstance(value, Tensor):
        return tuple(value.shape)
    if isinstance(value, Mapping):
        return {k: _shapes(v) for k, v in value.items()}
    return [_shapes(v) for v in value] if isinstance(value, (list, tuple)) else type(value).__name__


def _total(value: Tensor | Mapping[str, Tensor]) -> Tensor:
    """The sum of what a loss returned, without what it only reports."""
    if not isinstance(value, Mapping):
        return value
    return torch.stack([scalar for part, scalar in value.items() if not part.startswith("stats/")]).sum()


def _same_grid(teacher: BEVGrid | None, student: BEVGrid | None) -> bool:
    return teacher is student if teacher is None or student is None else teacher.matches(student)


def _listed(taps: str | Sequence[str]) -> list[str]:
    return [taps] if isinstance(taps, str) else list(taps)


def _pick(features: Mapping[str, Any], taps: str | Sequence[str]) -> Any:
    return features[taps] if isinstance(taps, str) else [features[t] for t in taps]
