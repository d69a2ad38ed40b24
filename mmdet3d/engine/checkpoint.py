"""Checkpoints of a run: weights anybody can read, and beside them all that training needs to go on exactly.

A checkpoint `NAME` is three files, each whole or absent, the JSON last, so that a checkpoint whose JSON exists is
complete:

* `NAME.safetensors`: the weights to use (the average, where training keeps one),
* `NAME.state.pt`: optimiser, scaler, random states, position, and the raw weights where they differ,
* `NAME.json`: position, metrics, versions, SHA-256 of the other two.

`latest.safetensors` and `latest.json` are links to the newest.
"""

from __future__ import annotations

import logging
import random
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmdet3d.interop.checkpoints import LoadReport, in_our_layout, load_checkpoint
from mmdet3d.io.files import file_digest
from mmdet3d.io.weights import (
    metadata_path,
    naming_disk_errors,
    read_metadata,
    read_state,
    read_weights,
    save_metadata,
    save_state,
    save_weights,
    verified_metadata,
)
from mmdet3d.models.detectors.base import Detector, Trainable

__all__ = [
    "RunCheckpoints",
    "load_start",
    "random_state",
    "read_training_state",
    "set_random_state",
    "state_path",
]


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
    if lacking and isinstance(model, Detector):
        model.init_weights([part for part in parts if part not in lacking])
        logging.getLogger("mmdet3d").warning(
            "%s has nothing for %s; what is missing starts as from scratch", path, " and ".join(lacking)
        )
    return report


def _holds(state: Mapping[str, Tensor], part: str) -> bool:
    return any(key.startswith(f"{part}.") for key in state)


_NAME = re.compile(r"epoch_(\d+)(?:_iter_(\d+))?")
_STATE = "state_sha256"
logger = logging.getLogger(__name__)


def state_path(weights: str | Path) -> Path:
    """The training-state file beside a weight file."""
    return Path(weights).with_suffix(".state.pt")


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
        found = [p.with_suffix(".safetensors") for p in self._run_dir.glob("epoch_*.json") if _NAME.fullmatch(p.stem)]
        complete = [p for p in found if p.is_file() and state_path(p).is_file()]
        return sorted(complete, key=_position)

    def newest_intact(self) -> Path | None:
        """The last of `resumable` that is as it was written; the log names those after it that are not."""
        for path in reversed(self.resumable()):
            try:
                check_intact(path)
                return path
            except ValueError as error:
                logger.warning("%s is not resumed: %s", path.name, error)
        return None

    def save(
        self, name: str, weights: Mapping[str, Tensor], state: Mapping[str, Any], metadata: Mapping[str, Any]
    ) -> Path:
        """Write a checkpoint, then delete those that are no longer to be kept.

        Raises:
            ValueError: it cannot be written; or it does not read back as it was written, and nothing was deleted.
        """
        path = self._run_dir / f"{name}.safetensors"
        with naming_disk_errors(path):
            # An older checkpoint of this name must not pass for complete while its files are replaced.
            metadata_path(path).unlink(missing_ok=True)
            digest = save_state(state, state_path(path))
            save_weights(weights, path, {**metadata, _STATE: digest})
            self._link_latest(path)
            self._prune(path)
        return path

    def annotate(self, path: Path, entries: Mapping[str, Any]) -> None:
        """Add entries to the JSON of a checkpoint."""
        save_metadata(path, {**read_metadata(path), **entries})

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
        if surplus:
            check_intact(newest)
        for path in surplus:
            for file in (metadata_path(path), state_path(path), path):
                file.unlink(missing_ok=True)
        for name in ("epoch_*", "best"):
            for cut_off in self._run_dir.glob(f".{name}.*.partial"):  # of a training that was killed while it wrote
                cut_off.unlink(missing_ok=True)


def _position(path: Path) -> tuple[int, int]:
    """Epochs that are done, and batches of the next one."""
    name = _NAME.fullmatch(path.stem)
    assert name is not None, path
    epoch, batch = name.groups()
    return (int(epoch), 0) if batch is None else (int(epoch) - 1, int(batch))


def check_intact(path: Path) -> None:
    """Raises ValueError, naming the file, unless a checkpoint's files are those that were written."""
    recorded = verified_metadata(path).get(_STATE)
    if recorded is not None and recorded != file_digest(state_path(path)):
        raise ValueError(f"{state_path(path)} is damaged (another SHA-256); resume from an earlier checkpoint")


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
    check_intact(path)
    try:
        return read_state(state), read_metadata(path)
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"{state} is damaged ({reason}); resume from an earlier checkpoint") from error


def random_state() -> dict[str, Any]:
    """State of every generator of this process, in types that `torch.load(weights_only=True)` reads."""
    version, internal, gauss = random.getstate()
    state: Any = np.random.get_state()
    name, keys, position, has_gauss, cached = state
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
