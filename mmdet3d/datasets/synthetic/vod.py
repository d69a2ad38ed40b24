"""The procedural world in the layout of View-of-Delft: one camera, one LiDAR and a 4-D radar that look ahead."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from mmdet3d.datasets.kitti.files import write_points
from mmdet3d.datasets.processes import in_processes
from mmdet3d.datasets.synthetic import camera, lidar
from mmdet3d.datasets.synthetic.generate import claim
from mmdet3d.datasets.synthetic.geometry import invert, matrix, quaternion, transform
from mmdet3d.datasets.synthetic.kitti import STREET
from mmdet3d.datasets.synthetic.radar import STEPS
from mmdet3d.datasets.synthetic.radar4d import observe_4d
from mmdet3d.datasets.synthetic.settings import WorldSettings
from mmdet3d.datasets.synthetic.world import Actor, World, build_world
from mmdet3d.datasets.vod.files import RADARS, VodCalibration
from mmdet3d.datasets.vod.labels import objects_of, write_objects
from mmdet3d.evaluation.kitti_objects import Objects
from mmdet3d.io.files import atomic_write
from mmdet3d.progress import progress_bar
from mmdet3d.structures import Boxes3D
from mmdet3d.structures.camera_boxes import CAMERA_TO_LEVEL

__all__ = ["VodSettings", "generate_vod", "rig"]

_GENERATION = 1  # raised whenever the same settings give another world
_FRAMES_PER_SCENE = 2
_INTERVAL = 0.1  # seconds between the frames of a scene
_SCENE_STEP = 10  # between the numbers with which two scenes begin
_SCANS = dict(zip(RADARS, (1, 3, 5), strict=True))
_SCAN_INTERVAL = 1 / 13  # seconds

# The real rig: pixels, and metres forward, left, up of the LiDAR.
_WIDTH, _HEIGHT = 1936, 1216
_FOCAL, _CENTER = 1495.468642, (961.272442, 624.89592)
_LIDAR = (0.9, 0.0, 1.9)  # on the car
_CAMERA, _RADAR = (0.964, 0.138, -0.351), (2.514, 0.061, -1.153)
_RISE = 6.81  # degrees by which the camera's axis rises against the plane of the LiDAR

_LABELLED = 50.0  # metres from the LiDAR
_MIN_PIXELS = 12  # that show an object
_OCCLUSION = (0.9, 0.2)  # visible share down to which an object is occluded 0, 1
# View-of-Delft's name of a class; what is not here is not labelled.
_NAMES = {
    "car": "Car",
    "truck": "truck",
    "bus": "vehicle_other",
    "trailer": "vehicle_other",
    "construction_vehicle": "vehicle_other",
    "pedestrian": "Pedestrian",
    "bicycle": "bicycle",
    "motorcycle": "motor",
}


@dataclass(frozen=True)
class VodSettings:
    """Parameters of a world; equal settings give equal bytes.

    Args:
        frames: labelled frames, in scenes of two, 0.1 s apart.
        seed: of everything random.
        image_size: width and height, pixels. The field of view is the real camera's; heights in pixels, by which
            objects count, shrink with the image.
        difficulty, reach: see `WorldSettings`.
        val_fraction: share of the scenes in the split `val`.

    Raises:
        ValueError: a value outside its range.
    """

    frames: int = 400
    seed: int = 0
    image_size: tuple[int, int] = (968, 608)
    difficulty: float = 1.0
    reach: float = 45.0
    val_fraction: float = 0.25

    def __post_init__(self) -> None:
        if self.frames < 1:
            raise ValueError(f"frames must be at least 1, got {self.frames}")
        _ = self.world  # checks the rest

    @property
    def world(self) -> WorldSettings:
        return WorldSettings(
            scenes=-(-self.frames // _FRAMES_PER_SCENE),
            seed=self.seed,
            image_size=self.image_size,
            difficulty=self.difficulty,
            reach=self.reach,
            val_fraction=self.val_fraction,
        )

    def frames_of(self, scene: int) -> list[str]:
        """Names of a scene's frames; consecutive numbers, and a gap before the next scene."""
        count = min(_FRAMES_PER_SCENE, self.frames - scene * _FRAMES_PER_SCENE)
        return [f"{scene * _SCENE_STEP + k:05d}" for k in range(count)]

    def splits(self) -> dict[str, list[str]]:
        """Frames of train and val; those of one scene are in one split."""
        train, val = self.world.split().values()
        return {name: [f for i in part for f in self.frames_of(i)] for name, part in (("train", train), ("val", val))}

    def to_dict(self) -> dict[str, Any]:
        """As written to the data set's `synthetic.json`."""
        return {"layout": "View-of-Delft", "generation": _GENERATION, **asdict(self), "image_size": [*self.image_size]}


