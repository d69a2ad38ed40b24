from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmdet3d.ops import native
from mmdet3d.ops.soft_rank import _pool, soft_rank, spearman_closed_form
from mmdet3d.ops.soft_rank.reference import isotonic
from mmdet3d.ops.soft_rank.spearman import _correlate

pytestmark = pytest.mark.usefixtures("backend")
KINDS = ["l2", "kl"]


def values(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def waves() -> list[tuple[Tensor, Tensor]]:
    """Student and teacher of the published figures: two levels (B, C, H, W), resized to the coarser and flattened."""
    levels = []
    for shape in ((2, 4, 8, 16), (2, 8, 4, 8)):
        k = torch.arange(2 * 4 * 8 * 16 if shape[1] == 4 else 2 * 8 * 4 * 8, dtype=torch.float64).reshape(shape)
        pair = (F.interpolate(w, size=(4, 8), mode="bilinear").flatten(1) for w in ((0.1 * k).sin(), (0.07 * k).cos()))
        levels.append(tuple(pair))
    return levels


def term(pairs: list[tuple[Tensor, Tensor]]) -> float:
    return sum(1 - torch.corrcoef(torch.stack([s.flatten(), t.flatten()]))[0, 1].item() for s, t in pairs)


def test_published_values():
    pairs = waves()
    assert sum(1 - spearman_closed_form(s, t).item() for s, t in pairs) == pytest.approx(1.8218752140, abs=2e-10)
    assert term([(s, soft_rank(t)) for s, t in pairs]) == pytest.approx(1.8218752140, abs=2e-10)
    assert term([(s, soft_rank(1000 * t)) for s, t in pairs]) == pytest.approx(1.8230281805, abs=2e-10)
    assert term([(soft_rank(s, 1e-6), soft_rank(t, 1e-6)) for s, t in pairs]) == pytest.approx(1.85243504, abs=2e-8)


def test_the_closed_form_is_the_soft_rank_while_values_spread_less_than_their_number():
    theta = values(2, 3000) * 20
    if native.setting() == "reference":
        theta = theta[:, :300] / 10
    n = theta.shape[1]
    expected = theta - theta.mean(1, keepdim=True) + (n + 1) / 2
    torch.testing.assert_close(soft_rank(theta), expected, rtol=0, atol=4e-9)


def test_ranks_by_hand():
    row = torch.tensor([3.0, 1.0, 2.0, 2.0, 9.0, -4.0])
    hard = torch.tensor([5.0, 2.0, 3.5, 3.5, 6.0, 1.0])
    for kind in KINDS:
        torch.testing.assert_close(soft_rank(row, 1e-3, kind), hard)
    torch.testing.assert_close(soft_rank(row), torch.tensor([4.5, 2.5, 3.5, 3.5, 6.0, 1.0]))
    torch.testing.assert_close(soft_rank(row, 1e6), torch.full((6,), 3.5), rtol=0, atol=1e-4)
    kl = soft_rank(row, 10.0, "kl")
    torch.testing.assert_close(kl, torch.tensor([3.6364, 2.9772, 3.2903, 3.2903, 6.0, 1.8058]), rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("strength", [0.02, 0.5, 20.0])
def test_the_result_is_optimal(kind, strength):
    """Ranks of the permutahedron, in the order of the values, that no swap of weight between neighbours improves."""
    theta = values(4, 40)
    ranks = soft_rank(theta, strength, kind)
    n = theta.shape[1]
    order = theta.argsort(1, descending=True)
    ordered, z = ranks.gather(1, order), theta.gather(1, order) / strength
    totals, most = ordered.cumsum(1), torch.arange(n, 0, -1, dtype=theta.dtype).cumsum(0)
    assert (totals <= most + 1e-9).all()
    torch.testing.assert_close(totals[:, -1], most[-1:].expand(4))
    # Dual variables of the sums constraints: not negative, and zero where the constraint is slack.
    residual = z - (ordered if kind == "l2" else ordered.log())
    dual = residual[:, :-1] - residual[:, 1:]
    assert (dual >= -1e-9).all()
    assert (dual[totals[:, :-1] < most[:-1] - 1e-6].abs() < 1e-7).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("strength", [0.05, 1.0, 5.0])
def test_gradients_of_ranks(kind, strength):
    theta = values(2, 3, 6).requires_grad_()
    assert torch.autograd.gradcheck(lambda t: soft_rank(t, strength, kind), theta)


def test_gradients_of_the_correlation():
    student, teacher = values(3, 5).requires_grad_(), (values(3, 5, seed=1) * 3 + 7).requires_grad_()
    assert torch.autograd.gradcheck(spearman_closed_form, (student, teacher))
    assert torch.autograd.gradcheck(lambda s: spearman_closed_form(s, teacher.detach()), student)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_ranks_equal_the_twins(kind, dtype):
    theta = values(3, 50, dtype=dtype).requires_grad_()
    weights = values(3, 50, dtype=dtype, seed=1)
    got = soft_rank(theta, 0.1, kind)
    (grad,) = torch.autograd.grad(got, theta, weights)
    with native.forced("reference"):
        expected = soft_rank(theta, 0.1, kind)
        (expected_grad,) = torch.autograd.grad(expected, theta, weights)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(grad, expected_grad, rtol=1e-4, atol=1e-4 if dtype == torch.float32 else 1e-9)


def test_correlation_equals_the_twins_over_many_chunks():
    student = (values(3, 40000, dtype=torch.float32) + 5).requires_grad_()
    teacher = (values(3, 40000, dtype=torch.float32, seed=1) + student.detach() * 0.3 - 2).requires_grad_()
    got = spearman_closed_form(student, teacher)
    grads = torch.autograd.grad(got, (student, teacher))
    with native.forced("reference"):
        wide = [x.detach().double().requires_grad_() for x in (student, teacher)]
        expected = spearman_closed_form(*wide)
        expected_grads = torch.autograd.grad(expected, wide)
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-6)
    for a, b in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-8)


