"""Weight files: reading them, converting published layouts to ours, and accounting for every tensor."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mmdet3d.interop import crkd, labeldistill, monoskd, simdistill
from mmdet3d.models.weight_files import read_tensors
from mmdet3d.shell import command

__all__ = [
    "EXCEPTIONS",
    "TRAINING_ONLY",
    "file_digest",
    "in_our_layout",
    "load_state",
    "load_weights",
    "metadata_path",
    "published_options",
    "read_weights",
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


def file_digest(path: str | Path) -> str:
    """SHA-256 of a file, as hexadecimal digits."""
    # hashlib.file_digest needs Python 3.11.
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def metadata_path(path: str | Path) -> Path:
    """The JSON file beside a weight file: `{"metrics": ..., "sha256": ..., ...}`."""
    return Path(path).with_suffix(".json")


def read_weights(path: str | Path) -> tuple[State, dict[str, Any]]:
    """Tensors (on the CPU) and metadata of a weight file.

    `.safetensors` takes its metadata from the JSON beside it; otherwise see `read_tensors`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: see `read_tensors`.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"weight file {path} does not exist")
    state, meta = read_tensors(path)
    side = metadata_path(path)
    if path.suffix == ".safetensors" and side.is_file():
        meta = json.loads(side.read_text())
    return state, meta


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


def load_weights(
    module: nn.Module,
    path: str | Path,
    allow_missing: Sequence[str] = (),
    prefix: str = "",
    part: str | None = None,
) -> dict[str, Any]:
    """Load a weight file completely: every tensor of `module` and of the file is accounted for.

    Published layouts are converted on the way: geometry that the config determines is dropped, one network is taken out
    of a CRKD, SimDistill or MonoSKD checkpoint (`encoders_student.`, `centernet_rgb.` ...), the student out of one of
    our distillers (`student.` ...), parts that only training uses are left out where `module` has none, and spconv 2.x
    kernels are brought to (k, k, k, in, out).

    Args:
        module: loaded in place.
        path: see `read_weights`.
        allow_missing: prefixes of keys of `module` that the file need not hold; they keep their values.
        prefix: only what the file holds below this prefix is loaded, the prefix removed.
        part: `student` or `teacher`, the network meant in a published distillation; None takes the one that fits.

    Returns:
        The file's metadata.

    Raises:
        FileNotFoundError: no such file.
        ValueError: keys are missing, unexpected or of another shape; the message counts them, shows the first few and
            says what the file seems to be. Or both networks of a published distillation fit and none is asked for.
    """
    state, meta = read_weights(path)
    if prefix:
        state = _below(state, prefix)
        if not state:
            raise ValueError(f"{path} holds nothing below {prefix!r}")
    load_state(module, state, allow_missing, source=str(path), part=part)
    warn_of_options(module, meta, path)
    return meta


def load_state(
    module: nn.Module,
    state: Mapping[str, Tensor],
    allow_missing: Sequence[str] = (),
    source: str = "state",
    part: str | None = None,
) -> None:
    """`load_weights` for tensors that are already in memory; `source` names them in messages."""
    own = module.state_dict()
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
        raise ValueError(f"{source} does not fit {type(module).__name__}: {'; '.join(problems)}. {_guess(state, own)}")
    module.load_state_dict(state, strict=False)


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
        return "Was it saved with another config, or by another project?"
    parts = []
    if only_file:
        parts.append(f"the file has {', '.join(only_file)}, which this config lacks")
    if only_model:
        parts.append(f"this config has {', '.join(only_model)}, which the file lacks")
    return f"It was saved with another config: {'; '.join(parts)}"
