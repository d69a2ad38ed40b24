"""Settings of a config that mean the same thing in two places, compared before anything is built or loaded.

A class list, a range or an image size stands in the data pipelines and in the model; a distillation names the configs
of two more models, and a checkpoint lies beside the config that it was trained with. `disagreements` is the one place
that puts them side by side. What cannot be meant is refused; what may be, such as a test with fewer sweeps, is said.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmdet3d.blocks import nearest
from mmdet3d.config import load_config
from mmdet3d.datasets import benchmark_of
from mmdet3d.distill.providers import DetectorBlock
from mmdet3d.engine.agreement_sides import DataSide, Disagreement, ModelSide, data_sides, model_sides, shown
from mmdet3d.engine.settings import AUTO
from mmdet3d.io.files import read_json
from mmdet3d.io.weights import metadata_path
from mmdet3d.registry import MODELS
from mmdet3d.structures import point_sensors

__all__ = ["check_agreement", "disagreements"]

_COLOURS = "the network would see other colours than it was trained with"
_COLUMNS = "the network would read other quantities"
# What all data sets that one network sees must have in common, and what follows if they do not.
_SAME_DATA = {
    "object_classes": "a label is a place in this list",
    "classes": "a label is a place in this list",
    "class_map": "an object would count as one class here and as another there",
    "frame": "boxes would be meant in one frame and read in another",
    "image_size": "the network has one input size",
    "ImageAug3D.final_dim": "the network has one input size",
    "ImageNormalize.mean": _COLOURS,
    "ImageNormalize.std": _COLOURS,
    "ImageNormalize.channel_order": _COLOURS,
    "LoadHistoryImages.key_offsets": "the network would look back by other times",
    "LoadPointsFromFile.use_dim": _COLUMNS,
    "LoadPointsFromMultiSweeps.use_dim": _COLUMNS,
    "LoadRadarPointsMultiSweeps.use_dim": _COLUMNS,
    "LoadRadarPointsMultiSweeps.normalize": _COLUMNS,
}
# What differs on purpose where somebody asks how a network stands poorer data.
_SIMILAR_DATA = (
    "LoadPointsFromFile.reduce_beams",
    "LoadPointsFromFile.max_distance",
    "LoadPointsFromMultiSweeps.sweeps_num",
    "LoadPointsFromMultiSweeps.future_sweeps",
    "LoadPointsFromMultiSweeps.reduce_beams",
    "LoadPointsFromMultiSweeps.max_distance",
    "LoadRadarPointsMultiSweeps.sweeps_num",
    "LoadRadarPointsMultiSweeps.compensate_velocity",
    "LoadRadarPointsMultiSweeps.filtering",
    "PointsRangeFilter.point_cloud_range",
    "PointsRangeFilter.radar_range",
)
_SIZES = ("image_size", "ImageAug3D.final_dim")
# Of one frame's points and those of its sweeps.
_SAME_POINTS = ("use_dim", "reduce_beams", "max_distance")


def check_agreement(cfg: Mapping[str, Any], checkpoint: str | Path | None = None) -> list[str]:
    """Refuse settings that contradict each other.

    Args:
        cfg: a resolved config.
        checkpoint: that is tested; its data is compared with that of the `configs.yaml` beside it, if there is one,
            otherwise its classes with those that its metadata names.

    Returns:
        Sentences to warn with, of settings that differ where that may be meant.

    Raises:
        ValueError: one sentence per contradiction, each with both keys and what to do.
    """
    found = disagreements(cfg, checkpoint)
    refused = [each.sentence for each in found if each.refused]
    if len(refused) == 1:
        raise ValueError(refused[0])
    if refused:
        raise ValueError("\n- ".join([f"{len(refused)} pairs of settings disagree:", *refused]))
    return [each.sentence for each in found]


def disagreements(cfg: Mapping[str, Any], checkpoint: str | Path | None = None) -> list[Disagreement]:
    """See `check_agreement`; the same sentence comes once."""
    data = data_sides(cfg)
    found = [*_within(data), *_points_and_sweeps(data), *_depth_bins(cfg)]
    found += _metrics(cfg) if checkpoint is None else []  # a test asks for none by name
    for model in model_sides(cfg):
        for rule in _MODEL_RULES:
            # What is of a type that cannot be compared is refused by the part that it belongs to.
            with contextlib.suppress(TypeError, ValueError, LookupError):
                found += rule(model, data)
        if model.trained_on:
            apart = (*_SIZES, *(("object_classes",) if model.maps_classes else ()))
            found += _between(data, model.trained_on, apart)
    run = None if checkpoint is None else Path(checkpoint).resolve().parent / "configs.yaml"
    if run is not None and run.is_file():
        trained = data_sides(load_config(run), f" of {run}")
        found += _between(data, trained)
    elif checkpoint is not None and metadata_path(checkpoint).is_file():
        found += _recorded_classes(data, metadata_path(checkpoint))
    return list({each.sentence: each for each in found}.values())


# -- data sets with each other -------------------------------------------------------------------------------------


def _within(data: Sequence[DataSide]) -> Iterator[Disagreement]:
    """The splits of one config."""
    for key in (*_SAME_DATA, *_SIMILAR_DATA):
        groups = _grouped(data, key)
        for names, value in groups[1:]:
            yield _data_disagreement(key, groups[0], (names, value))


def _between(
    data: Sequence[DataSide], others: Sequence[DataSide], apart: Sequence[str] = _SIZES
) -> Iterator[Disagreement]:
    """The data of this config and that which a network was trained on.

    Args:
        apart: what may differ; sizes are left to the network's own settings.
    """
    for key in (*_SAME_DATA, *_SIMILAR_DATA):
        mine, theirs = _grouped(data, key), _grouped(others[:1], key)
        if key in apart or not theirs:
            continue
        for group in mine:
            if shown(group[1]) != shown(theirs[0][1]):
                yield _data_disagreement(key, group, theirs[0])


def _recorded_classes(data: Sequence[DataSide], record: Path) -> Iterator[Disagreement]:
    """Of weights that no longer lie in the folder of their run."""
    trained = read_json(record, "metadata").get("classes")
    for names, classes in [*_grouped(data, "object_classes"), *_grouped(data, "classes")] if trained else ():
        if list(classes) != trained:
            yield Disagreement(
                f"{names} is {shown(classes)}, but {record} says that its weights were trained with {shown(trained)}: "
                "a label is a place in this list; give the same"
            )


def _data_disagreement(key: str, first: tuple[str, Any], second: tuple[str, Any]) -> Disagreement:
    (names, value), (others, other) = first, second
    sentence = f"{names} is {shown(value)}, but {others} is {shown(other)}"
    if key in _SAME_DATA:
        return Disagreement(f"{sentence}: {_SAME_DATA[key]}; give both the same")
    return Disagreement(f"{sentence}; give both the same unless that difference is what you study", refused=False)


def _points_and_sweeps(data: Sequence[DataSide]) -> Iterator[Disagreement]:
    for side in data:
        for key in _SAME_POINTS:
            names = [f"{loader}.{key}" for loader in ("LoadPointsFromFile", "LoadPointsFromMultiSweeps")]
            values = [side.get(name) for name in names]
            both = all(side.has(name) for name in names)
            if both and shown(values[0]) != shown(values[1]):
                pairs = [f"{side.name(n)} is {shown(v)}" for n, v in zip(names, values, strict=True)]
                reason = "the points of a frame and of its sweeps go into one cloud"
                yield Disagreement(f"{', but '.join(pairs)}: {reason}; give both the same")


def _metrics(cfg: Mapping[str, Any]) -> Iterator[Disagreement]:
    """Metrics that are first looked up after an evaluation."""
    evaluation, model = cfg.get("evaluation") or {}, cfg.get("model")
    teacher = model.get("teacher") if isinstance(model, Mapping) else None
    wanted = {"evaluation.save_best": evaluation.get("save_best", AUTO)}
    if isinstance(teacher, Mapping) and teacher.get("min_score") is not None:
        wanted["model.teacher.metric"] = teacher.get("metric", DetectorBlock.metric)
    known = benchmark_of((cfg.get("data") or {}).get("val")).metrics
    for key, name in wanted.items():
        if known and name not in (None, AUTO, *known):
            hint = nearest(str(name), known) or f"; take one of {', '.join(known[:3])}, ..."
            yield Disagreement(f"{key} is {name}, but data.val reports no such metric{hint}")


# -- teacher and student --------------------------------------------------------------------------------------------


def _depth_bins(cfg: Mapping[str, Any]) -> Iterator[Disagreement]:
    """Of two view transforms whose depth distributions a loss compares, bin by bin."""
    model = cfg.get("model")
    losses = model.get("losses") if isinstance(model, Mapping) else None
    if not isinstance(losses, Mapping):
        return
    networks = {each.part: each for each in reversed(model_sides(cfg))}  # of the same name the outer one
    for name, loss in losses.items():
        if not isinstance(loss, Mapping) or not {"student", "teacher"} <= networks.keys():
            continue
        if "type" in loss and not getattr(MODELS.get(loss["type"]), "bin_by_bin", True):
            continue
        taps = [loss[side] if isinstance(loss.get(side), list) else [loss.get(side)] for side in ("student", "teacher")]
        for student, teacher in zip(*taps, strict=False):
            if not all(isinstance(tap, str) and tap.endswith(".depth") for tap in (student, teacher)):
                continue
            keys = [f"{tap.removesuffix('.depth')}.vtransform.dbound" for tap in (student, teacher)]
            sides = [networks["student"], networks["teacher"]]
            bounds = [side.get(key) for side, key in zip(sides, keys, strict=True)]
            if None not in bounds and shown(bounds[0]) != shown(bounds[1]):
                pair = [f"{s.name(k)} is {shown(b)}" for s, k, b in zip(sides, keys, bounds, strict=True)]
                yield Disagreement(
                    f"{', but '.join(pair)}: model.losses.{name} compares their depth bin by bin; give both the same"
                )


# -- a network and the data that it sees ----------------------------------------------------------------------------


def _classes(model: ModelSide, data: Sequence[DataSide]) -> Iterator[Disagreement]:
    tasks, count = model.get("heads.object.tasks"), model.get("heads.object.num_classes")
    listed = [name for task in tasks for name in task] if tasks is not None else model.get("classes")
    if model.maps_classes:
        return
    key = model.name("heads.object.tasks" if tasks is not None else "classes")
    for names, classes in [*_grouped(data, "object_classes"), *_grouped(data, "classes")]:
        if isinstance(classes, str):  # which the data set refuses
            continue
        if listed is not None and list(classes) != list(listed):
            swapped = ", so names would be swapped" if sorted(classes) == sorted(listed) else ""
            yield Disagreement(
                f"{key} names {', '.join(listed)}, but {names} is {', '.join(classes) or 'empty'}: a label is a place "
                f"in both lists{swapped}; give both the same classes in the same order"
            )
        elif listed is None and count is not None and count != len(classes):
            yield Disagreement(
                f"{model.name('heads.object.num_classes')} is {count}, but {names} names {len(classes)} classes "
                f"({', '.join(classes)}); make num_classes their number"
            )


def _per_task(model: ModelSide, data: Sequence[DataSide]) -> Iterator[Disagreement]:
    tasks = model.get("heads.object.tasks")
    kinds = model.get("heads.object.test_cfg.nms_type")
    for key in ("nms_type", "nms_scale", "min_radius") if tasks is not None else ():
        entries = model.get(f"heads.object.test_cfg.{key}")
        unread = key == "min_radius" and "circle" not in ([kinds] if isinstance(kinds, str) else kinds or ())
        if isinstance(entries, list) and len(entries) != len(tasks) and not unread:
            yield Disagreement(
                f"{model.name(f'heads.object.test_cfg.{key}')} has {len(entries)} entries, but "
                f"{model.name('heads.object.tasks')} has {len(tasks)} tasks; give it one entry per task"
            )


def _image_size(model: ModelSide, data: Sequence[DataSide]) -> Iterator[Disagreement]:
    for encoder in ("camera", "simulated"):
        key = f"encoders.{encoder}.vtransform.image_size"
        for names, size in _grouped(data, "ImageAug3D.final_dim"):
            if model.has(key) and shown(model.get(key)) != shown(size):
                yield Disagreement(
                    f"{model.name(key)} is {shown(model.get(key))}, but {names} is {shown(size)}: pixels would be "
                    "lifted to wrong places; set both by the one key image_size"
                )


def _history(model: ModelSide, data: Sequence[DataSide]) -> Iterator[Disagreement]:
    frames = model.get("history")  # 0 of a model that does not look back, whatever is loaded for others
    for names, offsets in _grouped(data, "LoadHistoryImages.key_offsets"):
        if frames and len(offsets) != frames:
            yield Disagreement(
                f"{model.name('history')} is {frames}, but {names} names {len(offsets)} earlier frames "
                f"({shown(offsets)}); make it their number"
            )


def _columns(model: ModelSide, data: Sequence[DataSide]) -> Iterator[Disagreement]:
    for encoder, loader in ((sensor.name, loader) for sensor in point_sensors() for loader in sensor.loaders):
        for part in ("pts_voxel_encoder.in_channels", "in_channels"):
            key = f"encoders.{encoder}.backbone.{part}"
            for names, use_dim in _grouped(data, f"{loader}.use_dim") if model.has(key) else ():
                count = use_dim if isinstance(use_dim, int) else len(use_dim)
                if count != model.get(key):
                    yield Disagreement(
                        f"{model.name(key)} is {model.get(key)}, but {names} keeps {count} columns of a point; make it "
                        "their number"
                    )


def _voxels(model: ModelSide, data: Sequence[DataSide]) -> Iterator[Disagreement]:
    for encoder in (sensor.name for sensor in point_sensors()):
        voxelize = f"encoders.{encoder}.voxelize"
        for part in ("point_cloud_range", "voxel_size"):
            key, own = f"{voxelize}.{part}", f"encoders.{encoder}.backbone.pts_voxel_encoder.{part}"
            if model.has(key) and model.has(own) and shown(model.get(key)) != shown(model.get(own)):
                yield Disagreement(
                    f"{model.name(key)} is {shown(model.get(key))}, but {model.name(own)} is {shown(model.get(own))}: "
                    "points would be placed in other cells than they are in; give both the same"
                )
        shape, extent, size = (
            model.get(f"encoders.{encoder}.{k}")
            for k in ("backbone.sparse_shape", "voxelize.point_cloud_range", "voxelize.voxel_size")
        )
        if shape is None or extent is None or size is None:
            continue
        cells = [round((b - a) / s) for a, b, s in zip(extent[:3], extent[3:], size, strict=True)]
        if list(shape[:2]) != cells[:2] or shape[2] < cells[2]:
            yield Disagreement(
                f"{model.name(f'encoders.{encoder}.backbone.sparse_shape')} is {shown(shape)}, but point_cloud_range "
                f"and voxel_size of {model.name(voxelize)} make {shown(cells)} voxels; make it "
                f"{shown([*cells[:2], cells[2] + 1])}"
            )


def _ranges(model: ModelSide, data: Sequence[DataSide]) -> Iterator[Disagreement]:
    """What is cut off before the network sees it, or after it was found. May be meant, so it is said."""
    head = "heads.object.train_cfg.point_cloud_range"
    pairs = [(head, filters) for filters in ("ObjectRangeFilter.point_cloud_range",)]
    pairs.append(("encoders.lidar.voxelize.point_cloud_range", "PointsRangeFilter.point_cloud_range"))
    pairs.append(("encoders.radar.voxelize.point_cloud_range", "PointsRangeFilter.radar_range"))
    for key, given in pairs:
        for names, limits in _grouped(data, given) if model.has(key) else ():
            if not _covers(limits, model.get(key)):
                yield Disagreement(
                    f"{names} is {shown(limits)}, within {model.name(key)} {shown(model.get(key))}: what lies "
                    "between is dropped before the network sees it; widen it unless that is meant",
                    refused=False,
                )
    limit = "heads.object.test_cfg.post_center_limit_range"
    if model.has(head) and model.has(limit) and not _covers(model.get(limit), model.get(head)):
        yield Disagreement(
            f"{model.name(limit)} is {shown(model.get(limit))}, within {model.name(head)} {shown(model.get(head))}: "
            "what the network finds between them is thrown away; widen it unless that is meant",
            refused=False,
        )


_MODEL_RULES = (_classes, _per_task, _image_size, _history, _columns, _voxels, _ranges)


def _covers(outer: Sequence[float], inner: Sequence[float]) -> bool:
    """Of x0, y0, (z0,) x1, y1, (z1): on the ground plane; heights where both have them."""
    (low, high), (least, most) = (_halves(r) for r in (outer, inner))
    pairs = min(len(low), len(least))
    return all(low[k] <= least[k] + 1e-6 and high[k] >= most[k] - 1e-6 for k in range(pairs))


def _halves(limits: Sequence[float]) -> tuple[Sequence[float], Sequence[float]]:
    half = len(limits) // 2
    return limits[:half], limits[half:]


def _grouped(data: Iterable[DataSide], key: str) -> list[tuple[str, Any]]:
    """The values that a setting has, each with the names of the data sets that have it."""
    groups: dict[str, list[DataSide]] = {}
    for side in data:
        if side.has(key):
            groups.setdefault(shown(side.get(key)), []).append(side)
    return [(DataSide.names(sides, key), sides[0].get(key)) for sides in groups.values()]
