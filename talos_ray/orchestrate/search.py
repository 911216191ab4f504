"""Merge search on Ray Tune: a trial composes one candidate in place and scores it on validation data.

One coefficient shared by all tasks (the paper's protocol), and one a task. The *surrogate* proposes from T + 1
cached evaluations (`core.surrogate`); where its predictions do not rank candidates as the
truth does, Optuna goes on. Candidates come in generations of a fixed size, so the result is a function of the
spec, not of how many trials run at once. The ledger on storage makes sure that no candidate is evaluated
twice, whatever happens to Tune.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import optuna
import ray
import torch
from ray import tune
from ray.tune.search import ConcurrencyLimiter, Searcher
from ray.tune.search.optuna import OptunaSearch

from talos_ray.config import Spec
from talos_ray.core.layout import key_of
from talos_ray.core.metrics import MergeObjective
from talos_ray.core.surrogate import Surrogate, rank_correlation
from talos_ray.errors import TalosError
from talos_ray.orchestrate.cluster import options, resources, root_cause
from talos_ray.orchestrate.worker import Arm, sampled_rows, workbench
from talos_ray.storage.run_folder import RunFolder

Coefficients = dict[str, float]
Counts = dict[str, tuple[int, int]]  # task -> (right predictions, inputs)
Logits = dict[str, torch.Tensor]

SURROGATE_ROWS = 1000  # validation inputs of one task that the surrogate looks at
WORTH = 0.002  # gain that the best of a generation must promise
TRUSTED = 0.3  # rank correlation of predicted and true objectives below which the surrogate is left
JUDGED_AFTER = 6  # candidates before it is judged


@dataclass(frozen=True)
class Ledger:
    """Evaluated candidates on storage, by (deltas in use, coefficients, validation data, tasks scored)."""

    folder: str
    base: str
    data: str

    def key(self, arm: Arm, coefficients: Mapping[str, float], tasks: Sequence[str]) -> str:
        used = {t: [f, coefficients[t]] for t, _, f in arm.deltas if coefficients.get(t)}
        return key_of([self.base, self.data, used, sorted(tasks)])

    def measure(self, shared, arm: Arm, coefficients: Mapping[str, float], tasks: Sequence[str]) -> dict[str, float]:
        """Validation accuracy of one candidate on `tasks`, from storage or by evaluation. What is stored holds the
        logits of the surrogate's rows too, so that a search that was cut off goes on as if it had not been."""
        folder, key = RunFolder(self.folder), self.key(arm, coefficients, tasks)
        if (found := folder.load_trial(key)) is not None:
            return found[0]["scores"]
        bench, started = workbench(shared), time.perf_counter()
        bench.compose(arm, coefficients)
        scores, logits = {}, {}
        for task in tasks:
            (right, n), kept = bench.correct(task, "validation", SURROGATE_ROWS)
            scores[task], logits[task] = right / n, kept
        spent = round(time.perf_counter() - started, 4)
        info = {"arm": arm.name, "coefficients": dict(coefficients), "scores": scores, "seconds": spent}
        folder.save_trial(key, info, logits)
        return scores

    def logits(self, arm: Arm, coefficients: Mapping[str, float], tasks: Sequence[str]) -> Logits:
        """What `measure` stored, float32 [n, C] a task."""
        return RunFolder(self.folder).load_trial(self.key(arm, coefficients, tasks))[1]


@ray.remote
def evaluate(shared, arm: Arm, coefficients: Mapping[str, float], tasks: Sequence[str], split: str) -> Counts:
    """Right predictions of base + sum of coefficient x delta on some tasks."""
    bench = workbench(shared)
    bench.compose(arm, coefficients)
    return {t: bench.correct(t, split)[0] for t in tasks}


@ray.remote
def measure(
    shared, arm: Arm, coefficients: Mapping[str, float], tasks: Sequence[str], ledger: Ledger
) -> dict[str, float]:
    """One entry of the ledger, on validation data."""
    return ledger.measure(shared, arm, coefficients, tasks)


class Trial(tune.Trainable):
    """One candidate. Ray Tune resets and reuses the actor, so model and data stay warm."""

    def setup(self, config: dict, problem: Problem | None = None) -> None:
        logging.getLogger("ray.tune").setLevel(logging.ERROR)
        self.problem = problem

    def reset_config(self, config: dict) -> bool:
        return True

    def step(self) -> dict:
        p = self.problem
        scores = p.ledger.measure(ray.get(p.shared[0]), p.arm, p.spread(self.config), p.tasks)
        return {"objective": p.objective(scores), "scores": scores, "done": True}


