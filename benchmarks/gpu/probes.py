"""Tiny calls of every op: what is compared with its twin on a GPU, and what the sanitizer watches.

`python -m benchmarks.gpu.probes OP [--device cuda]` runs the calls of one op, with gradients, and compares nothing.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.cases import nms as nms_case
from mmdet3d.ops import build, native
from mmdet3d.ops.bev_pool import bev_pool, bev_pool_lifted
from mmdet3d.ops.deform_attn import multi_scale_deformable_attention
from mmdet3d.ops.deform_conv import deform_conv2d
from mmdet3d.ops.feature_decorator import feature_decorator
from mmdet3d.ops.nms import circle_nms, rotated_nms
from mmdet3d.ops.roi_align import roi_align
from mmdet3d.ops.rotated_iou import paired_rotated_iou, rotated_iou, rotated_iou_3d
from mmdet3d.ops.soft_rank import soft_rank, spearman_closed_form
from mmdet3d.ops.sparse_conv import SparseTensor, sparse_convolution, strided_table, submanifold_table
from mmdet3d.ops.voxelize import dynamic_voxelize, scatter_max, scatter_mean, scatter_sum, voxelize

__all__ = ["PROBES", "Probe", "probes"]


@dataclass(frozen=True)
class Probe:
    """One call of an op.

    Attributes:
        call: of `inputs`; returns a tensor or several.
        inputs: floating tensors, which are cast to the dtype of the comparison. What must stay as it is (geometry,
            indices) is bound in `call`.
        gradients: whether to differentiate by all inputs.
        exact: every bit must equal the twin's in the same dtype (indices, copies); otherwise the twin in float64 is
            the measure.
        atomic: gradients are summed by atomic additions, so their last bits may differ from call to call.
    """

    name: str
    call: Callable[..., Any]
    inputs: tuple[Tensor, ...] = ()
    gradients: bool = True
    exact: bool = False
    atomic: bool = False

    def values(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The results and, for a fixed output gradient, the gradients of all inputs."""
        if not self.gradients:
            out = self.call(*inputs)
            return (out,) if isinstance(out, Tensor) else tuple(out)
        needy = [t.detach().requires_grad_() for t in inputs]
        out = self.call(*needy)
        # Whole numbers, which every dtype holds exactly.
        upstream = torch.randint(-8, 9, out.shape, generator=torch.Generator().manual_seed(0))
        return (out.detach(), *torch.autograd.grad(out, needy, upstream.to(out)))


class _Random:
    """Seeded tensors on a device; drawn on the CPU, so that they are the same on all."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._generator = torch.Generator().manual_seed(0)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self._generator).to(self._device)

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        return (torch.rand(shape, generator=self._generator) * (high - low) + low).to(self._device)

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=self._generator).to(self._device)


def _bev_pool(r: _Random) -> list[Probe]:
    grid = ([-54.0, -54.0, -10.0], [3.0, 3.0, 10.0], [36, 36, 2])
    geometry = torch.stack([r.uniform(2, 3, 7, 4, 10, low=-60, high=60) for _ in range(3)], dim=-1)
    none = geometry[:, :, :0]
    inputs = r.uniform(6, 7, 4, 10), r.normal(6, 33, 4, 10)  # one channel more than a warp has lanes
    return [
        Probe("pool", lambda d, c: bev_pool(d, c, geometry, *grid), inputs),
        Probe(
            "pool, many channels", lambda d, c: bev_pool(d, c, geometry, *grid), (inputs[0], r.normal(6, 133, 4, 10))
        ),
        Probe("pool, no bins", lambda d, c: bev_pool(d, c, none, *grid), (inputs[0][:, :0], inputs[1])),
        Probe("lifted", lambda f: bev_pool_lifted(f, geometry, *grid), (r.normal(2, 3, 7, 4, 10, 5),)),
    ]


def _deform_attn(r: _Random) -> list[Probe]:
    levels = [(4, 6), (2, 3)]

    def attend(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        return multi_scale_deformable_attention(value, levels, locations, weights)

    def between_centres(n: int) -> Tensor:
        """Also after rounding: at a pixel's centre the gradient of a location jumps."""
        return (r.integers(-2, n + 1, 2, 40, 2, 3) + r.uniform(2, 40, 2, 3, low=0.8, high=1.2)) / n

    value = r.normal(2, 30, 2, 5)
    locations = torch.stack([torch.stack([between_centres(w), between_centres(h)], dim=-1) for h, w in levels], dim=3)
    weights = r.uniform(2, 40, 2, 2, 3)
    return [
        Probe("attention", attend, (value, locations, weights), atomic=True),
        Probe("no queries", attend, (value, locations[:, :0], weights[:, :0]), atomic=True),
    ]


