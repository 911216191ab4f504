"""`talos plan --timed`: stages from the seconds of single pieces, and one plan that is really timed."""

import json

import pytest
import yaml
from texts import save_model, write_texts
from typer.testing import CliRunner

from talos_ray.cli import app
from talos_ray.orchestrate import forecast
from talos_ray.orchestrate.forecast import TaskWork, Work, Workers, in_turn, longest_first, runs_by_arm, waves_expected
from talos_ray.spec import make_spec

WORK = Work(check=1, ray=2, start=10, start_alone=8, build=5, hooks=3, select=1, merge_step={"sparse": 0.5, "dense": 1.5}, compose=0.25, composed=7)


def task(name, *, steps=100, step=0.1, **changes):
    values = {
        "name": name, "train": 100, "validation": 40, "test": 60, "learned": 100, "judged": 40, "unprepared": {}, "load": 2.0,
        "prepare": 0.01, "shards": (4.0, 4.0), "steps": {"sparse": steps}, "step": {"sparse": step}, "forward": 0.01, "fit": 1.0,
        "batch": 10,
    }  # fmt: skip
    return TaskWork(**{**values, **changes})


def spec(**changes):
    values = {"model": "demo", "tasks": ["demo:counts", "demo:pointers"], "output": "x"}
    return make_spec({**values, "search": {"steps": 10}, "calibration": {"rounds": 2, "shards_per_task": 2}, **changes})


def seconds(asked, tasks, workers=2):
    return forecast.seconds_by_stage(asked, tasks, WORK, Workers(calibrate=workers, train=workers, search=workers))


def test_pieces_go_to_whoever_is_free():
    assert in_turn([], 3) == 0 and in_turn([5.0], 3) == 5
    assert in_turn([1, 1, 1, 9], 2) == 10  # the long one is begun last
    assert longest_first([1, 1, 1, 9], 2) == 9
    assert longest_first([7, 6, 5, 4], 2) == 11 and longest_first([7, 6, 5, 4], 1) == 22


def test_a_round_is_taken_to_end_in_the_middle():
    assert [waves_expected(waves, 0.97) for waves in (1, 2, 3, 4, 8)] == [1, 2, 3, 3, 5]
    assert waves_expected(8, None) == 8


def test_stages_by_hand():
    found = seconds(spec(), [task("a"), task("b", steps=300)])
    assert list(found) == ["check", "ray", "calibrate", "train", "search", "test"]
    # Two rounds of two shards a task and worker, each wave with a mask; at the end a mask of each task alone.
    assert found["calibrate"] == 15 + 3 + 2 * (8 + 2) + 1
    assert found["train"] == 15 + 2 + 30  # the longer of two tasks, one a worker
    look = 0.25 + 140 * 0.01 + 1
    # The looks are by processes that have calibrated; the run has one of its own, which loads both tasks.
    a_run = 2 * 0.4 + 2 * (1.0 + 1) + 10 * 0.5
    disturbed = 3 * (0.25 + 40 * 0.01)
    assert found["search"] == pytest.approx(2 + look + 13 + 4 + a_run + disturbed)
    assert found["test"] == pytest.approx(look + (2 + 0.6) + 0.6 + 0.85 + 7)


def test_one_worker_takes_it_all():
    tasks = [task("a"), task("b", steps=300)]
    one, two = seconds(spec(), tasks, workers=1), seconds(spec(), tasks, workers=2)
    assert one["train"] == 13 + 12 + 32 and one["calibrate"] == 13 + 3 + 2 * (16 + 2) + 2
    assert all(one[stage] >= two[stage] for stage in two)


def test_stages_are_there_as_the_spec_has_them():
    tasks = [task("a"), task("b")]
    drawn = seconds(spec(mask={"strategy": "random"}), tasks)
    assert "calibrate" not in drawn
    # Nobody has calibrated, so the looks wait for their processes.
    assert drawn["search"] == pytest.approx(seconds(spec(), tasks)["search"] + 15)
    given = [TaskWork(**{**vars(one), "steps": {}}) for one in tasks]
    assert "train" not in seconds(spec(), given)


def test_the_dense_baseline_trains_searches_and_is_tested_too():
    both = {"steps": {"sparse": 100, "dense": 100}, "step": {"sparse": 0.1, "dense": 0.2}}
    dense = [TaskWork(**{**vars(task(name)), **both}) for name in "ab"]
    plain = seconds(spec(), [task("a"), task("b")], workers=1)
    found = seconds(spec(baseline={"enabled": True}), dense, workers=1)
    assert found["train"] == plain["train"] + 2 * 22
    assert found["test"] == pytest.approx(plain["test"] + 2 * 0.6 + 2 * 0.85)
    assert found["search"] == pytest.approx(plain["search"] + 2 * 2.65 + 4.8 + 10 * 1.5 + 2 * 3 * 0.65)


def test_runs_of_a_search_are_counted():
    several = spec(search={"lr": [0.1, 0.2], "pressure": [1.0, 2.0, 3.0], "trials": 4})
    grid = spec(search={"method": "grid", "shared_points": 5}, baseline={"enabled": True})
    assert runs_by_arm(spec(), held=True) == {"sparse": 1} and runs_by_arm(grid, held=True) == {"sparse": 5, "dense": 5}
    assert runs_by_arm(several, held=True) == {"sparse": 10} and runs_by_arm(several, held=False) == {"sparse": 6}
    either = spec(search={"merge": {"method": "auto"}}, baseline={"enabled": True})
    assert runs_by_arm(either, held=True) == {"sparse": 2, "dense": 1}


def test_inputs_are_prepared_once():
    fresh = {"train": 100, "validation": 40, "test": 60}
    cold = [TaskWork(**{**vars(task(name)), "unprepared": fresh}) for name in "ab"]
    plain, found = seconds(spec(), [task("a"), task("b")]), seconds(spec(), cold)
    assert found["train"] == pytest.approx(plain["train"] + 100 * 0.01)
    assert found["search"] == pytest.approx(plain["search"] + 40 * 0.01)  # training has seen all others
    assert found["test"] == pytest.approx(plain["test"] + 60 * 0.01)


def test_a_small_spec_is_timed_here(tmp_path):
    values = {
        "model": save_model(tmp_path / "model", "bert"),
        "tasks": [write_texts(tmp_path, "animals", 60), write_texts(tmp_path, "places", 80)],
        "output": str(tmp_path / "run"),
        "train": {"steps": 20, "batch_size": 8},
        "search": {"steps": 4, "inputs": 24},
        "baseline": {"enabled": True},
    }
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(values))
    told = CliRunner().invoke(app, ["plan", str(tmp_path / "spec.yaml"), "--timed", "--workers", "1", "--json"])
    assert told.exit_code == 0, told.output
    timed = json.loads(told.stdout)["timed"]
    assert set(timed["seconds"]) == {"check", "ray", "calibrate", "train", "search", "test"} and timed["workers"] == 1
    assert all(0 < seconds < 600 for seconds in timed["seconds"].values())
    assert timed["in all"] == pytest.approx(sum(timed["seconds"].values()), abs=0.1)
    assert not (tmp_path / "run").exists()  # nothing was made


def test_what_cannot_be_timed_is_said_in_a_line(tmp_path):
    values = {"model": "demo", "tasks": [{"name": "x", "data": "nowhere.csv"}], "output": str(tmp_path / "run")}
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(values))
    told = CliRunner().invoke(app, ["plan", str(tmp_path / "spec.yaml"), "--timed", "--tflops", "1"])
    assert told.exit_code == 0 and "not timed: " in told.output and "storage" in told.output
