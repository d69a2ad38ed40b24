"""What pooling needs to know of the geometry, worked out once."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from mmdet3d.ops import native
from mmdet3d.ops.bev_pool import exported, fused, kernels, reference
from mmdet3d.ops.checks import check_shapes
from mmdet3d.ops.native import DTYPE_CODES

__all__ = ["PlanCache", "PoolPlan", "plan_coordinates", "plan_pool"]


@dataclass(frozen=True, eq=False)
class PoolPlan:
    """Which points fall into which cell. Made by `plan_pool` or `plan_coordinates`; good for any features.

    Attributes:
        cells: integer, one per point: flat cell `((b * Z + z) * X + x) * Y + y`, -1 for points that are dropped.
        order: (K,) int32, the points in the order of their cells, dropped ones first; None without compiled kernels.
        starts: (B*Z*X*Y + 1,) int32, where the points of each cell start in `order`; None without compiled kernels.
        batch_size: B.
        shape: X, Y, Z.
        kept: (K,) int64, see `compact`; `cells` is then of these points alone.
    """

    cells: Tensor
    order: Tensor | None
    starts: Tensor | None
    batch_size: int
    shape: tuple[int, int, int]
    kept: Tensor | None = None

    def compact(self) -> PoolPlan:
        """The plan for an exported program with this geometry built in: dropped points are left out of it."""
        cells = self.cells.flatten().long()
        kept = (cells >= 0).nonzero()[:, 0]
        kept = kept[cells[kept].argsort(stable=True)]
        return PoolPlan(cells[kept], None, None, self.batch_size, self.shape, kept)

    def pool(self, depth: Tensor, context: Tensor) -> Tensor:
        """Sum `depth x context` in cells; see `bev_pool`.

        Args:
            depth: (B*N, D, h, w).
            context: (B*N, C, h, w).

        Returns:
            (B, Z*C, X, Y).

        Raises:
            ValueError: a plan for other points, tensors that are not floating point or lie on another device.
        """
        if self.kept is not None or torch.compiler.is_exporting():
            return exported.lift_splat(depth, context, self.cells.long(), self.batch_size, self.shape, self.kept)
        sizes = check_shapes(depth=(depth, "P D h w"), context=(context, "P C h w"), geometry=(self.cells, "B N D h w"))
        if sizes["P"] != sizes["B"] * sizes["N"]:
            raise ValueError(
                f"depth has {sizes['P']} images, geometry {sizes['B']} x {sizes['N']} = {sizes['B'] * sizes['N']}"
            )
        self._check(depth=depth, context=context)
        if self.order is not None and self.starts is not None and kernels.available(depth):
            return kernels.lift_splat(depth, context, self.cells, self.order, self.starts, self.batch_size, self.shape)
        implementation = reference if native.setting() == "reference" else fused
        return implementation.lift_splat(depth, context, self.cells.long(), self.batch_size, self.shape)

    def pool_lifted(self, features: Tensor) -> Tensor:
        """Sum features in cells; see `bev_pool_lifted`.

        Args:
            features: (..., C), the points in the order of the plan: (B, N, D, h, w, C), (B*N, D, h, w, C) or (K, C).

        Returns:
            (B, Z*C, X, Y).

        Raises:
            ValueError: a plan for another number of points, features not floating point or on another device.
        """
        if self.kept is not None or torch.compiler.is_exporting():
            rows = features.reshape(-1, features.shape[-1])
            return exported.splat(rows, self.cells.long(), self.batch_size, self.shape, self.kept)
        points = math.prod(features.shape[:-1])
        if features.ndim < 2 or points != self.cells.numel():
            raise ValueError(
                f"features must have shape (..., C) with {self.cells.numel()} points, got {tuple(features.shape)}"
            )
        self._check(features=features)
        rows = features.reshape(points, features.shape[-1])
        if self.order is not None and self.starts is not None and kernels.available(features):
            return kernels.splat(rows, self.cells, self.order, self.starts, self.batch_size, self.shape)
        implementation = reference if native.setting() == "reference" else fused
        return implementation.splat(rows, self.cells.flatten().long(), self.batch_size, self.shape)

    def _check(self, **tensors: Tensor) -> None:
        for name, tensor in tensors.items():
            _check_float(name, tensor)
            if tensor.device != self.cells.device:
                raise ValueError(f"{name} is on {tensor.device}, the geometry on {self.cells.device}")


def plan_pool(
    geometry: Tensor, lower: Sequence[float], cell: Sequence[float], shape: Sequence[int], floor: bool = False
) -> PoolPlan:
    """Sort points into cells, for one pooling or many.

    Args:
        geometry: (B, ..., 3) x, y, z in metres; for `PoolPlan.pool` (B, N, D, h, w, 3).
        lower, cell, shape, floor: see `bev_pool`.

    Raises:
        ValueError: geometry of another shape or not floating point; lower, cell or shape not three sensible values.
    """
    if geometry.ndim < 3 or geometry.shape[-1] != 3:
        raise ValueError(f"geometry must have shape (B, ..., 3), got {tuple(geometry.shape)}")
    _check_float("geometry", geometry)
    for name, values in {"lower": lower, "cell": cell}.items():
        if len(values) != 3 or not all(math.isfinite(v) for v in values):
            raise ValueError(f"{name} needs three values (x, y, z) that are finite, got {list(values)}")
    if not all(v > 0 for v in cell):
        raise ValueError(f"cell must be positive, got {list(cell)}")
    extent, batch_size = _shape(shape), geometry.shape[0]
    if not kernels.available(geometry) or not kernels.fits(geometry.numel() // 3, batch_size * math.prod(extent)):
        cells = reference.cell_indices(geometry, lower, cell, extent, floor)
        return PoolPlan(cells, None, None, batch_size, extent)
    box = [float(v) for v in (*lower, *cell)]
    cells = kernels.cells_of(geometry.detach(), box, list(extent), floor)
    order, starts = kernels.group(cells, batch_size * math.prod(extent))
    return PoolPlan(cells, order, starts, batch_size, extent)


def plan_coordinates(coordinates: Tensor, batch_size: int, shape: Sequence[int]) -> PoolPlan:
    """The plan for points whose cells are known, as the ops of BEVFusion and BEVDepth take them.

    Args:
        coordinates: (K, 4) integer x, y, z of the cell and sample. Points outside the grid or the batch are dropped.
        batch_size: B.
        shape: number of cells X, Y, Z.

    Raises:
        ValueError: coordinates of another shape or not integer, a shape that is not three positive numbers.
    """
    check_shapes(coordinates=(coordinates, "K 4"))
    if coordinates.is_floating_point() or coordinates.is_complex() or coordinates.dtype == torch.bool:
        raise ValueError(f"coordinates must be integer, got {coordinates.dtype}")
    nx, ny, nz = extent = _shape(shape)
    x, y, z, sample = coordinates.long().unbind(1)
    bounds = coordinates.new_tensor([nx, ny, nz, batch_size], dtype=torch.int64)
    inside = ((coordinates >= 0) & (coordinates < bounds)).all(1)
    cells = torch.where(inside, ((sample * nz + z) * nx + x) * ny + y, -1)
    num_cells = batch_size * math.prod(extent)
    if not kernels.available(cells) or not kernels.fits(cells.numel(), num_cells):
        return PoolPlan(cells, None, None, batch_size, extent)
    order, starts = kernels.group(cells.int(), num_cells)
    return PoolPlan(cells.int(), order, starts, batch_size, extent)


class PlanCache:
    """The plans of geometries that come again, as those of a vehicle whose calibration is fixed.

    Keys are compared by content, so a change of calibration or augmentation is never missed. A plan is kept from the
    second time its key is asked for: a stream of geometries that never repeat keeps no plans alive. Threads may share
    a cache. Copies and pickles of a cache are empty.

    Args:
        size: number of keys remembered; the least recently used one is forgotten first.
    """

    def __init__(self, size: int = 4) -> None:
        self.size = size
        self._plans: OrderedDict[tuple[Any, ...], PoolPlan | None] = OrderedDict()
        self._lock = Lock()

    def get(self, key: Sequence[Tensor], build: Callable[[], PoolPlan]) -> PoolPlan:
        """The plan for `key`, from `build` if there is none yet.

        Args:
            key: all that decides the plan, for instance the calibration and augmentation matrices, on one device.
                They are read on the host, so they had better be small; on CUDA the call waits for them.
            build: makes the plan; may run in several threads at once.
        """
        if torch.compiler.is_compiling():
            return build()
        content = _content(key)
        with self._lock:
            again = content in self._plans
            plan = self._plans.setdefault(content, None)
            self._plans.move_to_end(content)
            while len(self._plans) > self.size:
                self._plans.popitem(last=False)
        if plan is None:
            with torch.inference_mode(False):  # or the plan could not serve a call with gradients later
                plan = build()
            if again:
                with self._lock:
                    if content in self._plans:
                        self._plans[content] = plan
        return plan

    def __reduce__(self) -> tuple[Any, ...]:
        return PlanCache, (self.size,)


def _content(tensors: Sequence[Tensor]) -> tuple[Any, ...]:
    kinds = tuple((t.dtype, tuple(t.shape), t.device) for t in tensors)
    flat = torch.cat([t.detach().reshape(-1).view(torch.uint8) for t in tensors])
    return kinds, flat.cpu().numpy().tobytes()


def _check_float(name: str, tensor: Tensor) -> None:
    if tensor.dtype not in DTYPE_CODES:
        raise ValueError(f"{name} must be floating point, got {tensor.dtype}")


def _shape(shape: Sequence[int]) -> tuple[int, int, int]:
    if len(shape) != 3 or not all(int(n) == n and n > 0 for n in shape):
        raise ValueError(f"shape needs three values (x, y, z) that are whole and positive, got {list(shape)}")
    nx, ny, nz = (int(n) for n in shape)
    return nx, ny, nz
