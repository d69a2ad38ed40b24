"""A detector as a function of tensors, which can be exported, and what stands before and after it.

    batch -> Interface.inputs -> Network (or its exported form) -> Interface.decode -> detections

An `Interface` is plain values. It travels with an exported network, so that no detector is built to use one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from mmdet3d.models.detectors.base import Detector, Stage
from mmdet3d.models.steps import step_block
from mmdet3d.ops.bev_pool import PoolPlan
from mmdet3d.registry import STEPS
from mmdet3d.structures import Batch, Calibration, Detections3D

__all__ = ["Interface", "Network"]


@dataclass(frozen=True)
class Interface:
    """What goes into a network and what comes out.

    Args:
        reads: inputs that are tensors of the batch, see `Stage.reads`.
        steps: by name the block of what makes an input, or a mapping of several, of the batch.
        inputs: names in the order of the network's arguments; those of a mapping are `NAME.KEY`.
        outputs: names in the order in which the network returns them.
        structure: what the decoder is given, with names of outputs in place of tensors.
        decoder: block of what makes detections of that.
    """

    reads: Sequence[str]
    steps: Mapping[str, Mapping[str, Any]]
    inputs: Sequence[str]
    outputs: Sequence[str]
    structure: Any
    decoder: Mapping[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """Plain values that `Interface(**values)` takes."""
        return asdict(self)

    @cached_property
    def _steps(self) -> dict[str, Any]:
        return {name: STEPS.build(block, f"steps.{name}") for name, block in self.steps.items()}

    @cached_property
    def _decoder(self) -> Any:
        return STEPS.build(self.decoder, "decoder")

    def prepare(self, batch: Batch) -> dict[str, Tensor]:
        """The network's inputs by name.

        Raises:
            ValueError: the batch holds more than one sample, or lacks what the network reads.
        """
        if len(batch) != 1:
            raise ValueError(f"an exported network takes one frame at a time, got {len(batch)}")
        found: dict[str, Tensor] = {}
        for name in self.reads:
            found[name] = _field(batch, name)
        for name, step in self._steps.items():
            found |= _flat(step(batch), name)
        return {name: found[name] for name in self.inputs}

    def decode(self, outputs: Mapping[str, Tensor], batch: Batch) -> list[Detections3D]:
        """Detections of each sample from the network's outputs by name."""
        return self._decoder(_filled(self.structure, outputs), batch)

    def comparable(self, outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What two networks must agree on: the outputs, or what the decoder says where their order means nothing."""
        if not hasattr(self._decoder, "comparable"):
            return dict(outputs)
        return self._decoder.comparable(_filled(self.structure, outputs))


class Network(nn.Module):
    """What of a detector is computed on tensors alone: one frame to the raw outputs of its head.

    Args:
        detector: used as it is, in eval mode.
        batch: one sample, as evaluation reads it; it decides the sizes.
        fixed_calibration: its calibration is built in, so that what is computed of the calibration alone is known.

    Attributes:
        interface: what goes in and out.

    Raises:
        ValueError: the detector has a part that cannot be exported.
    """

    def __init__(self, detector: Detector, batch: Batch, fixed_calibration: bool = False) -> None:
        super().__init__()
        for name, module in detector.named_modules():
            if reason := getattr(module, "not_exportable", ""):
                raise ValueError(f"{type(module).__name__} ({name}) cannot be exported: {reason}")
        if len(detector.predict_taps) != 1:
            raise ValueError(f"a {type(detector).__name__} without a head that detects cannot be exported")
        (self._tap,) = detector.predict_taps
        self.detector = detector.eval()
        self._fixed_calibration = batch.calibration if fixed_calibration else None
        self._known = _known(detector.stages([self._tap]), batch) if fixed_calibration else {}
        stages = detector.stages([self._tap], self._known)
        steps = {stage.outputs[0]: stage.step() for stage in stages if stage.step is not None}
        # Structures of what the steps make, with names in place of tensors.
        self._made = {name: _named(step(batch), name) for name, step in steps.items()}
        reads = self._reads([*self._known, *steps])
        with torch.no_grad():
            output = detector.extract(batch, [self._tap])[self._tap]
        self.interface = Interface(
            reads=reads,
            steps={name: step_block(step) for name, step in steps.items()},
            inputs=(*reads, *(leaf for structure in self._made.values() for leaf in _leaves(structure))),
            outputs=tuple(_flat(output, self._tap)),
            structure=_named(output, self._tap),
            decoder=step_block(detector.decoder_step(batch)),
        )

    def _reads(self, given: Sequence[str]) -> tuple[str, ...]:
        """Tensors of the batch that the stages inside of the network read and that are not built in."""
        names = dict.fromkeys(name for stage in self.detector.stages([self._tap], given) for name in stage.reads)
        fixed = self._fixed_calibration is not None
        return tuple(name for name in names if not (fixed and name.startswith("calibration.")))

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Tensors in the order of `interface.inputs` to those of `interface.outputs`."""
        given = dict(zip(self.interface.inputs, inputs, strict=True))
        made = {name: _filled(structure, given) for name, structure in self._made.items()}
        batch = _batch({name: given[name] for name in self.interface.reads}, self._fixed_calibration)
        found = self.detector.extract(batch, [self._tap], {**made, **self._known})
        return tuple(_flat(found[self._tap], self._tap).values())


def _known(stages: Sequence[Stage], batch: Batch) -> dict[str, Any]:
    """Outputs of the stages that read nothing but the calibration."""
    known = {}
    for stage in stages:
        if stage.reads and not stage.inputs and all(name.startswith("calibration.") for name in stage.reads):
            with torch.no_grad():
                value = stage.run(batch)
            known[stage.outputs[0]] = value.compact() if isinstance(value, PoolPlan) else value
    return known


def _field(batch: Batch, name: str) -> Tensor:
    first, *rest = name.split(".")
    value = batch.require(first, "the network")
    for part in rest:
        value = value[int(part)] if part.isdecimal() else getattr(value, part)
    return value


def _batch(values: Mapping[str, Tensor], calibration: Calibration | None) -> Batch:
    """A batch of one sample that holds these fields alone; matrices that nobody reads are NaN."""
    own = {name: value for name, value in values.items() if not name.startswith("history.")}
    matrices = {name.removeprefix("calibration."): v for name, v in own.items() if name.startswith("calibration.")}
    if calibration is None:
        unread = torch.full((1, 1, 4, 4), torch.nan)
        calibration = Calibration(**{f.name: matrices.get(f.name, unread) for f in fields(Calibration)})
    earlier: dict[int, dict[str, Tensor]] = {}
    for name in values.keys() - own.keys():
        _, step, field = name.split(".", 2)
        earlier.setdefault(int(step), {})[field] = values[name]
    return Batch(
        tokens=["exported"],
        calibration=calibration,
        images=own.get("images"),
        depths=own.get("depths"),
        history=[_batch(earlier[step], None) for step in sorted(earlier)] or None,
    )


def _named(value: Any, name: str) -> Any:
    """The same structure of lists and mappings with names in place of tensors."""
    if isinstance(value, Mapping):
        return {key: _named(inner, f"{name}.{key}") for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_named(inner, f"{name}.{k}") for k, inner in enumerate(value)]
    return name


def _flat(value: Any, name: str) -> dict[str, Any]:
    """What lies in lists and mappings, by the names of `_named`: tensors, or these names themselves."""
    if isinstance(value, Mapping):
        return {k: v for key, inner in value.items() for k, v in _flat(inner, f"{name}.{key}").items()}
    if isinstance(value, (list, tuple)):
        return {k: v for i, inner in enumerate(value) for k, v in _flat(inner, f"{name}.{i}").items()}
    return {name: value}


def _leaves(structure: Any) -> list[str]:
    return [structure] if isinstance(structure, str) else list(_flat(structure, "").values())


def _filled(structure: Any, values: Mapping[str, Tensor]) -> Any:
    """The structure of `_named` with tensors in place of their names."""
    if isinstance(structure, Mapping):
        return {key: _filled(inner, values) for key, inner in structure.items()}
    if isinstance(structure, (list, tuple)):
        return [_filled(inner, values) for inner in structure]
    return values[structure]
