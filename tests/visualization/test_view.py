"""`distill3d view`: a recording that rerun opens, with what was drawn where and when."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from mmdet3d import Detector
from mmdet3d.commands import view
from mmdet3d.datasets.synthetic.worlds import make_scene

try:
    import rerun
    import rerun.dataframe
except ImportError as error:
    rerun, REASON = None, f"rerun cannot be imported ({error}): needs the extra [viewer]"
else:
    REASON = ""

MODELS = {"student": "zoo:crkd-demo-distilled", "alone": "zoo:crkd-demo-control"}


@pytest.mark.skipif(rerun is None, reason=REASON)
def test_a_recording_holds_sensors_truth_and_the_boxes_of_every_model(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    make_scene(tmp_path / "data")
    file = tmp_path / "runs" / "scene.rrd"
    words = [*MODELS.values(), "--titles", *MODELS, "--frames", str(tmp_path / "data"), "--limit", "2"]
    view.main([*words, "--save", str(file), "--bbox-score", "0.2"])
    said = capsys.readouterr().out
    assert said.startswith("2 frames, ") and "boxes of alone" in said and f"rerun {file}" in said

    recording = rerun.dataframe.load_recording(file)
    places = {column.entity_path for column in recording.schema().component_columns()}
    cameras = {f"/world/cameras/CAM_{name}/image" for name in ("FRONT", "FRONT_LEFT", "BACK", "BACK_RIGHT")}
    assert cameras | {"/world/lidar", "/world/radar", "/world/radar/velocity", "/world/boxes/truth"} <= places
    assert {column.name for column in recording.schema().index_columns()} >= {"frame", "time"}

    detector = Detector.from_zoo("crkd-demo-distilled")
    frames = detector.frames(tmp_path / "data")
    table = recording.view(index="frame", contents="/world/boxes/student").select().read_all()
    assert table["frame"].to_pylist() == [0, 1]
    centers = next(name for name in table.column_names if name.endswith("Translation3D") or "centers" in name)
    for number, index in enumerate(frames.scenes()[0][:2]):
        found = detector(frames[index])
        assert found.scores.max() >= 0.2
        expected = found.boxes.tensor[found.scores >= 0.2, :3].numpy()
        drawn = np.array(table[centers].to_pylist()[number] or []).reshape(-1, 3)
        np.testing.assert_allclose(drawn, expected, atol=1e-4)


def test_what_cannot_be_recorded_is_said_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"--save scene\.mp4 must end in \.rrd"):
        view.main(["absent", "--save", "scene.mp4"])
    with pytest.raises(ValueError, match=r"2 models need as many different titles, other than 'truth', got best best"):
        view.main(["a/best.safetensors", "b/best.safetensors", "--save", "scene.rrd"])
    monkeypatch.setitem(sys.modules, "rerun", None)
    with pytest.raises(ValueError, match=r"needs rerun, which cannot be imported .*pip install 'distill3d\[viewer\]'"):
        view.main(["absent", "--save", str(tmp_path / "scene.rrd")])
