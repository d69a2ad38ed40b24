"""Geometry, motion and the three kinds of sensors of the synthetic world, each against an independent calculation."""

from __future__ import annotations

import numpy as np
import pytest

from mmdet3d.datasets.synthetic import WorldSettings, camera, lidar, radar
from mmdet3d.datasets.synthetic.catalog import KINDS, sample_size
from mmdet3d.datasets.synthetic.geometry import face_planes, hexahedron, invert, quaternion, rotation, transform
from mmdet3d.datasets.synthetic.rig import NUSCENES
from mmdet3d.datasets.synthetic.road import Road
from mmdet3d.datasets.synthetic.world import Motion, World, build_world

TIME = 0.5


@pytest.fixture(scope="module")
def world() -> World:
    return build_world(seed=3, scene=1, duration=2.5, sway=0.006)


@pytest.fixture(scope="module")
def scan(world: World) -> tuple[lidar.Scan, np.ndarray]:
    pose = world.ego2global(TIME) @ NUSCENES.lidars[0].sensor2ego
    return lidar.cast(world, TIME, pose), pose


def test_rotation_is_roll_then_pitch_then_yaw():
    yaw, pitch, roll = 0.7, -0.2, 0.4

    def about(axis: int, angle: float) -> np.ndarray:
        out, (i, j) = np.eye(3), [(1, 2), (2, 0), (0, 1)][axis]
        out[i, i] = out[j, j] = np.cos(angle)
        out[i, j], out[j, i] = -np.sin(angle), np.sin(angle)
        return out

    expected = about(2, yaw) @ about(1, pitch) @ about(0, roll)
    np.testing.assert_allclose(rotation(quaternion(yaw, pitch, roll)), expected, atol=1e-12)


def test_planes_of_a_frustum_hold_its_corners_inside():
    corners = hexahedron((-1, 1, -0.5, 0.5), (-0.4, 0.7, -0.3, 0.3), (0, 2))[None]
    normals, offsets = face_planes(corners)
    heights = corners[0] @ normals[0].T - offsets[0]
    assert heights.max() < 1e-12
    assert ((np.abs(heights) < 1e-12).sum(0) == 4).all()


@pytest.mark.parametrize("curvature", [0.0, 1 / 150, -1 / 200])
def test_road_coordinates_return(curvature: float):
    road = Road(np.array([140.0, 130.0]), 2.1, curvature)
    s, d = np.meshgrid(np.linspace(-60, 80, 8), np.linspace(-25, 25, 7))
    xy, heading = road.to_global(s, d)
    back = road.from_global(xy)
    np.testing.assert_allclose(back, [s, d], atol=1e-8)
    ahead = road.to_global(s + 1e-4, np.zeros_like(d))[0] - road.to_global(s, np.zeros_like(d))[0]
    np.testing.assert_allclose(ahead / 1e-4, np.stack([np.cos(heading), np.sin(heading)], -1), atol=1e-5)


def test_braking_ends_at_standstill_and_starting_begins_there():
    braking, starting = Motion(2.0, -1.0), Motion(0.5, 0.5)
    assert braking.distance(5) == pytest.approx(2.0) and braking.velocity(5) == 0
    assert starting.velocity(-3) == 0 and starting.distance(-3) == pytest.approx(-0.25)
    assert braking.distance(1) == pytest.approx(1.5)


def test_nobody_collides():
    """Discs inscribed in the boxes, along their length, never overlap."""
    for scene in range(6):
        world = build_world(0, scene, 2.5, 0.0)
        keep = np.nonzero(world.labelled)[0]
        for t in (0.0, 2.5):
            pose, size = world.poses(t)[keep], world.sizes[keep]
            along = np.cos(pose[:, 2]), np.sin(pose[:, 2])
            centres, radii, owner = [], [], []
            for share in np.linspace(-1, 1, 7):
                reach = share * np.maximum(size[:, 0] - size[:, 1], 0) / 2
                centres.append(pose[:, :2] + reach[:, None] * np.stack(along, -1))
                radii.append(size[:, :2].min(1) / 2)
                owner.append(np.arange(len(keep)))
            centres, radii, owner = (np.concatenate(v) for v in (centres, radii, owner))
            gap = np.hypot(*(centres[:, None] - centres[None]).transpose(2, 0, 1)) - radii[:, None] - radii[None]
            close = np.argwhere((gap < -0.05) & (owner[:, None] < owner[None]))
            names = {(world.actors[keep[owner[i]]].name, world.actors[keep[owner[j]]].name) for i, j in close}
            assert not names, f"scene {scene} at {t} s: {names}"


