from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from distill_inputs import GRID, batch_of, center_head, detector_on, wave, wave_predictions

from mmdet3d.distill.losses import AffinityLoss, MaskedFeatureLoss, RadarActivationLoss, ResponseLoss
from mmdet3d.distill.losses.feature import masked_mse
from mmdet3d.distill.losses.radar import mean_response
from mmdet3d.distill.losses.response import quality_focal_loss, soft_box_loss
from mmdet3d.structures import BEVGrid, Boxes3D

SMALL = BEVGrid((-3.0, -3.0), (1.0, 1.0), (6, 6))
BOX = Boxes3D(torch.tensor([[0.2, 0.4, 0.0, 2.2, 1.1, 1.5, 0.3, 0.0, 0.0]]))


def published_mask(rows: list[list[int]]) -> torch.Tensor:
    """Upstream's rasterisation of its rows [x4, y0, x0, y2]."""
    mask = torch.zeros(1, 180, 180, dtype=torch.bool)
    for a, b, c, d in rows:
        a, b, c, d = (min(max(v, 0), 179) for v in (a, b, c, d))
        mask[0, min(a, c) : max(a, c), min(b, d) : max(b, d)] = True
    return mask


def head_output(seed: int, cells: int = 5, **kwargs: object) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    channels = {"reg": 2, "height": 1, "dim": 3, "rot": 2, "vel": 2, "heatmap": 2}
    return [
        {k: torch.randn(2, c, cells, cells, generator=generator).to(**kwargs) for k, c in channels.items()}
        for _ in range(2)
    ]


# -- features ---------------------------------------------------------------------------------------------------------


def feature_pair() -> tuple[torch.Tensor, torch.Tensor]:
    return wave((1, 4, 180, 180), 0.37, 0.1), wave((1, 4, 180, 180), 0.91, 1.3).relu()


def test_masked_mse_golden(crkd_values):
    mask = published_mask(crkd_values["get_gt_masks after scale_mask"])
    assert mask.sum() == crkd_values["mask cell count per image (scaled)"]
    student, teacher = feature_pair()
    golden = crkd_values["Mask_Feat_Loss_Clip(T(0.37,0.1), relu T(0.91,1.3)) shape(1,4,180,180)"]
    assert masked_mse(student, teacher, mask).item() == pytest.approx(golden, rel=1e-5)
    # Upstream divides by the batch size once more; ours is a mean over active cells.
    doubled = masked_mse(*(torch.cat([t, t]) for t in (student, teacher, mask)))
    assert doubled.item() / 2 == pytest.approx(crkd_values["same, batch of 2 identical"], rel=1e-5)


def test_feature_loss_looks_at_boxes_only():
    loss = MaskedFeatureLoss(scale_boxes=False)
    loss.bind(detector_on(SMALL), detector_on(SMALL))
    teacher = torch.rand(1, 3, 6, 6) + 0.1
    student = teacher.clone()
    student[:, :, 0, 0] += 100
    assert loss(student, teacher, batch_of([BOX])) == 0
    student[:, :, 3, 3] += 2
    assert loss(student, teacher, batch_of([BOX])) > 0


def test_cells_without_teacher_response_do_not_count():
    teacher = torch.zeros(1, 2, 3, 3)
    teacher[0, :, 1, 1] = 1
    mask = torch.ones(1, 3, 3, dtype=torch.bool)
    student = torch.full_like(teacher, 3)
    assert masked_mse(student, teacher, mask) == pytest.approx(0.5 * 4)


def test_a_nan_of_the_teacher_is_not_hidden():
    teacher = torch.ones(1, 2, 3, 3)
    teacher[0, 0, 1, 1] = torch.nan
    assert masked_mse(torch.ones(1, 2, 3, 3), teacher, torch.ones(1, 3, 3, dtype=torch.bool)).isnan()


def test_no_boxes_give_zero_with_a_gradient():
    loss = MaskedFeatureLoss()
    loss.bind(detector_on(SMALL), detector_on(SMALL))
    student = torch.randn(2, 3, 6, 6, requires_grad=True)
    value = loss(student, torch.randn(2, 3, 6, 6), batch_of([Boxes3D.empty(), Boxes3D.empty()]))
    value.backward()
    assert value == 0 and not student.grad.any()


