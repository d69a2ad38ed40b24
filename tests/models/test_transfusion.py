from __future__ import annotations

import copy
import itertools

import pytest
import torch
from bev_models import TRANSFUSION_HEAD
from torch import Tensor
from torch.nn import functional as F

from mmdet3d.models.heads.box_coder import encode_boxes
from mmdet3d.models.heads.matching import HungarianAssigner3D
from mmdet3d.models.heads.transfusion import TransFusionHead
from mmdet3d.models.heads.transfusion_layers import TransformerDecoderLayer, local_maxima
from mmdet3d.ops.rotated_iou import rotated_iou_3d
from mmdet3d.registry import MODELS
from mmdet3d.structures import Boxes3D

SIZES = {"center": 2, "height": 1, "dim": 3, "rot": 2, "vel": 2}


def config(**changes: object) -> dict:
    """20 x 32 cells of 0.8 m."""
    cfg = copy.deepcopy(TRANSFUSION_HEAD)
    cfg["train_cfg"] = cfg["train_cfg"] | {"point_cloud_range": [-8.0, -12.8, -5, 8.0, 12.8, 3]}
    return cfg | changes


@pytest.fixture
def head() -> TransFusionHead:
    torch.manual_seed(0)
    return MODELS.build(config(num_decoder_layers=2))


@pytest.fixture
def truth() -> tuple[list[Boxes3D], list[Tensor]]:
    rows = torch.tensor([[1.0, 2.0, 0.5, 4.5, 1.9, 1.6, 0.3, 1.0, -2.0], [-3.2, -7.0, 0, 0.7, 0.6, 1.7, -2.0, 0, 0.5]])
    return [Boxes3D(rows), Boxes3D.empty()], [torch.tensor([0, 3]), torch.zeros(0, dtype=torch.int64)]


def test_forward_shapes(head: TransFusionHead) -> None:
    raw = head(torch.randn(2, 8, 20, 32))
    for name, size in (SIZES | {"heatmap": 4}).items():
        assert raw[name].shape == (2, size, 24)
    assert raw["dense_heatmap"].shape == (2, 4, 20, 32)
    assert raw["query_heatmap_score"].shape == (2, 4, 12)
    assert raw["query_labels"].shape == (2, 12)


def test_only_the_last_layer_without_auxiliary(head: TransFusionHead) -> None:
    torch.manual_seed(0)
    single = MODELS.build(config(num_decoder_layers=2, auxiliary=False)).eval()
    bev = torch.randn(1, 8, 20, 32)
    torch.testing.assert_close(single(bev)["center"], head.eval()(bev)["center"][..., 12:])


def test_queries_are_the_best_local_maxima(head: TransFusionHead) -> None:
    raw = head.eval()(torch.randn(2, 8, 20, 32))
    peaks = local_maxima(raw["dense_heatmap"].sigmoid(), 3, (3,))
    want = peaks.flatten(1).sort(descending=True).values[:, :12]
    got = raw["query_heatmap_score"].gather(1, raw["query_labels"][:, None])[:, 0]
    torch.testing.assert_close(got, want)


def test_local_maxima_by_hand() -> None:
    torch.manual_seed(0)
    p = torch.rand(1, 2, 6, 7)
    kept = local_maxima(p, 3, (1,))
    for x, y in itertools.product(range(6), range(7)):
        inner = 0 < x < 5 and 0 < y < 6
        top = inner and p[0, 0, x, y] == p[0, 0, x - 1 : x + 2, y - 1 : y + 2].max()
        assert kept[0, 0, x, y] == (p[0, 0, x, y] if top else 0)
    assert torch.equal(kept[:, 1], p[:, 1])
    assert torch.equal(local_maxima(p, 1, ()), p)