@pytest.mark.parametrize("name", list(KINDS))
def test_sizes_follow_the_published_means(name: str):
    rng = np.random.default_rng(0)
    sizes = np.stack([sample_size(KINDS[name], rng) for _ in range(800)])
    np.testing.assert_allclose(sizes.mean(0), KINDS[name].size, rtol=0.03)
    assert (sizes.std(0) > 0.02 * sizes.mean(0)).all() and sizes.min() > 0.1


def test_every_class_and_attribute_occurs():
    actors = [a for scene in range(12) for a in build_world(0, scene, 2.5, 0.0).actors if a.name]
    assert {a.name for a in actors} == set(KINDS)
    attributes = {a.attribute(0.0) for a in actors}
    assert attributes == {
        "",
        "vehicle.moving",
        "vehicle.stopped",
        "vehicle.parked",
        "cycle.with_rider",
        "cycle.without_rider",
        "pedestrian.moving",
        "pedestrian.standing",
        "pedestrian.sitting_lying_down",
    }


# -- LiDAR -----------------------------------------------------------------------------------------------------------


def test_rays_hit_the_nearest_solid(world: World, scan: tuple[lidar.Scan, np.ndarray]):
    """Against a plain loop over all solids for a handful of rays."""
    found, pose = scan
    normals, offsets = face_planes(transform(invert(pose), world.solids(TIME)))
    rng = np.random.default_rng(0)
    rows, columns = rng.integers(8, lidar.BEAMS, 300), rng.integers(0, lidar.COLUMNS, 300)
    checked = 0
    for row, column in zip(rows, columns, strict=True):
        elevation = np.radians(-30.67 + row * 41.34 / 31)
        azimuth = np.pi - (column + 0.5) * 2 * np.pi / lidar.COLUMNS
        ray = np.array([np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)])
        best, best_solid = np.inf, None
        for solid in range(len(normals)):
            rate = normals[solid] @ ray
            enter = max((offsets[solid] / rate)[rate < 0])
            leave = min((offsets[solid] / rate)[rate > 0])
            if 0.5 < enter < leave and enter < min(best, lidar.MAX_RANGE):
                best, best_solid = enter, solid
        if found.solid[row, column] >= 0:
            assert best_solid is not None
            assert found.depth[row, column] == pytest.approx(best, abs=5e-3)
            checked += 1
        elif best_solid is not None:
            assert found.solid[row, column] == -1 and found.depth[row, column] < best + 1e-3
    assert checked > 30


def test_range_noise_and_dropout(world: World, scan: tuple[lidar.Scan, np.ndarray]):
    found, pose = scan
    points = lidar.measure(world, found, pose, 0.2, np.random.default_rng(1))
    assert points.dtype == np.float32 and points.shape[1] == 5
    distance = np.linalg.norm(points[:, :3].astype(float), axis=1)
    azimuth, ring = np.arctan2(points[:, 1], points[:, 0]), points[:, 4].astype(int)
    column = np.rint((np.pi - azimuth) / (2 * np.pi / lidar.COLUMNS) - 0.5).astype(int) % lidar.COLUMNS
    error = distance - found.depth[ring, column]
    assert abs(error.mean()) < 1e-3
    assert error.std() == pytest.approx(lidar.RANGE_NOISE, rel=0.05)
    near = found.depth < 12
    assert (found.depth[ring, column] < 12).sum() / near.sum() == pytest.approx(0.8, abs=0.03)
    assert points[:, 3].min() >= 0 and points[:, 3].max() <= 255
    assert set(ring) == set(range(lidar.BEAMS))
    firing = column * lidar.BEAMS + ring
    assert (np.diff(firing) > 0).all(), "points come in the order in which they are fired"


def test_ground_lies_at_zero(world: World, scan: tuple[lidar.Scan, np.ndarray]):
    found, pose = scan
    points = lidar.measure(world, found, pose, 0.0, np.random.default_rng(1))
    column = np.rint((np.pi - np.arctan2(points[:, 1], points[:, 0])) / (2 * np.pi / lidar.COLUMNS) - 0.5).astype(int)
    ground = found.solid[points[:, 4].astype(int), column % lidar.COLUMNS] == -1
    heights = transform(pose, points[ground, :3].astype(float))[:, 2]
    assert ground.sum() > 1000 and np.abs(heights).max() < 0.08


# -- cameras ---------------------------------------------------------------------------------------------------------


