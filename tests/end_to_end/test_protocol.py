"""The published protocol on two tasks of the demo, by its command: every method, every table, and nothing twice."""

import json

import pytest
import yaml
from typer.testing import CliRunner

from talos_ray.cli import app

ADDITION = {
    "zero-shot", "single, TaLoS", "single, dense", "TaLoS", "dense task arithmetic", "TaLoS, TIES", "dense, TIES",
    "linear probe", "single, rows", "learned merge, words' heads", "learned merge", "joint training, words' heads", "joint training",
}  # fmt: skip
SPEC = {
    "model": "demo",
    "tasks": ["demo:pointers", "demo:counts"],
    "control": ["demo:coloured_shapes"],
    "output": "run",
    "calibration": {"samples_per_task": 24, "shards_per_task": 2},
    "train": {"steps": 12, "batch_size": 32, "lr": 1e-3, "warmup_steps": 2},
    "search": {"steps": 8, "inputs": 64, "batch_size": 4, "control_batch_size": 8},
    "baseline": {"lr": 3e-4},
}


@pytest.mark.slow
def test_every_method_is_measured_and_nothing_twice(tmp_path):
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(SPEC))
    command = ["reproduce", str(tmp_path / "spec.yaml"), "--seeds", "1", "-o", str(tmp_path / "out"), "--json"]
    told = CliRunner().invoke(app, command)
    assert told.exit_code == 0, told.output
    found = json.loads(told.stdout)
    rows = {row["method"]: row for row in found["addition"]}
    assert set(rows) == ADDITION
    assert all(0 < float(row["accuracy"]) <= 1 for row in rows.values())
    assert float(rows["single, rows"]["accuracy"]) > float(rows["zero-shot"]["accuracy"])
    costs = {row["method"]: float(row["deltas, MB"]) for row in found["costs"]}
    assert costs["TaLoS"] < costs["dense task arithmetic"] / 9
    assert {row["method"] for row in found["negation"]} == {"TaLoS", "dense", "learned"}
    assert all(float(row["control kept, least"]) >= 0.9 for row in found["negation"])
    runs = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.json")}
    again = CliRunner().invoke(app, command)
    assert json.loads(again.stdout) == found
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.json")} == runs
