"""The one protocol of everything that can be trained, and the pipeline of named stages behind every detector."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from mmdet3d.blocks import nearest
from mmdet3d.models.recompute import blocks_of, recompute_in_training
from mmdet3d.structures import Batch, BEVGrid, Detections3D

__all__ = ["Detector", "Stage", "Trainable"]


class Trainable(nn.Module, ABC):
    """What the engine knows. Entries of the loss dict named `loss/...` are summed, `stats/...` are only logged.

    Attributes:
        inputs: sensors whose data detection reads: `camera`, and names of point sensors such as `lidar`.
        training_inputs: those whose data training reads, also through a teacher.
        tasks: what is predicted, names of heads.
        optional_parts: modules that a checkpoint to start training from may lack, each as a whole.
    """

    optional_parts: tuple[str, ...] = ()

    @property
    def inputs(self) -> tuple[str, ...]:
        return ("camera", "lidar", "radar")

    @property
    def training_inputs(self) -> tuple[str, ...]:
        return self.inputs

    @property
    def tasks(self) -> tuple[str, ...]:
        return ("object",)

    @abstractmethod
    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Scalar terms of one training step."""

    @abstractmethod
    def predict(self, batch: Batch) -> list[Detections3D]:
        """One `Detections3D` per sample; needs neither ground truth nor anything but the model's own sensors."""

    def predict_tasks(self, batch: Batch, tasks: Collection[str] | None = None) -> dict[str, Sequence[Any]]:
        """What heads say, by their names: an entry per sample, whose kind is the task's own.

        Args:
            tasks: names of heads; None for all. No other is run.
        """
        return {"object": self.predict(batch)}

    def init_weights(self) -> None:
        """Load what training from scratch starts from; the engine does not call it where a checkpoint holds it all."""

    def setup_training(self, evaluate: Callable[[Trainable], dict[str, float]]) -> None:
        """Called once by the engine before the first step, on the final device, with the starting weights loaded.

        Args:
            evaluate: metrics of any model on the config's validation set.
        """

    def start_epoch(self, epoch: int) -> None:
        """Called by the engine before the first step of every 0-based epoch, not where it resumes within one."""

    def start_step(self, progress: float) -> None:
        """Called by the engine before every iteration with the share of all iterations that are done, in [0, 1)."""

    def evaluated(self, metrics: Mapping[str, float]) -> None:
        """Called by the engine after every evaluation in training with its metrics; rank 0 alone."""

    def training_state(self) -> dict[str, Any]:
        """Plain values that resuming needs beside the weights. In distributed training every rank calls it."""
        return {}

    def load_training_state(self, state: Mapping[str, Any]) -> None:
        """Continue from what `training_state` returned."""


