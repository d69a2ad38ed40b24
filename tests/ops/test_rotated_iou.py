from __future__ import annotations

import math

import pytest
import shapely
import shapely.affinity
import torch

from mmdet3d.ops import rotated_iou as op
from mmdet3d.ops.rotated_iou import paired_rotated_iou, reference, rotated_iou, rotated_iou_3d
from mmdet3d.structures import Boxes3D

pytestmark = pytest.mark.usefixtures("backend")


def rectangles(count, seed=0, spread=6.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    scale = torch.tensor([spread, spread, 5.0, 3.0, 8.0], dtype=dtype)
    return torch.rand(count, 5, generator=generator, dtype=dtype) * scale + torch.tensor([0, 0, 0.1, 0.1, -4.0])


def boxes_in_space(count, seed=0, dtype=torch.float64):
    ground = rectangles(count, seed, dtype=dtype)
    generator = torch.Generator().manual_seed(seed + 100)
    z, height = torch.rand(2, count, generator=generator, dtype=dtype) * 2 + 0.2
    return torch.stack([*ground[:, :2].T, z, *ground[:, 2:4].T, height, ground[:, 4]], dim=1)


def polygon(box):
    x, y, length, width, yaw = box
    flat = shapely.box(-length / 2, -width / 2, length / 2, width / 2)
    return shapely.affinity.translate(shapely.affinity.rotate(flat, yaw, (0, 0), use_radians=True), x, y)


def by_shapely(first, second):
    a, b = [polygon(r.tolist()) for r in first], [polygon(r.tolist()) for r in second]
    table = [[p.intersection(q).area / p.union(q).area for q in b] for p in a]
    return torch.tensor(table, dtype=torch.float64)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-6)])
def test_equals_shapely(dtype, tolerance):
    first, second = rectangles(25), rectangles(30, seed=1)
    expected = by_shapely(first, second)
    assert (expected > 0).sum() > 100
    got = rotated_iou(first.to(dtype), second.to(dtype))
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-6)])
def test_equals_twin(dtype, tolerance):
    first, second = rectangles(90, dtype=dtype), rectangles(70, seed=1, dtype=dtype)
    got, expected = rotated_iou(first, second), reference.rotated_iou(first, second)
    assert got.dtype == expected.dtype
    torch.testing.assert_close(got, expected, rtol=0, atol=tolerance)
    got, expected = paired_rotated_iou(first[:70], second), expected[:70].diagonal()
    torch.testing.assert_close(got, expected, rtol=0, atol=tolerance)
    first, second = boxes_in_space(50, dtype=dtype), boxes_in_space(60, seed=1, dtype=dtype)
    got = rotated_iou_3d(first, second)
    torch.testing.assert_close(got, reference.rotated_iou_3d(first, second), rtol=0, atol=tolerance)


@pytest.mark.parametrize("angle", [0.0, 1e-300, 1e-17, 1e-9, 1e-4, math.pi / 2, math.pi, -math.pi / 2 + 1e-8, 1e6])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_almost_parallel_edges(angle, dtype):
    """Boxes that share borders, turned by next to nothing or by a multiple of a right angle."""
    flat = torch.tensor(
        [[0, 0, 4, 2, 0], [2, 0, 4, 2, 0], [0, 1, 4, 2, 0], [1, 0, 2, 2, 0], [4, 2, 4, 2, 0]], dtype=dtype
    )
    turned = flat.clone()
    turned[:, 4] = angle
    expected = by_shapely(flat.double(), turned.double())
    got = rotated_iou(flat, turned).double()
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12 if dtype == torch.float64 else 3e-6)


def test_huge_and_far_boxes():
    boxes = torch.tensor([[0.0, 0, 4, 2, 0.3], [1e8, -1e8, 4, 2, 0.3], [0, 0, 1e7, 1e7, 1.0], [1e30, 0, 1e-3, 1e30, 0]])
    iou = rotated_iou(boxes.double(), boxes.double())
    torch.testing.assert_close(iou[:3, :3], torch.eye(3).double(), rtol=0, atol=1e-12)
    assert iou[0, 3] == iou[1, 3] == 0
    assert iou[2, 0].item() == pytest.approx(8e-14, rel=1e-6)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("column", range(7))
