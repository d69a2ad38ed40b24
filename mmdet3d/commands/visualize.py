"""Draw ground truth and detections into the camera images and the bird's-eye view, one PNG per sample.

distill3d visualize CONFIG --mode gt --limit 10
distill3d visualize CONFIG --checkpoint CHECKPOINT --mode both --bbox-score 0.2 --out-dir runs/pictures
distill3d visualize CONFIG --checkpoint CHECKPOINT --image street.jpg --calib camera.txt    # a model of one camera
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdet3d.config import Config, load_config
from mmdet3d.engine.command import add_override_options, read_overrides

if TYPE_CHECKING:
    from mmdet3d.datasets import FrameDataset, KittiDataset
    from mmdet3d.models.detectors.base import Trainable


def parse(words: list[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("config", help="YAML file; also looked for below configs/")
    parser.add_argument("--checkpoint", help=".safetensors or .pth; needed for pred and both")
    parser.add_argument("--mode", choices=["gt", "pred", "both"], help="what is drawn (default: gt; pred of --image)")
    parser.add_argument("--image", nargs="+", metavar="FILE", help="pictures of your own in place of the data set's")
    parser.add_argument("--calib", metavar="FILE", help="KITTI calibration of --image (default: the .txt beside each)")
    parser.add_argument("--split", choices=["val", "train", "test"], default="val", help="of the config's data")
    parser.add_argument("--out-dir", default="runs/pictures", help="where the pictures go (default: runs/pictures)")
    parser.add_argument("--bbox-score", type=float, default=0.1, help="lowest score of a detection (default: 0.1)")
    parser.add_argument("--scores", action="store_true", help="write the scores beside the detections")
    parser.add_argument("--bbox-classes", nargs="+", metavar="CLASS", help="only these classes (names or labels)")
    parser.add_argument("--limit", type=int, help="stop after so many samples")
    add_override_options(parser)
    args, rest = parser.parse_known_args(words)
    args.mode = args.mode or ("pred" if args.image else "gt")
    if args.image and args.mode != "pred":
        raise ValueError(f"--mode {args.mode} draws annotations, which --image has none of; leave --mode out")
    if args.calib and not args.image:
        raise ValueError("--calib is the calibration of --image; give that, too")
    if args.mode != "gt" and not args.checkpoint:
        raise ValueError(f"--mode {args.mode} draws detections; give --checkpoint FILE")
    return args, rest


def main(words: list[str]) -> None:
    args, rest = parse(words)
    with tempfile.TemporaryDirectory() as folder:
        draw(args, rest, Path(folder))


def draw(args: argparse.Namespace, rest: list[str], folder: Path) -> None:
    """One picture per sample; `folder` holds what is laid out for it."""
    from mmdet3d.datasets import check_data
    from mmdet3d.engine import distributed
    from mmdet3d.engine.pictures import detect, draw_sample, picture_extent
    from mmdet3d.engine.run_dir import writable_folder
    from mmdet3d.progress import progress_bar

    cfg = load_config(args.config, read_overrides(rest, args.overrides_file, args.imports))
    if args.image:
        args.split = "test"
        cfg.data["test"] = own_frames(cfg, args.image, args.calib, folder)
    dataset = open_split(cfg, args.split)
    only = [label_of(word, dataset.classes) for word in args.bbox_classes or ()]
    device = distributed.init()
    model = None if args.mode == "gt" else load_model(cfg, args.checkpoint).to(device)
    if model is not None:
        check_data(dataset, model.inputs, f"data.{args.split}")
    count = len(dataset) if args.limit is None else min(args.limit, len(dataset))
    best = 0.0
    for index in progress_bar(range(count), desc="draw", unit="sample"):
        sample = dataset[index]
        detections = None if model is None else detect(model, sample, device, cfg.get("precision") or "auto")
        if detections is not None:
            found = zip(detections.scores.tolist(), detections.labels.tolist(), strict=True)
            best = max([best, *(score for score, label in found if not only or label in only)])
        picture = draw_sample(
            sample,
            dataset,
            detections,
            truth=args.mode != "pred",
            min_score=args.bbox_score,
            only=only,
            extent=picture_extent(cfg),
            scores=args.scores,
            sensors=("lidar", "radar") if model is None else model.inputs,
        )
        out_dir = writable_folder(args.out_dir)  # now that there is something to put there
        time = sample.meta.get("timestamp")
        picture.save(out_dir / f"{'' if time is None else f'{time}-'}{sample.token}.png")
    print(f"{count} pictures: {args.out_dir}")
    if args.mode != "pred":
        print(f"ground truth: {dataset.annotations(range(count))}")
    if model is not None and best < args.bbox_score:
        print(
            f"no detection reaches --bbox-score {args.bbox_score:g}: "
            + (f"the best score is {best:.2g}, so give a lower one" if best else "the model finds nothing here")
        )


def label_of(word: str, classes: Sequence[str]) -> int:
    """Of a class by its name, or by its label as text."""
    from mmdet3d.registry import nearest

    if word in classes:
        return classes.index(word)
    if not word.isdecimal() or int(word) >= len(classes):
        raise ValueError(
            f"--bbox-classes {word}: no such class{nearest(word, classes)} (classes: {', '.join(classes)}; labels go "
            f"from 0 to {len(classes) - 1})"
        )
    return int(word)


def open_split(cfg: Config, split: str) -> FrameDataset | KittiDataset:
    """The data set of a split, each frame once: what a resampling wrapper (CBGS) repeats is of no interest here."""
    from mmdet3d.datasets import build_dataset, named_split

    block = named_split(cfg.data, split)
    return build_dataset(block["dataset"] if isinstance(block.get("dataset"), Mapping) else block)


def own_frames(cfg: Config, images: Sequence[str], calibration: str | None, folder: Path) -> dict[str, Any]:
    """The data set of pictures that the user names."""
    from mmdet3d.datasets.kitti.own import lay_out

    block = cfg.data["val"]
    if block.get("type") != "KittiDataset":
        raise ValueError("--image is for models that look through one camera, so for the configs below configs/kitti")
    lay_out(images, calibration, folder)
    return {**block, "dataset_root": str(folder), "split": "test", "ids": None}


def load_model(cfg: Config, checkpoint: str) -> Trainable:
    from mmdet3d.engine.agreement import check_agreement
    from mmdet3d.engine.checkpoint import load_checkpoint
    from mmdet3d.models import build_model

    for doubt in check_agreement(cfg, checkpoint):
        print(f"warning: {doubt}")
    model = build_model(cfg.model)
    print(f"loaded {load_checkpoint(model, checkpoint)}")
    return model.eval()
