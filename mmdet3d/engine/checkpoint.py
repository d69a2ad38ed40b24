"""Checkpoints: weights anybody can read, and beside them all that training needs to go on exactly.

A checkpoint `NAME` of a run is three files, each written to a temporary name and renamed, the JSON last, so that a
checkpoint whose JSON exists is complete:

* `NAME.safetensors`: the weights to use (the average, where training keeps one),
* `NAME.state.pt`: optimiser, scaler, random states, position, and the raw weights where they differ,
* `NAME.json`: position, metrics, versions, SHA-256 of the weights.

`latest.safetensors` and `latest.json` are links to the newest.
"""

from __future__ import annotations

import json
import logging
import os
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor, nn

from mmdet3d.interop.checkpoints import (
    file_digest,
    in_our_layout,
    load_state,
    metadata_path,
    read_weights,
    warn_of_options,
)
from mmdet3d.models.detectors.base import Trainable

__all__ = [
    "LoadReport",
    "RunCheckpoints",
    "load_checkpoint",
    "load_start",
    "random_state",
    "read_training_state",
    "save_weights",
    "set_random_state",
    "state_path",
]


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
        return f"{self.loaded} tensors from {self.path}{kept}"


def load_checkpoint(
    model: nn.Module,
    path: str | Path,
    prefix: str | None = None,
    allow_missing: Sequence[str] = (),
    part: str | None = None,
) -> LoadReport:
    """Load weights from `.safetensors` or `.pth`, accounting for every tensor of the model and of the file.

    Args:
        model: loaded in place.
        path: a weight file of this project or a published one; see `mmdet3d.interop.checkpoints`.
        prefix: only what lies below this name (`"encoders.camera"`) is loaded, the name removed.
        allow_missing: names of sub-modules (or prefixes of keys) that may keep their values.
        part: `student` or `teacher`, the network meant in a published distillation.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is unsafe or damaged, or keys are missing, unexpected or of another shape; the message
            counts them, shows the first few and says what the file seems to be.
    """
    path = Path(path)
    state, metadata = read_weights(path)
    if prefix:
        start = prefix.rstrip(".") + "."
        state = {k.removeprefix(start): v for k, v in state.items() if k.startswith(start)}
        if not state:
            raise ValueError(f"{path} holds nothing below {prefix!r}")
    load_state(model, state, allow_missing, source=str(path), part=part)
    warn_of_options(model, metadata, path)
    own = model.state_dict()
    allowed = tuple(k for k in own if k not in state and k.startswith(tuple(allow_missing)))
    return LoadReport(path, len(own) - len(allowed), allowed, metadata)


def load_start(model: Trainable, path: str | Path) -> LoadReport:
    """`load_checkpoint` for the weights that a training starts from.

    Of the model's `optional_parts`, the file need not hold every one. Those that it lacks as a whole start as in a
    training from scratch, the image backbone from the file of its `init_cfg`, and the log names them.

    Raises:
        FileNotFoundError, ValueError: see `load_checkpoint`.
    """
    own = model.state_dict()
    parts = [part for part in model.optional_parts if _holds(own, part)]
    state = in_our_layout(read_weights(path)[0], own, source=str(path)) if parts else {}
    lacking = [part for part in parts if not _holds(state, part)]
    if len(lacking) == len(parts):
        return load_checkpoint(model, path)
    report = load_checkpoint(model, path, allow_missing=[f"{part}." for part in lacking])
    if lacking:
        model.init_weights([part for part in parts if part not in lacking])
        logging.getLogger("mmdet3d").warning(
            "%s has nothing for %s; what is missing starts as from scratch", path, " and ".join(lacking)
        )
    return report


def _holds(state: Mapping[str, Tensor], part: str) -> bool:
    return any(key.startswith(f"{part}.") for key in state)


def save_weights(state: Mapping[str, Tensor], path: Path, metadata: Mapping[str, Any]) -> None:
    """Write weights atomically: `.safetensors` with a JSON beside it, or `.pth` in the layout of mmcv.

    Raises:
        ValueError: the files cannot be written, or another suffix.
    """
    if path.suffix not in (".safetensors", ".pth"):
        raise ValueError(f"weights are written as .safetensors or .pth, not as {path.name}")
    # Separate copies, because tensors that share memory (tied weights) cannot be stored.
    tensors = {k: v.detach().to("cpu", copy=True).contiguous() for k, v in state.items()}
    if path.suffix == ".pth":
        _write(path, lambda file: torch.save({"meta": dict(metadata), "state_dict": tensors}, file))
        return
    # `save_file` would make a file that nobody else may read, whatever the umask is.
    _write(path, lambda file: file.write_bytes(save(tensors)))
    _write_metadata(path, {**metadata, "sha256": file_digest(path)})


