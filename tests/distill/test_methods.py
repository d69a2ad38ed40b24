"""Configs of published methods: each trains, its small twin has its terms, recipe and page have them all."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from distill_inputs import road, street
from safetensors.torch import save_file

from mmdet3d.config import CONFIG_ROOT, load_config
from mmdet3d.engine.optimizer import build_optimizer
from mmdet3d.engine.recipe import Recipe
from mmdet3d.engine.recipe_graph import build_graph
from mmdet3d.engine.settings import Settings
from mmdet3d.models import build_model
from mmdet3d.structures import Batch, Sample

DOCS = CONFIG_ROOT.parent / "docs"
BEV_METHODS = sorted(f.stem for f in (CONFIG_ROOT / "synthetic/methods").glob("*.yaml") if f.stem != "default")
SMALL = {name: f"synthetic/methods/{name}.yaml" for name in BEV_METHODS}
SMALL |= {"monodistill": "kitti/synthetic/monodistill.yaml"}
FULL = {name: f"nuscenes/distill/methods/{name}.yaml" for name in BEV_METHODS}
FULL |= {"monodistill": "kitti/methods/monodistill.yaml"}


TRAINED = SMALL | {"crkd_temporal": "synthetic/crkd/temporal.yaml"}


@pytest.mark.parametrize("name", TRAINED)
def test_two_steps(name: str, tmp_path: Path) -> None:
    """Every loss is finite and pulls at the student, and the teacher stays as it is."""
    cfg = load_config(TRAINED[name])
    torch.manual_seed(0)
    for side in ("teacher", "student"):
        block = cfg.model[side]
        if block.checkpoint is not None:
            block.checkpoint = str(tmp_path / f"{side}.safetensors")
            save_file(build_model(block.model).state_dict(), block.checkpoint)
    distiller = build_model(cfg.model)
    distiller.init_weights()
    distiller.setup_training(None)
    distiller.train()
    distiller.start_epoch(0)
    before = {key: value.clone() for key, value in distiller.teacher.state_dict().items()}
    optimizer = build_optimizer(distiller, Settings.from_config(cfg).optimizer)
    samples = [(road if name == "monodistill" else street)(k, tuple(cfg.image_size)) for k in range(2)]
    for sample in samples:
        earlier = cfg.model.student.model.get("history", 0)
        sample.history = [Sample("earlier", sample.calibration, images=sample.images.flip(0))] * earlier or None
    batch = Batch.collate(samples)
    weights = [p for p in distiller.student.parameters() if p.requires_grad]
    for step in range(2):
        losses = distiller.loss(batch)
        for term in distiller.losses:
            parts = [v for k, v in losses.items() if k == f"loss/kd/{term}" or k.startswith(f"loss/kd/{term}/")]
            value = torch.stack(parts).sum()
            pulls = torch.autograd.grad(value, weights, retain_graph=True, allow_unused=True)
            assert value.isfinite() and value > 0, (step, term)
            assert any(pull is not None and pull.abs().sum() > 0 for pull in pulls), (step, term)
        optimizer.zero_grad()
        sum(value for key, value in losses.items() if key.startswith("loss/")).backward()
        optimizer.step()
    after = distiller.teacher.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())


@pytest.mark.parametrize("name", SMALL)
def test_the_small_twin_has_the_same_terms(name: str) -> None:
    """But for levels of a decoder that has fewer, and what goes with the number of channels."""
    small, full = (load_config(path).model for path in (SMALL[name], FULL[name]))
    left_out = {"distillbev": {"level2"}, "pkd": {"level2"}}.get(name, set())
    assert set(full.losses) - set(small.losses) == left_out and set(small.losses) <= set(full.losses)
    for term in small.losses:
        ours, theirs = small.losses[term], full.losses[term]
        assert (ours.type, ours.get("weight")) == (theirs.type, theirs.get("weight"))
    assert small.student.get("init_from_teacher") == full.student.get("init_from_teacher")


PER_CHANNEL = {
    "RegionFeatureLoss": {"foreground": 6e-3, "background": 4e-2, "false_positives": 6e-2},
    "ActiveFeatureLoss": {"shared": 3e-4, "alone": 5e-5},
}


@pytest.mark.parametrize("path", [files[name] for files in (SMALL, FULL) for name in ("distillbev", "radardistill")])
def test_published_weights_of_sums_over_channels(path: str) -> None:
    """Those of our means over channels are as many times as large as the teacher's map has channels."""
    model = load_config(path).model
    encoder = model.teacher.model.fuser.in_channels[1]
    for loss in model.losses.values():
        for key, published in PER_CHANNEL.get(loss.type, {}).items():
            channels = loss.projection[1] if "projection" in loss else encoder
            assert loss[key] in (0, pytest.approx(published * channels, rel=5e-3)), (loss.type, key)


def test_the_first_stage_of_cmkd_does_not_detect() -> None:
    for files in (SMALL, FULL):
        head = load_config(files["cmkd_features"]).model.student.model.heads.object
        assert head.loss_cls.loss_weight == head.loss_bbox.loss_weight == 0
        second = load_config(files["cmkd"]).model.student.model.heads.object
        assert second.loss_bbox.loss_weight > 0


def test_the_schedule_of_monodistill_is_its_own() -> None:
    config = load_config(FULL["monodistill"])
    assert (config.max_epochs, config.optimizer.lr, config.lr_config.step) == (160, 1.25e-3, [90, 120])
    assert config.model == load_config("kitti/monodistill.yaml").model


def test_the_recipe_trains_every_method_for_as_many_steps(tmp_path: Path) -> None:
    recipe = Recipe.load("synthetic/recipes/methods.yaml")
    graph = build_graph(recipe, tmp_path, [0], {}, tmp_path / "world")
    steps = {run: node.task(recipe.training_samples(), None).steps for (run, _), node in graph.items()}
    named = {Path(node.source).stem: run for (run, _), node in graph.items() if "methods" in str(node.source)}
    assert set(named) == set(BEV_METHODS) and all(run == method for method, run in named.items())
    assert steps["cmkd_features"] + steps["cmkd"] == steps["control"]
    assert {steps[run] for run in named if not run.startswith("cmkd")} == {steps["control"], steps["distilled"]}
    assert set(recipe.variants.values()) == set(BEV_METHODS) - {"cmkd_features"}
    assert graph["cmkd", 0].config.model.student.checkpoint == str(graph["cmkd_features", 0].weights)


@pytest.mark.parametrize("name", FULL)
def test_the_page_has_every_method_and_the_class_of_every_term(name: str) -> None:
    text = (DOCS / "methods.md").read_text()
    assert f"configs/{FULL[name]}" in text
    for loss in filter(None, load_config(FULL[name]).model.losses.values()):
        file = re.search(rf"\[`{loss.type}`\]\(([^)]+)\)", text)
        assert file and f"class {loss.type}" in (DOCS / file[1]).read_text(), loss.type
