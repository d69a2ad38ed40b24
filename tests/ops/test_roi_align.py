from __future__ import annotations

import math

import pytest
import torch

from mmdet3d.ops import native
from mmdet3d.ops.roi_align import REACH, _align, exported, roi_align

pytestmark = pytest.mark.usefixtures("backend")

HEIGHT, WIDTH = 9, 12
BOXES = torch.tensor(
    [
        [0, 1.2, 2.3, 8.7, 7.9],
        [1, 0.0, 0.0, 11.0, 8.0],
        [1, -3.0, -2.0, 4.0, 3.5],
        [0, 9.5, 6.5, 15.0, 12.0],
        [0, 5.0, 5.0, 5.0, 5.0],
        [1, 30.0, 30.0, 40.0, 40.0],
        [0, 7.0, 6.0, 3.0, 2.0],
        [0, -1.0, -1.0, 12.0, 9.0],
    ]
)


def inputs(dtype=torch.float32, channels=3):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, channels, HEIGHT, WIDTH, generator=generator, dtype=dtype), BOXES.to(dtype, copy=True)


def by_samples(features, boxes, size, scale=1.0, ratio=0, aligned=False):
    """The definition, sample by sample."""
    out = features.new_zeros(len(boxes), features.shape[1], *size)
    extents = features.shape[2:]

    def value(plane, y, x):
        if y < -1 or y > extents[0] or x < -1 or x > extents[1]:
            return plane.new_zeros(plane.shape[0])
        y, x = (min(max(v, 0.0), e - 1.0) for v, e in zip((y, x), extents, strict=True))
        y0, x0 = int(y), int(x)
        y1, x1 = min(y0 + 1, extents[0] - 1), min(x0 + 1, extents[1] - 1)
        top = plane[:, y0, x0] * (1 - (x - x0)) + plane[:, y0, x1] * (x - x0)
        return top * (1 - (y - y0)) + (plane[:, y1, x0] * (1 - (x - x0)) + plane[:, y1, x1] * (x - x0)) * (y - y0)

    for k, (n, *corners) in enumerate(boxes.tolist()):
        x0, y0, x1, y1 = (c * scale - 0.5 * aligned for c in corners)
        lengths = [v if aligned else max(v, 1.0) for v in (y1 - y0, x1 - x0)]
        bins = [length / count for length, count in zip(lengths, size, strict=True)]
        grid = [ratio or math.ceil(b) for b in bins]
        for i in range(size[0]):
            for j in range(size[1]):
                for a in range(grid[0]):
                    for b in range(grid[1]):
                        y = y0 + i * bins[0] + (a + 0.5) * bins[0] / grid[0]
                        x = x0 + j * bins[1] + (b + 0.5) * bins[1] / grid[1]
                        out[k, :, i, j] += value(features[int(n)], y, x) / (grid[0] * grid[1])
    return out


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("ratio", [0, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_against_the_definition(dtype, ratio, aligned):
    features, boxes = inputs(dtype)
    boxes[:, 1:] *= 2
    got = roi_align(features, boxes, (3, 4), spatial_scale=0.5, sampling_ratio=ratio, aligned=aligned)
    expected = by_samples(features.double(), boxes.double(), (3, 4), 0.5, ratio, aligned)
    torch.testing.assert_close(got, expected.to(dtype), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", ["native"], indirect=True)
@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("ratio", [0, 2])
def test_the_form_for_compiled_programs_against_the_definition(ratio, aligned):
    """Also where a box has no extent, or no answer."""
    features, boxes = inputs(channels=2)
    boxes[:, 1:] -= 0.013  # no sample on the outermost edge, where rounding decides
    size, scale = (3, 2), 0.7
    found = exported.roi_align(features, boxes, size, scale, ratio, aligned)
    torch.testing.assert_close(found, by_samples(features, boxes, size, scale, ratio, aligned), atol=1e-5, rtol=0)
    boxes[2, 3] = torch.nan
    assert exported.roi_align(features, boxes, size, scale, ratio, aligned)[2].isnan().all()


def test_a_ramp_is_read_at_the_centres_of_the_bins():
    y, x = torch.meshgrid(torch.arange(40.0), torch.arange(50.0), indexing="ij")
    box = torch.tensor([[0, 5.0, 8.0, 33.0, 22.0]])
    centers_x = (5 + (torch.arange(7) + 0.5) * 4)[None].expand(7, 7)
    centers_y = (8 + (torch.arange(7) + 0.5) * 2)[:, None].expand(7, 7)
    torch.testing.assert_close(roi_align((3 * x + y)[None, None], box, 7)[0, 0], 3 * centers_x + centers_y)
    half = roi_align((3 * x + y)[None, None], box, 7, aligned=True)[0, 0]
    torch.testing.assert_close(half, 3 * (centers_x - 0.5) + centers_y - 0.5)


@pytest.mark.parametrize("options", [{}, {"sampling_ratio": 2}, {"aligned": True, "spatial_scale": 0.7}])
def test_gradients(options):
    features, boxes = inputs(torch.float64, channels=1)
    features, boxes = features[..., :6, :8].clone().requires_grad_(), boxes[:4]
    assert torch.autograd.gradcheck(lambda f: roi_align(f, boxes, (2, 3), **options), features)


def test_gradient_equals_the_twins():
    features, boxes = inputs()
    features.requires_grad_()
    seed = torch.randn(len(boxes), 3, 7, 7, generator=torch.Generator().manual_seed(1))
    (got,) = torch.autograd.grad(roi_align(features, boxes, 7), features, seed)
    with native.forced("reference"):
        (expected,) = torch.autograd.grad(roi_align(features, boxes, 7), features, seed)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_library_checks(backend):
    if backend != "native":
        pytest.skip("the registration does not depend on the kernels")
    features, boxes = inputs()
    torch.library.opcheck(_align, (features.requires_grad_(), boxes, [2, 3], 1.0, 0, False))


def test_empty_one_and_non_contiguous():
    features, boxes = inputs()
    assert roi_align(features, boxes[:0], 7).shape == (0, 3, 7, 7)
    assert roi_align(features[:, :0], boxes, 7).shape == (8, 0, 7, 7)
    features.requires_grad_()
    roi_align(features, boxes[:0], 7).sum().backward()
    assert not features.grad.any()
    expected = roi_align(features, boxes, 7)
    torch.testing.assert_close(roi_align(features, boxes[2:3], 7), expected[2:3])
    strided = features.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    torch.testing.assert_close(roi_align(strided, boxes.T.contiguous().T, 7), expected)
    one_pixel = features[:, :, :1, :1]
    torch.testing.assert_close(roi_align(one_pixel, boxes[4:5] * 0, 2)[0], one_pixel[0].expand(3, 2, 2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    features, boxes = inputs()
    got = roi_align(features.to(dtype), boxes, 7)
    assert got.dtype == dtype
    torch.testing.assert_close(got, roi_align(features.to(dtype).float(), boxes, 7).to(dtype))


def test_boxes_without_an_answer_are_nan():
    features, _ = inputs()
    boxes = torch.tensor([[0, 1, 1, 5, 5], [0, 1, torch.nan, 5, 5], [1, 1, 1, torch.inf, 5], [1, -1e30, 0, 5, 5.0]])
    features.requires_grad_()
    got = roi_align(features, boxes, 7)
    assert got[0].isfinite().all() and got[1:].isnan().all()
    got[0].sum().backward()
    assert features.grad.isfinite().all()


def test_boxes_as_far_as_allowed_cost_no_more():
    features, _ = inputs(torch.float64)
    far = torch.tensor([[0, -REACH, -REACH, REACH, REACH], [1, REACH - 5, 0, REACH, 5]], dtype=torch.float64)
    got = roi_align(features, far, 7)
    assert got.isfinite().all() and not got[1].any()
    total = features[0].sum((1, 2)) / (2 * REACH / 7) ** 2  # the whole map falls into the middle bin
    torch.testing.assert_close(got[0, :, 3, 3], total, rtol=0.7, atol=1e-8)
    with native.forced("reference"):
        torch.testing.assert_close(got, roi_align(features, far, 7))


def test_nan_pixels_stay_where_they_are():
    features, boxes = inputs()
    features[0, 0, 8, 11] = torch.nan
    got = roi_align(features, boxes[1:3], 7)
    assert got.isfinite().all()


def test_number_of_threads_does_not_matter(same_bits):
    features, boxes = inputs(channels=5)
    features.requires_grad_()

    def align():
        out = roi_align(features, boxes.repeat(20, 1), 7)
        return out, *torch.autograd.grad(out.square().sum(), features)

    same_bits(align)


def test_compiles_in_one_graph(backend):
    if backend == "reference":
        pytest.skip("the twin walks over boxes")
    features, boxes = inputs()
    compiled = torch.compile(lambda f, b: roi_align(f, b, 7).sum(), fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(features, boxes), roi_align(features, boxes, 7).sum())


@pytest.mark.parametrize("backend", ["native"], indirect=True)
def test_random_order_of_sums_is_refused_where_order_matters(monkeypatch):
    """On CUDA the gradient is summed by atomic additions."""
    asked = []
    monkeypatch.setattr("mmdet3d.ops.roi_align.check_deterministic", lambda what, tensor: asked.append(what))
    features, boxes = inputs()
    roi_align(features.requires_grad_(), boxes, 7).sum().backward()
    assert asked == ["roi_align backward"]


def test_wrong_arguments():
    features, boxes = inputs()
    with pytest.raises(ValueError, match=r"features must have shape \(N, C, H, W\), got \(3, 9, 12\)"):
        roi_align(features[0], boxes, 7)
    with pytest.raises(ValueError, match=r"boxes must have shape \(K, 5\), got \(8, 4\)"):
        roi_align(features, boxes[:, 1:], 7)
    with pytest.raises(ValueError, match=r"boxes name image 2, but features hold 2 images"):
        roi_align(features, boxes + torch.tensor([1.0, 0, 0, 0, 0]), 7)
    with pytest.raises(ValueError, match=r"boxes name image -1"):
        roi_align(features, boxes - torch.tensor([1.0, 0, 0, 0, 0]), 7)
    with pytest.raises(ValueError, match=r"output_size must be one or two positive numbers, got \(7, 0\)"):
        roi_align(features, boxes, (7, 0))
    with pytest.raises(ValueError, match=r"sampling_ratio must be 0 \(adaptive\) or positive, got -1"):
        roi_align(features, boxes, 7, sampling_ratio=-1)
    with pytest.raises(ValueError, match=r"features must be floating point, got torch.int64"):
        roi_align(features.long(), boxes, 7)
    with pytest.raises(ValueError, match=r"features must have pixels, got shape \(2, 3, 0, 12\)"):
        roi_align(features[:, :, :0], boxes, 7)