def _deform_conv(r: _Random) -> list[Probe]:
    def first(x: Tensor, offset: Tensor, weight: Tensor) -> Tensor:
        return deform_conv2d(x, offset, weight, padding=1, groups=2)

    def second(x: Tensor, offset: Tensor, weight: Tensor, mask: Tensor) -> Tensor:
        return deform_conv2d(x, offset, weight, None, mask, stride=2, padding=1, deform_groups=2)

    image, weight = r.normal(2, 8, 9, 11), r.normal(6, 4, 3, 3)
    return [
        Probe("v1", first, (image, r.normal(2, 18, 9, 11), weight), atomic=True),
        Probe("v2", second, (image, r.normal(2, 36, 5, 6), r.normal(6, 8, 3, 3), r.uniform(2, 18, 5, 6)), atomic=True),
        Probe("no images", first, (image[:0], r.normal(0, 18, 9, 11), weight), atomic=True),
    ]


def _feature_decorator(r: _Random) -> list[Probe]:
    counts, cells = r.integers(0, 6, 300), r.integers(0, 180, 300, 3)
    size, limits = [0.6, 0.6, 8.0], [-54.0, -54.0, -5.0, 54.0, 54.0, 3.0]

    def decorate(points: Tensor) -> Tensor:
        n = len(points)
        return feature_decorator(
            points, counts[:n], cells[:n], size, limits, normalize=True, cluster=True, distance=True
        )

    points = r.uniform(300, 5, 7, low=-54, high=54)
    return [Probe("decorate", decorate, (points,)), Probe("no pillars", decorate, (points[:0],))]


def _nms(r: _Random) -> list[Probe]:
    boxes, scores = nms_case._candidates(300, torch.Generator().manual_seed(0), r._device)
    groups = r.integers(0, 3, 300)
    exact = {"gradients": False, "exact": True}
    return [
        Probe("rotated", lambda b, s: rotated_nms(b, s, 0.2), (boxes, scores), **exact),
        Probe("rotated, groups", lambda b, s: rotated_nms(b, s, 0.2, 90, 70, groups), (boxes, scores), **exact),
        Probe("circles", lambda b, s: circle_nms(b[:, :2], s, 4.0), (boxes, scores), **exact),
        Probe("no boxes", lambda b, s: rotated_nms(b, s, 0.2), (boxes[:0], scores[:0]), **exact),
    ]


def _roi_align(r: _Random) -> list[Probe]:
    corners, image = r.uniform(9, 2, low=-3, high=12), r.integers(0, 2, 9, 1).float()
    boxes = torch.cat([image, corners, corners + r.uniform(9, 2, low=0.5, high=9)], dim=1)
    features = r.normal(2, 5, 12, 16)
    return [
        Probe("adaptive", lambda f: roi_align(f, boxes, 7), (features,), atomic=True),
        Probe(
            "aligned", lambda f: roi_align(f, boxes, (3, 2), sampling_ratio=2, aligned=True), (features,), atomic=True
        ),
        Probe("no boxes", lambda f: roi_align(f, boxes[:0], 7), (features,), atomic=True),
    ]


def _rotated_iou(r: _Random) -> list[Probe]:
    scale = torch.tensor([8.0, 8.0, 2.0, 4.0, 2.0, 2.0, 6.3]).to(r._device)
    first, second = (r.uniform(n, 7, low=0.1) * scale for n in (40, 30))
    flat = [b[:, [0, 1, 3, 4, 6]] for b in (first, second)]
    return [
        Probe("ground", rotated_iou, tuple(flat), gradients=False),
        Probe("space", rotated_iou_3d, (first, second), gradients=False),
        Probe("paired", paired_rotated_iou, (flat[0][:30], flat[1]), gradients=False),
        Probe("no boxes", rotated_iou, (flat[0][:0], flat[1]), gradients=False),
    ]


