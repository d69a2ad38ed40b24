from __future__ import annotations

import copy
import math

import pytest
import torch
from published import tensors
from torch import Tensor

from mmdet3d.models.heads.box_coder import decode_boxes, encode_boxes
from mmdet3d.models.heads.centerhead import REGRESSION, CenterHead
from mmdet3d.models.heads.gaussian import draw_gaussians, gaussian_radius
from mmdet3d.models.heads.targets import center_targets, heatmap_target
from mmdet3d.models.losses import FocalLoss, GaussianFocalLoss, L1Loss
from mmdet3d.registry import MODELS
from mmdet3d.structures import BEVGrid, Boxes3D, limit_period

TASKS = [
    ["car"],
    ["truck", "construction_vehicle"],
    ["bus", "trailer"],
    ["barrier"],
    ["motorcycle", "bicycle"],
    ["pedestrian", "traffic_cone"],
]
FULL = {
    "type": "CenterHead",
    "in_channels": 256,
    "tasks": TASKS,
    "train_cfg": {
        "point_cloud_range": [-54.0, -54.0, -5.0, 54.0, 54.0, 3.0],
        "voxel_size": [0.075, 0.075, 0.2],
        "out_size_factor": 8,
        "gaussian_overlap": 0.1,
        "min_radius": 2,
        "code_weights": [1.0] * 10,
    },
    "test_cfg": {
        "post_center_limit_range": [-61.2, -61.2, -10.0, 61.2, 61.2, 10.0],
        "max_per_img": 500,
        "score_threshold": 0.1,
        "nms_type": ["circle", "rotate", "rotate", "circle", "rotate", "rotate"],
        "nms_thr": 0.2,
        "nms_scale": [[1.0], [1.0, 1.0], [1.0, 1.0], [1.0], [1.0, 1.0], [2.5, 4.0]],
        "min_radius": [4, 12, 10, 1, 0.85, 0.175],
        "pre_max_size": 1000,
        "post_max_size": 83,
    },
    "separate_head": {"type": "SeparateHead", "init_bias": -2.19, "final_kernel": 3},
}
GRID = BEVGrid.from_range([-54, -54, -5, 54, 54, 3], [0.6, 0.6])


def config(**train: object) -> dict:
    cfg = copy.deepcopy(FULL)
    cfg["in_channels"] = 4
    cfg["share_conv_channel"] = 8
    cfg["train_cfg"] |= {"point_cloud_range": [-6.0, -9.6, -5, 6.0, 9.6, 3]} | train
    return cfg


@pytest.fixture
def head() -> CenterHead:
    """A head over 20 x 32 cells of 0.6 m."""
    torch.manual_seed(0)
    return MODELS.build(config())


@pytest.fixture
def truth() -> tuple[list[Boxes3D], list[Tensor]]:
    first = torch.tensor(
        [[1.0, 2.0, 0.5, 4.5, 1.9, 1.6, 0.3, 1.0, -2.0], [-3.2, -7.0, 0.0, 0.7, 0.6, 1.7, -2.0, 0.0, 0.5]]
    )
    return [Boxes3D(first), Boxes3D.empty()], [torch.tensor([0, 8]), torch.zeros(0, dtype=torch.int64)]


def perfect(head: CenterHead, boxes: list[Boxes3D], labels: list[Tensor]) -> list[dict[str, Tensor]]:
    """Logits that say exactly the ground truth."""
    shape = head.grid.shape
    objects = center_targets(boxes, labels, 10, head.grid)
    raw, first = [], 0
    for task in head.tasks:
        maps = {n: torch.zeros(len(boxes), c, *shape) for n, c in REGRESSION.items()}
        maps["heatmap"] = torch.full((len(boxes), len(task), *shape), -20.0)
        for sample, label, cell, code in zip(
            objects.samples, objects.labels, objects.cells, objects.codes, strict=True
        ):
            if first <= label < first + len(task):
                x, y = cell.tolist()
                maps["heatmap"][sample, label - first, x, y] = 5.0
                values = torch.cat([code[:2] - cell, code[2:]]).split(list(REGRESSION.values()))
                for name, value in zip(REGRESSION, values, strict=True):
                    maps[name][sample, :, x, y] = value
        raw.append(maps)
        first += len(task)
    return raw


