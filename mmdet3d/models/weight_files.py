"""Files of weights, by whatever program: tensors by name, read without running code."""

from __future__ import annotations

import logging
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

__all__ = ["read_tensors"]

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


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors by name (on the CPU), and the `meta` beside them.

    `.safetensors` holds tensors alone. Anything else is a PyTorch file: a state dict, or one under `state_dict`,
    `model` and the like. Where averaged weights (`state_dict_ema` ...) lie beside raw ones, they are taken. `module.`
    and `_orig_mod.`, which wrappers put into names, are removed.

    Raises:
        ValueError: the file holds no weights, objects that are not safe to load, or is damaged.
    """
    if path.suffix == ".safetensors":
        try:
            return _plain_names(load_file(path)), {}
        except SafetensorError as error:
            raise ValueError(f"{path} is not a safetensors file ({error}); copy or download it again") from error
    content = _load(path)
    state, meta = content, {}
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
    numbers = [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
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
