"""Generations, stops and the ledger of the merge search; what Tune is told does not depend on who finishes first."""

import asyncio
import copy
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import talos_ray
from talos_ray.core.metrics import MergeObjective
from talos_ray.orchestrate.desk import Desk
from talos_ray.orchestrate.evaluation import Candidate, Evaluator, Ledger, Problem, units
from talos_ray.orchestrate.proposals import _by_grid, _by_surrogate, probes, surrogate_of
from talos_ray.orchestrate.search import Dealer
from talos_ray.spec import make_spec

GRID = [0.0, 0.25, 0.5, 0.75, 1.0]


def test_units_are_nearly_equal_and_cover_all_tasks():
    for n in range(1, 40):
        found = units([str(i) for i in range(n)])
        assert [t for u in found for t in u] == [str(i) for i in range(n)]
        assert max(map(len, found)) <= 4 and max(map(len, found)) - min(map(len, found)) <= 1


def problem(**search) -> Problem:
    spec = make_spec({"model": "demo", "tasks": ["demo:counts"], "output": "x", "search": search})
    evaluator = Evaluator((None, None), {"a": "f", "b": "g"}, Ledger("x", "base", "data"), spec)
    return Problem(evaluator, MergeObjective({"a": 0.8, "b": 0.8}, {}, 0.9), parts=2)


class HereDesk:
    """The real desk, called without Ray. Whoever would wait for an order gets None."""

    def __init__(self) -> None:
        self.desk, self.loop = Desk(), asyncio.new_event_loop()

    def __getattr__(self, name):
        async def call(*args, **kwargs):
            try:
                return await asyncio.wait_for(getattr(self.desk, name)(*args, **kwargs), 0.01)
            except TimeoutError:
                return None, 0.0

        return lambda *args, **kwargs: self.loop.run_until_complete(call(*args, **kwargs))


def played(order, lost: int = 0, failures: int = 0) -> tuple[list, dict]:
    """A whole search of two arms by three trials, whose turns come in an order of our choice; the first `lost` orders
    are lost with the trial that had them. Returns all orders that were scored, and what was found."""
    peaks = {"one": 0.5, "two": 0.75}
    problems = {arm: problem(generation=2, method="grid") for arm in peaks}
    desk = HereDesk()
    dealer = Dealer(
        {a: (p, _by_grid(p, GRID)) for a, p in problems.items()}, desk, failures, lambda arm, candidate: None
    )
    told, running, finished = [], {}, {}
    trials = [str(i) for i in range(3 + lost)]
    while trials:
        for trial in trials[:3]:
            if trial not in running and (work := desk.next(trial, finished.get(trial))[0]) is not None:
                running[trial] = work
        if not running:
            return sorted(told, key=str), dealer.found
        trial = order(sorted(running))
        work = running.pop(trial)
        if lost:
            lost -= 1
            trials.remove(trial)
            dealer.on_trial_error(0, [], SimpleNamespace(trial_id=trial))
            continue
        told.append({k: work[k] for k in ("arm", "coefficients", "parts", "bars")})
        finished[trial] = work["number"]
        reached = 1 - (work["coefficients"]["a"] - peaks[work["arm"]]) ** 2
        behind = bool(work["bars"]) and reached < work["bars"][0]
        result = {
            "number": work["number"],
            "finished": True,
            "objective": reached,
            "parts": [(reached, 0.01)] * (1 if behind else 2),
            "whole": not behind,
            "overhead": 0.0,
            "scores": {"a": reached, "b": reached},
        }
        for _ in range(2):  # told twice, as after the loss of a trial, it counts once
            dealer.on_trial_result(0, [], None, result)
    raise AssertionError("all trials were lost")


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


def test_what_a_lost_trial_had_goes_to_the_others_as_often_as_allowed():
    assert played(min, lost=2, failures=2) == played(min)
    told, found = played(min, lost=2, failures=1)
    assert found == {} and len(told) <= 2  # what the other two trials had


def test_doubt_shrinks_with_the_inputs_seen():
    p = problem()
    few, many = (p.doubt({"a": (0, n), "b": (0, n)}) for n in (25, 2500))
    assert few == pytest.approx(10 * many) and 0.1 < few < 0.3


