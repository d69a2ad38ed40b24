"""The same CenterPoint as `peer_mmdet3d.py`, ours: reads the peer's weights through our converter.

    python -m benchmarks.peers.ours time FRAME WEIGHTS MODE    forward or train; prints JSON

FRAME and WEIGHTS are those of the peer.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.peers.measure import measure
from mmdet3d.config import load_config
from mmdet3d.interop.checkpoints import load_checkpoint
from mmdet3d.interop.labeldistill import model_state
from mmdet3d.models import build_model
from mmdet3d.models.detectors import BEVFusion
from mmdet3d.models.encoders import voxelize_batch
from mmdet3d.structures import Batch, Boxes3D, Calibration, Sample

__all__ = ["build", "in_our_layout", "outputs", "read_frame", "train"]

CONFIG = "nuscenes/distill/labeldistill/teacher_centerpoint_voxel01.yaml"

# What LabelDistill changed in the peer's config.
PEER = {"model.heads.object.train_cfg.code_weights": [1.0] * 8 + [0.2, 0.2]}

# `SMALL` of the peer.
SMALL = {
    "point_cloud_range": [-6.4, -6.4, -5.0, 6.4, 6.4, 3.0],
    "model.encoders.lidar.backbone.sparse_shape": [128, 128, 41],
    "model.encoders.lidar.backbone.base_channels": 8,
    "model.encoders.lidar.backbone.output_channels": 8,
    "model.encoders.lidar.backbone.encoder_channels": [[8, 8, 8], [8, 8, 8], [8, 8, 8], [8, 8]],
    "model.decoder.backbone.in_channels": 16,
    "model.decoder.backbone.out_channels": [8, 12],
    "model.decoder.backbone.layer_nums": [1, 1],
    "model.decoder.neck.in_channels": [8, 12],
    "model.decoder.neck.out_channels": [8, 8],
    "model.heads.object.in_channels": 16,
    "model.heads.object.share_conv_channel": 6,
    "model.heads.object.test_cfg.max_per_img": 100,
}


def build(weights: str | Path, small: bool = False, dtype: torch.dtype = torch.float32) -> BEVFusion:
    """Voxels are averaged in float32; what comes after computes in `dtype`, but for losses and decoded boxes."""
    model = build_model(load_config(CONFIG, PEER | (SMALL if small else {})).model)
    load_checkpoint(model, weights)
    encoder = model.encoders["lidar"]["backbone"]
    encoder.register_forward_pre_hook(lambda _, inputs: (inputs[0].to(dtype), *inputs[1:]))
    return model.to(dtype)


def read_frame(arrays: Mapping[str, np.ndarray]) -> Batch:
    """A frame of the peer as a batch of one sample, without cameras."""
    still, none = torch.eye(4), torch.empty(0, 4, 4)
    sample = Sample(
        token="peer",
        calibration=Calibration(still, still, none, none, none, none, still),
        clouds={"points": torch.from_numpy(arrays["points"])},
        boxes=Boxes3D(torch.from_numpy(arrays["boxes"])),
        labels=torch.from_numpy(arrays["labels"]),
    )
    return Batch.collate([sample])


def train(model: BEVFusion, batch: Batch) -> dict[str, Tensor]:
    """Losses, whose sum's gradients lie at the parameters."""
    losses = model.loss(batch)
    model.zero_grad()
    sum(losses.values()).backward()
    return losses


def outputs(model: BEVFusion, batch: Batch) -> dict[str, Tensor]:
    """Answers of every part in evaluation mode, boxes; then losses and gradients (`gradient/NAME`) in training mode."""
    with torch.no_grad():
        taps = model.eval().extract(batch, ("encoders.lidar", "decoder", "heads.object"))
        voxels, coordinates, _, _ = voxelize_batch(model.encoders["lidar"]["voxelize"], batch.points, reduce=True)
        (detections,) = model.predictions(taps, batch)
    found = {
        "voxels": voxels,
        "coordinates": coordinates,
        "encoder": taps["encoders.lidar"],
        "decoder": taps["decoder"],
    }
    found |= {f"head/{t}/{k}": v for t, task in enumerate(taps["heads.object"]) for k, v in task.items()}
    found |= {"boxes": detections.boxes.tensor, "scores": detections.scores, "labels": detections.labels}
    found |= {name: value.detach() for name, value in train(model.train(), batch).items()}
    return found | {f"gradient/{name}": value.grad for name, value in model.named_parameters()}


def in_our_layout(peer: Mapping[str, np.ndarray], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The peer's outputs under our names, in our axes and conventions.

    Its maps are (y, x), its coordinates sample, z, y, x; heads regress length, width, height and the yaw's sine and
    cosine; boxes have the bottom centre. Gradients are converted as the weights are, which only permutes and negates.
    """
    found = {}
    gradients = {}
    for name, array in peer.items():
        value = torch.from_numpy(array)
        kind, _, rest = name.partition("/")
        if kind == "gradient":
            gradients[rest] = value
        elif kind == "loss":
            task, term = rest.split(".")
            found[f"loss/object/{term.removeprefix('loss_')}/{task}"] = value
        elif name == "coordinates":
            found[name] = value[:, [0, 3, 2, 1]]
        elif name == "boxes":
            found[name] = value + value[:, 5:6] / 2 * torch.eye(9)[2]
        else:
            found[name] = _map(name, value) if value.ndim == 4 else value
    return found | {f"gradient/{k}": v for k, v in model_state(gradients, own).items()}


def _map(name: str, value: Tensor) -> Tensor:
    turned = value.transpose(2, 3)
    if name.endswith("/dim"):
        return turned[:, [1, 0, 2]]
    return -turned[:, [1, 0]] if name.endswith("/rot") else turned


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parse(arguments)
    torch.set_num_threads(options.threads)
    model = build(options.weights, options.small).train(options.mode == "train")
    batch = read_frame(np.load(options.frame))

    @torch.no_grad()
    def forward() -> Any:
        return model.predict(batch)

    print(json.dumps(measure(forward if options.mode == "forward" else lambda: train(model, batch), options.runs)))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers.ours", description=__doc__)
    parser.add_argument("--small", action="store_true", help="the network of the test")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("command", choices=["time"])
    parser.add_argument("frame")
    parser.add_argument("weights")
    parser.add_argument("mode", choices=["forward", "train"])
    parser.add_argument("--runs", type=int, default=2)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
