"""The control table: gains, gaps, verdicts."""

from __future__ import annotations

import json
import math

import pytest

from mmdet3d.evaluation.control import COLUMNS, Column, Comparison, ControlTable


def metrics(score: float, error: float = 0.5) -> dict[str, float]:
    return {key: score if higher else error for key, _, higher in COLUMNS}


def table(control: list[float], distilled: list[float], teacher: float = 0.6) -> ControlTable:
    runs = [[metrics(v) for v in values] for values in (control, distilled)]
    return ControlTable([metrics(teacher, 0.2)], *runs, student=[metrics(0.2)])


def test_gain_and_gap() -> None:
    t = table([0.30, 0.32, 0.34], [0.36, 0.37, 0.41])
    assert t.comparison("object/map").mean == pytest.approx(0.06)
    assert t.gap_closed("object/map") == pytest.approx(0.06 / 0.28)


def test_interval_is_students_t_over_paired_differences() -> None:
    # Differences 1, 2, 3: mean 2, standard deviation 1, t(0.975, 2) = 4.3027.
    assert Comparison((1.0, 2.0, 3.0)).half_width == pytest.approx(4.3027 / math.sqrt(3), abs=1e-4)


@pytest.mark.parametrize(
    ("differences", "higher", "verdict"),
    [
        ((0.05, 0.06, 0.055), True, "better"),
        ((0.05, 0.06, 0.055), False, "worse"),
        ((-0.05, -0.06, -0.055), False, "better"),
        ((0.05, -0.06, 0.01), True, "within noise"),
        ((0.05,), True, "unknown (one seed)"),
    ],
)
def test_verdicts(differences: tuple[float, ...], higher: bool, verdict: str) -> None:
    assert Comparison(differences, higher).verdict == verdict


def test_no_gap_where_the_teacher_does_not_lead() -> None:
    assert math.isnan(table([0.7, 0.7], [0.8, 0.8]).gap_closed("object/map"))


def test_report_names_every_role_and_json_is_plain() -> None:
    t = table([0.30, 0.32], [0.36, 0.37])
    text = str(t)
    for word in ("teacher", "student", "control", "distilled", "gain over control", "gap to the teacher", "mAVE"):
        assert word in text
    assert json.loads(json.dumps(t.to_dict()))["roles"]["control"]["mAP"]["runs"] == [0.30, 0.32]


def test_a_student_without_a_start_has_no_row() -> None:
    text = str(ControlTable([metrics(0.6)], [metrics(0.3)], [metrics(0.4)]))
    assert "| student" not in text and "| control (student alone)" in text


def test_one_seed_makes_no_claim() -> None:
    assert "says nothing about noise" in str(table([0.3], [0.5]))


def test_unpaired_runs_are_refused() -> None:
    with pytest.raises(ValueError, match="paired by seed"):
        table([0.3], [0.4, 0.5])


def test_columns_of_another_benchmark() -> None:
    runs = [[{"Car/3d/R40/moderate": value} for value in values] for values in ([30.0], [10.0, 12.0], [14.0, 17.0])]
    t = ControlTable(*runs, columns=[Column("Car/3d/R40/moderate", "Car 3D")], decimals=1)
    assert t.to_dict()["comparison"]["Car 3D"]["gain"] == pytest.approx(4.5)
    text = str(t)
    assert "Car 3D |" in text and " +4.5 |" in text and "mAP" not in text
    with pytest.raises(ValueError, match="column Car 3D: no metric 'Car/3d/R40/moderat', did you mean"):
        ControlTable(*runs, columns=[Column("Car/3d/R40/moderat", "Car 3D")])


def test_variants_are_compared_with_the_control() -> None:
    t = table([0.30, 0.32, 0.34], [0.36, 0.37, 0.41])
    t = ControlTable(t.teacher, t.control, t.distilled, variants={"half": [metrics(v) for v in (0.32, 0.33, 0.39)]})
    assert t.comparison("object/map", "half").mean == pytest.approx(0.08 / 3)
    lines = str(t).splitlines()
    row = next(i for i, line in enumerate(lines) if line.startswith("| half"))
    assert "0.3467 ± 0.0379" in lines[row] and "+0.0267 (±0.0517)" in lines[row + 1]
    stored = json.loads(json.dumps(t.to_dict()))["variants"]["half"]["mAP"]
    assert stored["runs"] == [0.32, 0.33, 0.39] and stored["verdict"] == "within noise"
    with pytest.raises(ValueError, match=r"control \(3 runs\) and half \(1 runs\) must be paired"):
        ControlTable(t.teacher, t.control, t.distilled, variants={"half": [metrics(0.3)]})
