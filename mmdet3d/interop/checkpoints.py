"""Weights of published programs and of ours into models: layouts converted, every tensor accounted for."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mmdet3d.interop import crkd, labeldistill, monoskd, simdistill
from mmdet3d.io.weights import read_weights
from mmdet3d.shell import command, number_of

__all__ = [
    "EXCEPTIONS",
    "TRAINING_ONLY",
    "LoadReport",
    "fitting_state",
    "in_our_layout",
    "load_checkpoint",
    "load_state",
    "published_options",
    "warn_of_options",
]

logger = logging.getLogger(__name__)

State = dict[str, Tensor]

# Tensors that a model recomputes from its config, so that a file need not hold them and may hold them needlessly.
EXCEPTIONS: dict[str, str] = {
    "dx": "cell size of the view transform's grid, a function of the config",
    "bx": "first cell centre of the view transform's grid, a function of the config",
    "nx": "number of cells of the view transform's grid, a function of the config",
    "frustum": "pixel and depth raster of the view transform, a function of the config",
    "relative_position_index": "index table of Swin's window attention, a function of the window size",
    "num_batches_tracked": "a step counter of BatchNorm that no computation reads",
}

# Parts that only training uses: a detector without them takes what else the file holds.
TRAINING_ONLY: dict[str, str] = {"depth_branch.": "predicts depth for the mimicking loss of MonoMMKD"}

# Published programs whose files hold teacher and student side by side; the first that knows a file reads it.
_DISTILLATIONS = (simdistill, monoskd, crkd)

# What the presence of a key tells a reader about a detector.
_TRAITS = {
    "a Swin camera backbone": "camera.backbone.patch_embed.",
    "a ResNet camera backbone": "camera.backbone.layer1.",
    "a camera branch": "encoders.camera.",
    "a simulated LiDAR branch (SimulatedFusion)": "encoders.simulated.",
    "a LiDAR branch": "encoders.lidar.",
    "a radar branch": "encoders.radar.",
    "a radar calibration module (RadarEncoderCalib, so a distilled student)": "radar.backbone.caliber.",
    "a GatedFuser": "fuser.input_conv_sensor_1.",
    "a ConvFuser": "fuser.0.",
    "a CenterHead": "heads.object.task_heads.",
    "a TransFusionHead": "heads.object.prediction_heads.",
}


def published_options(model: nn.Module, metadata: Mapping[str, Any]) -> dict[str, str]:
    """Config keys, and their values, that weights of another program need and that the config of `model` lacks.

    Args:
        model: a detector.
        metadata: of the weight file; ours says by which version of this project it was written.
    """
    if "mmdet3d" in (metadata.get("versions") or {}):
        return {}
    drawing = ((name, module.depth_map) for name, module in model.named_modules() if hasattr(module, "depth_map"))
    return {f"model.{name}.pixel_depth": "last" for name, rule in drawing if rule.pixel_depth != "last"}


def warn_of_options(model: nn.Module, metadata: Mapping[str, Any], path: str | Path) -> None:
    """Say which settings the weights in `path` were trained with by another program, see `published_options`."""
    for key, value in published_options(model, metadata).items():
        logger.warning(
            "%s does not say that this project wrote it; where another program did, it was trained with another rule: "
            "set %s to %s in the config of that network",
            path,
            key.replace("model.student.", "model."),
            value,
        )


@dataclass(frozen=True)
class LoadReport:
    """What `load_checkpoint` did.

    Args:
        path: the file.
        loaded: number of tensors of the model that the file holds (counted before layout conversion).
        missing: keys of the model that the file does not hold and was allowed not to.
        metadata: the file's own (`epoch`, `metrics`, ...).
    """

    path: Path
    loaded: int
    missing: tuple[str, ...] = ()
    metadata: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        kept = f", {len(self.missing)} keep their initial values" if self.missing else ""
        return f"{number_of(self.loaded, 'tensor')} from {self.path}{kept}"


def load_checkpoint(
    model: nn.Module,
    path: str | Path,
    prefix: str | None = None,
    allow_missing: Sequence[str] = (),
    part: str | None = None,
) -> LoadReport:
    """Load weights from `.safetensors` or `.pth`, accounting for every tensor of the model and of the file.

    Published layouts are converted on the way: geometry that the config determines is dropped, one network is taken out
    of a CRKD, SimDistill or MonoSKD checkpoint (`encoders_student.`, `centernet_rgb.` ...), the student out of one of
    our distillers (`student.` ...), parts that only training uses are left out where `model` has none, and spconv 2.x
    kernels are brought to (k, k, k, in, out). What the metadata of a file name as `left_out` may keep its values.

    Args:
        model: loaded in place.
        path: a weight file of this project or a published one; see `mmdet3d.io.weights.read_weights`.
        prefix: only what lies below this name (`"encoders.camera"`) is loaded, the name removed.
        allow_missing: names of sub-modules (or prefixes of keys) that may keep their values.
        part: `student` or `teacher`, the network meant in a published distillation; None takes the one that fits.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is unsafe or damaged, or keys are missing, unexpected or of another shape; the message
            counts them, shows the first few and says what the file seems to be. Or both networks of a published
            distillation fit and none is asked for.
    """
    path = Path(path)
    state, metadata = read_weights(path)
    below = prefix.rstrip(".") + "." if prefix else ""
    if prefix:
        state = _below(state, below)
        if not state:
            raise ValueError(f"{path} holds nothing below {prefix!r}")
    left_out = [f"{name}.".removeprefix(below) for name in metadata.get("left_out", ())]
    allow_missing = [*allow_missing, *left_out, *(name.removeprefix("student.") for name in left_out)]
    try:
        load_state(model, state, allow_missing, source=str(path), part=part)
    except ValueError as error:
        if not isinstance(named := metadata.get("config"), str):
            raise
        raise ValueError(f"{error} (the JSON beside it names {named} as its config)") from None
    warn_of_options(model, metadata, path)
    own = model.state_dict()
    allowed = tuple(k for k in own if k not in state and k.startswith(tuple(allow_missing)))
    return LoadReport(path, len(own) - len(allowed), allowed, metadata)


def load_state(
    module: nn.Module,
    state: Mapping[str, Tensor],
    allow_missing: Sequence[str] = (),
    source: str = "state",
    part: str | None = None,
) -> None:
    """`load_checkpoint` for tensors that are already in memory; `source` names them in messages."""
    fitted = fitting_state(state, module.state_dict(), allow_missing, source, part, type(module).__name__)
    module.load_state_dict(fitted, strict=False)


def fitting_state(
    state: Mapping[str, Tensor],
    own: Mapping[str, Tensor],
    allow_missing: Sequence[str] = (),
    source: str = "state",
    part: str | None = None,
    owner: str = "the model",
) -> State:
    """What of `state` a model takes, by the names and in the layout of its own state `own`.

    Raises:
        ValueError: see `load_checkpoint`; `owner` is what the message calls the model.
    """
    state = in_our_layout(state, own, part, source)
    state = {k: v for k, v in state.items() if not _derived(k) or (k in own and k.endswith("num_batches_tracked"))}
    needless = tuple(part for part in TRAINING_ONLY if not any(k.startswith(part) for k in own))
    state = {k: v for k, v in state.items() if not k.startswith(needless)}
    missing = [k for k in own if k not in state and not _derived(k) and not k.startswith(tuple(allow_missing))]
    unexpected = [k for k in state if k not in own]
    mismatched = [
        f"{k} {tuple(v.shape)} instead of {tuple(own[k].shape)}"
        for k, v in state.items()
        if k in own and v.shape != own[k].shape
    ]
    problems = [
        _few(keys, kind)
        for keys, kind in ((missing, "missing"), (unexpected, "unexpected"), (mismatched, "of another shape"))
        if keys
    ]
    if problems:
        raise ValueError(f"{source} does not fit {owner}: {'; '.join(problems)}. {_guess(state, own)}")
    return state


def in_our_layout(
    state: Mapping[str, Tensor], own: Mapping[str, Tensor], part: str | None = None, source: str = "state"
) -> State:
    """The tensors of a published or wrapped state by the names, and with the shapes, of the state `own` of a model.

    Raises:
        ValueError: it holds two networks that fit, and `part` asks for none.
    """
    return _spconv_kernels(_layout(dict(state), own, part, source), own)


def _derived(key: str) -> bool:
    return key.rpartition(".")[2] in EXCEPTIONS


def _below(state: Mapping[str, Tensor], prefix: str) -> State:
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def _layout(state: State, own: Mapping[str, Tensor], part: str | None, source: str) -> State:
    """Published and distiller layouts brought to the one of `own`."""
    distiller = any(k.startswith("student.") for k in own)
    for system in _DISTILLATIONS:
        if system.is_published(state):
            student, teacher = system.student_state(state, own), system.teacher_state(state)
            return student if distiller else _half(student, teacher, own, part, source)
    if labeldistill.is_published(state):
        return labeldistill.model_state(state, own)
    if not distiller and any(k.startswith("student.") for k in state):
        return _below(state, "student.")
    return _without_common_prefix(state, own)


def _without_common_prefix(state: State, own: Mapping[str, Tensor]) -> State:
    """Names without the first parts that all share and that `own` does not know, such as Lightning's `model.`."""
    inner = state
    while inner and not any(k in own for k in inner):
        prefix = f"{next(iter(inner)).partition('.')[0]}."
        if not all(k.startswith(prefix) for k in inner):
            return state
        inner = _below(inner, prefix)
    return inner


