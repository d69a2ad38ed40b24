"""CenterPoint of mmdetection3d 1.4 on the CPU. Runs in the peer's environment (`build.sh`), imports nothing of ours.

    python peer_mmdet3d.py weights FRAME WEIGHTS      random weights, batch statistics of the frame
    python peer_mmdet3d.py outputs FRAME WEIGHTS OUT  what every part answers, losses, gradients,
    python peer_mmdet3d.py time FRAME WEIGHTS MODE    forward or train; prints JSON

FRAME is an .npz: points (P, 5), boxes (N, 9; gravity centre, length, width, height, yaw, velocity), labels (N,).
"""

from __future__ import annotations

import argparse
import json
import math
from importlib import resources
from typing import Any

import numpy as np
import spconv.pytorch.ops
import torch
from measure import measure
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData
from torch import nn

import mmdet3d.models  # noqa: F401 (registers the model)
from mmdet3d.registry import MODELS
from mmdet3d.structures import Det3DDataSample, LiDARInstance3DBoxes

CONFIG = "centerpoint/centerpoint_voxel01_second_secfpn_head-circlenms_8xb4-cyclic-20e_nus-3d.py"

# The same network, small enough for its weights and answers to be kept as a test.
SMALL = {
    "data_preprocessor.voxel_layer.point_cloud_range": [-6.4, -6.4, -5.0, 6.4, 6.4, 3.0],
    "pts_middle_encoder.sparse_shape": [41, 128, 128],
    "pts_middle_encoder.base_channels": 8,
    "pts_middle_encoder.output_channels": 8,
    "pts_middle_encoder.encoder_channels": ((8, 8, 8), (8, 8, 8), (8, 8, 8), (8, 8)),
    "pts_backbone.in_channels": 16,
    "pts_backbone.out_channels": [8, 12],
    "pts_backbone.layer_nums": [1, 1],
    "pts_neck.in_channels": [8, 12],
    "pts_neck.out_channels": [8, 8],
    "pts_bbox_head.in_channels": 16,
    "pts_bbox_head.share_conv_channel": 6,
    "pts_bbox_head.separate_head.head_conv": 6,
    "pts_bbox_head.bbox_coder.pc_range": [-6.4, -6.4],
    "pts_bbox_head.bbox_coder.max_num": 100,
    "train_cfg.pts.grid_size": [128, 128, 40],
    "train_cfg.pts.point_cloud_range": [-6.4, -6.4, -5.0, 6.4, 6.4, 3.0],
    "test_cfg.pts.pc_range": [-6.4, -6.4],
}


def main() -> None:
    options = _parse()
    torch.set_num_threads(options.threads)
    # spconv 2.3.8 asks for a CUDA stream in the backward pass on the CPU too.
    spconv.pytorch.ops.get_current_stream = lambda: 0
    model = build(small=options.small)
    frame = Frame(np.load(options.frame))
    if options.command == "weights":
        randomize(model, frame)
        state = model.bfloat16().state_dict()  # with the version of the kernels' layout, which a plain dict loses
        torch.save({"state_dict": state, "meta": {"config": CONFIG}}, options.weights)
        return
    model.load_state_dict(torch.load(options.weights, weights_only=True)["state_dict"])
    if options.command == "outputs":
        np.savez(options.out, **outputs(model.to(getattr(torch, options.dtype)), frame))
        return
    call = {"forward": lambda: predict(model, frame), "train": lambda: train(model, frame)}[options.mode]
    model.train(options.mode == "train")
    print(json.dumps(measure(call, options.runs)))


class Frame:
    """One sample, as mmdetection3d wants it.

    Attributes:
        inputs: what its data preprocessor takes.
        sample: annotations.
    """

    def __init__(self, arrays: Any) -> None:
        boxes, labels = (torch.from_numpy(arrays[k]) for k in ("boxes", "labels"))
        self.inputs = {"points": [torch.from_numpy(arrays["points"])]}
        self.sample = Det3DDataSample(metainfo={"box_type_3d": LiDARInstance3DBoxes})
        self.sample.gt_instances_3d = InstanceData(
            bboxes_3d=LiDARInstance3DBoxes(boxes, box_dim=9, origin=(0.5, 0.5, 0.5)), labels_3d=labels
        )


