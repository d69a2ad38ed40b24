"""The control table: gains, gaps, verdicts."""

from __future__ import annotations

import json
import math

import pytest

from mmdet3d.evaluation.control import Column, Comparison, ControlTable, holm, verdict
from mmdet3d.evaluation.nuscenes import COLUMNS


def metrics(score: float, error: float = 0.5) -> dict[str, float]:
    return {key: score if higher else error for key, _, higher in COLUMNS}


def table(control: list[float], distilled: list[float], teacher: float = 0.6) -> ControlTable:
    runs = [[metrics(v) for v in values] for values in (control, distilled)]
    return ControlTable([metrics(teacher, 0.2)], *runs, student=[metrics(0.2)], columns=COLUMNS)


def test_gain_and_gap() -> None:
    t = table([0.30, 0.32, 0.34], [0.36, 0.37, 0.41])
    assert t.comparison("object/map").mean == pytest.approx(0.06)
    assert t.gap_closed("object/map") == pytest.approx(0.06 / 0.28)


def test_interval_is_students_t_over_paired_differences() -> None:
    # Differences 1, 2, 3: mean 2, standard deviation 1, t(0.975, 2) = 4.3027.
    assert Comparison((1.0, 2.0, 3.0)).half_width == pytest.approx(4.3027 / math.sqrt(3), abs=1e-4)


def test_p_value_is_of_the_paired_t_test() -> None:
    # t = 2 / (1 / sqrt(3)) with 2 degrees of freedom.
    assert Comparison((1.0, 2.0, 3.0)).p_value == pytest.approx(0.0741799, abs=1e-6)
    assert Comparison((0.5,)).p_value == 1.0
    assert Comparison((0.5, 0.5)).p_value == 0.0 and Comparison((0.0, 0.0)).p_value == 1.0


def test_holm_corrects_step_by_step() -> None:
    # 4 x 0.01, 3 x 0.02, then 2 x 0.03 = 0.06, and 0.04 may not be smaller than the one before it.
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]


@pytest.mark.parametrize(
    ("differences", "higher", "expected"),
    [
        ((0.05, 0.06, 0.055), True, "better"),
        ((0.05, 0.06, 0.055), False, "worse"),
        ((-0.05, -0.06, -0.055), False, "better"),
        ((0.05, -0.06, 0.01), True, "within noise"),
        ((0.05,), True, "unknown (one seed)"),
    ],
)
def test_verdicts(differences: tuple[float, ...], higher: bool, expected: str) -> None:
    comparison = Comparison(differences, higher)
    assert verdict(comparison, comparison.p_value) == expected


def test_a_difference_among_many_needs_more_than_its_own_interval() -> None:
    # Alone p = 0.009; times two columns that show the same 0.02; times seven 0.06.
    runs = (
        [{f"m{i}": value for i in range(7)} for value in (0.0, 0.0, 0.0)],
        [{f"m{i}": value for i in range(7)} for value in (0.05, 0.06, 0.07)],
    )
    columns = [Column(f"m{i}", f"M{i}") for i in range(7)]
    two = ControlTable([], *runs, columns=columns[:2]).comparisons()
    seven = ControlTable([], *runs, columns=columns).comparisons()
    assert {v for _, v in two.values()} == {"better"} and {v for _, v in seven.values()} == {"within noise"}


def test_no_gap_where_the_teacher_does_not_lead() -> None:
    assert math.isnan(table([0.7, 0.7], [0.8, 0.8]).gap_closed("object/map"))


def test_report_names_every_role_and_json_is_plain() -> None:
    t = table([0.30, 0.32], [0.36, 0.37])
    text = str(t)
    for word in ("teacher", "student", "control", "distilled", "gain over control", "gap to the teacher", "mAVE"):
        assert word in text
    assert json.loads(json.dumps(t.to_dict()))["roles"]["control"]["mAP"]["runs"] == [0.30, 0.32]


def test_a_student_without_a_start_has_no_row() -> None:
    text = str(ControlTable([metrics(0.6)], [metrics(0.3)], [metrics(0.4)], columns=COLUMNS))
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
    assert "Car 3D |" in text and " +4.5 ± " in text and "mAP" not in text
    with pytest.raises(ValueError, match="column Car 3D: no metric 'Car/3d/R40/moderat', did you mean"):
        ControlTable(*runs, columns=[Column("Car/3d/R40/moderat", "Car 3D")])


