"""CenterPoint of mmdetection3d 1.4: its weights through our converter give its answers.

`golden/` holds a small network of the peer's (random weights, as it saves them), a frame and what it answered in
float64; `python -m benchmarks.peers.compare --golden` wrote them. MMDET3D_PEER_PYTHON names the Python of
benchmarks/peers/build.sh, to ask the peer itself.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.peers import compare, ours
from mmdet3d.interop.labeldistill import model_state
from mmdet3d.io.weights import read_weights

GOLDEN = Path(__file__).with_name("golden")


@pytest.fixture(scope="module")
def mine() -> dict[str, torch.Tensor]:
    model = ours.build(GOLDEN / "centerpoint.pth", small=True, dtype=torch.float64)
    return ours.outputs(model, ours.read_frame(np.load(GOLDEN / "frame.npz")))


@pytest.fixture(scope="module")
def theirs() -> dict[str, np.ndarray]:
    return dict(np.load(GOLDEN / "answers.npz"))


@pytest.mark.parametrize("kind", ["voxels", "coordinates", "encoder", "decoder", "head", "loss", "gradient"])
def test_every_part_answers_as_the_peer_does(kind: str, mine, theirs) -> None:
    expected = ours.in_our_layout(theirs, dict.fromkeys(["encoders.lidar."]))
    names = [name for name in expected if name.partition("/")[0] == kind]
    assert len(names) == {"head": 36, "loss": 12}.get(kind, 1)
    for name in names:
        scale = float(expected[name].abs().max())
        torch.testing.assert_close(
            mine[name].to(expected[name].dtype),
            expected[name],
            rtol=0,
            atol=2e-6 * scale,
            msg=lambda m, n=name: f"{n}: {m}",
        )


def test_detections_are_those_of_the_peer(mine, theirs) -> None:
    expected = ours.in_our_layout(theirs, dict.fromkeys(["encoders.lidar."]))
    assert len(expected["labels"].unique()) == 9 and len(mine["labels"]) == len(expected["labels"])
    found = compare.paired(mine, expected)
    assert found["labels"].tolist() == expected["labels"].tolist()
    for name in ("boxes", "scores"):
        torch.testing.assert_close(found[name].float(), expected[name], rtol=1e-4, atol=1e-4)


def test_every_gradient_is_as_long_as_the_peers(mine) -> None:
    """Conversion only permutes and negates: a tensor that is filled with its norm keeps it."""
    weights, _ = read_weights(GOLDEN / "centerpoint.pth")
    norms = json.loads((GOLDEN / "gradient_norms.json").read_text())
    filled = {name: torch.full(weights[name].shape, norm) for name, norm in norms.items()}
    filled = model_state(filled, dict.fromkeys(["encoders.lidar."]))
    found = {name.removeprefix("gradient/"): v for name, v in mine.items() if name.startswith("gradient/")}
    assert found.keys() == filled.keys()
    for name, value in filled.items():
        torch.testing.assert_close(found[name].norm().float(), value.flatten()[0].abs(), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.skipif("MMDET3D_PEER_PYTHON" not in os.environ, reason="MMDET3D_PEER_PYTHON names no Python of the peer")
def test_the_peer_itself_still_answers_so(tmp_path: Path) -> None:
    compare.golden(Path(os.environ["MMDET3D_PEER_PYTHON"]), tmp_path)
    for file in ("frame.npz", "answers.npz"):
        fresh, kept = np.load(tmp_path / file), np.load(GOLDEN / file)
        assert fresh.files == kept.files
        for name in kept.files:
            if kept[name].dtype.kind == "f":
                np.testing.assert_allclose(
                    fresh[name], kept[name], rtol=1e-4, atol=1e-5 * abs(kept[name]).max(initial=0)
                )
            else:
                np.testing.assert_array_equal(fresh[name], kept[name])
