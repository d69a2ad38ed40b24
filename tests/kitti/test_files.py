"""KITTI files: what is read and written, and what is said about files that are not as they should be."""

from __future__ import annotations

import itertools
import tarfile
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kitti_rules import frame, row
from PIL import Image

from mmdet3d.datasets.kitti.files import (
    SPLITS,
    read_calibration,
    read_depth,
    read_ids,
    read_scan,
    split_ids,
    write_calibration,
    write_depth,
    write_points,
)
from mmdet3d.datasets.kitti.labels import (
    parse_objects,
    read_labels,
    read_results,
    write_labels,
    write_results,
    zip_results,
)
from mmdet3d.evaluation.kitti_objects import TYPES, Objects
from mmdet3d.structures.camera_boxes import CAMERA_TO_LEVEL, boxes_from_kitti

IDS = [f"{k:06d}" for k in range(10)]


@pytest.fixture(scope="session")
def training(shared: Path) -> Path:
    return shared / "data" / "kitti" / "training"


def assert_same(first: Objects, second: Objects) -> None:
    assert first.names.tolist() == second.names.tolist()
    np.testing.assert_array_equal(first.table(), second.table())


# -- labels and results ---------------------------------------------------------------------------------------------


def test_columns_of_a_real_label(training: Path) -> None:
    objects = read_labels(training / "label_2" / "000001.txt")
    assert objects.names.tolist() == ["Truck", "Car", "Cyclist", *["DontCare"] * 4]
    assert objects.occluded[:3].tolist() == [0, 0, 3]
    assert objects.alpha[2] == -1.65
    assert objects.boxes2d[1].tolist() == [387.63, 181.54, 423.81, 203.12]
    assert objects.sizes[0].tolist() == [2.85, 2.63, 12.34]
    assert objects.locations[0].tolist() == [0.47, 1.49, 69.44]
    assert objects.rotation_y[1] == 1.57
    assert objects.scores.tolist() == [-1] * 7


def test_all_published_labels(shared: Path) -> None:
    counts: Counter[str] = Counter()
    with zipfile.ZipFile(shared / "data" / "kitti_all" / "label_2.zip") as archive:
        names = [n for n in archive.namelist() if n.endswith(".txt")]
        for name in names:
            counts.update(parse_objects(archive.read(name).decode(), name).names.tolist())
    assert len(names) == 7481
    assert (counts["Car"], counts["Pedestrian"], counts["Cyclist"]) == (28742, 4487, 1627)
    assert set(counts) == set(TYPES)


@pytest.mark.parametrize("index", IDS)
def test_labels_survive_writing(training: Path, tmp_path: Path, index: str) -> None:
    source = training / "label_2" / f"{index}.txt"
    write_labels(tmp_path / "out.txt", read_labels(source))
    assert_same(read_labels(tmp_path / "out.txt"), read_labels(source))


def test_format_of_a_result_line(tmp_path: Path) -> None:
    detection = row(alpha=-1.234, locations=[-0.5, 1.676, 20], scores=0.98765, truncated=0.4, occluded=2)
    write_results(tmp_path / "out.txt", frame(detection))
    expected = "Car 0.0 0 -1.23 600.00 150.00 700.00 210.00 1.50 1.60 4.00 -0.50 1.68 20.00 0.40 0.99\n"
    assert (tmp_path / "out.txt").read_text() == expected
    write_results(tmp_path / "out.txt", frame(detection), score_decimals=4)
    assert (tmp_path / "out.txt").read_text().split()[-1] == "0.9877"


def test_a_frame_without_detections_is_an_empty_file(tmp_path: Path) -> None:
    write_results(tmp_path / "new" / "000000.txt", Objects.empty())
    assert (tmp_path / "new" / "000000.txt").read_bytes() == b""
    assert len(read_results(tmp_path / "new" / "000000.txt")) == 0


number = st.floats(-999, 999).map(lambda v: round(v, 2) + 0.0)


@settings(deadline=None, max_examples=40)
@given(rows=st.lists(st.tuples(st.sampled_from(TYPES), st.lists(number, min_size=13, max_size=13)), max_size=4))
def test_results_survive_writing(tmp_path_factory: pytest.TempPathFactory, rows: list) -> None:
    path = tmp_path_factory.getbasetemp() / "results.txt"
    table = np.array([[0, 0, *values] for _, values in rows]).reshape(-1, 15)
    objects = Objects.from_table([name for name, _ in rows], table)
    write_results(path, objects)
    assert_same(read_results(path), objects)


