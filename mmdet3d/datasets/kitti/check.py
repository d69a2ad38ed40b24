"""Every file of a KITTI folder, read once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

from mmdet3d.datasets.checking import REPORT, Fault, Looked, check_all, is_singular
from mmdet3d.datasets.kitti.create import check_image, check_png, existing_root, listed_ids
from mmdet3d.datasets.kitti.files import image_file, read_calibration, read_depth, read_scan
from mmdet3d.datasets.kitti.labels import read_labels
from mmdet3d.datasets.plausible import check_objects
from mmdet3d.datasets.transforms.images import read_image

__all__ = ["check_kitti"]


def check_kitti(root: str | Path, class_map: Mapping[str, str] | None = None, workers: int = 1) -> None:
    """Read every file of the splits, and print what is there; `check.json` in the folder lists the faults.

    Raises:
        FileNotFoundError: no folder `training`.
        ValueError: something is wrong with the files, see `check_all`.
    """
    root = existing_root(root)
    frames = [("training", frame) for frame in listed_ids(root, "trainval")]
    if (root / "testing").is_dir():
        frames += [("testing", frame) for frame in listed_ids(root, "test")]
    look = partial(_look_at_frame, root, dict(class_map or {}))
    print("\n".join(check_all(look, frames, workers, root / REPORT)))


def _look_at_frame(root: Path, class_map: Mapping[str, str], frame: tuple[str, str]) -> Looked:
    files: dict[str, int] = {}
    faults = []
    for kind, path, read in _files(root / frame[0], frame[1], class_map):
        try:
            read()
        except FileNotFoundError as error:
            faults.append(Fault("missing file", path.relative_to(root).as_posix(), str(error)))
            continue
        except ValueError as error:
            faults.append(Fault(kind, path.relative_to(root).as_posix(), str(error)))
        files[kind] = files.get(kind, 0) + 1
    return Looked(files, faults)


def _files(folder: Path, frame: str, class_map: Mapping[str, str]) -> Iterator[tuple[str, Path, Callable[[], object]]]:
    """Kind, path and reader of the files of a frame; a LiDAR scan may be absent where there is a depth map."""
    image, calibration = image_file(folder / "image_2", frame), folder / "calib" / f"{frame}.txt"
    yield "image", image, partial(_read_image, image)
    yield "calibration", calibration, partial(_read_calibration, calibration)
    if folder.name != "training":
        return
    label, depth = folder / "label_2" / f"{frame}.txt", folder / "depth_dense" / f"{frame}.png"
    scan = folder / "velodyne" / f"{frame}.bin"
    yield "label", label, lambda: check_objects(read_labels(label, class_map), label)
    yield "depth", depth, partial(_read_depth, depth, image)
    if scan.is_file():
        yield "points", scan, partial(read_scan, scan)


def _read_calibration(path: Path) -> None:
    found = read_calibration(path)
    for name, matrix in (("P2", found.p2[:, :3]), ("LiDAR", found.lidar2rect if found.has_lidar else None)):
        if matrix is not None and is_singular(matrix):
            raise ValueError(f"{path}: the calibration of {name} is singular; fetch it again")


def _read_image(path: Path) -> None:
    read_image(path)  # which may not mind a lost end
    check_image(path)


def _read_depth(path: Path, image: Path) -> None:
    read_depth(path, read_image(image).size[::-1] if image.is_file() else None)
    check_png(path)