def _half(student: State, teacher: State, own: Mapping[str, Tensor], part: str | None, source: str) -> State:
    """The network of a published distillation that is meant: the one asked for, or the only one that fits."""
    if part == "teacher":
        if not teacher:
            raise ValueError(f"{source} is a published distillation that holds its student alone and no teacher")
        return teacher
    wanted = {k for k in own if not _derived(k)}
    fits = [wanted <= half.keys() for half in (student, teacher)]
    if part is None and all(fits):
        raise ValueError(
            f"{source} holds two networks that fit, the student and the teacher of a published distillation; take one "
            f"out: {command('convert')} IN OUT.safetensors --config CONFIG --part student (or teacher)"
        )
    return teacher if part is None and fits[1] else student


def _spconv_kernels(state: State, own: Mapping[str, Tensor]) -> State:
    def convert(key: str, value: Tensor) -> Tensor:
        if key in own and value.ndim == 5 and value.shape != own[key].shape:
            permuted = value.permute(1, 2, 3, 4, 0)
            return permuted.contiguous() if permuted.shape == own[key].shape else value
        return value

    return {k: convert(k, v) for k, v in state.items()}


def _few(keys: Sequence[str], kind: str, shown: int = 4) -> str:
    more = ", ..." if len(keys) > shown else ""
    return f"{len(keys)} {kind} ({', '.join(keys[:shown])}{more})"


def _traits(keys: Iterable[str]) -> set[str]:
    text = "\n".join(keys)
    return {trait for trait, fragment in _TRAITS.items() if fragment in text}


def _guess(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str:
    if any(k.startswith("student.") for k in own) and not any(k.startswith("student.") for k in state):
        return "This looks like the checkpoint of a plain detector; name it as model.student.checkpoint"
    theirs, ours = _traits(state), _traits(own)
    only_file, only_model = sorted(theirs - ours), sorted(ours - theirs)
    if not only_file and not only_model:
        return "It was saved with another config or by another project"
    parts = []
    if only_file:
        parts.append(f"the file has {', '.join(only_file)}, which this config lacks")
    if only_model:
        parts.append(f"this config has {', '.join(only_model)}, which the file lacks")
    return f"It was saved with another config: {'; '.join(parts)}"
