"""The `train_cfg` and `test_cfg` blocks of heads that predict on a BEV raster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

from mmdet3d.blocks import ConfigKeyError
from mmdet3d.models.heads.box_coder import CODE_SIZE
from mmdet3d.structures import BEVGrid

__all__ = [
    "AssignerSettings",
    "CenterHeadTesting",
    "CostWeight",
    "FocalCost",
    "HeadTraining",
    "SeparateHeadSettings",
    "TransFusionTesting",
    "TransFusionTraining",
    "grid_from",
]

# Keys of published configs that change nothing here, and why.
_UNREAD = {
    "dense_reg": "it was never read",
    "max_objs": "any number of objects is trained on",
    "max_pool_nms": "it was never read",
    "pos_weight": "it was never read",
    "grid_size": "the grid follows from point_cloud_range, voxel_size and out_size_factor of train_cfg",
    "pc_range": "the grid follows from point_cloud_range of train_cfg",
    "dataset": "name the classes in point_classes",
}
_UNREAD_IN_TESTING = _UNREAD | dict.fromkeys(("voxel_size", "out_size_factor"), "train_cfg's value is used")


@dataclass(frozen=True)
class HeadTraining:
    """What a head learns from, and on which raster.

    Args:
        point_cloud_range: x0, y0, z0, x1, y1, z1, metres.
        voxel_size: x, y, z, metres.
        out_size_factor: voxels along a side of a cell of the BEV.
        gaussian_overlap: a box shifted to the edge of its heatmap peak overlaps the object by this much (IoU).
        min_radius: of a peak, cells.
        code_weights: factors of the ten regression errors: centre (2), height, size (3), heading (2), velocity (2).
    """

    without_effect: ClassVar[Mapping[str, str]] = _UNREAD

    point_cloud_range: Sequence[float]
    voxel_size: Sequence[float]
    out_size_factor: int
    gaussian_overlap: float = 0.1
    min_radius: int = 2
    code_weights: Sequence[float] = (1.0,) * CODE_SIZE

    def __post_init__(self) -> None:
        if len(self.code_weights) != CODE_SIZE:
            raise ConfigKeyError("code_weights", f" needs {CODE_SIZE} numbers, got {len(self.code_weights)}")

    @property
    def grid(self) -> BEVGrid:
        """Raises ValueError if the range is no whole number of cells."""
        return grid_from(self.point_cloud_range, self.voxel_size, self.out_size_factor)


@dataclass(frozen=True)
class CenterHeadTesting:
    """How maps become boxes.

    Args:
        post_center_limit_range: of box centres: x0, y0, z0, x1, y1, z1, metres.
        max_per_img: candidates of a task before suppression.
        score_threshold: least score of a candidate.
        nms_type: by the distance of centres or the overlap of footprints; or a list, one per task.
        nms_thr: IoU above which the lower score goes (rotate).
        nms_scale: enlargement of footprints for the IoU (rotate); or a list per task of factors per class.
        min_radius: per task, squared metres within which the lower score goes (circle).
        pre_max_size, post_max_size: boxes of a task that go into suppression, and that come out.
    """

    without_effect: ClassVar[Mapping[str, str]] = _UNREAD_IN_TESTING

    post_center_limit_range: Sequence[float]
    max_per_img: int = 500
    score_threshold: float = 0.1
    nms_type: Literal["circle", "rotate"] | Sequence[str] = "rotate"
    nms_thr: float = 0.2
    nms_scale: float | Sequence[Sequence[float]] = 1.0
    min_radius: Sequence[float] | None = None
    pre_max_size: int = 1000
    post_max_size: int = 83

    def per_task(self, tasks: Sequence[Sequence[str]]) -> CenterHeadTesting:
        """With `nms_type` as one entry, and `nms_scale` as one factor per class, for every task.

        Raises:
            ConfigKeyError: lists that do not fit the tasks.
        """
        kinds = [self.nms_type] * len(tasks) if isinstance(self.nms_type, str) else self.nms_type
        one = self.nms_scale
        scales = [[one] * len(task) for task in tasks] if isinstance(one, (int, float)) else one
        for key, count in {"nms_type": len(kinds), "nms_scale": len(scales)}.items():
            if count != len(tasks):
                raise ConfigKeyError(f"test_cfg.{key}", f" needs one entry per task ({len(tasks)}), got {count}")
        for kind in kinds:
            if kind not in ("circle", "rotate"):
                raise ConfigKeyError("test_cfg.nms_type", f" must be circle or rotate, got {kind!r}")
        if [len(scale) for scale in scales] != [len(task) for task in tasks]:
            raise ConfigKeyError("test_cfg.nms_scale", f" needs one factor per class of each task, got {scales}")
        if "circle" in kinds and len(self.min_radius or ()) != len(tasks):
            raise ConfigKeyError(
                "test_cfg.min_radius", f" needs one number per task ({len(tasks)}) for circle suppression"
            )
        return replace(self, nms_type=list(kinds), nms_scale=[list(scale) for scale in scales])


@dataclass(frozen=True)
class SeparateHeadSettings:
    """The branches of a `CenterHead`.

    Args:
        init_bias: of the heatmap: the logit of an object's prior probability.
        final_kernel: kernel of every convolution.
        type: published configs name a class here, which is not looked up.
    """

    init_bias: float = -2.19
    final_kernel: int = 3
    type: str | None = None


@dataclass(frozen=True)
class FocalCost:
    """Of calling a prediction an object's class.

    Args:
        weight: of this cost among the three.
        alpha, gamma: of the focal loss.
    """

    weight: float = 0.15
    alpha: float = 0.25
    gamma: float = 2.0


@dataclass(frozen=True)
class CostWeight:
    """Of the distance of centres, or of the IoU.

    Args:
        weight: of this cost among the three.
    """

    weight: float = 0.25


@dataclass(frozen=True)
class AssignerSettings:
    """See `HungarianAssigner3D`.

    Args:
        cls_cost: of the class.
        reg_cost: of the distance of centres.
        iou_cost: of the IoU.
    """

    cls_cost: FocalCost = field(default_factory=FocalCost)
    reg_cost: CostWeight = field(default_factory=CostWeight)
    iou_cost: CostWeight = field(default_factory=CostWeight)


@dataclass(frozen=True)
class TransFusionTraining(HeadTraining):
    """What a `TransFusionHead` learns from, and on which raster; see `HeadTraining`.

    Args:
        assigner: which proposal learns which object.
    """

    code_weights: Sequence[float] = (1.0,) * 8 + (0.2, 0.2)
    assigner: AssignerSettings = field(default_factory=AssignerSettings)


@dataclass(frozen=True)
class TransFusionTesting:
    """How proposals become boxes.

    Args:
        post_center_limit_range: of box centres: x0, y0, z0, x1, y1, z1, metres.
        score_threshold: least score of a box.
        nms_type: suppression within each of the head's `point_classes`; null for none.
        nms_thr: IoU above which the lower score goes (rotate).
        min_radius: squared metres within which the lower score goes (circle).
    """

    without_effect: ClassVar[Mapping[str, str]] = _UNREAD_IN_TESTING

    post_center_limit_range: Sequence[float]
    score_threshold: float = 0.0
    nms_type: Literal["circle", "rotate"] | None = None
    nms_thr: float = 0.1
    min_radius: float = 0.175


def grid_from(point_cloud_range: Sequence[float], voxel_size: Sequence[float], out_size_factor: int) -> BEVGrid:
    """The raster whose cells are `out_size_factor` voxels wide.

    Raises:
        ValueError: the range is no whole number of cells.
    """
    cell = [size * out_size_factor for size in voxel_size[:2]]
    grid = BEVGrid.from_range(list(point_cloud_range), cell)
    for axis, (low, high) in enumerate(zip(point_cloud_range[:2], point_cloud_range[3:5], strict=True)):
        if abs(grid.shape[axis] * cell[axis] - (high - low)) > 1e-3 * cell[axis]:
            raise ValueError(
                f"point_cloud_range spans {high - low:g} m along {'xy'[axis]}, which is no whole number of cells of "
                f"{cell[axis]:g} m (voxel_size {voxel_size[axis]:g} times out_size_factor {out_size_factor})"
            )
    return grid