def test_decoder_layer_against_plain_attention() -> None:
    torch.manual_seed(0)
    layer = TransformerDecoderLayer(8, 2, 16, 0.1).eval()
    query, bev = torch.randn(2, 8, 3), torch.randn(2, 8, 10)
    query_position, bev_position = torch.rand(2, 3, 2), torch.rand(1, 10, 2)

    def attend(block: torch.nn.MultiheadAttention, q: Tensor, kv: Tensor) -> Tensor:
        parts = [F.linear(x, w, b) for x, w, b in zip(
            (q, kv, kv), block.in_proj_weight.chunk(3), block.in_proj_bias.chunk(3), strict=True)]  # fmt: skip
        q, k, v = (p.unflatten(2, (2, 4)).transpose(1, 2) for p in parts)
        weights = (q * 4**-0.5 @ k.transpose(2, 3)).softmax(3)
        return block.out_proj((weights @ v).transpose(1, 2).flatten(2))

    def embed(module: torch.nn.Module, position: Tensor) -> Tensor:
        return module.position_embedding_head(position.transpose(1, 2)).transpose(1, 2)

    x = query.transpose(1, 2)
    place = embed(layer.self_posembed, query_position)
    memory = bev.transpose(1, 2) + embed(layer.cross_posembed, bev_position)
    x = layer.norm1(x + attend(layer.self_attn, x + place, x + place))
    x = layer.norm2(x + attend(layer.multihead_attn, x + place, memory))
    x = layer.norm3(x + layer.linear2(layer.linear1(x).relu()))
    torch.testing.assert_close(layer(query, bev, query_position, bev_position), x.transpose(1, 2), rtol=1e-4, atol=1e-5)


def test_every_cell_has_its_own_place_under_autocast() -> None:
    """From 128 on, bfloat16 tells no two neighbouring cells apart."""
    torch.manual_seed(0)
    layer = TransformerDecoderLayer(8, 2, 16, 0.0).eval()
    cells = torch.stack([torch.arange(180.0) + 0.5, torch.full((180,), 90.5)], dim=1)[None]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        places = layer.cross_posembed(cells)[0]
    assert len(places.unique(dim=0)) == 180


# -- matching -------------------------------------------------------------------------------------------------------


def test_assignment_has_the_least_total_cost() -> None:
    torch.manual_seed(0)
    span = [-8.0, -12.8, -5, 8.0, 12.8, 3]
    predicted, boxes = Boxes3D(torch.rand(5, 9) * 4 + 0.5), Boxes3D(torch.rand(3, 9) * 4 + 0.5)
    logits, labels = torch.randn(5, 4), torch.tensor([2, 0, 3])
    rows, columns, iou = HungarianAssigner3D(span)(predicted, logits, boxes, labels)

    def cost(i: int, j: int) -> float:
        p = logits[i, labels[j]].sigmoid()
        focal = -0.25 * (1 - p) ** 2 * p.log() + 0.75 * p**2 * (1 - p).log()
        offset = (predicted.tensor[i, :2] - boxes.tensor[j, :2]).abs() / torch.tensor([16.0, 25.6])
        overlap = rotated_iou_3d(predicted.tensor[i : i + 1, :7], boxes.tensor[j : j + 1, :7])[0, 0]
        return float(0.15 * focal + 0.25 * offset.sum() - 0.25 * overlap)

    totals = {p: sum(cost(i, j) for j, i in enumerate(p)) for p in itertools.permutations(range(5), 3)}
    assert sum(cost(int(i), int(j)) for i, j in zip(rows, columns, strict=True)) == pytest.approx(min(totals.values()))
    best = min(totals, key=totals.get)
    assert {int(j): int(i) for i, j in zip(rows, columns, strict=True)} == dict(enumerate(best))
    every = rotated_iou_3d(predicted.tensor[:, :7], boxes.tensor[:, :7])
    torch.testing.assert_close(iou, every[rows, columns])


