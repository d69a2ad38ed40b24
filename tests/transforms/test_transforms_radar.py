"""The radar reader against the devkit's, the 45 channels, and the physics of real detections."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import frames
import numpy as np
import pytest

from mmdet3d.datasets.records import FrameRecord, SensorRecord
from mmdet3d.datasets.transforms import Compose, LoadRadarPointsMultiSweeps, read_radar_pcd


def radar_of(record: FrameRecord, root: Path, training: bool = True, seed: int = 0, **arguments: object) -> np.ndarray:
    pipeline = Compose([LoadRadarPointsMultiSweeps(**arguments)])
    return pipeline.load(frames.context(record, root, seed, training=training)).radar.numpy()


def with_radars(tmp_path: Path, **channels: list[SensorRecord]) -> FrameRecord:
    record = frames.small_frame(tmp_path)
    record.radars = channels
    return record


def test_reader_equals_the_devkit_on_real_files(shared: Path) -> None:
    from nuscenes.utils.data_classes import RadarPointCloud

    files = sorted((shared / "data" / "nuscenes_front_radar" / "radar").glob("*.pcd"))
    assert len(files) == 38
    for file in files:
        expected = RadarPointCloud.from_file(str(file), list(range(18)), list(range(8)), list(range(5))).points.T
        np.testing.assert_array_equal(read_radar_pcd(file), expected.astype(np.float32))


def test_default_filter_equals_the_devkit(shared: Path, tmp_path: Path) -> None:
    from nuscenes.utils.data_classes import RadarPointCloud

    RadarPointCloud.default_filters()
    folder = shared / "data" / "nuscenes_front_radar" / "radar"
    for name in ("1.pcd", "20.pcd"):
        record = with_radars(tmp_path, RADAR_FRONT=[SensorRecord(name, 0, np.eye(4))])
        kept = radar_of(record, folder, filtering="default")
        expected = RadarPointCloud.from_file(str(folder / name)).points.T
        np.testing.assert_allclose(kept[:, :6], expected[:, [0, 1, 2, 5, 8, 9]], rtol=1e-6)
        everything = radar_of(record, folder, use_dim=[0, 1, 2, 5, 8, 9, 18, 57])
        assert everything[:, 7].sum() == len(kept) < len(everything)


def test_real_detections_are_physically_consistent(shared: Path) -> None:
    """Standing objects: raw radial speed is the car's own motion, compensated it is zero."""
    folder = shared / "data" / "nuscenes_front_radar" / "radar"
    moving_frames = 0
    for i in range(1, 39):
        points = read_radar_pcd(folder / f"{i}.pcd")
        standing = points[(points[:, 3] == 1) & (points[:, 14] == 0)]
        assert len(standing) >= 10
        azimuth = np.arctan2(standing[:, 1], standing[:, 0])
        # The radar measures along the line of sight: raw = -ego speed * cos(azimuth) for whatever stands.
        raw = standing[:, 6] * np.cos(azimuth) + standing[:, 7] * np.sin(azimuth)
        compensated = np.hypot(standing[:, 8], standing[:, 9])
        assert np.median(compensated) < 0.2
        assert np.percentile(compensated, 90) < 0.4
        ego = -np.median(raw / np.cos(azimuth))
        if ego > 2:
            moving_frames += 1
            residual = np.abs(raw + ego * np.cos(azimuth))
            assert np.median(residual) < 0.1 * ego
            assert np.median(np.abs(raw)) > 5 * np.median(compensated)
    assert moving_frames >= 30


