"""Merge search on Ray Tune: a trial scores one candidate on validation data, composed in place by warm workers.

One coefficient shared by all tasks (the paper's protocol), and one a task. The *surrogate* proposes from T + 1
cached evaluations (`core.surrogate`); where its predictions do not rank candidates as the
truth does, Optuna goes on. Candidates come in generations of a fixed size, and a candidate is stopped early by the
best of the generations before its own, so the result is a function of the spec, not of how many trials run at once
or which of them is first. All arms are searched in one Tune run: while one waits for its generation, the others go on.
What only the workers need is imported where they need it: a trial's process loads this file too, and not the data's libraries.
The ledger on storage makes sure that nothing is evaluated twice, whatever happens to Tune.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass

import optuna
import ray
import torch
from ray import tune
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from talos_ray.config import Spec
from talos_ray.core.layout import key_of
from talos_ray.core.metrics import MergeObjective, normalized_accuracy
from talos_ray.core.surrogate import Surrogate, rank_correlation
from talos_ray.errors import TalosError
from talos_ray.orchestrate.cluster import WARM, options, root_cause
from talos_ray.storage.run_folder import RunFolder

Coefficients = dict[str, float]
Counts = dict[str, tuple[int, int]]  # task -> (right predictions, inputs)
Logits = dict[str, torch.Tensor]
Part = tuple[int, int]  # (i, n): the i-th of n parts of the validation data
WHOLE: Part = (0, 1)

UNIT = 4  # most tasks that one worker scores in one go
SURROGATE_ROWS = 1000  # validation inputs of one task that the surrogate looks at
WORTH = 0.002  # gain that the best of a generation must promise
TRUSTED = 0.3  # rank correlation of predicted and true objectives below which the surrogate is left
JUDGED_AFTER = 6  # candidates before it is judged
NOTHING = {"CPU": 0, "memory": 1}  # a trial only waits; Ray Tune wants at least something, and a byte is least
DOUBT = 2.0  # standard errors by which a candidate must be behind before it is stopped


@dataclass(frozen=True)
class Ledger:
    """What was evaluated, on storage, by (deltas in use, coefficients, validation data, tasks and part scored)."""

    folder: str
    base: str
    data: str

    def key(
        self, deltas: Mapping[str, str], coefficients: Mapping[str, float], tasks: Sequence[str], part: Part
    ) -> str:
        used = {t: [f, coefficients[t]] for t, f in deltas.items() if coefficients.get(t)}
        return key_of([self.base, self.data, used, sorted(tasks), part])


@ray.remote(**WARM)
def measure(shared, arm, coefficients: Mapping[str, float], tasks: Sequence[str], part: Part, ledger: Ledger) -> Counts:
    """Right predictions of one candidate on a part of the validation data of `tasks`: from the ledger, or by evaluation.
    What is stored holds the logits of the surrogate's rows too, so that a search that was cut off goes on as if it had not been."""
    from talos_ray.orchestrate.worker import workbench

    folder = RunFolder(ledger.folder)
    key = ledger.key({t: f for t, _, f in arm.deltas}, coefficients, tasks, part)
    if (found := folder.load_trial(key)) is not None:
        return {t: tuple(c) for t, c in found[0]["counts"].items()}
    bench, started = workbench(shared), time.perf_counter()
    bench.compose(arm, coefficients)
    counts, logits = {}, {}
    for task in tasks:
        counts[task], kept = bench.correct(task, "validation", SURROGATE_ROWS if part == WHOLE else 0, part)
        logits[task] = kept
    spent = round(time.perf_counter() - started, 4)
    info = {"arm": arm.name, "coefficients": dict(coefficients), "part": part, "counts": counts, "seconds": spent}
    folder.save_trial(key, info, logits)
    return counts


@ray.remote(**WARM)
def evaluate(shared, arm, coefficients: Mapping[str, float], tasks: Sequence[str], split: str) -> Counts:
    """Right predictions of base + sum of coefficient x delta on some tasks."""
    from talos_ray.orchestrate.worker import workbench

    bench = workbench(shared)
    bench.compose(arm, coefficients)
    return {t: bench.correct(t, split)[0] for t in tasks}


