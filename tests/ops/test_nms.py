from __future__ import annotations

import pytest
import torch

from mmdet3d.ops.nms import circle_nms, rotated_nms
from mmdet3d.ops.rotated_iou import rotated_iou


def by_loop(conflict, scores):
    order = sorted(range(len(scores)), key=lambda i: -scores[i].item())
    kept = []
    for i in order:
        if not any(conflict(k, i) for k in kept):
            kept.append(i)
    return kept


def test_circle_radius_is_squared():
    centers = torch.tensor([[0.0, 0], [2.0, 0], [2.01, 0], [4.02, 0]])
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6])
    # 2.0 m lies exactly on the circle of 4 m^2, 2.01 m outside it.
    assert circle_nms(centers, scores, 4.0).tolist() == [0, 2, 3]
    assert circle_nms(centers, scores, 4.1).tolist() == [0, 3]


def test_circle_equals_loop():
    generator = torch.Generator().manual_seed(0)
    centers, scores = torch.rand(60, 2, generator=generator) * 10, torch.rand(60, generator=generator)
    expected = by_loop(lambda a, b: (centers[a] - centers[b]).square().sum() <= 1.5, scores)
    assert circle_nms(centers, scores, 1.5).tolist() == expected
    assert circle_nms(centers, scores, 1.5, post_max_size=3).tolist() == expected[:3]


def test_rotated_equals_loop():
    generator = torch.Generator().manual_seed(0)
    boxes = torch.rand(60, 5, generator=generator) * torch.tensor([8.0, 8, 4, 2, 6]) + torch.tensor([0, 0, 0.5, 0.5, 0])
    scores = torch.rand(60, generator=generator)
    iou = rotated_iou(boxes, boxes)
    expected = by_loop(lambda a, b: iou[a, b] > 0.2, scores)
    assert 5 < len(expected) < 60
    assert rotated_nms(boxes, scores, 0.2).tolist() == expected
    assert rotated_nms(boxes, scores, 0.2, post_max_size=4).tolist() == expected[:4]


def test_equality_with_the_threshold_survives():
    boxes = torch.tensor([[0.0, 0, 2, 2, 0], [0, 0, 2, 1, 0]])  # IoU exactly 1/2
    assert rotated_nms(boxes, torch.tensor([0.9, 0.8]), 0.5).tolist() == [0, 1]
    assert rotated_nms(boxes, torch.tensor([0.9, 0.8]), 0.49).tolist() == [0]


def test_a_suppressed_box_suppresses_nothing():
    boxes = torch.tensor([[0.0, 0, 4, 2, 0], [1.5, 0, 4, 2, 0], [3.0, 0, 4, 2, 0]])
    assert rotated_nms(boxes, torch.tensor([0.9, 0.8, 0.7]), 0.3).tolist() == [0, 2]


def test_pre_max_size_drops_the_worst_before_suppression():
    centers = torch.tensor([[0.0, 0], [10.0, 0], [20.0, 0]])
    assert circle_nms(centers, torch.tensor([0.1, 0.3, 0.2]), 1.0, pre_max_size=2).tolist() == [1, 2]
    boxes = torch.cat([centers, torch.tensor([[2.0, 1, 0]]).expand(3, 3)], dim=1)
    assert rotated_nms(boxes, torch.tensor([0.1, 0.3, 0.2]), 0.2, pre_max_size=2).tolist() == [1, 2]


def test_equal_scores_keep_their_order():
    centers = torch.arange(20.0)[:, None].expand(20, 2) * 10
    assert circle_nms(centers, torch.full((20,), 0.5), 1.0).tolist() == list(range(20))


def test_empty_and_single():
    assert circle_nms(torch.zeros(0, 2), torch.zeros(0), 1.0).shape == (0,)
    assert rotated_nms(torch.zeros(0, 5), torch.zeros(0), 0.2).dtype == torch.int64
    assert rotated_nms(torch.ones(1, 5), torch.ones(1), 0.2).tolist() == [0]


def test_a_thousand_crowded_boxes():
    generator = torch.Generator().manual_seed(0)
    boxes = torch.rand(1000, 5, generator=generator) * torch.tensor([40.0, 40, 5, 2, 6]) + 0.5
    kept = rotated_nms(boxes, torch.rand(1000, generator=generator), 0.2, 1000, 1000)
    iou = rotated_iou(boxes, boxes)
    assert (iou[kept][:, kept] - torch.eye(len(kept)) <= 0.2).all()
    assert (iou[:, kept] > 0.2).any(1).all()  # every box is kept or conflicts with a kept one


def test_wrong_arguments():
    with pytest.raises(ValueError, match=r"scores must have shape \(N\) with N = 3, got \(2,\)"):
        circle_nms(torch.zeros(3, 2), torch.zeros(2), 1.0)
    with pytest.raises(ValueError, match=r"boxes must have shape \(N, 5\), got \(3, 7\)"):
        rotated_nms(torch.zeros(3, 7), torch.zeros(3), 0.2)
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\], got 20"):
        rotated_nms(torch.zeros(3, 5), torch.zeros(3), 20)
    with pytest.raises(ValueError, match="must not be negative"):
        circle_nms(torch.zeros(3, 2), torch.zeros(3), -1.0)
