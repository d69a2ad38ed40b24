"""Answers on disk as a teacher, without the model that gave them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from mmdet3d.distill.adapters import carried
from mmdet3d.distill.answers import Answers, join
from mmdet3d.distill.outline import Outline, head_of
from mmdet3d.distill.teacher import Teacher
from mmdet3d.io.files import file_digest, read_json
from mmdet3d.structures import Batch

__all__ = ["RecordedTeacher"]


class RecordedTeacher(Teacher):
    """What a teacher answered, by this project (`distill3d teacher-answers`) or by any other program.

    A sample gets the answer to this very view of it, or else the answer to its frame, which was seen without
    augmentation: then bird's-eye-view maps and the boxes of a centre-based head are turned, mirrored, scaled and
    shifted as the sample was. Objects that augmentation pasted in are in no such answer.

    Args:
        folder: one with `metadata.json`, or that holds one such folder.
        key: where it stands in the config, for messages.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: it holds no answers, or those of several teachers.
    """

    def __init__(self, folder: str | Path, key: str = "model.teacher") -> None:
        folder = _of_one_teacher(Path(folder), f"{key}.answers")
        self.about = read_json(folder / "metadata.json", "answers' metadata")
        self.answers = Answers(folder, self.about)
        self.digest = str(self.about.get("digest") or file_digest(folder / "metadata.json")[:16])
        grid, tasks, norm_bbox = (self.about.get(name) for name in ("grid", "tasks", "norm_bbox"))
        taps = _taps(folder, f"{key}.answers")
        self.model = Outline.read(taps, grid, tasks, norm_bbox, f"{folder}/metadata.json")

    def extract(self, batch: Batch, taps: Collection[str]) -> dict[str, Any]:
        """
        Raises:
            ValueError: there is no answer to a sample, it is to another sample of its name, or it is none that can be
                turned with the sample.
        """
        found = [self._answer(batch.alone(k), taps) for k in range(len(batch))]
        return {tap: join([answer[tap] for answer in found], batch.device) for tap in taps}

    def _answer(self, sample: Batch, taps: Collection[str]) -> Mapping[str, Any]:
        token, view = sample.tokens[0], sample.views[0]
        found = {} if view is None else self.answers.read(sample, taps)
        missing = [tap for tap in taps if tap not in found]
        if missing:
            frame = self.answers.read_frame(token, missing)
            lacking = [tap for tap in missing if tap not in frame]
            if lacking:
                seen = f"as {view}, nor" if view else "(which is augmented anew in every epoch)"
                raise ValueError(
                    f"{self.answers.folder} holds no answer {', '.join(lacking)} to sample {token} {seen} to its frame "
                    f"as {token}.safetensors; let the teacher answer to it too, with the same data and views"
                )
            found |= {tap: self._turned(tap, value, sample) for tap, value in frame.items()}
        return found

    def _turned(self, tap: str, value: Any, sample: Batch) -> Any:
        motion = sample.calibration.lidar_aug.cpu()
        if torch.allclose(motion, torch.eye(4).to(motion), atol=1e-6):
            return value
        if self.grid is None:
            raise ValueError(
                f"sample {sample.tokens[0]} is augmented, and {self.answers.folder}/metadata.json names no grid over "
                f"which the answer {tap} could be turned with it"
            )
        head = head_of(self.model)
        with torch.autocast(motion.device.type, enabled=False):  # metres in bfloat16 come in steps of 25 cm
            return carried(tap, value, self.grid, self.grid, head is None or head.norm_bbox, motion)


def _of_one_teacher(folder: Path, key: str) -> Path:
    if not folder.is_dir():
        raise FileNotFoundError(f"{key}: there is no folder {folder}")
    found = (
        [folder] if (folder / "metadata.json").is_file() else sorted(p.parent for p in folder.glob("*/metadata.json"))
    )
    if len(found) != 1:
        raise ValueError(
            f"{key}: {folder} holds the answers of {len(found)} teachers (folders with metadata.json); name the folder "
            f"of one{': ' + ', '.join(p.name for p in found) if found else ''}"
        )
    return found[0]


def _taps(folder: Path, key: str) -> tuple[str, ...]:
    """Those in the first file that there is."""
    path = next(folder.rglob("*.safetensors"), None)
    if path is None:
        raise ValueError(f"{key}: {folder} holds no answers (*.safetensors)")
    with safe_open(path, "pt") as file:
        names = [name.split("/")[0] for name in file.keys()]  # noqa: SIM118
    return tuple(dict.fromkeys(name for name in names if name != "sample"))
