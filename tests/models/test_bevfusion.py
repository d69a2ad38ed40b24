from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from bev_models import TRANSFUSION_HEAD, make_batch, model_config
from published import tensors
from torch import nn

from mmdet3d.config import load_config
from mmdet3d.engine.checkpoint import load_start
from mmdet3d.models import build_model
from mmdet3d.models.detectors import BEVFusion
from mmdet3d.registry import MODELS

SETS = [
    (("camera", "lidar", "radar"), "ConvFuser"),
    (("camera", "lidar", "radar"), "AddFuser"),
    (("camera", "lidar"), "GatedFuser"),
    (("camera", "radar"), "GatedFuser"),
    (("lidar",), None),
    (("radar",), "ConvFuser"),
]


def build(*sensors: str, fuser: str | None = "ConvFuser", **options: object) -> BEVFusion:
    torch.manual_seed(0)
    return MODELS.build(model_config(*sensors, fuser=fuser, **options))


def counting(module: nn.Module) -> Callable[[], int]:
    calls = []
    module.register_forward_hook(lambda *_: calls.append(1))
    return lambda: len(calls)


# -- the protocol ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("sensors", "fuser"), SETS)
def test_loss_backward_predict(sensors: tuple[str, ...], fuser: str | None) -> None:
    model, batch = build(*sensors, fuser=fuser), make_batch()
    losses = model.loss(batch)
    assert set(losses) == {f"loss/object/{kind}/task{t}" for kind in ("heatmap", "bbox") for t in range(3)}
    sum(losses.values()).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not without
    model.eval()
    detections = model.predict(batch)
    assert len(detections) == 2
    for found in detections:
        assert found.boxes.tensor.shape == (len(found), 9)
        assert ((found.labels >= 0) & (found.labels < 4)).all()


@pytest.mark.parametrize("sensors", [("camera", "lidar"), ("lidar",)])
def test_transfusion_head(sensors: tuple[str, ...]) -> None:
    model = build(*sensors, fuser="ConvFuser", head=TRANSFUSION_HEAD)
    losses = model.loss(make_batch())
    assert "loss/object/loss_heatmap" in losses and "stats/object/matched_ious" in losses
    sum(v for k, v in losses.items() if k.startswith("loss/")).backward()
    assert len(model.eval().predict(make_batch())) == 2


