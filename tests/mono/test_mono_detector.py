"""The detector as a whole: published size, shapes, inputs, taps, learning."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from mono_inputs import CLASSES, STREET, make_batch, small_model

from mmdet3d.interop.checkpoints import load_checkpoint
from mmdet3d.models.heads.mono.losses import TASKS

PUBLISHED = {"backbone": {"type": "DLA"}, "neck": {"type": "DLAUp"}, "head_channels": 256}
SIZES = {
    "heatmap": 148_483, "offset_2d": 148_226, "size_2d": 148_226, "offset_3d": 160_258, "size_3d": 160_515,
    "heading": 165_912, "vis_depth": 159_489, "att_depth": 159_489, "vis_depth_uncer": 159_489,
    "att_depth_uncer": 159_489, "backbone": 15_783_832, "feat_up": 3_995_392,
}  # fmt: skip


def test_published_parameters_and_names():
    model = small_model(**PUBLISHED)
    assert sum(p.numel() for p in model.parameters()) == 21_348_809
    state = model.state_dict()
    assert len(state) == 370
    assert {name.split(".")[0] for name in state} == {"mean_size", *SIZES}
    for name, size in SIZES.items():
        assert sum(p.numel() for p in getattr(model, name).parameters()) == size
    assert state["heatmap.2.bias"].tolist() == pytest.approx([-2.19] * 3)
    assert {"heading.4.weight", "size_3d.1.running_mean", "vis_depth_uncer.2.bias"} <= set(state)
    assert not model.mean_size.requires_grad


def test_checkpoints_of_the_published_program_load(tmp_path):
    source, model = small_model(), small_model()
    torch.nn.init.ones_(source.heading[0].weight)
    distilled = {f"module.centernet_rgb.{k}": v for k, v in source.state_dict().items()}
    torch.save({"epoch": 140, "model_state": distilled, "optimizer_state": None}, tmp_path / "distill.pth")
    load_checkpoint(model, tmp_path / "distill.pth", prefix="centernet_rgb.")
    assert torch.equal(model.heading[0].weight, source.heading[0].weight)


@pytest.mark.slow
def test_shapes_of_the_published_network():
    model = small_model(**PUBLISHED).eval()
    batch = make_batch([STREET], size=(384, 1280))
    with torch.no_grad():
        found = model.extract(batch, model.taps)
    assert [tuple(m.shape[1:]) for m in found["neck"]] == [(512, 12, 40), (256, 24, 80), (128, 48, 160), (64, 96, 320)]
    assert [m.shape[1] for m in found["backbone"]] == [16, 32, 64, 128, 256, 512]
    assert found["heads.dense"]["heatmap"].shape == (1, 3, 96, 320)
    assert found["heads.roi"]["heading"].shape == (3, 24)
    assert found["heads.candidates"]["depth"].shape == (50, 7, 7)


def test_taps_and_terms():
    model = small_model()
    assert model.taps == ("backbone", "neck", "heads.dense", "targets", "heads.roi", "heads.candidates")
    losses = model.loss(make_batch())
    assert tuple(losses) == tuple(f"loss/object/{name}" for name in TASKS)
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name


def test_images_without_objects():
    model = small_model()
    losses = model.loss(make_batch([[], []]))
    assert all(v.isfinite() for v in losses.values())
    assert all(v == 0 for k, v in losses.items() if k != "loss/object/heatmap")
    sum(losses.values()).backward()
    # Every parameter takes part, so that distributed training need not look for those that do not.
    assert [k for k, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    assert all(torch.isfinite(v).all() for v in model.state_dict().values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_targets_are_exact_under_autocast(dtype):
    """In half precision an object to the right, whose column times depth exceeds its range, would vanish."""
    batch = make_batch([[*STREET, (1, 28.0, 1.0, 70.0, 0.3)]])
    model = small_model()
    exact = model.extract(batch, {"targets"})["targets"]
    with torch.autocast("cpu", dtype):
        found = model.extract(batch, {"targets"})["targets"]
    assert len(exact.cells) == 4
    for field in ("cells", "offset_3d", "offset_2d"):
        assert torch.equal(getattr(found, field), getattr(exact, field)), field


def test_merged_classes_only_draw_on_the_heat_map():
    batch = make_batch()
    for found in batch.objects:
        found.regressed[:] = False
    model = small_model()
    losses = model.loss(batch)
    assert losses["loss/object/depth"] == 0
    kept = {k: v.detach() for k, v in small_model().loss(make_batch()).items()}
    assert kept["loss/object/depth"] > 0


def test_prediction_needs_images_and_calibration_alone():
    model = small_model(score_threshold=0.01).eval()
    batch = make_batch()
    with torch.no_grad():
        full = model.predict(batch)
        bare = model.predict(batch.without("objects", "depths"))
    assert len(full) == 2 and len(full[0]) > 0
    for a, b in zip(full, bare, strict=True):
        assert torch.equal(a.boxes.tensor, b.boxes.tensor)
        assert a.boxes2d.shape == (len(a), 4) and a.alphas.shape == (len(a),)


def test_the_depth_network_reads_depth_alone():
    model = small_model(input="depth", score_threshold=0.01).eval()
    batch = make_batch(crop=1.3)
    seen = []
    model.backbone.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        model.predict(batch.without("images", "objects"))
        small_model(input="depth", depth_norm="legacy")
    assert torch.allclose(seen[0][:, 2], batch.depths[:, 0] * 1.3 / 80)
    with pytest.raises(ValueError, match="input: depth needs `depths`"):
        model.predict(batch.without("depths"))


def test_legacy_depth_is_divided_by_256_again():
    model = small_model(input="depth", depth_norm="legacy").eval()
    batch = make_batch()
    batch.depths[:] = 20.0
    seen = []
    model.backbone.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        model.extract(batch, ["backbone"])
    assert torch.allclose(seen[0], torch.tensor(9.765625e-4))


def test_the_published_decoding_is_an_option():
    exact, published = small_model(score_threshold=0.01), small_model(score_threshold=0.01, exact_affine=False)
    published.load_state_dict(exact.state_dict())
    batch = make_batch()
    with torch.no_grad():
        a, b = (model.eval().predict(batch)[0] for model in (exact, published))
    assert torch.equal(a.labels[:1], b.labels[:1])
    assert not torch.allclose(a.boxes2d[:1], b.boxes2d[:1])
    assert torch.allclose(a.boxes2d[:1], b.boxes2d[:1], atol=4.0)


def test_a_few_steps_lower_the_loss():
    torch.manual_seed(0)
    model = small_model()
    batch = make_batch()
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    history = []
    for _ in range(15):
        total = sum(model.loss(batch).values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        history.append(total.item())
    assert history[-1] < 0.4 * history[0]


def test_half_precision_gives_nearly_the_same_losses():
    model = small_model().eval()
    batch = make_batch()
    with torch.no_grad():
        full = model.loss(batch)
        with torch.autocast("cpu", torch.bfloat16):
            half = model.loss(batch)
    for name, value in full.items():
        assert half[name].item() == pytest.approx(value.item(), rel=0.05, abs=0.05), name


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"input": "lidar"}, "model.input must be one of rgb, depth, got 'lidar'"),
        ({"depth_norm": "cm"}, "model.depth_norm must be one of metres_over_80, legacy"),
        ({"classes": [*CLASSES, "Van"]}, "model.mean_sizes needs height, width and length of 'Van'"),
        ({"head_chanels": 8}, "did you mean 'head_channels'"),
    ],
)
def test_wrong_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        small_model(**changes)


def test_training_needs_objects_and_depth():
    model = small_model()
    with pytest.raises(ValueError, match=r"MonoDetector \(for training\) needs `objects`"):
        model.loss(make_batch().without("objects"))
    with pytest.raises(ValueError, match="the depth loss needs `depths`"):
        model.loss(make_batch().without("depths"))


def test_losses_of_a_mixed_batch_are_those_of_its_labelled_images():
    model = small_model().eval()
    batch = make_batch([STREET, STREET[:1], STREET[1:]])
    mixed = dataclasses.replace(batch, objects=batch.objects[:-1], unlabelled=1)
    alone, together = model.loss(mixed.labelled), model.loss(mixed)
    assert alone.keys() == together.keys()
    for name, value in alone.items():
        assert torch.allclose(value, together[name], rtol=1e-4), name
