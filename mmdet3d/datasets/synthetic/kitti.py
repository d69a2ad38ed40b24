"""The procedural world as one forward camera sees it, in the layout of the KITTI object benchmark."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from mmdet3d.datasets.kitti.files import KittiCalibration, write_calibration, write_depth, write_points
from mmdet3d.datasets.kitti.labels import write_labels
from mmdet3d.datasets.kitti.results import image_boxes, project_boxes
from mmdet3d.datasets.processes import in_processes
from mmdet3d.datasets.synthetic import camera, lidar
from mmdet3d.datasets.synthetic.generate import claim
from mmdet3d.datasets.synthetic.geometry import invert
from mmdet3d.datasets.synthetic.settings import WorldSettings
from mmdet3d.datasets.synthetic.world import Actor, Population, World, build_world
from mmdet3d.evaluation.kitti_objects import DONT_CARE, NO_ORIENTATION, Objects
from mmdet3d.io.files import atomic_write
from mmdet3d.progress import progress_bar
from mmdet3d.structures import Boxes3D
from mmdet3d.structures.camera_boxes import CAMERA_TO_LEVEL, boxes_to_kitti

__all__ = ["STREET", "KittiSettings", "generate_kitti", "rig"]

_GENERATION = 1  # raised whenever the same settings give another world
_FRAMES_PER_SCENE = 4
_INTERVAL = 1.0  # seconds between the frames of a scene

# The real car: 1242 x 375 pixels, and metres forward, left, up of the point on the road below the car's origin.
_WIDTH, _HEIGHT = 1242, 375
_FOCAL, _CENTER = 721.5377, (609.5593, 172.854)
_CAMERA, _LIDAR = (1.70, 0.0, 1.65), (1.43, 0.0, 1.73)
_BASELINE = 0.06  # metres by which the colour camera lies left of the reference camera

# Mostly cars and people, as in KITTI, closer together than in nuScenes, because the camera's view is narrow.
STREET = Population(
    traffic={"car": 0.76, "truck": 0.08, "bus": 0.06, "motorcycle": 0.1},
    parked={"car": 0.82, "truck": 0.08, "construction_vehicle": 0.04, "motorcycle": 0.06},
    kerb={"traffic_cone": 0.1, "barrier": 0.06, "bicycle": 0.14, "pedestrian": 0.7},
    yard={"car": 0.6, "truck": 0.14, "trailer": 0.12, "bus": 0.06, "construction_vehicle": 0.08},
    gap=0.45,
)
# KITTI's name of a class; what is not here has none and is not labelled.
_NAMES = {
    "car": "Car",
    "truck": "Truck",
    "construction_vehicle": "Truck",
    "bus": "Misc",
    "trailer": "Misc",
    "pedestrian": "Pedestrian",
}
_RIDDEN = {"bicycle": "Cyclist", "motorcycle": "Misc"}
_LABELLED = 50.0  # metres; beyond, objects are in regions that do not count
_MIN_PIXELS = 12  # that show an object
_OCCLUSION = (0.75, 0.4, 0.1)  # visible share down to which an object is occluded 0, 1, 2


@dataclass(frozen=True)
class KittiSettings:
    """Parameters of a world; equal settings give equal bytes.

    Args:
        frames: labelled frames (folder `training`), in scenes of four, one second apart.
        test_frames: frames without labels (folder `testing`).
        seed: of everything random.
        image_size: width and height, pixels. The field of view is KITTI's; heights in pixels, by which the benchmark
            tells difficulties apart, shrink with the image.
        difficulty, reach: see `WorldSettings`.
        val_fraction: share of the labelled scenes in the split `val`.

    Raises:
        ValueError: a value outside its range.
    """

    frames: int = 400
    test_frames: int = 20
    seed: int = 0
    image_size: tuple[int, int] = (640, 192)
    difficulty: float = 1.0
    reach: float = 45.0
    val_fraction: float = 0.25

    def __post_init__(self) -> None:
        if self.frames < 1 or self.test_frames < 0:
            raise ValueError(f"frames must be at least 1 and test_frames 0, got {self.frames} and {self.test_frames}")
        _ = self.world  # checks the rest

    @property
    def scenes(self) -> int:
        """Number of labelled scenes; those of the testing folder follow."""
        return -(-self.frames // _FRAMES_PER_SCENE)

    @property
    def world(self) -> WorldSettings:
        return WorldSettings(
            scenes=self.scenes,
            seed=self.seed,
            image_size=self.image_size,
            difficulty=self.difficulty,
            reach=self.reach,
            val_fraction=self.val_fraction,
        )

    def splits(self) -> dict[str, list[str]]:
        """Ids of the frames of train, val, trainval and test; frames of one scene are in one split."""
        numbers = list(self.world.split().values())
        train, val = ([k for i in part for k in self.frames_of(i)] for part in numbers)
        test = [k for i in range(self.scenes, self.scenes + self.test_scenes) for k in self.frames_of(i)]
        splits = {"train": train, "val": val, "trainval": sorted(train + val), "test": test}
        return {name: [f"{k:06d}" for k in ids] for name, ids in splits.items()}

    @property
    def test_scenes(self) -> int:
        return -(-self.test_frames // _FRAMES_PER_SCENE)

    def frames_of(self, scene: int) -> range:
        """Numbers of a scene's frames in their folder; the last scene of a folder may have fewer."""
        first, count = (scene, self.frames) if scene < self.scenes else (scene - self.scenes, self.test_frames)
        return range(first * _FRAMES_PER_SCENE, min((first + 1) * _FRAMES_PER_SCENE, count))

    def to_dict(self) -> dict[str, Any]:
        """As written to the data set's `synthetic.json`."""
        return {"layout": "KITTI", "generation": _GENERATION, **asdict(self), "image_size": list(self.image_size)}