# -- targets --------------------------------------------------------------------------------------------------------


def test_gaussian_radius_of_published_cases(crkd_values: dict) -> None:
    for case in crkd_values["gaussian_radius(feature-map units)"]:
        radius = gaussian_radius(torch.tensor([case["length"]]), torch.tensor([case["width"]]), case["overlap"])
        assert radius.item() == pytest.approx(case["radius"], rel=1e-5)


def test_drawn_gaussian_clipped_at_the_border(crkd_values: dict) -> None:
    case = crkd_values["draw_gaussian heatmap 9x12 center(col=10,row=2) r=3"]
    heat = draw_gaussians((1, 9, 12), torch.tensor([0]), torch.tensor([[2, 10]]), torch.tensor([3]))[0]
    assert heat.sum().item() == pytest.approx(case["stat"]["sum"], rel=1e-6)
    torch.testing.assert_close(heat[2], torch.tensor(case["row2"]))
    torch.testing.assert_close(heat[3], torch.tensor(case["row3"]))


def test_overlapping_gaussians_keep_the_maximum_and_their_own_radius() -> None:
    cells, radii = torch.tensor([[5, 5], [5, 8], [1, 1]]), torch.tensor([2, 4, 1])
    single = [
        draw_gaussians((2, 12, 14), torch.tensor([0]), c[None], r[None]) for c, r in zip(cells, radii, strict=True)
    ]
    both = draw_gaussians((2, 12, 14), torch.tensor([0, 0, 1]), cells, radii)
    torch.testing.assert_close(both[0], torch.maximum(single[0][0], single[1][0]))
    torch.testing.assert_close(both[1], single[2][0])
    assert both[0, 5, 13] == 0 and both[0, 5, 12] > 0


def boxes_from_old(boxes: torch.Tensor) -> Boxes3D:
    """From (N, 9) of mmdet3d before v1.0: x, y, z (bottom), width, length, height, yaw = -heading - pi / 2, vx, vy."""
    x, y, z, width, length, height, yaw, vx, vy = boxes.unbind(1)
    heading = limit_period(-yaw - torch.pi / 2)
    return Boxes3D(torch.column_stack([x, y, z + height / 2, length, width, height, heading, vx, vy]))


def test_targets_match_published_code(crkd_values: dict) -> None:
    boxes = boxes_from_old(torch.tensor(crkd_values["boxes (x,y,z_bottom,w,l,h,yaw,vx,vy)"]))
    labels = torch.tensor(crkd_values["labels"])
    objects = center_targets([boxes], [labels], 10, GRID)
    heat = heatmap_target(objects, 1, 10, GRID, overlap=0.1, min_radius=2)
    first = 0
    for names, want in zip(TASKS, crkd_values["CenterHead targets"], strict=True):
        mine = objects[(objects.labels >= first) & (objects.labels < first + len(names))]
        target = mine.codes.clone()
        target[:, :2] -= mine.cells
        assert (mine.cells[:, 0] * 180 + mine.cells[:, 1]).tolist() == want["ind"]
        torch.testing.assert_close(target, torch.tensor(want["anno"]).reshape(-1, 10), rtol=1e-5, atol=1e-5)
        task_heat = heat[:, first : first + len(names)]
        assert list(task_heat.shape) == want["heatmap"]["shape"]
        assert task_heat.sum().item() == pytest.approx(want["heatmap"]["sum"], rel=1e-6)
        assert task_heat.flatten()[:4].tolist() == want["heatmap"]["first"]
        first += len(names)


