"""Write a synthetic data set, scene by scene, in any number of processes."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

from mmdet3d.datasets.processes import in_processes
from mmdet3d.datasets.synthetic.road import Road
from mmdet3d.datasets.synthetic.scene import ROAD, Recorder, fragment_path, record_scene
from mmdet3d.datasets.synthetic.settings import WorldSettings
from mmdet3d.datasets.synthetic.tables import VERSION, common_tables, scene_name
from mmdet3d.datasets.synthetic.vector_map import LOCATION, vector_map
from mmdet3d.io.files import atomic_write
from mmdet3d.progress import progress_bar

__all__ = ["claim", "generate"]

_SETTINGS_FILE = "synthetic.json"


def generate(
    out_dir: str | Path,
    settings: WorldSettings | None = None,
    workers: int = 1,
    progress: bool = True,
    recorder: type[Recorder] = Recorder,
) -> Path:
    """Write the data set that `settings` describe, or what is still missing of it.

    The tree depends on the settings only, not on the number of workers or on interruptions. In the annotations
    `num_lidar_pts` counts the key-frame points strictly inside the box, and `num_radar_pts` the returns of the five
    key-frame sweeps (no state filter) strictly inside its footprint, because radars do not measure height. An object
    is annotated from the first to the last key frame in which it has a point, at most 80 m away.

    Args:
        out_dir: dataset root; tables go to its folder `v1.0-synthetic`, which also holds `splits.json` with the splits
            `synthetic_train` and `synthetic_val`, and the vector map of all scenes to `maps/expansion`. The raster
            `maps/SCENE.png` is that of the scene's square alone, whose corner is not the origin of the location.
        settings: the defaults if None.
        workers: processes.
        progress: show a progress bar.
        recorder: of the rig and its files.

    Returns:
        The dataset root.

    Raises:
        ValueError: the folder holds something else or a data set of other settings, or `workers` is less than one.
    """
    root, settings = Path(out_dir), settings or WorldSettings()
    claim(root, {**settings.to_dict(), **recorder.layout})
    missing = [i for i in range(settings.scenes) if not fragment_path(root, i).is_file()]
    with progress_bar(
        total=settings.scenes, initial=settings.scenes - len(missing), desc="world", unit="scene", disable=not progress
    ) as bar:
        for _ in in_processes(partial(record_scene, recorder, settings, root), missing, workers):
            bar.update()
    _write_tables(root, settings, recorder)
    return root


def claim(root: Path, wanted: dict[str, Any]) -> None:
    """Mark the folder as a data set of these settings, or check that it is one.

    Raises:
        ValueError: it holds something else.
    """
    marker = root / _SETTINGS_FILE
    if marker.is_file():
        found = json.loads(marker.read_text())
        different = sorted(k for k in wanted.keys() | found.keys() if wanted.get(k) != found.get(k))
        if different:
            changes = ", ".join(f"{k} {found.get(k)} instead of {wanted.get(k)}" for k in different)
            raise ValueError(f"{root} holds a synthetic data set with {changes}; remove it or choose another folder")
        return
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise ValueError(f"{root} is not empty and holds no synthetic data set; remove it or choose another folder")
    root.mkdir(parents=True, exist_ok=True)
    _write_json(marker, wanted)


def _write_tables(root: Path, settings: WorldSettings, recorder: type[Recorder]) -> None:
    tables: dict[str, list[Any]] = common_tables(settings, recorder.rig_for(settings)) | {
        name: [] for name in recorder.tables
    }
    roads = []
    for index in range(settings.scenes):
        rows = json.loads(fragment_path(root, index).read_text())
        for name in recorder.tables:
            tables[name] += rows[name]
        roads += [Road.from_dict(road) for road in rows.get(ROAD, ())]
    folder = root / VERSION
    folder.mkdir(exist_ok=True)
    for name, rows in tables.items():
        _write_json(folder / f"{name}.json", rows)
    splits = {name: [scene_name(i) for i in numbers] for name, numbers in settings.split().items()}
    _write_json(folder / "splits.json", splits)
    if roads:  # not every layout has a map
        expansion = root / "maps" / "expansion"
        expansion.mkdir(exist_ok=True)
        _write_json(expansion / f"{LOCATION}.json", vector_map(roads))


def _write_json(path: Path, content: object) -> None:
    """Equal files stay as they are: another process may be reading them."""
    text = json.dumps(content, indent=0)
    if path.is_file() and path.read_text() == text:
        return
    with atomic_write(path) as file:
        file.write(text)