def test_golden_detection(tmp_path: Path) -> None:
    detection = dict(x=20, y=5, z=0.5, dyn_prop=6, id=7, rcs=12.5, vx=3, vy=1, vx_comp=2, vy_comp=-1)
    detection |= dict(
        is_quality_valid=1, ambig_state=3, x_rms=19, y_rms=19, invalid_state=4, pdh0=2, vx_rms=16, vy_rms=3
    )
    frames.write_radar(tmp_path / "old.pcd", [detection])
    frames.write_radar(tmp_path / "new.pcd", [])
    matrix = np.eye(4)
    matrix[:3] = [[0, -1, 0, 1], [1, 0, 0, 2], [0, 0, 1, 3]]
    sweeps = [SensorRecord("new.pcd", 200_000, matrix), SensorRecord("old.pcd", 100_000, matrix)]
    record = with_radars(tmp_path, RADAR_FRONT=sweeps)
    (point,) = radar_of(record, tmp_path)
    expected = np.zeros(45)
    expected[:7] = [-3.9, 22.2, 3.5, 12.5, 1, 2, 0.1]
    expected[[7 + 6, 15 + 3, 20 + 4, 38, 39]] = 1
    np.testing.assert_allclose(point, expected, atol=1e-6)
    leading = [0, 1, 2, 5, 8, 9, 18]
    (everything,) = radar_of(record, tmp_path, use_dim=[*leading, *range(58)])
    golden = [-3.9, 22.2, 3.5, 6, 7, 12.5, -1, 3, 1, 2, 1, 3, 19, 19, 4, 2, 16, 3, 0.1]
    np.testing.assert_allclose(everything[7 : 7 + 19], golden, atol=1e-6)
    assert everything[-1] == 0
    (still,) = radar_of(record, tmp_path, compensate_velocity=False)
    np.testing.assert_allclose(still[:3], [-4, 22, 3.5], atol=1e-6)
    (scaled,) = radar_of(record, tmp_path, normalize=True)
    np.testing.assert_allclose(scaled[3:6], [0.25, 0.01, 0.02], atol=1e-6)


def test_no_radar_gives_no_points(tmp_path: Path) -> None:
    assert radar_of(with_radars(tmp_path), tmp_path).shape == (0, 45)
    frames.write_radar(tmp_path / "nan.pcd", [{"x": np.nan}])
    record = with_radars(tmp_path, RADAR_FRONT=[SensorRecord("nan.pcd", 0, np.eye(4))])
    assert radar_of(record, tmp_path).shape == (0, 45)


def test_at_most_max_num_points(tmp_path: Path) -> None:
    frames.write_radar(tmp_path / "many.pcd", [{"x": i} for i in range(30)])
    record = with_radars(tmp_path, RADAR_FRONT=[SensorRecord("many.pcd", 0, np.eye(4))])
    draws = [radar_of(record, tmp_path, seed=s, max_num=12)[:, 0] for s in (0, 0, 1)]
    assert all(len(np.unique(d)) == 12 for d in draws)
    np.testing.assert_array_equal(draws[0], draws[1])
    assert not np.array_equal(draws[0], draws[2])
    fixed = [radar_of(record, tmp_path, training=False, seed=s, max_num=12)[:, 0] for s in (0, 1)]
    np.testing.assert_array_equal(fixed[0], fixed[1])
    assert len(np.unique(fixed[0])) == 12 and fixed[0].max() - fixed[0].min() > 25


def test_only_so_many_sweeps(tmp_path: Path) -> None:
    for i in range(4):
        frames.write_radar(tmp_path / f"{i}.pcd", [{"x": i}])
    sweeps = [SensorRecord(f"{i}.pcd", 10**6 - i * 80_000, np.eye(4)) for i in range(4)]
    record = with_radars(tmp_path, RADAR_FRONT=sweeps, RADAR_BACK_LEFT=sweeps[:1])
    points = radar_of(record, tmp_path, sweeps_num=3)
    np.testing.assert_array_equal(points[:, 0], [0, 1, 2, 0])
    np.testing.assert_allclose(points[:, 6], [0, 0.08, 0.16, 0], atol=1e-6)


@pytest.mark.parametrize(
    ("field", "value"), [("dyn_prop", 8), ("ambig_state", 5), ("invalid_state", 18), ("pdh0", 9), ("dyn_prop", -1)]
)
def test_states_out_of_range_name_file_and_field(tmp_path: Path, field: str, value: int) -> None:
    frames.write_radar(tmp_path / "odd.pcd", [{field: value}])
    record = with_radars(tmp_path, RADAR_FRONT=[SensorRecord("odd.pcd", 0, np.eye(4))])
    with pytest.raises(ValueError, match=rf"odd\.pcd: {field} is {value}"):
        radar_of(record, tmp_path)