LABEL = "Car 0.00 0 1.85 387.63 181.54 423.81 203.12 1.67 1.87 3.69 -16.53 2.39 58.49 1.57"


def test_blank_lines_case_and_scores() -> None:
    objects = parse_objects(f"\n{LABEL.lower()}\r\n\n{LABEL} 0.25\n", "here")
    assert objects.names.tolist() == ["Car", "Car"]
    assert objects.scores.tolist() == [-1, 0.25]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (LABEL + " 1 2", r"here, line 2: expected 15 or 16 columns, found 17$"),
        ("Car", r"here, line 2: expected 15 or 16 columns, found 1$"),
        (LABEL.replace("Car", "Pedestrain"), r"line 2: unknown class 'Pedestrain', did you mean 'Pedestrian'\?"),
        (LABEL.replace("1.85", "inf"), r"line 2: column 4 is inf, not a finite number"),
        (LABEL.replace("3.69", "3,69"), r"line 2: not a number: '3,69'"),
    ],
)
def test_malformed_lines(line: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_objects(f"{LABEL}\n{line}\n", "here")


def test_results_need_scores() -> None:
    with pytest.raises(ValueError, match=r"expected 16 columns \(a result ends with a score\), found 15"):
        parse_objects(LABEL, "here", scored=True)


def test_files_that_are_no_text(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"label file .*absent.txt is missing"):
        read_labels(tmp_path / "absent.txt")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"binary.txt holds bytes that are not ASCII"):
        read_results(tmp_path / "binary.txt")
    with pytest.raises(ValueError, match="is a folder"):
        read_labels(tmp_path)


def test_nothing_malformed_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"object 1 \(Car\) has a number that is not finite"):
        write_results(tmp_path / "out.txt", frame(row(), row(scores=float("nan"))))
    with pytest.raises(ValueError, match="unknown class 'car', did you mean 'Car'"):
        write_labels(tmp_path / "out.txt", frame(row("car")))
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match=r"boxes2d must have shape \(1, 4\), got \(1, 3\)"):
        frame(row(boxes2d=[1, 2, 3]))


def test_archive_for_upload(tmp_path: Path) -> None:
    for k in (1, 0):
        write_results(tmp_path / "data" / f"{k:06d}.txt", frame(row()) if k else Objects.empty())
    (tmp_path / "data" / "notes.txt").write_text("not for upload")
    zip_results(tmp_path / "data", ["000001", "000000"], tmp_path / "a.zip")
    zip_results(tmp_path / "data", ["000000", "000001"], tmp_path / "b.zip")
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert archive.namelist() == ["000000.txt", "000001.txt"]
        assert archive.read("000001.txt") == (tmp_path / "data" / "000001.txt").read_bytes()
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    with pytest.raises(FileNotFoundError, match=r"1 of 2 files are missing in .*: 000007.txt$"):
        zip_results(tmp_path / "data", ["000000", "000007"], tmp_path / "c.zip")


# -- calibration ----------------------------------------------------------------------------------------------------


def test_a_real_calibration(training: Path) -> None:
    calibration = read_calibration(training / "calib" / "000000.txt")
    assert calibration.p2[0].tolist() == [707.0493, 0, 604.0814, 45.75831]
    assert calibration.p0[0, 3] == 0
    assert calibration.p1[0, 3] == -379.7842
    assert calibration.p3[0, 3] == -334.1081
    assert calibration.rectification[1, 2] == -4.037671e-3
    assert calibration.velo2camera[2, 3] == -0.3321029
    assert calibration.imu2velo[0, 3] == -0.8086759
    np.testing.assert_allclose(calibration.lidar2rect[:3, :3] @ calibration.lidar2rect[:3, :3].T, np.eye(3), atol=1e-6)


@pytest.mark.parametrize("index", IDS)
def test_calibrations_survive_writing(training: Path, tmp_path: Path, index: str) -> None:
    source = training / "calib" / f"{index}.txt"
    write_calibration(tmp_path / "out.txt", read_calibration(source))
    assert (tmp_path / "out.txt").read_text().split() == source.read_text().split()


def test_published_calibrations(shared: Path, tmp_path: Path) -> None:
    with tarfile.open(shared / "data" / "kitti_all" / "calib_training_testing.tar.xz", "r|xz") as archive:
        for member in itertools.islice((m for m in archive if m.isfile()), 300):
            (tmp_path / "calib.txt").write_bytes(archive.extractfile(member).read())
            assert read_calibration(tmp_path / "calib.txt").p2[0, 0] > 700


P2, R0 = "P2: " + "1 " * 12, "R0_rect: " + "1 " * 9
VELO = "Tr_velo_to_cam: " + "1 " * 12


