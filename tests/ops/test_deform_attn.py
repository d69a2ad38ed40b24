from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmdet3d.ops import native
from mmdet3d.ops.checks import check_deterministic
from mmdet3d.ops.deform_attn import _attend, _attend_backward, multi_scale_deformable_attention

pytestmark = pytest.mark.usefixtures("backend")

LEVELS = [(4, 6), (2, 3)]
FLAT = [4, 6, 2, 3]


def inputs(dtype: torch.dtype = torch.float64, channels: int = 5) -> list[Tensor]:
    """Value, locations on all sides of the border, weights: two items, two heads, four queries, three points."""
    generator = torch.Generator().manual_seed(0)
    value = torch.randn(2, 30, 2, channels, generator=generator, dtype=dtype)
    locations = torch.rand(2, 4, 2, 2, 3, 2, generator=generator, dtype=dtype) * 1.6 - 0.3
    weights = torch.rand(2, 4, 2, 2, 3, generator=generator, dtype=dtype)
    return [t.requires_grad_() for t in (value, locations, weights)]


def run(value: Tensor, locations: Tensor, weights: Tensor, levels=LEVELS) -> Tensor:
    return multi_scale_deformable_attention(value, levels, locations, weights)


def gather(image: Tensor, x: float, y: float, weight: float = 1.0) -> float:
    """One query at one point, in pixels, of an image (h, w)."""
    h, w = image.shape
    location = torch.tensor([(x + 0.5) / w, (y + 0.5) / h], dtype=torch.float64).view(1, 1, 1, 1, 1, 2)
    value = image.double().reshape(1, h * w, 1, 1)
    return run(value, location, torch.full((1, 1, 1, 1, 1), weight, dtype=torch.float64), [(h, w)]).item()


def test_points_by_hand():
    image = torch.tensor([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0]])
    assert gather(image, 0, 0) == pytest.approx(1) and gather(image, 2, 1) == pytest.approx(32)
    assert gather(image, 0.5, 0.5) == pytest.approx((1 + 2 + 8 + 16) / 4)
    assert gather(image, 1.25, 0.5, weight=3) == pytest.approx(3 * (0.75 * (2 + 16) + 0.25 * (4 + 32)) / 2)
    assert gather(image, -0.5, 0) == pytest.approx(0.5) and gather(image, 2.75, 1) == pytest.approx(8)
    assert gather(image, 2.5, 1.5) == pytest.approx(8) and gather(image, -0.75, -0.75) == pytest.approx(1 / 16)
    for outside in ((-1, 0), (3, 0), (0, -1), (0, 2), (1e30, 0), (0, -1e30)):
        assert gather(image, *outside) == pytest.approx(0, abs=1e-12)


def test_gradients_by_hand():
    value = torch.tensor([1.0, 2.0, 8.0, 16.0]).view(1, 4, 1, 1).requires_grad_()
    location = torch.tensor([0.5, 0.375]).view(1, 1, 1, 1, 1, 2).requires_grad_()  # x = 0.5, y = 0.25
    weight = torch.full((1, 1, 1, 1, 1), 2.0, requires_grad=True)
    run(value, location, weight, [(2, 2)]).sum().backward()
    torch.testing.assert_close(value.grad.flatten(), torch.tensor([0.75, 0.75, 0.25, 0.25]))
    torch.testing.assert_close(weight.grad.flatten(), torch.tensor([0.75 * 1.5 + 0.25 * 12]))
    torch.testing.assert_close(location.grad.flatten(), torch.tensor([(0.75 + 0.25 * 8) * 2 * 2, (12 - 1.5) * 2 * 2]))


@pytest.mark.parametrize("channels", [1, 5, 8, 10, 16, 32])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_and_gradients_equal_the_twins(dtype, channels):
    tensors = inputs(dtype, channels)
    got = run(*tensors)
    upstream = torch.randn(got.shape, generator=torch.Generator().manual_seed(1), dtype=dtype)
    grads = torch.autograd.grad(got, tensors, upstream)
    with native.forced("reference"):
        expected = run(*tensors)
        expected_grads = torch.autograd.grad(expected, tensors, upstream)
    for a, b in zip((got, *grads), (expected, *expected_grads), strict=True):
        tolerance = {"rtol": 1e-4, "atol": 2e-5} if dtype == torch.float32 else {"rtol": 1e-9, "atol": 1e-11}
        torch.testing.assert_close(a, b, **tolerance)


def test_gradcheck():
    assert torch.autograd.gradcheck(run, inputs(channels=3))


def test_half_precision_is_computed_in_single():
    value, locations, weights = (t.detach() for t in inputs(torch.float32))
    for dtype in (torch.float16, torch.bfloat16):
        low = value.to(dtype).requires_grad_()
        got = run(low, locations, weights)
        assert got.dtype == dtype
        torch.testing.assert_close(got, run(low.float(), locations, weights).to(dtype))
        all_low = run(low, locations.to(dtype), weights.to(dtype))
        torch.testing.assert_close(
            all_low, run(low.float(), locations.to(dtype).float(), weights.to(dtype).float()).to(dtype)
        )
        got.sum().backward()
        assert low.grad.dtype == dtype and low.grad.isfinite().all()


def test_empty_and_single():
    value, locations, weights = inputs()
    assert run(value[:0], locations[:0], weights[:0]).shape == (0, 4, 10)
    assert run(value[..., :0], locations, weights).shape == (2, 4, 0)
    none = run(value, locations[:, :0], weights[:, :0])
    assert none.shape == (2, 0, 10)
    none.sum().backward()
    assert not value.grad.any()
    assert not run(value, locations[..., :0, :], weights[..., :0]).any()
    assert run(
        value[:1, :1, :1, :1], locations[:1, :1, :1, :1, :1] * 0 + 0.5, weights[:1, :1, :1, :1, :1], [(1, 1)]
    ) == (value[0, 0, 0, 0] * weights[0, 0, 0, 0, 0])