def test_variants_are_compared_with_the_control() -> None:
    t = table([0.30, 0.32, 0.34], [0.36, 0.37, 0.41])
    t = ControlTable(
        t.teacher, t.control, t.distilled, columns=COLUMNS, variants={"half": [metrics(v) for v in (0.32, 0.33, 0.39)]}
    )
    assert t.comparison("object/map", "half").mean == pytest.approx(0.08 / 3)
    lines = str(t).splitlines()
    row = next(i for i, line in enumerate(lines) if line.startswith("| half"))
    assert "0.3467 ± 0.0379" in lines[row] and "+0.0267 ± 0.0517" in lines[row + 1]
    stored = json.loads(json.dumps(t.to_dict()))["variants"]["half"]["mAP"]
    assert stored["runs"] == [0.32, 0.33, 0.39] and stored["verdict"] == "within noise"
    with pytest.raises(ValueError, match=r"control \(3 runs\) and half \(1 runs\) must be paired"):
        ControlTable(t.teacher, t.control, t.distilled, columns=COLUMNS, variants={"half": [metrics(0.3)]})


def test_the_distilled_student_is_compared_with_every_control() -> None:
    t = table([0.30, 0.32, 0.34], [0.36, 0.37, 0.41])
    t = ControlTable(
        [metrics(0.6)] * 3,
        t.control,
        t.distilled,
        controls={"inherited": [metrics(v) for v in (0.35, 0.36, 0.40)]},
        unit="world",
        columns=COLUMNS,
    )
    assert t.comparison("object/map", control="inherited").mean == pytest.approx(0.01)
    text = str(t)
    assert text.startswith("distillation: 3 worlds, each with its own data and teacher, mean ± standard deviation")
    assert "| inherited (control)" in text and "Distilled against inherited, 95 % over 3 worlds: better: mAP" in text
    assert "(14 comparisons, corrected after Holm)" in text
    stored = json.loads(json.dumps(t.to_dict()))
    assert stored["worlds"] == 3 and stored["controls"]["inherited"]["mAP"]["gain"] == pytest.approx(0.01)
    with pytest.raises(ValueError, match="must be paired by world"):
        ControlTable([], t.control, t.distilled, controls={"inherited": []}, unit="world", columns=COLUMNS)


def test_a_table_for_a_paper_has_the_cells_of_the_report() -> None:
    runs = [metrics(0.3), metrics(0.4)]
    found = ControlTable(
        [metrics(0.6)],
        runs,
        [metrics(0.35), metrics(0.45)],
        columns=[c for c in COLUMNS if c.heading in ("mAP", "mATE")],
        variants={"w_2 & half": [metrics(0.2), metrics(0.2)]},
        decimals=2,
    )
    lines = found.to_latex().splitlines()
    notes = [line.removeprefix("% ") for line in lines if line.startswith("% ")]
    assert "\n".join(notes) == f"{str(found).splitlines()[0]}\n{found._verdicts()}"
    assert notes[2].startswith("w_2 & half against control, 95 % over 2 seeds: within noise: mAP")
    assert lines[len(notes) :][:3] == [
        r"\begin{tabular}{lrr}",
        r"\toprule",
        r" & mAP $\uparrow$ & mATE $\downarrow$ \\",
    ]
    assert r"control (student alone) & 0.35 $\pm$ 0.07 & 0.50 $\pm$ 0.00 \\" in lines
    assert r"gap to the teacher closed & 20 \% & n/a \\" in lines
    assert r"w\_2 \& half & 0.20 $\pm$ 0.00 & 0.50 $\pm$ 0.00 \\" in lines
    assert r"\quad gain over control & $-$0.15 $\pm$ 0.64 & $+$0.00 $\pm$ 0.00 \\" in lines
    assert lines[-2:] == [r"\bottomrule", r"\end{tabular}"]


def test_a_metric_that_is_not_defined_is_said_to_be_that() -> None:
    found = table([0.30, math.nan, 0.34], [0.36, 0.37, 0.41])
    assert "| gain over control" in str(found) and "undefined: mAP" in str(found) and "nan" not in str(found)
    stored = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert stored["roles"]["control"]["mAP"] == {"mean": None, "std": None, "runs": [0.30, None, 0.34]}
    assert stored["comparison"]["mAP"]["verdict"] == "undefined" and stored["comparison"]["mAP"]["gain"] is None
    assert stored["comparison"]["mATE"]["verdict"] == "within noise"


def test_signs_of_latex_are_no_commands() -> None:
    runs = [metrics(0.3), metrics(0.4)]
    names = {"[a] #1 ${x}^~\\": runs}
    line = ControlTable(runs, runs, runs, columns=COLUMNS, variants=names).to_latex().splitlines()[-4]
    assert line.startswith(r"{[}a] \#1 \$\{x\}\textasciicircum{}\textasciitilde{}\textbackslash{} & 0.3500 $\pm$ ")