def test_a_box_that_is_not_finite_spoils_no_other(value, column):
    boxes = boxes_in_space(6)
    expected = rotated_iou_3d(boxes, boxes)
    spoilt = boxes.clone()
    spoilt[2, column] = value
    got = rotated_iou_3d(boxes, spoilt)
    others = [0, 1, 3, 4, 5]
    assert torch.equal(got[:, others], expected[:, others])
    assert not (got[:, 2] > expected[:, 2] + 1).any()
    ground = [0, 1, 3, 4, 6]
    assert torch.equal(
        rotated_iou(boxes[:, ground], spoilt[:, ground])[:, others],
        rotated_iou(boxes[:, ground], boxes[:, ground])[:, others],
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_identical_boxes_far_from_the_origin(dtype):
    boxes = rectangles(200, dtype=torch.float64).to(dtype)
    boxes[:, :2] += 60
    iou = rotated_iou(boxes, boxes.clone()).diagonal()
    torch.testing.assert_close(iou, torch.ones_like(iou), rtol=0, atol=1e-5)


def test_golden_values():
    box = torch.tensor([[1.0, 2.0, 4.0, 2.0, 0.3]])
    turned = torch.tensor([[1.0, 2.0, 2.0, 4.0, 0.3 + math.pi / 2]])  # the same rectangle
    half_turn = torch.tensor([[1.0, 2.0, 4.0, 2.0, 0.3 + math.pi]])
    inside = torch.tensor([[1.0, 2.0, 2.0, 1.0, 0.3]])
    crossed = torch.tensor([[1.0, 2.0, 4.0, 2.0, 0.3 + math.pi / 2]])
    apart = torch.tensor([[20.0, 2.0, 4.0, 2.0, 0.3]])
    got = rotated_iou(box, torch.cat([turned, half_turn, inside, crossed, apart]))
    torch.testing.assert_close(got, torch.tensor([[1.0, 1.0, 0.25, 4 / 12, 0.0]]), rtol=0, atol=1e-6)


def test_touching_and_axis_aligned():
    boxes = torch.tensor([[0.0, 0, 2, 2, 0], [2, 0, 2, 2, 0], [1, 0, 2, 2, 0], [1, 1, 2, 2, math.pi / 2]])
    expected = torch.tensor(
        [[1, 0, 1 / 3, 1 / 7], [0, 1, 1 / 3, 1 / 7], [1 / 3, 1 / 3, 1, 1 / 3], [1 / 7, 1 / 7, 1 / 3, 1]]
    )
    torch.testing.assert_close(rotated_iou(boxes, boxes), expected, rtol=0, atol=1e-6)


def test_degenerate_boxes_have_no_overlap():
    boxes = torch.tensor([[0.0, 0, 0, 0, 0], [0, 0, 3, 0, 1.0], [0, 0, 2, 2, 0.2]])
    assert torch.equal(rotated_iou(boxes, boxes), torch.diag(torch.tensor([0.0, 0.0, 1.0])))


@pytest.mark.parametrize(("n", "m"), [(0, 3), (3, 0), (0, 0)])
def test_empty(n, m):
    assert rotated_iou(torch.zeros(n, 5), torch.zeros(m, 5)).shape == (n, m)
    assert rotated_iou_3d(torch.zeros(n, 7), torch.zeros(m, 7)).shape == (n, m)
    assert paired_rotated_iou(torch.zeros(0, 5), torch.zeros(0, 5)).shape == (0,)


def test_gradients():
    first = torch.tensor(
        [[0.1, 0.2, 4.0, 2.0, 0.3], [3.0, 1.0, 2.0, 1.5, -1.1]], dtype=torch.float64, requires_grad=True
    )
    second = torch.tensor(
        [[0.9, -0.3, 3.0, 2.5, 1.0], [2.5, 0.6, 4.5, 1.9, 2.0]], dtype=torch.float64, requires_grad=True
    )
    assert torch.autograd.gradcheck(rotated_iou, (first, second))
    assert torch.autograd.gradcheck(paired_rotated_iou, (first, second))
    assert torch.autograd.gradcheck(rotated_iou, (first, second.detach()))
    space = [boxes_in_space(3, seed).requires_grad_() for seed in (0, 1)]
    assert torch.autograd.gradcheck(rotated_iou_3d, space)


def test_asking_for_gradients_changes_no_value():
    first, second = rectangles(30), rectangles(30, seed=1)
    got = rotated_iou(first.requires_grad_(), second)
    assert got.requires_grad
    torch.testing.assert_close(got.detach(), rotated_iou(first.detach(), second), rtol=0, atol=1e-12)


def test_non_contiguous_and_half():
    boxes = rectangles(8, dtype=torch.float32)
    expected = rotated_iou(boxes, boxes)
    torch.testing.assert_close(rotated_iou(boxes.T.contiguous().T, boxes), expected)
    for dtype in (torch.float16, torch.bfloat16):
        half = boxes.to(dtype)
        got = rotated_iou(half, half)
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, rotated_iou(half.float(), half.float()))
        torch.testing.assert_close(rotated_iou(half, boxes.double()), rotated_iou(half.double(), boxes.double()))