@dataclass(frozen=True)
class Stage:
    """One step of a detector.

    Args:
        inputs: names of the outputs it consumes.
        outputs: names it produces; these are the taps.
        run: called as `run(batch, *inputs)`; returns one value per output (the bare value if there is one output).
        dense: it computes on maps whose shapes do not depend on the data, which is what `torch.compile` is good at.
        reads: tensors that it reads of the batch, by attribute (`images`, `calibration.intrinsics`, `history.0.images`)
        step: makes what computes the output of a batch without this detector (see `models.steps`), for measurements
            that no network takes as they come, such as point clouds; an exported network is given its output.
        tap: whether its outputs are features, so that callers may ask for them.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    run: Callable[..., Any]
    dense: bool = False
    reads: tuple[str, ...] = ()
    step: Callable[[], Any] | None = None
    tap: bool = True


class Detector(Trainable):
    """A pipeline of named stages.

    A subclass calls `add_stage` while it is built and implements `losses` and `predictions` on the tapped features.
    `extract` computes what the requested taps need and nothing else.

    Attributes:
        loss_taps, predict_taps: what `losses` and `predictions` read.
        grid: the BEV raster of decoder and heads; None for detectors that see through one camera.
        pretrained_parts: names of the modules whose `init_weights` loads the pretrained weights that the config names.
    """

    loss_taps: tuple[str, ...] = ()
    predict_taps: tuple[str, ...] = ()
    grid: BEVGrid | None = None
    pretrained_parts: tuple[str, ...] = ()

    def __init__(self) -> None:
        super().__init__()
        self._stages: dict[str, Stage] = {}

    def add_stage(
        self,
        outputs: str | tuple[str, ...],
        run: Callable[..., Any],
        inputs: tuple[str, ...] = (),
        **options: Any,
    ) -> None:
        """Declare a stage, see `Stage`; its inputs must be outputs of stages declared before it."""
        self.adopt_stage(Stage(inputs, (outputs,) if isinstance(outputs, str) else outputs, run, **options))

    def adopt_stage(self, stage: Stage) -> None:
        """`add_stage` with a stage that is there, such as another detector's."""
        for name in stage.inputs:
            assert name in self._stages, f"{stage.outputs[0]} reads {name}, which no earlier stage puts out"
        for name in stage.outputs:
            assert name not in self._stages, f"tap {name} declared twice"
            self._stages[name] = stage

    def init_weights(self, inherited: Collection[str] = ()) -> None:
        """Load the pretrained parts, but for those below one of the modules `inherited`, which get others."""
        for part in self.pretrained_parts:
            if not any(f"{part}.".startswith(f"{name}.") for name in inherited):
                self.get_submodule(part).init_weights()

    @property
    def taps(self) -> tuple[str, ...]:
        """Names that `extract` accepts, in pipeline order."""
        return tuple(name for name, stage in self._stages.items() if stage.tap)

    def extract(
        self, batch: Batch, taps: Collection[str], given: Mapping[str, Any] = MappingProxyType({})
    ) -> dict[str, Any]:
        """Outputs of the named stages.

        Args:
            batch: on the model's device.
            taps: names out of `self.taps`.
            given: outputs of stages that are known already, by name; what they alone need is not computed.

        Returns:
            At least the requested taps; intermediate outputs computed on the way are in it too.

        Raises:
            ValueError: an unknown tap.
        """
        for name in taps:
            self._check_tap(name)
        done: dict[str, Any] = dict(given)
        wanted = self._closure(taps, given)
        for name, stage in self._stages.items():
            if name in wanted and name not in done:
                value = stage.run(batch, *(done[i] for i in stage.inputs))
                done.update(zip(stage.outputs, value if len(stage.outputs) > 1 else (value,), strict=True))
        return done

    def stages(self, taps: Collection[str], given: Collection[str] = ()) -> list[Stage]:
        """What `extract` runs for `taps`, in order, where the outputs `given` are known."""
        wanted = self._closure(taps, given)
        return list({id(s): s for name, s in self._stages.items() if name in wanted}.values())

    def compile_dense_stages(self, backend: str = "inductor") -> None:
        """Run the dense stages through `torch.compile` with that backend while the detector is in training mode.

        Parameters and buffers keep their names. Evaluation stays as it is: it would be compiled once more. A copy made
        afterwards would run the modules of this detector, so copy first.
        """
        for stage in {id(s): s for s in self._stages.values() if s.dense}.values():
            compiled = replace(stage, run=self._compiled_in_training(stage.run, backend))
            self._stages.update(dict.fromkeys(stage.outputs, compiled))

    def _compiled_in_training(self, plain: Callable[..., Any], backend: str) -> Callable[..., Any]:
        compiled = torch.compile(plain, backend=backend)
        return lambda *values: (compiled if self.training else plain)(*values)

    def recompute_stages(self) -> None:
        """Have backward, while the detector is in training mode, compute again what its stages held in between.

        Of a stage that runs the module of its name (`encoders.camera.backbone`), the blocks of that module one by one,
        if it has any, for image backbones hold most; of any other, all at once. As with `compile_dense_stages`, copy
        first.
        """
        modules = {name: m for name, m in self.named_modules() if not isinstance(m, nn.ModuleDict)}
        for stage in {id(s): s for s in self._stages.values()}.values():
            name = stage.outputs[0]
            blocks = blocks_of(modules[name]) if name in modules else []
            for block in blocks:
                block.forward = recompute_in_training(block, block.forward)  # type: ignore[method-assign]
            if not blocks:
                again = replace(stage, run=recompute_in_training(self, stage.run))
                self._stages.update(dict.fromkeys(stage.outputs, again))

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        return self.supervised(self.extract(batch, self.loss_taps), batch)

    def supervised(self, features: Mapping[str, Any], batch: Batch) -> dict[str, Tensor]:
        """`losses` over the samples with labels."""
        return self.losses(self.of_labelled(features, batch), batch.labelled)

    def of_labelled(self, features: Mapping[str, Any], batch: Batch) -> Mapping[str, Any]:
        """The features of the samples with labels, which come first in the batch.

        Raises:
            ValueError: there is no such sample.
        """
        if not batch.unlabelled:
            return features
        if batch.unlabelled == len(batch):
            raise ValueError(
                f"no sample of the batch {', '.join(batch.tokens)} has labels; lower data.unlabelled.share"
            )
        return _first(features, len(batch) - batch.unlabelled, len(batch))

    def predict(self, batch: Batch) -> list[Detections3D]:
        return self.predictions(self.extract(batch, self.predict_taps), batch)

    def decoder_step(self, batch: Batch) -> Any:
        """What makes detections of the output of the predict tap without this detector: `step(output, batch)`.

        Args:
            batch: of the size that it is for.

        Raises:
            ValueError: there is no such thing.
        """
        raise ValueError(f"a {type(self).__name__} cannot be exported: its detections need the model itself")

    @abstractmethod
    def losses(self, features: Mapping[str, Any], batch: Batch) -> dict[str, Tensor]:
        """The detector's own loss terms from extracted features (at least `loss_taps`)."""

    @abstractmethod
    def predictions(self, features: Mapping[str, Any], batch: Batch) -> list[Detections3D]:
        """Detections from extracted features (at least `predict_taps`)."""

    def _closure(self, taps: Collection[str], given: Collection[str] = ()) -> set[str]:
        wanted: set[str] = set()
        queue = list(taps)
        while queue:
            name = queue.pop()
            if name not in wanted and name not in given:
                wanted.add(name)
                queue.extend(self._stages[name].inputs)
        return wanted

    def _check_tap(self, name: str) -> None:
        if name not in self.taps:
            raise ValueError(
                f"{type(self).__name__} has no tap {name!r}{nearest(name, self.taps)} (taps: {', '.join(self.taps)})"
            )


def _first(value: Any, count: int, size: int) -> Any:
    """Features of the first `count` of `size` samples; a tensor may hold several rows per sample (cameras)."""
    if isinstance(value, Tensor):
        return value[: value.shape[0] // size * count]
    if isinstance(value, Mapping):
        return {k: _first(v, count, size) for k, v in value.items()}
    return [_first(v, count, size) for v in value] if isinstance(value, (list, tuple)) else value