@dataclass(frozen=True)
class Evaluator:
    """Has candidates of one arm scored on validation data, by whatever workers are free.

    `refs`: of the shared base and of the arm, in a container, so that Ray passes them on as they are.
    `deltas`: the arm's tasks and their deltas' fingerprints.
    """

    refs: tuple
    deltas: Mapping[str, str]
    ledger: Ledger
    spec: Spec

    def submit(self, coefficients: Mapping[str, float], tasks: Sequence[str], part: Part = WHOLE) -> list:
        """References of the counts, a unit of tasks each."""
        # A strategy is named, or Ray would look for the CPUs in the trial's own placement group.
        remote = measure.options(**options(self.spec.cluster), scheduling_strategy="DEFAULT")
        return [remote.remote(*self.refs, coefficients, unit, part, self.ledger) for unit in _units(tasks)]

    def counts(self, submitted: Sequence) -> Counts:
        """Waits for what was submitted."""
        return {t: c for unit in ray.get(list(submitted)) for t, c in unit.items()}

    def logits(self, coefficients: Mapping[str, float], tasks: Sequence[str]) -> Logits:
        """Of a candidate that was scored on all validation data: float32 [n, C] a task."""
        folder, found = RunFolder(self.ledger.folder), {}
        for unit in _units(tasks):
            _, logits = folder.load_trial(self.ledger.key(self.deltas, coefficients, unit, WHOLE))
            found |= logits
        return found


