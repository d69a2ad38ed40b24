"""Weight files: those of any program are read, without running code; ours are written.

`NAME.safetensors` holds tensors alone, `NAME.json` beside it what is to be known about them. `.pth` files hold both.
"""

from __future__ import annotations

import json
import logging
import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from mmdet3d.io.files import atomic_write, file_digest, json_content

__all__ = ["metadata_path", "read_state", "read_weights", "save_metadata", "save_state", "save_weights"]

# Under which key programs keep weights; averaged ones (EMA) come first, for they are what was evaluated. Not mmengine's
# `ema_state_dict`: when it saves, it swaps the two, so that `state_dict` has the average.
_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model", "model_state")
_AVERAGED = _WRAPPERS[:2]

# What wrappers put before the names of the whole model (DistributedDataParallel) or of any part of it (torch.compile).
_PARALLEL, _COMPILED = "module.", "_orig_mod."

_TERMINAL = re.compile(r"\x1b\[[0-9;]*m")
_REFUSED = re.compile(r"(?:GLOBAL|global|class) ([A-Za-z_][\w.]*\.\w+)")

logger = logging.getLogger(__name__)


class _Inert:
    """Stands for an object beside the weights: whatever is done to it, nothing happens."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


# What programs keep beside weights (mmengine its message hub, Lightning hyperparameters); nothing of it is looked at.
_RECORDS = (
    "mmengine.logging.history_buffer.HistoryBuffer",
    "builtins.getattr",  # how mmengine's buffers name their statistics
    "argparse.Namespace",
    *(f"pathlib.{name}" for name in ("PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath")),
    *(f"datetime.{name}" for name in ("datetime", "date", "timedelta")),
    *(f"numpy.{core}.multiarray._reconstruct" for core in ("core", "_core")),
    "numpy.ndarray",
)


# -- reading ----------------------------------------------------------------------------------------------------------


def metadata_path(path: str | Path) -> Path:
    """The JSON file beside a weight file: `{"metrics": ..., "sha256": ..., ...}`."""
    return Path(path).with_suffix(".json")


def read_weights(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors by name (on the CPU) and metadata of a weight file.

    `.safetensors` takes its metadata from the JSON beside it. Anything else is a PyTorch file: a state dict, or one
    under `state_dict`, `model` and the like, with `meta` beside it. Where averaged weights (`state_dict_ema` ...) lie
    beside raw ones, they are taken. `module.` and `_orig_mod.`, which wrappers put into names, are removed.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file holds no weights, objects that are not safe to load, or is damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"weight file {path} does not exist")
    if path.suffix != ".safetensors":
        return _read_pytorch(path)
    side = metadata_path(path)
    try:
        return _plain_names(load_file(path)), json_content(side) if side.is_file() else {}
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file ({error}); copy or download it again") from error


def _read_pytorch(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    content = _load(path)
    state, meta = content, None
    if isinstance(content, Mapping):
        found = [key for key in _WRAPPERS if isinstance(content.get(key), Mapping)]
        if found:
            state, meta = content[found[0]], content.get("meta")
        if found[1:] and found[0] in _AVERAGED:
            logger.info("%s: the averaged weights are taken (%s, not %s)", path, found[0], found[1])
    tensors = {k: v for k, v in state.items() if isinstance(v, Tensor)} if isinstance(state, Mapping) else {}
    if not tensors:
        raise ValueError(f"{path} holds no weights: expected tensors by name, or such a mapping under 'state_dict'")
    return _plain_names(tensors), dict(meta) if isinstance(meta, Mapping) else {}


def _plain_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    state = {k.replace(_COMPILED, ""): v for k, v in tensors.items()}
    while all(k.startswith(_PARALLEL) for k in state):
        state = {k.removeprefix(_PARALLEL): v for k, v in state.items()}
    return state


def _load(path: Path) -> Any:
    # Runners write scores into `meta` as NumPy scalars; both spellings of their module occur.
    scalar = np.float64(0).__reduce__()[0]
    numbers: list[Any] = [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    numbers += [np.dtype, *(type(np.dtype(t)) for t in ("float32", "float64", "int64"))]
    try:
        with torch.serialization.safe_globals([*numbers, *((_Inert, name) for name in _RECORDS)]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, zipfile.BadZipFile) as error:
        text = _TERMINAL.sub("", str(error)).strip()
        refused = _REFUSED.search(text)
        if refused:
            raise ValueError(
                f"{path} holds more than weights and plain values: an object of {refused[1]}, which could run code "
                "when it is loaded; if you trust the file, save its 'state_dict' alone"
            ) from error
        reason = text.splitlines()[0][:200] if text else type(error).__name__
        raise ValueError(
            f"{path} is damaged or holds more than weights and plain values ({reason}); save its 'state_dict' alone, "
            "or download it again"
        ) from error


def read_state(path: Path) -> dict[str, Any]:
    """What `save_state` wrote, on the CPU; whatever torch raises if it is something else."""
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


# -- writing ----------------------------------------------------------------------------------------------------------


def save_weights(state: Mapping[str, Tensor], path: Path, metadata: Mapping[str, Any]) -> None:
    """Write weights, whole or not at all: `.safetensors` with a JSON beside it, or `.pth` in the layout of mmcv.

    Raises:
        ValueError: the files cannot be written, or another suffix.
    """
    if path.suffix not in (".safetensors", ".pth"):
        raise ValueError(f"weights are written as .safetensors or .pth, not as {path.name}")
    # Separate copies, because tensors that share memory (tied weights) cannot be stored.
    tensors = {k: v.detach().to("cpu", copy=True).contiguous() for k, v in state.items()}
    if path.suffix == ".pth":
        save_state({"meta": dict(metadata), "state_dict": tensors}, path)
        return
    with _written(path) as file:
        file.write(save(tensors))  # not `save_file`, which makes files that nobody else may read
    save_metadata(path, {**metadata, "sha256": file_digest(path)})


def save_metadata(path: Path, metadata: Mapping[str, Any]) -> None:
    """Write the JSON beside the weight file `path`."""
    with _written(metadata_path(path)) as file:
        file.write((json.dumps(metadata, indent=2) + "\n").encode())


def save_state(state: Mapping[str, Any], path: Path) -> None:
    """Write tensors, plain values and containers of them as a PyTorch file, whole or not at all."""
    with _written(path) as file:
        torch.save(dict(state), file)


@contextmanager
def _written(path: Path) -> Iterator[IO[bytes]]:
    """A file that others may be deleted for, so it has to be on the disk."""
    try:
        with atomic_write(path, "wb", durable=True) as file:
            yield file
    except (OSError, SafetensorError, RuntimeError) as error:  # a full disk is the last two to safetensors and torch
        reason = getattr(error, "strerror", None) or str(error).strip().partition("\n")[0]
        raise ValueError(
            f"cannot write {path} ({reason}); free space or write to another folder (--run-dir); what was written "
            "before is intact"
        ) from error