def rig(image_size: tuple[int, int]) -> tuple[KittiCalibration, np.ndarray]:
    """Calibration of all frames, and the pose of the colour camera on the car.

    Args:
        image_size: width and height, pixels.

    Returns:
        The calibration, and (4, 4) colour camera (x right, y down, z forward) to car (x forward, y left, z up).
    """
    width, height = image_size
    focal = _FOCAL * width / _WIDTH
    center = (_CENTER[0] * width / _WIDTH, _CENTER[1] * height / _HEIGHT)
    p2 = np.array([[focal, 0, center[0], focal * _BASELINE], [0, focal, center[1], 0], [0, 0, 1, 0]])
    to_car = CAMERA_TO_LEVEL.numpy().copy()
    to_car[:3, 3] = _CAMERA
    velo2car = np.eye(4)
    velo2car[:3, 3] = _LIDAR
    camera2car = to_car.copy()
    camera2car[1, 3] += _BASELINE
    return KittiCalibration(p2=p2, rectification=np.eye(4), velo2camera=invert(to_car) @ velo2car), camera2car


def generate_kitti(
    out_dir: str | Path, settings: KittiSettings | None = None, workers: int = 1, progress: bool = True
) -> Path:
    """Write the data set that `settings` describe, or what is still missing of it.

    `training` has image_2, calib, velodyne, label_2 and depth_dense (exact, 0 in the sky), `testing` the first three;
    `ImageSets` has the splits. The tree depends on the settings only.

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
    root, settings = Path(out_dir), settings or KittiSettings()
    claim(root, settings.to_dict())
    scenes = settings.scenes + settings.test_scenes
    missing = [
        i for i in range(scenes) if not all(_last(root, settings, i, k).is_file() for k in settings.frames_of(i))
    ]
    with progress_bar(
        total=scenes, initial=scenes - len(missing), desc="world", unit="scene", disable=not progress
    ) as bar:
        for _ in in_processes(partial(_record_scene, settings, root), missing, workers):
            bar.update()
    for name, ids in settings.splits().items():
        with atomic_write(root / "ImageSets" / f"{name}.txt") as file:
            file.writelines(f"{i}\n" for i in ids)
    return root


def _folder(root: Path, settings: KittiSettings, scene: int) -> Path:
    return root / ("training" if scene < settings.scenes else "testing")


def _last(root: Path, settings: KittiSettings, scene: int, frame: int) -> Path:
    """The file of a frame that is written last."""
    return _folder(root, settings, scene) / "calib" / f"{frame:06d}.txt"


def _record_scene(settings: KittiSettings, root: Path, scene: int) -> None:
    duration = (_FRAMES_PER_SCENE - 1) * _INTERVAL
    world = build_world(settings.seed, scene, duration, settings.world.sway, settings.reach, STREET)
    look = camera.draw_look(
        settings.world.camera_gain, settings.world.camera_noise, np.random.default_rng([settings.seed, scene, 1])
    )
    folder = _folder(root, settings, scene)
    for number, frame in enumerate(settings.frames_of(scene)):
        rng = np.random.default_rng([settings.seed, scene, 2, number])
        _record_frame(settings, world, look, number * _INTERVAL, rng, folder, f"{frame:06d}")


def _record_frame(
    settings: KittiSettings,
    world: World,
    look: camera.Look,
    t: float,
    rng: np.random.Generator,
    folder: Path,
    name: str,
) -> None:
    calibration, camera2car = rig(settings.image_size)
    car2global = world.ego2global(t)
    camera2global = car2global @ camera2car
    picture = camera.render(world, t, camera2global, calibration.p2[:, :3], settings.image_size, look, rng)
    with atomic_write(folder / "image_2" / f"{name}.png", "wb") as file:
        Image.fromarray(picture.image).save(file, format="PNG", compress_level=3)
    rect2global = camera2global.copy()
    rect2global[:3, 3] += _BASELINE * camera2global[:3, 0]
    lidar2global = rect2global @ calibration.lidar2rect
    points = lidar.measure(world, lidar.cast(world, t, lidar2global), lidar2global, settings.world.dropout, rng)
    points[:, 3] = np.minimum(points[:, 3] / 100, 0.99)
    write_points(folder / "velodyne" / f"{name}.bin", points[:, :4])
    if folder.name == "training":
        write_depth(folder / "depth_dense" / f"{name}.png", picture.depth)
        write_labels(folder / "label_2" / f"{name}.txt", _label(world, t, picture, rect2global, calibration.p2))
    write_calibration(folder / "calib" / f"{name}.txt", calibration)


# -- labels ---------------------------------------------------------------------------------------------------------


def _label(world: World, t: float, picture: camera.Picture, rect2global: np.ndarray, p2: np.ndarray) -> Objects:
    """What a KITTI annotator would write: nearer ones with box and difficulty, farther ones as regions to leave out."""
    names = np.array([_name(actor) for actor in world.actors])
    seen = np.flatnonzero((names != "") & (picture.visible >= _MIN_PIXELS))
    level = _boxes(world, t, seen, rect2global)
    rows = boxes_to_kitti(level).numpy()
    near = (rows[:, 5] > 0) & (rows[:, 5] < _LABELLED)
    labelled = _objects(names[seen][near], rows[near], picture, seen[near])
    labelled.truncated[:] = _truncation(
        level[torch.from_numpy(near)], p2, (picture.image.shape[1], picture.image.shape[0])
    )
    far = np.full((int((~near).sum()), 7), -1.0)
    far[:, 3:6], far[:, 6] = -1000, -10
    ignored = _objects(np.full(len(far), DONT_CARE), far, picture, seen[~near])
    ignored.truncated[:], ignored.occluded[:], ignored.alpha[:] = -1, -1, NO_ORIENTATION
    return Objects.cat([labelled, ignored])


def _name(actor: Actor) -> str:
    if actor.sits:
        return "Person_sitting"
    if actor.ridden:
        return _RIDDEN[actor.name]
    return _NAMES.get(actor.name, "")


def _boxes(world: World, t: float, actors: np.ndarray, rect2global: np.ndarray) -> Boxes3D:
    """Boxes in the level frame of the rectified camera."""
    poses, sizes = world.poses(t)[actors], world.sizes[actors]
    none = np.zeros(len(actors))
    boxes = np.column_stack([poses[:, :2], sizes[:, 2] / 2, sizes, poses[:, 2], none, none])
    return Boxes3D(torch.from_numpy(boxes)).transform(CAMERA_TO_LEVEL @ torch.from_numpy(invert(rect2global)))


def _objects(names: np.ndarray, rows: np.ndarray, picture: camera.Picture, actors: np.ndarray) -> Objects:
    share = picture.visible[actors] / np.maximum(picture.extent[actors], 1)
    return Objects(
        names=names,
        truncated=np.zeros(len(names)),
        occluded=np.searchsorted(-np.array(_OCCLUSION), -share),
        alpha=(rows[:, 6] - np.arctan2(rows[:, 3], rows[:, 5]) + np.pi) % (2 * np.pi) - np.pi,
        boxes2d=picture.bounds[actors],
        sizes=rows[:, :3],
        locations=rows[:, 3:6],
        rotation_y=rows[:, 6],
        scores=np.full(len(names), -1.0),
    )


def _truncation(boxes: Boxes3D, p2: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(N,) share of the projected box that lies outside the image of `size` (width, height)."""
    return 1 - _area(image_boxes(boxes, p2, size)) / np.maximum(_area(project_boxes(boxes, p2)), 1e-6)


def _area(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
