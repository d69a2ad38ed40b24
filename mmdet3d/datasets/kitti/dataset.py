"""The KITTI object data set for detectors that look through the left colour camera."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mmdet3d.blocks import nearest, read_block
from mmdet3d.datasets.cache import open_cache
from mmdet3d.datasets.frames import Frames
from mmdet3d.datasets.kitti.augment import Augmentation, View, flip_calibration, warp_depth, warp_image
from mmdet3d.datasets.kitti.files import (
    KittiCalibration,
    image_file,
    read_calibration,
    read_depths,
    read_ids,
    split_ids,
)
from mmdet3d.datasets.kitti.labels import read_labels, write_results, zip_results
from mmdet3d.datasets.kitti.learnt import check_frames, count_objects, why_left_out
from mmdet3d.datasets.kitti.results import evaluate_folder, to_objects, write_metrics
from mmdet3d.datasets.kitti.scene import kitti_scene
from mmdet3d.datasets.sampling import part_of
from mmdet3d.datasets.scene import Scene
from mmdet3d.datasets.tally import Tally
from mmdet3d.datasets.transforms.images import read_image, read_images
from mmdet3d.datasets.views import Views
from mmdet3d.evaluation import kitti_table
from mmdet3d.evaluation.benchmark import Benchmark
from mmdet3d.evaluation.kitti import CLASSES
from mmdet3d.evaluation.kitti_objects import DONT_CARE, TYPES, Objects
from mmdet3d.evaluation.kitti_table import metrics_by_name
from mmdet3d.registry import DATASETS
from mmdet3d.shell import command, quote, world_command
from mmdet3d.structures import Calibration, Detections3D, ImageObjects, Sample, limit_period
from mmdet3d.structures.camera_boxes import boxes_from_kitti

__all__ = ["KittiDataset"]

_MEAN = np.array([0.485, 0.456, 0.406], dtype=np.float32)
_STD = np.array([0.229, 0.224, 0.225], dtype=np.float32)
_EVAL_CLASSES = ("Car",)
_MERGED = {"Van": "Car", "Truck": "Car"}


@DATASETS.register
class KittiDataset(Frames):
    """Images with calibration, objects and dense depth, augmented while training.

    A sample depends on (seed, epoch, index) only. `Sample.images` is (1, 3, H, W) normalised RGB, `Sample.depths`
    (1, H, W) metres with 0 where nothing is known; `Sample.calibration` holds P2 as `intrinsics` (column 3 included),
    and its camera frame is the rectified one. In a mirrored sample objects, P2 and camera frame are mirrored. `meta`
    has `image_size` (width, height), `crop_scale` (crop size over image size), `flipped`, `image_paths`.

    Args:
        dataset_root: folder with `training`, `testing` and, for other splits than the usual ones, `ImageSets`.
        split: a list `{dataset_root}/ImageSets/{split}.txt`, or train, val, trainval or test as usual. `test` is in the
            folder `testing` and has neither labels nor depth.
        classes: label -> class name, as the network counts them.
        image_size: height and width of the network's input, pixels.
        writelist: classes to learn, of `classes`; None for all.
        class_merging: Van and Truck draw on the heat map of Car, but give no regression target.
        class_map: what classes of the label files that KITTI does not have count as: `{Tricycle: Cyclist}`, or
            `DontCare` for what is neither learnt nor scored.
        depth_dir: folder of dense depth maps, relative to `dataset_root`; None loads no depth.
        augment: see `Augmentation`; applied unless `test_mode`.
        eval_classes: which classes `evaluate` reports, of Car, Pedestrian, Cyclist.
        score_decimals: of scores in result files.
        ids: frames to use instead of all of the split, such as ["000007"].
        part: lower and upper end, in [0, 1], of the share of the frames that is taken, in a random order that is always
            the same.
        labelled: false takes the annotations away, for frames that only a teacher comments on.
        test_mode: no augmentation.
        seed: of augmentation.
        cache, cache_limit: see `open_cache`.
        views: fixed augmentations of each sample, the same for every seed; None augments anew in every epoch.

    Raises:
        FileNotFoundError: `dataset_root` or its images are missing.
        ValueError: an unknown class, split, key or frame, or an image size that is none.
    """

    def __init__(
        self,
        dataset_root: str,
        split: str,
        classes: Sequence[str] = ("Pedestrian", "Car", "Cyclist"),
        image_size: Sequence[int] = (384, 1280),
        writelist: Sequence[str] | None = None,
        class_merging: bool = False,
        class_map: Mapping[str, str] | None = None,
        depth_dir: str | None = "training/depth_dense",
        augment: Augmentation | None = None,
        eval_classes: Sequence[str] = _EVAL_CLASSES,
        score_decimals: int = 4,
        ids: Sequence[str] | None = None,
        part: Sequence[float] = (0.0, 1.0),
        labelled: bool = True,
        test_mode: bool = False,
        seed: int = 0,
        cache: str = "none",
        cache_limit: float = 8,
        views: int | None = None,
    ) -> None:
        self.root = Path(dataset_root)
        self.split = split
        self.test_mode = test_mode
        self.annotated = split != "test"
        self.labelled = labelled and self.annotated
        self.folder = self.root / ("training" if self.annotated else "testing")
        self.classes = _checked_names(classes, [t for t in TYPES if t != DONT_CARE], "classes")
        self.writelist = _checked_names(self.classes if writelist is None else writelist, self.classes, "writelist")
        self.eval_classes = _checked_names(eval_classes, CLASSES, "eval_classes")
        self.class_map = dict(class_map or {})
        self.image_size = _checked_size(image_size)
        self.depth_dir = self.root / depth_dir if depth_dir and self.annotated else None
        self.score_decimals = score_decimals
        self.augment = None if test_mode else read_block(Augmentation, augment or {}, "augment")
        self.epoch = 0
        self._read = open_cache(cache, self.root, cache_limit)
        self.tokens = part_of(self._find_ids(ids), part, "frames")
        self._label = {name: k for k, name in enumerate(self.classes)}
        self._learnt = {name: (self._label[name], True) for name in self.writelist}
        if class_merging:
            merged = {new: (self._label[old], False) for new, old in _MERGED.items() if old in self._learnt}
            self._learnt = merged | self._learnt
        content = {
            "split": [split, self.tokens],
            "classes": [self.classes, self.writelist, class_merging, *([self.class_map] if self.class_map else [])],
            "input": [
                self.image_size,
                depth_dir,
                self.augment and vars(self.augment),
                test_mode,
                self.labelled,
            ],
        }
        self._views = Views(views, seed, content)

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.classes

    @property
    def views(self) -> int | None:
        """Fixed augmentations of each sample."""
        return self._views.count

    def set_epoch(self, epoch: int) -> None:
        """`epoch` (0-based) of the samples that are asked for next."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.tokens)

    def at(self, place: int) -> Sample:
        """Sample `place`.

        Raises:
            FileNotFoundError: one of the frame's files is missing.
            ValueError: one of them is damaged. Both name the file and what to do.
        """
        token = self.tokens[place]
        stream = self._views.stream(self.epoch, place)
        try:
            sample = self._load(token, stream.rng)
        except (FileNotFoundError, ValueError) as error:
            raise type(error)(
                f"{error}; `{command('create-data')} kitti --root-path {quote(self.root)}` checks all files"
            ) from None
        sample.view = stream.name(token)
        return sample

    def check(self, inputs: Collection[str], scored: bool = False) -> None:
        """Find before anything is trained that there is nothing to learn or to score.

        Args:
            inputs: sensors that the model reads; every frame has an image, and a dense depth map if they are loaded.
            scored: detections will be scored.

        Raises:
            ValueError: no object is learnt, none of `eval_classes` is labelled, or labels and images do not fit.
            FileNotFoundError: an image, a label file, or a file of the first frame, is missing.
        """
        if scored and not self.annotated:
            raise ValueError(f"the split {self.split} of KITTI has no labels to score by")
        there = {file.stem for file in (self.folder / "image_2").iterdir()}
        absent = [token for token in self.tokens if token not in there]
        if absent:
            listed = self.root / "ImageSets" / f"{self.split}.txt"
            remedy = f"correct {listed}" if listed.is_file() else f"list the frames that are there in {listed}"
            raise FileNotFoundError(
                f"{self.folder / 'image_2'} lacks {len(absent)} of the {len(self)} frames of the split {self.split}, "
                f"such as {absent[0]}; fetch them, or {remedy}"
            )
        learns = self.labelled and not self.test_mode
        if not (learns or scored):
            return
        check_frames(self.folder, self.tokens[:1], self.class_map)
        frames = range(len(self))
        # The first frame with an object ends the search; all are counted only where there is none.
        if learns and not any(count_objects([self.labels(k)], self._learnt).counting for k in frames):
            tally = count_objects(map(self.labels, frames), self._learnt)
            raise ValueError(f"there is no object of {', '.join(self._learnt)} to learn in {self.folder}: {tally}")
        if scored and not any(np.isin(self.labels(k).names, self.eval_classes).any() for k in frames):
            classes = ", ".join(self.eval_classes)
            raise ValueError(f"there is no object of {classes} to score in the {len(frames)} frames of {self.folder}")

    def annotations(self, indices: Iterable[int]) -> Tally:
        """Which labelled objects of these frames are of the known classes; `ground_truth` has those, also hard ones."""
        tally = Tally()
        for objects in map(self.labels, indices):
            tally.add(objects.names[objects.names != DONT_CARE].tolist(), self.classes, {})
        return tally

    def calibration(self, index: int) -> KittiCalibration:
        """Matrices of a frame, as in its file."""
        return read_calibration(self._file("calib", self.tokens[index], "txt"))

    def labels(self, index: int) -> Objects:
        """All objects of a frame's label file.

        Raises:
            ValueError: the split has no labels.
        """
        if not self.annotated:
            raise ValueError(f"the split {self.split} of KITTI has no labels")
        return self._labels(self.tokens[index])

    def ground_truth(self, index: int) -> Detections3D:
        """Labelled objects of the known classes, whatever their difficulty, as detections of score 1."""
        objects = self.labels(index)
        objects = objects[np.isin(objects.names, self.classes)]
        rows = np.column_stack([objects.sizes, objects.locations, objects.rotation_y])
        return Detections3D(
            boxes=boxes_from_kitti(torch.from_numpy(rows).float()),
            scores=torch.ones(len(objects)),
            labels=torch.tensor([self._label[name] for name in objects.names], dtype=torch.int64),
            boxes2d=torch.from_numpy(objects.boxes2d).float(),
            alphas=torch.from_numpy(objects.alpha).float(),
        )

    def scene(self, sample: Sample) -> Scene:
        """For pictures: the frame of a sample without its augmentation, with its LiDAR points if they are there."""
        index = self.tokens.index(sample.token)
        return kitti_scene(
            read_image(self._image(sample.token)),
            self.calibration(index),
            _matrices(self.calibration(index), np.eye(4)),
            self.ground_truth(index) if self.annotated else None,
            self._file("velodyne", sample.token, "bin"),
            sample.meta["flipped"],
        )

    def scenes(self) -> list[list[int]]:
        """All samples as one scene: KITTI does not say which follow each other."""
        return [list(range(len(self)))]

    @staticmethod
    def benchmark(block: Mapping[str, Any]) -> Benchmark:
        """What `evaluate` reports on the data set of a config block."""
        return kitti_table.benchmark(block.get("eval_classes") or _EVAL_CLASSES)

    @staticmethod
    def elsewhere(block: Mapping[str, Any], root: Path, part: str | Path | None, folder: Path) -> dict[str, Any]:
        """The block for the data in `root`; `part` is the name of a split, None for the block's."""
        return {**block, "dataset_root": f"{root}/", "split": str(part or block["split"])}

    # -- results ----------------------------------------------------------------------------------------------------

    def format(self, detections: Sequence[Detections3D], out_dir: str | Path) -> Path:
        """Write detections (one per frame, in data-set order) as `{out_dir}/data/{id}.txt`, and pack them for upload.

        Returns:
            The archive, `{out_dir}/kitti_results.zip`.

        Raises:
            ValueError: another number of frames, or a number that is not finite.
        """
        path = Path(out_dir) / "kitti_results.zip"
        zip_results(self._write(detections, out_dir), self.tokens, path)
        return path

    def evaluate(self, detections: Sequence[Detections3D], out_dir: str | Path) -> dict[str, float]:
        """Official metrics of detections in data-set order, of every frame; result files and metrics stay in `out_dir`.

        Returns:
            Percent, by names such as `Car/3d/R40/moderate`; metrics `bbox`, `bev`, `3d`, `aos` at the benchmark's
            overlaps, and at looser ones as `Car/3d@0.5/R40/moderate`.

        Raises:
            ValueError: as `format`; or the split has no labels.
        """
        folder = self._write(detections, out_dir)
        if not self.annotated:
            raise ValueError(f"the split {self.split} of KITTI has no labels to score by; {folder} is written")
        labels = self.folder / "label_2"
        strict, loose = evaluate_folder(folder, labels, self.tokens, self.class_map, self.eval_classes)
        write_metrics(strict, Path(out_dir) / "kitti_metrics.json")
        return metrics_by_name(strict, loose, self.eval_classes)

    def _write(self, detections: Sequence[Detections3D], out_dir: str | Path) -> Path:
        if len(detections) != len(self):
            raise ValueError(f"{len(detections)} results for {len(self)} frames; each frame needs one")
        folder = Path(out_dir) / "data"
        for index, (token, found) in enumerate(zip(self.tokens, detections, strict=True)):
            objects = to_objects(found, self.classes, partial(self._camera, index))
            write_results(folder / f"{token}.txt", objects, self.score_decimals)
        return folder

    def _camera(self, index: int) -> tuple[np.ndarray, tuple[int, int]]:
        with Image.open(self._image(self.tokens[index])) as image:
            return self.calibration(index).p2, image.size

    # -- loading ----------------------------------------------------------------------------------------------------

    def _load(self, token: str, rng: np.random.RandomState) -> Sample:
        path = self._image(token)
        (image,) = self._read(read_images, [path])
        calibration = read_calibration(self._file("calib", token, "txt"))
        view = self.augment.draw(image.size, rng) if self.augment else View.whole(image.size)
        matrix = view.matrix(image.size, self.image_size)
        sample = Sample(
            token=token,
            calibration=_matrices(flip_calibration(calibration, image.width) if view.flip else calibration, matrix),
            images=self._pixels(image, view, matrix, rng),
            depths=self._depth(token, image.size, view, matrix),
            unlabelled=not self.labelled,
            meta={
                "image_size": image.size,
                "crop_scale": view.scale,
                "flipped": view.flip,
                "image_paths": [str(path.relative_to(self.root))],
                "cameras": ["image_2"],
            },
        )
        if self.labelled:
            objects = self._objects(self._labels(token), calibration)
            sample.objects = objects.flip(image.width) if view.flip else objects
        return sample

    def _pixels(self, image: Image.Image, view: View, matrix: np.ndarray, rng: np.random.RandomState) -> Tensor:
        """(1, 3, H, W) normalised."""
        if view.flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels = np.asarray(warp_image(image, matrix, self.image_size), dtype=np.float32) / 255
        if self.augment:
            pixels = self.augment.colour(pixels, rng)
        return torch.from_numpy((pixels - _MEAN) / _STD).permute(2, 0, 1).contiguous()[None]

    def _depth(self, token: str, size: tuple[int, int], view: View, matrix: np.ndarray) -> Tensor | None:
        """(1, H, W) metres."""
        if self.depth_dir is None:
            return None
        path = self.depth_dir / f"{token}.png"
        if not path.is_file():
            raise FileNotFoundError(
                f"depth map {path} is missing; `{command('create-data')} kitti --root-path {quote(self.root)} --depth` "
                "makes it from the LiDAR, and `depth_dir: null` does without"
            )
        (depth,) = self._read(read_depths, [path], size[::-1])
        return torch.from_numpy(warp_depth(depth[:, ::-1] if view.flip else depth, matrix, self.image_size))[None]

    def _objects(self, objects: Objects, calibration: KittiCalibration) -> ImageObjects:
        """What a network learns from; the observation angle follows from yaw and 2-D box, as decoding inverts it."""
        objects = objects[np.isin(objects.names, list(self._learnt)) & (why_left_out(objects) == "")]
        p2 = calibration.p2
        column = objects.boxes2d[:, [0, 2]].mean(1)
        learnt = [self._learnt[name] for name in objects.names]
        values = {
            "boxes2d": objects.boxes2d,
            "sizes": objects.sizes,
            "centers": objects.locations - objects.sizes[:, :1] * [0, 0.5, 0],
            "yaws": objects.rotation_y,
            "alphas": limit_period(torch.from_numpy(objects.rotation_y - np.arctan2(column - p2[0, 2], p2[0, 0]))),
        }
        return ImageObjects(
            labels=torch.tensor([label for label, _ in learnt], dtype=torch.int64),
            regressed=torch.tensor([regressed for _, regressed in learnt], dtype=torch.bool),
            **{name: torch.as_tensor(value).float() for name, value in values.items()},
        )

    # -- files ------------------------------------------------------------------------------------------------------

    def _file(self, kind: str, token: str, suffix: str) -> Path:
        return self.folder / kind / f"{token}.{suffix}"

    def _labels(self, token: str) -> Objects:
        return read_labels(self._file("label_2", token, "txt"), self.class_map)

    def _image(self, token: str) -> Path:
        return image_file(self.folder / "image_2", token)

    def _find_ids(self, ids: Sequence[str] | None) -> list[str]:
        if not (self.folder / "image_2").is_dir():
            world = world_command("kitti", self.root) or f"{command('create-data')} synthetic-kitti --out-dir DIR"
            raise FileNotFoundError(
                f"{self.folder / 'image_2'} does not exist; set dataset_root to a KITTI folder (with training/image_2, "
                f"calib, label_2), or write a synthetic one: {world}"
            )
        listed = self.root / "ImageSets" / f"{self.split}.txt"
        tokens = read_ids(listed) if listed.is_file() else split_ids(self.split)
        if ids is None:
            return tokens
        if isinstance(ids, str) or not all(isinstance(i, str) for i in ids):
            raise ValueError(f"ids must be a list of texts such as ['000010'] (in quotes), got {ids!r}")
        known = set(tokens)
        for token in ids:
            if token not in known:
                raise ValueError(f"frame {token!r} in ids is not in the split {self.split}")
        return list(ids)


