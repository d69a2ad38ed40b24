"""MonoDistill's terms against published values, and published checkpoints of both distillations."""

from __future__ import annotations

import pytest
import torch
from mono_inputs import STREET, make_batch, small_model

from mmdet3d.config import load_config
from mmdet3d.distill.losses.foreground import ForegroundLoss, foreground_distance, foreground_mask
from mmdet3d.interop.checkpoints import load_checkpoint
from mmdet3d.models import build_model
from mmdet3d.models.heads.mono.targets import MonoTargets, support_mask

NARROW = {"base_channels": 2, "head_channels": 16, "htl": None, "imagenet_weights": "missing"}


def boxes(*rows: tuple[float, float, float, float]) -> MonoTargets:
    """Targets of one image with these 2-D boxes, in pixels of the network."""
    n = len(rows)
    corners = torch.tensor(rows).view(n, 4) / 4
    none = torch.zeros(n)
    return MonoTargets(
        image=none.long(), labels=none.long(), cells=torch.zeros(n, 2).long(), boxes=corners,
        offset_2d=torch.zeros(n, 2), size_2d=corners[:, 2:] - corners[:, :2], offset_3d=torch.zeros(n, 2),
        size_3d=torch.zeros(n, 3), depth=none, heading_bin=none.long(), heading_residual=none, regressed=none.bool(),
    )  # fmt: skip


def waves(shape: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    k = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
    return torch.sin(0.1 * k).view(shape), torch.cos(0.07 * k).view(shape)


def test_published_imitation() -> None:
    mask = foreground_mask(boxes((40, 24, 120, 88)), 8, (1, 48, 160))
    assert mask.sum() == 80
    assert foreground_distance(*waves((1, 8, 48, 160)), mask).item() == pytest.approx(0.48705750, abs=1e-8)


def test_published_square_of_responses_without_the_corner_that_empty_slots_mark() -> None:
    mask = support_mask(boxes((40, 24, 120, 88)), (1, 96, 320))
    assert mask.sum() == 81
    assert mask[0, 10:19, 16:25].all()


def test_boxes_across_the_border_are_cut_and_none_gives_zero() -> None:
    assert foreground_mask(boxes((-20, -20, 24, 16), (1270, 370, 1300, 400)), 8, (1, 48, 160)).nonzero().tolist() == [
        [0, y, x] for y in range(2) for x in range(3)
    ] + [[0, y, x] for y in (46, 47) for x in (158, 159)]
    student, teacher = waves((1, 8, 48, 160))
    assert foreground_distance(student, teacher, foreground_mask(boxes(), 8, (1, 48, 160))) == 0


def test_gradient_in_double_precision() -> None:
    student = torch.randn(1, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    teacher, mask = torch.randn(1, 2, 3, 4, dtype=torch.float64), torch.rand(1, 3, 4) > 0.5
    torch.autograd.gradcheck(lambda s: foreground_distance(s, teacher, mask), student)


def test_published_size_of_the_helpers() -> None:
    loss = ForegroundLoss()
    assert (
        sum(p.numel() for p in loss.fusions.parameters()) == 4_927_366 - 330_882
    )  # but for the one of stride 4, which nothing reads
    assert [a[0].in_channels for a in loss.adapters] == [512, 256, 128]


def test_terms_reach_student_and_helpers() -> None:
    batch = make_batch([STREET, STREET[:1]])
    student, teacher = small_model(), small_model(input="depth")
    ours = student.extract(batch, ("backbone", "targets"))
    with torch.no_grad():
        theirs = teacher.extract(batch, ("backbone",))["backbone"]
    loss = ForegroundLoss((16, 32, 64))
    terms = loss([ours["backbone"], ours["targets"]], theirs, batch)
    assert set(terms) == {"foreground", "affinity"} and all(v > 0 for v in terms.values())
    sum(terms.values()).backward()
    assert student.backbone.base_layer[0].weight.grad.abs().sum() > 0
    assert all(p.grad is not None for p in loss.parameters())
    assert set(ForegroundLoss((16, 32, 64), foreground=0)([ours["backbone"], ours["targets"]], theirs, batch)) == {
        "affinity"
    }
    with pytest.raises(ValueError, match="switch the loss off with null"):
        ForegroundLoss(foreground=0, affinity=0)
    with pytest.raises(ValueError, match="maps of equal shapes"):
        loss([ours["backbone"], ours["targets"]], theirs[:-1], batch)


@pytest.mark.parametrize("name", ["monoskd", "monodistill"])
def test_published_distillations_load_as_student_or_distiller(name, tmp_path) -> None:
    cfg = load_config(f"configs/kitti/{name}.yaml", NARROW)
    student_file = tmp_path / "student.yaml"
    student_file.write_text(load_config("configs/kitti/rgb_baseline.yaml", NARROW).dump())
    cfg.model.student["config"] = str(student_file)
    distiller, source = build_model(cfg.model), small_model()
    torch.nn.init.ones_(source.heading[0].weight)
    own = distiller.losses["features"]
    published = {f"centernet_rgb.{k}": v for k, v in source.state_dict().items()}
    published |= {f"centernet_depth.{k}": torch.zeros_like(v) for k, v in source.state_dict().items()}
    for stride, adapt in zip((32, 16, 8, 4), own.adapters, strict=False):
        published |= {f"adapt_layer{stride}.{k}": torch.ones_like(v) for k, v in adapt.state_dict().items()}
    fusions = getattr(own, "fusions", None)
    if fusions is not None:
        published |= {f"rgb_fs.{k}": torch.ones_like(v) for k, v in fusions.state_dict().items()}
    torch.save({"epoch": 140, "model_state": published, "optimizer_state": None}, tmp_path / "d.pth")

    model = small_model()
    load_checkpoint(model, tmp_path / "d.pth", part="student")
    assert torch.equal(model.heading[0].weight, source.heading[0].weight)
    teacher = small_model(input="depth")
    load_checkpoint(teacher, tmp_path / "d.pth", part="teacher")
    assert teacher.heading[0].weight.abs().sum() == 0
    load_checkpoint(distiller, tmp_path / "d.pth")
    assert torch.equal(distiller.student.heading[0].weight, source.heading[0].weight)
    assert all((v == 1).all() for v in own.state_dict().values())
