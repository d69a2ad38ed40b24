"""The data set: order, random streams, replacement, errors, class-balanced sampling."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmdet3d.datasets import CBGSDataset, FrameDataset, NuScenesDataset, build_dataset, build_split, require_sensors
from mmdet3d.datasets.nuscenes.create import create_nuscenes
from mmdet3d.datasets.nuscenes.infos import read_infos, write_infos
from mmdet3d.datasets.records import Context, FrameRecord, SensorRecord, Transform
from mmdet3d.datasets.sampling import balanced_indices
from mmdet3d.datasets.transforms import Compose
from mmdet3d.datasets.truckscenes.dataset import TruckScenesDataset
from mmdet3d.structures import Batch, Sample

ANNOTATIONS = [{"type": "LoadAnnotations3D"}]
SCENE_0103_FIRST = "3e8750f331d7499e9b5123e9eb70f2e2"


class Draw(Transform):
    """Shows the random stream."""

    def __call__(self, sample: Sample, context: Context) -> Sample:
        sample.meta["draw"] = context.rng.randint(1 << 30)
        return sample


def made_up(names: list[list[str]], root: Path, *steps: Any, **arguments: Any) -> FrameDataset:
    """A data set of frames with the named objects."""
    records = [
        FrameRecord(
            token=f"t{k}",
            timestamp=k,
            lidar=SensorRecord("x", k, np.eye(4)),
            lidar2ego=np.eye(4),
            ego2global=np.eye(4),
            boxes=np.ones((len(found), 9)),
            names=np.array(found, dtype=str),
        )
        for k, found in enumerate(names)
    ]
    return FrameDataset(records, root, [*ANNOTATIONS, *steps], ("car", "bus"), **arguments)


@pytest.fixture
def val(created: dict[str, Path], root: Path) -> NuScenesDataset:
    return NuScenesDataset(str(created["val"]), str(root), ANNOTATIONS, test_mode=True)


def test_frames_come_in_time_order(val: NuScenesDataset) -> None:
    assert len(val) == len(val.tokens) == 81
    times = [val.frame(k).timestamp for k in range(len(val))]
    assert times == sorted(times)
    assert val[0].token == val.tokens[0] == SCENE_0103_FIRST
    with pytest.raises(IndexError):
        val[81]


def test_sample_of_real_data(val: NuScenesDataset) -> None:
    sample = val[0]
    record = val.frame(0)
    assert sample.calibration.camera2lidar.shape == (6, 4, 4)
    assert len(sample.boxes) == len(sample.labels) == np.isin(record.names, val.class_names).sum()
    assert [val.class_names[k] for k in sample.labels][:6] == ["pedestrian"] * 5 + ["car"]


def test_which_annotations_count(created: dict[str, Path], root: Path) -> None:
    lidar = NuScenesDataset(str(created["val"]), str(root))
    either = NuScenesDataset(str(created["val"]), str(root), use_valid_flag=True)
    lidar_boxes, either_boxes = (sum(len(d.frame(k).boxes) for k in range(len(d))) for d in (lidar, either))
    assert lidar_boxes < either_boxes
    assert (lidar.frame(0).num_lidar_pts > 0).all()
    assert ((either.frame(0).num_lidar_pts + either.frame(0).num_radar_pts) > 0).all()


def test_load_interval(created: dict[str, Path], root: Path, val: NuScenesDataset) -> None:
    every_tenth = NuScenesDataset(str(created["val"]), str(root), load_interval=10)
    assert every_tenth.tokens == val.tokens[::10]


def test_published_info_file_by_its_name(shared: Path, val: NuScenesDataset) -> None:
    theirs = NuScenesDataset("bevfusion_mini_val.pkl", str(shared / "data" / "nuscenes_infos"))
    assert theirs.tokens == val.tokens
    np.testing.assert_allclose(theirs.ground_truth(0).boxes.tensor, val.ground_truth(0).boxes.tensor, atol=1e-9)


# -- random streams -------------------------------------------------------------------------------------------------


def test_draws_depend_on_seed_epoch_and_index_alone(tmp_path: Path) -> None:
    def draws(epoch: int, seed: int = 0) -> list[int]:
        dataset = made_up([["car"]] * 4, tmp_path, Draw(), seed=seed)
        dataset.set_epoch(epoch)
        np.random.seed(99)
        return [dataset[k].meta["draw"] for k in (2, 0, 1, 2)]

    first = draws(0)
    assert first == draws(0)
    assert first[0] == first[3]
    assert len({*first, *draws(1), *draws(0, seed=1)}) == 9


def test_stream_is_the_documented_one(tmp_path: Path) -> None:
    dataset = made_up([["car"]] * 4, tmp_path, Draw(), seed=7)
    dataset.set_epoch(3)
    expected = np.random.RandomState(np.random.MT19937(np.random.SeedSequence([7, 3, 2]))).randint(1 << 30)
    assert dataset[2].meta["draw"] == expected


def test_samples_are_indexed_as_in_a_list(tmp_path: Path) -> None:
    dataset = made_up([["car"]] * 4, tmp_path, Draw())
    draws = [sample.meta["draw"] for sample in dataset]
    assert [sample.meta["draw"] for sample in dataset[1:3]] == draws[1:3]
    assert dataset[-1].meta["draw"] == draws[-1]
    for beyond in (4, -5):
        with pytest.raises(IndexError, match=f"no frame {beyond}; there are 4"):
            dataset[beyond]


# -- empty samples --------------------------------------------------------------------------------------------------


def test_empty_samples_are_replaced_while_training_only(tmp_path: Path) -> None:
    names = [[], ["car"], ["animal"], ["bus"]]
    training = made_up(names, tmp_path)
    tokens = [training[k].token for k in range(4)]
    assert tokens[1::2] == ["t1", "t3"]
    assert set(tokens) == {"t1", "t3"}
    assert [training[k].token for k in range(4)] == tokens
    assert [s.token for s in made_up(names, tmp_path, test_mode=True)] == ["t0", "t1", "t2", "t3"]
    assert [s.token for s in made_up(names, tmp_path, filter_empty_gt=False)] == ["t0", "t1", "t2", "t3"]


def test_only_empty_samples_is_an_error(tmp_path: Path) -> None:
    message = (
        "no object of car, bus to learn in .*: 0 of 1 annotated objects in 2 frames; left out: 1 animal of no class"
    )
    with pytest.raises(ValueError, match=message):
        made_up([[], ["animal"]], tmp_path)[0]
    far = {"type": "ObjectRangeFilter", "point_cloud_range": [50, 50, -5, 60, 60, 3]}
    with pytest.raises(ValueError, match=r"100 samples in a row have no object of .* 3 in 2 frames; check the ranges"):
        made_up([["car"], ["bus", "car"]], tmp_path, far)[0]


# -- incomplete data sets -------------------------------------------------------------------------------------------


@pytest.fixture
def incomplete(root: Path, tmp_path: Path) -> Path:
    """Info files of three frames with all cameras, the first without its scan and the second without one image."""
    records, metadata = read_infos(create_nuscenes(root, tmp_path, "all", "v1.0-mini", 1, 10, True, False)["train"])
    channels = {c: replace(camera, path=c) for c, camera in records[0].cameras.items()}
    made = [replace(records[0], token=f"t{k}", timestamp=k, cameras=channels) for k in range(3)]
    made[0].lidar = replace(made[0].lidar, path="gone.bin")
    made[1].cameras = {c: camera for c, camera in channels.items() if c != "CAM_BACK"}
    (tmp_path / made[1].lidar.path).parent.mkdir(parents=True)
    (tmp_path / made[1].lidar.path).write_bytes((root / made[1].lidar.path).read_bytes())
    write_infos(made, {**metadata, "missing": 2}, tmp_path / "infos.pkl")
    return tmp_path


SCAN = {"type": "LoadPointsFromFile", "load_dim": 5, "use_dim": 5}


def left_out(caplog: pytest.LogCaptureFixture) -> set[str]:
    """A message may be captured twice, where an earlier test made the project's logger one of its own."""
    return {message for message in caplog.messages if "are left out" in message}


