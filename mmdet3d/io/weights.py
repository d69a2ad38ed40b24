"""Weight files: those of any program are read, without running code; ours are written.

`NAME.safetensors` holds tensors alone, `NAME.json` beside it what is to be known about them, with the SHA-256 of the
weights and a checksum of its own. `.pth` files hold both.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from mmdet3d.io.files import atomic_write, file_digest, read_json, record_checksum

__all__ = [
    "metadata_path",
    "naming_disk_errors",
    "read_metadata",
    "read_state",
    "read_weights",
    "save_metadata",
    "save_state",
    "save_weights",
    "verified_metadata",
]

# Under which key programs keep weights; averaged ones (EMA) come first, for they are what was evaluated. Not mmengine's
# `ema_state_dict`: when it saves, it swaps the two, so that `state_dict` has the average.
_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model", "model_state")
_AVERAGED = _WRAPPERS[:2]

# What wrappers put before the names of the whole model (DistributedDataParallel) or of any part of it (torch.compile).
_PARALLEL, _COMPILED = "module.", "_orig_mod."

# In the JSON beside weights: of its other entries; and what it said of weights that are being replaced.
_CHECKSUM, _REPLACED = "checksum", "replaced"

_LARGEST_METADATA = 1 << 26  # bytes

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


def read_metadata(path: str | Path) -> dict[str, Any]:
    """What the JSON beside the weight file `path` says, whatever file those are; empty if there is none.

    Of a link to weights (`latest.safetensors`) it is the JSON beside the file that is linked to.

    Raises:
        ValueError: the JSON is damaged.
    """
    path = Path(path)
    linked = metadata_path(path.resolve())
    side = linked if linked.is_file() else metadata_path(path)
    if not side.is_file():
        return {}
    record = read_json(side, "metadata", _LARGEST_METADATA)
    if not isinstance(record, dict):
        raise ValueError(f"metadata {side} holds a {type(record).__name__} instead of an object; it is damaged")
    checksum = record.pop(_CHECKSUM, None)
    if checksum is not None and checksum != record_checksum(record):
        raise ValueError(
            f"metadata {side} is not what was written (its checksum is another one): it is damaged, and so may be what "
            f"lies beside it; if you changed it yourself, remove its entry {_CHECKSUM!r}"
        )
    return record


def verified_metadata(path: str | Path) -> dict[str, Any]:
    """`read_metadata` of the very weights in `path`, whose digest is looked at where one is recorded.

    Raises:
        ValueError: the JSON or the weights are damaged, or the JSON is of other weights.
    """
    record = read_metadata(path)
    replaced = record.pop(_REPLACED, None)
    if record.get("sha256") is None or (digest := file_digest(path)) == record["sha256"]:
        return record
    if isinstance(replaced, Mapping) and replaced.get("sha256") == digest:
        return dict(replaced)  # cut off between the JSON of new weights and these
    raise ValueError(
        f"{path} is damaged, or {metadata_path(path).name} beside it is of another file: its SHA-256 is "
        f"{digest[:16]}..., recorded is {str(record['sha256'])[:16]}...; copy both again, or take an earlier checkpoint"
    )


def read_weights(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors by name (on the CPU) and metadata of a weight file.

    `.safetensors` takes its metadata from the JSON beside it. Anything else is a PyTorch file: a state dict, or one
    under `state_dict`, `model` and the like, with `meta` beside it. Where averaged weights (`state_dict_ema` ...) lie
    beside raw ones, they are taken. `module.` and `_orig_mod.`, which wrappers put into names, are removed.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file holds no weights, objects that are not safe to load, or is damaged; or see
            `verified_metadata`.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"weight file {path} does not exist")
    if path.suffix != ".safetensors":
        return _read_pytorch(path)
    metadata = verified_metadata(path)
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file ({error}); copy or download it again") from error
    if not tensors:
        raise ValueError(f"{path} holds no weights")
    return _plain_names(tensors), metadata


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
    for key, tensor in tensors.items():
        if not isinstance(key, str):
            raise ValueError(f"{path} holds tensors by {key!r} instead of by name; save a module's `state_dict()`")
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta:
            kind = "quantized" if tensor.is_quantized else "without values" if tensor.is_meta else "sparse"
            raise ValueError(f"{path}: the tensor {key} is {kind}, and weights are dense; save it so, or leave it out")
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
    except MemoryError:
        raise
    except Exception as error:  # of a damaged file nearly any
        text = _TERMINAL.sub("", str(error)).strip()
        refused = _REFUSED.search(text)
        if refused:
            raise ValueError(
                f"{path} holds more than weights and plain values: an object of {refused[1]}, which could run code "
                "when it is loaded; if you trust the file, save its 'state_dict' alone"
            ) from error
        reason = text.splitlines()[0][:200] if text else type(error).__name__
        if reason.startswith("Weights only load failed"):  # goes on to recommend loading without that care
            reason = "it was not written by torch.save, or not with plain content"
        raise ValueError(
            f"{path} is damaged or holds more than weights and plain values ({reason}); save its 'state_dict' alone, "
            "or download it again"
        ) from error


def read_state(path: Path) -> dict[str, Any]:
    """What `save_state` wrote, on the CPU; whatever torch raises if it is something else, or damaged."""
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
    content = save(tensors)  # not `save_file`, which makes files that nobody else may read
    metadata = {**metadata, "sha256": hashlib.sha256(content).hexdigest()}
    replaced = {}
    with suppress(ValueError, FileNotFoundError):  # damaged, or none
        replaced = verified_metadata(path)
    with _written(path) as file:
        file.write(content)
        if replaced:
            # Two files cannot be replaced at once: until the weights are, the JSON tells of both.
            save_metadata(path, {**metadata, _REPLACED: replaced})
    save_metadata(path, metadata)


def save_metadata(path: Path, metadata: Mapping[str, Any]) -> None:
    """Write the JSON beside the weight file `path`, with a checksum."""
    record = json.loads(json.dumps(metadata))  # with keys as they will be read
    with _written(metadata_path(path)) as file:
        file.write((json.dumps({**record, _CHECKSUM: record_checksum(record)}, indent=2) + "\n").encode())


def save_state(state: Mapping[str, Any], path: Path) -> str:
    """Write tensors, plain values and containers of them as a PyTorch file, whole or absent; returns its SHA-256."""
    with _written(path) as file:
        digesting = _Digesting(file)
        torch.save(dict(state), cast(IO[bytes], digesting))
    return digesting.digest.hexdigest()


class _Digesting:
    """A file, with the digest of what it was given, which need not be what the disk keeps."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.digest = hashlib.sha256()

    def write(self, content: bytes) -> int:
        self.digest.update(content)
        return self._file.write(content)

    def flush(self) -> None:
        self._file.flush()


@contextmanager
def _written(path: Path) -> Iterator[IO[bytes]]:
    """A file that others may be deleted for, so it has to be on the disk."""
    with naming_disk_errors(path), atomic_write(path, "wb", durable=True) as file:
        yield file


@contextmanager
def naming_disk_errors(path: Path) -> Iterator[None]:
    """A disk that is full or fails while `path` is written is a ValueError of one sentence."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:  # a full disk is the last two to safetensors and torch
        reason = getattr(error, "strerror", None) or str(error).strip().partition("\n")[0]
        raise ValueError(
            f"cannot write {path} ({reason}); free space or write to another folder (--run-dir); what was written "
            "before is intact"
        ) from error