def _picture(world: World, index: int, noise: float = 0.0) -> tuple[camera.Picture, np.ndarray, np.ndarray]:
    mount, size = NUSCENES.cameras[index], (320, 180)
    pose, intrinsics = world.ego2global(TIME) @ mount.sensor2ego, mount.intrinsics(*size)
    look = camera.Look(np.array([0.3, 0.2, 0.933]), np.ones(3), noise)
    return camera.render(world, TIME, pose, intrinsics, size, look, np.random.default_rng(0)), pose, intrinsics


@pytest.mark.parametrize("index", [0, 3, 5])
def test_pixels_lie_in_the_projected_boxes(world: World, index: int):
    """Each pixel's ray must meet the box of the actor that is said to be there."""
    picture, pose, intrinsics = _picture(world, index)
    poses = world.poses(TIME)
    rows, columns = np.nonzero(picture.actor >= 0)
    keep = world.labelled[picture.actor[rows, columns]]
    rows, columns = rows[keep], columns[keep]
    actors = picture.actor[rows, columns]
    rays = np.stack([columns + 0.5, rows + 0.5, np.ones(len(rows))], -1) @ np.linalg.inv(intrinsics).T
    rays = rays @ pose[:3, :3].T
    c, s = np.cos(poses[actors, 2]), np.sin(poses[actors, 2])
    local = np.stack([c * rays[:, 0] + s * rays[:, 1], c * rays[:, 1] - s * rays[:, 0], rays[:, 2]], -1)
    offset = pose[:3, 3] - np.column_stack([poses[actors, :2], world.sizes[actors, 2] / 2])
    origin = np.stack([c * offset[:, 0] + s * offset[:, 1], c * offset[:, 1] - s * offset[:, 0], offset[:, 2]], -1)
    half = world.sizes[actors] / 2
    first, second = (-half - origin) / local, (half - origin) / local
    enter, leave = np.minimum(first, second).max(1), np.maximum(first, second).min(1)
    assert len(rows) > 200
    assert (enter < leave).all() and (enter > 0).all()


def test_cameras_and_lidar_see_the_same_depth_order(world: World, scan: tuple[lidar.Scan, np.ndarray]):
    """Where laser points fall into an image, both name the same actor, away from outlines."""
    found, lidar_pose = scan
    picture, pose, intrinsics = _picture(world, 3)
    points = lidar.measure(world, found, lidar_pose, 0.0, np.random.default_rng(0))
    column = np.rint((np.pi - np.arctan2(points[:, 1], points[:, 0])) / (2 * np.pi / lidar.COLUMNS) - 0.5).astype(int)
    solid = found.solid[points[:, 4].astype(int), column % lidar.COLUMNS]
    hit = np.where(solid >= 0, world.owner[np.maximum(solid, 0)], -1)
    seen = transform(invert(pose), transform(lidar_pose, points[:, :3].astype(float)))
    front = seen[:, 2] > 1
    pixel = seen[front] @ intrinsics.T
    u, v = (pixel[:, :2] / pixel[:, 2:]).astype(int).T
    inside = (u >= 1) & (u < 319) & (v >= 1) & (v < 179)
    named = picture.actor[v[inside], u[inside]]
    assert inside.sum() > 1000
    assert (named == hit[front][inside]).mean() > 0.93


def test_hidden_pixels_count_against_visibility(world: World):
    picture, *_ = _picture(world, 3)
    shown = world.labelled & (picture.extent > 0)
    assert (picture.visible[shown] <= picture.extent[shown]).all()
    assert (picture.visible[shown] < picture.extent[shown]).any()
    assert (picture.visible[shown] == picture.extent[shown]).any()


def test_pixel_noise_has_the_asked_size(world: World):
    clean, *_ = _picture(world, 0)
    noisy, *_ = _picture(world, 0, noise=4.0)
    middle = (clean.image > 30) & (clean.image < 225)
    error = noisy.image.astype(float) - clean.image
    assert error[middle].std() == pytest.approx(4.0, rel=0.1)
    assert (clean.actor == noisy.actor).all()


# -- radar -----------------------------------------------------------------------------------------------------------