SENSORS = ["camera", "lidar"]
RADAR = {"type": "LoadRadarPointsMultiSweeps"}


@pytest.mark.parametrize("test_mode", [False, True])
@pytest.mark.parametrize(("steps", "used"), [([SCAN], ["t2"]), ([RADAR], ["t0", "t2"]), ([], ["t0", "t1", "t2"])])
def test_frames_without_a_file_are_left_out(
    incomplete: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    steps: list[dict],
    used: list[str],
    test_mode: bool,
) -> None:
    """In training and in test mode alike, so that what trains also evaluates."""
    dataset = NuScenesDataset("infos.pkl", str(incomplete), [*steps, *ANNOTATIONS], test_mode=test_mode)
    for line in left_out(caplog):
        assert f"{3 - len(used)} of 3 frames" in line and "1 without all 6 cameras" in line
        assert f"{len({SCAN['type']} & {s['type'] for s in steps})} without their LiDAR scan" in line
        assert line.endswith("(t0, t1)" if steps == [SCAN] else "(t1)")
    assert len(left_out(caplog)) == (len(used) < 3)
    monkeypatch.setattr(dataset, "_pipeline", Compose(ANNOTATIONS))  # most files are not there
    assert dataset.tokens == [s.token for s in dataset] == used
    assert {dataset.tokens[i] for i in CBGSDataset(dataset).indices} == set(used)