def test_damaged_files(tmp_path: Path) -> None:
    whole = tmp_path / "whole.pcd"
    frames.write_radar(whole, [{"x": 1}, {"x": 2}])
    content = whole.read_bytes()
    broken = tmp_path / "broken.pcd"
    broken.write_bytes(content[:-30])
    with pytest.raises(ValueError, match=r"broken\.pcd announces 2 points but holds 1; it is truncated"):
        read_radar_pcd(broken)
    for damage in (b"", content[:100], b"no line" * 10_000):
        broken.write_bytes(damage)
        with pytest.raises(ValueError, match=r"broken\.pcd is no \.pcd, or is cut off in its header"):
            read_radar_pcd(broken)
    with pytest.raises(FileNotFoundError, match=r"absent\.pcd does not exist; check dataset_root"):
        read_radar_pcd(tmp_path / "absent.pcd")


def as_text(content: bytes) -> bytes:
    *header, body = content.split(b"\n", 11)
    rows = np.frombuffer(body, frames.RADAR_DTYPE, count=2).tolist()
    lines = [" ".join(map(str, row)).encode() for row in rows]
    return b"\n".join(header).replace(b"DATA binary", b"DATA ascii") + b"\n" + b"\n".join(lines) + b"\n"


def reordered(content: bytes) -> bytes:
    """Doubles in the opposite order, with a field of three numbers and two of padding between."""
    rows = np.frombuffer(content.split(b"\n", 11)[11], frames.RADAR_DTYPE, count=2)
    names = frames.RADAR_FIELDS[::-1]
    columns = [("a", "<f4", (3,)), ("b", "<u2"), *((name, "<f8") for name in names), ("c", "<u1", (5,))]
    table = np.zeros(2, dtype=np.dtype(columns))
    for name in names:
        table[name] = rows[name]
    words = {"FIELDS": ["normal", "_", *names, "_"], "SIZE": ["4", "2", *["8"] * 18, "1"]}
    words |= {"TYPE": ["F", "U", *["F"] * 18, "U"], "COUNT": ["3", "1", *["1"] * 18, "5"], "POINTS": ["2"]}
    header = "".join(f"{key} {' '.join(value)}\n" for key, value in words.items())
    return b"# another writer\nVERSION .7\n" + header.encode() + b"DATA binary\n" + table.tobytes()


@pytest.mark.parametrize(
    "written",
    [
        as_text,
        reordered,
        lambda content: b"# made by a tool\n\n" + content,
        lambda content: content.replace(b"\n", b"\r\n", 11),
    ],
)
def test_files_of_other_writers(tmp_path: Path, written: Callable[[bytes], bytes]) -> None:
    file = tmp_path / "a.pcd"
    frames.write_radar(file, [{"x": 1.5, "dyn_prop": 3, "id": 300, "vx_comp": -2.25}, {"y": 7, "pdh0": 1}])
    expected = read_radar_pcd(file)
    file.write_bytes(written(file.read_bytes()))
    np.testing.assert_array_equal(read_radar_pcd(file), expected)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"ambig_state", b"quality", r"has no ambig_state \(its fields: x, .*quality.*\).*write all of them"),
        (b"DATA binary", b"DATA binary_compressed", "its compressed part is cut off or damaged"),
        (b"POINTS 2", b"POINTS two", "does not say how many POINTS"),
        (b"SIZE 4 4", b"SIZE 4", "FIELDS, SIZE, TYPE and COUNT of its header do not fit"),
        (b"SIZE 4 4", b"SIZE 4 5", "a TYPE or SIZE that there is not"),
        (b"DATA binary", b"DATA ascii", "announces 2 points of 18 numbers but holds"),
    ],
)
def test_files_that_cannot_be_read_say_why(tmp_path: Path, old: bytes, new: bytes, message: str) -> None:
    file = tmp_path / "a.pcd"
    frames.write_radar(file, [{"x": 1}, {"x": 2}])
    file.write_bytes(file.read_bytes().replace(old, new))
    with pytest.raises(ValueError, match=message) as error:
        read_radar_pcd(file)
    assert "fetch" not in str(error.value)


def test_arguments_are_checked() -> None:
    with pytest.raises(ValueError, match="use_dim of the radar loader must start with"):
        LoadRadarPointsMultiSweeps(use_dim=[0, 1, 2, 3])
    with pytest.raises(ValueError, match="filtering: 'all' is unknown"):
        LoadRadarPointsMultiSweeps(filtering="all")