def test_constant_sides_correlate_with_nothing():
    moving, still = values(2, 30), torch.full((2, 30), 1e3, dtype=torch.float64)
    for pair in ((moving, still), (still, moving), (still, still)):
        student, teacher = (x.clone().requires_grad_() for x in pair)
        rho = spearman_closed_form(student, teacher)
        assert rho == 0
        assert all(g.isfinite().all() for g in torch.autograd.grad(rho, (student, teacher)))


def test_a_large_mean_costs_no_digits():
    student, teacher = values(2, 2000, dtype=torch.float32), values(2, 2000, dtype=torch.float32, seed=1)
    shifted = (student + 4096).double()  # what float32 leaves of the student at such a mean
    got = spearman_closed_form(shifted.float(), teacher)
    torch.testing.assert_close(
        got.double(), spearman_closed_form(shifted - 4096, teacher.double()), rtol=1e-4, atol=1e-6
    )


def test_empty_single_strided_and_half():
    assert soft_rank(values(0, 5)).shape == (0, 5) and soft_rank(values(3, 0)).shape == (3, 0)
    assert soft_rank(values(4, 1) * 100).tolist() == [[1.0]] * 4
    theta = values(6, 4).requires_grad_()
    soft_rank(theta[:0]).sum().backward()
    torch.testing.assert_close(soft_rank(theta.T), soft_rank(theta.T.contiguous()))
    for dtype in (torch.float16, torch.bfloat16):
        low = values(2, 9).to(dtype)
        assert soft_rank(low, 0.1).dtype == torch.float32
        torch.testing.assert_close(soft_rank(low, 0.1), soft_rank(low.float(), 0.1))
        rho = spearman_closed_form(low, values(2, 9, seed=1).to(dtype))
        torch.testing.assert_close(rho, spearman_closed_form(low.float(), values(2, 9, seed=1).to(dtype).float()))
    assert (
        spearman_closed_form(values(0, 5), values(0, 5)) == 0 and spearman_closed_form(values(2, 0), values(2, 0)) == 0
    )
    strided = values(9, 2).T
    torch.testing.assert_close(
        spearman_closed_form(strided, values(2, 9, seed=1)),
        spearman_closed_form(strided.contiguous(), values(2, 9, seed=1)),
    )


