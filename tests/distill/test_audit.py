from __future__ import annotations

import math

import pytest
import torch
from test_distiller import LOSSES, batch, files, ready  # noqa: F401 - a fixture

from mmdet3d.distill.audit import DETECTION, audit, audit_table


def test_lengths_and_angles_against_plain_gradients(files):  # noqa: F811
    distiller = ready(files).eval()
    result = audit(distiller, [batch()])
    assert set(result) == {"encoder", "heatmap", "box", "activation"}
    assert all(set(terms) == {DETECTION, *LOSSES} for terms in result.values())
    losses = distiller.loss(batch())
    student = distiller.student.heatmap
    own, pull = (
        torch.cat(
            [p.grad.flatten() for p in gradients(distiller, sum(v for k, v in losses.items() if wanted(k)), student)]
        )
        for wanted in (lambda k: "/kd/" not in k, lambda k: k.startswith("loss/kd/response/"))
    )
    found = result["heatmap"]["response"]
    assert found.norm == pytest.approx(pull.norm().item(), rel=1e-4)
    assert found.cosine == pytest.approx(torch.cosine_similarity(own, pull, dim=0).item(), rel=1e-4)
    assert result["heatmap"][DETECTION].cosine == pytest.approx(1.0)


def gradients(distiller, value, module):
    distiller.zero_grad()
    value.backward(retain_graph=True)
    return list(module.parameters())


def test_terms_that_do_not_reach_a_part(files):  # noqa: F811
    result = audit(ready(files), [batch(0), batch(1)])
    assert result["heatmap"]["relation"].norm == 0 and math.isnan(result["heatmap"]["relation"].cosine)
    assert result["activation"]["radar"].norm > 0
    line = next(row for row in audit_table(result).splitlines() if row.startswith("relation"))
    assert " - " in line


@pytest.mark.parametrize("training", [True, False])
def test_nothing_is_changed(files, training):  # noqa: F811
    distiller = ready(files).train(training)
    before = {k: v.clone() for k, v in distiller.state_dict().items()}
    audit(distiller, [batch()])
    assert all(torch.equal(v, before[k]) for k, v in distiller.state_dict().items())
    assert all(p.grad is None for p in distiller.parameters())


def test_a_batch_without_a_gradient_does_not_hide_the_others(files, monkeypatch):  # noqa: F811
    distiller = ready(files).eval()
    one = audit(distiller, [batch()])["heatmap"]["response"]
    forward, calls = distiller.losses["response"].forward, []

    def silent_at_second(student, teacher, batch):
        calls.append(batch)
        terms = forward(student, teacher, batch)
        return {k: v * (len(calls) != 2) for k, v in terms.items()}

    monkeypatch.setattr(distiller.losses["response"], "forward", silent_at_second)
    both = audit(distiller, [batch(), batch()])["heatmap"]["response"]
    assert both.cosine == pytest.approx(one.cosine) and both.norm == pytest.approx(one.norm / 2)


def test_what_cannot_be_audited(files):  # noqa: F811
    with pytest.raises(ValueError, match="no losses to audit"):
        audit(ready(files, losses={}), [batch()])
    with pytest.raises(ValueError, match="at least one batch"):
        audit(ready(files), [])