def test_no_objects_match_nothing_and_a_diverged_prediction_does_not_stop() -> None:
    assigner = HungarianAssigner3D([-8.0, -12.8, -5, 8.0, 12.8, 3])
    rows, columns, _ = assigner(
        Boxes3D(torch.ones(5, 9)), torch.zeros(5, 4), Boxes3D.empty(), torch.zeros(0, dtype=torch.int64)
    )
    assert len(rows) == len(columns) == 0
    predicted = torch.ones(2, 9)
    predicted[0, 3:6] = float("inf")
    rows, _, _ = assigner(Boxes3D(predicted), torch.zeros(2, 4), Boxes3D(torch.ones(1, 9)), torch.tensor([1]))
    assert rows.tolist() == [1]


# -- losses and inference -------------------------------------------------------------------------------------------


def test_loss_names_and_gradients(head: TransFusionHead, truth: tuple) -> None:
    losses = head.box_losses(head(torch.randn(2, 8, 20, 32)), *truth)
    layers = {f"layer_{i}_loss_{kind}" for i in (0, -1) for kind in ("cls", "bbox")}
    assert set(losses) == {"loss_heatmap", "stats/matched_ious"} | layers
    assert not losses["stats/matched_ious"].requires_grad
    sum(v for k, v in losses.items() if not k.startswith("stats/")).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())


def perfect(head: TransFusionHead, boxes: list[Boxes3D], labels: list[Tensor]) -> dict[str, Tensor]:
    """The answer of a head with 12 queries of which the first know the objects."""
    batch = len(boxes)
    raw = {name: torch.zeros(batch, size, 12) for name, size in SIZES.items()}
    raw["center"] -= 50
    raw["heatmap"] = torch.full((batch, 4, 12), -20.0)
    raw["query_heatmap_score"] = torch.full((batch, 4, 12), 0.5)
    raw["query_labels"] = torch.zeros(batch, 12, dtype=torch.int64)
    raw["dense_heatmap"] = torch.full((batch, 4, 20, 32), -20.0)
    for b, (box, label) in enumerate(zip(boxes, labels, strict=True)):
        code = encode_boxes(box, head.grid)
        n = len(box)
        for name, part in zip(SIZES, code.split(list(SIZES.values()), dim=1), strict=True):
            raw[name][b, :, :n] = part.T
        raw["heatmap"][b, label, torch.arange(n)] = 6.0
        raw["query_labels"][b, :n] = label
        x, y = code[:, :2].long().unbind(1)
        raw["dense_heatmap"][b, label, x, y] = 20.0
    return raw


def test_perfect_prediction(truth: tuple) -> None:
    head = MODELS.build(config())
    raw = perfect(head, *truth)
    losses = head.box_losses(raw, *truth)
    assert losses["layer_-1_loss_bbox"] < 1e-5 and losses["layer_-1_loss_cls"] < 1e-3
    assert losses["stats/matched_ious"] > 0.999 and losses["loss_heatmap"] < 1e-3
    found, nothing = head.decode(raw)
    assert len(nothing) == 0
    order = found.labels.argsort()
    assert found.labels[order].tolist() == [0, 3]
    torch.testing.assert_close(found.boxes.tensor[order], truth[0][0].tensor, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.scores, torch.full((2,), 6.0).sigmoid() * 0.5)


def test_a_query_keeps_its_class(truth: tuple) -> None:
    head = MODELS.build(config())
    raw = perfect(head, *truth)
    raw["heatmap"][0, 1, 0] = 9.0
    assert 1 not in head.decode(raw)[0].labels


def test_box_loss_is_the_weighted_error_of_matched_queries(truth: tuple) -> None:
    head = MODELS.build(config())
    raw = perfect(head, *truth)
    raw["height"][0, 0, 0] += 0.5
    raw["vel"][0, 0, 0] += 1.0
    assert head.box_losses(raw, *truth)["layer_-1_loss_bbox"].item() == pytest.approx(0.25 * (0.5 + 0.2) / 2, rel=1e-4)


def test_samples_without_objects(head: TransFusionHead) -> None:
    empty = [Boxes3D.empty()] * 2, [torch.zeros(0, dtype=torch.int64)] * 2
    losses = head.box_losses(head(torch.randn(2, 8, 20, 32)), *empty)
    assert all(v.isfinite() for v in losses.values())
    assert losses["layer_-1_loss_bbox"] == 0 and losses["stats/matched_ious"] == 0
    sum(v for k, v in losses.items() if not k.startswith("stats/")).backward()
    assert all(p.grad.isfinite().all() for p in head.parameters() if p.grad is not None)