def rig(image_size: tuple[int, int]) -> VodCalibration:
    """Calibration of all frames, of images of `image_size` (width, height)."""
    across, down = image_size[0] / _WIDTH, image_size[1] / _HEIGHT
    intrinsics = np.array([[_FOCAL * across, 0, _CENTER[0] * across], [0, _FOCAL * down, _CENTER[1] * down], [0, 0, 1]])
    # A turn about y is positive when the nose goes down.
    camera2lidar = matrix(quaternion(0, pitch=-np.radians(_RISE)), np.array(_CAMERA)) @ CAMERA_TO_LEVEL.numpy()
    radar2lidar = np.eye(4)
    radar2lidar[:3, 3] = _RADAR
    to_camera = invert(camera2lidar)
    return VodCalibration(intrinsics, to_camera, to_camera @ radar2lidar)


def generate_vod(
    out_dir: str | Path, settings: VodSettings | None = None, workers: int = 1, progress: bool = True
) -> Path:
    """Write the data set that `settings` describe, or what is still missing of it.

    `lidar/training` has image_2, calib, velodyne, label_2 and pose, the three radar folders calib and velodyne;
    `lidar/ImageSets` has the splits train and val. The tree depends on the settings only.

    Args:
        out_dir: dataset root.
        settings: the defaults if None.
        workers: processes.
        progress: show a progress bar.

    Returns:
        The dataset root.

    Raises:
        ValueError: the folder holds something else or a data set of other settings, or `workers` is less than one.
    """
    root, settings = Path(out_dir), settings or VodSettings()
    claim(root, settings.to_dict())
    scenes = range(settings.world.scenes)
    missing = [i for i in scenes if not all((_lidar(root, "pose", f, "json")).is_file() for f in settings.frames_of(i))]
    with progress_bar(
        total=len(scenes), initial=len(scenes) - len(missing), desc="world", unit="scene", disable=not progress
    ) as bar:
        for _ in in_processes(partial(_record_scene, settings, root), missing, workers):
            bar.update()
    for name, frames in settings.splits().items():
        with atomic_write(root / "lidar" / "ImageSets" / f"{name}.txt") as file:
            file.writelines(f"{f}\n" for f in frames)
    return root


def _lidar(root: Path, folder: str, frame: str, suffix: str) -> Path:
    return root / "lidar" / "training" / folder / f"{frame}.{suffix}"


def _record_scene(settings: VodSettings, root: Path, scene: int) -> None:
    frames = settings.frames_of(scene)
    duration = (len(frames) - 1) * _INTERVAL
    world = build_world(settings.seed, scene, duration, settings.world.sway, settings.reach, STREET)
    look = camera.draw_look(
        settings.world.camera_gain, settings.world.camera_noise, np.random.default_rng([settings.seed, scene, 1])
    )
    for number, frame in enumerate(frames):
        rng = np.random.default_rng([settings.seed, scene, 2, number])
        _record_frame(settings, world, look, number * _INTERVAL, rng, root, frame)


def _record_frame(
    settings: VodSettings, world: World, look: camera.Look, t: float, rng: np.random.Generator, root: Path, frame: str
) -> None:
    """All files of a frame, the pose last."""
    calibration = rig(settings.image_size)
    lidar2car = np.eye(4)
    lidar2car[:3, 3] = _LIDAR
    lidar2global = world.ego2global(t) @ lidar2car
    camera2global = lidar2global @ invert(calibration.lidar2camera)
    picture = camera.render(world, t, camera2global, calibration.intrinsics, settings.image_size, look, rng)
    with atomic_write(_lidar(root, "image_2", frame, "jpg"), "wb") as file:
        Image.fromarray(picture.image).save(file, format="JPEG", quality=90)
    scan = lidar.cast(world, t, lidar2global)
    points = lidar.measure(world, scan, lidar2global, settings.world.dropout, rng)
    write_points(_lidar(root, "velodyne", frame, "bin"), points[:, :4])
    _write_radar(settings, world, t, calibration, lidar2car, scan.hits, rng, root, frame)
    write_objects(
        _lidar(root, "label_2", frame, "txt"),
        _label(world, t, picture, lidar2global, calibration, settings.image_size),
    )
    _write_calibration(_lidar(root, "calib", frame, "txt"), calibration.intrinsics, calibration.lidar2camera)
    with atomic_write(_lidar(root, "pose", frame, "json")) as file:
        for name in ("odomToCamera", "mapToCamera", "UTMToCamera"):
            file.write(json.dumps({name: camera2global.ravel().tolist()}) + "\n")


