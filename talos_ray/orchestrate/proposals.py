"""Who proposes candidates to the merge search: one coefficient shared by all tasks (the paper's protocol), and one a task.

The *surrogate* proposes from T + 1 cached evaluations (`core.surrogate`), and takes them anew where it was led astray; where its
predictions still do not rank candidates as the truth does, Optuna goes on. Candidates come in generations of a fixed size, so the result is a
function of the spec, not of how many candidates are scored at once or which of them is first.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace

import optuna
import torch
from ray import tune
from ray.tune.search.optuna import OptunaSearch

from talos_ray.config import Spec
from talos_ray.core.surrogate import APART, Surrogate, rank_correlation
from talos_ray.orchestrate.evaluation import SAMPLE, Candidate, Coefficients, Found, Problem, sample
from talos_ray.orchestrate.search import Generations, Points

WORTH = 0.002  # gain that the best of a generation must promise
KEPT = 0.5  # share of the promised gain that the truth must give: else the linear model reaches too far
TRUSTED = 0.3  # rank correlation of predicted and true objectives below which the surrogate is left
JUDGED_AFTER = 6  # candidates before it is judged


def generations(problem: Problem, labels: Mapping[str, torch.Tensor]) -> Generations:
    """The search that the spec asks for; its `probes` are in the ledger. `labels`: validation labels, int64 [n] a task."""
    s = problem.search
    grid = [round(s.low + i * (s.high - s.low) / (s.shared_points - 1), 4) for i in range(s.shared_points)]
    if s.method == "surrogate":
        surrogate = surrogate_of(problem, labels)
        share = sum(map(len, surrogate.labels.values())) / sum(len(labels[t]) for t in surrogate.labels)
        return _by_surrogate(problem, surrogate, grid, math.ceil(len(problem.targets) * share))
    return _by_grid(problem, grid)


def probes(spec: Spec, targets: Sequence[str]) -> list[Coefficients]:
    """What the surrogate must know of its `SAMPLE`: the base, and every delta alone, in the order of `Problem.targets`."""
    return [{}, *({t: spec.search.probe} for t in sorted(targets))] if spec.search.method == "surrogate" else []


def surrogate_of(problem: Problem, labels: Mapping[str, torch.Tensor]) -> Surrogate:
    """Through the base, from the `probes` in the ledger."""
    p, s = problem, problem.search
    spec = p.evaluator.spec
    base, *single = (p.evaluator.logits(a, p.tasks, SAMPLE) for a in probes(spec, p.targets))
    slopes = _slopes(base, single, [s.probe] * len(single))
    surrogate = Surrogate(base, slopes, sampled_labels(p, labels), p.objective, s.low, s.high)
    return surrogate.around(torch.zeros(len(p.targets)), base, p.objective.control)


def _by_surrogate(problem: Problem, surrogate: Surrogate, grid: Sequence[float], price: int) -> Generations:
    """The most promising shared coefficient, and what the surrogate climbs to from it; again with half of that at most, as long as
    the truth gives less than half of the gain that was promised. Then, from generation to generation, what it climbs to around the
    best so far; after a generation that was no better, with slopes that are taken there. Ends when nothing better is predicted, when
    slopes from the best itself lead to nothing better, or after `search.trials` candidates with one coefficient a task, among which
    new slopes count as the evaluations that they are worth (`price`)."""
    p, left = problem, problem.search.trials
    ones = torch.ones(len(p.targets))
    nothing = surrogate.predict(0 * ones[None])[0]
    found: list[Candidate] = []

    def point(a: torch.Tensor) -> Coefficients:
        return p.point(dict(zip(p.targets, a.tolist(), strict=True)))

    def array(coefficients: Coefficients) -> torch.Tensor:
        return torch.tensor([coefficients[t] for t in p.targets])

    def known() -> list[torch.Tensor]:
        return [array(c.coefficients) for c in found]

    def proposals(surrogate: Surrogate, starts, others) -> Points:
        return [(point(a), v) for v, a in surrogate.propose(starts, others, min(left, p.search.generation))]

    def correlation() -> float:
        return rank_correlation([c.predicted for c in found], [c.objective for c in found])

    def distrusted() -> bool:
        """Its proposals are neither ranked as the truth ranks them, nor better than what they started from."""
        if len(found) < JUDGED_AFTER or max(c.objective for c in found[1:]) > max(found[0].objective, 0.0):
            return False
        return correlation() < TRUSTED

    low, high = p.search.low, p.search.high
    reach, least = max(abs(low), abs(high)), APART * (high - low)
    while True:
        near = surrogate.within(0 * ones, reach)
        inside = [c for c in grid if abs(c) <= reach]
        value, smaller = max(zip(near.predict(torch.tensor(inside)[:, None] * ones), (-c for c in inside), strict=True))
        start = -smaller * ones
        points = proposals(near, [0 * ones, start], [start, *known()])
        left -= len(points)
        found += yield [(point(start), value), *points]
        best = min(found, key=lambda c: c.rank)
        overshot = best.objective - nothing < KEPT * (best.predicted - nothing)
        if left <= 0 or not overshot or abs(smaller) / 2 < max(least, min(map(abs, grid))):
            break
        reach, left = abs(smaller) / 2, left - 1

    beaten, taken, looks = -float("inf"), None, []
    while left > 0:
        best = min(found, key=lambda c: c.rank)
        if best.objective > beaten:
            beaten, at = best.objective, array(best.coefficients)
        elif taken is at or left <= price:
            break
        else:
            surrogate, taken = replace(surrogate, slopes=slopes_at(p, best.coefficients, p.targets)), at
            looks.append(len(found))
            left -= price
        anchored = surrogate.around(at, p.evaluator.logits(best.coefficients, p.tasks), best.scores)
        points = proposals(anchored.within(at, reach), [at], [at, *known()])
        if not points or points[0][1] <= beaten + WORTH:
            break
        left -= len(points)
        found += yield points
    agreement, fell_back = correlation(), left > 0 and distrusted()
    if fell_back:
        found = yield from _by_optuna(p, found, left)
    return Found(sorted(found, key=lambda c: c.rank), agreement, fell_back, tuple(looks))


def sampled_labels(problem: Problem, labels: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Those of what the surrogate looks at, of all validation labels."""
    return {t: labels[t][sample(problem.evaluator.spec, t, len(labels[t]))] for t in problem.tasks}


def slopes_at(problem: Problem, anchor: Coefficients, rows: Sequence[str]) -> dict[str, torch.Tensor]:
    """Change of the sample's logits with each coefficient of `rows`, at a candidate that was scored: task -> float32 [rows, n, C]. Each
    is moved by half a probe."""
    p, s = problem, problem.search
    steps = [s.probe / 2 if anchor[r] + s.probe / 2 <= s.high else -s.probe / 2 for r in rows]
    points = [p.point({**anchor, r: anchor[r] + step}) for r, step in zip(rows, steps, strict=True)]
    p.evaluator.counts([ref for a in points for ref in p.evaluator.submit(a, p.tasks, SAMPLE)])
    return _slopes(p.evaluator.logits(anchor, p.tasks), [p.evaluator.logits(a, p.tasks, SAMPLE) for a in points], steps)


def _slopes(
    here: Mapping[str, torch.Tensor], beside: Sequence[Mapping], steps: Sequence[float]
) -> dict[str, torch.Tensor]:
    return {t: torch.stack([(b[t] - f) / step for b, step in zip(beside, steps, strict=True)]) for t, f in here.items()}


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