def build(small: bool) -> nn.Module:
    init_default_scope("mmdet3d")
    file = resources.files("mmdet3d") / ".mim" / "configs" / CONFIG
    config = Config.fromfile(str(file))
    config.merge_from_dict({f"model.{k}": v for k, v in SMALL.items()} if small else {})
    return MODELS.build(config.model)


@torch.no_grad()
def randomize(model: nn.Module, frame: Frame) -> None:
    """Every tensor random, so that none can be mistaken for another, and a bfloat16 number; activations around 1."""
    generator = torch.Generator().manual_seed(0)
    for name, value in model.named_parameters():
        if value.ndim > 1:
            fan_in = value[0].numel() / (3 if value.ndim == 5 else 1)  # of a sparse site's neighbours a third is there
            final = name.split(".")[-2] == "1" and "task_heads" in name
            value.normal_(0, math.sqrt((0.3 if final else 2) / fan_in), generator=generator)
        else:
            value.normal_(1 if name.endswith("weight") else 0, 0.2, generator=generator)
        if name.endswith("heatmap.1.bias"):
            value.sub_(2.2)  # the logit of a probability of 0.1
        value.copy_(value.bfloat16())
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    kept = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    model.train()
    model.pts_bbox_head(features(model, frame))
    for norm, momentum in zip(norms, kept, strict=True):
        norm.momentum = momentum
        norm.running_mean.copy_(norm.running_mean.bfloat16())
        norm.running_var.copy_(norm.running_var.bfloat16())


def features(model: nn.Module, frame: Frame) -> Any:
    data = model.data_preprocessor({"inputs": frame.inputs, "data_samples": [frame.sample]}, model.training)
    voxels = data["inputs"]["voxels"]
    voxels["voxels"] = voxels["voxels"].to(next(model.parameters()).dtype)
    _, points = model.extract_feat(data["inputs"], [frame.sample.metainfo])
    return points


@torch.no_grad()
def predict(model: nn.Module, frame: Frame) -> InstanceData:
    (found,) = model.pts_bbox_head.predict(features(model, frame), [frame.sample])
    return found


def train(model: nn.Module, frame: Frame) -> dict[str, torch.Tensor]:
    """Losses, whose sum's gradients lie at the parameters."""
    losses = model.pts_bbox_head.loss(features(model, frame), [frame.sample])
    model.zero_grad()
    sum(losses.values()).backward()
    return losses


def outputs(model: nn.Module, frame: Frame) -> dict[str, np.ndarray]:
    """Answers of every part in evaluation mode, boxes; then losses and gradients (`gradient/NAME`) in training mode."""
    found: dict[str, torch.Tensor] = {}

    def keep(name: str, value: Any) -> None:
        found[name] = value

    hooks = [
        model.pts_voxel_encoder.register_forward_hook(lambda _, i, out: keep("voxels", out)),
        model.pts_middle_encoder.register_forward_hook(lambda _, i, out: keep("encoder", out)),
        model.pts_middle_encoder.register_forward_pre_hook(lambda _, i: keep("coordinates", i[1])),
        model.pts_neck.register_forward_hook(lambda _, i, out: keep("decoder", out[0])),
    ]
    for t, head in enumerate(model.pts_bbox_head.task_heads):
        hooks.append(
            head.register_forward_hook(
                lambda _, i, out, t=t: [keep(f"head/{t}/{name}", value.clone()) for name, value in out.items()] and None
            )
        )
    result = predict(model.eval(), frame)
    for hook in hooks:
        hook.remove()
    found |= {"boxes": result.bboxes_3d.tensor, "scores": result.scores_3d, "labels": result.labels_3d}
    found |= {f"loss/{name}": value for name, value in train(model.train(), frame).items()}
    found |= {f"gradient/{name}": value.grad for name, value in model.named_parameters()}
    return {name: value.detach().numpy() for name, value in found.items()}


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="the network of the test")
    parser.add_argument("--threads", type=int, default=1)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("weights", "outputs", "time"):
        command = commands.add_parser(name)
        command.add_argument("frame")
        command.add_argument("weights")
        if name == "outputs":
            command.add_argument("out")
            command.add_argument("--dtype", choices=["float32", "float64"], default="float32")
        if name == "time":
            command.add_argument("mode", choices=["forward", "train"])
            command.add_argument("--runs", type=int, default=2)
    return parser.parse_args()


if __name__ == "__main__":
    main()
