"""Draw ground truth and detections into the camera images and the bird's-eye view, one PNG per sample.

distill3d visualize CONFIG --mode gt --limit 10
distill3d visualize CONFIG --checkpoint CHECKPOINT --mode both --bbox-score 0.2 --out-dir runs/pictures

Pictures of your own, for a model of one camera:

distill3d visualize CONFIG --checkpoint CHECKPOINT --image street.jpg --calib camera.txt

Models side by side, each with its sensors and what it hits, invents and misses; a scene as a film:

distill3d visualize CONFIG --checkpoint CHECKPOINT --title teacher --also student CONFIG2 CHECKPOINT2 --truth-column
distill3d visualize CONFIG --checkpoint CHECKPOINT --also student CONFIG2 CHECKPOINT2 --video runs/scene.webp

Where a student differs from its teacher, and where a loss pulls it (CONFIG is that of a distillation):

distill3d visualize CONFIG --checkpoint CHECKPOINT --tap fuser --loss response --model.teacher.checkpoint TEACHER
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdet3d.config import Config, load_config
from mmdet3d.engine.command import above_zero, add_override_options, natural, read_overrides
from mmdet3d.engine.overrides import configured, options_beside
from mmdet3d.io.files import check_place
from mmdet3d.shell import number_of

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from mmdet3d.datasets import FrameDataset, KittiDataset
    from mmdet3d.engine.pictures import Columns
    from mmdet3d.models.detectors.base import Trainable
    from mmdet3d.structures import Sample

    Draw = Callable[[int], tuple[Image.Image, Sample]]

_SPARE = ("point_cloud_range",)  # says how far the bird's-eye view reaches
SLIDE = 1920  # pixels; six cameras drawn as they are would be wider than any screen


def parse(words: list[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("config", help="YAML file; also looked for below configs/")
    parser.add_argument("--checkpoint", help=".safetensors or .pth; needed for all but --mode gt")
    parser.add_argument(
        "--mode", choices=["gt", "pred", "both"], help="what is drawn (default: gt; pred of --image; both with --also)"
    )
    parser.add_argument("--image", nargs="+", metavar="FILE", help="pictures of your own in place of the data set's")
    parser.add_argument("--calib", metavar="FILE", help="KITTI calibration of --image (default: the .txt beside each)")
    parser.add_argument("--split", choices=["val", "train", "test"], default="val", help="of the config's data")
    parser.add_argument("--out-dir", default="runs/pictures", help="where the pictures go (default: runs/pictures)")
    parser.add_argument("--bbox-score", type=float, default=0.1, help="lowest score of a detection (default: 0.1)")
    parser.add_argument(
        "--map-score", type=float, default=0.5, help="lowest probability of a class of the map (default: 0.5)"
    )
    parser.add_argument("--scores", action="store_true", help="write the scores beside the detections")
    parser.add_argument("--bbox-classes", nargs="+", metavar="CLASS", help="only these classes (names or labels)")
    parser.add_argument("--limit", type=natural, help="stop after so many samples")
    parser.add_argument("--title", default="model", help="of the first model where there are several (default: model)")
    parser.add_argument(
        "--also",
        nargs=3,
        action="append",
        default=[],
        metavar=("TITLE", "CONFIG", "CHECKPOINT"),
        help="another model beside it; may be repeated. Overrides hold for all",
    )
    parser.add_argument("--truth-column", action="store_true", help="begin with a column of the ground truth alone")
    parser.add_argument("--camera", help="that is shown where there are several models (default: the busiest)")
    parser.add_argument(
        "--tap",
        help="draw what this tap of the models answers, and the difference to the first; TAP:TAP names one of the "
        "first and one of the others. With a distillation's config the first is its teacher",
    )
    parser.add_argument("--loss", help="draw where this loss of a distillation's config pulls the student")
    parser.add_argument(
        "--video", metavar="FILE", help="one film of a scene instead: .gif, .webp, or .mp4 (extra `video`)"
    )
    parser.add_argument("--scene", type=int, default=0, help="number of the scene of --video in the split (default: 0)")
    parser.add_argument("--fps", type=above_zero, default=4.0, help="pictures per second of --video (default: 4)")
    parser.add_argument("--width", type=natural, help=f"of each picture, pixels (default: at most {SLIDE})")
    add_override_options(parser)
    args, rest = parser.parse_known_args(words)
    args.mode = args.mode or ("pred" if args.image else "both" if args.also else "gt")
    maps = args.tap is not None or args.loss is not None
    if args.image and (args.mode != "pred" or args.also or maps):
        what = "--also, --tap and --loss draw" if args.also or maps else f"--mode {args.mode} draws"
        raise ValueError(f"{what} annotations, which --image has none of; leave {'them' if maps else '--mode'} out")
    if args.calib and not args.image:
        raise ValueError("--calib is the calibration of --image; give that, too")
    if not args.checkpoint and (args.mode != "gt" or maps):
        what = "--tap and --loss look into a model" if maps else f"--mode {args.mode} draws detections"
        raise ValueError(f"{what}; give --checkpoint FILE")
    if args.also and args.mode != "both":
        raise ValueError(f"--mode {args.mode} draws one model; leave out --also or --mode")
    return args, rest


def main(words: list[str]) -> None:
    args, rest = parse(words)
    with tempfile.TemporaryDirectory() as folder:
        draw_all(args, rest, Path(folder))


def draw_all(args: argparse.Namespace, rest: list[str], folder: Path) -> None:
    """One picture per sample, or a film; `folder` holds what is laid out for it."""
    from mmdet3d.engine import distributed
    from mmdet3d.engine.pictures import picture_extent
    from mmdet3d.engine.run_dir import writable_folder
    from mmdet3d.progress import progress_bar
    from mmdet3d.visualization import check_film, write_film

    if args.video:
        check_film(Path(args.video))
        check_place(Path(args.video).parent, "--video")
    else:
        check_place(args.out_dir, "--out-dir")
    overrides = read_overrides(rest, args.overrides_file, args.imports)
    needed = options_beside(args.checkpoint, args.config) if args.checkpoint else {}
    cfg = configured(args.config, {**needed, **overrides}, _SPARE, with_model=args.mode != "gt")
    if args.image:
        args.split = "test"
        cfg.data["test"] = own_frames(cfg, args.image, args.calib, folder)
    dataset = open_split(cfg, args.split)
    options = {"extent": picture_extent(cfg)}
    only = [label_of(word, dataset.classes) for word in args.bbox_classes or ()]
    device = distributed.init()
    indices = list(range(len(dataset)))
    if args.video:
        found = dataset.scenes()
        if not 0 <= args.scene < len(found):
            raise ValueError(f"--scene {args.scene}: the {args.split} split has scenes 0 to {len(found) - 1}")
        indices = found[args.scene]
    indices = indices[: args.limit]
    best: list[float] = []
    if args.tap is not None or args.loss is not None:
        draw = _maps(args, cfg, overrides, device, options)
    elif args.also:
        draw = _several(args, cfg, overrides, device, options | {"only": only})
    else:
        draw = _one(args, cfg, dataset, device, options | {"only": only}, best)

    def pictures() -> Iterator[tuple[Image.Image, Sample]]:
        for index in progress_bar(indices, desc="draw", unit="sample"):
            picture, sample = draw(index)
            width = args.width or min(picture.width, SLIDE)
            if width != picture.width:
                picture = picture.resize((width, round(picture.height * width / picture.width)))
            yield picture, sample

    if args.video:
        film = write_film((p for p, _ in pictures()), Path(args.video), args.fps)
        print(f"{number_of(len(indices), 'picture')}: {film}")
    else:
        for picture, sample in pictures():
            out_dir = writable_folder(args.out_dir, "--out-dir")  # now that there is something to put there
            time = sample.meta.get("timestamp")
            picture.save(out_dir / f"{'' if time is None else f'{time}-'}{sample.token}.png")
        print(f"{number_of(len(indices), 'picture')}: {args.out_dir}")
    if args.mode != "pred":
        print(f"ground truth: {dataset.annotations(indices)}")
    if best and max(best) < args.bbox_score:
        print(
            f"no detection reaches --bbox-score {args.bbox_score:g}: "
            + (
                f"the best score is {max(best):.2g}, so give a lower one"
                if max(best)
                else "the model finds nothing here"
            )
        )


def _one(
    args: argparse.Namespace,
    cfg: Config,
    dataset: FrameDataset | KittiDataset,
    device: torch.device,
    options: Mapping[str, Any],
    best: list[float],
) -> Draw:
    """Ground truth and what one model finds, in all cameras; `best` gets the best score of every sample."""
    from mmdet3d.datasets import check_data
    from mmdet3d.engine.pictures import ask, draw_sample

    model = None if args.mode == "gt" else load_model(cfg, args.checkpoint).to(device)
    if model is not None:
        check_data(dataset, model.inputs, f"data.{args.split}")
    options = {
        **options,
        "truth": args.mode != "pred",
        "min_score": args.bbox_score,
        "map_score": args.map_score,
        "scores": args.scores,
        "sensors": None if model is None else model.inputs,
    }

    def draw(index: int) -> tuple[Image.Image, Sample]:
        sample = dataset[index]
        if model is None:
            return draw_sample(sample, dataset, **options), sample
        answer = ask(model, sample, device, cfg.get("precision") or "auto")
        detections = answer.detections
        if detections is not None:
            found = zip(detections.scores.tolist(), detections.labels.tolist(), strict=True)
            only = options["only"]
            best.append(max([0.0, *(score for score, label in found if not only or label in only)]))
        return draw_sample(sample, dataset, detections, masks=answer.masks, **options), sample

    return draw


def _several(
    args: argparse.Namespace,
    cfg: Config,
    overrides: Mapping[str, Any],
    device: torch.device,
    options: Mapping[str, Any],
) -> Draw:
    from mmdet3d.engine.pictures import side_by_side

    columns = _columns(args, cfg, overrides, device)
    options = {
        **options,
        "min_score": args.bbox_score,
        "map_score": args.map_score,
        "scores": args.scores,
        "truth_column": args.truth_column,
    }

    def draw(index: int) -> tuple[Image.Image, Sample]:
        return side_by_side(columns, index, camera=args.camera, **options)

    return draw


def _maps(
    args: argparse.Namespace,
    cfg: Config,
    overrides: Mapping[str, Any],
    device: torch.device,
    options: Mapping[str, Any],
) -> Draw:
    """With the config of a distillation its teacher comes first, without its score being asked for."""
    from mmdet3d.distill import Distiller
    from mmdet3d.engine.pictures import draw_maps

    if cfg.model["type"] == "Distiller":
        cfg = load_config(args.config, {"model.teacher.min_score": None, **overrides})
    columns, pulls = _columns(args, cfg, overrides, device), None
    (title, (model, dataset)), *others = columns.items()
    if isinstance(model, Distiller):
        model.setup_training(lambda _: {})
        columns = {"teacher": (model.instructor.loaded(), dataset), title: (model.student, dataset), **dict(others)}
        pulls = None if args.loss is None else (model, args.loss)
    elif args.loss is not None:
        raise ValueError(
            f"--loss: {args.config} describes no distillation, so it has no such loss; give the config of one"
        )
    taps = args.tap.split(":") if args.tap else ()

    def draw(index: int) -> tuple[Image.Image, Sample]:
        return draw_maps(columns, index, taps=taps, pulls=pulls, camera=args.camera, **options)

    return draw


def _columns(args: argparse.Namespace, cfg: Config, overrides: Mapping[str, Any], device: torch.device) -> Columns:
    """The models that the command line names, each with its data."""
    from mmdet3d.datasets import check_data

    configs = {args.title: (cfg, args.checkpoint)}
    for title, config, checkpoint in args.also:
        if title in configs:
            raise ValueError(f"--also {title}: two models have this title; give each its own (--title for the first)")
        needed = options_beside(checkpoint, config)
        configs[title] = configured(config, {**needed, **overrides}, overrides), checkpoint
    columns = {}
    for title, (own, checkpoint) in configs.items():
        model, dataset = load_model(own, checkpoint).to(device), open_split(own, args.split)
        check_data(dataset, model.inputs, f"data.{args.split}")
        columns[title] = model, dataset
    return columns


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
    from mmdet3d.interop.checkpoints import load_checkpoint
    from mmdet3d.models import build_model

    for doubt in check_agreement(cfg, checkpoint):
        print(f"warning: {doubt}")
    model = build_model(cfg.model)
    print(f"loaded {load_checkpoint(model, checkpoint)}")
    return model.eval()
