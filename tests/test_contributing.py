"""What contributors meet on a public host calls what this repository has."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]


def test_the_workflow_calls_make_targets_for_every_supported_python() -> None:
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    commands = [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
    assert commands and {command.removeprefix("make ") for command in commands} <= targets
    assert {line for line in (ROOT / ".ci/run").read_text().splitlines() if line.startswith("make ")} == set(commands)
    lowest, below = re.search(
        r'requires-python = ">=3\.(\d+),<3\.(\d+)"', (ROOT / "pyproject.toml").read_text()
    ).groups()
    versions = workflow["jobs"]["fast"]["strategy"]["matrix"]["python"]
    assert versions == [f"3.{minor}" for minor in range(int(lowest), int(below))]


def test_hooks_have_the_versions_that_the_linter_target_installs() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    wanted = {package for hook in hooks for package in hook.get("additional_dependencies", [])}
    assert wanted and wanted <= set((ROOT / "constraints.txt").read_text().split())


def test_a_report_of_a_fault_asks_for_the_doctor() -> None:
    form = yaml.safe_load((ROOT / ".github/ISSUE_TEMPLATE/fault.yml").read_text())
    doctor = next(field for field in form["body"] if field["id"] == "doctor")
    assert "distill3d doctor" in doctor["attributes"]["label"] and doctor["validations"]["required"]