def _write_radar(
    settings: VodSettings,
    world: World,
    t: float,
    calibration: VodCalibration,
    lidar2car: np.ndarray,
    hits: np.ndarray,
    rng: np.random.Generator,
    root: Path,
    frame: str,
) -> None:
    """The files of one, three and five scans, all in the radar frame of the newest."""
    radar2car = lidar2car @ invert(calibration.lidar2camera) @ calibration.radar2camera
    to_radar = invert(world.ego2global(t) @ radar2car)
    scans = []
    for index in range(max(_SCANS.values())):
        when = t - index * _SCAN_INTERVAL
        poses = np.stack([world.ego2global(when + step) @ radar2car for step in STEPS])
        seen = observe_4d(world, when, poses, hits, settings.world.radar_noise, rng)
        xyz = transform(to_radar @ poses[1], seen.xyz)
        age = np.full(len(xyz), -index)
        scans.append(np.column_stack([xyz, seen.rcs, seen.relative, seen.over_ground, age]).astype("<f4"))
    for folder, count in _SCANS.items():
        training = root / folder / "training"
        with atomic_write(training / "velodyne" / f"{frame}.bin", "wb") as file:
            file.write(np.concatenate(scans[:count]).tobytes())
        _write_calibration(training / "calib" / f"{frame}.txt", calibration.intrinsics, calibration.radar2camera)


def _write_calibration(path: Path, intrinsics: np.ndarray, sensor2camera: np.ndarray) -> None:
    """As in the real files: four equal cameras, nothing to rectify, and a last line without a value."""
    p2 = np.column_stack([intrinsics, np.zeros(3)])
    lines = {**dict.fromkeys(("P0", "P1", "P2", "P3"), p2), "R0_rect": np.eye(3), "Tr_velo_to_cam": sensor2camera[:3]}
    with atomic_write(path) as file:
        file.writelines(f"{name}: {' '.join(f'{v:.12g}' for v in value.flat)}\n" for name, value in lines.items())
        file.write("Tr_imu_to_velo:\n")


# -- labels ---------------------------------------------------------------------------------------------------------


def _label(
    world: World,
    t: float,
    picture: camera.Picture,
    lidar2global: np.ndarray,
    calibration: VodCalibration,
    size: tuple[int, int],
) -> Objects:
    """What an annotator would write of the objects that the camera sees, at most 50 m from the LiDAR."""
    names = np.array([_name(actor) for actor in world.actors])
    poses = world.poses(t)
    near = np.hypot(*(poses[:, :2] - lidar2global[:2, 3]).T) < _LABELLED
    seen = np.flatnonzero((names != "") & (picture.visible >= _MIN_PIXELS) & near)
    none = np.zeros(len(seen))
    sizes = world.sizes[seen]
    boxes = np.column_stack([poses[seen, :2], sizes[:, 2] / 2, sizes, poses[seen, 2], none, none])
    in_lidar = Boxes3D(torch.from_numpy(boxes)).transform(torch.from_numpy(invert(lidar2global)))
    objects = objects_of(in_lidar, names[seen].tolist(), np.ones(len(seen)), calibration, size)
    objects.truncated[:] = poses[seen, 3] > 0.2  # whether it moves
    share = picture.visible[seen] / np.maximum(picture.extent[seen], 1)
    objects.occluded[:] = np.searchsorted(-np.array(_OCCLUSION), -share)
    return objects


def _name(actor: Actor) -> str:
    """A ridden bicycle and its rider are one Cyclist."""
    return "Cyclist" if actor.ridden and actor.name == "bicycle" else _NAMES.get(actor.name, "")