def _units(tasks: Sequence[str]) -> list[tuple[str, ...]]:
    """Tasks in groups of nearly equal size, at most UNIT each."""
    n = -(-len(tasks) // UNIT)
    return [tuple(tasks[i * len(tasks) // n : (i + 1) * len(tasks) // n]) for i in range(n)]


@dataclass(frozen=True)
class Problem:
    """What is searched: an arm's coefficients, by an objective over target and control tasks."""

    evaluator: Evaluator
    objective: MergeObjective
    parts: int  # of the validation data, no more than the smallest task has inputs

    @property
    def search(self):
        return self.evaluator.spec.search

    @property
    def tasks(self) -> tuple[str, ...]:
        return (*self.objective.single, *self.objective.control)

    @property
    def targets(self) -> tuple[str, ...]:
        return tuple(sorted(self.evaluator.deltas))

    def point(self, values: Mapping[str, float]) -> Coefficients:
        """One coefficient a task, rounded to what is stored."""
        return {t: round(float(values[t]), 4) for t in self.targets}

    def doubt(self, counts: Counts) -> float:
        """How far two candidates' mean normalized accuracies on the inputs counted may lie apart by chance alone."""
        single = self.objective.single
        variance = sum(0.25 / counts[t][1] / max(s, 1e-9) ** 2 for t, s in single.items()) / len(single) ** 2
        return DOUBT * (2 * variance) ** 0.5


@dataclass(frozen=True)
class Candidate:
    """One evaluated point: `parts` holds its mean normalized accuracy and `doubt` after each part of the validation data,
    `predicted` what the surrogate promised (None where nothing was). Not `whole`: stopped before the last part."""

    objective: float
    coefficients: Coefficients
    scores: dict[str, float]
    parts: tuple[tuple[float, float], ...]
    whole: bool
    predicted: float | None

    @property
    def rank(self):
        """The best sorts first; ties go to the smaller coefficients."""
        size = sum(abs(a) for a in self.coefficients.values())
        return (not self.whole, -self.objective, size, sorted(self.coefficients.items()))


@dataclass(frozen=True)
class Found:
    """Every candidate, the best first, and how well the surrogate ranked them (None where it was not used)."""

    candidates: list[Candidate]
    correlation: float | None = None
    fell_back: bool = False


# A search is a generator: it yields generations of points, is sent their candidates in the same order, and returns them all.
Points = list[tuple[Coefficients, float | None]]  # with what was predicted
Generations = Generator[Points, list[Candidate], Found]


def generations(problem: Problem, labels: Mapping[str, torch.Tensor]) -> Generations:
    """The search that the spec asks for; its `probes` are in the ledger. `labels`: validation labels, int64 [n] a task."""
    s = problem.search
    grid = [round(s.low + i * (s.high - s.low) / (s.shared_points - 1), 4) for i in range(s.shared_points)]
    if s.method == "surrogate":
        return _by_surrogate(problem, _surrogate(problem, labels), grid)
    return _by_grid(problem, grid)


def probes(spec: Spec, targets: Sequence[str]) -> list[Coefficients]:
    """What the surrogate must know: the base, and every delta alone, in the order of `Problem.targets`."""
    return [{}, *({t: spec.search.probe} for t in sorted(targets))] if spec.search.method == "surrogate" else []


def _surrogate(problem: Problem, labels: Mapping[str, torch.Tensor]) -> Surrogate:
    from talos_ray.orchestrate.worker import sampled_rows

    p, s = problem, problem.search
    base, *single = (p.evaluator.logits(a, p.tasks) for a in probes(p.evaluator.spec, p.targets))
    slopes = {t: torch.stack([probe[t] - base[t] for probe in single]) / s.probe for t in p.tasks}
    rows = {t: labels[t][sampled_rows(len(labels[t]), SURROGATE_ROWS)] for t in p.tasks}
    return Surrogate(base, slopes, rows, p.objective, s.low, s.high)


def _by_surrogate(problem: Problem, surrogate: Surrogate, grid: Sequence[float]) -> Generations:
    """The most promising shared coefficient, and what the surrogate climbs to from it; then, from generation to generation,
    what it climbs to around the best so far. Ends when nothing better is predicted, when a whole generation was no better
    than what was there, or after `search.trials` candidates with one coefficient a task."""
    p, left = problem, problem.search.trials
    ones = torch.ones(len(p.targets))
    value, smaller = max((surrogate.predict(c * ones), -c) for c in grid)
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
        return len(found) >= JUDGED_AFTER and correlation() < TRUSTED

    beaten = -float("inf")
    while left > 0 and (best := min(found, key=lambda c: c.rank)).objective > beaten and not distrusted():
        beaten = best.objective
        known = [torch.tensor([c.coefficients[t] for t in p.targets]) for c in (best, *found)]
        anchored = surrogate.around(known[0], p.evaluator.logits(best.coefficients, p.tasks))
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


class Trial(tune.Trainable):
    """One candidate, part by part. It only asks and counts: what is heavy stays warm in the workers that answer. It
    ends itself where the best candidate of the generations before its own is out of reach."""

    def setup(self, config: dict, problems: Mapping[str, Problem] | None = None) -> None:
        logging.getLogger("ray.tune").setLevel(logging.ERROR)
        self.problems = problems
        self.reset_config(config)

    def reset_config(self, config: dict) -> bool:
        self.problem = self.problems[config["arm"]]
        self.counts: Counts = {}
        self.parts: list[tuple[float, float]] = []
        self.spent = 0.0
        return True

    def step(self) -> dict:
        p, started, n = self.problem, time.perf_counter(), self.config["parts"]
        submitted = p.evaluator.submit(self.config["coefficients"], p.tasks, (len(self.parts), n))
        for task, (right, seen) in p.evaluator.counts(submitted).items():
            before = self.counts.get(task, (0, 0))
            self.counts[task] = (before[0] + right, before[1] + seen)
        scores = {t: right / seen for t, (right, seen) in self.counts.items()}
        reached = normalized_accuracy({t: scores[t] for t in p.objective.single}, p.objective.single)
        self.parts.append((reached, p.doubt(self.counts)))
        self.spent += time.perf_counter() - started
        whole, bars = len(self.parts) == n, self.config["bars"]
        behind = not whole and bool(bars) and reached < bars[len(self.parts) - 1]
        return {
            "objective": p.objective(scores), "scores": scores, "done": whole or behind, "whole": whole,
            "parts": list(self.parts), "seconds": self.spent,
        }  # fmt: skip


class Proposals(Searcher):
    """Hands the generations of all arms to Tune, and Tune's results back to them.

    Args:
        searches: arm -> (its problem, its generations).
        at_once: trials under way.
        max_failures: trials that may be lost, and are started again, before the search is given up.
        on_candidate: called with the arm's name and each of its candidates.
    """

    def __init__(
        self,
        searches: Mapping[str, tuple[Problem, Generations]],
        at_once: int,
        max_failures: int,
        on_candidate: Callable,
    ) -> None:
        super().__init__(metric="objective", mode="max")
        self.searches, self.at_once, self.on_candidate = dict(searches), at_once, on_candidate
        self.failures_left = max_failures
        self.queue: list[tuple[str, int]] = []
        self.points: dict[str, Points] = {}
        self.results: dict[str, dict[int, Candidate]] = {}
        self.best: dict[str, Candidate | None] = dict.fromkeys(self.searches)
        self.pending: dict[str, tuple[str, int, float]] = {}
        self.found: dict[str, Found] = {}
        self.overheads: list[float] = []  # seconds of a trial beyond its evaluation
        for arm in self.searches:
            self._send(arm, None)

    def __getstate__(self) -> dict:  # Tune saves its searcher; the ledger is what outlives us
        return {}

    def save(self, checkpoint_path: str) -> None: ...

    def restore(self, checkpoint_path: str) -> None: ...

    def _send(self, arm: str, candidates: list[Candidate] | None) -> None:
        try:
            self.points[arm] = self.searches[arm][1].send(candidates)
        except StopIteration as end:
            self.found[arm] = end.value
            return
        self.results[arm] = {}
        self.queue += [(arm, i) for i in range(len(self.points[arm]))]

    def suggest(self, trial_id: str):
        if self.queue and len(self.pending) < self.at_once:
            arm, i = self.queue.pop(0)
            self.pending[trial_id] = (arm, i, time.monotonic())
            coefficients, predicted = self.points[arm][i]
            best = self.best[arm]
            parts = 1 if predicted is not None else self.searches[arm][0].parts
            reachable = best is not None and best.objective >= 0 and len(best.parts) == parts
            bars = [value - doubt for value, doubt in best.parts] if reachable else []
            return {"arm": arm, "coefficients": coefficients, "parts": parts, "bars": bars}
        return None if self.pending else self.FINISHED

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        arm, i, since = self.pending.pop(trial_id, (None, 0, 0.0))
        if arm is None:
            return
        if error or result is None:
            # By our own count: Tune gives a trial up when two calls to a dead actor fail one after the other.
            self.failures_left -= 1
            self.queue = [(arm, i), *self.queue] if self.failures_left >= 0 else []
            return
        p, (coefficients, predicted) = self.searches[arm][0], self.points[arm][i]
        self.overheads.append(time.monotonic() - since - result["seconds"])
        candidate = Candidate(
            result["objective"],
            coefficients,
            {t: result[f"scores/{t}"] for t in p.tasks},  # Tune hands its results over flattened
            tuple(map(tuple, result["parts"])),
            result["whole"],
            predicted,
        )
        self.results[arm][i] = candidate
        self.on_candidate(arm, candidate)
        if len(self.results[arm]) == len(self.points[arm]):
            candidates = [self.results[arm][i] for i in range(len(self.points[arm]))]
            best = [c for c in (self.best[arm], *candidates) if c is not None]
            self.best[arm] = min(best, key=lambda c: c.rank)
            self._send(arm, candidates)


def run(
    searches: Mapping[str, tuple[Problem, Generations]],
    slots: int,
    scratch: str,
    on_candidate: Callable[[str, Candidate], None],
) -> tuple[dict[str, Found], float]:
    """All searches in one Tune run. Returns what each found, and the median of the seconds that a trial took beyond
    its evaluation.

    Args:
        slots: workers that evaluate at once.
        scratch: a folder for Tune's own state, of no use afterwards.

    Raises:
        TalosError: a trial failed more often than `cluster.max_failures`.
    """
    problems = {arm: problem for arm, (problem, _) in searches.items()}
    units = min(len(_units(p.tasks)) for p in problems.values())
    spec = next(iter(problems.values())).evaluator.spec
    proposals = Proposals(searches, 1 + -(-slots // units), spec.cluster.max_failures, on_candidate)
    trainable = tune.with_resources(tune.with_parameters(Trial, problems=problems), NOTHING)
    results = tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            metric="objective", mode="max", search_alg=proposals, num_samples=len(problems) * spec.search.most + spec.cluster.max_failures, reuse_actors=True
        ),
        run_config=tune.RunConfig(
            storage_path=scratch, verbose=0, checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
        ),
    ).fit()  # fmt: skip
    if len(proposals.found) < len(problems):
        raise TalosError(f"a trial of the merge search failed: {root_cause(results.errors[0])}")
    return proposals.found, statistics.median(proposals.overheads)