def test_growth_is_measured_before_augmentation():
    """A box at 19 m is near, even where a global scale of 1.1 puts it at 20.9 m."""
    loss = MaskedFeatureLoss()
    loss.bind(detector_on(GRID), detector_on(GRID))
    near = Boxes3D(torch.tensor([[19.0, 0.0, 0.0, 12.0, 3.0, 1.5, 0.0, 0.0, 0.0]]))
    aug = torch.diag(torch.tensor([1.1, 1.1, 1.1, 1.0]))
    batch = batch_of([near.transform(aug)])
    batch.calibration.lidar_aug = aug[None]
    student, teacher = torch.zeros(1, 1, 180, 180, requires_grad=True), torch.ones(1, 1, 180, 180)
    loss(student, teacher, batch).backward()
    touched = student.grad[0, 0].nonzero()
    length = (touched[:, 0].max() - touched[:, 0].min() + 1) * 0.6
    assert abs(length - 12.5 * 1.1) < 0.7


def test_feature_loss_gradcheck():
    loss = MaskedFeatureLoss()
    loss.bind(detector_on(SMALL), detector_on(SMALL))
    teacher = torch.rand(1, 2, 6, 6, dtype=torch.float64)
    student = torch.rand(1, 2, 6, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: loss(s, teacher, batch_of([BOX])), student)


# -- relation ---------------------------------------------------------------------------------------------------------


def test_affinity_golden(crkd_values):
    loss = AffinityLoss(adapt=False)
    student, teacher = feature_pair()
    value = loss(student, teacher, batch_of([BOX]))
    assert value.item() == pytest.approx(crkd_values["Affinity_Loss(no adapt) same tensors"], rel=1e-5)
    # Upstream divides by the batch size once more.
    doubled = loss(torch.cat([student] * 2), torch.cat([teacher] * 2), batch_of([BOX, BOX]))
    assert doubled.item() / 2 == pytest.approx(crkd_values["Affinity_Loss(no adapt) batch 2"], rel=1e-5)


def test_affinity_against_a_loop():
    student, teacher = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    total = 0.0
    for b in range(2):
        s, t = student[b].reshape(3, 16), teacher[b].reshape(3, 16)
        for i in range(16):
            for j in range(16):
                total += abs(float(s[:, i] @ s[:, j] - t[:, i] @ t[:, j])) / (2 * 16 * 16)
    loss = AffinityLoss(sizes=[4], channels=3, adapt=False)
    assert loss(student, teacher, batch_of([BOX])).item() == pytest.approx(total, rel=1e-4)


def test_affinity_adapters_have_the_published_keys_and_only_the_student_passes_them():
    loss = AffinityLoss(channels=8)
    expected = {
        f"adapt_modules.{i}.conv_channel_layer.{j}.{k}" for i in range(4) for j in (0, 2) for k in ("weight", "bias")
    }
    assert loss.state_dict().keys() == expected
    assert sum(p.numel() for p in AffinityLoss().parameters()) == 2_623_488
    feature = torch.randn(1, 8, 32, 32)
    assert loss(feature, feature, batch_of([BOX])) > 0
    loss(feature, feature, batch_of([BOX])).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in loss.parameters())


def test_affinity_does_not_overflow_under_autocast():
    loss = AffinityLoss(channels=16)
    student, teacher = (100 + torch.rand(1, 16, 32, 32)).half(), (100 * torch.rand(1, 16, 32, 32)).half()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(student, teacher, batch_of([BOX]))
    assert value.dtype == torch.float32 and value.isfinite()
    assert value == loss(student.float(), teacher.float(), batch_of([BOX]))


def test_affinity_gradcheck():
    torch.manual_seed(0)
    loss = AffinityLoss(sizes=[4, 2], channels=2).double()
    teacher = torch.randn(1, 2, 5, 5, dtype=torch.float64)
    student = torch.randn(1, 2, 5, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: loss(s, teacher, batch_of([BOX])), student)


# -- radar ------------------------------------------------------------------------------------------------------------


