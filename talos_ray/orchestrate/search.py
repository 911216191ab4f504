"""Merge search on Ray Tune: a trial is a learning run (`orchestrate.learning`) on a worker with its accelerator.

The points that the spec names come first, in one generation; then, if it wants more, generations that Optuna proposes
through Ray Tune's own search algorithm. A generation waits until the one before is over, and a run is stopped early by
the best run of earlier generations, never by one that happened to be faster: so the result is a function of the spec,
the same with one trial at a time and with many. (Ray's asynchronous schedulers stop by who came first.) All arms are
searched in one Tune run.
"""

from __future__ import annotations

import itertools
import logging
import os
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import optuna
import ray
import torch
from ray import tune
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from talos_ray.config import Search, Spec
from talos_ray.core.delta import Delta
from talos_ray.core.layout import key_of
from talos_ray.core.segments import Blend
from talos_ray.errors import TalosError
from talos_ray.orchestrate import cluster
from talos_ray.orchestrate.learning import Goal, LearningRun, MergeProblem, Point, Record, rank
from talos_ray.orchestrate.plan import SPARSE
from talos_ray.orchestrate.scoring import PAIRS as MOST_PAIRS
from talos_ray.orchestrate.scoring import (
    Chosen,
    DisturbedTask,
    Look,
    Looks,
    Way,
    disturbed,
    fits_heads,
    shared_out,
    single_look,
    ways_of,
)
from talos_ray.orchestrate.worker import Arm, workbench
from talos_ray.storage.run_folder import RunFolder

if TYPE_CHECKING:
    from ray.tune.experiment import Trial as TuneTrial

    from talos_ray.orchestrate.plan import ArmPlan, Prepared
    from talos_ray.orchestrate.session import Session

Refs = tuple[ray.ObjectRef[Any], ray.ObjectRef[Any]]  # of the shared base, and of an arm with its deltas

NO_HANDLER = "TUNE_DISABLE_SIGINT_HANDLER"  # Tune's own would take an interrupt for the end of its trials and go on