@dataclass(frozen=True)
class Problem:
    """What is searched: an arm's coefficients, by an objective over target and control tasks."""

    shared: tuple  # of one reference: inside a container Ray passes it on as it is
    spec: Spec
    arm: Arm
    objective: MergeObjective
    ledger: Ledger

    @property
    def tasks(self) -> tuple[str, ...]:
        return (*self.objective.single, *self.objective.control)

    @property
    def targets(self) -> tuple[str, ...]:
        return tuple(t for t, _, _ in self.arm.deltas)

    def spread(self, config: Mapping[str, float]) -> Coefficients:
        """Trial parameters -> one coefficient a task; `shared` stands for all of them."""
        return {t: round(float(config.get("shared", config.get(t, 0.0))), 4) for t in self.targets}


@dataclass(frozen=True)
class Candidate:
    """One truly evaluated point, and what was predicted of it (None where nothing was)."""

    objective: float
    coefficients: Coefficients
    scores: dict[str, float]
    predicted: float | None = None

    @property
    def rank(self):
        """The best sorts first; ties go to the smaller coefficients."""
        return (-self.objective, sum(abs(a) for a in self.coefficients.values()), sorted(self.coefficients.items()))


@dataclass(frozen=True)
class Found:
    """Every candidate, the best first, and how well the surrogate ranked them (None where it was not used)."""

    candidates: list[Candidate]
    correlation: float | None = None
    fell_back: bool = False


class SurrogateSearch(Searcher):
    """Proposes generations: the most promising shared coefficient, then what the surrogate climbs to from the best so far.
    It ends when nothing better is predicted, when a whole generation was no better than what was there, or after
    `trials` candidates with one coefficient a task."""

    def __init__(self, problem: Problem, surrogate: Surrogate, shared: Sequence[float], trials: int) -> None:
        super().__init__(metric="objective", mode="max")
        self.problem, self.surrogate, self.left = problem, surrogate, trials
        whole = torch.ones(len(problem.targets))
        value, smaller = max((surrogate.predict(c * whole), -c) for c in shared)
        start = -smaller * whole
        self.queue = [(value, start), *self._proposals(surrogate, [0 * whole, start], [start])]
        self.pending: dict[str, tuple[float, torch.Tensor]] = {}
        self.found: list[Candidate] = []
        self.beaten = -float("inf")  # what the generation under way has to beat

    def __getstate__(self) -> dict:  # Tune saves its searcher; the ledger is what outlives us
        return {}

    def save(self, checkpoint_path: str) -> None: ...

    def restore(self, checkpoint_path: str) -> None: ...

    def suggest(self, trial_id: str):
        if not self.queue:
            if self.pending:
                return None
            self.queue = self._next_generation()
            if not self.queue:
                return self.FINISHED
        self.pending[trial_id] = self.queue.pop(0)
        return dict(zip(self.problem.targets, self.pending[trial_id][1].tolist(), strict=True))

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        predicted, a = self.pending.pop(trial_id, (None, None))
        if a is not None and result is not None and not error:  # Tune hands its results over flattened
            scores = {t: result[f"scores/{t}"] for t in self.problem.tasks}
            self.found.append(
                Candidate(
                    result["objective"],
                    self.problem.spread(dict(zip(self.problem.targets, a.tolist(), strict=True))),
                    scores,
                    predicted,
                )
            )

    def _next_generation(self) -> list[tuple[float, torch.Tensor]]:
        best = min(self.found, key=lambda c: c.rank, default=None)
        if best is None or self.left <= 0 or best.objective <= self.beaten or self.distrusted:
            return []
        p, self.beaten = self.problem, best.objective
        known = [torch.tensor([c.coefficients[t] for t in p.targets]) for c in (best, *self.found)]
        anchored = self.surrogate.around(known[0], p.ledger.logits(p.arm, best.coefficients, p.tasks))
        proposed = self._proposals(anchored, known[:1], known)
        return proposed if proposed and proposed[0][0] > best.objective + WORTH else []

    def _proposals(self, surrogate: Surrogate, starts, known) -> list[tuple[float, torch.Tensor]]:
        proposed = surrogate.propose(starts, known, min(self.left, self.problem.spec.search.generation))
        self.left -= len(proposed)
        return proposed

    @property
    def correlation(self) -> float:
        """Spearman's correlation of predicted and true objectives so far."""
        return rank_correlation([c.predicted for c in self.found], [c.objective for c in self.found])

    @property
    def distrusted(self) -> bool:
        return len(self.found) >= JUDGED_AFTER and self.correlation < TRUSTED


