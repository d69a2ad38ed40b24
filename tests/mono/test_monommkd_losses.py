"""MonoMMKD's terms against values worked out by hand and plain formulas."""

from __future__ import annotations

import math

import pytest
import torch
from mono_inputs import STREET, make_batch
from torch.nn import functional as F

from mmdet3d.distill.losses import DualKLLoss, MimickingLoss
from mmdet3d.distill.losses.dual_kl import depth_uncertainty
from mmdet3d.models.heads.mono.depth_bins import IGNORED
from mmdet3d.models.heads.mono.geometry import ImageGeometry
from mmdet3d.models.heads.mono.targets import box_mask, encode_objects

EMPTY = make_batch([[]])


def targets_of(batch, size=(24, 80)):
    return encode_objects(batch.objects, ImageGeometry.from_batch(batch, 4, size), size, torch.ones(3, 3))


NOTHING = targets_of(EMPTY)


def noise(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# -- mimicking ---------------------------------------------------------------------------------------------------------


def test_mimicking_by_hand():
    batch = make_batch([STREET])
    targets, bins = targets_of(batch), torch.randint(-1, 5, (1, 24, 80), generator=torch.Generator().manual_seed(0))
    logits = noise(1, 5, 24, 80)
    known, near = bins != IGNORED, box_mask(targets, (1, 24, 80))
    assert 0 < near.sum() < near.numel()
    p = logits.softmax(1).gather(1, bins.clamp(min=0)[:, None])[:, 0]
    weight = 1.0 + 12.0 * near
    for settings, error in (
        ({}, -0.25 * (1 - p) ** 2 * p.log()),
        ({"loss": "ce"}, -p.log()),
        ({"alpha": 1.0, "gamma": 0.0}, -p.log()),
    ):
        terms = MimickingLoss(**settings)([logits, bins, targets], [], batch)
        assert terms["depth"].item() == pytest.approx(((weight * error)[known].sum() / known.sum()).item())
    hit = logits.argmax(1) == bins
    assert terms["stats/accuracy"].item() == pytest.approx(hit[known].double().mean().item())
    assert terms["stats/accuracy_objects"].item() == pytest.approx(hit[known & near].double().mean().item())


def test_boxes_mark_the_cells_they_touch():
    batch = make_batch([STREET, STREET[:1]])
    targets = targets_of(batch)
    mask = box_mask(targets, (2, 24, 80))
    x1, y1, x2, y2 = targets.boxes[-1].tolist()
    rows, columns = mask[1].nonzero().unbind(1)
    assert (rows.min(), rows.max()) == (math.floor(y1), math.ceil(y2) - 1)
    assert (columns.min(), columns.max()) == (math.floor(x1), math.ceil(x2) - 1)
    assert mask[1].sum() == (math.ceil(y2) - math.floor(y1)) * (math.ceil(x2) - math.floor(x1))
    assert not box_mask(NOTHING, (1, 24, 80)).any()


def test_mimicking_without_known_depth_is_zero_with_finite_gradients():
    logits = noise(1, 5, 4, 6).requires_grad_()
    terms = MimickingLoss()([logits, torch.full((1, 4, 6), IGNORED), NOTHING], [], EMPTY)
    assert all(v == 0 for v in terms.values())
    terms["depth"].backward()
    assert not logits.grad.any()


@pytest.mark.parametrize("settings", [{}, {"loss": "ce"}])
def test_mimicking_gradient_in_double_precision(settings):
    bins = torch.tensor([[[0, 3, IGNORED], [4, 1, 2]]])
    loss, logits = MimickingLoss(**settings), noise(1, 5, 2, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss([x, bins, NOTHING], [], EMPTY)["depth"], logits)


def test_mimicking_of_certain_predictions_is_finite():
    logits = torch.tensor([1e4, -1e4]).view(1, 2, 1, 1).expand(1, 2, 1, 2).clone().requires_grad_()
    loss = MimickingLoss()([logits, torch.tensor([[[0, 1]]]), NOTHING], [], EMPTY)["depth"]
    loss.backward()
    assert loss.isfinite() and logits.grad.isfinite().all()


# -- uncertainty -------------------------------------------------------------------------------------------------------


def test_uncertainty_is_half_the_distance_from_the_truth():
    logits, bins = noise(2, 7, 3, 4), torch.arange(24).view(2, 3, 4) % 7
    weight = depth_uncertainty(logits, bins)
    truth = F.one_hot(bins, 7).movedim(-1, 1)
    assert torch.allclose(weight, (truth - logits.softmax(1)).abs().sum(1) / 2, atol=1e-7)
    assert (depth_uncertainty(1e3 * truth.double(), bins) == 0).all()
    assert torch.allclose(depth_uncertainty(torch.zeros_like(logits), bins), torch.tensor(1 - 1 / 7).double())
    assert torch.allclose(depth_uncertainty(torch.zeros_like(logits), bins, "entropy"), torch.tensor(1.0).double())
    assert (depth_uncertainty(logits, bins, "none") == 1).all()


def test_uncertainty_has_no_gradient_and_is_zero_where_depth_is_unknown():
    logits = noise(1, 7, 3, 4).requires_grad_()
    bins = torch.full((1, 3, 4), IGNORED)
    bins[0, 0, 0] = 2
    for kind in ("one_minus_p_target", "entropy"):
        weight = depth_uncertainty(logits, bins, kind)
        assert not weight.requires_grad
        assert weight[0, 0, 0] > 0 and weight.sum() == weight[0, 0, 0]


# -- DualKL ------------------------------------------------------------------------------------------------------------


def dual(student, teacher, weight_of=None, **settings):
    """The loss of one map (B, C, h, w); every cell counts alike unless logits and bins are given."""
    settings = {"uncertainty": "none"} | settings if weight_of is None else settings
    loss = DualKLLoss((4,), (student.shape[1],), adapt=False, **settings)
    logits, bins = weight_of or (torch.zeros(len(student), 2, 2, 2), torch.zeros(len(student), 2, 2).long())
    pad = [torch.zeros(1, 1, 1, 1)] * 3
    return loss([[*pad, student], logits, bins, NOTHING], [*pad, teacher], EMPTY)


TEACHER = torch.tensor([2.0, 1, 0, -1], dtype=torch.float64).view(1, 1, 2, 2)
STUDENT = torch.tensor([0.5, 0.5, 0, 0], dtype=torch.float64).view(1, 1, 2, 2)


def test_worked_out_divergences():
    assert dual(STUDENT, TEACHER, balance="forward")["stride_4"].item() == pytest.approx(0.2792887, abs=1e-7)
    assert dual(STUDENT, TEACHER, balance="reverse")["stride_4"].item() == pytest.approx(0.3392765, abs=1e-7)
    terms = dual(STUDENT, TEACHER)
    assert terms["stats/forward_share"].item() == pytest.approx(0.4515105, abs=1e-7)
    assert terms["stride_4"].item() == pytest.approx(0.3121914, abs=1e-7)
    half = dual(STUDENT, TEACHER, balance="fixed")["stride_4"].item()
    assert half == pytest.approx((0.2792887 + 0.3392765) / 2, abs=1e-7)
    single = dual(STUDENT.float(), TEACHER.float())["stride_4"].item()
    assert single == pytest.approx(0.3121914, abs=1e-6)


def plain_kl(student, teacher, weight, temperature):
    """Per sample forward and reverse divergence over space, with PyTorch's own."""
    logq, logp = ((weight * m).flatten(2).div(temperature).log_softmax(2) for m in (student, teacher))
    forward = F.kl_div(logq, logp, reduction="none", log_target=True).sum(2).mean(1)
    reverse = F.kl_div(logp, logq, reduction="none", log_target=True).sum(2).mean(1)
    return forward, reverse


def test_all_levels_against_a_plain_formula():
    shapes = [(2, 3, 1, 2), (2, 3, 2, 4), (2, 3, 4, 8), (2, 3, 8, 16)]
    ours, theirs = ([noise(*s, seed=k) for s in shapes] for k in (1, 2))
    logits, bins = noise(2, 5, 8, 16, seed=3), torch.arange(256).view(2, 8, 16) % 6 - 1
    loss = DualKLLoss((16, 8, 4), (3, 3, 3), temperature=2.0, adapt=False)
    terms = loss([ours, logits, bins, NOTHING], theirs, EMPTY)
    weight = torch.where(bins < 0, 0, 1 - logits.softmax(1).gather(1, bins.clamp(min=0)[:, None])[:, 0])
    for level, student, teacher in zip((16, 8, 4), ours[1:], theirs[1:], strict=True):
        small = F.avg_pool2d(weight[:, None], level // 4)
        forward, reverse = plain_kl(student, teacher, small, 2.0)
        share = forward / (forward + reverse + 1e-8)
        wanted = 4 * (share * forward + (1 - share) * reverse).mean()
        assert terms[f"stride_{level}"].item() == pytest.approx(wanted.item(), rel=1e-9)
    assert terms["stats/uncertainty"].item() == pytest.approx(weight[bins >= 0].mean().item())


def test_zero_exactly_at_agreement_up_to_a_constant_per_channel():
    student, teacher = noise(2, 3, 4, 6), noise(2, 3, 4, 6, seed=1)
    shifted = teacher + torch.arange(3).view(1, 3, 1, 1)
    for balance in ("ratio", "gap", "fixed", "forward", "reverse"):
        assert abs(dual(shifted, teacher, balance=balance)["stride_4"].item()) < 1e-12
        assert dual(student, teacher, balance=balance)["stride_4"].item() > 1e-3


def test_exchanging_the_sides_exchanges_the_divergences():
    a, b = noise(2, 3, 4, 6), noise(2, 3, 4, 6, seed=1)
    there, back = dual(a, b, balance="forward"), dual(b, a, balance="reverse")
    assert there["stride_4"].item() == pytest.approx(back["stride_4"].item())


def test_the_share_leans_on_the_larger_divergence_and_tends_to_a_half():
    teacher = noise(1, 3, 4, 6)
    near = dual(teacher + 1e-3 * noise(1, 3, 4, 6, seed=1), teacher)
    assert near["stats/forward_share"].item() == pytest.approx(0.5, abs=0.02)
    forward, reverse = (dual(STUDENT, TEACHER, balance=b)["stride_4"] for b in ("forward", "reverse"))
    assert reverse > forward and dual(STUDENT, TEACHER)["stats/forward_share"] < 0.5


def test_certain_depth_switches_the_loss_off():
    student, teacher = noise(1, 3, 2, 2).requires_grad_(), noise(1, 3, 2, 2, seed=1)
    sure = torch.tensor([1e4, 0.0]).view(1, 2, 1, 1).expand(1, 2, 2, 2)
    for bins in (torch.zeros(1, 2, 2).long(), torch.full((1, 2, 2), IGNORED)):
        for softmax in ("spatial_per_channel", "channel_per_pixel"):
            for mode in ("logits", "map"):
                value = dual(student, teacher, (sure, bins), softmax=softmax, weight_mode=mode)["stride_4"]
                assert value.item() == pytest.approx(0, abs=1e-15)
                (gradient,) = torch.autograd.grad(value, student)
                assert gradient.isfinite().all()


def test_only_the_student_and_its_adapters_get_gradients():
    student, teacher = noise(1, 3, 2, 2, dtype=torch.float32), noise(1, 3, 2, 2, seed=1, dtype=torch.float32)
    logits = noise(1, 5, 2, 2, dtype=torch.float32)
    for tensor in (student, teacher, logits):
        tensor.requires_grad_()
    loss, pad = DualKLLoss((4,), (3,)), [torch.zeros(1, 1, 1, 1)] * 3
    loss([[*pad, student], logits, torch.ones(1, 2, 2).long(), NOTHING], [*pad, teacher], EMPTY)["stride_4"].backward()
    assert teacher.grad is None and logits.grad is None
    assert student.grad.any() and all(p.grad is not None for p in loss.parameters())
    assert len(list(loss.parameters())) == 4


@pytest.mark.parametrize(
    "settings",
    [
        {"balance": "fixed"},
        {"balance": "forward", "temperature": 0.5},
        {"balance": "reverse", "standardise": True},
        {"balance": "fixed", "softmax": "channel_per_pixel"},
        {"balance": "fixed", "weight_mode": "map"},
        {"balance": "fixed", "softmax": "channel_per_pixel", "weight_mode": "map"},
    ],
)
def test_gradients_in_double_precision(settings):
    student, teacher = noise(2, 3, 2, 3).requires_grad_(), noise(2, 3, 2, 3, seed=1)
    weight_of = noise(2, 5, 2, 3, seed=2), torch.arange(12).view(2, 2, 3) % 5
    assert torch.autograd.gradcheck(lambda s: dual(s, teacher, weight_of, **settings)["stride_4"], student)


def test_the_share_is_a_constant_for_the_gradient():
    student, teacher = noise(1, 3, 2, 3).requires_grad_(), noise(1, 3, 2, 3, seed=1)
    terms = dual(student, teacher)
    share = terms["stats/forward_share"].item()
    forward, reverse = (dual(student, teacher, balance=b)["stride_4"] for b in ("forward", "reverse"))
    wanted = torch.autograd.grad(share * forward + (1 - share) * reverse, student)[0]
    assert torch.allclose(torch.autograd.grad(terms["stride_4"], student)[0], wanted)


def test_channels_at_a_pixel():
    student, teacher = noise(1, 3, 2, 2), noise(1, 3, 2, 2, seed=1)
    weight_of = (noise(1, 5, 2, 2, seed=2), torch.tensor([[[0, IGNORED], [1, 2]]]))
    weight = depth_uncertainty(*weight_of)
    divergence = F.kl_div(student.log_softmax(1), teacher.log_softmax(1), reduction="none", log_target=True).sum(1)
    found = dual(student, teacher, weight_of, softmax="channel_per_pixel", weight_mode="map", balance="forward")
    assert found["stride_4"].item() == pytest.approx((weight * divergence).sum().item() / 3)


def test_a_weighted_map_of_divergence_is_never_negative():
    for seed in range(20):
        student, teacher = noise(2, 3, 2, 2, seed=seed), noise(2, 3, 2, 2, seed=seed + 50)
        weight_of = 5 * noise(2, 5, 2, 2, seed=seed), torch.arange(8).view(2, 2, 2) % 5
        for balance in ("forward", "reverse"):
            assert dual(student, teacher, weight_of, weight_mode="map", balance=balance)["stride_4"] > 0
    for balance in ("forward", "ratio"):
        plain = dual(STUDENT, TEACHER, balance=balance)["stride_4"].item()
        assert dual(STUDENT, TEACHER, balance=balance, weight_mode="map")["stride_4"].item() == pytest.approx(plain)


def test_the_gap_of_the_likelier_half():
    share = dual(STUDENT, TEACHER, balance="gap")["stats/forward_share"].item()
    p, q = (m.flatten().softmax(0) for m in (TEACHER, STUDENT))
    assert p[0] > 0.5  # the first cell alone is the likelier half
    gap = (p - q).abs()
    assert share == pytest.approx((gap[0] / gap.sum()).item())


def test_the_share_falls_from_one_to_a_half_over_the_epochs():
    loss = DualKLLoss((4,), (1,), adapt=False, balance="epoch", epochs=11)
    pad, shares = [torch.zeros(1, 1, 1, 1)] * 3, []
    for epoch in (0, 5, 10):
        loss.start_epoch(epoch)
        resumed = DualKLLoss((4,), (1,), adapt=False, balance="epoch", epochs=11)
        resumed.load_state_dict(loss.state_dict())
        value = [[*pad, STUDENT], torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 2).long(), NOTHING]
        shares.append(resumed(value, [*pad, TEACHER], EMPTY)["stats/forward_share"].item())
    assert shares == pytest.approx([1, 0.75, 0.5])


def test_standardised_maps_have_no_scale():
    student, teacher = noise(1, 3, 4, 4), noise(1, 3, 4, 4, seed=1)
    value = dual(student, teacher, standardise=True)["stride_4"].item()
    assert dual(100 * student + 3, 50 * teacher, standardise=True)["stride_4"].item() == pytest.approx(value, rel=1e-5)
    constant = torch.ones(1, 3, 4, 4, requires_grad=True)
    dual(constant, teacher, standardise=True)["stride_4"].backward()
    assert constant.grad.isfinite().all()


def test_large_features_stay_finite():
    student, teacher = 1e4 * noise(1, 3, 4, 4, dtype=torch.float32), 1e4 * noise(1, 3, 4, 4, seed=1).float()
    for balance in ("ratio", "gap"):
        value = dual(student.requires_grad_(), teacher, balance=balance)["stride_4"]
        (gradient,) = torch.autograd.grad(value, student)
        assert value.isfinite() and gradient.isfinite().all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"softmax": "spatial"}, "softmax must be one of spatial_per_channel, channel_per_pixel, got 'spatial'"),
        ({"balance": "both"}, "balance must be one of ratio, gap"),
        ({"uncertainty": "p"}, "uncertainty must be one of"),
        ({"weight_mode": "x"}, "weight_mode must be one of logits, map"),
        ({"levels": [2, 4, 8]}, "levels must be strides out of 32, 16, 8, 4"),
        ({"levels": [4]}, "with a number of channels each"),
        ({"temperature": 0}, "temperature must be above 0"),
        ({"balance": "epoch"}, "needs `epochs`"),
    ],
)
def test_wrong_settings_of_dual_kl_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        DualKLLoss(**settings)


def test_wrong_settings_of_mimicking_are_refused():
    with pytest.raises(ValueError, match="loss must be focal or ce"):
        MimickingLoss("l1")
    with pytest.raises(ValueError, match="gamma must be 0 or at least 1"):
        MimickingLoss(gamma=0.5)


def test_other_maps_are_refused():
    with pytest.raises(ValueError, match="the four maps of a neck, of the same shapes on both sides"):
        dual(STUDENT, TEACHER[..., :1])