class Trial(tune.Trainable):
    """A point of the search, tried to its end or until the best of earlier generations is out of reach. Its state is
    on storage: one that was killed goes on from there, wherever it is started again."""

    def setup(
        self,
        config: dict[str, Any],
        problems: Mapping[str, MergeProblem] | None = None,
        refs: Mapping[str, Refs] | None = None,
    ) -> None:
        logging.getLogger("ray.tune").setLevel(logging.ERROR)  # a process of its own, where the driver's level is not
        # Tune's signature wants defaults, but `with_parameters` always gives both.
        self.problems = problems or {}
        self.refs = refs or {}
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Another point for the same process, which keeps its model and its data."""
        # Points may be of another way to merge, whose vectors are fetched then; the base is the same for all.
        shared_ref, arm_ref = self.refs[new_config["merge"]]
        self.bars: list[float] = new_config.get("bars") or []
        point = Point(**new_config["point"])
        run = LearningRun(
            workbench(ray.get(shared_ref)),
            ray.get(arm_ref),
            self.problems[point.merge],
            point,
            several=new_config["several"],
        )
        self.reports: Generator[Record] = run.reports()
        self.judged = 0
        return True

    def step(self) -> Record:
        report = next(self.reports)
        # A look on its way. Its number says which of the bars it has to reach: that of as many updates.
        if not report["done"] and "objective" in report:
            bar = self.bars[self.judged] if self.judged < len(self.bars) else None
            self.judged += 1
            if bar is not None and report["objective"] < bar:
                self.reports.close()
                return {**report, "done": True, "stopped": True}
        return report

    def cleanup(self) -> None:
        self.reports.close()


class Generations(Searcher):
    """Hands out the points of all arms, a generation of each at once.

    Args:
        points: way to merge -> the points that the spec names.
        more: way -> further points that Optuna proposes.
        space: what Optuna chooses among.
        made: (way, what Optuna chose) -> a point.
    """

    def __init__(
        self,
        points: Mapping[str, Sequence[Point]],
        more: int,
        size: int,
        space: dict[str, Any],
        made: Callable[[str, Mapping[str, Any]], Point],
        seed: int,
    ) -> None:
        super().__init__()  # without a metric: a run on its way may have nothing to tell of it yet
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.more = dict.fromkeys(points, more)
        self.size = size
        self.made = made
        # One for each way: what is good for one may be bad for another, and none is to learn from both.
        self.optuna: dict[str, OptunaSearch] = {}
        if more:
            for way in points:
                self.optuna[way] = OptunaSearch(space=space, metric="objective", mode="max", seed=seed)
        self.waiting = [point for of_way in points.values() for point in of_way]
        self.several = more > 0 or len(self.waiting) > len(points)
        self.running: dict[str, Point] = {}
        self.names: list[tuple[Point, str]] = []  # of this generation, in its order
        self.over: dict[str, Record] = {}  # Optuna's name -> result, of this generation
        self.best: dict[str, list[float]] = {}  # way -> what its best run had reached at each look
        self.bars: dict[str, list[float]] = {}  # the same, of earlier generations only
        self.curves: dict[str, list[float]] = {}  # trial -> what it has reached at each look

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        if not self.waiting and not self.running:
            self._next_generation()
            if not self.waiting:
                return Searcher.FINISHED  # type: ignore[return-value]  # Ray's annotation leaves this string out
        if not self.waiting:
            return None  # until the generation is over
        point = self.waiting.pop(0)
        self.running[trial_id] = point
        return {
            "merge": point.merge,
            "point": asdict(point),
            "bars": self.bars.get(point.merge),
            "several": self.several,
        }

    def _next_generation(self) -> None:
        # In the order in which they were proposed, and not in which they ended: Optuna's next proposals depend on it.
        for point, name in self.names:
            self.optuna[point.merge].on_trial_complete(name, self.over.get(name) or {})
        self.names = []
        self.bars = dict(self.best)
        # A whole generation before any of it runs, so that no proposal depends on what has ended by chance.
        for way, left in self.more.items():
            count = min(left, self.size)
            self.more[way] -= count
            for i in range(count):
                name = f"{way}-{left - i}"
                chosen = self.optuna[way].suggest(name)
                if not isinstance(chosen, dict):  # Optuna has no end: it always proposes something
                    raise TalosError(f"Optuna proposed {chosen!r} for {name}; wanted settings; lower search.trials")
                point = self.made(way, chosen)
                self.waiting.append(point)
                self.names.append((point, name))

    def on_trial_result(self, trial_id: str, result: Record) -> None:
        if not result["done"] and "objective" in result:
            self.curves.setdefault(trial_id, []).append(result["objective"])

    def on_trial_complete(self, trial_id: str, result: Record | None = None, error: bool = False) -> None:
        point = self.running.pop(trial_id)
        # Points of the spec have no name: Optuna has not proposed them, and is told nothing of them.
        name = next((name for proposed, name in self.names if proposed is point), None)
        if result is not None and "objective" in result:
            if name is not None:
                self.over[name] = {"objective": result["objective"]}
            curve = self.curves.get(trial_id, [])
            known = self.best.get(point.merge)
            # One that does not hold is no bar: it may be ahead just because it gives control tasks up.
            if result.get("holds") and curve and (known is None or curve[-1] > known[-1]):
                self.best[point.merge] = curve

    def save(self, checkpoint_path: str) -> None:
        """Nothing: what was found is on storage, by the hash of all that decides it."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, as `save`."""