def test_places_that_are_none():
    value, locations, weights = (t.detach() for t in inputs())
    inside = run(value, locations, weights)
    for wrong in (torch.nan, torch.inf, -torch.inf, 1e30, -1e30, 1e300):
        strange = locations.clone()
        strange[0, 0, 0, 0, 0] = wrong
        less = weights.clone()
        less[0, 0, 0, 0, 0] = 0
        strange.requires_grad_()
        got = run(value, strange, weights)
        torch.testing.assert_close(got, run(value, locations, less))
        got.sum().backward()
        assert not strange.grad[0, 0, 0, 0, 0].any() and strange.grad.isfinite().all()
    torch.testing.assert_close(run(value, locations, weights), inside)


def test_nan_reaches_whom_it_concerns():
    value, locations, weights = (t.detach().clone() for t in inputs())
    weights[0, 1, 1] = torch.nan
    locations[0, 1, 1] = 5  # outside
    got = run(value, locations, weights).view(2, 4, 2, 5)
    assert got[0, 1, 1].isnan().all() and got.isnan().sum() == 5
    value[1, 7] = torch.nan
    assert (
        run(value, locations, weights)[1].isnan().any() and not run(value, locations * 0 - 1, weights)[1].isnan().any()
    )


def test_strided_inputs():
    tensors = [t.detach() for t in inputs()]
    strided = [t.transpose(0, -1).contiguous().transpose(0, -1) for t in tensors]
    assert not any(t.is_contiguous() for t in strided)
    torch.testing.assert_close(run(*strided), run(*tensors))
    value = tensors[0].requires_grad_()
    run(value, *strided[1:]).sum().backward()  # the gradient that arrives is expanded
    assert value.grad.any()


def test_any_batch_and_one_level_is_grid_sampling():
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(7, 4, 5, 6, generator=generator)
    points = torch.rand(7, 9, 2, generator=generator) * 1.4 - 0.2
    expected = F.grid_sample(images, 2 * points[:, None] - 1, align_corners=False)[:, :, 0].transpose(1, 2)
    value = images.flatten(2).transpose(1, 2)[:, :, None]
    got = run(value, points.view(7, 9, 1, 1, 1, 2), torch.ones(7, 9, 1, 1, 1), [(5, 6)])
    torch.testing.assert_close(got, expected)


def test_number_of_threads_does_not_matter(same_bits):
    value, locations, weights = inputs(torch.float32, channels=16)
    tensors = [value, locations.repeat(1, 50, 1, 1, 1, 1), weights.repeat(1, 50, 1, 1, 1)]

    def attend():
        out = run(*tensors)
        return out, *torch.autograd.grad(out.square().sum(), tensors)

    same_bits(attend)


def test_library_checks(backend):
    if backend != "native":
        pytest.skip("the registration does not depend on the kernels")
    tensors = inputs()
    torch.library.opcheck(_attend, (*tensors, FLAT))
    grad = torch.ones(2, 4, 10, dtype=torch.float64)
    torch.library.opcheck(_attend_backward, (grad, *(t.detach() for t in tensors), FLAT))


def test_compiles_in_one_graph():
    tensors = inputs()
    compiled = torch.compile(lambda *t: run(*t).square().sum(), fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(*tensors), run(*tensors).square().sum())


def test_random_order_of_sums_is_refused_where_order_matters(monkeypatch):
    cuda = type("Cuda", (), {"is_cuda": True})()
    check_deterministic("x backward", cuda)
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    check_deterministic("x backward", torch.zeros(1))
    with pytest.raises(RuntimeError, match="x backward has no deterministic implementation on CUDA"):
        check_deterministic("x backward", cuda)
    monkeypatch.setattr(torch, "is_deterministic_algorithms_warn_only_enabled", lambda: True)
    with pytest.warns(UserWarning, match="x backward has no deterministic implementation"):
        check_deterministic("x backward", cuda)


def test_wrong_arguments():
    value, locations, weights = inputs()
    with pytest.raises(ValueError, match=r"value must have shape \(B, S, M, C\), got \(2, 30, 10\)"):
        run(value.flatten(2), locations, weights)
    with pytest.raises(ValueError, match=r"locations must have shape \(B, Q, M, L, P, 2\) with B = 2, M = 2"):
        run(value, locations[..., :1], weights)
    with pytest.raises(
        ValueError, match=r"weights must have shape \(B, Q, M, L, P\) with .*P = 3, got \(2, 4, 2, 2, 2\)"
    ):
        run(value, locations, weights[..., :2])
    with pytest.raises(ValueError, match=r"value has S = 30 pixels, but shapes \[\(4, 6\), \(2, 2\)\] have 28"):
        run(value, locations, weights, [(4, 6), (2, 2)])
    with pytest.raises(ValueError, match=r"shapes must be L = 2 pairs of positive height and width, got \[\(5, 6\)\]"):
        run(value, locations, weights, [(5, 6)])
    with pytest.raises(ValueError, match="shapes must be L = 2 pairs of positive"):
        run(value, locations, weights, [(30, 1), (0, 3)])
    with pytest.raises(ValueError, match="shapes must be L = 0 pairs of positive"):
        run(value[:, :0], locations[:, :, :, :0], weights[:, :, :, :0], [])
    with pytest.raises(ValueError, match=r"locations must be floating, got torch.int64"):
        run(value, locations.long(), weights)
    with pytest.raises(ValueError, match=r"weights must lie on cpu as value does, got meta"):
        run(value, locations, weights.to("meta"))
