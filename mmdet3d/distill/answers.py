"""What a teacher answered, on disk.

    FOLDER/TEACHER/metadata.json                what the teacher is
    FOLDER/TEACHER/DATA/TOKEN.PLACE.VIEW.safetensors    its answers to one sample
    FOLDER/TEACHER/TOKEN.safetensors            its answers to a frame without augmentation, by other programs

TEACHER is the digest of its weights and config, with `-bfloat16` or `-float16` behind it if it answered under autocast;
`DATA/TOKEN.PLACE.VIEW` is the name of the sample (`Sample.view`), which is `DATA/TOKEN` where nothing augments it. A
file holds a tensor per tap, as the teacher answers to a batch of this one sample; of a tap that is a list or a dict,
one per entry, named `TAP/INDEX` or `TAP/KEY`, and so on within these; `TAP/[]` and `TAP/{}` stand for an empty one.
Numbers about augmented samples are float16, or float32 where that is too narrow; all others, integers and booleans are
as they are. `sample` holds numbers that tell the sample from others, see `describe`. docs/teachers.md says it for those
who write such files.
"""

from __future__ import annotations

import json
import logging
import zlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from mmdet3d.io.files import atomic_write
from mmdet3d.structures import Batch

__all__ = ["Answers", "describe", "join"]

_SAMPLE = "sample"