def _soft_rank(r: _Random) -> list[Probe]:
    rows = r.normal(3, 500)
    return [
        Probe("l2", lambda v: soft_rank(v, 0.01), (rows,)),
        Probe("kl", lambda v: soft_rank(v, 0.1, "kl"), (rows,)),
        Probe("no rows", soft_rank, (rows[:0],)),
        Probe("spearman", spearman_closed_form, (r.normal(2, 40_000), r.normal(2, 40_000))),
    ]


def _sparse_conv(r: _Random) -> list[Probe]:
    shape = (9, 8, 5)
    places = torch.randperm(2 * 9 * 8 * 5, generator=torch.Generator().manual_seed(0))[:200].to(r._device)
    coordinates = torch.stack([places // 360, places // 40 % 9, places // 5 % 8, places % 5], dim=1).int()
    strided = ((3, 3, 3), (2, 2, 2), (1, 1, 1), (1, 1, 1))

    def submanifold(features: Tensor, weight: Tensor) -> Tensor:
        tensor = SparseTensor(features, coordinates[: len(features)], shape, 2)
        return sparse_convolution(features, weight, submanifold_table(tensor, (3, 3, 3), (1, 1, 1)))

    def down(features: Tensor, weight: Tensor) -> Tensor:
        return sparse_convolution(
            features, weight, strided_table(SparseTensor(features, coordinates, shape, 2), *strided)
        )

    def tables() -> tuple[Tensor, ...]:
        tensor = SparseTensor(coordinates.float(), coordinates, shape, 2)
        near, table = submanifold_table(tensor, (3, 3, 3), (1, 1, 1)), strided_table(tensor, *strided)
        return near.neighbors, near.counts, table.coordinates, table.neighbors, table.inverse, table.counts

    inputs = r.normal(200, 6), r.normal(3, 3, 3, 6, 35) * 0.2
    return [
        Probe("submanifold", submanifold, inputs),
        Probe("strided", down, inputs),
        Probe("tables", tables, gradients=False, exact=True),
        Probe("no sites", submanifold, (inputs[0][:0], inputs[1])),
    ]


def _voxelize(r: _Random) -> list[Probe]:
    size, limits = (0.5, 1.0, 2.0), (-2.0, -3.0, -1.0, 2.0, 3.0, 3.0)
    points = torch.cat([r.uniform(3000, 3, low=-3, high=3.5), r.normal(3000, 2)], dim=1)
    index, features = r.integers(-1, 90, 3000), r.normal(3000, 9)
    exact = {"gradients": False, "exact": True}
    return [
        Probe("hard", lambda p: voxelize(p, size, limits, 5, 60), (points,), **exact),
        Probe("dynamic", lambda p: dynamic_voxelize(p, size, limits), (points,), **exact),
        Probe("no points", lambda p: voxelize(p, size, limits, 5, 60), (points[:0],), **exact),
        Probe("sum", lambda f: scatter_sum(f, index, 100), (features,)),
        Probe("mean", lambda f: scatter_mean(f, index, 100), (features,)),
        Probe("max", lambda f: scatter_max(f, index, 100), (features,)),
    ]


PROBES: dict[str, Callable[[_Random], list[Probe]]] = {
    "bev_pool": _bev_pool,
    "deform_attn": _deform_attn,
    "deform_conv": _deform_conv,
    "feature_decorator": _feature_decorator,
    "nms": _nms,
    "roi_align": _roi_align,
    "rotated_iou": _rotated_iou,
    "soft_rank": _soft_rank,
    "sparse_conv": _sparse_conv,
    "voxelize": _voxelize,
}
assert set(PROBES) == set(build.ops_with_kernels("cuda")), "an op has no probe"


def probes(op: str, device: torch.device) -> list[Probe]:
    """The calls of an op, always the same."""
    return PROBES[op](_Random(device))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.probes", description=__doc__)
    parser.add_argument("op", choices=sorted(PROBES))
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    with native.forced("native" if device.type == "cuda" else "emulated"):
        for dtype in (torch.float32, torch.float16):
            for probe in probes(options.op, device):
                probe.values([t.to(dtype) for t in probe.inputs])
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