@pytest.mark.parametrize("kind", KINDS)
def test_values_without_order(kind):
    for wrong in (torch.nan, torch.inf, -torch.inf):
        theta = values(2, 5)
        theta[0, 2] = wrong
        ranks = soft_rank(theta, 1.0, kind)
        torch.testing.assert_close(ranks[1], soft_rank(theta[1], 1.0, kind))
        if wrong != wrong:
            assert ranks[0, 2].isnan()
    assert spearman_closed_form(theta * torch.nan, theta).isnan()


def test_ties_share_a_gradient():
    theta = torch.arange(5.0).requires_grad_()  # exactly one rank apart: between ranking and shifting
    soft_rank(theta)[2].backward()
    torch.testing.assert_close(theta.grad, torch.tensor([-0.2, -0.2, 0.8, -0.2, -0.2]))
    assert isotonic([2.0, 2.0, 1.0], False) == [(0, 3)] and isotonic([9.0, 5.0, 1.0], False) == [(0, 1), (1, 2), (2, 3)]


def test_number_of_threads_does_not_matter(same_bits):
    theta, other = values(5, 20000, dtype=torch.float32), values(5, 20000, dtype=torch.float32, seed=1)
    if native.setting() == "reference":
        pytest.skip("PyTorch's own sums depend on the number of threads")

    def rank():
        leaf = theta.clone().requires_grad_()
        rho = spearman_closed_form(leaf, other)
        return soft_rank(theta, 0.01), rho, *torch.autograd.grad(rho, leaf)

    same_bits(rank)


def test_library_checks(backend):
    if backend != "native":
        pytest.skip("the registration does not depend on the kernels")
    ordered = values(2, 6).sort(descending=True).values.requires_grad_()
    torch.library.opcheck(_pool, (ordered, False))
    torch.library.opcheck(_correlate, (values(2, 6).requires_grad_(), values(2, 6, seed=1).requires_grad_()))


def test_compiles_in_one_graph(backend):
    if backend == "reference":
        pytest.skip("the twin walks over rows in Python")
    compiled = torch.compile(lambda a, b: spearman_closed_form(a, soft_rank(b, 0.1)), fullgraph=True, backend="eager")
    pair = values(2, 8), values(2, 8, seed=1)
    torch.testing.assert_close(compiled(*pair), spearman_closed_form(pair[0], soft_rank(pair[1], 0.1)))


def test_wrong_arguments():
    with pytest.raises(ValueError, match=r"values must be floating point \(..., n\), got torch.int64 \(3,\)"):
        soft_rank(torch.arange(3))
    with pytest.raises(ValueError, match=r"values must be floating point \(..., n\), got torch.float32 \(\)"):
        soft_rank(torch.tensor(1.0))
    with pytest.raises(ValueError, match="strength must be positive and finite, got 0"):
        soft_rank(values(3), 0)
    with pytest.raises(ValueError, match="regularization must be 'l2' or 'kl', got 'l1'"):
        soft_rank(values(3), regularization="l1")
    with pytest.raises(ValueError, match=r"teacher must have shape \(B, n\) with B = 2, n = 3, got \(2, 4\)"):
        spearman_closed_form(values(2, 3), values(2, 4))
    with pytest.raises(ValueError, match=r"student must be floating point, got torch.int64"):
        spearman_closed_form(values(2, 3).long(), values(2, 3))
