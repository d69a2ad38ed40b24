"""Record what models see and find, to look at it interactively: cameras, points, radar and boxes on one time line.

distill3d view runs/crkd --save scene.rrd
distill3d view runs/crkd/distilled runs/crkd/control --titles distilled control --frames data/nuscenes --save scene.rrd

`rerun scene.rrd` opens the recording; `pip install 'distill3d[viewer]'` brings it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mmdet3d.engine.command import natural
from mmdet3d.shell import number_of


def parse(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("models", nargs="+", metavar="RUN", help="run folder, weights, .onnx or .pt2, or zoo:NAME")
    parser.add_argument("--save", required=True, type=Path, metavar="FILE", help="the recording, a .rrd")
    parser.add_argument("--titles", nargs="+", metavar="TITLE", help="of the models (default: names of their files)")
    parser.add_argument("--frames", metavar="ROOT", help="data folder (default: that of the first model's config)")
    parser.add_argument("--info", metavar="FILE", help="info file in it, or split of KITTI (default: the config's)")
    parser.add_argument("--scene", type=int, default=0, help="number of the scene (default: 0)")
    parser.add_argument("--limit", type=natural, help="stop after so many frames")
    parser.add_argument("--bbox-score", type=float, default=0.3, help="lowest score of a detection (default: 0.3)")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args(words)
    args.titles = args.titles or [_title(model) for model in args.models]
    if len(args.titles) != len(args.models) or len({*args.titles, "truth"}) <= len(args.titles):
        raise ValueError(
            f"{len(args.models)} models need as many different titles, other than 'truth', got "
            f"{' '.join(args.titles)}; give --titles"
        )
    return args


def main(words: list[str]) -> None:
    args = parse(words)
    from mmdet3d.engine.detector import Detector
    from mmdet3d.engine.viewing import record
    from mmdet3d.io.files import check_place
    from mmdet3d.visualization.recording import check_recording
    from mmdet3d.zoo import weight_path

    check_recording(args.save)
    check_place(args.save.parent, "--save")
    detectors = {}
    root = args.frames
    for title, model in zip(args.titles, args.models, strict=True):
        detector = Detector.from_file(weight_path(model))
        root = root or detector.data["dataset_root"]
        detectors[title] = detector, detector.frames(root, args.info)
    scenes = next(iter(detectors.values()))[1].scenes()
    if not 0 <= args.scene < len(scenes):
        raise ValueError(f"--scene {args.scene}: {root} has scenes 0 to {len(scenes) - 1}")
    indices = scenes[args.scene][: args.limit]
    args.save.parent.mkdir(parents=True, exist_ok=True)
    counts = record(detectors, indices, args.save, args.bbox_score)
    boxes = ", ".join(f"{count} {'box' if count == 1 else 'boxes'} of {title}" for title, count in counts.items())
    print(f"{number_of(len(indices), 'frame')}, {boxes}: {args.save} (open it with: rerun {args.save})")


def _title(model: str) -> str:
    """The folder of a run, the stem of a file, the name of a model of the zoo."""
    return Path(model.removeprefix("zoo:")).stem