def _write_metadata(path: Path, metadata: Mapping[str, Any]) -> None:
    """Write the JSON beside the weight file `path`, atomically."""
    _write(metadata_path(path), lambda file: file.write_text(json.dumps(metadata, indent=2) + "\n"))


def state_path(weights: str | Path) -> Path:
    """The training-state file beside a weight file."""
    return Path(weights).with_suffix(".state.pt")


def _write(path: Path, write: Any) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, SafetensorError, RuntimeError) as error:  # a full disk is the last two to safetensors and torch
        reason = getattr(error, "strerror", None) or str(error).strip().partition("\n")[0]
        raise ValueError(
            f"cannot write {path} ({reason}); free space or pass a writable --run-dir; "
            "checkpoints written before are intact"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


class RunCheckpoints:
    """The checkpoints of a run folder: `epoch_N` after epoch N (1-based), `epoch_N_iter_I` within it, `best`.

    Args:
        run_dir: the folder.
        max_keep: how many `epoch_N` to keep; None or a negative number keeps all.
    """

    def __init__(self, run_dir: Path, max_keep: int | None = None) -> None:
        self._run_dir = run_dir
        self._max_keep = max_keep if max_keep is not None and max_keep > 0 else None

    def resumable(self) -> list[Path]:
        """Weight files with a complete training state, by position in training."""
        found = [p.with_suffix(".safetensors") for p in self._run_dir.glob("epoch_*.json")]
        complete = [p for p in found if p.is_file() and state_path(p).is_file()]
        return sorted(complete, key=lambda p: json.loads(metadata_path(p).read_text())["iteration"])

    def save(
        self, name: str, weights: Mapping[str, Tensor], state: Mapping[str, Any], metadata: Mapping[str, Any]
    ) -> Path:
        """Write a checkpoint, then delete those that are no longer to be kept."""
        path = self._run_dir / f"{name}.safetensors"
        # An older checkpoint of this name must not pass for complete while its files are replaced.
        metadata_path(path).unlink(missing_ok=True)
        _write(state_path(path), lambda file: torch.save(dict(state), file))
        save_weights(weights, path, metadata)
        self._link_latest(path)
        self._prune(path)
        return path

    def annotate(self, path: Path, entries: Mapping[str, Any]) -> None:
        """Add entries to the JSON of a checkpoint."""
        _write_metadata(path, {**json.loads(metadata_path(path).read_text()), **entries})

    def save_best(self, weights: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> Path:
        path = self._run_dir / "best.safetensors"
        save_weights(weights, path, metadata)
        return path

    def _link_latest(self, path: Path) -> None:
        for file in (path, metadata_path(path)):
            link = self._run_dir / f"latest{file.suffix}"
            temporary = self._run_dir / f".{link.name}.tmp"
            temporary.unlink(missing_ok=True)
            temporary.symlink_to(file.name)
            temporary.replace(link)

    def _prune(self, newest: Path) -> None:
        older = [p for p in self.resumable() if p != newest]
        within = [p for p in older if "_iter_" in p.name]
        ends = [p for p in older if "_iter_" not in p.name]
        surplus = within  # a checkpoint within an epoch only serves until the next one
        if self._max_keep is not None:
            kept = self._max_keep - ("_iter_" not in newest.name)
            surplus = surplus + ends[: max(0, len(ends) - kept)]
        for path in surplus:
            for file in (metadata_path(path), state_path(path), path):
                file.unlink(missing_ok=True)


def read_training_state(path: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Training state and metadata beside the weight file `path`.

    Raises:
        FileNotFoundError: the weight file or its state does not exist.
        ValueError: the state is damaged.
    """
    path = Path(path).resolve()
    if not path.is_file():
        raise FileNotFoundError(f"resume_from: {path} does not exist")
    state, side = state_path(path), metadata_path(path)
    if not state.is_file() or not side.is_file():
        raise FileNotFoundError(
            f"resume_from: {path} has no training state beside it ({state.name}, {side.name}); "
            "to start from its weights alone pass it as --load_from"
        )
    try:
        return torch.load(state, map_location="cpu", weights_only=True), json.loads(side.read_text())
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"{state} is damaged ({reason}); resume from an earlier checkpoint") from error


def random_state() -> dict[str, Any]:
    """State of every generator of this process, in types that `torch.load(weights_only=True)` reads."""
    version, internal, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "python": [version, list(internal), gauss],
        "numpy": [name, torch.from_numpy(keys.astype(np.int64)), int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Undo of `random_state`."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