def test_box_code_round_trip_and_old_yaw() -> None:
    torch.manual_seed(0)
    tensor = torch.rand(20, 9, dtype=torch.float64) * 4 + 0.5
    tensor[:, 6] = torch.linspace(-math.pi + 0.01, math.pi - 0.01, 20)
    boxes = Boxes3D(tensor)
    for log_dims in (True, False):
        code = encode_boxes(boxes, GRID, log_dims)
        torch.testing.assert_close(decode_boxes(code, GRID, log_dims).tensor, tensor)
    old = -boxes.yaw - math.pi / 2
    torch.testing.assert_close(code[:, 6:8], torch.stack([old.sin(), old.cos()], dim=1))


def test_boxes_off_the_raster_train_nothing() -> None:
    rows = torch.ones(4, 9)
    rows[:, 0] = torch.tensor([-54.3, 53.9, 54.1, 0.0])
    rows[3, 4] = 0
    objects = center_targets([Boxes3D(rows)], [torch.zeros(4, dtype=torch.int64)], 10, GRID)
    assert objects.cells.tolist() == [[179, 91]]


def test_unknown_label_is_an_error(head: CenterHead) -> None:
    with pytest.raises(ValueError, match="label 10, but the head knows 10 classes"):
        center_targets([Boxes3D(torch.ones(1, 9))], [torch.tensor([10])], 10, head.grid)


# -- losses ---------------------------------------------------------------------------------------------------------


def reference_loss(head: CenterHead, raw: list, boxes: list, labels: list) -> dict[str, float]:
    """CenterPoint's losses, one object and one cell at a time."""
    result, first = {}, 0
    objects = center_targets(boxes, labels, 10, head.grid)
    heat = heatmap_target(objects, len(boxes), 10, head.grid, 0.1, 2)
    for t, task in enumerate(head.tasks):
        focal, peaks, error, count = 0.0, 0, 0.0, 0
        target = heat[:, first : first + len(task)].flatten().tolist()
        probability = raw[t]["heatmap"].sigmoid().clamp(1e-4, 1 - 1e-4).flatten().tolist()
        for p, q in zip(probability, target, strict=True):
            focal += -math.log(p) * (1 - p) ** 2 if q == 1 else -math.log(1 - p) * p**2 * (1 - q) ** 4
            peaks += q == 1
        for i in range(len(objects)):
            if first <= objects.labels[i] < first + len(task):
                x, y = objects.cells[i].tolist()
                code = torch.cat([raw[t][n][objects.samples[i], :, x, y] for n in REGRESSION])
                code[:2] += objects.cells[i]
                difference = (code - objects.codes[i]).abs() * torch.tensor(head.train_cfg.code_weights)
                error += difference.sum().item()
                count += 1
        result[f"heatmap/task{t}"] = focal / max(peaks, 1)
        result[f"bbox/task{t}"] = 0.25 * error / (count + 1e-4)
        first += len(task)
    return result


def test_loss_equals_a_loop_over_cells_and_objects(head: CenterHead, truth: tuple) -> None:
    raw = head.eval()(torch.randn(2, 4, 20, 32))
    losses = head.box_losses(raw, *truth)
    want = reference_loss(head, [{n: v.detach() for n, v in task.items()} for task in raw], *truth)
    assert {k: v.item() for k, v in losses.items()} == pytest.approx(want, rel=1e-4, abs=1e-6)


def test_loss_leaves_predictions_alone_and_trains_everything(head: CenterHead, truth: tuple) -> None:
    raw = head(torch.randn(2, 4, 20, 32))
    before = [{n: v.detach().clone() for n, v in task.items()} for task in raw]
    losses = head.box_losses(raw, *truth)
    sum(losses.values()).backward()
    for task, old in zip(raw, before, strict=True):
        assert list(task) == list(old)
        assert all(torch.equal(task[n], old[n]) for n in old)
    assert all(p.grad is not None for p in head.parameters())


