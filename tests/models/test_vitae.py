"""ViTAEv2: layout and sizes as published, cells against plain formulas, stochastic depth, weights files."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, nn

from mmdet3d.models.backbones import ViTAEv2
from mmdet3d.models.backbones.vitae_cells import NormalCell, ReductionCell, _Attention
from mmdet3d.registry import MODELS

# Names of the published classification checkpoint; it also holds its head and position indices that nothing uses.
PUBLISHED = {
    "layers.0.RC": (
        "PCM.0 PCM.1 PCM.3 PCM.4 PCM.6 PRM.convs.0.0 PRM.convs.1.0 PRM.convs.2.0 PRM.convs.3.0 "
        "attn.norm1 attn.attn.qkv attn.attn.proj attn.norm2 attn.mlp.fc1 attn.mlp.fc2"
    ),
    "layers.1.NC.1": "norm1 attn.qkv attn.proj norm2 mlp.fc1 mlp.fc2 PCM.0 PCM.1 PCM.3 PCM.4 PCM.6",
}
TINY = {
    "stages": 2,
    "RC_tokens_type": ["window", "transformer"],
    "NC_tokens_type": ["window", "transformer"],
    "embed_dims": [4, 8],
    "token_dims": [8, 16],
    "downsample_ratios": [4, 2],
    "kernels": [7, 3],
    "dilations": [[1, 2], [1, 2, 3]],
    "NC_depth": [1, 2],
    "NC_heads": [2, 4],
    "RC_heads": [1, 2],
    "NC_group": [1, 4],
    "RC_group": [1, 4],
    "window_size": 3,
    "out_indices": [0, 1],
}


def tiny(**changes: object) -> ViTAEv2:
    torch.manual_seed(0)
    return MODELS.build({"type": "ViTAEv2"} | TINY | changes)


def images(height: int = 40, width: int = 56) -> Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))


def cell(kind: type[nn.Module], **arguments: Any) -> Any:
    """In float64, with batch norm that does something, eval mode."""
    torch.manual_seed(0)
    module = kind(qkv_bias=True, drop=0.0, attn_drop=0.0, **arguments).double().eval()
    for m in module.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.normal_(m.running_mean)
            nn.init.uniform_(m.running_var, 0.5, 2)
    return module


# -- published sizes ---------------------------------------------------------------------------------


def small_parameters() -> int:
    """ViTAEv2-S counted from its description."""
    total, before = 0, 3
    stages = zip(
        (64, 64, 128, 256), (64, 128, 256, 512), (7, 3, 3, 3), (4, 3, 2, 2), (2, 2, 8, 2), (1, 32, 64, 128),
        (1, 16, 32, 64), (True, True, False, False), strict=True,
    )  # fmt: skip

    def pcm(widths: tuple[int, ...], groups: int) -> int:
        convolutions = sum(a * b * 9 // groups + b for a, b in pairwise(widths))
        return convolutions + 2 * sum(widths[1:3])

    def mlp(channels: int, hidden: int) -> int:
        return 2 * channels * hidden + hidden + channels

    for embed, token, kernel, dilations, depth, nc_group, rc_group, window in stages:
        wide = embed * dilations
        total += pcm((before, embed, embed, token), rc_group) + dilations * (before * embed * kernel**2 + embed)
        total += 2 * wide + 3 * token * (wide + window) + token * (token + 1) + 2 * token + mlp(token, token)
        total += depth * (3 * token * (token + 1) + token * (token + 1) + 4 * token + mlp(token, 4 * token))
        total += depth * pcm((token, 4 * token, token, token), nc_group)
        before = token
    return total + 2 * (128 + 256 + 512)


def test_small_has_the_published_layout_and_size() -> None:
    with torch.device("meta"):
        backbone = MODELS.build({"type": "ViTAEv2"})
    names = set(backbone.state_dict())
    for owner, layers in PUBLISHED.items():
        expected = {f"{owner}.{layer}.{part}" for layer in layers.split() for part in ("weight", "bias")}
        found = {n for n in names if n.startswith(f"{owner}.") and n.endswith((".weight", ".bias"))}
        assert found == expected
    qkv_biases = sorted(n for n in names if n.endswith("RC.attn.attn.qkv.bias"))
    assert [n[:8] for n in qkv_biases] == ["layers.0", "layers.1"]
    assert {"norm1.weight", "norm2.weight", "norm3.bias"} <= names and "norm0.weight" not in names
    assert sum(p.numel() for p in backbone.parameters()) == small_parameters() == 18_844_480


def test_published_config_builds_with_its_shapes(shared: Path) -> None:
    path = shared / "specs" / "simdistill_resolved" / "distill_vitaev2_convfuser.yaml"
    config: Mapping[str, Any] = yaml.safe_load(path.read_text())["model"]["encoders"]["camera"]["backbone"]
    with torch.device("meta"):
        backbone = MODELS.build({**config, "init_cfg": None})
        outputs = backbone(torch.empty(6, 3, 256, 704))
    assert [tuple(o.shape) for o in outputs] == [(6, 128, 32, 88), (6, 256, 16, 44), (6, 512, 8, 22)]
    assert sum(p.numel() for p in backbone.parameters()) == small_parameters()


# -- cells -------------------------------------------------------------------------------------------


def dense_attention(layer: _Attention, x: Tensor) -> Tensor:
    """Attention among the tokens (T, C_in), head by head."""
    q, k, v = layer.qkv(x).chunk(3, dim=1)
    heads = [
        (a @ b.T / a.shape[1] ** 0.5).softmax(1) @ c
        for a, b, c in zip(*(t.chunk(layer.heads, dim=1) for t in (q, k, v)), strict=True)
    ]
    y = layer.proj(torch.cat(heads, dim=1))
    return y + v if layer.add_values else y


@pytest.mark.parametrize("add_values", [False, True])
def test_global_attention(add_values: bool) -> None:
    layer = cell(_Attention, in_channels=6, channels=8, window=None, heads=2, add_values=add_values)
    x = torch.randn(2, 3, 5, 6, dtype=torch.float64)
    expected = [dense_attention(layer, image.flatten(0, 1)).view(3, 5, 8) for image in x]
    torch.testing.assert_close(layer(x), torch.stack(expected))


def test_windows_are_padded_on_all_sides_one_more_below_and_right() -> None:
    layer = cell(_Attention, in_channels=6, channels=8, window=4, heads=2)
    x = torch.randn(1, 5, 8, 6, dtype=torch.float64)
    padded = F.pad(x, (0, 0, 0, 0, 1, 2))[0]  # 5 rows to 8
    expected = torch.zeros(8, 8, 8, dtype=torch.float64)
    for top in (0, 4):
        for left in (0, 4):
            window = padded[top : top + 4, left : left + 4]
            expected[top : top + 4, left : left + 4] = dense_attention(layer, window.flatten(0, 1)).view(4, 4, 8)
    torch.testing.assert_close(layer(x)[0], expected[1:6])


@pytest.mark.parametrize("window", [3, None])
def test_reduction_cell_formula(window: int | None) -> None:
    module = cell(
        ReductionCell, in_channels=4, embed=4, channels=8, ratio=2, kernel=3, dilations=(1, 3), window=window, heads=2,
        groups=2,
    )  # fmt: skip
    x = torch.randn(2, 4, 6, 12, dtype=torch.float64)
    pyramid = [F.gelu(conv[0](x)) for conv in module.PRM.convs]
    assert [tuple(p.shape) for p in pyramid] == [(2, 4, 3, 6)] * 2
    attention = module.attn
    tokens = attention.attn(attention.norm1(torch.cat(pyramid, dim=1).permute(0, 2, 3, 1)))
    y = tokens + module.PCM(x).permute(0, 2, 3, 1)
    y = y + attention.mlp.fc2(F.gelu(attention.mlp.fc1(attention.norm2(y))))
    torch.testing.assert_close(module(x), y)
    assert attention.attn.add_values == (window is None) == (attention.attn.qkv.bias is None)
    assert [m.stride[0] for m in module.PCM if isinstance(m, nn.Conv2d)] == [2, 1, 1]


def test_normal_cell_formula() -> None:
    module = cell(NormalCell, channels=8, window=3, heads=2, groups=4, mlp_ratio=4.0, drop_path=0.5, recompute=False)
    x = torch.randn(2, 5, 6, 8, dtype=torch.float64)
    y = x + module.attn(module.norm1(x)) + module.PCM(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    y = y + module.mlp.fc2(F.gelu(module.mlp.fc1(module.norm2(y))))
    torch.testing.assert_close(module(x), y)
    assert [m.out_channels for m in module.PCM if isinstance(m, nn.Conv2d)] == [32, 8, 8]
    assert [type(m).__name__ for m in module.PCM] == [
        "Conv2d", "BatchNorm2d", "SiLU", "Conv2d", "BatchNorm2d", "SiLU", "Conv2d",
    ]  # fmt: skip


def test_first_reduction_of_four_keeps_the_strides() -> None:
    backbone = tiny()
    assert [m.stride[0] for m in backbone.layers[0].RC.PCM if isinstance(m, nn.Conv2d)] == [2, 2, 1]
    assert [(c[0].stride[0], c[0].dilation[0], c[0].padding[0]) for c in backbone.layers[0].RC.PRM.convs] == [
        (4, 1, 2),
        (4, 2, 5),
    ]


# -- the whole ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(40, 56), (29, 50), (8, 8), (1, 3), (31, 64)])
def test_any_image_size(size: tuple[int, int]) -> None:
    height, width = size
    outputs = tiny().eval()(images(height, width))
    expected = [(2, 8 * k, -(-height // (4 * k)), -(-width // (4 * k))) for k in (1, 2)]
    assert [tuple(o.shape) for o in outputs] == expected
    assert all(o.isfinite().all() and o.is_contiguous() for o in outputs)


def test_sizes_that_four_does_not_divide_are_padded_right_and_below() -> None:
    backbone = tiny().eval()
    x = images(29, 50)
    for a, b in zip(backbone(x), backbone(F.pad(x, (0, 2, 0, 3))), strict=True):
        torch.testing.assert_close(a, b)


def test_outputs_are_normalised_stages() -> None:
    both, last = tiny().eval(), tiny(out_indices=[1]).eval()
    last.load_state_dict(both.state_dict(), strict=False)
    outputs = both(images())
    assert [type(m) for m in (both.norm0, both.norm1)] == [nn.LayerNorm] * 2 and both.norm1.eps == 1e-6
    assert torch.equal(last(images())[0], outputs[1])
    torch.testing.assert_close(outputs[0].mean(1), torch.zeros(2, 10, 14), atol=1e-5, rtol=0)


@pytest.mark.parametrize("use_checkpoint", [False, True])
@pytest.mark.parametrize("bf16", [False, True])
def test_gradients_reach_every_parameter(use_checkpoint: bool, bf16: bool) -> None:
    backbone = tiny(use_checkpoint=use_checkpoint, drop_path_rate=0.0).train()
    x = images().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss = sum((o.float() ** 3).mean() for o in backbone(x))
    loss.backward()
    missing = [n for n, p in backbone.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not missing and x.grad.abs().sum() > 0


def test_recomputing_changes_nothing() -> None:
    results = []
    for use_checkpoint in (False, True):
        backbone = tiny(use_checkpoint=use_checkpoint).train()
        torch.manual_seed(3)
        sum((o**3).mean() for o in backbone(images())).backward()
        results.append([p.grad for p in backbone.parameters()] + list(backbone.buffers()))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


def test_evaluation_is_deterministic_and_training_drops_paths() -> None:
    backbone = tiny(drop_path_rate=0.5)
    backbone.eval()
    assert all(torch.equal(a, b) for a, b in zip(backbone(images()), backbone(images()), strict=True))
    assert backbone.train() is backbone
    assert not torch.equal(backbone(images())[1], backbone(images())[1])


def test_drop_path_rises_over_all_cells() -> None:
    def rates(**changes: object) -> list[list[float]]:
        with torch.device("meta"):
            return [[c.drop_path.rate for c in stage.NC] for stage in ViTAEv2(**changes).layers]

    step = 0.2 / 13
    ours = rates()
    assert [len(r) for r in ours] == [2, 2, 8, 2]
    assert list(chain(*ours)) == pytest.approx([step * k for k in range(14)])
    published = rates(published_drop_path=True)
    assert [r[0] for r in published] == pytest.approx([0, 2 * step, 2 * step, 8 * step])
    assert published[3] == pytest.approx([8 * step, 9 * step])


def test_frozen_stages_learn_nothing() -> None:
    backbone = tiny(frozen_stages=1).train()
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    sum((o**2).mean() for o in backbone(images())).backward()
    frozen = [n for n, p in backbone.named_parameters() if not p.requires_grad]
    assert frozen and all(n.startswith(("layers.0.", "norm0.")) for n in frozen)
    changed = [k for k, v in backbone.state_dict().items() if not torch.equal(v, before[k])]
    assert changed and all(k.startswith("layers.1.") for k in changed)


# -- weights files -----------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "backbone.", "module.backbone."])
def test_averaged_weights_come_first(prefix: str, tmp_path: Path) -> None:
    source = tiny()
    for p in source.parameters():
        nn.init.normal_(p)
    weights = {f"{prefix}{k}": v for k, v in source.state_dict().items() if not k.startswith("norm")}
    zeros = {k: torch.zeros_like(v) for k, v in weights.items()}
    file = tmp_path / "vitae.pth"
    torch.save({"state_dict": zeros, "state_dict_ema": weights, "epoch": 3}, file)
    backbone = tiny(init_cfg={"type": "Pretrained", "checkpoint": str(file)})
    backbone.init_weights()
    state = backbone.state_dict()
    assert all(torch.equal(state[k], v) for k, v in source.state_dict().items() if not k.startswith("norm"))
    assert torch.equal(state["norm1.weight"], torch.ones(16))


def test_missing_and_foreign_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"of ViTAEv2 not found: nowhere\.pth"):
        tiny(init_cfg={"type": "Pretrained", "checkpoint": "nowhere.pth"}).init_weights()
    file = tmp_path / "other.pth"
    torch.save({"stem.weight": torch.zeros(3)}, file)
    with pytest.raises(ValueError, match=r"does not fit ViTAEv2: it holds stem\.weight"):
        tiny(init_cfg={"type": "Pretrained", "checkpoint": str(file)}).init_weights()


# -- mistakes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"NC_head": [1, 2]}, r"unknown config key ViTAEv2.NC_head, did you mean 'NC_heads'\?"),
        ({"NC_depth": [1, 2, 3]}, "one entry of NC_depth per stage: 2 stages, 3 entries"),
        ({"RC_tokens_type": ["window", "performer"]}, "RC_tokens_type must be of window, transformer, got 'performer'"),
        ({"downsample_ratios": [4, 3]}, "downsample_ratios must be 2, 4 or 8, got 3"),
        ({"NC_heads": [3, 4]}, "stage 0: NC_heads 3 does not divide 8 channels"),
        ({"RC_group": [2, 4]}, "stage 0: RC_group 2 does not divide 3 channels"),
        ({"out_indices": [2]}, r"out_indices \[2\] must lie in 0\.\.1"),
        ({"frozen_stages": 3}, r"frozen_stages must lie in -1\.\.2, got 3"),
        ({"init_cfg": {"type": "Kaiming"}}, "ViTAEv2.init_cfg.type must be Pretrained, got 'Kaiming'"),
    ],
)
def test_config_mistakes(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny(**changes)