def _sweep(world: World, index: int, noise: radar.RadarNoise, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    poses = np.stack([world.ego2global(TIME + dt) @ NUSCENES.radars[index].sensor2ego for dt in radar.STEPS])
    hits = np.ones(len(world.actors), int)
    return radar.observe(world, TIME, poses, hits, noise, np.random.default_rng(seed)), poses[1]


def test_compensated_velocity_is_the_targets_radial_velocity(world: World):
    """Without noise, returns inside a box carry that actor's velocity over ground along the ray; a few are clutter."""
    clean = radar.RadarNoise(azimuth=0, distance=0, doppler=0, miss=0, clutter=0)
    poses, velocities, errors, moving = world.poses(TIME), world.velocities(TIME), [], 0
    for index in range(len(NUSCENES.radars)):
        for seed in range(4):
            records, pose = _sweep(world, index, clean, seed)
            xy = np.stack([records["x"], records["y"]], -1).astype(float)
            across = records["vx_comp"] * xy[:, 1] - records["vy_comp"] * xy[:, 0]
            assert np.abs(across / np.hypot(*xy.T)).max() < 1e-5
            radial = (records["vx_comp"] * xy[:, 0] + records["vy_comp"] * xy[:, 1]) / np.hypot(*xy.T)
            where = transform(pose, np.column_stack([xy, np.zeros(len(xy))]))[:, :2]
            rays = (where - pose[:2, 3]) / np.linalg.norm(where - pose[:2, 3], axis=1, keepdims=True)
            for i in np.nonzero(world.labelled)[0]:
                c, s = np.cos(poses[i, 2]), np.sin(poses[i, 2])
                d, half = where - poses[i, :2], world.sizes[i, :2] / 2
                inside = (np.abs(d @ [c, s]) < half[0]) & (np.abs(d @ [-s, c]) < half[1])
                errors += list(np.abs(radial[inside] - rays[inside] @ velocities[i]))
                moving += inside.sum() * (np.abs(velocities[i]).max() > 1)
    assert len(errors) > 100 and moving > 10
    assert np.mean(np.array(errors) < 0.06) > 0.97


def test_raw_velocity_is_relative_to_the_radar(world: World):
    clean = radar.RadarNoise(azimuth=0, distance=0, doppler=0, miss=0, clutter=0)
    records, pose = _sweep(world, 0, clean)
    before, after = (world.ego2global(TIME + dt) @ NUSCENES.radars[0].sensor2ego for dt in (-0.01, 0.01))
    own = pose[:3, :3].T @ (after[:3, 3] - before[:3, 3]) / 0.02
    assert np.hypot(*own[:2]) > 1
    np.testing.assert_allclose(records["vx"], records["vx_comp"] - own[0], atol=0.126)
    np.testing.assert_allclose(records["vy"], records["vy_comp"] - own[1], atol=0.126)
    np.testing.assert_allclose(records["vx"] * 4, np.rint(records["vx"] * 4))


def test_azimuth_noise_misses_and_clutter(world: World):
    """Angular error grows as asked; misses thin the returns out; clutter adds its mean."""
    count = np.array([0.0, 0.0, 0.0])
    for seed in range(40):
        for k, (miss, clutter) in enumerate([(0, 0), (0.9, 0), (0, 20)]):
            noise = radar.RadarNoise(azimuth=0, distance=0, doppler=0, miss=miss, clutter=clutter)
            count[k] += len(_sweep(world, 0, noise, seed)[0]) / 40
    assert count[1] < count[0] and count[2] - count[0] == pytest.approx(20, abs=3)
    spread = []
    for azimuth in (0.0, 0.05):
        noise = radar.RadarNoise(azimuth=azimuth, distance=0, doppler=0, miss=0, clutter=0)
        records, _ = _sweep(world, 0, noise, 5)
        spread.append((np.arctan2(records["y"], records["x"]), np.hypot(records["x"], records["y"])))
    shared = np.isin(spread[1][1].round(3), spread[0][1].round(3))
    assert shared.mean() > 0.8, "distances stay, bearings move"
    order = [np.argmin(np.abs(spread[0][1] - r)) for r in spread[1][1][shared]]
    assert (spread[1][0][shared] - spread[0][0][order]).std() == pytest.approx(0.05, rel=0.4)


def test_radar_layout_is_43_bytes_and_readable(tmp_path, world: World):
    from nuscenes.utils.data_classes import RadarPointCloud

    records, _ = _sweep(world, 0, WorldSettings().radar_noise)
    assert radar.RECORD.itemsize == 43
    path = tmp_path / "sweep.pcd"
    path.write_bytes(radar.pcd_bytes(records))
    cloud = RadarPointCloud.from_file(str(path), list(range(18)), list(range(8)), list(range(5)))
    assert cloud.points.shape == (18, len(records))
    for row, name in enumerate(radar.RECORD.names):
        np.testing.assert_allclose(cloud.points[row], records[name], err_msg=name)


def test_settings_refuse_what_makes_no_sense():
    for wrong in ({"scenes": 0}, {"difficulty": -1.0}, {"image_size": (8, 8)}, {"val_fraction": 1.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            WorldSettings(**wrong)
    assert WorldSettings(scenes=1).split()["synthetic_val"] == []
    assert len(WorldSettings(scenes=10).split()["synthetic_val"]) == 2
