"""Swin and ResNet: published layouts, attention against a plain reference, weights files."""

from __future__ import annotations

import logging
from fractions import Fraction
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from published import tensors
from safetensors.torch import save_file
from torch import Tensor, nn

from mmdet3d.models.backbones import ResNet, SwinTransformer
from mmdet3d.models.backbones.swin import _PatchMerging, _ShiftedWindowAttention
from mmdet3d.models.backbones.swin_weights import convert_original
from mmdet3d.models.layers import DropPath
from mmdet3d.registry import MODELS

SWIN_T = {
    "embed_dims": 96,
    "depths": [2, 2, 6, 2],
    "num_heads": [3, 6, 12, 24],
    "window_size": 7,
    "mlp_ratio": 4,
    "qkv_bias": True,
    "qk_scale": None,
    "drop_rate": 0.0,
    "attn_drop_rate": 0.0,
    "drop_path_rate": 0.2,
    "patch_norm": True,
    "out_indices": [1, 2, 3],
    "with_cp": False,
    "convert_weights": True,
}
RESNET_50 = {
    "depth": 50,
    "num_stages": 4,
    "out_indices": [0, 1, 2, 3],
    "norm_cfg": {"type": "BN2d", "requires_grad": True},
    "norm_eval": False,
}
TINY_SWIN = {"embed_dims": 8, "depths": [1, 2], "num_heads": [2, 4], "window_size": 4, "out_indices": [0, 1]}


def layout(module: nn.Module) -> list[tuple[str, tuple[int, ...]]]:
    return [(k, tuple(v.shape)) for k, v in module.state_dict().items()]


def tiny_swin(**changes: object) -> SwinTransformer:
    torch.manual_seed(0)
    return MODELS.build({"type": "SwinTransformer"} | TINY_SWIN | changes)


def tiny_resnet(depth: int = 18, **changes: object) -> ResNet:
    torch.manual_seed(0)
    return MODELS.build({"type": "ResNet", "depth": depth, "base_channels": 4, "norm_eval": False} | changes)


def assert_all_have_gradients(module: nn.Module) -> None:
    missing = [
        n for n, p in module.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.isfinite().all())
    ]
    assert not missing, f"without a finite gradient: {missing}"


# -- layouts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["a_teacher_LC_swint_v0p075_gatedfuser", "c_student_CR_swint_default"])
def test_swin_has_the_published_layout(model: str) -> None:
    with torch.device("meta"):
        backbone = MODELS.build({"type": "SwinTransformer", **SWIN_T})
    assert layout(backbone) == list(tensors(model, "encoders.camera.backbone.").items())


@pytest.mark.parametrize("model", ["b_teacher_LC_resnet50_gatedfuser", "d_student_CR_resnet50_default"])
def test_resnet_has_the_published_layout(model: str) -> None:
    with torch.device("meta"):
        backbone = MODELS.build({"type": "ResNet", **RESNET_50})
    assert layout(backbone) == list(tensors(model, "encoders.camera.backbone.").items())


@pytest.mark.parametrize(
    ("depth", "parameters"), [(18, 11_176_512), (34, 21_284_672), (50, 23_508_032), (101, 42_500_160)]
)
def test_resnet_depths_have_torchvisions_size(depth: int, parameters: int) -> None:
    with torch.device("meta"):
        backbone = ResNet(depth)
    assert sum(p.numel() for p in backbone.parameters()) == parameters


# -- Swin ------------------------------------------------------------------------------------------


