"""A model and a data set that train in milliseconds, with everything that makes resuming hard: dropout, BatchNorm,
augmentation by epoch, an unused parameter."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmdet3d.evaluation.benchmark import Benchmark
from mmdet3d.models.detectors.base import Trainable
from mmdet3d.registry import DATASETS, MODELS
from mmdet3d.structures import Batch, Boxes3D, Calibration, Detections3D, Sample


@MODELS.register
class EngineToyModel(Trainable):
    def __init__(self, width: int = 8, dropout: float = 0.2) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(5, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(dropout))
        self.head = nn.Linear(width, 9)
        self.unused = nn.Parameter(torch.zeros(3))
        self.calls: list[str] = []

    def init_weights(self) -> None:
        self.calls.append("init_weights")

    def setup_training(self, evaluate: Any) -> None:
        self.calls.append("setup_training")

    def _boxes(self, batch: Batch) -> Tensor:
        return self.head(self.backbone(torch.stack([p.mean(0) for p in batch.require("points", "EngineToyModel")])))

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        wanted = torch.stack([b.tensor[0] for b in batch.require("boxes", "EngineToyModel")])
        error = (self._boxes(batch) - wanted).square()
        return {"loss/center": error[:, :3].mean(), "loss/rest": error[:, 3:].mean(), "stats/error": error.mean()}

    def predict(self, batch: Batch) -> list[Detections3D]:
        label = torch.zeros(1, dtype=torch.int64)
        boxes = self._boxes(batch).float()
        return [
            Detections3D(Boxes3D(b[None]), torch.tensor([float(m["index"])]), label)
            for b, m in zip(boxes, batch.metas, strict=True)
        ]


@DATASETS.register
class EngineToyDataset:
    """Sample `index` has points around a centre; the box is a fixed function of it.

    The environment variable ENGINE_TOY_DELAY makes training samples slow, by so many seconds.
    """

    def __init__(
        self,
        size: int = 12,
        seed: int = 0,
        augment: bool = False,
        broken: int | None = None,
        test_mode: bool = False,
        note: Any = None,
    ) -> None:
        self.size, self.seed, self.augment, self.broken, self.epoch = size, seed, augment, broken, 0
        self.test_mode = test_mode
        self.tokens = [f"sample-{k}" for k in range(size)]

    def __len__(self) -> int:
        return self.size

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __getitem__(self, index: int) -> Sample:
        if index == self.broken:
            raise ValueError(f"sample {index}: points.bin is cut short; copy it again")
        if not self.test_mode:
            time.sleep(float(os.environ.get("ENGINE_TOY_DELAY", 0)))
        fixed = np.random.RandomState([self.seed, index])
        points = fixed.randn(6, 5)
        box = np.tanh(np.tile(points.mean(0), 2)[:9])
        if self.augment:
            points += 0.1 * np.random.RandomState([self.seed, self.epoch, index]).randn(6, 5)
        eye = torch.eye(4)
        cameras = eye[None]
        return Sample(
            token=self.tokens[index],
            calibration=Calibration(eye, eye, cameras, cameras, cameras, cameras, eye),
            clouds={"points": torch.from_numpy(points).float()},
            boxes=Boxes3D(torch.from_numpy(box[None]).float()),
            labels=torch.zeros(1, dtype=torch.int64),
            meta={"index": index, "epoch": self.epoch},
        )

    @staticmethod
    def benchmark(block: Any) -> Benchmark:
        return Benchmark(main="object/nds")

    def evaluate(self, detections: Sequence[Detections3D], out_dir: Path) -> dict[str, float]:
        assert [int(d.scores[0]) for d in detections] == list(range(self.size)), "not in data-set order"
        self.format(detections, out_dir)
        errors = [(d.boxes.tensor - self[i].boxes.tensor).square().mean().item() for i, d in enumerate(detections)]
        return {"object/map": float(1 / (1 + np.mean(errors))), "object/nds": float(1 / (1 + np.mean(errors)))}

    def format(self, detections: Sequence[Detections3D], out_dir: Path) -> Path:
        out_dir.mkdir(parents=True, exist_ok=True)
        path = out_dir / "results_toy.json"
        path.write_text(json.dumps([d.boxes.tensor.tolist() for d in detections]))
        return path


def toy_config(**changes: Any) -> dict[str, Any]:
    """A training of 2 epochs of 4 iterations."""
    cfg: dict[str, Any] = {
        "seed": 3,
        "max_epochs": 2,
        "data": {"samples_per_gpu": 3, "workers_per_gpu": 0, "val": {"type": "EngineToyDataset"}},
        "optimizer": {"type": "AdamW", "lr": 1e-2, "weight_decay": 0.01},
        "optimizer_config": {"grad_clip": {"max_norm": 35, "norm_type": 2}},
        "lr_config": {"policy": "CosineAnnealing", "warmup": "linear", "warmup_iters": 3, "min_lr_ratio": 1e-3},
        "log_config": {"interval": 2},
    }
    return cfg | changes