def test_calibration_is_read_by_key(tmp_path: Path) -> None:
    (tmp_path / "calib.txt").write_text("\n".join([VELO, "", "other: a b", R0, P2]))
    calibration = read_calibration(tmp_path / "calib.txt")
    assert calibration.velo2camera.tolist() == [*np.ones((3, 4)).tolist(), [0, 0, 0, 1]]
    assert calibration.rectification[:, 3].tolist() == [0, 0, 0, 1]
    assert calibration.p0 is None
    assert calibration.imu2velo is None
    write_calibration(tmp_path / "again.txt", calibration)
    assert [line.split(":")[0] for line in (tmp_path / "again.txt").read_text().splitlines()] == [
        "P2",
        "R0_rect",
        "Tr_velo_to_cam",
    ]


def test_a_camera_alone_has_a_calibration(tmp_path: Path) -> None:
    (tmp_path / "calib.txt").write_text(P2)
    calibration = read_calibration(tmp_path / "calib.txt")
    assert not calibration.has_lidar
    with pytest.raises(ValueError, match="P2 alone does not say where the LiDAR is; add R0_rect and Tr_velo_to_cam"):
        _ = calibration.lidar2rect
    write_calibration(tmp_path / "again.txt", calibration)
    assert (tmp_path / "again.txt").read_text().startswith("P2: 1.0")
    assert len((tmp_path / "again.txt").read_text().splitlines()) == 1


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([R0, VELO], r"calib.txt has no P2$"),
        ([P2, VELO], r"calib.txt has no R0_rect$"),
        ([P2, R0, VELO + "1"], r"calib.txt, line 3: Tr_velo_to_cam needs 12 numbers, found 13$"),
        ([P2.replace("1 ", "nan ", 1), R0, VELO], r"line 1: P2 holds a number that is not finite"),
        ([P2, R0.replace("1 ", "x ", 1), VELO], r"line 2: R0_rect holds 'x', which is not a number"),
        ([P2, P2, R0, VELO], r"line 2: P2 is given twice"),
        ([P2, "R0_rect 1 2 3"], r"line 2: expected 'NAME: values', found 'R0_rect 1 2 3'"),
    ],
)
def test_malformed_calibrations(tmp_path: Path, lines: list[str], message: str) -> None:
    (tmp_path / "calib.txt").write_text("\n".join(lines))
    with pytest.raises(ValueError, match=message):
        read_calibration(tmp_path / "calib.txt")


# -- splits ---------------------------------------------------------------------------------------------------------


def test_splits() -> None:
    ids = {split: split_ids(split) for split in SPLITS}
    assert {split: len(v) for split, v in ids.items()} == {"train": 3712, "val": 3769, "trainval": 7481, "test": 7518}
    assert sorted(ids["train"] + ids["val"]) == ids["trainval"]
    assert ids["train"][:3] + ids["train"][-1:] == ["000000", "000003", "000007", "007479"]
    assert ids["val"][:3] + ids["val"][-1:] == ["000001", "000002", "000004", "007480"]
    assert ids["test"][-1] == "007517"
    with pytest.raises(ValueError, match="no split 'vall', did you mean 'val'"):
        split_ids("vall")


def test_splits_are_the_published_ones(shared: Path) -> None:
    for split in SPLITS:
        assert read_ids(shared / "data" / "kitti" / "ImageSets" / f"{split}.txt") == split_ids(split)


def test_lists_of_ids(tmp_path: Path) -> None:
    (tmp_path / "ids.txt").write_text("000004\n\n7\n")
    assert read_ids(tmp_path / "ids.txt") == ["000004", "000007"]
    (tmp_path / "ids.txt").write_text("n008-2018_7\n1632.5_obstacle\n")
    assert read_ids(tmp_path / "ids.txt") == ["n008-2018_7", "1632.5_obstacle"]
    for text, message in [
        ("000001\n../1\n", "line 2: '../1' is no frame id"),
        ("000001.png\n", "line 1: '000001.png' is no frame id, which is the name of the frame's files without folder"),
        ("7\n000007\n", "line 2: frame 000007 is already in line 1"),
        ("\n", "names no frame"),
    ]:
        (tmp_path / "ids.txt").write_text(text)
        with pytest.raises(ValueError, match=message):
            read_ids(tmp_path / "ids.txt")
    with pytest.raises(FileNotFoundError, match=r"list of frame ids .*absent.txt is missing"):
        read_ids(tmp_path / "absent.txt")


# -- LiDAR and depth ------------------------------------------------------------------------------------------------


