"""Draw ground truth and detections into the camera images and the bird's-eye view, one PNG per sample.

distill3d visualize CONFIG --mode gt --limit 10
distill3d visualize CONFIG --checkpoint CHECKPOINT --mode both --bbox-score 0.2 --out-dir runs/pictures
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

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
    parser.add_argument("--mode", choices=["gt", "pred", "both"], default="gt", help="what is drawn (default: gt)")
    parser.add_argument("--split", choices=["val", "train", "test"], default="val", help="of the config's data")
    parser.add_argument("--out-dir", default="runs/pictures", help="where the pictures go (default: runs/pictures)")
    parser.add_argument("--bbox-score", type=float, default=0.1, help="lowest score of a detection (default: 0.1)")
    parser.add_argument("--scores", action="store_true", help="write the scores beside the detections")
    parser.add_argument("--bbox-classes", nargs="+", metavar="CLASS", help="only these classes (names or labels)")
    parser.add_argument("--limit", type=int, help="stop after so many samples")
    add_override_options(parser)
    args, rest = parser.parse_known_args(words)
    if args.mode != "gt" and not args.checkpoint:
        raise ValueError(f"--mode {args.mode} draws detections; give --checkpoint FILE")
    return args, rest


def main(words: list[str]) -> None:
    args, rest = parse(words)
    from mmdet3d.datasets import check_data
    from mmdet3d.engine import distributed
    from mmdet3d.engine.pictures import detect, draw_sample, picture_extent
    from mmdet3d.engine.run_dir import writable_folder
    from mmdet3d.progress import progress_bar

    cfg = load_config(args.config, read_overrides(rest, args.overrides_file, args.imports))
    dataset = open_split(cfg, args.split)
    only = [label_of(word, dataset.classes) for word in args.bbox_classes or ()]
    device = distributed.init()
    model = None if args.mode == "gt" else load_model(cfg, args.checkpoint).to(device)
    if model is not None:
        check_data(dataset, model.inputs, f"data.{args.split}")
    out_dir = writable_folder(args.out_dir)
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
        )
        time = sample.meta.get("timestamp")
        picture.save(out_dir / f"{'' if time is None else f'{time}-'}{sample.token}.png")
    print(f"{count} pictures: {out_dir}")
    if args.mode != "pred":
        print(f"ground truth: {dataset.annotations(range(count))}")
    if model is not None and best < args.bbox_score:
        print(
            f"no detection reaches --bbox-score {args.bbox_score:g}: "
            + (f"the best score is {best:.2g}, so give a lower one" if best else "the model finds nothing here")
        )


def label_of(word: str, classes: Sequence[str]) -> int:
    """Of a class by its name, or by its label as text."""
    from mmdet3d.blocks import nearest

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
    from mmdet3d.datasets import build_dataset

    block = cfg.data[split]
    return build_dataset(block["dataset"] if isinstance(block.get("dataset"), Mapping) else block)


def load_model(cfg: Config, checkpoint: str) -> Trainable:
    from mmdet3d.engine.agreement import check_agreement
    from mmdet3d.engine.checkpoint import load_checkpoint
    from mmdet3d.models import build_model

    for doubt in check_agreement(cfg, checkpoint):
        print(f"warning: {doubt}")
    model = build_model(cfg.model)
    print(f"loaded {load_checkpoint(model, checkpoint)}")
    return model.eval()