def test_mean_response_against_a_loop():
    tasks = head_output(0)
    expected = torch.zeros(2, 1, 5, 5)
    for task in tasks:
        expected += torch.sigmoid((task["heatmap"][:, :1] + task["heatmap"][:, 1:]) / 2) / len(tasks)
    assert torch.allclose(mean_response(tasks), expected, atol=1e-6)


def test_mean_response_is_clamped():
    assert mean_response([{"heatmap": torch.full((1, 2, 1, 1), -50.0)}]) == pytest.approx(1e-4)
    assert mean_response([{"heatmap": torch.full((1, 2, 1, 1), 50.0)}]) == pytest.approx(1 - 1e-4)


def test_radar_loss_is_the_mean_distance_and_leaves_the_teacher_alone():
    tasks = wave_predictions(0.05)
    before = [t["heatmap"].clone() for t in tasks]
    activation = wave((1, 1, 180, 180), 0.41, 0.2).relu()
    value = RadarActivationLoss()(activation, tasks, batch_of([BOX]))
    assert value.item() == pytest.approx((activation - mean_response(tasks)).abs().mean().item(), rel=1e-6)
    assert all(torch.equal(a, t["heatmap"]) for a, t in zip(before, tasks, strict=True))


def test_radar_loss_gradcheck():
    activation = torch.rand(2, 1, 5, 5, dtype=torch.float64, requires_grad=True)
    teacher = head_output(1, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda a: RadarActivationLoss()(a, teacher, batch_of([BOX])), activation)


# -- response ---------------------------------------------------------------------------------------------------------


def test_quality_focal_loss_golden(crkd_values):
    golden = crkd_values["QFL elementwise pred[.1,.5,.9] target[.3,.5,.2] pos=4"]
    for p, q, value in zip((0.1, 0.5, 0.9), (0.3, 0.5, 0.2), golden, strict=True):
        p, q = torch.full((1,), p), torch.full((1,), q)
        # One element, and 0.3 in single precision is above 0.3 or not: divide the count out.
        count = max(int((q > 0.3).sum()), 1)
        assert (quality_focal_loss(p, q) * count / 4).item() == pytest.approx(value, rel=1e-4, abs=1e-8)


def test_response_golden(crkd_values):
    """The published values apply a second sigmoid to the student's clamped probabilities; so does this test."""
    golden = crkd_values["loss_soft when called after loss on the same fp32 dict (double sigmoid)"]
    student, teacher = wave_predictions(0.0), wave_predictions(0.05)
    for task in student:
        task["heatmap"] = task["heatmap"].sigmoid().clamp(1e-4, 1 - 1e-4)
    terms = ResponseLoss()(student, teacher, batch_of([BOX]))
    assert len(terms) == len(golden) == 12
    for name, value in terms.items():
        assert value.item() == pytest.approx(golden[f"{name}/kd"], rel=2e-5), name


def test_only_the_named_box_parameters_are_taught():
    student, teacher, batch = head_output(4), head_output(5), batch_of([BOX])
    full = ResponseLoss(task_weights=[1, 1])(student, teacher, batch)
    still = ResponseLoss(task_weights=[1, 1], parameters=["reg", "height", "dim", "rot"])
    before = still(student, teacher, batch)
    assert before["heatmap/task0"] == full["heatmap/task0"] and 0 < before["bbox/task0"] < full["bbox/task0"]
    for task in student:
        task["vel"] = task["vel"] + 7
    assert all(torch.equal(value, before[name]) for name, value in still(student, teacher, batch).items())
    heat = ResponseLoss(task_weights=[1, 1], parameters=[])(student, teacher, batch)
    assert list(heat) == ["heatmap/task0", "heatmap/task1"]
    with pytest.raises(ValueError, match=r"parameters \[.velocity.\] are not among reg, height, dim, rot, vel"):
        ResponseLoss(parameters=["reg", "velocity"])


def test_response_of_the_teacher_to_itself():
    """Boxes agree exactly; heat maps have no focal distance."""
    tasks = head_output(3)
    terms = ResponseLoss(task_weights=[1, 1])(tasks, tasks, batch_of([BOX]))
    assert all(v == 0 for v in terms.values())