def test_training_lowers_the_loss() -> None:
    model, batch = build("lidar", "radar"), make_batch()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    history = []
    for _ in range(8):
        total = sum(model.loss(batch).values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        history.append(total.item())
    assert history[-1] < 0.7 * history[0]


def test_samples_of_a_batch_do_not_mix() -> None:
    model, batch = build("camera", "lidar", "radar").eval(), make_batch(3)
    with torch.no_grad():
        whole = model.extract(batch, ["heads.object"])["heads.object"][0]["heatmap"]
        for i in range(3):
            one = make_batch(3)
            one.tokens, one.calibration, one.images = (
                one.tokens[i : i + 1],
                _at(one.calibration, i),
                one.images[i][None],
            )
            one.points, one.radar = [one.points[i]], [one.radar[i]]
            alone = model.extract(one, ["heads.object"])["heads.object"][0]["heatmap"]
            torch.testing.assert_close(alone[0], whole[i], rtol=1e-4, atol=1e-4)


def _at(calibration: object, index: int) -> object:
    return type(calibration).stack([calibration[index]])


def test_camera_radar_never_reads_lidar() -> None:
    model, batch = build("camera", "radar").eval(), make_batch()
    with torch.no_grad():
        with_lidar = model.extract(batch, ["heads.object"])["heads.object"]
        without = model.extract(batch.without("points", "depths", "boxes", "labels"), ["heads.object"])["heads.object"]
    for a, b in zip(with_lidar, without, strict=True):
        assert all(torch.equal(a[name], b[name]) for name in a)
    assert len(model.predict(batch.without("points", "boxes", "labels"))) == 2
    assert set(model.loss(batch.without("points"))) == set(model.loss(batch))


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("images", "the camera encoder needs `images`"),
        ("points", "the lidar encoder needs `points`"),
        ("radar", "the radar encoder needs `radar`"),
        ("boxes", "the loss of heads.object needs `boxes`"),
    ],
)
def test_missing_data_is_named(field: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build("camera", "lidar", "radar").loss(make_batch().without(field))


@pytest.mark.parametrize("head", ["center", "transfusion"])
def test_bfloat16_autocast(head: str) -> None:
    model = build("camera", "radar", **({"head": TRANSFUSION_HEAD} if head == "transfusion" else {}))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model.loss(make_batch())
    assert all(v.dtype == torch.float32 and v.isfinite() for v in losses.values())
    sum(v for k, v in losses.items() if k.startswith("loss/")).backward()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        detections = model.eval().predict(make_batch())
    assert all(d.boxes.tensor.dtype == d.scores.dtype == torch.float32 for d in detections)


def test_empty_sensors_are_seen_as_nothing() -> None:
    model, batch = build("lidar", "radar"), make_batch()
    batch.points = [p[:0] for p in batch.points]
    batch.radar[1] = batch.radar[1][:0]
    assert all(v.isfinite() for v in model.loss(batch).values())
    assert len(model.eval().predict(batch)) == 2


# -- taps -----------------------------------------------------------------------------------------------------------


def test_taps_are_those_of_the_documentation() -> None:
    camera = [f"encoders.camera{part}" for part in (".backbone", ".neck", "", ".depth")]
    points = ["encoders.lidar", "encoders.radar"]
    fused = ["fuser", "fuser.camera", "fuser.lidar", "fuser.radar"]
    model = build("camera", "lidar", "radar")
    assert list(model.taps) == [*camera, *points, *fused, "decoder.backbone", "decoder", "heads.object"]


def test_tapped_shapes() -> None:
    model, batch = build("camera", "radar", fuser="GatedFuser").eval(), make_batch()
    with torch.no_grad():
        taps = model.extract(batch, model.taps)
    assert [tuple(f.shape) for f in taps["encoders.camera.backbone"]] == [(4, 8, 4, 8), (4, 16, 2, 4), (4, 32, 1, 2)]
    assert taps["encoders.camera.neck"].shape == (2, 2, 12, 4, 8)
    assert taps["encoders.camera"].shape == (2, 6, 64, 64)
    assert taps["encoders.camera.depth"].shape == (4, 12, 4, 8)
    assert taps["encoders.radar"].shape == (2, 7, 64, 64)
    assert taps["fuser"].shape == (2, 8, 64, 64)
    assert taps["fuser.camera"].shape == (2, 6, 64, 64) and taps["fuser.radar"].shape == (2, 7, 64, 64)
    assert not torch.equal(taps["fuser.radar"], taps["encoders.radar"])
    assert [tuple(f.shape) for f in taps["decoder.backbone"]] == [(2, 8, 32, 32), (2, 12, 16, 16)]
    assert taps["decoder"].shape == (2, 8, 64, 64)
    assert [task["heatmap"].shape[1] for task in taps["heads.object"]] == [1, 2, 1]


def test_only_what_is_asked_for_is_computed() -> None:
    model, batch = build("camera", "lidar", "radar"), make_batch()
    counts = {
        name: counting(module)
        for name, module in {
            "camera": model.encoders["camera"]["backbone"],
            "view": model.encoders["camera"]["vtransform"],
            "lidar": model.encoders["lidar"]["backbone"],
            "radar": model.encoders["radar"]["backbone"],
            "fuser": model.fuser,
            "head": model.heads["object"],
        }.items()
    }

    def seen() -> dict[str, int]:
        return {name: count() for name, count in counts.items() if count()}

    model.extract(batch, ["encoders.radar"])
    assert seen() == {"radar": 1}
    model.extract(batch, ["encoders.camera.neck"])
    assert seen() == {"radar": 1, "camera": 1}
    model.extract(batch.without("boxes"), ["fuser.lidar"])
    assert seen() == {"camera": 2, "view": 1, "lidar": 1, "radar": 2, "fuser": 1}
    model.loss(batch)
    assert seen() == {"camera": 3, "view": 2, "lidar": 2, "radar": 3, "fuser": 2, "head": 1}


def test_without_fuser_the_sensor_is_the_fused_map() -> None:
    model = build("lidar", fuser=None)
    taps = model.extract(make_batch(), ["fuser", "fuser.lidar"])
    assert taps["fuser"] is taps["encoders.lidar"] is taps["fuser.lidar"]


def test_calibrated_radar_offers_its_activation() -> None:
    cfg = model_config("camera", "radar")
    cfg["encoders"]["radar"]["backbone"] |= {"type": "RadarEncoderCalib", "distill_caliber": {"dilated": False}}
    model = MODELS.build(cfg)
    taps = model.extract(make_batch(), ["encoders.radar.activation"])
    assert taps["encoders.radar.activation"].shape == (2, 1, 64, 64)
    assert len(model.eval().predict(make_batch())) == 2


def test_unknown_tap() -> None:
    with pytest.raises(ValueError, match=r"did you mean 'encoders\.lidar'"):
        build("lidar", fuser=None).extract(make_batch(), ["encoders.lidra"])


@pytest.mark.parametrize("option", [{"type": "AwareBEVDepth", "mid_channels": 8}, {"depth_loss_factor": 3.0}])
def test_supervised_depth_adds_its_loss(option: dict[str, object]) -> None:
    cfg = model_config("camera", "radar")
    cfg["encoders"]["camera"]["vtransform"] |= option
    model, batch = MODELS.build(cfg), make_batch()
    assert model.loss_taps == ("heads.object", "encoders.camera.depth")
    assert model.loss(batch)["loss/depth"] > 0
    with pytest.raises(ValueError, match="depths"):
        model.loss(batch.without("depths"))
    assert len(model.eval().predict(batch.without("depths", "points"))) == 2


def test_voxelize_reduce_belongs_to_its_sensor() -> None:
    cfg = model_config("lidar", "radar")
    cfg["encoders"]["lidar"]["voxelize_reduce"] = True
    model = MODELS.build(cfg)
    model.extract(make_batch(), ["encoders.radar"])
    with pytest.raises(ValueError, match="voxelize_reduce"):
        model.extract(make_batch(), ["encoders.lidar"])


def test_a_copy_runs_its_own_modules() -> None:
    model = build("camera", "radar").eval()
    twin = copy.deepcopy(model)
    nn.init.zeros_(twin.heads["object"].task_heads[0].heatmap[-1].weight)
    raw = [m.extract(make_batch(), ["heads.object"])["heads.object"][0]["heatmap"] for m in (model, twin)]
    assert raw[0].unique().numel() > 1 and raw[1].unique().numel() == 1


def test_image_weights_are_loaded_on_request_only(tmp_path: Path) -> None:
    donor = build("camera", fuser=None).encoders["camera"]["backbone"]
    torch.save(donor.state_dict(), tmp_path / "image.pth")
    cfg = model_config("camera", fuser=None)
    init = {"type": "Pretrained", "checkpoint": str(tmp_path / "image.pth")}
    cfg["encoders"]["camera"]["backbone"]["init_cfg"] = init
    torch.manual_seed(1)
    model = MODELS.build(cfg)
    mine = model.encoders["camera"]["backbone"]
    assert not torch.equal(mine.conv1.weight, donor.conv1.weight)
    model.init_weights()
    assert torch.equal(mine.conv1.weight, donor.conv1.weight)
    build("lidar", fuser=None).init_weights()


def test_a_lidar_detector_starts_one_with_cameras(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """BEVFusion's second stage: parts that the file lacks start as from scratch, the image backbone pretrained."""
    lidar, donor = build("lidar", fuser=None), build("camera", fuser=None).encoders["camera"]["backbone"]
    nn.init.ones_(donor.conv1.weight)
    torch.save({"state_dict": lidar.state_dict()}, tmp_path / "lidar.pth")
    torch.save(donor.state_dict(), tmp_path / "image.pth")
    cfg = model_config("camera", "lidar")
    cfg["fuser"]["out_channels"] = cfg["decoder"]["backbone"]["in_channels"] = 7  # what the LiDAR branch alone gives
    init = {"type": "Pretrained", "checkpoint": str(tmp_path / "image.pth")}
    cfg["encoders"]["camera"]["backbone"]["init_cfg"] = init
    fusion = MODELS.build(cfg)
    lift = fusion.state_dict()["encoders.camera.vtransform.depthnet.weight"].clone()
    with caplog.at_level(logging.WARNING):
        report = load_start(fusion, tmp_path / "lidar.pth")
    assert "nothing for encoders.camera and fuser; what is missing starts as from scratch" in caplog.text
    assert report.loaded == len(lidar.state_dict())
    own = fusion.state_dict()
    assert all(torch.equal(own[k], v) for k, v in lidar.state_dict().items())
    assert torch.equal(fusion.encoders["camera"]["backbone"].conv1.weight, donor.conv1.weight)
    assert torch.equal(own["encoders.camera.vtransform.depthnet.weight"], lift)

    caplog.clear()
    added = build("camera", "lidar", fuser="AddFuser")
    torch.save(added.state_dict(), tmp_path / "added.pth")
    load_start(added, tmp_path / "added.pth")
    assert "as from scratch" not in caplog.text, "a fuser without weights lacks none"

    whole = fusion.state_dict()
    for lost, message in (
        ("encoders.camera.neck.", "missing .encoders.camera.neck"),
        ("heads.", "missing .heads"),
        (("encoders.", "fuser."), "missing .encoders.camera"),
    ):
        torch.save({k: v for k, v in whole.items() if not k.startswith(lost)}, tmp_path / "part.pth")
        with pytest.raises(ValueError, match=message):
            load_start(MODELS.build(cfg), tmp_path / "part.pth")
    torch.save(whole, tmp_path / "all.pth")
    with pytest.raises(ValueError, match=r"unexpected .encoders\.camera"):
        load_start(build("lidar", fuser=None), tmp_path / "all.pth")


# -- construction ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sensors", "change", "message"),
    [
        (("camera", "lidar"), {"fuser": None}, "there are 2 sensors to fuse: camera, lidar"),
        (("lidar", "radar"), {"fuser.in_channels": [7]}, "names 1 sensors, but model.encoders has 2"),
        (("lidar",), {"encoders.lidar": None}, "names no sensor"),
        (("lidar",), {"encoders.lidra": {}}, "did you mean 'lidar'"),
        (("lidar",), {"encoders.lidar.voxelise": {}}, "did you mean 'voxelize'"),
        (("camera",), {"encoders.camera.neck": None}, r"encoders\.camera\.neck is missing"),
        (("lidar",), {"heads.map": {"type": "BEVSegmentationHaed"}}, "unknown .*did you mean 'BEVSegmentationHead'"),
        (("lidar",), {"heads.object": None}, "model.heads names no head"),
        (("lidar",), {"decoder.neck": None}, r"decoder\.neck is missing"),
        (
            ("camera", "lidar"),
            {"encoders.camera.vtransform.xbound": [-25.6, 25.6, 0.4]},
            "encoders.camera gives a BEV of 128x64 cells.*encoders.lidar one of 64x64 cells",
        ),
        (
            ("lidar",),
            {"heads.object.train_cfg.out_size_factor": 16},
            "decoder turns into 64x64 cells of 0.8x0.8 m.*heads.object expects 32x32 cells",
        ),
        (("lidar",), {"decoder.neck.scale_factor": 1}, "decoder turns into 32x32 cells"),
    ],
)
def test_config_mistakes(sensors: tuple[str, ...], change: dict, message: str) -> None:
    cfg = model_config(*sensors)
    for key, value in change.items():
        node = cfg
        *parents, last = key.split(".")
        for part in parents:
            node = node[part]
        node[last] = value
    with pytest.raises(ValueError, match=message):
        MODELS.build(cfg)


def test_extent_is_compared_behind_an_opaque_decoder() -> None:
    cfg = model_config("lidar")
    cfg["decoder"] = {
        "backbone": {"type": "SECOND", "in_channels": 8, "out_channels": [4, 8], "layer_nums": [1, 1]}
        | {"layer_strides": [1, 2]},
        "neck": {"type": "SECONDFPN", "in_channels": [4, 8], "out_channels": [4, 4], "upsample_strides": [1, 2]},
    }
    assert len(MODELS.build(cfg).eval().predict(make_batch())) == 2
    cfg["heads"]["object"]["train_cfg"]["point_cloud_range"] = [-24, -24, -5, 24, 24, 3]
    with pytest.raises(ValueError, match="covers another area: 60x60 cells"):
        MODELS.build(cfg)


# Keys of published configs that are refused (docs/deviations.md).
_REFUSED = {
    "train_cfg": ("grid_size", "dense_reg", "max_objs"),
    "test_cfg": ("grid_size", "max_pool_nms", "out_size_factor", "voxel_size"),
    "loss_cls": ("reduction",),
    "loss_bbox": ("reduction",),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "a_teacher_LC_swint_v0p075_gatedfuser",
        "b_teacher_LC_resnet50_gatedfuser",
        "c_student_CR_swint_default",
        "d_student_CR_resnet50_default",
    ],
)
def test_published_models_have_the_published_names_and_shapes(shared: Path, name: str) -> None:
    cfg = yaml.safe_load((shared / "specs" / "crkd_resolved" / f"{name}.yaml").read_text())["model"]
    head = cfg["heads"]["object"]
    del head["bbox_coder"]
    for block, keys in _REFUSED.items():
        head[block] = {k: v for k, v in head[block].items() if k not in keys}
    if name.startswith("a_"):  # the shipped neck does not build
        cfg["encoders"]["camera"]["neck"] = {
            "type": "GeneralizedLSSFPN",
            "in_channels": [192, 384, 768],
            "out_channels": 256,
            "start_level": 0,
            "num_outs": 3,
        }
    model = MODELS.build(cfg)
    constants = {f"encoders.camera.vtransform.{k}" for k in ("dx", "bx", "nx", "frustum")}
    want = {k: shape for k, shape in tensors(name).items() if k not in constants}
    assert {k: tuple(v.shape) for k, v in model.state_dict().items()} == want
    assert model.grid.shape == (180, 180)


@pytest.mark.parametrize(("size", "near"), [([100, 180], r"\[96, 192\]"), ([64, 200], r"\[64, 192\]")])
def test_an_image_size_that_the_neck_cannot_bring_together(size: list[int], near: str) -> None:
    """The coarsest of its levels has stride 32."""
    with pytest.raises(ValueError, match=f"image_size .*SECONDFPN .*multiples of 32, such as image_size {near}"):
        build_model(load_config("synthetic/camera/demo.yaml", {"image_size": size}).model)