@pytest.mark.parametrize(
    ("sensors", "test_mode", "depth", "used"),
    [
        (["camera", "radar"], False, False, ["t0", "t2"]),
        (["camera", "radar"], False, True, ["t2"]),  # training takes depth labels from the scan
        (["camera", "radar"], True, True, ["t0", "t2"]),
        (["camera", "lidar"], True, False, ["t2"]),
    ],
)
def test_what_a_model_does_not_read_may_be_missing(
    incomplete: Path, sensors: list[str], test_mode: bool, depth: bool, used: list[str]
) -> None:
    sweeps = {"type": "LoadPointsFromMultiSweeps", "sweeps_num": 2}
    steps = [SCAN, sweeps, *([{"type": "GTDepth"}] if depth else []), *ANNOTATIONS]
    block = {"type": "NuScenesDataset", "ann_file": "infos.pkl", "dataset_root": str(incomplete), "pipeline": steps}
    dataset = build_split({"val": block}, "val", 0, sensors, test_mode=test_mode)
    assert dataset.tokens == used
    if used[0] == "t0" and not depth:
        assert dataset[0].points.shape == (0, 5)


def test_a_student_without_teacher_is_shown_the_frames_of_one_with(incomplete: Path) -> None:
    """The runs of a recipe on own data see the same frames, whatever each of them reads."""
    block = {"type": "NuScenesDataset", "ann_file": "infos.pkl", "dataset_root": str(incomplete), "pipeline": [SCAN]}
    frames = {}
    for name, wrapped in (("alone", block), ("resampled", {"type": "CBGSDataset", "dataset": dict(block)})):
        control, distilled = [build_split({"train": wrapped}, "train", 0, read) for read in (["camera"], SENSORS)]
        require_sensors(wrapped, SENSORS)
        shown = build_split({"train": wrapped}, "train", 0, ["camera"])
        frames[name] = [getattr(each, "dataset", each).tokens for each in (control, distilled, shown)]
    assert frames["alone"] == frames["resampled"] == [["t0", "t2"], ["t2"], ["t2"]]


def test_numbers_of_cameras_that_differ(incomplete: Path) -> None:
    evaluated = NuScenesDataset("infos.pkl", str(incomplete), ANNOTATIONS, test_mode=True)
    with pytest.raises(ValueError, match=r"numbers of cameras \(t1 has 5, t2 has 6\); complete the data set"):
        Batch.collate([evaluated[1], evaluated[2]])


def test_nothing_complete_to_use(incomplete: Path) -> None:
    records, metadata = read_infos(incomplete / "infos.pkl")
    write_infos(records[:2], metadata, incomplete / "infos.pkl")
    with pytest.raises(ValueError, match=r"no frame in .* can be used: of 2, 1 without all 6 cameras, 1 without"):
        NuScenesDataset("infos.pkl", str(incomplete), [SCAN])


class DropAll(Transform):
    def __call__(self, sample: Sample, context: Context) -> None:
        return None


def test_test_mode_does_not_drop(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="drops sample t0"):
        made_up([["car"]], tmp_path, DropAll(), test_mode=True)[0]


# -- errors ---------------------------------------------------------------------------------------------------------


def test_missing_info_file_tells_what_is_there(created: dict[str, Path]) -> None:
    folder = created["val"].parent
    with pytest.raises(FileNotFoundError) as error:
        NuScenesDataset("nuscenes_old_infos_train.pkl", str(folder))
    assert "info files there: nuscenes_infos_train.pkl, nuscenes_infos_val.pkl)" in str(error.value)
    assert f"create_data.py nuscenes --root-path {folder}" in str(error.value)
    with pytest.raises(FileNotFoundError, match="dataset_root /none does not exist"):
        NuScenesDataset("a.pkl", "/none")