@pytest.mark.parametrize("peak", [0.5, 0.1001, 0.1, 0.095, 0.0649, 0.0205, 0.0102, 0.004, 1e-4])
def test_threshold_falls_until_some_cell_responds(peak):
    response = torch.full((1, 4, 4), 1e-4, dtype=torch.float64)
    response[0, 1, 2] = peak
    response[0, 2, 2] = 0.6 * peak + 0.4e-4
    threshold = 0.1
    while not (response > threshold).any():
        threshold -= 0.01
    active = response > threshold
    student, teacher = (torch.randn(1, 10, 4, 4, dtype=torch.float64) for _ in range(2))
    distance = torch.nn.functional.smooth_l1_loss(student, teacher, reduction="none")
    weighted = (distance * response[:, None] * 10)[active[:, None].expand_as(distance)]
    assert soft_box_loss(student, teacher, response).item() == pytest.approx(4 * weighted.mean().item(), rel=1e-9)


def test_the_smallest_response_that_no_threshold_is_below():
    response = torch.full((1, 2, 2), 0.09000000357627869)  # 0.09 in float32
    assert soft_box_loss(torch.zeros(1, 10, 2, 2), torch.ones(1, 10, 2, 2), response).isfinite()


def with_head(head: object) -> SimpleNamespace:
    return SimpleNamespace(grid=SMALL, heads={"object": head})


@pytest.mark.parametrize(
    ("loss", "teacher", "student", "message"),
    [
        (ResponseLoss(), center_head(), center_head(), "task_weights has 6 entries for the 2 tasks"),
        (ResponseLoss(), center_head([["car"]]), center_head(), "ResponseLoss needs the same tasks on both sides"),
        (
            ResponseLoss(),
            torch.nn.Identity(),
            center_head(),
            "reads the maps of a CenterHead, but the teacher has a Id",
        ),
        (ResponseLoss([1, 1]), center_head(norm_bbox=False), center_head(), "norm_bbox.* is False for the teacher"),
        (
            RadarActivationLoss(),
            torch.nn.Identity(),
            center_head(),
            "RadarActivationLoss reads the maps of a CenterHead",
        ),
    ],
)
def test_heads_that_do_not_fit_are_refused_before_training(loss, teacher, student, message):
    with pytest.raises(ValueError, match=message):
        loss.bind(with_head(teacher), with_head(student))


def test_response_does_not_change_its_inputs():
    student, teacher = head_output(0), head_output(1)
    before = [{k: v.clone() for k, v in task.items()} for task in student + teacher]
    ResponseLoss(task_weights=[1, 1])(student, teacher, batch_of([BOX]))
    for old, new in zip(before, student + teacher, strict=True):
        assert old.keys() == new.keys() and all(torch.equal(old[k], new[k]) for k in old)


def test_response_in_half_precision_is_finite():
    student, teacher = head_output(0, dtype=torch.float16), head_output(1, dtype=torch.float16)
    teacher[0]["heatmap"] *= 30
    terms = ResponseLoss(task_weights=[1, 1])(student, teacher, batch_of([BOX]))
    assert all(v.isfinite() and v.dtype == torch.float32 for v in terms.values())


def test_response_gradcheck():
    teacher = head_output(1, cells=2, dtype=torch.float64)
    student = head_output(0, cells=2, dtype=torch.float64)
    names = list(student[0])
    tensors = [t[k].clone().requires_grad_() for t in student for k in names]

    def total(*values: torch.Tensor) -> torch.Tensor:
        tasks = [dict(zip(names, values[i : i + len(names)], strict=True)) for i in (0, len(names))]
        return sum(ResponseLoss(task_weights=[2, 1])(tasks, teacher, batch_of([BOX])).values())

    assert torch.autograd.gradcheck(total, tensors)


def test_a_detector_without_such_a_head_is_refused_before_training():
    with pytest.raises(ValueError, match="reads the maps of a CenterHead, but the teacher is a SimpleNamespace"):
        ResponseLoss([1, 1]).bind(SimpleNamespace(grid=None), with_head(center_head()))