class Told(tune.Callback):
    """Hands Tune's results to the driver."""

    def __init__(self, on_report: Callable[[str, Record], None]) -> None:
        self.on_report = on_report
        self.records: dict[str, list[Record]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune saves its callbacks, and what this one calls cannot be: it holds the driver's session

    def on_trial_result(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, result: Record, **info: object
    ) -> None:
        way = trial.config["merge"]
        self.on_report(way, result)
        if result["done"] and not result.get("stopped"):
            self.records.setdefault(way, []).append(result)


def run_trials(
    session: Session,
    spec: Spec,
    problems: Mapping[str, MergeProblem],
    refs: Mapping[str, Refs],
    points: Mapping[str, Sequence[Point]],
    on_report: Callable[[str, Record], None],
) -> dict[str, list[Record]]:
    """All searches in one Tune run. Returns the records of each way to merge, the best first.

    Args:
        refs: way -> references of the shared base and of its deltas.
        points: way -> what the spec wants tried.

    Raises:
        KeyboardInterrupt: as it was; what was found is on storage.
        TalosError: a trial failed more often than `cluster.max_failures`.
    """
    callback = Told(on_report)
    resources = tune.PlacementGroupFactory([cluster.resources(spec.cluster)])
    trainable = tune.with_resources(tune.with_parameters(Trial, problems=problems, refs=refs), resources)
    run_config = tune.RunConfig(
        storage_path=session.scratch,
        verbose=0,
        callbacks=[callback],
        failure_config=tune.FailureConfig(max_failures=spec.cluster.max_failures),
        # A trial's state is on the run's own storage, under the hash of what decides it.
        checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
    )
    tune_config = _tune_config(spec, points, session.slots["search"])
    os.environ[NO_HANDLER] = "1"
    try:
        results = tune.Tuner(trainable, tune_config=tune_config, run_config=run_config).fit()
    finally:
        del os.environ[NO_HANDLER]
    # A trial that failed is no loss as long as another one of its way came to an end.
    if lost := [way for way in problems if way not in callback.records]:
        reason = cluster.root_cause(results.errors[0]) if results.errors else "no trial came to an end"
        raise TalosError(
            f"the merge search of {lost[0]} failed: {reason}\nwhat was finished is kept; mend the cause and run the "
            "same command again"
        )
    return {way: sorted(records, key=rank) for way, records in callback.records.items()}


def _tune_config(spec: Spec, points: Mapping[str, Sequence[Point]], at_once: int) -> tune.TuneConfig:
    """Which points Tune tries, and how many of them at once."""
    search = spec.search
    more = search.trials if search.method == "learned" else 0  # of a grid all points are named
    return tune.TuneConfig(
        search_alg=Generations(points, more, search.generation, _space(search), _made, spec.seed),
        num_samples=sum(map(len, points.values())) + more * len(points),
        max_concurrent_trials=at_once,
        reuse_actors=True,  # a process keeps its model and its data from one point to the next
    )


def _space(search: Search) -> dict[str, Any]:
    """What Optuna chooses among, around what the spec names."""
    rates = search.several("lr")
    pressures = [pressure for pressure in search.several("pressure") if pressure != "auto"] or [8.0, 72.0]
    # A factor of 3 to each side. A pressure of 0 has no logarithm, so the smallest is a thousandth.
    return {
        "granularity": tune.choice(["task", "group", "tensor", "row"]),
        "lr": tune.loguniform(min(rates) / 3, max(rates) * 3),
        "pressure": tune.loguniform(max(min(pressures), 1e-3) / 3, max(*pressures, 1e-3) * 3),
    }


def _made(way: str, chosen: Mapping[str, Any]) -> Point:
    # Rounded to what a table shows, so that whoever writes the point into a spec gets the same run.
    return Point(
        arm=way.split()[0],
        merge=way,
        granularity=chosen["granularity"],
        lr=float(f"{chosen['lr']:.3g}"),
        pressure=float(f"{chosen['pressure']:.3g}"),
    )


def points_of(search: Search, way: Way, held: bool) -> list[Point]:
    """What the spec wants tried of one way to merge. `held`: whether anything must hold."""
    point = Point(arm=way.plan.name, merge=way.name)
    if search.method == "grid":
        step = (search.high - search.low) / (search.shared_points - 1)
        grid = [round(search.low + i * step, 4) for i in range(search.shared_points)]
        return [replace(point, coefficient=coefficient) for coefficient in grid]
    # Where nothing must hold no pressure has anything to press for, and several would be the same run.
    pressures: list[float | None] = [0.0]
    if held:
        pressures = [None if pressure == "auto" else pressure for pressure in search.several("pressure")]
    combinations = itertools.product(search.several("granularity"), search.several("lr"), pressures)
    return [
        replace(point, granularity=granularity, lr=lr, pressure=pressure) for granularity, lr, pressure in combinations
    ]


@dataclass(frozen=True, kw_only=True)
class Approved:
    """What tasks in force have, and keep while others are added: coefficients, heads of their own, fingerprints of
    their deltas and of the model that those make."""

    arm: str
    blend: Blend
    heads: Mapping[str, torch.Tensor]
    deltas: Mapping[str, str]
    model: str


def approved_in(folder: RunFolder, prepared: Prepared, deltas: Mapping[str, str]) -> Approved | None:
    """What the version in force has learned, if the spec adds tasks to it and says that they alone are learned.

    Args:
        deltas: fingerprints of those that are there now, by task.
    """
    search = prepared.spec.search
    if search.method != "learned" or search.relearn == "all" or not folder.head:
        return None
    head = folder.load_version(folder.head)
    before = head.deltas
    added = set(prepared.targets) - set(before)
    # Coefficients mean something for the deltas only that they were learned for, to the bit.
    same_deltas = all(deltas.get(task) == mark for task, mark in before.items())
    unchanged = set(before) == set(head.targets) and same_deltas
    blend, heads = folder.load_learned(head)
    # And only where the new ones are made the same way: one model has one granularity and one merge method. Methods
    # other than plain addition make a task's row anew as soon as another task joins.
    alike = search.several("granularity") == (blend.granularity,) and search.merge.tried == (head.how,)
    if not (added and before and unchanged and alike and head.how.method == "linear"):
        return None
    return Approved(arm=SPARSE, blend=blend, heads=heads, deltas=before, model=head.model)


class MergeSearch:
    """Finds how much of each delta goes into the merged model, and the heads of its tasks.

    Args:
        prepared: the tasks that it is about: those of the session, or some of them.
        stage: what its progress is shown under; only one of its own is begun and ended here.
        approved: what tasks in force keep of the sparse arm while others are added to them.
    """

    def __init__(
        self, session: Session, prepared: Prepared, stage: str = "search", approved: Approved | None = None
    ) -> None:
        self.session = session
        self.p = prepared
        self.stage = stage
        self.approved = approved
        self.looks = Looks(session, prepared, stage)

    def choose(self, arms: Sequence[ArmPlan], deltas: Mapping[str, Mapping[str, Delta]]) -> dict[str, Chosen]:
        """The best by validation for every arm, with what is told of its search."""
        p = self.p
        session = self.session
        if self.stage == "search":
            session.progress.begin("search", "single-task answers")
        ways = ways_of(arms, deltas, p.spec.search.merge.tried)
        # All are asked for before any is waited for, so that every worker has something to look at.
        controls = {control: self.looks.ask(control) for control in p.controls}
        singles = self._singles(ways)
        seen = self.looks.found()
        problems = {}
        refs = {}
        points = {}
        for name, way in ways.items():
            problems[name] = self._problem_of(way, seen, singles[way.plan.name], controls)
            refs[name] = (session.shared_ref, way.ref)
            points[name] = points_of(p.spec.search, way, bool(problems[name].tasks("hold")))
        results = self.run(problems, refs, points)
        if self.stage == "search":
            words = [f"{name}: {_told(records)}" for name, records in results.items()]
            session.progress.end("search", "; ".join(words))
        chosen = {}
        for plan in arms:
            candidates = {name: records for name, records in results.items() if ways[name].plan is plan}
            chosen[plan.name] = self._chosen(ways, candidates, seen, singles[plan.name], controls)
        # Only of what becomes a version: short runs are compared by their scores alone.
        if self.stage == "search" and len(p.targets) > 1:
            for best in chosen.values():
                best.found["disentanglement"] = self._disentangled(best)
        return chosen

    def _singles(self, ways: Mapping[str, Way]) -> dict[str, dict[str, str]]:
        """Arm -> target -> key of the look at its single edit, which is the same under every merge method."""
        own = fits_heads(self.p)
        any_way = {way.plan.name: way for way in ways.values()}
        singles = {}
        for arm, way in any_way.items():
            singles[arm] = {task: single_look(self.looks, way, task, own) for task in self.p.targets}
        return singles

    def _problem_of(
        self, way: Way, seen: Mapping[str, Look], singles: Mapping[str, str], controls: Mapping[str, str]
    ) -> MergeProblem:
        """What is searched for a way to merge: targets learn what their single edits answer, all others hold."""
        approved = self._kept(way)
        goals = []
        for task, key in singles.items():
            if task not in approved:
                goals.append(Goal(task=task, kind="learn", before=seen[key].accuracy_own, look=key))
        for control, key in controls.items():
            goals.append(Goal(task=control, kind="hold", before=seen[key].accuracy, look=key))
        return self.problem(way, (*goals, *approved.values()), **self._begun(way, approved))

    def _kept(self, way: Way) -> dict[str, Goal]:
        """Tasks in force that keep their coefficients and heads: each has to go on answering as it does now."""
        before = self.approved
        if before is None or way.plan.name != before.arm:
            return {}
        used = [before.model, dict(before.deltas)]
        keys = {}
        for task in before.deltas:
            head = before.heads.get(task)
            keys[task] = self.looks.ask(task, ref=way.ref, blend=before.blend, used=used, head=head)
        seen = self.looks.found()
        return {task: Goal(task=task, kind="hold", before=seen[key].accuracy, look=key) for task, key in keys.items()}

    def _begun(self, way: Way, kept: Mapping[str, Goal]) -> dict[str, Any]:
        """What a problem begins with, where tasks keep what they have."""
        before = self.approved
        if before is None or not kept:
            return {}
        # Tasks in force take part with what they have, and only the new ones move: those begin as in any search.
        new = {task: self.p.spec.search.start for task in way.rows if task not in kept}
        start = replace(before.blend, values={**before.blend.values, **new})
        return {"start": start, "moving": tuple(sorted(new)), "heads": dict(before.heads)}

    def problem(self, way: Way, goals: Sequence[Goal], **more: Any) -> MergeProblem:
        """What is searched for a way to merge."""
        p = self.p
        # Of the tasks that it is about, and no others: data of another one may change without undoing this search.
        marks = {}
        for goal in goals:
            data = p.data[goal.task]
            split_marks = (data.train.fingerprint(), data.validation.fingerprint())
            marks[goal.task] = [*split_marks, p.head_mark(goal.task), *data.task.measured]
        settings: dict[str, Any] = {
            "deltas": {task: delta.fingerprint for task, delta in way.rows.items()},
            "base": p.base,
            "marks": key_of(marks),
            "folder": self.session.folder.store.uri,
            "search": p.spec.search,
            "train": p.spec.train,
            "seed": p.spec.seed,
            "merge": way.how,
            "own_heads": p.own_heads,
        }
        return MergeProblem(goals=tuple(goals), **{**settings, **more})

    def run(
        self, problems: Mapping[str, MergeProblem], refs: Mapping[str, Refs], points: Mapping[str, Sequence[Point]]
    ) -> dict[str, list[Record]]:
        """The records of each problem, the best first, with progress."""
        best: dict[str, float] = {}
        steps: dict[str, int] = {}
        count = 0
        search = self.p.spec.search

        def on_report(way: str, report: Record) -> None:
            nonlocal count
            steps[way] = report.get("step", search.steps)
            if report["done"] and "objective" in report:
                count += 1
                best[way] = max(report["objective"], best.get(way, report["objective"]))
                self.session.watch.candidate(way, count, report["objective"], best[way])
            best_by_way = [f"best {name} {objective:.4f}" for name, objective in best.items()]
            if search.method == "grid":
                total = sum(map(len, points.values()))
                done = [f"{count} of {total} candidates"]
                share = count / max(1, total)
            else:
                done = [f"{name} step {step}" for name, step in steps.items()]
                share = sum(steps.values()) / search.steps / max(1, len(problems))
            # Nobody knows how many attempts and points each way will need, so it stops short of the whole.
            self.session.progress.update(self.stage, min(0.99, share), ", ".join(done + best_by_way))

        started = time.monotonic()
        records = run_trials(self.session, self.p.spec, problems, refs, points, on_report)
        self.seconds = round(time.monotonic() - started, 2)
        return records

    def _chosen(
        self,
        ways: Mapping[str, Way],
        found: Mapping[str, list[Record]],
        seen: Mapping[str, Look],
        singles: Mapping[str, str],
        controls: Mapping[str, str],
    ) -> Chosen:
        """The best candidate of one arm under any merge method."""
        name = min(found, key=lambda candidate: rank(found[candidate][0]))
        best = found[name][0]
        way = ways[name]
        blend, heads = self.loaded(way, best)
        # Heads of tasks in force were given to the search, not found by it, so no candidate has them.
        if self.approved is not None and way.plan.name == self.approved.arm:
            heads = {**self.approved.heads, **heads}
        everything = [record for records in found.values() for record in records]
        facts = {
            "point": best["point"],
            "teacher": self.p.spec.search.teacher,
            "pressure": best.get("pressure"),
            "objective": best["objective"],
            "validation": best["scores"],
            "validation_words": best["words"],
            "single_validation": {task: seen[key].accuracy_own for task, key in singles.items()},
            "control_validation": {control: seen[key].accuracy for control, key in controls.items()},
            # An objective below 0 says by how much control tasks were missed.
            "control_held": best["objective"] >= 0,
            "held_by_margin": best["holds"],
            "curve": best["curve"],
            "seconds": best["seconds"],
            "candidates": [_candidate(record) for record in found[name]],
            "methods": _best_of(everything, lambda record: ways[record["point"]["merge"]].how.method),
            "granularities": _best_of(everything, lambda record: record["point"]["granularity"]),
            "evaluated": len(everything),
            "by_tensor": by_tensor(way, blend),
        }
        return Chosen(way=way, blend=blend, heads=heads, found=facts)

    def loaded(self, way: Way, record: Mapping[str, Any]) -> tuple[Blend, dict[str, torch.Tensor]]:
        """Coefficients and heads of a candidate, from storage.

        Raises:
            CorruptError: they are not there any more.
        """
        _, tensors = self.session.folder.stored_trial(record["key"])
        heads = {name.removeprefix("head/"): head for name, head in tensors.items() if name.startswith("head/")}
        point = record["point"]
        if point["coefficient"] is not None:
            return Blend({task: float(point["coefficient"]) for task in way.rows}), heads
        values = {task: tensors[f"coefficient/{task}"] for task in way.rows}
        return Blend(values, point["granularity"], way.how.groups or 4), heads

    def _disentangled(self, mine: Chosen) -> dict[str, Any]:
        """How far the edits disturb each other, on validation data."""
        tasks = sorted(self.p.targets)
        pairs = len(tasks) <= MOST_PAIRS
        remote = disturbed.options(**cluster.options(self.p.spec.cluster))
        blend = ray.put(mine.blend)

        def send(
            arm: ray.ObjectRef[Arm] | None, some: list[DisturbedTask]
        ) -> ray.ObjectRef[list[tuple[dict[str, float], float]]]:
            assert arm is not None
            return remote.remote(self.session.shared_ref, arm, some, blend, pairs)

        asked = [(mine.way.ref, DisturbedTask(task=task, head=mine.heads.get(task))) for task in tasks]
        changes = shared_out(self.session, asked, send, self.stage, "how far edits disturb each other")
        matrix = []
        together = {}
        for task, (by_other, by_all) in zip(tasks, changes, strict=True):
            matrix.append([by_other.get(other, 0.0) for other in tasks])  # no task disturbs itself
            together[task] = by_all
        return {"tasks": tasks, "pairs": matrix if pairs else None, "together": together}


def _candidate(record: Record) -> dict[str, Any]:
    """What a version keeps of one that was tried."""
    return {
        "objective": record["objective"],
        "coefficients": record["means"],
        "point": record["point"],
        "pressure": record.get("pressure"),
        "holds": record["holds"],
        "kept": record["kept"],
    }


def _best_of(records: Sequence[Record], setting: Callable[[Record], str]) -> dict[str, float]:
    """The best objective that was reached under each value of a setting."""
    reached: dict[str, float] = {}
    for record in records:
        value = setting(record)
        reached[value] = max(record["objective"], reached.get(value, record["objective"]))
    return reached


def by_tensor(way: Way, blend: Blend) -> dict[str, dict[str, float]]:
    """Task -> tensor -> mean coefficient of its masked weights; nothing where a task has one coefficient."""
    if (segments := blend.segments(way.mask)) is None:
        return {}
    return {task: segments.mean_by_tensor(torch.as_tensor(row), way.mask) for task, row in blend.values.items()}


def _told(records: Sequence[Mapping[str, Any]]) -> str:
    """One search in a line."""
    best = records[0]
    note = f"{len(records)} candidate(s), best normalized validation accuracy {best['objective']:.4f}"
    return note + (f", control kept {best['kept']:.1%}" if best["worst"] else "")