@pytest.mark.parametrize(
    ("dataset", "prefix", "root", "world"),
    [
        (NuScenesDataset, "synthetic", "data/own", "synthetic"),
        (NuScenesDataset, "nuscenes", "data/synthetic/", "synthetic"),
        (TruckScenesDataset, "truckscenes", "data/synthetic-truckscenes", "synthetic-truckscenes"),
    ],
)
def test_a_missing_synthetic_world_is_made_as_one(
    dataset: type, prefix: str, root: str, world: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = root.rstrip("/")
    made = rf"create_data\.py {world} --out-dir {folder}, and then its info files: .*create_data\.py"
    named = rf"--root-path {folder} --out-dir {folder} --extra-tag {prefix} --version"
    with pytest.raises(FileNotFoundError, match=rf"make the synthetic world, .*{made} .*{named} v1\.0-synthetic$"):
        dataset(f"{prefix}_infos_train.pkl", root)
    tables = Path(root) / "v1.0-synthetic" / "sample_data.json"  # of a world whose info files alone are missing
    tables.parent.mkdir(parents=True)
    tables.write_text("[]")
    with pytest.raises(FileNotFoundError, match=rf"or create it: .*{named} v1\.0-synthetic$"):
        dataset(f"{prefix}_infos_train.pkl", root)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sensors": ["sonar"]}, "sensors may name camera, lidar, radar, got 'sonar'"),
        ({"object_classes": ["car", "bicylce"]}, "unknown class 'bicylce'.*did you mean 'bicycle'"),
        ({"object_classes": ["car", "car"]}, "names a class twice"),
        ({"modality": {"use_lidra": True}}, "unknown config key .*modality.use_lidra, did you mean 'use_lidar'"),
        ({"load_interval": 0}, "load_interval"),
    ],
)
def test_bad_settings(arguments: dict[str, Any], message: str, created: dict[str, Path], root: Path) -> None:
    with pytest.raises(ValueError, match=message):
        NuScenesDataset(str(created["train"]), str(root), **arguments)


# -- CBGS -----------------------------------------------------------------------------------------------------------


def test_balanced_indices_golden() -> None:
    # Golden: CRKD's wrapper with numpy seed 0.
    present = [{0}, {0}, {0, 1}, {0}, {2}, set()]
    assert balanced_indices(present, 3, np.random.RandomState(0)) == [0, 3, 2, 2, 4, 4]


def test_a_class_that_is_absent_is_left_out() -> None:
    present = [{0}, {0}, {0}, {2}]
    chosen = balanced_indices(present, 3, np.random.RandomState(0))
    assert len(chosen) == 4
    assert chosen.count(3) == 2


def test_cbgs_dataset(tmp_path: Path) -> None:
    inner = made_up([["car"]] * 9 + [["bus"]], tmp_path, Draw())
    dataset = CBGSDataset(inner, seed=3)
    np.random.seed(1)
    assert CBGSDataset(inner, seed=3).indices == dataset.indices
    assert CBGSDataset(inner, seed=4).indices != dataset.indices
    assert CBGSDataset(inner).indices == CBGSDataset(inner, seed=inner.seed).indices
    assert len(dataset) == 10
    buses = [s for s in dataset if s.token == "t9"]
    assert len(buses) == 5
    assert len({s.meta["draw"] for s in buses}) == 5
    dataset.set_epoch(5)
    assert inner.epoch == 5
    with pytest.raises(ValueError, match="nothing to draw"):
        CBGSDataset(made_up([[], []], tmp_path))


def test_build_dataset(created: dict[str, Path], root: Path) -> None:
    block = {"type": "NuScenesDataset", "ann_file": str(created["train"]), "dataset_root": str(root)}
    block |= {"pipeline": ANNOTATIONS, "object_classes": ["pedestrian", "car"]}
    plain = build_dataset(block, seed=5, test_mode=True)
    assert (plain.seed, plain.test_mode) == (5, True)
    balanced = build_dataset({"type": "CBGSDataset", "dataset": block}, seed=5)
    assert isinstance(balanced.dataset, NuScenesDataset)
    assert balanced.dataset.seed == 5
    assert balanced.class_names == ("pedestrian", "car")
    assert balanced[0].token == plain.tokens[0]
    with pytest.raises(ValueError, match=r"unknown config key NuScenesDataset.anne_file"):
        build_dataset({"type": "NuScenesDataset", "anne_file": "x", "dataset_root": "y"})


def test_workers_give_the_samples_of_the_main_process(
    tmp_path: Path, collate: Callable[[list[Sample]], list[int]]
) -> None:
    dataset = made_up([["car"]] * 8, tmp_path, Draw())
    loader = torch.utils.data.DataLoader(dataset, batch_size=2, num_workers=2, collate_fn=collate)
    assert [d for batch in loader for d in batch] == [s.meta["draw"] for s in dataset]


@pytest.fixture
def collate() -> Callable[[list[Sample]], list[int]]:
    return lambda samples: [s.meta["draw"] for s in samples]
