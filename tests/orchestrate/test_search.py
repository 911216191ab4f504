"""Generations, stops and the ledger of the merge search; what Tune is told does not depend on who finishes first."""

import copy
import shutil
from pathlib import Path

import pytest

import talos_ray
from talos_ray.core.metrics import MergeObjective
from talos_ray.orchestrate.search import Evaluator, Ledger, Problem, Proposals, _by_grid, _units, probes
from talos_ray.spec import make_spec

GRID = [0.0, 0.25, 0.5, 0.75, 1.0]


def test_units_are_nearly_equal_and_cover_all_tasks():
    for n in range(1, 40):
        units = _units([str(i) for i in range(n)])
        assert [t for u in units for t in u] == [str(i) for i in range(n)]
        assert max(map(len, units)) <= 4 and max(map(len, units)) - min(map(len, units)) <= 1


def problem(**search) -> Problem:
    spec = make_spec({"model": "demo", "tasks": ["demo:counts"], "output": "x", "search": search})
    evaluator = Evaluator((None, None), {"a": "f", "b": "g"}, Ledger("x", "base", "data"), spec)
    return Problem(evaluator, MergeObjective({"a": 0.8, "b": 0.8}, {}, 0.9), parts=2)


def played(order) -> tuple[list, dict]:
    """A whole search of two arms, whose trials finish in an order of our choice. Returns all that was suggested, and what was found."""
    peaks = {"one": 0.5, "two": 0.75}
    problems = {arm: problem(generation=2, method="grid") for arm in peaks}
    proposals = Proposals({a: (p, _by_grid(p, GRID)) for a, p in problems.items()}, 3, 0, lambda arm, candidate: None)
    told, running = [], {}
    for n in range(100):
        config = proposals.suggest(str(n))
        if config == Proposals.FINISHED:
            return sorted(told, key=str), proposals.found
        if config is not None:
            running[str(n)] = config
            told.append({k: config[k] for k in ("arm", "coefficients", "parts", "bars")})
            continue
        trial = order(sorted(running))
        config = running.pop(trial)
        reached = 1 - (config["coefficients"]["a"] - peaks[config["arm"]]) ** 2
        behind = bool(config["bars"]) and reached < config["bars"][0]
        result = {
            "objective": reached,
            "parts": [(reached, 0.01)] * (1 if behind else 2),
            "whole": not behind,
            "seconds": 0.0,
        }
        proposals.on_trial_complete(trial, {**result, "scores/a": reached, "scores/b": reached})
    raise AssertionError("the search does not end")


def test_what_is_suggested_does_not_depend_on_who_finishes_first():
    first, found = played(min)
    last, same = played(max)
    assert first == last and found == same
    assert {a: f.candidates[0].coefficients["a"] for a, f in found.items()} == {"one": 0.5, "two": 0.75}
    assert len(first) == 2 * len(GRID)


def test_only_generations_before_its_own_stop_a_candidate():
    told, found = played(min)
    bars = {(t["arm"], t["coefficients"]["a"]): t["bars"] for t in told}
    assert all(bars[arm, a] == [] for arm in found for a in (0.0, 1.0))  # the first generation
    assert bars["two", 0.5] == pytest.approx([1 - 0.25**2 - 0.01] * 2)
    stopped = [c.coefficients["a"] for c in found["two"].candidates if not c.whole]
    assert stopped == [0.25] and found["two"].candidates[-1].coefficients["a"] == 0.25  # and never wins


def test_a_lost_trial_is_started_again_as_often_as_allowed():
    for allowed, lost in ((2, 2), (1, 2)):
        p = problem(generation=2, method="grid")
        proposals = Proposals({"one": (p, _by_grid(p, GRID[:2]))}, 1, allowed, lambda arm, candidate: None)
        asked = []
        for n in range(20):
            config = proposals.suggest(str(n))
            if config == Proposals.FINISHED:
                break
            asked.append(config["coefficients"]["a"])
            result = {
                "objective": 1.0,
                "parts": [(1.0, 0.1)] * 2,
                "whole": True,
                "seconds": 0.0,
                "scores/a": 1.0,
                "scores/b": 1.0,
            }
            proposals.on_trial_complete(str(n), None if n < lost else result, error=n < lost)
        assert asked == ([0.0, 0.0, 0.0, 0.25] if allowed == 2 else [0.0, 0.0])
        assert set(proposals.found) == ({"one"} if allowed == 2 else set())


def test_doubt_shrinks_with_the_inputs_seen():
    p = problem()
    few, many = (p.doubt({"a": (0, n), "b": (0, n)}) for n in (25, 2500))
    assert few == pytest.approx(10 * many) and 0.1 < few < 0.3


def test_grid_and_optuna_live_and_nothing_is_evaluated_twice(finished, tmp_path):
    run, values = finished
    values = {**copy.deepcopy(values), "output": str(tmp_path / "run"), "baseline": {"enabled": False}}
    shutil.copytree(run.path, values["output"])
    values["search"] = {"method": "optuna", "shared_points": 5, "trials": 2, "generation": 2, "parts": 2}
    again = talos_ray.edit(**copy.deepcopy(values))
    candidates = again.version["search"]["candidates"]
    assert len(candidates) == 7 and candidates[0]["whole"] and again.head == 2
    shared = [c for c in candidates if len(set(c["coefficients"].values())) == 1]
    assert {next(iter(c["coefficients"].values())) for c in shared} >= set(GRID)
    trials = {p: p.stat().st_mtime_ns for p in Path(values["output"]).glob("trials/*")}
    last = Path(values["output"]) / "versions/0002.json"
    coefficients, scores = again.coefficients, again.scores
    again.rollback(1)
    last.unlink()  # as if the run had been killed before it wrote its version
    once_more = talos_ray.edit(**copy.deepcopy(values))
    assert (once_more.coefficients, once_more.scores) == (coefficients, scores)
    assert {p: p.stat().st_mtime_ns for p in Path(values["output"]).glob("trials/*")} == trials


def test_probes_stand_in_the_order_of_the_coefficients_whatever_the_order_of_the_spec():
    p = problem()
    assert [next(iter(a)) for a in probes(p.evaluator.spec, ["b", "a"])[1:]] == list(p.targets)
