"""Who proposes candidates to the merge search: one coefficient shared by all tasks (the paper's protocol), and one a task.

The *surrogate* proposes from T + 1 cached evaluations (`core.surrogate`); where its predictions do not rank
candidates as the truth does, Optuna goes on. Candidates come in generations of a fixed size, so the result is a
function of the spec, not of how many candidates are scored at once or which of them is first.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence

import optuna
import torch
from ray import tune
from ray.tune.search.optuna import OptunaSearch

from talos_ray.config import Spec
from talos_ray.core.surrogate import Surrogate, rank_correlation
from talos_ray.orchestrate.evaluation import SAMPLE, Candidate, Coefficients, Found, Problem, sample
from talos_ray.orchestrate.search import Generations, Points

WORTH = 0.002  # gain that the best of a generation must promise
TRUSTED = 0.3  # rank correlation of predicted and true objectives below which the surrogate is left
JUDGED_AFTER = 6  # candidates before it is judged


def generations(problem: Problem, labels: Mapping[str, torch.Tensor]) -> Generations:
    """The search that the spec asks for; its `probes` are in the ledger. `labels`: validation labels, int64 [n] a task."""
    s = problem.search
    grid = [round(s.low + i * (s.high - s.low) / (s.shared_points - 1), 4) for i in range(s.shared_points)]
    if s.method == "surrogate":
        return _by_surrogate(problem, surrogate_of(problem, labels), grid)
    return _by_grid(problem, grid)


def probes(spec: Spec, targets: Sequence[str]) -> list[Coefficients]:
    """What the surrogate must know of its `SAMPLE`: the base, and every delta alone, in the order of `Problem.targets`."""
    return [{}, *({t: spec.search.probe} for t in sorted(targets))] if spec.search.method == "surrogate" else []


def surrogate_of(problem: Problem, labels: Mapping[str, torch.Tensor]) -> Surrogate:
    """Through the base, from the `probes` in the ledger."""
    p, s = problem, problem.search
    spec = p.evaluator.spec
    base, *single = (p.evaluator.logits(a, p.tasks, SAMPLE) for a in probes(spec, p.targets))
    slopes = {t: torch.stack([probe[t] - base[t] for probe in single]) / s.probe for t in p.tasks}
    mine = {t: labels[t][sample(spec, t, len(labels[t]))] for t in p.tasks}
    surrogate = Surrogate(base, slopes, mine, p.objective, s.low, s.high)
    return surrogate.around(torch.zeros(len(p.targets)), base, p.objective.control)


def _by_surrogate(problem: Problem, surrogate: Surrogate, grid: Sequence[float]) -> Generations:
    """The most promising shared coefficient, and what the surrogate climbs to from it; then, from generation to generation,
    what it climbs to around the best so far. Ends when nothing better is predicted, when a whole generation was no better
    than what was there, or after `search.trials` candidates with one coefficient a task."""
    p, left = problem, problem.search.trials
    ones = torch.ones(len(p.targets))
    shared = torch.tensor(grid)[:, None] * ones
    value, smaller = max(zip(surrogate.predict(shared), (-c for c in grid), strict=True))
    start = -smaller * ones

    def point(a: torch.Tensor) -> Coefficients:
        return p.point(dict(zip(p.targets, a.tolist(), strict=True)))

    def proposals(surrogate: Surrogate, starts, known) -> Points:
        return [(point(a), v) for v, a in surrogate.propose(starts, known, min(left, p.search.generation))]

    points = proposals(surrogate, [0 * ones, start], [start])
    left -= len(points)
    found = yield [(point(start), value), *points]

    def correlation() -> float:
        return rank_correlation([c.predicted for c in found], [c.objective for c in found])

    def distrusted() -> bool:
        """Its proposals are neither ranked as the truth ranks them, nor better than what they started from."""
        if len(found) < JUDGED_AFTER or max(c.objective for c in found[1:]) > max(found[0].objective, 0.0):
            return False
        return correlation() < TRUSTED

    beaten = -float("inf")
    while left > 0 and (best := min(found, key=lambda c: c.rank)).objective > beaten and not distrusted():
        beaten = best.objective
        known = [torch.tensor([c.coefficients[t] for t in p.targets]) for c in (best, *found)]
        anchored = surrogate.around(known[0], p.evaluator.logits(best.coefficients, p.tasks), best.scores)
        points = proposals(anchored, known[:1], known)
        if not points or points[0][1] <= beaten + WORTH:
            break
        left -= len(points)
        found += yield points
    agreement, fell_back = correlation(), left > 0 and distrusted()
    if fell_back:
        found = yield from _by_optuna(p, found, left)
    return Found(sorted(found, key=lambda c: c.rank), agreement, fell_back)


def _by_grid(problem: Problem, grid: Sequence[float]) -> Generations:
    """One coefficient shared by all tasks; then Optuna with one a task, if the spec wants it. A few points, evenly spread,
    come first, so that the others have something to be stopped by."""
    s, n = problem.search, len(grid)
    first = sorted({i * (n - 1) // max(1, s.generation - 1) for i in range(min(s.generation, n))})
    rest = [i for i in range(n) if i not in first]
    found: list[Candidate] = []
    for generation in (first, rest):
        if generation:
            found += yield [(problem.point(dict.fromkeys(problem.targets, grid[i])), None) for i in generation]
    if s.method == "optuna" and s.trials:
        found = yield from _by_optuna(problem, found, s.trials)
    return Found(sorted(found, key=lambda c: c.rank))


def _by_optuna(
    problem: Problem, found: list[Candidate], trials: int
) -> Generator[Points, list[Candidate], list[Candidate]]:
    """Per-task candidates by Optuna, in generations, from the two best so far. Returns `found` and what was added."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    s, seed = problem.search, problem.evaluator.spec.seed
    start = [c.coefficients for c in sorted(found, key=lambda c: c.rank)[:2]]
    space = {t: tune.uniform(s.low, s.high) for t in problem.targets}
    searcher = OptunaSearch(space=space, metric="objective", mode="max", seed=seed, points_to_evaluate=start)
    found = list(found)
    for first in range(0, trials, s.generation):
        names = [str(i) for i in range(first, min(first + s.generation, trials))]
        candidates = yield [(problem.point(searcher.suggest(name)), None) for name in names]
        for name, candidate in zip(names, candidates, strict=True):
            searcher.on_trial_complete(name, {"objective": candidate.objective})
        found += candidates
    return found
