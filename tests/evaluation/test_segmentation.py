"""IoU of the map: golden counts of the specification (section 8.2), and how tasks are put together."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from mmdet3d.evaluation import nuscenes, segmentation
from mmdet3d.evaluation.benchmark import combined
from mmdet3d.evaluation.segmentation import MAIN, THRESHOLDS, MapSegmentation, count, score_counts
from mmdet3d.structures import Batch, BEVGrid, BEVMasks


def masks(values: Tensor, classes: tuple[str, ...]) -> BEVMasks:
    return BEVMasks(values, classes, BEVGrid((0.0, 0.0), (1.0, 1.0), tuple(values.shape[1:])))


def test_counts_are_added_before_they_are_divided() -> None:
    first = count(torch.tensor([[[0.9, 0.6], [0.4, 0.1]]]), torch.tensor([[[1, 0], [1, 0]]]))
    second = count(torch.tensor([[[0.55, 0.5], [0.2, 0.7]]]), torch.tensor([[[1, 1], [0, 0]]]))
    total = first + second
    assert total[0].T.tolist() == [[4, 4, 3, 3, 2, 1, 1], [2, 2, 2, 2, 2, 2, 1], [0, 0, 1, 1, 2, 3, 3]]
    metrics = score_counts(total, ["a"])
    found = [metrics[f"map/a/iou@{t:.2f}"] for t in THRESHOLDS]
    assert found == pytest.approx([0.666667, 0.666667, 0.5, 0.5, 0.333333, 0.166667, 0.2], abs=1e-6)
    assert metrics["map/a/iou@max"] == pytest.approx(0.666667, abs=1e-6)


def test_golden_counts_of_the_large_case() -> None:
    row, column = torch.meshgrid(torch.arange(200.0), torch.arange(200.0), indexing="ij")
    first = torch.sin(0.1 * row) + 2 * torch.cos(0.07 * column) - 0.5
    second = torch.cos(0.05 * row) - torch.sin(0.03 * column) - 1
    truth = torch.stack([(row + 2 * column) % 5 < 2, (3 * row + column) % 7 == 0])
    found = count(torch.stack([first, second]).sigmoid(), truth)
    assert found[0].T.tolist() == [
        [9106, 8529, 7966, 7404, 6780, 6054, 5091],
        [13663, 12804, 11968, 11089, 10153, 9074, 7610],
        [6894, 7471, 8034, 8596, 9220, 9946, 10909],
    ]
    metrics = score_counts(found, ["a", "b"])
    iou = [metrics[f"map/b/iou@{t:.2f}"] for t in THRESHOLDS]
    assert iou == pytest.approx([0.1094, 0.1024, 0.0940, 0.0862, 0.0764, 0.0641, 0.0462], abs=5e-5)
    assert metrics[MAIN] == pytest.approx(0.2082, abs=5e-5)
    assert metrics["map/mean/iou@0.50"] == pytest.approx((0.2733 + 0.0862) / 2, abs=5e-5)


def test_what_is_kept_of_samples_scores_like_all_of_them_at_once() -> None:
    torch.manual_seed(0)
    task, names = MapSegmentation(("a", "b")), ("a", "b")
    found, truth = torch.rand(4, 2, 6, 5), torch.rand(4, 2, 6, 5) > 0.5
    batches = [Batch(list("xy"), None, masks=[masks(t, names) for t in truth[k : k + 2]]) for k in (0, 2)]
    kept = [
        v
        for k, b in zip((0, 2), batches, strict=True)
        for v in task.keep([masks(f, names) for f in found[k : k + 2]], b)
    ]
    whole = count(found.transpose(0, 1).flatten(1, 2), truth.transpose(0, 1).flatten(1, 2))
    assert task.score(kept, Path()) == score_counts(whole, names)


def test_a_class_that_is_nowhere_has_zero() -> None:
    metrics = score_counts(count(torch.zeros(1, 3, 3), torch.zeros(1, 3, 3)), ["a"])
    assert metrics["map/a/iou@max"] == 0


def test_the_reported_names_are_those_of_the_benchmark() -> None:
    report = segmentation.benchmark(["a", "b"])
    metrics = score_counts(torch.ones(2, 7, 3), ["a", "b"])
    assert list(metrics) == report.metrics and len(metrics) == 2 * 8 + 2 and report.main == MAIN
    assert all(column.key in metrics for column in report.columns)
    lines = report.table(metrics).splitlines()
    assert lines[0].split()[:4] == ["map", "IoU,", "percent", "max"]
    assert [line.split()[0] for line in lines[1:]] == ["a", "b", "mean"] and lines[1].split()[1] == "33.33"


def test_tables_of_two_tasks_show_what_was_scored() -> None:
    both = combined([nuscenes.benchmark(nuscenes.CLASSES), segmentation.benchmark(["a"])])
    assert both.main == "object/nds" and MAIN in both.metrics and both.columns[-1].key == "map/a/iou@max"
    shown = both.table(score_counts(torch.ones(1, 7, 3), ["a"]))
    assert "map IoU" in shown and "NDS" not in shown


def test_a_map_of_other_classes_is_refused() -> None:
    data = Batch(["x"], None, masks=[masks(torch.zeros(1, 2, 2).bool(), ("a",))])
    with pytest.raises(ValueError, match=r"that is predicted has b over .*loaded a over"):
        MapSegmentation(("a",)).keep([masks(torch.zeros(1, 2, 2), ("b",))], data)
    with pytest.raises(ValueError, match="the evaluation of the map needs `masks`"):
        MapSegmentation(("a",)).keep([masks(torch.zeros(1, 2, 2), ("a",))], Batch(["x"], None))