@pytest.mark.parametrize("backend", ["native"], indirect=True)
def test_threads_change_nothing(same_bits):
    boxes = rectangles(300)
    many, one = boxes.repeat(30, 1), boxes[:1].repeat(9000, 1)
    same_bits(lambda: (rotated_iou(boxes, boxes), paired_rotated_iou(many, one)))


@pytest.mark.parametrize("backend", ["native"], indirect=True)
def test_registration():
    first, second = rectangles(4), rectangles(4, seed=1)
    for paired in (False, True):
        torch.library.opcheck(op._iou, (first, second, paired))
    torch.library.opcheck(op._iou, (boxes_in_space(3), boxes_in_space(5), False))


@pytest.mark.parametrize("backend", ["native", "emulated"], indirect=True)
def test_compiled_graph():
    first, second = rectangles(6), rectangles(4, seed=1)
    graph = torch.compile(rotated_iou, fullgraph=True, backend="eager")
    assert torch.equal(graph(first, second), rotated_iou(first, second))


def test_3d_equals_ground_times_height():
    boxes = boxes_in_space(20)
    ground, z, height = boxes[:, [0, 1, 3, 4, 6]], boxes[:, 2], boxes[:, 5]
    got = rotated_iou_3d(boxes, boxes)
    shapes = [polygon(r.tolist()) for r in ground]
    for i in range(20):
        for j in range(20):
            common = min(z[i] + height[i] / 2, z[j] + height[j] / 2) - max(z[i] - height[i] / 2, z[j] - height[j] / 2)
            overlap = shapes[i].intersection(shapes[j]).area * max(common.item(), 0)
            union = shapes[i].area * height[i] + shapes[j].area * height[j] - overlap
            assert got[i, j].item() == pytest.approx((overlap / union).item(), abs=1e-9)


def test_convention_is_that_of_boxes():
    """The corners of `Boxes3D` span the rectangle that the IoU uses."""
    box = Boxes3D(torch.tensor([[3.0, 1.0, 0.0, 4.0, 2.0, 1.5, 0.7, 0.0, 0.0]]))
    other = rectangles(10, dtype=torch.float64)
    expected = [shapely.Polygon(box.footprint()[0].tolist()).intersection(polygon(o.tolist())).area for o in other]
    iou = rotated_iou(box.tensor[:, [0, 1, 3, 4, 6]].double(), other)[0]
    area = 8 + other[:, 2] * other[:, 3]
    torch.testing.assert_close(iou * area / (1 + iou), torch.tensor(expected).double(), rtol=0, atol=1e-5)


def test_wrong_shapes():
    with pytest.raises(ValueError, match=r"second must have shape \(M, 5\), got \(3, 7\)"):
        rotated_iou(torch.zeros(2, 5), torch.zeros(3, 7))
    with pytest.raises(ValueError, match=r"first must have shape \(N, 7\), got \(2, 9\)"):
        rotated_iou_3d(torch.zeros(2, 9), torch.zeros(3, 7))
    with pytest.raises(ValueError, match=r"second must have shape \(P, 5\) with P = 2, got \(3, 5\)"):
        paired_rotated_iou(torch.zeros(2, 5), torch.zeros(3, 5))