class _Watch(tune.Callback):
    def __init__(self, on_trial: Callable[[float], None]) -> None:
        self.on_trial = on_trial

    def __getstate__(self) -> dict:  # Tune pickles callbacks into its own state, which nobody reads here
        return {}

    def on_trial_complete(self, iteration, trials, trial, **info) -> None:
        self.on_trial(trial.last_result["objective"])


@dataclass(frozen=True)
class Search:
    """One arm's search. `at_once`: trials that run at the same time; `scratch`: a folder for Tune's own state, of no use afterwards."""

    problem: Problem
    at_once: int
    scratch: str
    on_trial: Callable[[float], None]

    def run(self, labels: Mapping[str, torch.Tensor]) -> Found:
        """Evaluate candidates. `labels`: validation labels of every task, int64 [n]."""
        p, s = self.problem, self.problem.spec.search
        grid = [round(s.low + i * (s.high - s.low) / (s.shared_points - 1), 4) for i in range(s.shared_points)]
        if s.method == "surrogate":
            searcher = SurrogateSearch(p, self._surrogate(labels), grid, s.trials)
            self._tune(None, searcher, 1 + s.trials)
            fell_back = s.trials > 0 and searcher.distrusted and searcher.left > 0
            found = searcher.found + (self._optuna(searcher.found, searcher.left) if fell_back else [])
            return Found(sorted(found, key=lambda c: c.rank), searcher.correlation, fell_back)
        found = self._tune({"shared": tune.grid_search(grid)}, None, 1)
        if s.method == "optuna" and s.trials:
            found += self._optuna(found, s.trials)
        return Found(sorted(found, key=lambda c: c.rank))

    def _surrogate(self, labels: Mapping[str, torch.Tensor]) -> Surrogate:
        """From the base's and every single delta's logits, evaluated in parallel unless the ledger has them."""
        p, s, cluster = self.problem, self.problem.spec.search, self.problem.spec.cluster
        points = [{}, *({t: s.probe} for t in p.targets)]
        remote = measure.options(**options(cluster))
        ray.get([remote.remote(p.shared[0], p.arm, a, p.tasks, p.ledger) for a in points])
        base, *probes = (p.ledger.logits(p.arm, a, p.tasks) for a in points)
        slopes = {t: torch.stack([probe[t] - base[t] for probe in probes]) / s.probe for t in p.tasks}
        return Surrogate(
            base,
            slopes,
            {t: labels[t][sampled_rows(len(labels[t]), SURROGATE_ROWS)] for t in p.tasks},
            p.objective,
            s.low,
            s.high,
        )

    def _optuna(self, found: list[Candidate], trials: int) -> list[Candidate]:
        """Per-task candidates by Optuna, in generations, from the two best so far."""
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        p, s = self.problem, self.problem.spec.search
        start = [c.coefficients for c in sorted(found, key=lambda c: c.rank)[:2]]
        space = {t: tune.uniform(s.low, s.high) for t in p.targets}
        searcher = OptunaSearch(space=space, metric="objective", mode="max", seed=p.spec.seed, points_to_evaluate=start)
        return self._tune(None, ConcurrencyLimiter(searcher, max_concurrent=s.generation, batch=True), trials)

    def _tune(self, space, searcher, samples: int) -> list[Candidate]:
        p, cluster = self.problem, self.problem.spec.cluster
        trainable = tune.with_resources(
            tune.with_parameters(Trial, problem=p),
            tune.PlacementGroupFactory([resources(cluster)], bundle_label_selector=[cluster.labels]),
        )
        results = tune.Tuner(
            trainable,
            param_space=space,
            tune_config=tune.TuneConfig(
                metric="objective", mode="max", search_alg=searcher, num_samples=samples, reuse_actors=True, max_concurrent_trials=None if searcher else self.at_once
            ),
            run_config=tune.RunConfig(
                storage_path=self.scratch, verbose=0, callbacks=[_Watch(self.on_trial)], checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                failure_config=tune.FailureConfig(max_failures=cluster.max_failures),
            ),
        ).fit()  # fmt: skip
        if results.errors:
            raise TalosError(f"a trial of the merge search failed: {root_cause(results.errors[0])}")
        return [Candidate(r.metrics["objective"], p.spread(r.config), r.metrics["scores"]) for r in results]
