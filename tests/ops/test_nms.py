from __future__ import annotations

import pytest
import torch

from mmdet3d.ops import nms as op
from mmdet3d.ops.nms import circle_nms, reference, rotated_nms
from mmdet3d.ops.rotated_iou import rotated_iou

pytestmark = pytest.mark.usefixtures("backend")


def crowd(count, spread=20.0, seed=0, dtype=torch.float32):
    """Boxes (N, 5) and scores (N,), many of them equal."""
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.rand(count, 5, generator=generator) * torch.tensor([spread, spread, 5, 2, 6]) + 0.5
    return boxes.to(dtype), (torch.rand(count, generator=generator) * 30).round().to(dtype) / 30


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


@pytest.mark.parametrize("backend", ["native", "emulated"], indirect=True)
@pytest.mark.parametrize(
    ("count", "dtype", "pre", "post"),
    [
        (1, torch.float32, None, None),
        (63, torch.float64, None, None),
        (64, torch.float16, None, 7),
        (65, torch.bfloat16, 50, None),
        (129, torch.float32, 0, None),
        (129, torch.float32, None, 0),
        (200, torch.float32, 70, 60),
    ],
)
def test_equals_twin(count, dtype, pre, post):
    boxes, scores = crowd(count, dtype=dtype)
    groups = torch.randint(-2, 3, (count,), generator=torch.Generator().manual_seed(1))
    for g in (None, groups):
        expected = reference.rotated_nms(boxes, scores, 0.2, pre, post, g)
        assert torch.equal(rotated_nms(boxes, scores, 0.2, pre, post, g), expected)
        expected = reference.circle_nms(boxes[:, :2], scores, 2.0, pre, post, g)
        assert torch.equal(circle_nms(boxes[:, :2], scores, 2.0, pre, post, g), expected)


@pytest.mark.parametrize("backend", ["native", "emulated"], indirect=True)
@pytest.mark.parametrize("threshold", [0.0, 0.05, 0.5, 0.9, 1.0])
def test_bounds_before_clipping_change_nothing(threshold):
    boxes, scores = crowd(150, spread=8.0)
    expected = reference.rotated_nms(boxes, scores, threshold, None, None, None)
    assert torch.equal(rotated_nms(boxes, scores, threshold), expected)


def test_groups_are_independent():
    boxes, scores = crowd(300)
    groups = torch.randint(0, 5, (300,), generator=torch.Generator().manual_seed(1)) * 1000
    for call in (
        lambda i, g: rotated_nms(boxes[i], scores[i], 0.2, 40, 9, g),
        lambda i, g: circle_nms(boxes[i, :2], scores[i], 1.5, 40, 9, g),
    ):
        got = call(slice(None), groups)
        assert (scores[got].diff() <= 0).all()
        expected = [(groups == g).nonzero().squeeze(1) for g in groups.unique()]
        expected = torch.cat([index[call(index, None)] for index in expected])
        assert torch.equal(got.sort().values, expected.sort().values)
        assert torch.equal(got, call(slice(None), groups.int()))


def test_identical_boxes_leave_the_first():
    boxes = torch.tensor([[50.0, -30.0, 4.2, 1.9, 0.7]]).expand(130, 5)
    scores = torch.full((130,), 0.5)
    assert rotated_nms(boxes, scores, 0.99).tolist() == [0]
    assert rotated_nms(boxes, scores, 0.99, groups=torch.arange(130) % 3).tolist() == [0, 1, 2]
    assert circle_nms(boxes[:, :2], scores, 0.0).tolist() == [0]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_box_that_is_not_finite_suppresses_nothing(value):
    boxes, scores = crowd(40)
    expected = rotated_nms(boxes, scores, 0.2)
    centers = circle_nms(boxes[:, :2], scores, 1.0)
    spoilt = torch.cat([boxes, torch.full((3, 5), value)])
    high = torch.cat([scores, torch.full((3,), 2.0)])
    assert rotated_nms(spoilt, high, 0.2)[-len(expected) :].tolist() == expected.tolist()
    assert circle_nms(spoilt[:, :2], high, 1.0)[-len(centers) :].tolist() == centers.tolist()


def test_empty_boxes_survive():
    boxes = torch.zeros(4, 5)
    assert rotated_nms(boxes, torch.ones(4), 0.1).tolist() == [0, 1, 2, 3]


def test_scores_that_are_not_numbers_do_not_crash():
    boxes, scores = crowd(20)
    scores[5] = float("nan")
    expected = reference.rotated_nms(boxes, scores, 0.2, None, None, None)
    assert torch.equal(rotated_nms(boxes, scores, 0.2), expected)


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
    assert rotated_nms(torch.zeros(0, 5), torch.zeros(0), 0.2, groups=torch.zeros(0).long()).shape == (0,)


def test_non_contiguous_and_gradients():
    boxes, scores = crowd(50)
    expected = rotated_nms(boxes, scores, 0.2)
    wanting = boxes.T.contiguous().T.requires_grad_()
    assert torch.equal(rotated_nms(wanting, torch.stack([scores, scores], 1)[:, 0].requires_grad_(), 0.2), expected)


@pytest.mark.parametrize("backend", ["native"], indirect=True)
def test_threads_change_nothing(same_bits):
    boxes, scores = crowd(5000, spread=90.0)
    same_bits(lambda: [rotated_nms(boxes, scores, 0.2, groups=torch.arange(5000) % 7)])


@pytest.mark.parametrize("backend", ["native"], indirect=True)
def test_registration():
    boxes, _ = crowd(20, dtype=torch.float64)
    first, last = torch.zeros(20).long(), torch.full((20,), 20)
    torch.library.opcheck(op._keep, (boxes, first, last, 0.2, -1))
    torch.library.opcheck(op._keep, (boxes[:, :2], first, last, 2.0, 5))


@pytest.mark.parametrize("backend", ["native", "emulated"], indirect=True)
def test_compiled_graph():
    boxes, scores = crowd(30)
    groups = torch.arange(30) % 3
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        graph = torch.compile(rotated_nms, fullgraph=True, backend="eager")
        expected = rotated_nms(boxes, scores, 0.2, 8, 5, groups)
        assert torch.equal(graph(boxes, scores, 0.2, 8, 5, groups), expected)


@pytest.mark.parametrize("backend", ["native", "emulated"], indirect=True)
def test_a_thousand_crowded_boxes():
    boxes, scores = crowd(1000, spread=40.0)
    kept = rotated_nms(boxes, scores, 0.2, 1000, 1000)
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
    with pytest.raises(ValueError, match=r"groups must have shape \(N\) with N = 3, got \(2,\)"):
        rotated_nms(torch.zeros(3, 5), torch.zeros(3), 0.2, groups=torch.zeros(2).long())
    with pytest.raises(ValueError, match="groups must hold integers"):
        circle_nms(torch.zeros(3, 2), torch.zeros(3), 1.0, groups=torch.zeros(3))
    with pytest.raises(ValueError, match="post_max_size must not be negative"):
        rotated_nms(torch.zeros(3, 5), torch.zeros(3), 0.2, post_max_size=-1)
    with pytest.raises(ValueError, match="squared_radius must not be negative, got nan"):
        circle_nms(torch.zeros(3, 2), torch.zeros(3), float("nan"))
