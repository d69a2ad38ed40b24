"""The blocks `model.teacher` and `model.teachers.NAME`: what a block holds says what kind of teacher it is.

    {config: ..., checkpoint: ...}      a detector of this project
    {type: ..., taps: ..., inputs: ...} any PyTorch module
    {answers: FOLDER}                   answers on disk, without a model

With `answers: FOLDER` beside a model its answers are kept there. docs/teachers.md has an example of each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from mmdet3d import plugins
from mmdet3d.blocks import read_block
from mmdet3d.distill.blocks import NamedModel, check_file
from mmdet3d.distill.module_teacher import ModuleTeacher, weights_digest
from mmdet3d.distill.outline import Outline
from mmdet3d.distill.recorded_teacher import RecordedTeacher
from mmdet3d.distill.teacher import LiveTeacher, StoredTeacher, Teacher, build_detector
from mmdet3d.io.weights import read_weights
from mmdet3d.registry import MODELS

__all__ = ["DetectorBlock", "ModuleBlock", "RecordedBlock", "TeacherBlock", "read_teachers"]


@dataclass(frozen=True, kw_only=True)
class DetectorBlock(NamedModel):
    """A trained detector of this project.

    Args:
        checkpoint: its weights.
        min_score: least value of the validation metric.
        metric: its name.
        answers: folder where its answers are kept and found again.
    """

    checkpoint: str
    min_score: float | None = None
    metric: str = "object/map"
    answers: str | None = None

    @property
    def sensors(self) -> tuple[str, ...]:
        """What it reads, see `Trainable.inputs`."""
        return build_detector(self.model, "model.teacher").inputs

    def build(self, key: str) -> Teacher:
        check_file(self.checkpoint, f"{key}.checkpoint")
        teacher = LiveTeacher.load(self.model, self.checkpoint, str(self.config), later=self.answers is not None)
        return teacher if self.answers is None else StoredTeacher(teacher, self.answers)


@dataclass(frozen=True, kw_only=True)
class ModuleBlock:
    """Any module, or a `Teacher` of one's own, of which `type` and `arguments` are all.

    Args:
        type: class or function that gives it, such as `my_package.build_teacher`.
        arguments: of that, by name.
        checkpoint: of the module, its tensors by name; None if what `type` gives is trained.
        taps, inputs, outputs: see `ModuleTeacher`; the latter two are names of functions.
        grid, tasks, norm_bbox: see `Outline`.
        min_score, metric, answers: see `DetectorBlock`; a score is compared if it is recorded beside the checkpoint.
    """

    type: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    checkpoint: str | None = None
    taps: Mapping[str, str] = field(default_factory=dict)
    inputs: str | None = None
    outputs: str | None = None
    grid: Mapping[str, Any] | None = None
    tasks: Sequence[Sequence[str]] | None = None
    norm_bbox: bool = True
    min_score: float | None = None
    metric: str = "object/map"
    answers: str | None = None

    @property
    def sensors(self) -> tuple[str, ...]:
        """What it reads is not known."""
        return ()

    def build(self, key: str) -> Teacher:
        made = MODELS.build({"type": self.type, **self.arguments}, f"{key}.arguments")
        teacher = made if isinstance(made, Teacher) else self._from_module(made, key)
        return teacher if self.answers is None else StoredTeacher(teacher, self.answers)

    def _from_module(self, module: Any, key: str) -> ModuleTeacher:
        if not isinstance(module, nn.Module):
            raise ValueError(f"{key}.type: {self.type} gives a {type(module).__name__}, neither a module nor a Teacher")
        if not self.taps or not self.inputs:
            raise ValueError(
                f"{key} needs taps, {{name: submodule}}, and inputs, a function from a batch to what {self.type} takes"
            )
        if self.checkpoint is not None:
            check_file(self.checkpoint, f"{key}.checkpoint")
            _load(module, self.checkpoint, f"{key}.checkpoint")
        outline = Outline.read(tuple(self.taps), self.grid, self.tasks, self.norm_bbox, key)
        told = ("type", "arguments", "taps", "inputs", "outputs", "checkpoint")
        about = {name: getattr(self, name) for name in told}
        digest = weights_digest(module, {name: about[name] for name in told[:-1]})
        inputs = _function(self.inputs, f"{key}.inputs")
        outputs = None if self.outputs is None else _function(self.outputs, f"{key}.outputs")
        return ModuleTeacher(module, self.taps, inputs, outline, outputs, digest, about)


@dataclass(frozen=True, kw_only=True)
class RecordedBlock:
    """Answers on disk, see `RecordedTeacher`.

    Args:
        answers: the folder.
        min_score, metric: see `DetectorBlock`; compared with `metrics` of the folder's `metadata.json`.
        checkpoint: none, as there is no model.
    """

    answers: str
    min_score: float | None = None
    metric: str = "object/map"
    checkpoint: None = None

    @property
    def sensors(self) -> tuple[str, ...]:
        """It reads none."""
        return ()

    def build(self, key: str) -> Teacher:
        return RecordedTeacher(self.answers, key)


TeacherBlock = DetectorBlock | ModuleBlock | RecordedBlock


def read_teachers(
    teacher: Mapping[str, Any] | None, teachers: Mapping[str, Mapping[str, Any] | None] | None, needed: bool
) -> dict[str, TeacherBlock]:
    """The blocks of a config by the teacher's name, which is empty for `model.teacher`.

    Args:
        needed: whether there must be one.

    Raises:
        ValueError: both forms, none though `needed`, a name with a dot, or see `read_block`.
    """
    if teacher and teachers:
        raise ValueError("model.teacher is one teacher, model.teachers are several by name; set one of the two to null")
    blocks = {f"model.teachers.{name}": block for name, block in (teachers or {}).items() if block is not None}
    if teacher or (needed and not blocks):
        return {"": _read(teacher or {}, "model.teacher")}
    for key in blocks:
        if key.count(".") > 2:
            raise ValueError(f"{key}: the name of a teacher must have no dot, since losses say `teacher: NAME.TAP`")
    return {key.rpartition(".")[2]: _read(block, key) for key, block in blocks.items()}


def _read(block: Mapping[str, Any], key: str) -> TeacherBlock:
    names = set(block) if isinstance(block, Mapping) else set()
    if "type" in names:
        return read_block(ModuleBlock, block, key)
    if names and names <= {"answers", "min_score", "metric"} and block.get("answers"):
        return read_block(RecordedBlock, block, key)
    return read_block(DetectorBlock, block, key)


def _function(name: str, key: str) -> Callable[..., Any]:
    if "." not in name:
        raise ValueError(f"{key}: {name!r} must name a function with its module, as my_package.part.function")
    return plugins.find_class(name, key=key)


def _load(module: nn.Module, path: str, key: str) -> None:
    """Raises ValueError unless the file holds exactly the tensors of the module."""
    weights, _ = read_weights(path)
    own = module.state_dict()
    wrong = [k for k in own if k not in weights or weights[k].shape != own[k].shape]
    wrong += [k for k in weights if k not in own]
    if wrong:
        raise ValueError(
            f"{key}: {path} does not fit {type(module).__name__}: {len(wrong)} tensors are missing, left over or of "
            f"another shape ({', '.join(wrong[:3])} ...)"
        )
    module.load_state_dict(weights)