def test_no_boxes_at_all_is_finite(head: CenterHead) -> None:
    empty = [Boxes3D.empty(), Boxes3D.empty()], [torch.zeros(0, dtype=torch.int64)] * 2
    losses = head.box_losses(head(torch.randn(2, 4, 20, 32)), *empty)
    assert all(v.isfinite() for v in losses.values())
    assert all(losses[f"bbox/task{t}"] == 0 for t in range(6))
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in head.parameters())


def test_unknown_velocity_is_not_learned(head: CenterHead, truth: tuple) -> None:
    boxes, labels = truth
    boxes[0].tensor[0, 7:] = float("nan")
    raw = head(torch.randn(2, 4, 20, 32))
    losses = head.box_losses(raw, boxes, labels)
    assert losses["bbox/task0"].isfinite()
    (gradient,) = torch.autograd.grad(losses["bbox/task0"], raw[0]["vel"])
    assert (gradient == 0).all()


def test_perfect_prediction_costs_little(head: CenterHead, truth: tuple) -> None:
    losses = head.box_losses(perfect(head, *truth), *truth)
    assert all(losses[f"bbox/task{t}"] < 1e-5 for t in range(6))
    assert all(losses[f"heatmap/task{t}"] < 1e-3 for t in range(6))


def test_code_weights_scale_their_channel(truth: tuple) -> None:
    torch.manual_seed(0)
    plain = MODELS.build(config())
    muted = MODELS.build(config(code_weights=[1.0] * 8 + [0.0, 0.0]))
    raw = plain(torch.randn(2, 4, 20, 32))
    (gradient,) = torch.autograd.grad(muted.box_losses(raw, *truth)["bbox/task0"], raw[0]["vel"], retain_graph=True)
    assert (gradient == 0).all()
    (gradient,) = torch.autograd.grad(plain.box_losses(raw, *truth)["bbox/task0"], raw[0]["vel"])
    assert (gradient != 0).sum() == 2


def test_loss_modules_gradcheck() -> None:
    torch.manual_seed(0)
    p = (torch.rand(3, 4, dtype=torch.float64) * 0.8 + 0.1).requires_grad_()
    q = torch.rand(3, 4, dtype=torch.float64)
    q[0, 0] = 1
    assert torch.autograd.gradcheck(lambda x: GaussianFocalLoss()(x, q, avg_factor=2.0), p)
    logits = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 3, 2, 3, 1])
    assert torch.autograd.gradcheck(lambda x: FocalLoss()(x, labels, avg_factor=2.0), logits)
    assert torch.autograd.gradcheck(lambda x: L1Loss()(x, q, q, avg_factor=2.0), p)


def test_focal_loss_golden_value() -> None:
    logits = torch.tensor([[0.0, 2.0]])
    p = 1 / (1 + math.exp(-2))
    want = 0.25 * 0.25 * math.log(2) + 0.75 * p**2 * -math.log(1 - p)
    assert FocalLoss()(logits, torch.tensor([0]), avg_factor=1.0).item() == pytest.approx(want, rel=1e-6)


# -- inference ------------------------------------------------------------------------------------------------------


def test_decode_finds_the_ground_truth(head: CenterHead, truth: tuple) -> None:
    found, nothing = head.decode(perfect(head, *truth))
    assert len(nothing) == 0
    assert found.labels.tolist() == [0, 8]
    torch.testing.assert_close(found.boxes.tensor, truth[0][0].tensor, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.scores, torch.full((2,), 5.0).sigmoid())