class Answers:
    """The answers of one teacher.

    Several processes may read and write the same folder: files are whole or absent.

    Args:
        folder: of this teacher.
        about: what the teacher is; written to `metadata.json`.
    """

    def __init__(self, folder: str | Path, about: Mapping[str, Any]) -> None:
        self.folder = Path(folder)
        self._about = dict(about)
        self._warned = False
        self._checked: set[tuple[str, str]] = set()

    def read(self, sample: Batch, taps: Collection[str]) -> dict[str, Any]:
        """The answers to one sample, those of `taps` that are there, on the CPU; none if the file is damaged.

        Raises:
            ValueError: the answers are to another sample of this name.
        """
        return self._read(self._path(sample), taps, sample)

    def read_frame(self, token: str, taps: Collection[str]) -> dict[str, Any]:
        """The answers to a frame as it was recorded, those of `taps` that are there, on the CPU."""
        return self._read(self.folder / f"{token}.safetensors", taps)

    def _read(self, path: Path, taps: Collection[str], sample: Batch | None = None) -> dict[str, Any]:
        try:
            with safe_open(path, "pt") as file:
                names, checksums = file.keys(), file.metadata() or {}
                if sample is not None and _SAMPLE in names:
                    stored = file.get_tensor(_SAMPLE)
                    self._check_intact({_SAMPLE: stored}, checksums, path)
                    self._check(sample, stored, path)
                found = {tap: [n for n in names if n.split("/")[0] == tap] for tap in taps}
                if lost := [name for name in checksums if name not in names and name.split("/")[0] in found]:
                    raise SafetensorError(f"{lost[0]} is not there")
                tensors = {tap: {n: file.get_tensor(n) for n in own} for tap, own in found.items() if own}
                for own in tensors.values():
                    self._check_intact(own, checksums, path)
                return {tap: _nested(tap, own) for tap, own in tensors.items()}
        except FileNotFoundError:
            return {}
        except SafetensorError as error:
            self._warn_of(path, error)
            return {}

    def write(self, sample: Batch, answers: Mapping[str, Any]) -> dict[str, Any]:
        """Store the answers to one sample, by tap, beside those of other taps.

        Returns:
            The answers as `read` will give them.

        Raises:
            ValueError: an answer is neither tensor, list nor dict, or a number is not finite.
        """
        path = self._path(sample)
        small = not _is_plain(sample)
        flat = {name: t for tap, value in answers.items() for name, t in _flat(tap, value).items()}
        tensors = {name: _packed(name, value, small) for name, value in flat.items()}
        content = self._others(path) | tensors | {_SAMPLE: describe(sample)}
        if not (self.folder / "metadata.json").is_file():
            with atomic_write(self.folder / "metadata.json") as file:
                json.dump(self._about, file, indent=1)
        with atomic_write(path, "wb") as file:
            file.write(save(content, {name: _checksum(tensor) for name, tensor in content.items()}))
        return {tap: _nested(tap, tensors) for tap in answers}

    def _path(self, sample: Batch) -> Path:
        return self.folder / f"{sample.views[0]}.safetensors"

    def _others(self, path: Path) -> dict[str, Tensor]:
        try:
            with safe_open(path, "pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                checksums = file.metadata() or {}
                for name, tensor in tensors.items():  # also what was looked at before: it is about to be stored anew
                    if checksums.get(name, checksum := _checksum(tensor)) != checksum:
                        raise SafetensorError(f"the checksum of {name} is another one")
                return tensors
        except FileNotFoundError:
            return {}
        except SafetensorError as error:
            self._warn_of(path, error)
            return {}

    def _check(self, sample: Batch, stored: Tensor, path: Path) -> None:
        seen = describe(sample)
        if seen.shape != stored.shape or not torch.allclose(seen, stored, rtol=1e-3, atol=1e-3):
            raise ValueError(
                f"{path} holds the teacher's answers to another sample than {sample.tokens[0]} as it is loaded now; "
                f"the sensors' files or their processing changed since: delete the folder {path.parent}"
            )

    def _check_intact(self, tensors: Mapping[str, Tensor], checksums: Mapping[str, str], path: Path) -> None:
        """Raises SafetensorError for another checksum, where there is one; each tensor is looked at once."""
        for name, tensor in tensors.items():
            if name in checksums and (str(path), name) not in self._checked:
                if checksums[name] != _checksum(tensor):
                    raise SafetensorError(f"the checksum of {name} is another one")
                self._checked.add((str(path), name))

    def _warn_of(self, path: Path, error: SafetensorError) -> None:
        if not self._warned:
            logging.getLogger("mmdet3d").warning(
                "%s is damaged (%s); the teacher answers anew, as for every such file in this folder", path, error
            )
        self._warned = True


def describe(sample: Batch) -> Tensor:
    """(K,) float64 on the CPU: what tells the sample, a batch of one, from others and from its other views.

    The matrices of the augmentation; means of images (per camera) and depths and of their squares; number and means of
    points of each sensor, boxes and labels, and of the products of neighbouring columns, which are others where rows
    are the same and belong together otherwise; whichever are there, and those of the history. Equal to about 1e-4
    wherever the sample is loaded.
    """
    calibration = sample.calibration
    parts = [calibration.lidar_aug, calibration.image_aug]
    maps = [value for value in (sample.images, sample.depths) if value is not None]
    parts += [v.mean((-3, -2, -1)) for value in maps for v in (value, value.square())]
    ragged: list[list[Tensor] | None] = [sample.clouds[name] for name in sorted(sample.clouds)]
    ragged += [None if sample.boxes is None else [b.tensor for b in sample.boxes], sample.labels]
    ragged.append(None if sample.objects is None else [objects.boxes2d for objects in sample.objects])
    for values in ragged:
        if values is not None:
            rows = values[0].nan_to_num().double()
            count = max(len(rows), 1)
            parts += [rows.new_tensor([len(rows)]), rows.sum(0) / count]
            if rows.ndim == 2:
                parts.append((rows[:, 1:] * rows[:, :-1]).sum(0) / count)
    parts += [describe(past) for past in sample.history or ()]
    return torch.cat([part.flatten().double() for part in parts]).cpu()


def join(answers: Sequence[Any], device: torch.device) -> Any:
    """The answers to samples side by side on `device`, as if to a batch of them; numbers become float32.

    An entry `image` of a dict says in which sample of the batch each row is.
    """
    first = answers[0]
    if isinstance(first, Mapping):
        own = {"image": [torch.full_like(a["image"], k) for k, a in enumerate(answers)]} if "image" in first else {}
        return {key: join(own.get(key) or [a[key] for a in answers], device) for key in first}
    if isinstance(first, list):
        return [join(entries, device) for entries in zip(*answers, strict=True)]
    # Numbers become float32 first: autocast on a CPU refuses to join halves.
    return torch.cat([a.to(device).float() if a.is_floating_point() else a.to(device) for a in answers])


def _flat(name: str, value: Any) -> dict[str, Tensor]:
    if isinstance(value, Tensor):
        return {name: value}
    if isinstance(value, (Mapping, list, tuple)) and not value:
        return {f"{name}/{'{}' if isinstance(value, Mapping) else '[]'}": torch.zeros(0)}
    entries: Iterable[tuple[Any, Any]]
    if isinstance(value, Mapping):
        entries = value.items()
    elif isinstance(value, (list, tuple)):
        entries = enumerate(value)
    else:
        raise ValueError(
            f"the teacher answers {name} with a {type(value).__name__}, which cannot be stored; distil from other "
            "taps, or set model.teacher.answers to null"
        )
    return {n: t for key, entry in entries for n, t in _flat(f"{name}/{key}", entry).items()}


def _nested(name: str, tensors: Mapping[str, Tensor]) -> Any:
    """Undo of `_flat`."""
    if name in tensors:
        return tensors[name]
    keys = dict.fromkeys(n[len(name) + 1 :].split("/")[0] for n in tensors if n.startswith(f"{name}/"))
    if "[]" in keys or "{}" in keys:
        return [] if "[]" in keys else {}
    entries = {key: _nested(f"{name}/{key}", tensors) for key in keys}
    return [entries[str(k)] for k in range(len(entries))] if all(k.isdecimal() for k in keys) else entries


def _checksum(tensor: Tensor) -> str:
    values = tensor.view(-1).view(torch.uint8).numpy().data if tensor.numel() else b""
    return str(zlib.crc32(values, zlib.crc32(f"{tensor.dtype}{list(tensor.shape)}".encode())))


def _is_plain(sample: Batch) -> bool:
    """Whether it is a frame without augmentation, of which there is one answer and not one per view."""
    view = sample.views[0]
    return view is not None and view.rpartition("/")[2] == sample.tokens[0]


def _packed(name: str, value: Tensor, small: bool) -> Tensor:
    value = value.detach().cpu().clone(memory_format=torch.contiguous_format)  # a view of nothing else, to be stored
    if not value.is_floating_point():
        return value
    if not value.isfinite().all():
        raise ValueError(f"the teacher answers {name} with numbers that are not finite; check its checkpoint")
    half = value.half() if small else value
    return half if half.isfinite().all() else value.float()
