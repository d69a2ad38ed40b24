"""A trained detector for people who never train: from a file or by name, for frames of a folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import mmdet3d
from mmdet3d.config import Config, parse_overrides
from mmdet3d.datasets import open_folder
from mmdet3d.engine import inductor
from mmdet3d.engine.data import PictureDataset
from mmdet3d.engine.export import Facts, export_detector, open_exported
from mmdet3d.engine.overrides import configured, options_beside
from mmdet3d.engine.pictures import detect, picture_extent
from mmdet3d.interop.checkpoints import load_checkpoint
from mmdet3d.io.files import file_digest
from mmdet3d.io.weights import metadata_path
from mmdet3d.models import build_model
from mmdet3d.models.detectors import base as models
from mmdet3d.models.detectors.base import Trainable
from mmdet3d.structures import Batch, Detections3D, Sample
from mmdet3d.zoo import zoo_file, zoo_files

__all__ = ["Detector"]

_EXPORTED = (".onnx", ".pt2")


class Detector:
    """A trained model and how it reads frames.

        detector = Detector.from_zoo("crkd-demo-distilled")
        frames = detector.frames(ROOT)
        found = detector(frames[0])

    Args:
        model: in eval mode.
        data: block of the data set that reads frames for it.
        facts: what an exported file says of it.
        device: of the model.
    """

    def __init__(self, model: Trainable, data: Mapping[str, Any], facts: Facts, device: str = "cpu") -> None:
        self.model = model.eval().to(device)
        self.data, self.facts = data, facts
        self.device = torch.device(device)

    @property
    def classes(self) -> tuple[str, ...]:
        """Label -> name."""
        return self.facts.classes

    @property
    def sensors(self) -> tuple[str, ...]:
        """Whose data it reads, such as camera, lidar and radar."""
        return self.facts.sensors

    @classmethod
    def from_zoo(cls, name: str, device: str = "cpu") -> Detector:
        """A model that lies in `pretrained/`, see `mmdet3d.zoo.zoo_files`.

        Raises:
            ValueError: there is no such model.
        """
        return cls.from_file(zoo_file(name), device=device)

    @classmethod
    def from_file(
        cls,
        path: str | Path,
        config: str | Path | None = None,
        overrides: Sequence[str] | Mapping[str, Any] = (),
        device: str = "cpu",
    ) -> Detector:
        """A model from its weights, from the folder of its training, or from an exported file.

        Args:
            path: `.safetensors`, `.pth`, `.onnx`, `.pt2`, or the folder of a run. Of a distillation it is the student.
            config: of weights; None for `configs.yaml` beside the file, or the config that its card names.
            overrides: of config keys.
            device: of weights; exported files run on the CPU.

        Raises:
            FileNotFoundError: no such file.
            ValueError: weights without a config, or that do not fit it; an exported file with one; see also
                `open_exported`.
        """
        path = _weights_of_run(Path(path)) if Path(path).is_dir() else Path(path)
        if path.suffix in _EXPORTED:
            if config is not None or overrides:
                raise ValueError(f"{path} brings its settings along; leave out config and overrides")
            exported = open_exported(path)
            return cls(exported, exported.facts.data, exported.facts)
        named = _config_of(path) if config is None else config
        given = overrides if isinstance(overrides, Mapping) else parse_overrides(overrides)
        cfg = configured(named, {**options_beside(path, named), **given})
        model = build_model(_shipped_block(cfg))
        load_checkpoint(model, path)
        data = json.loads(json.dumps(Config(cfg.data["val"]).to_dict()))
        facts = Facts(
            classes=_classes(data, model),
            sensors=tuple(model.inputs),
            data=data,
            extent=picture_extent(cfg),
            config=str(named),
            weights=file_digest(path),
            version=mmdet3d.__version__,
        )
        return cls(model, data, facts, device)

    def frames(self, root: str | Path, part: str | Path | None = None) -> PictureDataset:
        """The frames of a folder as this model reads them: a sequence of `Sample`.

        Args:
            root: data in the layout of the config's.
            part: which of its frames, in the words of that data set: an info file, or the name of a split. None for the
                config's, or all that are there.

        Raises:
            FileNotFoundError, ValueError: see the data set.
        """
        frames: PictureDataset = open_folder(self.data, root, part, self.sensors)
        return frames

    def __call__(self, frame: Sample) -> Detections3D:
        """Detections in a frame, see `Detections3D`; those below the model's score threshold are left out."""
        return detect(self.model, frame, self.device)

    def export(
        self, path: str | Path, frame: Sample, fixed_calibration: bool = False, compiled: bool = False
    ) -> dict[str, float]:
        """Write the network as `.onnx` or `.pt2`, see `export_detector`.

        Args:
            frame: as it will read them; it decides the number of cameras and the sizes.
            fixed_calibration: that of the frame is built in.
            compiled: `.pt2` alone: machine code for processors like this one, which takes a C++ compiler and minutes.
        """
        machine = inductor.machine() if compiled else None
        facts = replace(self.facts, fixed_calibration=fixed_calibration, compiled=machine)
        if not isinstance(self.model, models.Detector):
            raise ValueError("an exported network cannot be exported again; export the model that it was made of")
        return export_detector(self.model, Batch.collate([frame]), path, facts)


def _weights_of_run(folder: Path) -> Path:
    for name in ("best", "latest"):
        if (folder / f"{name}.safetensors").is_file():
            return folder / f"{name}.safetensors"
    raise FileNotFoundError(f"{folder} holds neither best.safetensors nor latest.safetensors; name the weight file")


def _config_of(path: Path) -> str | Path:
    """The config that the weights in `path` were trained with."""
    if not path.is_file():
        hint = f"; the model in pretrained/ is zoo:{path}" if str(path) in zoo_files() else ""
        raise FileNotFoundError(f"weight file {path} does not exist{hint}")
    beside, card = path.parent / "configs.yaml", metadata_path(path)
    if beside.is_file():
        return beside
    named = json.loads(card.read_text()).get("config") if card.is_file() else None
    if named is None:
        raise ValueError(f"neither {beside} nor {card} says which config {path} was trained with; name it (--config)")
    return str(named)


def _shipped_block(cfg: Config) -> Mapping[str, Any]:
    """The model block without what only trains it: of a distillation the student's."""
    block: Mapping[str, Any] = cfg.model["student"]["model"] if cfg.model["type"] == "Distiller" else cfg.model
    return block


def _classes(data: Mapping[str, Any], model: Trainable) -> tuple[str, ...]:
    heads: Any = getattr(model, "heads", {})
    return tuple(data.get("object_classes") or data.get("classes") or heads["object"].classes)