def _matrices(calibration: KittiCalibration, image_aug: np.ndarray) -> Calibration:
    # Without a LiDAR the rectified camera frame stands for its frame.
    rect2lidar = np.linalg.inv(calibration.lidar2rect) if calibration.has_lidar else np.eye(4)
    intrinsics = np.eye(4)
    intrinsics[:3] = calibration.p2
    eye = torch.eye(4)
    stacks = {"camera2lidar": rect2lidar, "camera2ego": rect2lidar, "intrinsics": intrinsics, "image_aug": image_aug}
    return Calibration(
        lidar2ego=eye,
        ego2global=eye,
        lidar_aug=eye,
        **{name: torch.from_numpy(matrix).float()[None] for name, matrix in stacks.items()},
    )


def _checked_names(names: Sequence[str], known: Sequence[str], key: str) -> tuple[str, ...]:
    if isinstance(names, str) or not names:
        raise ValueError(f"{key} must be a list of classes, got {names!r}")
    for name in names:
        if name not in known:
            raise ValueError(f"unknown class {name!r} in {key}{nearest(str(name), known)} (known: {', '.join(known)})")
    if len(set(names)) != len(names):
        raise ValueError(f"{key} names a class twice: {', '.join(names)}")
    return tuple(names)


def _checked_size(size: Sequence[int]) -> tuple[int, int]:
    if len(size) != 2 or not all(isinstance(n, int) and n > 0 and n % 32 == 0 for n in size):
        raise ValueError(f"image_size must be a height and a width that are multiples of 32, got {list(size)}")
    height, width = size
    return height, width