def test_decode_leaves_its_input_and_handles_any_batch_size(head: TransFusionHead) -> None:
    raw = head.eval()(torch.randn(3, 8, 20, 32))
    before = {name: value.clone() for name, value in raw.items()}
    assert len(head.decode(raw)) == 3 and len(head.decode(raw)) == 3
    assert all(torch.equal(raw[name], before[name]) for name in raw)


@pytest.mark.parametrize("kind", ["circle", "rotate"])
def test_suppression_of_point_classes_only(kind: str) -> None:
    test_cfg = TRANSFUSION_HEAD["test_cfg"] | {"nms_type": kind}
    head, plain = MODELS.build(config(test_cfg=test_cfg)), MODELS.build(config())
    rows = torch.tensor([[1.0, 2.0, 0.5, 0.8, 0.8, 1.6, 0, 0, 0]]).repeat(4, 1)
    rows[1::2, 0] += 0.1
    raw = perfect(head, [Boxes3D(rows)], [torch.tensor([3, 3, 0, 0])])
    assert sorted(plain.decode(raw)[0].labels.tolist()) == [0, 0, 3, 3]
    assert sorted(head.decode(raw)[0].labels.tolist()) == [0, 0, 3]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_proposals": 3000}, "the grid offers 2560 class cells"),
        ({"point_classes": [4]}, "names label 4, but num_classes is 4"),
        (
            {"test_cfg": {"post_center_limit_range": [0] * 6, "nms_type": "soft"}},
            "nms_type must be one of circle, rotate, got",
        ),
        ({"test_cfg": {"post_center_limit_range": [0] * 6, "dataset": "nuScenes"}}, "test_cfg.dataset has no effect"),
        ({"common_heads": {"center": [2, 2]}}, "common_heads must give"),
    ],
)
def test_config_mistakes(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MODELS.build(config(**change))


def test_assigner_keys_are_checked() -> None:
    cfg = config()
    cfg["train_cfg"]["assigner"] = {"cls_cost": {"wieght": 1.0}}
    with pytest.raises(ValueError, match="did you mean 'weight'"):
        MODELS.build(cfg)


def test_published_names_and_shapes() -> None:
    head = MODELS.build(config(in_channels=512, hidden_channel=128, num_heads=8, num_classes=10, ffn_channel=256))
    shapes = {k: tuple(v.shape) for k, v in head.state_dict().items() if "num_batches" not in k}
    expected = {
        "shared_conv.weight": (128, 512, 3, 3),
        "shared_conv.bias": (128,),
        "heatmap_head.0.conv.weight": (128, 128, 3, 3),
        "heatmap_head.0.bn.weight": (128,),
        "heatmap_head.1.weight": (10, 128, 3, 3),
        "heatmap_head.1.bias": (10,),
        "class_encoding.weight": (128, 10, 1),
        "decoder.0.self_attn.in_proj_weight": (384, 128),
        "decoder.0.multihead_attn.out_proj.bias": (128,),
        "decoder.0.linear1.weight": (256, 128),
        "decoder.0.norm3.weight": (128,),
        "decoder.0.cross_posembed.position_embedding_head.0.weight": (128, 2, 1),
        "decoder.0.self_posembed.position_embedding_head.3.weight": (128, 128, 1),
        "prediction_heads.0.center.0.conv.weight": (64, 128, 1),
        "prediction_heads.0.heatmap.1.weight": (10, 64, 1),
    }
    assert expected.items() <= shapes.items()
    roots = {k.split(".")[0] for k in shapes}
    assert roots == {"shared_conv", "heatmap_head", "class_encoding", "decoder", "prediction_heads"}
    assert len(shapes) == 2 + 5 + 2 + 2 + 2 * 4 + 4 + 6 + 2 * 8 + 6 * 7
