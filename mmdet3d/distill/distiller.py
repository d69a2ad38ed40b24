"""Teacher (or several) + student + a list of losses."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from mmdet3d.blocks import nearest, read_block
from mmdet3d.distill.adapters import AdaptedTeacher, adapted
from mmdet3d.distill.balance import Balance, BalanceSettings, Measurement
from mmdet3d.distill.blocks import NamedModel, check_file
from mmdet3d.distill.class_gate import ClassGate
from mmdet3d.distill.doctor import Doctor, worse_classes
from mmdet3d.distill.losses.base import DistillLoss
from mmdet3d.distill.losses.center_heads import center_head
from mmdet3d.distill.outline import Outline
from mmdet3d.distill.providers import read_teachers
from mmdet3d.distill.teacher import Evaluate, Teacher, build_detector, check_score, recorded_metrics
from mmdet3d.distill.terms import Term, build_term, owner_of
from mmdet3d.interop.checkpoints import load_checkpoint
from mmdet3d.models.detectors.base import Detector, Trainable
from mmdet3d.registry import MODELS
from mmdet3d.structures import Batch, BEVGrid, Detections3D

__all__ = ["Distiller", "StudentBlock"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class StudentBlock(NamedModel):
    """The detector that learns.

    Args:
        checkpoint: to start from.
        new_modules: prefixes of keys that this checkpoint need not hold.
        init_from_teacher: names of modules that start with the weights of the teacher's modules of these names, or by
            name that of the teacher's (`NAME.MODULE` of several teachers).
    """

    checkpoint: str | None = None
    new_modules: Sequence[str] = ()
    init_from_teacher: Sequence[str] | Mapping[str, str] = ()


@MODELS.register
class Distiller(Trainable):
    """Trains a student detector on its own losses plus distillation losses against a frozen teacher.

    Only the student and the losses' own parameters are part of `state_dict()` and `parameters()`. The teacher is built
    by `setup_training`; for testing it is not needed, nor is its file.

    Args:
        teacher: a trained detector (`DetectorBlock`), any other module (`ModuleBlock`), or answers on disk
            (`RecordedBlock`). Where its raster or classes are not the student's, see `adapted`.
        teachers: several of them by name, instead of `teacher`.
        student: a detector (`StudentBlock`).
        losses: by name, each the keys of a `TermBlock` and the arguments of its class. A loss that is null is off.
            Without any loss this is the control of an experiment: the same student and schedule, no distillation, and
            no teacher is needed.
        balance: see `BalanceSettings`; weights are then shares of detection's gradient. None takes them as they are.
        class_gate: see `ClassGate`; losses that tell classes apart then leave out those that the teacher does not know
            better than a student of old. None lets all count.

    Raises:
        ValueError: unknown keys, types, or taps of the student.
    """

    def __init__(
        self,
        *,
        student: Mapping[str, Any],
        losses: Mapping[str, Mapping[str, Any] | None],
        teacher: Mapping[str, Any] | None = None,
        teachers: Mapping[str, Mapping[str, Any] | None] | None = None,
        balance: Mapping[str, Any] | None = None,
        class_gate: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self._teachers: dict[str, Teacher] = {}
        self._student_spec = read_block(StudentBlock, student, "model.student")
        self.student = build_detector(self._student_spec.model, "model.student")
        self._balance = None if balance is None else Balance(read_block(BalanceSettings, balance, "model.balance"))
        self._gate = None if class_gate is None else read_block(ClassGate, class_gate, "model.class_gate")
        self._doctor = Doctor()
        self._progress = 0.0
        self._reported: set[tuple[str, str]] = set()
        self._blocks = read_teachers(teacher, teachers, needed=any(cfg is not None for cfg in losses.values()))
        self._terms: dict[str, Term] = {}
        self.losses, self.projections = nn.ModuleDict(), nn.ModuleDict()
        for name, cfg in losses.items():
            if cfg is not None:
                self._terms[name], self.losses[name], projection = build_term(name, cfg, self._blocks)
                if projection is not None:
                    self.projections[name] = projection
        self._check_taps(self.student, "student")

    @property
    def inputs(self) -> tuple[str, ...]:
        """The student's."""
        return self.student.inputs

    @property
    def training_inputs(self) -> tuple[str, ...]:
        """The student's and, where there is anything to distil, those of the teachers."""
        taught = [name for block in self._blocks.values() for name in block.sensors] if self._terms else []
        return tuple(dict.fromkeys((*self.inputs, *taught)))

    @property
    def grid(self) -> BEVGrid | None:
        """The student's BEV raster, if it has one."""
        return self.student.grid

    @property
    def teacher(self) -> Detector | Outline:
        """What is known of the only teacher: the frozen detector, which may lack its weights if answers are stored.

        Raises:
            ValueError: `setup_training` was not called, or there are several.
        """
        return self.instructor.model

    @property
    def instructor(self) -> Teacher:
        """The only teacher.

        Raises:
            ValueError: `setup_training` was not called, or there are several.
        """
        if len(self.instructors) > 1:
            raise ValueError(f"the distiller has several teachers: {', '.join(self.instructors)}")
        return next(iter(self.instructors.values()))

    @property
    def _losses(self) -> dict[str, DistillLoss]:
        return cast("dict[str, DistillLoss]", dict(self.losses.items()))

    @property
    def instructors(self) -> dict[str, Teacher]:
        """Who answers, by name in `model.teachers`; the name is empty for `model.teacher`.

        Raises:
            ValueError: `setup_training` was not called.
        """
        if not self._teachers:
            raise ValueError("the distiller has no teacher yet: call setup_training(evaluate) before training")
        return self._teachers

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
            load_checkpoint(self.student, spec.checkpoint, allow_missing=spec.new_modules, part="student")
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
        owner, part = owner_of(source, self._blocks, key)
        block = self._blocks.get(owner)
        if block is None:
            raise ValueError(f"{key} names {name!r}, but there is no model.teacher to take it from")
        if block.checkpoint is None:
            raise ValueError(f"{key} names {name!r}, but {_key(owner)} has no checkpoint to take it from")
        check_file(block.checkpoint, f"{_key(owner)}.checkpoint")
        load_checkpoint(modules[name], block.checkpoint, prefix=f"{part}.")

    def setup_training(self, evaluate: Evaluate | None) -> None:
        """Build, check and freeze the teachers, if there is anything to distil.

        Call it once before training, on the final device.

        Args:
            evaluate: scores a model on the validation set, as `{metric: value}`; None: scores are not looked at.

        Raises:
            FileNotFoundError: a teacher's checkpoint or folder does not exist.
            ValueError: a checkpoint does not fit its teacher, its raster or classes cannot be mapped to the student's,
                a tap does not exist, a teacher's score is below `min_score`, or `class_gate` has nothing to compare or
                to gate.
        """
        if not self._terms:
            return
        owners = dict.fromkeys(term.owner for term in self._terms.values())
        teachers = {owner: self._hire(owner, evaluate) for owner in owners}
        for name, loss in self._losses.items():
            teacher = teachers[self._terms[name].owner]
            if loss.uses_teacher:
                teacher.loaded()
            loss.bind(teacher.model, self.student)
        self._teach_classes(teachers)
        self._teachers = teachers

    def _hire(self, owner: str, evaluate: Evaluate | None) -> Teacher:
        key, block = _key(owner), self._blocks[owner]
        teacher = block.build(key)
        self._check_taps(teacher, "teacher", owner)
        teacher = adapted(teacher, self.student, self._asked(owner), key)
        if isinstance(teacher, AdaptedTeacher):
            logger.info("%s: %s", key, teacher)
        device = next(self.student.parameters()).device
        teacher.move(lambda tensor: tensor.to(device))
        if block.min_score is not None and evaluate is not None:
            check_score(teacher, block.checkpoint, block.metric, block.min_score, evaluate, key)
        return teacher

    def _teach_classes(self, teachers: Mapping[str, Teacher]) -> None:
        """Keep losses from classes that their teacher does not have, or that `class_gate` leaves out."""
        if self._gate is not None:
            check_file(self._gate.student, "model.class_gate.student")
        better: dict[str, list[str]] = {}
        gated: dict[tuple[str, ...], list[str]] = {}
        for name, loss in self._losses.items():
            owner = self._terms[name].owner
            reads_head = any(tap.startswith("heads.") for tap in self._terms[name].asked)
            unknown = teachers[owner].unknown if reads_head else ()
            if self._gate is None and not unknown:
                continue
            if owner not in better:
                better[owner] = self._better_classes(owner)
            taught = [c for c in better[owner] if c not in unknown]
            if loss.gate(taught):
                gated.setdefault(tuple(taught), []).append(f"model.losses.{name}")
            elif unknown:
                raise ValueError(
                    f"model.losses.{name}: {_key(owner)} does not know {', '.join(unknown)}, and {type(loss).__name__} "
                    "does not tell classes apart; switch this loss off (null), or take a teacher with these classes"
                )
        if self._gate is not None and not gated:
            raise ValueError("model.class_gate: no loss tells classes apart, such as ResponseLoss or CrossHeadLoss")
        for classes, names in gated.items():
            logger.info("%s teach %s", ", ".join(names), ", ".join(classes) or "no class")

    def _better_classes(self, owner: str) -> list[str]:
        """The student's classes, with a gate those that the teacher knows better."""
        classes = [name for task in center_head(self.student, "student", "model.class_gate").tasks for name in task]
        checkpoint = self._blocks[owner].checkpoint
        if self._gate is None:
            return classes
        if checkpoint is None:
            raise ValueError(
                f"model.class_gate compares what is recorded beside checkpoints, but {_key(owner)} has none; set "
                "model.class_gate to null"
            )
        return self._gate.taught(checkpoint, classes)

    def start_epoch(self, epoch: int) -> None:
        self.student.start_epoch(epoch)
        faults = (self._balance or self._doctor).faults()
        for name, loss in self._losses.items():
            loss.start_epoch(epoch)
            for fault in (*loss.faults(), *([faults[name]] if name in faults else [])):
                if (name, fault) not in self._reported:
                    self._reported.add((name, fault))
                    logger.warning("model.losses.%s: %s", name, fault)

    def start_step(self, progress: float) -> None:
        self._progress = progress
        self.student.start_step(progress)

    def evaluated(self, metrics: Mapping[str, float]) -> None:
        for owner in dict.fromkeys(term.owner for term in self._terms.values()):
            checkpoint = self._blocks[owner].checkpoint
            worse = worse_classes(recorded_metrics(checkpoint), metrics) if checkpoint else {}
            if not worse or self._gate is not None or (owner, "classes") in self._reported:
                continue
            self._reported.add((owner, "classes"))
            listed = ", ".join(
                f"{name} (AP {theirs:.3f}, student {ours:.3f})" for name, (theirs, ours) in worse.items()
            )
            logger.warning(
                "%s knows worse than the student: %s; take a better teacher, or keep it from teaching these with "
                "--model.class_gate.student CHECKPOINT of a student of old",
                _key(owner),
                listed,
            )

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
        asked = batch.labelled if all(loss.needs_labels for loss in self._losses.values()) else batch
        taught = self.taught(asked) if self._terms else {}
        features = self.student.extract(batch, {*self.student.loss_taps, *self._taps("student")})
        entries = self.student.supervised(features, batch)
        factors = {name: term.weight * term.schedule.factor(self._progress) for name, term in self._terms.items()}
        counting = [name for name, factor in factors.items() if factor]
        measured = self._measurement(entries, {name: factors[name] for name in counting})
        for name in counting:
            term, factor = self._terms[name], factors[name]
            loss = self._losses[name]
            seen: Mapping[str, Any] = features
            answers: Mapping[str, Any] = taught
            samples = batch
            if loss.needs_labels and batch.unlabelled:
                seen, samples = self.student.of_labelled(features, batch), batch.labelled
                answers = self.student.of_labelled(taught, batch) if asked is batch else taught
            try:
                ours = term.pick("student", seen)
                ours = self.projections[name](ours) if name in self.projections else ours
                value = loss(ours, term.pick("teacher", answers), samples)
            except torch.OutOfMemoryError:
                raise
            except (RuntimeError, AttributeError, LookupError, TypeError) as error:
                raise ValueError(term.misfit(seen, answers, error)) from error
            if measured and name in measured.wanted:
                self._measure(measured, name, term.total(value), features)
            if self._balance:
                factor *= self._balance.factor(name)
            entries |= term.entries(value, factor)
        if self._balance:
            entries |= {f"stats/kd/{key}": torch.tensor(value) for key, value in self._balance.stats().items()}
        return entries

    def pulls(self, batch: Batch, name: str) -> list[Tensor]:
        """The gradient of one loss, without its weight, on every tensor of the student's taps that it reads.

        Args:
            batch: labelled samples.

        Raises:
            ValueError: no such loss.
        """
        if name not in self._terms:
            raise ValueError(
                f"the distiller has no loss {name!r}{nearest(name, self._terms)} (losses: {', '.join(self._terms)})"
            )
        term = self._terms[name]
        with torch.no_grad():
            seen = term.pick("student", self.student.extract(batch, term.taps("student")))
        leaves: list[Tensor] = []
        seen = _as_leaves(seen, leaves)
        with torch.enable_grad():
            seen = self.projections[name](seen) if name in self.projections else seen
            value = term.total(self.losses[name](seen, term.pick("teacher", self.taught(batch)), batch))
            found = torch.autograd.grad(value, leaves, allow_unused=True)
        return [torch.zeros_like(leaf) if pull is None else pull for leaf, pull in zip(leaves, found, strict=True)]

    def taught(self, batch: Batch) -> dict[str, Any]:
        """What the teachers say to a batch: the values of the taps that the losses read, by the names in `losses`."""
        answers: dict[str, Any] = {}
        for owner, teacher in self.instructors.items():
            found = teacher.extract(batch, self._asked(owner))
            answers |= {f"{owner}.{tap}" if owner else tap: value for tap, value in found.items()}
        return answers

    def _measurement(self, own: Mapping[str, Tensor], weights: Mapping[str, float]) -> Measurement | None:
        """What compares gradients in this step, if anything does."""
        if not (self.training and weights):
            return None
        if self._balance:
            return self._balance.measurement(own.values(), list(weights))
        return self._doctor.measurement(own.values(), weights)

    def _measure(self, measured: Measurement, name: str, loss: Tensor, features: Mapping[str, Any]) -> None:
        try:
            tap = self._compared_at(self._terms[name], features)
            measured.take(name, loss, tap, features[tap])
        except (ValueError, RuntimeError):
            if self._balance:
                raise
            # The doctor cannot look here, which is no reason to stop.

    def _compared_at(self, term: Term, features: Mapping[str, Any]) -> str:
        """The tap where gradients of a loss and of detection are compared: the one that it reads, if a single map."""
        tap = term.student if isinstance(term.student, str) else ""
        if not isinstance(features.get(tap), Tensor):
            tap = (self._balance.settings if self._balance else BalanceSettings()).at
        if not isinstance(features.get(tap), Tensor):
            maps = ", ".join(k for k, v in features.items() if isinstance(v, Tensor))
            raise ValueError(f"model.balance.at: {tap!r} is no map of the student that is computed here (maps: {maps})")
        return tap

    def predict(self, batch: Batch) -> list[Detections3D]:
        """The student's detections."""
        return self.student.predict(batch)

    @property
    def tasks(self) -> tuple[str, ...]:
        """The student's."""
        return self.student.tasks

    def predict_tasks(self, batch: Batch, tasks: Collection[str] | None = None) -> dict[str, Sequence[Any]]:
        """What the student's heads say."""
        return self.student.predict_tasks(batch, tasks)

    def _taps(self, side: str) -> set[str]:
        return {tap for term in self._terms.values() for tap in term.taps(side)}

    def _asked(self, owner: str) -> list[str]:
        """The taps of a teacher that losses read."""
        return sorted({tap for term in self._terms.values() if term.owner == owner for tap in term.asked})

    def _check_taps(self, model: Detector | Teacher, side: str, owner: str = "") -> None:
        for name, term in self._terms.items():
            if side == "teacher" and term.owner != owner:
                continue
            for tap in term.taps(side):
                known = [f"{owner}.{t}" if owner else t for t in model.taps]
                if tap not in known:
                    raise ValueError(
                        f"model.losses.{name}.{side}: the {side} has no tap {tap!r}{nearest(tap, known)} "
                        f"(taps: {', '.join(known)})"
                    )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Distiller:
        for teacher in self._teachers.values():
            teacher.move(fn)
        super()._apply(fn, recurse)
        return self


def _key(owner: str) -> str:
    """Where a teacher stands in the config."""
    return f"model.teachers.{owner}" if owner else "model.teacher"


def _as_leaves(value: Any, leaves: list[Tensor]) -> Any:
    """The same value out of tensors that gradients end at, which are appended to `leaves`."""
    if isinstance(value, Tensor) and value.is_floating_point():
        leaves.append(value.detach().requires_grad_())
        return leaves[-1]
    if isinstance(value, Mapping):
        return {k: _as_leaves(v, leaves) for k, v in value.items()}
    return [_as_leaves(v, leaves) for v in value] if isinstance(value, (list, tuple)) else value
