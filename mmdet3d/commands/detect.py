"""Detect with a trained or an exported model: a JSON of boxes, and a picture per frame.

distill3d detect student.onnx --frames data/nuscenes --out-dir runs/found
distill3d detect student.onnx --frames data/nuscenes --info nuscenes_infos_val.pkl --tokens TOKEN TOKEN
distill3d detect zoo:crkd-demo-distilled --frames data/nuscenes --limit 3
"""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from mmdet3d.commands.export import place_of
from mmdet3d.engine.command import natural
from mmdet3d.shell import number_of

if TYPE_CHECKING:
    from mmdet3d.engine.detector import Detector
    from mmdet3d.structures import Detections3D


def parse(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("model", help=".onnx or .pt2 of `export`, weights or run folder, or zoo:NAME")
    parser.add_argument("--config", help="of the weights (default: configs.yaml beside them, or what their card names)")
    parser.add_argument("--frames", required=True, metavar="ROOT", help="data folder")
    parser.add_argument("--info", metavar="FILE", help="info file in it, or split of KITTI (default: the config's)")
    parser.add_argument("--tokens", nargs="+", metavar="TOKEN", help="these frames only")
    parser.add_argument("--limit", type=natural, help="stop after so many frames")
    parser.add_argument("--out-dir", default="runs/detections", help="default: runs/detections")
    parser.add_argument("--bbox-score", type=float, default=0.3, help="lowest score in a picture (default: 0.3)")
    parser.add_argument("--no-pictures", action="store_true", help="write the JSON alone")
    parser.add_argument("--imports", metavar="MODULE[,MODULE]", help="modules that register parts of your own")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser.parse_args(words)


def main(words: list[str]) -> None:
    args = parse(words)
    from mmdet3d.engine.detector import Detector
    from mmdet3d.engine.pictures import draw_sample
    from mmdet3d.engine.run_dir import writable_folder
    from mmdet3d.io.files import atomic_write, check_place
    from mmdet3d.plugins import import_modules, module_names

    check_place(args.out_dir, "--out-dir")
    if args.imports:
        import_modules(module_names(args.imports.split(","), "the command line"), "imports of the command line")
    detector = Detector.from_file(args.model, args.config)
    frames = detector.frames(args.frames, args.info)
    chosen = [place_of(frames.tokens, t) for t in args.tokens] if args.tokens else range(len(frames))
    out_dir = writable_folder(args.out_dir, "--out-dir")
    found = {}
    for index in list(chosen)[: args.limit]:
        sample = frames[index]
        found[sample.token] = detections = detector(sample)
        if not args.no_pictures:
            picture = draw_sample(
                sample,
                frames,
                detections,
                truth=False,
                min_score=args.bbox_score,
                extent=detector.facts.extent,
                sensors=detector.sensors,
            )
            picture.save(out_dir / f"{sample.token}.png")
    path = out_dir / "detections.json"
    with atomic_write(path) as file:
        file.write(json.dumps(as_json(detector, found), indent=1) + "\n")
    print(f"{number_of(sum(map(len, found.values())), 'detection')} in {number_of(len(found), 'frame')}: {path}")


def as_json(detector: Detector, found: dict[str, Detections3D]) -> dict[str, Any]:
    """Boxes as rows x, y, z, length, width, height, yaw, vx, vy in the frame of `Detections3D`."""
    frames = {
        token: [
            {"class": detector.classes[label], "score": round(score, 6), "box": [round(v, 5) for v in box]}
            for label, score, box in zip(d.labels.tolist(), d.scores.tolist(), d.boxes.tensor.tolist(), strict=True)
        ]
        for token, d in found.items()
    }
    facts = detector.facts
    return {"classes": facts.classes, "config": facts.config, "weights": facts.weights, "frames": frames}
