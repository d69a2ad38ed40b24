"""Training steps at real size on a GPU: time and memory by precision and batch size; data are random and lie there."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

import torch

from benchmarks.framework import peak_memory, summary
from benchmarks.gpu.operators import burst_seconds
from benchmarks.gpu.runner import Piece, Row, Setup
from mmdet3d.ops import native

__all__ = ["STEPS"]

NUSCENES = "nuscenes/distill"
# Name: a distiller's config at published size, its small twin for a dry run, and which of its models take steps.
MODELS = {
    "CRKD": (
        f"{NUSCENES}/feature_response_distill/"
        "feat_fused_da_lr_mean_c2c_scale_mask_relation_resp_kd_dynamic_class_loss_80_256_resnet.yaml",
        "synthetic/crkd/small.yaml",
        ("teacher", "student", "distiller"),
    ),
    "SimDistill": (
        f"{NUSCENES}/simdistill/resnet50/convfuser-256x704.yaml",
        "synthetic/simdistill/small.yaml",
        ("distiller",),
    ),
    "LabelDistill": (f"{NUSCENES}/labeldistill/r50_2key.yaml", "synthetic/labeldistill/demo.yaml", ("distiller",)),
    "MonoSKD": ("kitti/monoskd.yaml", "kitti/synthetic/monoskd.yaml", ("distiller",)),
}
# "compiled" is `compile: true` (engine/compilation.py) in bf16.
PRECISIONS = ("fp16", "bf16", "fp32", "compiled")
BATCHES = (1, 4)


def _items(setup: Setup) -> list[str]:
    sizes = [(precision, batch) for precision in PRECISIONS for batch in BATCHES]
    return [
        f"{name} {role} {precision} batch {batch}"
        for precision, batch in sizes
        for name, (_, _, used) in MODELS.items()
        for role in used
    ]


def _step(setup: Setup, item: str, seconds: float) -> Row:
    """Steps with the compiled kernels, or an error; never with a twin in silence."""
    with contextlib.nullcontext() if setup.dry else native.forced("native"):
        return _measured(setup, item)


def _measured(setup: Setup, item: str) -> Row:
    # Here, not above: the packages that configs and checkpoints need are not needed by the other pieces.
    from benchmarks.samples import random_image_sample, random_sample
    from benchmarks.train_step import Losses, roles, training_step
    from mmdet3d.config import load_config
    from mmdet3d.engine.compilation import compile_dense_stages
    from mmdet3d.engine.settings import Settings
    from mmdet3d.structures import Batch

    name, role, kind, _, count = item.split()
    full, small, _ = MODELS[name]
    device = torch.device(setup.device)
    cfg = load_config(small if setup.dry else full, {"precision": "bf16" if kind == "compiled" else kind})
    model = dict(roles(cfg, device))[role]().train()
    if name == "MonoSKD":
        sample = random_image_sample(cfg["image_size"])
    else:
        history = getattr(getattr(model, "student", model), "history", 0)
        sample = random_sample(cfg["image_size"], points=3000 if setup.dry else 250_000, history=history)
    batch = Batch.collate([sample] * int(count)).to(device)
    torch.backends.cudnn.benchmark = True  # as in training
    if kind == "compiled":
        compile_dense_stages(model, device, backend="eager" if setup.dry else "inductor")
    step = training_step(model, Losses(model), batch, Settings.from_config(cfg))
    first = float(step())
    step()
    peak = peak_memory(step, device)
    taken = summary(burst_seconds(step, device, runs=2 if setup.dry else 7, burst=1 if setup.dry else 3))
    last = float(step())
    row: Row = {
        "step": taken,
        "samples_per_s": int(count) / taken["median_ms"] * 1e3,
        "peak_bytes": peak,
        "held_bytes": torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
        "parameters": sum(p.numel() for p in model.parameters()),
        "loss": [first, last],
    }
    if not all(torch.tensor(row["loss"]).isfinite()):
        row |= {"status": "failed", "cause": f"the losses are not finite: {row['loss']}"}
    return row


def _table(rows: Mapping[str, Row]) -> list[str]:
    lines = ["| model, precision, batch | ms a step | IQR | samples/s | peak extra MB | peak MB | loss first, last |"]
    lines.append("|---" * 7 + "|")
    for item, row in rows.items():
        if "step" not in row:
            lines.append(f"| {item} | {row['status']} {row.get('cause', '')} | | | | | |")
            continue
        extra, held = ("-" if row[k] is None else f"{row[k] / 1e6:.0f}" for k in ("peak_bytes", "held_bytes"))
        lines.append(
            f"| {item} | {row['step']['median_ms']:.1f} | {row['step']['iqr_ms']:.1f} | {row['samples_per_s']:.2f} "
            f"| {extra} | {held} | {row['loss'][0]:.3g}, {row['loss'][1]:.3g} |"
        )
    return lines


STEPS = Piece("training steps at real size: fp16, bf16, fp32, compiled; batch 1 and 4", _items, _step, 240, _table)