def test_grid_optuna_and_ties_live_and_nothing_is_evaluated_twice(finished, tmp_path):
    run, values = finished
    values = {**copy.deepcopy(values), "output": str(tmp_path / "run"), "baseline": {"enabled": False}}
    shutil.copytree(run.path, values["output"])
    values["search"] = {
        "method": "optuna",
        "shared_points": 5,
        "trials": 2,
        "generation": 2,
        "parts": 2,
        "merge": {"method": "ties"},
    }
    again = talos_ray.edit(**copy.deepcopy(values))
    candidates = again.version["search"]["candidates"]
    assert len(candidates) == 7 and candidates[0]["whole"] and again.head == 2
    assert again.version["merge"]["method"] == "ties"
    again.model()  # composed anew from the stored deltas, it has the recorded bits
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


class Crowded:
    """An evaluator of a network in which edits stand in each other's way, with the square of what the others add up to: from single
    edits alone that looks harmless. `bend` says how much."""

    def __init__(self, bend: float) -> None:
        g = torch.Generator().manual_seed(0)
        self.bend, self.deltas = bend, dict.fromkeys("abcd", "delta")
        self.spec = make_spec(
            {"model": "demo", "tasks": ["demo:counts"], "output": "x", "search": {"probe_inputs": 240}}
        )
        self.labels = {t: torch.randint(3, (240,), generator=g) for t in self.deltas}
        self.base = {t: torch.randn(240, 3, generator=g) for t in self.deltas}
        self.looked, self.problem = 0, None

    def logits(self, coefficients, tasks, part=None) -> dict:
        found = {}
        for t in tasks:
            right = torch.nn.functional.one_hot(self.labels[t], 3).float()
            others = sum(a for s, a in coefficients.items() if s != t)
            help_, harm = 6 * coefficients.get(t, 0.0), self.bend * others**2
            found[t] = self.base[t] + help_ * right + harm * right.roll(1, -1)
        return found

    def submit(self, coefficients, tasks, part) -> list:
        self.looked += 1
        return []

    def counts(self, submitted) -> dict:
        return {}

    def value(self, coefficients) -> tuple[float, dict]:
        found = self.logits(coefficients, self.deltas)
        scores = {t: float((found[t].argmax(-1) == y).float().mean()) for t, y in self.labels.items()}
        return self.problem.objective(scores), scores

    def search(self):
        """What the surrogate finds, after how many candidates, and the best of the grid."""
        single = {t: self.value_of(t) for t in self.deltas}
        self.problem = Problem(self, MergeObjective(single, {}, 0.9), parts=1)
        grid = [round(0.05 * i, 2) for i in range(21)]
        run, answer = _by_surrogate(self.problem, surrogate_of(self.problem, self.labels), grid, 2), None
        number = 0
        while True:
            try:
                points = run.send(answer)
            except StopIteration as end:
                return end.value, max(self.value(dict.fromkeys(self.deltas, c))[0] for c in grid)
            answer = []
            for coefficients, predicted in points:
                reached, scores = self.value(coefficients)
                answer.append(Candidate(reached, coefficients, scores, ((reached, 0.0),), True, predicted, number))
                number += 1

    def value_of(self, task: str) -> float:
        found = self.logits({task: 1.0}, [task])[task]
        return float((found.argmax(-1) == self.labels[task]).float().mean())


def test_where_edits_do_not_get_in_each_others_way_the_first_slopes_are_enough():
    world = Crowded(0.0)
    found, grid = world.search()
    assert found.candidates[0].objective >= grid and found.looks == () and world.looked == 0 and not found.fell_back


@pytest.mark.parametrize("bend", [1.0, 2.0, 4.0, 12.0])
def test_a_surrogate_that_was_led_astray_reaches_less_far_and_looks_again(bend):
    world = Crowded(bend)
    found, grid = world.search()
    assert max(c.predicted - c.objective for c in found.candidates) > 0.1
    assert found.candidates[0].objective >= grid - 0.005
    assert 4 * len(found.looks) == world.looked and len(found.candidates) + 2 * len(found.looks) <= 25
