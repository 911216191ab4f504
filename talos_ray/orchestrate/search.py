"""Merge search on Ray Tune: a trial composes one candidate in place and scores it on validation data.

First one coefficient shared by all tasks, on a grid (the paper's protocol); then Optuna proposes one
coefficient a task, starting from the grid's best. Candidates come in generations of a fixed size, so the
result is a function of the spec, not of how many trials run at once. A ledger on storage, addressed by
deltas, coefficients and data, makes sure that no candidate is evaluated twice, whatever happens to Tune.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import ray
from ray import tune
from ray.tune.search import ConcurrencyLimiter
from ray.tune.search.optuna import OptunaSearch

from talos_ray.config import Spec
from talos_ray.core.layout import key_of
from talos_ray.core.metrics import normalized_accuracy
from talos_ray.orchestrate.worker import Arm, workbench
from talos_ray.storage.run_folder import RunFolder

Coefficients = dict[str, float]
Counts = dict[str, tuple[int, int]]  # task -> (right predictions, inputs)


@ray.remote
def evaluate(shared, arm: Arm, coefficients: Mapping[str, float], tasks: Sequence[str], split: str) -> Counts:
    """Right predictions of base + sum of coefficient x delta on some tasks."""
    bench = workbench(shared)
    bench.compose(arm, coefficients)
    return {t: bench.correct(t, split) for t in tasks}


@dataclass(frozen=True)
class Objective:
    """What a candidate is judged by: mean normalized validation accuracy, if every control task holds.

    A candidate whose control falls below `keep` of the base's loses by how far it falls, so that the search
    is led back; it can never beat one that holds.
    """

    single: dict[str, float]  # single-task validation accuracy of every target
    control: dict[str, float]  # validation accuracy of the base on every control task
    keep: float

    def __call__(self, scores: Mapping[str, float]) -> float:
        value = normalized_accuracy({t: scores[t] for t in self.single}, self.single)
        worst = min((scores[c] / max(self.control[c], 1e-9) for c in self.control), default=1.0)
        return value if worst >= self.keep else worst - self.keep - 1.0


@dataclass(frozen=True)
class Ledger:
    """Evaluated candidates on storage, by (deltas in use, coefficients, validation data)."""

    folder: str
    base: str
    data: str

    def key(self, arm: Arm, coefficients: Mapping[str, float]) -> str:
        used = {t: [f, coefficients[t]] for t, _, f in arm.deltas if coefficients.get(t)}
        return key_of([self.base, self.data, used])

    def load(self, key: str) -> dict[str, float] | None:
        found = RunFolder(self.folder).load_trial(key)
        return found and found["scores"]


class Trial(tune.Trainable):
    """One candidate. Ray Tune resets and reuses the actor, so model and data stay warm."""

    def setup(self, config: dict, shared=None, arm: Arm | None = None, objective: Objective | None = None, ledger: Ledger | None = None) -> None:
        logging.getLogger("ray.tune").setLevel(logging.ERROR)
        self.shared, self.arm, self.objective, self.ledger = shared, arm, objective, ledger

    def reset_config(self, config: dict) -> bool:
        return True

    def step(self) -> dict:
        coefficients = spread(self.config, self.arm)
        key = self.ledger.key(self.arm, coefficients)
        scores, cached = self.ledger.load(key), True
        if scores is None:
            bench, cached = workbench(self.shared), False
            bench.compose(self.arm, coefficients)
            scores = {}
            for task in (*self.objective.single, *self.objective.control):
                right, n = bench.correct(task, "validation")
                scores[task] = right / n
            RunFolder(self.ledger.folder).save_trial(key, {"arm": self.arm.name, "coefficients": coefficients, "scores": scores})
        return {"objective": self.objective(scores), "scores": scores, "cached": cached, "done": True}


def spread(config: Mapping[str, float], arm: Arm) -> Coefficients:
    """Trial parameters -> one coefficient a task; `shared` stands for all of them."""
    return {t: round(float(config.get("shared", config.get(t, 0.0))), 4) for t, _, _ in arm.deltas}


class _Watch(tune.Callback):
    def __init__(self, on_trial: Callable[[Coefficients, float], None], arm: Arm) -> None:
        self.on_trial, self.arm = on_trial, arm

    def __getstate__(self) -> dict:  # Tune pickles callbacks into its own state, which nobody reads here
        return {}

    def on_trial_complete(self, iteration, trials, trial, **info) -> None:
        self.on_trial(spread(trial.config, self.arm), trial.last_result["objective"])


def _run_tune(shared_ref, spec: Spec, arm: Arm, objective: Objective, ledger: Ledger, space, searcher, samples: int, at_once: int, scratch: str, on_trial) -> list[tuple[float, Coefficients, dict]]:
    resources = {"cpu": spec.cluster.cpus_per_worker, "gpu": spec.cluster.gpus_per_worker}
    trainable = tune.with_resources(tune.with_parameters(Trial, shared=ray.get(shared_ref), arm=arm, objective=objective, ledger=ledger), resources)
    results = tune.Tuner(
        trainable,
        param_space=space,
        tune_config=tune.TuneConfig(metric="objective", mode="max", search_alg=searcher, num_samples=samples, max_concurrent_trials=None if searcher else at_once, reuse_actors=True),
        run_config=tune.RunConfig(
            storage_path=scratch, verbose=0, callbacks=[_Watch(on_trial, arm)], checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False), failure_config=tune.FailureConfig(max_failures=spec.cluster.max_failures)
        ),
    ).fit()
    if results.errors:
        raise results.errors[0]
    return [(r.metrics["objective"], spread(r.config, arm), r.metrics["scores"]) for r in results]


def search(shared_ref, spec: Spec, arm: Arm, objective: Objective, ledger: Ledger, at_once: int, scratch: str, per_task: bool, on_trial: Callable[[Coefficients, float], None]) -> list[tuple[float, Coefficients, dict]]:
    """Every candidate as (objective, coefficients, validation scores), the best first; ties go to the smaller coefficients.

    Args:
        at_once: trials that run at the same time. per_task: also search one coefficient a task.
        scratch: folder for Tune's own state; nothing in it is needed afterwards.
    """
    s = spec.search
    points = [round(s.low + i * (s.high - s.low) / (s.shared_points - 1), 4) for i in range(s.shared_points)]
    common = (shared_ref, spec, arm, objective, ledger)
    found = _run_tune(*common, {"shared": tune.grid_search(points)}, None, 1, at_once, scratch, on_trial)
    if per_task and s.per_task_trials and len(arm.deltas) > 1:
        ranked = _ranked(found)
        start = [c for _, c, _ in ranked[:2]]
        searcher = OptunaSearch(
            space={t: tune.uniform(s.low, s.high) for t, _, _ in arm.deltas}, metric="objective", mode="max", seed=spec.seed, points_to_evaluate=start
        )
        limited = ConcurrencyLimiter(searcher, max_concurrent=s.generation, batch=True)
        found += _run_tune(*common, None, limited, s.per_task_trials, at_once, scratch, on_trial)
    return _ranked(found)


def _ranked(found):
    return sorted(found, key=lambda f: (-f[0], sum(abs(a) for a in f[1].values()), sorted(f[1].items())))