def test_decode_suppresses_neighbours(head: CenterHead) -> None:
    rows = torch.tensor([[0.3, 0.3, 0, 4.5, 1.9, 1.6, 0, 0, 0]]).repeat(3, 1)
    rows[1, 0], rows[2, 0] = 2.1, 3.3
    boxes, labels = [Boxes3D(rows)], [torch.zeros(3, dtype=torch.int64)]
    raw = perfect(head, boxes, labels)
    raw[0]["heatmap"][0, 0, 13] -= 1
    # Cars: centres within 2 m (the squared radius 4) of a better one go; 1.8 m goes, 3 m stays.
    assert sorted(head.decode(raw)[0].boxes.centers[:, 0].tolist()) == pytest.approx([0.3, 3.3], abs=1e-4)


def test_pedestrian_footprints_are_enlarged_for_suppression(head: CenterHead) -> None:
    rows = torch.tensor([[0.3, 0.3, 0, 0.7, 0.7, 1.7, 0, 0, 0]]).repeat(2, 1)
    rows[1, 0] = 0.9
    boxes = [Boxes3D(rows)]
    raw = perfect(head, boxes, [torch.tensor([8, 8])])
    (found,) = head.decode(raw)
    assert len(found) == 1 and found.boxes.dims[0, 0].item() == pytest.approx(0.7, rel=1e-4)
    head.test_cfg.nms_scale[5] = [1.0, 1.0]
    assert len(head.decode(raw)[0]) == 2


def test_score_and_range_limits(head: CenterHead, truth: tuple) -> None:
    raw = perfect(head, *truth)
    raw[0]["heatmap"] -= 8
    raw[5]["height"] += 11
    assert len(head.decode(raw)[0]) == 0


def test_heads_of_another_size_than_180(head: CenterHead) -> None:
    assert head.grid.shape == (20, 32)
    raw = head(torch.randn(1, 4, 20, 32))
    assert raw[1]["rot"].shape == (1, 2, 20, 32)


# -- construction ---------------------------------------------------------------------------------------------------


def test_heatmap_starts_at_one_tenth(head: CenterHead) -> None:
    assert all((task.heatmap[-1].bias == -2.19).all() for task in head.task_heads)


def test_state_dict_is_the_published_one() -> None:
    have = MODELS.build(FULL).state_dict()
    assert {k: tuple(v.shape) for k, v in have.items()} == tensors("c_student_CR_swint_default", "heads.object.")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_cfg": {"dense_reg": 1}}, "train_cfg.dense_reg has no effect"),
        ({"train_cfg": {"min_radios": 2}}, "did you mean 'min_radius'"),
        ({"train_cfg": {"code_weights": [1.0] * 8}}, "needs 10 numbers, got 8"),
        ({"train_cfg": {"out_size_factor": 7}}, "no whole number of cells"),
        ({"test_cfg": {"nms_type": ["circle"]}}, "one entry per task"),
        ({"test_cfg": {"nms_type": "soft"}}, "one of circle, rotate or a list of texts, got"),
        ({"test_cfg": {"min_radius": [1, 2]}}, "one number per task"),
        ({"test_cfg": {"nms_scale": [[1.0]] * 6}}, "one factor per class"),
        ({"common_heads": {"reg": [2, 2]}}, "common_heads must give"),
        ({"separate_head": {"final_kernle": 1}}, "did you mean 'final_kernel'"),
    ],
)
def test_config_mistakes(change: dict, message: str) -> None:
    cfg = config()
    for key, value in change.items():
        cfg[key] = cfg.get(key, {}) | value
    with pytest.raises(ValueError, match=message):
        MODELS.build(cfg)


def test_input_of_another_size_is_refused(head: CenterHead) -> None:
    with pytest.raises(ValueError, match="20x32 cells"):
        head(torch.zeros(1, 4, 32, 20))


def test_autocast_keeps_losses_in_float32(head: CenterHead, truth: tuple) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        raw = head(torch.randn(2, 4, 20, 32))
        losses = head.box_losses(raw, *truth)
    assert raw[0]["heatmap"].dtype == torch.bfloat16
    assert all(v.dtype == torch.float32 and v.isfinite() for v in losses.values())
