"""The pool of workers: who stands still, dies, comes late or is taken away costs its own task some steps, and nobody else anything."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def played(scenario: str, folder: Path) -> dict:
    """What `sleepers.py` tells of a scenario."""
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    environment["PYTHONPATH"] = os.pathsep.join([str(HERE), str(HERE.parents[1])])
    command = [sys.executable, str(HERE / "sleepers.py"), scenario, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, env=environment)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    assert lines, done.stdout[-2000:] + done.stderr[-4000:]
    told = json.loads(lines[-1])
    print(scenario, told["seconds"], "s,", len(told["losses"]), "lost")
    return told


@pytest.mark.slow
@pytest.mark.parametrize("scenario", ["stalled", "stopped"])
def test_a_worker_that_makes_no_step_is_replaced_and_its_task_goes_on(tmp_path, scenario):
    told = played(scenario, tmp_path)
    (lost,) = told["losses"]
    assert told["error"] is None and "no step for 0.1 minutes (cluster.stall_minutes)" in lost["reason"]
    assert lost["step"] >= 9 and lost["node"]
    task = told["tasks"][lost["task"].removeprefix("sparse/")]
    assert len(set(task["pids"])) == 2 and all(t["step"] == 80 for t in told["tasks"].values())
    others = [t for t in told["tasks"].values() if t is not task]
    assert all(len(t["pids"]) == 1 for t in others)  # nobody else had to begin again


@pytest.mark.slow
def test_a_node_that_comes_late_gets_tasks(tmp_path):
    told = played("late", tmp_path)
    assert told["losses"] == [] and told["error"] is None
    nodes = [t["nodes"][0] for t in told["tasks"].values()]
    assert len(nodes) == 16 and len(set(nodes)) == 2 and min(nodes.count(n) for n in set(nodes)) >= 2


@pytest.mark.slow
def test_nodes_that_are_taken_away_do_not_count_as_failures(tmp_path):
    told = played("taken", tmp_path)
    assert told["error"] is None and len(told["losses"]) >= 2  # where not one failure is forgiven
    assert all(t["step"] == 80 for t in told["tasks"].values())
    assert len({n for t in told["tasks"].values() for n in t["nodes"]}) >= 3


@pytest.mark.slow
def test_a_task_whose_worker_dies_each_time_is_given_up_alone(tmp_path):
    told = played("broken", tmp_path)
    assert [loss["task"] for loss in told["losses"]] == ["sparse/t0"] * 2  # once, and once more
    assert told["error"].startswith("not trained: sparse/t0: a worker process was killed from outside")
    assert {t: s["step"] for t, s in told["tasks"].items()} == {"t0": 5, "t1": 80, "t2": 80}