def dense_attention(layer: _ShiftedWindowAttention, x: Tensor) -> Tensor:
    """Window attention by looking at every pair of tokens of a (h, w, C) map of whole windows."""
    h, w, channels = x.shape
    attention, m, s = layer.w_msa, layer.size, layer.shift
    y, col = (t.flatten() for t in torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij"))
    ry, rx = (y - s) % h, (col - s) % w  # position after the roll
    wrapped = torch.stack([y < s, col < s], dim=1)  # tokens that the roll brought round
    window = torch.stack([ry // m, rx // m], dim=1)
    together = (window[:, None] == window[None]).all(-1) & (wrapped[:, None] == wrapped[None]).all(-1)
    dy, dx = ry[:, None] - ry[None] + m - 1, rx[:, None] - rx[None] + m - 1
    inside = (dy >= 0) & (dy < 2 * m - 1) & (dx >= 0) & (dx < 2 * m - 1)
    index = torch.where(inside, dy * (2 * m - 1) + dx, 0)
    q, k, v = attention.qkv(x.reshape(-1, channels)).chunk(3, dim=1)
    heads = []
    for i, part in enumerate(zip(*(t.chunk(attention.heads, dim=1) for t in (q, k, v)), strict=True)):
        logits = part[0] @ part[1].T / part[0].shape[1] ** 0.5 + attention.relative_position_bias_table[index, i]
        heads.append(logits.masked_fill(~together, -torch.inf).softmax(1) @ part[2])
    return attention.proj(torch.cat(heads, dim=1)).view(h, w, channels)


def window_attention(shift: int) -> _ShiftedWindowAttention:
    torch.manual_seed(0)
    layer = _ShiftedWindowAttention(
        6, 2, size=4, shift=shift, drop_path=0.0, qkv_bias=True, scale=None, attn_drop=0.0, drop=0.0
    ).double()
    nn.init.normal_(layer.w_msa.relative_position_bias_table)
    return layer


@pytest.mark.parametrize("shift", [0, 2])
@pytest.mark.parametrize("size", [(8, 12), (4, 8)])
def test_window_attention_equals_dense_attention(shift: int, size: tuple[int, int]) -> None:
    layer = window_attention(shift)
    x = torch.randn(2, *size, 6, dtype=torch.float64)
    torch.testing.assert_close(layer(x), torch.stack([dense_attention(layer, image) for image in x]))


@pytest.mark.parametrize("shift", [0, 2])
def test_window_attention_pads_right_and_bottom(shift: int) -> None:
    layer = window_attention(shift)
    x = torch.randn(1, 5, 7, 6, dtype=torch.float64)
    padded = F.pad(x, (0, 0, 0, 1, 0, 3))
    torch.testing.assert_close(layer(x), layer(padded)[:, :5, :7])


def test_window_attention_gradient() -> None:
    layer = window_attention(2)
    x = torch.randn(1, 3, 5, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, (x,), fast_mode=True)


def test_patch_merging_order() -> None:
    merge = _PatchMerging(3)
    merge.norm, merge.reduction = nn.Identity(), nn.Identity()
    x = torch.randn(1, 4, 6, 3)
    merged = merge(x)
    for c in range(3):
        for row in range(2):
            for column in range(2):
                assert torch.equal(merged[..., c * 4 + row * 2 + column], x[:, row::2, column::2, c])


def test_swin_accepts_any_size() -> None:
    outputs = tiny_swin()(torch.randn(2, 3, 37, 50))
    assert [tuple(o.shape) for o in outputs] == [(2, 8, 10, 13), (2, 16, 5, 7)]


def test_swin_drop_path_rises_linearly() -> None:
    with torch.device("meta"):
        backbone = SwinTransformer(**SWIN_T)
    rates = [b.attn.drop.rate for stage in backbone.stages for b in stage.blocks]
    assert rates == pytest.approx([0.2 * k / 11 for k in range(12)])
    assert rates == [b.ffn.drop.rate for stage in backbone.stages for b in stage.blocks]


def test_drop_path_drops_whole_samples_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    drop, x = DropPath(0.25), torch.ones(4000, 2, 3)
    y = drop(x)
    assert y.unique().tolist() == pytest.approx([0.0, 1 / 0.75])
    assert (y.flatten(1).std(1) == 0).all()
    assert y.mean().item() == pytest.approx(1.0, abs=0.05)
    assert torch.equal(drop.eval()(x), x)


def test_swin_checkpointing_changes_no_gradient() -> None:
    plain, saving = tiny_swin(drop_path_rate=0.0), tiny_swin(drop_path_rate=0.0, with_cp=True)
    x = torch.randn(1, 3, 32, 32)
    for model in (plain, saving):
        sum(o.sum() for o in model(x)).backward()
    for (name, a), b in zip(plain.named_parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=name)


def test_swin_linear_layers_start_small() -> None:
    block = tiny_swin(embed_dims=32).stages[1].blocks[0]
    weights = torch.cat([block.ffn.layers[0][0].weight.flatten(), block.attn.w_msa.qkv.weight.flatten()])
    assert weights.std().item() == pytest.approx(0.02, rel=0.05)
    assert block.attn.w_msa.relative_position_bias_table.std().item() == pytest.approx(0.02, rel=0.2)


def test_swin_frozen_stages() -> None:
    backbone = tiny_swin(frozen_stages=1).train()
    frozen = {n for n, p in backbone.named_parameters() if not p.requires_grad}
    trained = {n for n, p in backbone.named_parameters() if p.requires_grad}
    assert all(n.startswith(("patch_embed.", "stages.0.", "norm0.")) for n in frozen)
    assert all(n.startswith(("stages.1.", "norm1.")) for n in trained)
    assert not backbone.stages[0].training and backbone.stages[1].training


# -- ResNet ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("depth", "expansion"), [(18, 1), (50, 4)])
def test_resnet_levels(depth: int, expansion: int) -> None:
    outputs = tiny_resnet(depth, out_indices=[1, 3])(torch.randn(2, 3, 64, 96))
    assert [tuple(o.shape) for o in outputs] == [(2, 8 * expansion, 8, 12), (2, 32 * expansion, 2, 3)]


@pytest.mark.parametrize(("style", "strides"), [("pytorch", (1, 2)), ("caffe", (2, 1))])
def test_resnet_style_places_the_stride(style: str, strides: tuple[int, int]) -> None:
    block = tiny_resnet(50, style=style).layer2[0]
    assert (block.conv1.stride[0], block.conv2.stride[0]) == strides


def test_resnet_convolutions_start_kaiming_normal() -> None:
    conv = tiny_resnet(base_channels=32).layer1[0].conv1
    assert conv.weight.std().item() == pytest.approx((2 / (32 * 9)) ** 0.5, rel=0.05)


def test_resnet_frozen_stages_and_norm_eval() -> None:
    backbone = tiny_resnet(frozen_stages=1, norm_eval=True).train()
    frozen = {n for n, p in backbone.named_parameters() if not p.requires_grad}
    assert {n.split(".")[0] for n in frozen} == {"conv1", "bn1", "layer1"}
    assert not any(m.training for m in backbone.modules() if isinstance(m, nn.BatchNorm2d))
    assert backbone.layer2.training
    before = backbone.layer2[0].bn1.running_mean.clone()
    backbone(torch.randn(1, 3, 32, 32))
    assert torch.equal(backbone.layer2[0].bn1.running_mean, before)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depth": 42}, "depth"),
        ({"style": "tensorflow"}, "style"),
        ({"out_indices": [4]}, "out_indices"),
        ({"frozen_stages": 7}, "frozen_stages"),
        ({"num_stages": 5}, "num_stages"),
        ({"norm_cfg": {"type": "GN"}}, "norm_cfg"),
        ({"init_cfg": {"type": "Kaiming"}}, "init_cfg"),
        ({"depth": 50, "dcn": {"type": "DCN"}}, "DCNv2"),
        ({"depth": 50, "dcn": {"type": "DCNv2", "groups": 2}}, "deform_groups"),
        ({"depth": 50, "dcn": {"type": "DCNv2", "fallback_on_stride": True}}, "fallback_on_stride false"),
        ({"depth": 18, "dcn": {"type": "DCNv2"}}, "bottlenecks"),
        ({"depth": 50, "stage_with_dcn": [True] * 4}, "dcn is null"),
        ({"depth": 50, "dcn": {"type": "DCNv2"}, "stage_with_dcn": [True]}, "four entries"),
    ],
)
def test_resnet_rejects(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_resnet(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": [2]}, "num_heads"),
        ({"num_heads": [3, 4]}, "heads"),
        ({"out_indices": [2]}, "out_indices"),
        ({"frozen_stages": 3}, "frozen_stages"),
    ],
)
def test_swin_rejects(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_swin(**changes)


# -- training --------------------------------------------------------------------------------------


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize(
    "make", [tiny_swin, tiny_resnet, lambda: tiny_resnet(50)], ids=["swin", "resnet18", "resnet50"]
)
def test_gradients_reach_every_parameter(make, bf16: bool) -> None:
    backbone = make().train()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        outputs = backbone(torch.randn(2, 3, 32, 64))
    sum((o.float() ** 2).mean() for o in outputs).backward()
    assert_all_have_gradients(backbone)


# -- weights files ---------------------------------------------------------------------------------


def as_original(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict as the original Swin code would have saved it."""
    original = {"norm.weight": torch.ones(3), "head.weight": torch.ones(2, 3)}
    renamed = {
        "attn.w_msa.": "attn.",
        "ffn.layers.0.0.": "mlp.fc1.",
        "ffn.layers.1.": "mlp.fc2.",
        "projection": "proj",
    }
    for key, value in state.items():
        if key.startswith("norm"):
            continue
        if "downsample" in key:
            blocks = value.unflatten(-1, (value.shape[-1] // 4, 4)).transpose(-1, -2)
            value = blocks[..., [0, 2, 1, 3], :].flatten(-2)
        stem = key.removeprefix("stages.")
        for new, old in renamed.items():
            stem = stem.replace(new, old)
        original[f"layers.{stem}" if key.startswith("stages.") else stem] = value
    return original


def test_original_patch_merging_is_reordered() -> None:
    """The original concatenates (0,0), (1,0), (0,1), (1,1) and then normalises and reduces."""
    torch.manual_seed(0)
    x, weight, gain, shift = torch.randn(1, 4, 6, 5), torch.randn(10, 20), torch.randn(20), torch.randn(20)
    neighbours = torch.cat([x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]], dim=-1)
    expected = F.layer_norm(neighbours, (20,), gain, shift) @ weight.T
    names = {"norm.weight": gain, "norm.bias": shift, "reduction.weight": weight}
    converted = convert_original({f"layers.0.downsample.{k}": v for k, v in names.items()})
    merge = _PatchMerging(5)
    merge.load_state_dict({k.removeprefix("stages.0.downsample."): v for k, v in converted.items()})
    torch.testing.assert_close(merge(x), expected)


def test_swin_loads_an_original_checkpoint(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = tiny_swin()
    torch.save({"model": as_original(source.state_dict())}, tmp_path / "swin.pth")
    init_cfg = {"type": "Pretrained", "checkpoint": str(tmp_path / "swin.pth")}
    backbone = tiny_swin(convert_weights=True, init_cfg=init_cfg)
    with caplog.at_level(logging.INFO):
        backbone.init_weights()
    total = len(backbone.state_dict())
    assert f"{total - 4} of {total} tensors loaded" in caplog.text
    for key, value in source.state_dict().items():
        assert torch.equal(backbone.state_dict()[key], value), key


def test_swin_resizes_position_bias(tmp_path: Path) -> None:
    source = tiny_swin(window_size=3)
    torch.save(source.state_dict(), tmp_path / "swin.pth")
    init_cfg = {"type": "Pretrained", "checkpoint": str(tmp_path / "swin.pth")}
    backbone = tiny_swin(init_cfg=init_cfg)
    backbone.init_weights()
    key = "stages.1.blocks.0.attn.w_msa.relative_position_bias_table"
    small, large = source.state_dict()[key], backbone.state_dict()[key]
    image = small.T.reshape(1, 4, 5, 5)
    expected = F.interpolate(image, size=(7, 7), mode="bicubic", align_corners=False).reshape(4, 49).T
    torch.testing.assert_close(large, expected)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_resnet_loads_torchvision_weights(tmp_path: Path, suffix: str) -> None:
    source = tiny_resnet(50)
    for value in source.state_dict().values():
        value.copy_(torch.rand(value.shape))
    weights = {**source.state_dict(), "fc.weight": torch.ones(10, 128), "fc.bias": torch.ones(10)}
    file = tmp_path / f"resnet50.{suffix}"
    save_file(weights, file) if suffix == "safetensors" else torch.save(weights, file)
    backbone = tiny_resnet(50, init_cfg={"type": "Pretrained", "checkpoint": str(file)})
    backbone.init_weights()
    for key, value in source.state_dict().items():
        assert torch.equal(backbone.state_dict()[key], value), key


@pytest.mark.parametrize(
    "place", ["encoders.camera.backbone.", "module.student.encoders.camera.backbone.", "img_backbone."]
)
def test_a_detectors_file_holds_the_backbone(tmp_path: Path, place: str) -> None:
    source = tiny_resnet(18)
    nn.init.ones_(source.conv1.weight)
    others = {place.replace("camera", "lidar").replace("img", "pts") + "conv1.weight": torch.zeros(3)}
    others |= {"decoder.backbone.conv1.weight": torch.zeros(3)} if "module" not in place else {}
    torch.save({"state_dict": {f"{place}{k}": v for k, v in source.state_dict().items()} | others}, tmp_path / "d.pth")
    backbone = tiny_resnet(18, init_cfg={"type": "Pretrained", "checkpoint": str(tmp_path / "d.pth")})
    backbone.init_weights()
    assert torch.equal(backbone.conv1.weight, source.conv1.weight)


def test_of_two_detectors_in_a_file_one_must_be_chosen(tmp_path: Path) -> None:
    names = [f"{part}.camera.backbone.conv1.weight" for part in ("encoders", "encoders_student")]
    torch.save(dict.fromkeys(names, torch.ones(1)), tmp_path / "two.pth")
    backbone = tiny_resnet(18, init_cfg={"type": "Pretrained", "checkpoint": str(tmp_path / "two.pth")})
    with pytest.raises(ValueError, match=r"several networks .*--prefix encoders\.camera\.backbone"):
        backbone.init_weights()


def test_resnet_with_deformable_stages(tmp_path: Path) -> None:
    """As mmdet's: the 3x3 of every bottleneck, strided ones too; torchvision's weights fit, offsets start at zero."""
    plain = tiny_resnet(50)
    save_file(plain.state_dict(), tmp_path / "resnet50.safetensors")
    backbone = tiny_resnet(
        50,
        dcn={"type": "DCNv2", "deform_groups": 1, "fallback_on_stride": False},
        stage_with_dcn=[False, False, True, True],
        init_cfg={"type": "Pretrained", "checkpoint": str(tmp_path / "resnet50.safetensors")},
    )
    backbone.init_weights()
    new = {k: v for k, v in backbone.state_dict().items() if k not in plain.state_dict()}
    places = [f"layer{stage}.{i}.conv2.conv_offset" for stage, count in ((3, 6), (4, 3)) for i in range(count)]
    assert set(new) == {f"{place}.{kind}" for place in places for kind in ("weight", "bias")}
    assert all(v.shape[0] == 27 and not v.any() for v in new.values())
    assert all(torch.equal(backbone.state_dict()[k], v) for k, v in plain.state_dict().items())
    images = torch.randn(1, 3, 64, 64)
    outputs = backbone.eval()(images)
    assert [o.shape for o in outputs] == [o.shape for o in plain.eval()(images)]
    # Untrained modulation halves the taps: the deformable convolution is half the plain one.
    block = backbone.layer3[1].conv2
    x = torch.randn(1, block.weight.shape[1], 8, 8)
    torch.testing.assert_close(block(x), plain.layer3[1].conv2(x) / 2, atol=1e-5, rtol=1e-4)


def test_url_stands_for_the_file_in_pretrained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    source = tiny_resnet(18)
    nn.init.ones_(source.conv1.weight)
    (tmp_path / "pretrained").mkdir()
    torch.save(source.state_dict(), tmp_path / "pretrained" / "resnet18-f37072fd.pth")
    backbone = tiny_resnet(18, init_cfg={"type": "Pretrained", "checkpoint": "torchvision://resnet18"})
    backbone.init_weights()
    assert torch.equal(backbone.conv1.weight, source.conv1.weight)


@pytest.mark.parametrize(
    ("checkpoint", "remedy"),
    [
        (
            "torchvision://resnet50",
            r"download.pytorch.org/models/resnet50-0676ba61.pth into pretrained/.*init_cfg null",
        ),
        (
            "https://example.org/a/weights.pth",
            r"fetch https://example.org/a/weights.pth into pretrained/.*init_cfg null",
        ),
        ("nowhere/weights.pth", r"nowhere/weights.pth does not exist.*init_cfg null"),
    ],
)
def test_missing_weights_say_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkpoint: str, remedy: str
) -> None:
    monkeypatch.chdir(tmp_path)
    backbone = tiny_resnet(50, init_cfg={"type": "Pretrained", "checkpoint": checkpoint})
    with pytest.raises(ValueError, match=remedy):
        backbone.init_weights()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"layer9.weight": torch.ones(2)}, "does not fit ResNet"),
        ({"conv1.weight": torch.ones(2)}, r"conv1.weight is \(2,\), expected \(4, 3, 7, 7\)"),
        ({"epoch": 3}, "holds no weights"),
        ({"model": Path("x")}, "holds no weights"),
        ({"model": Fraction(1, 2)}, r"an object of fractions\.Fraction, which could run code"),
    ],
)
def test_wrong_weights_are_an_error(tmp_path: Path, content: dict, message: str) -> None:
    torch.save(content, tmp_path / "w.pth")
    backbone = tiny_resnet(18, init_cfg={"type": "Pretrained", "checkpoint": str(tmp_path / "w.pth")})
    with pytest.raises(ValueError, match=message):
        backbone.init_weights()


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_truncated_weights_are_an_error(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"no weights")
    backbone = tiny_resnet(18, init_cfg={"type": "Pretrained", "checkpoint": str(tmp_path / name)})
    with pytest.raises(ValueError, match=r"is damaged|is not a safetensors file"):
        backbone.init_weights()


def test_swin_names_the_option_for_original_checkpoints(tmp_path: Path) -> None:
    torch.save({"layers.0.blocks.0.norm1.weight": torch.ones(8)}, tmp_path / "w.pth")
    backbone = tiny_swin(init_cfg={"type": "Pretrained", "checkpoint": str(tmp_path / "w.pth")})
    with pytest.raises(ValueError, match="convert_weights: true"):
        backbone.init_weights()


def test_no_init_cfg_keeps_the_weights() -> None:
    backbone = tiny_resnet(18)
    before = backbone.conv1.weight.clone()
    backbone.init_weights()
    assert torch.equal(backbone.conv1.weight, before)


# -- real size -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_real_size_shapes() -> None:
    images = torch.randn(6, 3, 256, 704)
    with torch.no_grad():
        swin = SwinTransformer(**SWIN_T).eval()(images)
        resnet = MODELS.build({"type": "ResNet", **RESNET_50}).eval()(images)
    assert [tuple(o.shape) for o in swin] == [(6, 192, 32, 88), (6, 384, 16, 44), (6, 768, 8, 22)]
    assert [tuple(o.shape) for o in resnet] == [
        (6, 256, 64, 176),
        (6, 512, 32, 88),
        (6, 1024, 16, 44),
        (6, 2048, 8, 22),
    ]