def test_points(training: Path, tmp_path: Path) -> None:
    points = read_scan(training / "velodyne" / "000000.bin")
    assert points.dtype == np.float32
    assert points.shape[1] == 4
    assert len(points) > 100_000
    write_points(tmp_path / "points.bin", points)
    assert (tmp_path / "points.bin").read_bytes() == (training / "velodyne" / "000000.bin").read_bytes()
    points[5, 1] = np.nan
    write_points(tmp_path / "points.bin", points)
    with pytest.raises(ValueError, match=r"points.bin: point 5 is not finite"):
        read_scan(tmp_path / "points.bin")
    (tmp_path / "points.bin").write_bytes(b"\0" * 20)
    with pytest.raises(ValueError, match="20 bytes are no multiple of 16"):
        read_scan(tmp_path / "points.bin")
    with pytest.raises(ValueError, match=r"points must have shape \(N, 4\), got \(3, 5\)"):
        write_points(tmp_path / "points.bin", np.zeros((3, 5)))


def test_a_real_depth_map_agrees_with_the_lidar(training: Path) -> None:
    """Points projected with the calibration meet their depth in the map."""
    calibration = read_calibration(training / "calib" / "000000.txt")
    points = read_scan(training / "velodyne" / "000000.bin")
    rect = np.column_stack([points[:, :3], np.ones(len(points))]) @ calibration.lidar2rect.T
    rect = rect[(rect[:, 2] > 2) & (rect[:, 2] < 60)]
    u, v, w = (rect @ calibration.p2.T).T
    depth = read_depth(training / "depth_dense" / "000000.png", (370, 1224))
    column, line = np.floor(u / w).astype(int), np.floor(v / w).astype(int)
    inside = (column >= 0) & (column < 1224) & (line >= 0) & (line < 370)
    error = np.abs(depth[line[inside], column[inside]] / rect[inside, 2] - 1)
    assert inside.sum() > 10_000
    assert np.median(error) < 0.025


def test_depth_units_and_padding(tmp_path: Path) -> None:
    depth = np.arange(6, dtype=np.float64).reshape(2, 3) * 10.5
    write_depth(tmp_path / "depth.png", depth)
    with Image.open(tmp_path / "depth.png") as image:
        assert np.array(image).tolist() == (depth * 256).tolist()
    np.testing.assert_array_equal(read_depth(tmp_path / "depth.png"), depth)
    padded = read_depth(tmp_path / "depth.png", (4, 6))
    assert padded.dtype == np.float32
    rows = [[0, 0, 10.5, 21, 21, 21]] * 3 + [[31.5, 31.5, 42, 52.5, 52.5, 52.5]]
    assert padded.tolist() == rows
    with pytest.raises(ValueError, match=r"the depth map \(2, 3\) is larger than the image \(2, 2\)"):
        read_depth(tmp_path / "depth.png", (2, 2))


def test_depth_that_is_none(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((2, 3), dtype=np.uint8)).save(tmp_path / "grey.png")
    with pytest.raises(ValueError, match="must be a grey PNG of 16 bit"):
        read_depth(tmp_path / "grey.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "grey.png").read_bytes()[:40])
    with pytest.raises(ValueError, match=r"cut.png is no readable PNG"):
        read_depth(tmp_path / "cut.png")
    with pytest.raises(FileNotFoundError, match=r"depth map .*absent.png is missing"):
        read_depth(tmp_path / "absent.png")
    for wrong in (-1.0, 256.0, np.nan):
        with pytest.raises(ValueError, match=r"between 0 and 255.996 m"):
            write_depth(tmp_path / "depth.png", np.full((1, 1), wrong))


# -- boxes ----------------------------------------------------------------------------------------------------------


def test_labelled_cars_hold_lidar_points(training: Path) -> None:
    """Boxes of the labels, taken to the LiDAR, hold points where the label says the object is in sight."""
    labels = read_labels(training / "label_2" / "000008.txt")
    labels = labels[(labels.names == "Car") & (labels.occluded <= 1) & (labels.locations[:, 2] < 20)]
    assert len(labels) > 2
    calibration = read_calibration(training / "calib" / "000008.txt")
    rows = np.column_stack([labels.sizes, labels.locations, labels.rotation_y])
    rect2lidar = torch.from_numpy(np.linalg.inv(calibration.lidar2rect))
    boxes = boxes_from_kitti(torch.from_numpy(rows)).transform(rect2lidar @ CAMERA_TO_LEVEL.inverse())
    points = torch.from_numpy(read_scan(training / "velodyne" / "000008.bin")).double()
    assert (boxes.contains(points).sum(1) > 100).all()
