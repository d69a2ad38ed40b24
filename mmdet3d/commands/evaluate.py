"""Score results with a benchmark's official metrics."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from mmdet3d.io.files import atomic_write, check_place, in_words, read_json
from mmdet3d.shell import number_of, quote


def main(words: Sequence[str] | None = None) -> int:
    """Run the command line; 0 if all went well, 2 after a message that says what to change."""
    args = _parser().parse_args(words)
    try:
        args.run(args)
    except (ValueError, OSError) as error:
        print(f"error: {in_words(error)}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    benchmarks = parser.add_subparsers(dest="benchmark", required=True)
    nuscenes = benchmarks.add_parser("nuscenes", help="nuScenes detection (devkit, detection_cvpr_2019)")
    nuscenes.add_argument("results", type=Path, help="submission file, results_nusc.json")
    nuscenes.add_argument("--dataroot", type=Path, default=Path("data/nuscenes"), help="where VERSION lies")
    nuscenes.add_argument("--version", default="v1.0-trainval", help="folder of the tables")
    nuscenes.add_argument("--split", help="default: the version's validation split")
    nuscenes.add_argument(
        "--out", type=Path, help="folder for metrics_summary.json (default: that of --report, else beside the results)"
    )
    nuscenes.add_argument("--tokens", type=Path, help="JSON list of sample tokens: score these only")
    nuscenes.add_argument(
        "--report", type=Path, metavar="DIR", help="also write DIR/report.html: where and what it misses"
    )
    nuscenes.add_argument(
        "--against", type=Path, metavar="RESULTS", help="another submission that the report compares with"
    )
    nuscenes.add_argument(
        "--titles", nargs="+", metavar="TITLE", help="of the results in the report (default: folders)"
    )
    nuscenes.add_argument(
        "--min-score", type=float, default=0.3, help="of detections that the report counts (default: 0.3)"
    )
    nuscenes.set_defaults(run=_nuscenes)
    kitti = benchmarks.add_parser("kitti", help="KITTI 3-D objects (AP_R40 and AP_R11: bbox, bev, 3d, aos)")
    kitti.add_argument("detections", type=Path, help="folder of result files, one per frame (000001.txt)")
    kitti.add_argument(
        "--labels", type=Path, default=Path("data/KITTI3D/training/label_2"), help="folder of label files"
    )
    kitti.add_argument("--ids", type=Path, help="list of the frames to score (default: the 3,769 validation frames)")
    kitti.add_argument("--out", type=Path, help="folder for metrics.json (default: beside the folder of detections)")
    kitti.add_argument("--class-map", nargs="+", default=[], metavar="OWN=KITTI", help="what own classes count as")
    kitti.add_argument(
        "--report", type=Path, metavar="DIR", help="also write DIR/report.html: where and what it misses"
    )
    kitti.add_argument(
        "--against", type=Path, metavar="FOLDER", help="other result files that the report compares with"
    )
    kitti.add_argument("--titles", nargs="+", metavar="TITLE", help="of the results in the report (default: folders)")
    kitti.add_argument(
        "--min-score", type=float, default=0.3, help="of detections that the report counts (default: 0.3)"
    )
    kitti.set_defaults(run=_kitti)
    vod = benchmarks.add_parser("vod", help="View-of-Delft (3d, bev, aos: annotated area and driving corridor)")
    vod.add_argument("detections", type=Path, help="folder of result files, one per frame (00001.txt)")
    vod.add_argument("--dataroot", type=Path, default=Path("data/view_of_delft"), help="folder with lidar")
    vod.add_argument("--split", default="val", help="list in lidar/ImageSets of the frames to score")
    vod.add_argument("--out", type=Path, help="folder for metrics.json (default: beside the folder of detections)")
    vod.set_defaults(run=_vod)
    return parser


def _nuscenes(args: argparse.Namespace) -> None:
    from mmdet3d.datasets.nuscenes.submission import score_submission
    from mmdet3d.evaluation.nuscenes import format_metrics

    titles = _titles(args)
    # A report is a place of its own, so that what testing left beside the results stays.
    out = args.out or args.report or _free_place(args, args.results.parent, "metrics_summary.json").parent
    if args.report:
        check_place(args.report, "--report")
    check_place(out, "--out")
    tokens = _read_tokens(args.tokens) if args.tokens else None
    scored = score_submission(args.results, args.dataroot, args.version, args.split, out, tokens)
    print(format_metrics(scored.metrics))
    print(f"\nmetrics written to {out / 'metrics_summary.json'}")
    if args.report is None:
        return
    from mmdet3d.commands._nuscenes_report import write_report

    results = {titles[0]: scored}
    if args.against is not None:
        with tempfile.TemporaryDirectory() as folder:
            other = score_submission(args.against, args.dataroot, args.version, args.split, folder, list(scored.truth))
        results[titles[1]] = other
    print(f"report: {write_report(results, args.dataroot, args.version, args.report, args.min_score)}")


def _titles(args: argparse.Namespace) -> list[str]:
    """Of the submissions, checked before they are read."""
    if args.report is None:
        for option, given in {"--against": args.against, "--titles": args.titles}.items():
            if given is not None:
                raise ValueError(f"{option} is for the report: give --report DIR, too")
    first = args.results if args.benchmark == "nuscenes" else args.detections
    files = [first, *([args.against] if args.against else [])]
    titles = args.titles or [file.resolve().parent.name for file in files]
    if len(titles) != len(files) or len(set(titles)) < len(titles):
        raise ValueError(f"the report needs {len(files)} different titles, got {' '.join(titles)}; give --titles")
    return titles


def _kitti(args: argparse.Namespace) -> None:
    from mmdet3d.datasets.kitti.files import read_ids, split_ids
    from mmdet3d.datasets.kitti.labels import parse_class_map
    from mmdet3d.datasets.kitti.results import evaluate_folder, write_metrics
    from mmdet3d.evaluation.kitti import CLASSES
    from mmdet3d.evaluation.kitti_table import format_metrics, metrics_by_name

    titles = _titles(args)
    args.out = args.out or args.report
    path = _free_place(args, args.detections.parent, "metrics.json")
    if args.report:
        check_place(args.report, "--report")
    check_place(path.parent, "--out")
    ids = read_ids(args.ids) if args.ids else split_ids("val")
    class_map = parse_class_map(args.class_map)
    strict, loose = evaluate_folder(args.detections, args.labels, ids, class_map)
    write_metrics(strict, path)
    print(format_metrics(metrics_by_name(strict, loose, CLASSES)))
    print(f"\n{number_of(len(ids), 'frame')} scored, metrics written to {path}")
    if args.report is None:
        return
    from mmdet3d.commands._kitti_report import write_report

    folders = {titles[0]: args.detections, **({titles[1]: args.against} if args.against else {})}
    print(f"report: {write_report(folders, args.labels, ids, args.report, args.min_score, class_map)}")


def _vod(args: argparse.Namespace) -> None:
    from mmdet3d.datasets.vod.files import split_ids
    from mmdet3d.datasets.vod.labels import evaluate_folder
    from mmdet3d.evaluation.vod import format_metrics

    path = _free_place(args, args.detections.parent, "metrics.json")
    check_place(path.parent, "--out")
    frames = split_ids(args.dataroot, args.split)
    metrics = evaluate_folder(args.detections, args.dataroot / "lidar" / "training" / "label_2", frames)
    with atomic_write(path) as file:
        json.dump(metrics, file, indent=1)
    print(format_metrics(metrics))
    print(f"\n{number_of(len(frames), 'frame')} scored, metrics written to {path}")


def _free_place(args: argparse.Namespace, default: Path, name: str) -> Path:
    """Where metrics go; what an earlier evaluation left beside the results is replaced only if --out says so."""
    path = (args.out or default) / name
    if args.out is None and path.exists():
        raise ValueError(
            f"{path} exists; give --out FOLDER for the new metrics, or --out {quote(default)} to replace it"
        )
    return path


def _read_tokens(path: Path) -> list[str]:
    try:
        tokens = read_json(path, "--tokens")
    except ValueError as error:
        raise ValueError(f"{error}; --tokens takes a JSON list of sample tokens") from None
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise ValueError(f"--tokens {path} must hold a list of sample tokens")
    return tokens
