"""Check a KITTI folder, and make the dense depth maps that its download does not have."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from PIL import Image

from mmdet3d.datasets.kitti.completion import complete, project_scan
from mmdet3d.datasets.kitti.files import image_file, read_calibration, read_ids, read_scan, split_ids, write_depth
from mmdet3d.datasets.kitti.labels import read_labels
from mmdet3d.datasets.kitti.learnt import check_frames, count_objects
from mmdet3d.datasets.plausible import check_scan
from mmdet3d.datasets.processes import in_processes
from mmdet3d.evaluation.kitti import CLASSES
from mmdet3d.progress import progress_bar
from mmdet3d.shell import command, quote

__all__ = ["check_image", "check_png", "check_tree", "existing_root", "listed_ids", "make_depth"]

_PNG = b"\x89PNG\r\n\x1a\n"
_DEPTH = "training/depth_dense"
_NAMED = 5  # files that a message names
_LOOKED_AT = 20  # frames whose labels are compared with their images


@dataclass(frozen=True)
class _Part:
    """A folder of a KITTI tree.

    Args:
        folder: relative to the root.
        suffix: of its files.
        check: raises ValueError for a damaged file.
        remedy: how to get its files.
        needed: an incomplete folder is an error.
    """

    folder: str
    suffix: str
    check: Callable[[Path], object]
    remedy: str
    needed: bool = True

    def file(self, root: Path, frame: str) -> Path:
        if self.check is check_image:
            return image_file(root / self.folder, frame)
        return root / self.folder / f"{frame}{self.suffix}"


def check_png(path: Path) -> None:
    """Beginning and end; decoding thousands of images would take minutes."""
    with path.open("rb") as file:
        head = file.read(len(_PNG))
        file.seek(-min(12, path.stat().st_size), 2)
        tail = file.read()
    if head != _PNG or tail[4:8] != b"IEND":
        raise ValueError(f"{path} is no PNG or ends early; fetch it again")


def check_image(path: Path) -> None:
    """Raises ValueError if a PNG or JPEG file has another beginning or end than such files have."""
    if path.suffix == ".png":
        check_png(path)
        return
    with path.open("rb") as file:
        head = file.read(2)
        file.seek(-min(2, path.stat().st_size), 2)
        tail = file.read()
    if (head, tail) != (b"\xff\xd8", b"\xff\xd9"):
        raise ValueError(f"{path} is no JPEG or ends early; fetch it again")


def _check_scan(path: Path) -> None:
    if path.stat().st_size % 16:
        raise ValueError(f"{path} ends early: its size is no multiple of 16 bytes; fetch it again")


_TRAINING = (
    _Part("training/image_2", ".png", check_image, "fetch data_object_image_2.zip"),
    _Part("training/calib", ".txt", read_calibration, "fetch data_object_calib.zip"),
    _Part("training/label_2", ".txt", read_labels, "fetch data_object_label_2.zip"),
    _Part("training/velodyne", ".bin", _check_scan, "fetch data_object_velodyne.zip", needed=False),
    _Part(_DEPTH, ".png", check_png, "--depth makes them from training/velodyne"),
)
_TESTING = (
    _Part("testing/image_2", ".png", check_image, "fetch data_object_image_2.zip"),
    _Part("testing/calib", ".txt", read_calibration, "fetch data_object_calib.zip"),
)


def check_tree(root: str | Path, class_map: Mapping[str, str] | None = None) -> list[str]:
    """Look for every file of the splits, and read labels, calibrations, some image sizes and the ends of the others.

    The frames are those of `ImageSets/trainval.txt` and `test.txt`, or all of KITTI where those lists are absent. A
    folder `testing` may be absent; it serves submissions only. LiDAR scans may be absent where there is dense depth.

    Args:
        root: dataset root.
        class_map: what classes of the label files that KITTI does not have count as.

    Returns:
        A line per folder: how many files are there; and which labelled objects are learnt.

    Raises:
        FileNotFoundError: files that are needed are missing; the message names the folders, the first files of each and
            where to get them.
        ValueError: damaged files, named likewise; files of another layout; or labels with nothing to learn.
    """
    root = existing_root(root)
    labels = partial(read_labels, class_map=class_map)
    training = [replace(part, check=labels) if part.check is read_labels else part for part in _TRAINING]
    parts = [(part, listed_ids(root, "trainval")) for part in training]
    if (root / "testing").is_dir():
        parts += [(part, listed_ids(root, "test")) for part in _TESTING]
    lines: list[str] = []
    missing: list[str] = []
    damaged: list[str] = []
    for part, ids in parts:
        absent = [f"{i}{part.suffix}" for i in ids if not part.file(root, i).is_file()]
        lines.append(f"{part.folder}: {len(ids) - len(absent)} of {len(ids)} files")
        if absent and part.needed:
            missing.append(f"{part.folder} lacks {_count(absent, len(ids))} ({part.remedy})")
        damaged += _damaged(root, part, set(ids) - {Path(name).stem for name in absent})
    if damaged:
        raise ValueError(f"{len(damaged)} damaged files in {root}: {'; '.join(damaged[:_NAMED])}")
    if missing:
        raise FileNotFoundError(f"{root} is incomplete: {'; '.join(missing)}")
    lines.append(_look_into(root / "training", listed_ids(root, "trainval"), class_map))
    if not (root / "testing").is_dir():
        lines.append("testing: absent, which only submissions need")
    return lines


def _look_into(folder: Path, ids: Sequence[str], class_map: Mapping[str, str] | None) -> str:
    """What the labels of a complete folder hold.

    Raises:
        ValueError: labels, images or scans do not fit, or there is nothing to learn.
    """
    check_frames(folder, ids[:_LOOKED_AT], class_map)
    scans = (folder / "velodyne" / f"{frame}.bin" for frame in ids)
    if (scan := next((s for s in scans if s.is_file()), None)) is not None:
        check_scan(scan, 4)
    tally = count_objects((read_labels(folder / "label_2" / f"{frame}.txt", class_map) for frame in ids), CLASSES)
    if not tally.counting:
        raise ValueError(f"there is no object of {', '.join(CLASSES)} to learn in {folder}: {tally}")
    return f"learnt: {tally}"


def make_depth(root: str | Path, workers: int = 1, progress: bool = True) -> int:
    """Write `training/depth_dense/{id}.png` for every frame that has a LiDAR scan and no such map yet.

    Every map is whole or absent, so an interrupted run continues where it stopped.

    Args:
        root: dataset root.
        workers: processes.
        progress: show a progress bar.

    Returns:
        How many maps were written.

    Raises:
        FileNotFoundError: no scans, or the image or calibration of a frame is missing.
        ValueError: a damaged file, or `workers` is less than one.
    """
    root = existing_root(root)
    scans = {p.stem for p in (root / "training" / "velodyne").glob("*.bin")}
    ids = [i for i in listed_ids(root, "trainval") if i in scans]
    if not ids:
        raise FileNotFoundError(
            f"{root / 'training' / 'velodyne'} has no scan of a training frame; dense depth is made from them: fetch "
            "data_object_velodyne.zip"
        )
    todo = [i for i in ids if not (root / _DEPTH / f"{i}.png").is_file()]
    with progress_bar(
        total=len(ids), initial=len(ids) - len(todo), desc="depth", unit="map", disable=not progress
    ) as bar:
        for _ in in_processes(partial(_complete_frame, root), todo, workers):
            bar.update()
    return len(todo)


def _complete_frame(root: Path, frame: str) -> None:
    folder = root / "training"
    path = image_file(folder / "image_2", frame)
    if not path.is_file():
        raise FileNotFoundError(f"image {path} is missing; the depth map takes its size")
    with Image.open(path) as image:
        width, height = image.size
    scan, calib = folder / "velodyne" / f"{frame}.bin", folder / "calib" / f"{frame}.txt"
    calibration = read_calibration(calib)
    if not calibration.has_lidar:
        raise ValueError(f"{calib} names P2 alone; dense depth is made by its R0_rect and Tr_velo_to_cam")
    sparse = project_scan(read_scan(scan), calibration, (height, width))
    try:
        depth = complete(sparse)
    except ValueError as error:
        raise ValueError(f"{scan}: {error}; check its calibration") from None
    write_depth(root / _DEPTH / f"{frame}.png", depth)


def existing_root(root: str | Path) -> Path:
    """Raises FileNotFoundError unless it has a folder `training`."""
    root = Path(root)
    if not (root / "training").is_dir():
        raise FileNotFoundError(
            f"there is no folder {root / 'training'}; unpack the KITTI object data into {root}, or write a synthetic "
            f"world: {command('create-data')} synthetic-kitti --out-dir {quote(root)}"
        )
    return root


def listed_ids(root: Path, split: str) -> list[str]:
    """Frames of `ImageSets`, or of all KITTI."""
    listed = root / "ImageSets" / f"{split}.txt"
    return read_ids(listed) if listed.is_file() else split_ids(split)


def _count(absent: Sequence[str], total: int) -> str:
    if len(absent) == total:
        return f"all {total} files"
    named = ", ".join(absent[:_NAMED]) + (", ..." if len(absent) > _NAMED else "")
    return f"{len(absent)} of {total} files: {named}"


def _damaged(root: Path, part: _Part, ids: set[str]) -> Iterator[str]:
    for frame in sorted(ids):
        try:
            part.check(part.file(root, frame))
        except ValueError as error:
            yield str(error)
