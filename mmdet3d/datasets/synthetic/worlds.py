"""The procedural world in each layout that data sets read: what a recipe's `data` describes, and the demo's scene."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from mmdet3d.blocks import ConfigKeyError, read_block
from mmdet3d.datasets.nuscenes.create import create_nuscenes
from mmdet3d.datasets.nuscenes.frames import FrameReader
from mmdet3d.datasets.nuscenes.infos import write_infos
from mmdet3d.datasets.nuscenes.tables import load_tables
from mmdet3d.datasets.synthetic.generate import generate
from mmdet3d.datasets.synthetic.kitti import KittiSettings, generate_kitti
from mmdet3d.datasets.synthetic.settings import WorldSettings
from mmdet3d.datasets.synthetic.tables import VERSION
from mmdet3d.datasets.synthetic.truckscenes import IMAGE_SIZE, generate_truckscenes
from mmdet3d.datasets.synthetic.vod import VodSettings, generate_vod
from mmdet3d.datasets.truckscenes.frames import TRUCKSCENES
from mmdet3d.datasets.vod.create import create_vod

__all__ = ["LAYOUTS", "SCENE_KEYFRAMES", "World", "make_scene", "read_world"]

PREFIX = "synthetic"  # of the info files
SCENE_KEYFRAMES = 3
# No shipped model was trained or tuned on these worlds.
_scene = partial(WorldSettings, seed=999, lidar_sweeps=1, radar_sweeps=3, reach=28)
_SCENES = _scene(scenes=2, keyframes=SCENE_KEYFRAMES, val_fraction=0.5)
_FRAMES = KittiSettings(frames=24, test_frames=0, seed=999, val_fraction=0.5)
_VOD_FRAMES = VodSettings(frames=24, seed=999, val_fraction=0.5)


@dataclass(frozen=True)
class Layout:
    """A way to lay the files of a world out.

    Args:
        settings: of such a world.
        make: from root, settings and number of processes the world, or what is missing of it.
        samples: number of training samples.
        last: file that is written last, relative to the root.
        small: make a world of a few frames, that no shipped model was trained on, in seconds.
    """

    settings: type
    make: Callable[[Path, Any, int], object]
    samples: Callable[[Any], int]
    last: str
    small: Callable[[Path], object]


def _make_nuscenes(root: Path, settings: WorldSettings, workers: int) -> None:
    generate(root, settings, workers=workers)
    create_nuscenes(root, root, PREFIX, VERSION, workers=workers, database=False)


def _make_truckscenes(root: Path, settings: WorldSettings, workers: int) -> None:
    generate_truckscenes(root, settings, workers=workers)
    create_nuscenes(root, root, "truckscenes", VERSION, workers=workers, database=False, source=TRUCKSCENES)


def _make_vod(root: Path, settings: VodSettings, workers: int) -> None:
    generate_vod(root, settings, workers)
    create_vod(root, root)


LAYOUTS = {
    "nuscenes": Layout(
        WorldSettings,
        _make_nuscenes,
        lambda settings: len(settings.split()["synthetic_train"]) * settings.keyframes,
        f"{PREFIX}_infos_val.pkl",
        lambda root: _make_nuscenes(root, _SCENES, 1),
    ),
    "kitti": Layout(
        KittiSettings,
        generate_kitti,
        lambda settings: len(settings.splits()["train"]),
        "ImageSets/test.txt",
        lambda root: generate_kitti(root, _FRAMES, 1),
    ),
    "truckscenes": Layout(
        WorldSettings,
        _make_truckscenes,
        lambda settings: len(settings.split()["synthetic_train"]) * settings.keyframes,
        "truckscenes_infos_val.pkl",
        lambda root: _make_truckscenes(root, replace(_SCENES, image_size=IMAGE_SIZE), 1),
    ),
    "vod": Layout(
        VodSettings,
        _make_vod,
        lambda settings: len(settings.splits()["train"]),
        "vod_infos_val.pkl",
        lambda root: _make_vod(root, _VOD_FRAMES, 1),
    ),
}


@dataclass(frozen=True)
class World:
    """A world that can be made; equal ones are equal bytes."""

    layout: Layout
    settings: Any

    @property
    def training_samples(self) -> int:
        """Of an epoch."""
        return self.layout.samples(self.settings)

    def is_made(self, root: str | Path) -> bool:
        """Whether all of it is in the folder `root`."""
        return (Path(root) / self.layout.last).is_file()

    def make(self, root: Path, workers: int) -> None:
        """Make it in `root`, or what is missing of it."""
        self.layout.make(root, self.settings, workers)


def read_world(block: Mapping[str, Any], seed: int, key: str) -> World:
    """The world that the config block `key` describes: arguments of its generator, and `layout`, of `LAYOUTS`.

    Raises:
        ConfigKeyError: an unknown layout or key.
        ValueError: a value outside its range.
    """
    options = dict(block)
    layout = options.pop("layout", "nuscenes")
    if layout not in LAYOUTS:
        raise ConfigKeyError(f"{key}.layout", f" must be one of {', '.join(LAYOUTS)}, got {layout!r}")
    return World(LAYOUTS[layout], read_block(LAYOUTS[layout].settings, options | {"seed": seed}, key))


def make_scene(root: Path, keyframes: int = SCENE_KEYFRAMES) -> None:
    """A few frames of a world like that of the demo, or what is missing of them, in a second or two per frame."""
    generate(root, _scene(scenes=1, keyframes=keyframes), progress=False)
    # A world of one scene has no validation split; here its only scene serves as one.
    tables = load_tables(root, VERSION)
    reader = FrameReader(tables, max_sweeps=0, allow_missing=False, annotated=True)
    write_infos(reader.scene(tables.scene[0]["token"]), {"version": VERSION}, root / f"{PREFIX}_infos_val.pkl")
