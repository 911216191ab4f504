"""Edits of a finished run that train nothing: merge some of its tasks, remove one, forget one.

Each makes a new version from deltas that are on storage; nothing that another version needs is touched.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import ray
import torch

from talos_ray.config import Merge, Search, Spec, Train
from talos_ray.core.delta import Delta
from talos_ray.core.merging import task_of
from talos_ray.core.metrics import Score, strata_of
from talos_ray.core.paired import Answers
from talos_ray.core.segments import Blend
from talos_ray.corruptions import CORRUPTIONS
from talos_ray.errors import TalosError, nearest
from talos_ray.orchestrate.cluster import options
from talos_ray.orchestrate.driver import publish
from talos_ray.orchestrate.learning import Goal, MergeProblem, Point
from talos_ray.orchestrate.plan import SPARSE, ArmPlan, Prepared, arms_of, prepare, shortened, version_key
from talos_ray.orchestrate.scoring import Chosen, Heads, Tested, Way, answers, inspect, score_version, ways_of
from talos_ray.orchestrate.search import MergeSearch, points_of
from talos_ray.orchestrate.session import Session, on_ray
from talos_ray.orchestrate.worker import Predicted, in_store
from talos_ray.progress import Progress
from talos_ray.storage.run_folder import RunFolder
from talos_ray.storage.version import Version
from talos_ray.trust import versions

Forgetting = Literal["learned", "grid"]  # how the coefficients are found that forget a task
RETRAINED = 0.1  # share of its training that a forgotten task is given again, to see how fast it comes back
Robustness = dict[str, dict[str, dict[str, Any]]]  # task -> corruption -> base or merged -> its score, as JSON
NEAR = 0.05  # accuracy above chance that still counts as forgotten


@dataclass(frozen=True)
class _Open:
    """A finished run, ready for an operation."""

    prepared: Prepared
    folder: RunFolder
    arm: ArmPlan
    head: Version
    session: Session

    def of(self, targets: Sequence[str]) -> Prepared:
        """As if only these were its target tasks."""
        tasks = tuple(task for task in self.prepared.spec.tasks if task.name in targets)
        return replace(self.prepared, spec=self.prepared.spec.model_copy(update={"tasks": tasks}))

    def deltas(self, tasks: Sequence[str]) -> dict[str, Delta]:
        """Those that head is made of, or the newest."""
        # A later training may have replaced one, which then lies in the archive.
        deltas = {}
        missing = []
        for task in tasks:
            delta = self.folder.load_delta(task, self.head.deltas.get(task))
            if delta is None:
                missing.append(task)
            else:
                deltas[task] = delta
        if missing:
            raise TalosError(
                f"run {self.folder.store.uri!r} misses the delta of task {missing[0]!r}; restore deltas/ from a copy, "
                "or finish the run"
            )
        return deltas

    def others(self, targets: Sequence[str]) -> list[str]:
        """Tasks of the run that are no part of a version of these, and are scored all the same."""
        return [task for task in self.prepared.targets if task not in targets]

    def in_head(self, tasks: Sequence[str]) -> tuple[Blend, Heads]:
        """How much of the deltas of these tasks is in head, and the heads of their own that they have there."""
        blend, heads = self.folder.load_learned(self.head)
        # In versions of earlier releases a task has a row for each group of layers.
        rows = [row for row in blend.values if task_of(row) in tasks]
        return blend.only(rows), {task: head for task, head in heads.items() if task in tasks}

    def way(self, deltas: Mapping[str, Delta], how: Merge) -> Way:
        """Deltas under a merge method; with a row a group of layers, where head is of an earlier release and has
        them."""
        return ways_of([self.arm], {SPARSE: deltas}, (how,), self.head.rows_by_group)[SPARSE]

    def scored(
        self, targets: Sequence[str], deltas: Mapping[str, Delta], way: Way, blend: Blend, heads: Heads
    ) -> tuple[Version, Answers, Answers]:
        """A version and its answers, of coefficients and heads that need no search."""
        chosen = {SPARSE: Chosen(way=way, blend=blend, heads=heads)}
        return score_version(self.session, self.of(targets), [self.arm], {SPARSE: deltas}, chosen, self.others(targets))

    def publish(self, found: tuple[Version, Answers, Answers], operation: str, **details: object) -> int:
        """Number of the version, if head is still what the operation began with."""
        version, base, now = found
        # Minutes have passed since head was read, and another operation may have put its own version in force.
        return publish(self.session, version, base, now, operation, at=self.head.number, **details)


@contextmanager
def _opened(uri: str, tasks: Sequence[str], verbose: bool, in_head: bool = False) -> Iterator[_Open]:
    """The run in a folder, on Ray. `tasks`: those that the operation names, in head or anywhere in the run; checked
    before anything starts."""
    folder = RunFolder(uri)
    # A folder may have been moved or copied since, so it is where it was found, and not where its spec put it.
    spec = folder.stored(Spec, {**folder.info()["spec"], "output": uri})
    names = [task.name for task in spec.tasks]
    for task in tasks:
        if task not in names:
            raise TalosError(
                f"run {uri!r} has no target task {task!r}{nearest(task, names)}; it has: {', '.join(names)}"
            )
    if folder.head is None:
        raise TalosError(f"run {uri!r} has no version yet; run the same command again to finish it")
    head = folder.load_version(folder.head)
    held = {task for task in head.deltas if task in head.targets or task in head.forgotten}  # others help to forget
    if in_head and (absent := [task for task in tasks if task not in held]):
        raise TalosError(
            f"version {head.number} of run {uri!r} holds no edit of task {absent[0]!r}; it holds: "
            f"{', '.join(sorted(held)) or 'none'}"
        )
    with Progress() as progress:
        prepared = prepare(spec, progress)
        mask = folder.load_mask(prepared.base)
        assert mask is not None  # a run that has a version has a mask
        arm = arms_of(prepared, mask)[0]
        with on_ray(prepared, folder, verbose, progress) as session:
            session.share()
            session.slots_of("search", 1, spec.cluster.search_workers)
            yield _Open(prepared, folder, arm, head, session)


def merge(uri: str, tasks: Sequence[str], *, reason: str | None = None, verbose: bool = False) -> int:
    """Find coefficients for some of a run's tasks, by the search of its spec. Returns the version's number.

    Raises:
        TalosError: no such task, or nothing to merge.
    """
    if not tasks:
        raise TalosError("no task to merge is named; wanted one or more of the run's target tasks; add their names")
    with _opened(uri, tasks, verbose) as run:
        # In the spec's order, whichever they were named in: the same tasks are the same version.
        chosen_tasks = [task for task in run.prepared.targets if task in tasks]
        done = run.arm.done()
        if missing := sorted(set(chosen_tasks) - set(done)):
            raise TalosError(
                f"task {missing[0]!r} is not trained as the run's spec says; run `talos edit` with its spec first"
            )
        not_merged = set(done) - set(chosen_tasks)
        deltas = {SPARSE: {delta.task: in_store(delta) for delta in run.arm.finished(but=not_merged)}}
        prepared = run.of(chosen_tasks)
        chosen = MergeSearch(run.session, prepared).choose([run.arm], deltas)
        others = run.others(chosen_tasks)
        version, base, now = score_version(run.session, prepared, [run.arm], deltas, chosen, others)
        version = version.with_fields(key=version_key(prepared, {task: done[task] for task in chosen_tasks}, {}))
        return run.publish((version, base, now), "merge", tasks=chosen_tasks, reason=reason)


def remove(uri: str, task: str, *, reason: str | None = None, verbose: bool = False) -> int:
    """Take one task out of head, exactly: the others keep their coefficients and heads, and merge methods never see
    its delta. Returns the version's number.

    Raises:
        TalosError: head holds no edit of this task.
    """
    with _opened(uri, [task], verbose, in_head=True) as run:
        head = run.head
        left = [name for name in head.deltas if name != task]
        # Of no delta at all no method makes anything; linear makes the base.
        how = head.how if left else Merge(method="linear")
        deltas = run.deltas(left)
        targets = [name for name in head.targets if name != task]
        blend, heads = run.in_head(left)
        version, base, now = run.scored(targets, deltas, run.way(deltas, how), blend, heads)
        forgotten = [name for name in head.forgotten if name != task]
        version = version.with_fields(kind="removal", forgotten=forgotten)
        return run.publish((version, base, now), "remove", task=task, reason=reason)


def forget(
    uri: str,
    task: str,
    *,
    keep: float = 0.95,
    at_most: float | None = None,
    reason: str | None = None,
    method: Forgetting = "learned",
    verbose: bool = False,
) -> int:
    """Task negation (Ilharco et al., 2023), by gradient: the coefficients of one task's delta that push its answers
    towards chance, under as much pressure as it takes for every control task to keep `keep` of the base's score, and
    every task that head has learnt `keep` of head's. Deltas of the run that are not in head help: they are further
    directions that hardly disturb others, and without them a task is not forgotten by half. Learned on training
    inputs, judged on validation data. Returns the version's number.

    Args:
        at_most: validation accuracy that is accepted as forgotten; by default the one that is aimed at: chance, which
            is what always answering the most frequent class scores, and 0.05.
        method: 'grid' for the paper's own way instead, one coefficient of the task's delta between 0 and
            -search.high, and nothing of the others.

    Raises:
        TalosError: not reachable; with the best that is, and all that was tried. Nothing is changed.
    """
    if not 0 < keep <= 1:
        raise TalosError(f"keep is {keep:g}; wanted a share in (0, 1]; 0.95 is the usual one")
    with _opened(uri, [task], verbose) as run:
        return _forget(run, task, keep=keep, at_most=at_most, reason=reason, method=method)


def _forget(
    run: _Open, task: str, *, keep: float, at_most: float | None, reason: str | None, method: Forgetting
) -> int:
    """`forget`, with the run open."""
    head = run.head
    session = run.session
    learnt = [name for name in head.targets if name != task and name in head.deltas]
    others_in_head = [name for name in head.deltas if name != task]
    helpers: dict[str, Delta] = {}
    if method == "learned":
        helpers = {delta.task: delta for delta in run.arm.finished(but=(task, *others_in_head))}
    # In the order of their names, as every version adds its deltas up: another order would round otherwise.
    deltas = dict(sorted({**run.deltas([*others_in_head, task]), **helpers}.items()))
    way = run.way(deltas, head.how)
    blend, heads = run.in_head(others_in_head)
    before, _ = run.in_head([*others_in_head, task])
    if method == "grid" and before.granularity is not None:
        raise TalosError(
            f"version {head.number} has a coefficient a {before.granularity}, and method 'grid' finds one a task; "
            "wanted a version whose tasks have one each, like those of search.method 'grid'; leave out method"
        )
    settings = _forgetting_settings(run.prepared.spec.search, keep, method)
    search = _forgetting_search(run, (task, *learnt), settings)
    session.progress.begin("search", f"how {task} can be forgotten")
    keys = _look_at_head(run, search, (task, *learnt), way=way, blend=before, heads=heads)
    looks = search.looks.found()
    scores = {name: looks[key].accuracy for name, key in keys.items()}
    data = run.prepared.data[task]
    chance, aim, limit, wanted = _forgotten_from(data.validation.labels, data.task.metric, at_most)
    goals = _goals(task, (*learnt, *run.prepared.controls), wanted, scores, keys)
    # The task and its helpers move, all others stay as they are; neither has coefficients in `blend`.
    problem = search.problem(way, goals, start=blend, moving=(task, *helpers), heads=heads, own_heads=False)
    points = _forgetting_points(settings, way, method)
    records = search.run({way.name: problem}, {way.name: (session.shared_ref, way.ref)}, {way.name: points})
    record = records[way.name][0]
    negation: dict[str, Any] = {
        "task": task,
        "helpers": list(helpers),
        "keep": keep,
        "chance": chance,
        "aim": aim,
        "limit": limit,
        "before": scores[task],
        "after": record["scores"][task],
        "curve": _curve(task, records[way.name], method),
    }
    # Before anything is scored on test data or written: a task is forgotten as was asked, or nothing is changed.
    if record["objective"] < 0 or record["scores"][task] > limit:
        raise TalosError(_unreachable(negation, record["objective"] >= 0))
    after = _forgetting_blend(search, way, problem, record)
    session.progress.end("search", f"{task} {scores[task]:.3f} -> {negation['after']:.3f} (validation)")
    version, base, now = run.scored(learnt, deltas, way, after, heads)
    again = shortened(run.arm.settings[task], RETRAINED)
    negation["retrained_steps"] = again.steps
    negation["beyond"] = _beyond(run, way, task, {"base": Blend({}), "before": before, "now": after}, again)
    negation["classes"] = list(run.prepared.data[task].classes)
    version = version.with_fields(kind="negation", negation=negation, forgotten=sorted({*head.forgotten, task}))
    return run.publish((version, base, now), "forget", task=task, keep=keep, reason=reason)


def _forgotten_from(labels: torch.Tensor, metric: str, at_most: float | None) -> tuple[float, float, float, float]:
    """Scores on validation data, by their labels int64 [n]: that of chance, the one that is near enough to it, the
    one that is accepted, and the one that is learned towards."""
    # What always answering one class scores, the most frequent one; where all classes count alike, any of them.
    shares = labels.bincount() / len(labels)
    chance = float(shares.max()) if strata_of(labels, metric) is None else 1 / int((shares > 0).sum())
    aim = min(1.0, chance + NEAR)
    limit = aim if at_most is None else at_most
    # A score at the limit may be luck where validation inputs are few: what is aimed at lies a standard error below.
    luck = math.sqrt(aim * (1.0 - aim) / len(labels))
    return chance, aim, limit, max(0.0, min(aim - luck, limit))


def _forgetting_settings(asked: Search, keep: float, method: Forgetting) -> Search:
    """The search of the spec, turned to forgetting: by gradient, with frozen heads, as much pressure as it takes; or on
    a grid of as many points below zero as above it."""
    if method == "grid":
        grid = {"method": "grid", "control_keep": keep, "heads": "words", "low": -asked.high, "high": 0.0}
        return asked.model_copy(update=grid)
    update = {
        "method": "learned",
        "control_keep": keep,
        "heads": "words",
        "trials": 0,
        "pressure": "auto",
        "batch_size": max(asked.batch_size, asked.control_batch_size),  # one task learns here, not many
    }
    return asked.model_copy(update=update)


def _forgetting_search(run: _Open, tasks: Sequence[str], settings: Search) -> MergeSearch:
    """A search over these tasks alone."""
    searched = tuple(task for task in run.prepared.spec.tasks if task.name in tasks)
    spec = run.prepared.spec.model_copy(update={"search": settings, "tasks": searched})
    return MergeSearch(run.session, replace(run.prepared, spec=spec))


def _look_at_head(
    run: _Open, search: MergeSearch, tasks: Sequence[str], *, way: Way, blend: Blend, heads: Heads
) -> dict[str, str]:
    """Have it looked at what head makes of these tasks, and the base of the control tasks. Returns the looks' keys."""
    # What decides the model that must hold: head's deltas, and how much of each.
    used = [run.head.deltas, run.head.model]
    keys = {}
    for task in tasks:
        keys[task] = search.looks.ask(task, ref=way.ref, blend=blend, used=used, head=heads.get(task))
    for control in run.prepared.controls:
        keys[control] = search.looks.ask(control)
    return keys


def _goals(
    task: str, holding: Sequence[str], aim: float, scores: Mapping[str, float], keys: Mapping[str, str]
) -> list[Goal]:
    """That a task is forgotten, and others hold what they score now. `keys`: of the looks at that."""
    goals = [Goal(task=task, kind="forget", before=scores[task], look=keys[task], aim=aim)]
    for name in holding:
        goals.append(Goal(task=name, kind="hold", before=scores[name], look=keys[name]))
    return goals


def _forgetting_points(settings: Search, way: Way, method: Forgetting) -> list[Point]:
    if method == "grid":
        return points_of(settings, way, held=True)
    return [Point(arm=SPARSE, merge=way.name, granularity="row", lr=settings.several("lr")[0])]


def _forgetting_blend(search: MergeSearch, way: Way, problem: MergeProblem, record: Mapping[str, Any]) -> Blend:
    """The coefficients of a candidate."""
    coefficient = record["point"]["coefficient"]
    if coefficient is not None:
        return problem.with_coefficient(coefficient)
    learned, _ = search.loaded(way, record)
    return learned


@dataclass(frozen=True, kw_only=True)
class Reach:
    """How far one task can be forgotten from a run's base: its chance on validation data, its score and those of the
    control tasks on test data, of the base and of the model that has forgotten it."""

    chance: float
    base: Score
    now: Score
    controls: dict[str, tuple[Score, Score]]


def how_far(uri: str, *, keep: float, method: Forgetting = "learned", verbose: bool = False) -> dict[str, Reach]:
    """Target task -> how far the base can forget it, each by itself while all control tasks keep `keep`. All are
    searched at once, and no version is made: the run is as before.

    Raises:
        TalosError: as `forget`, but for a task that stays known.
    """
    with _opened(uri, (), verbose) as run:
        p = run.prepared
        session = run.session
        way = run.way(dict(sorted((delta.task, delta) for delta in run.arm.finished())), Merge(method="linear"))
        settings = _forgetting_settings(p.spec.search, keep, method)
        search = _forgetting_search(run, p.targets, settings)
        session.progress.begin("search", "how far each task can be forgotten")
        keys = {name: search.looks.ask(name) for name in (*p.targets, *p.controls)}
        looks = search.looks.found()
        scores = {name: looks[key].accuracy for name, key in keys.items()}
        problems = {}
        points = {}
        chance = {}
        for task in p.targets:
            chance[task], _, _, aim = _forgotten_from(p.data[task].validation.labels, p.data[task].task.metric, None)
            goals = _goals(task, p.controls, aim, scores, keys)
            moving = (task,) if method == "grid" else tuple(way.rows)
            problems[task] = search.problem(way, goals, start=Blend({}), moving=moving, own_heads=False)
            # A way of its own for the search, though the deltas are those of all.
            points[task] = [replace(point, merge=task) for point in _forgetting_points(settings, way, method)]
        records = search.run(problems, dict.fromkeys(problems, (session.shared_ref, way.ref)), points)
        session.progress.end("search", f"{len(records)} tasks")
        tested = Tested(session, p, "test", "test scores")
        tested.ask(way.ref, Blend({}), [*p.targets, *p.controls], {})
        for task, problem in problems.items():
            blend = _forgetting_blend(search, way, problem, records[task][0])
            tested.ask(way.ref, blend, [task, *p.controls], {})
        session.progress.begin("test", "test scores")
        base, *after = [answers(p, _words(kinds), {}) for kinds in tested.answered()]
        session.progress.end("test", f"{len(after)} models")
        found = {}
        for task, now in zip(problems, after, strict=True):
            controls = {control: (base.score(control), now.score(control)) for control in p.controls}
            found[task] = Reach(chance=chance[task], base=base.score(task), now=now.score(task), controls=controls)
        return found


def _words(kinds: Mapping[str, Predicted]) -> dict[str, Any]:
    """Task -> what is answered by its frozen head."""
    return {task: found["words"] for task, found in kinds.items()}


def _curve(task: str, records: Sequence[Mapping[str, Any]], method: Forgetting) -> list[dict[str, Any]]:
    """What is written down of everything that was tried: pressures in their order, or coefficients from the lowest."""
    if method == "grid":
        tried = sorted(records, key=lambda record: record["point"]["coefficient"])
        return [_attempt(record, task, coefficient=record["point"]["coefficient"]) for record in tried]
    attempts = records[0]["attempts"]
    return [_attempt(attempt, task, pressure=attempt["pressure"]) for attempt in attempts]


def _attempt(attempt: Mapping[str, Any], task: str, **strength: float) -> dict[str, Any]:
    """`strength`: the pressure or the coefficient."""
    return {
        **strength,
        "target": attempt["scores"][task],
        "kept": attempt["kept"],
        "worst": attempt["worst"],
    }


def _beyond(run: _Open, way: Way, task: str, models: Mapping[str, Blend], again: Train) -> dict[str, Any]:
    """What each of some models still knows of a task. A low accuracy alone may hide features that are all there."""
    # Of base, before and now alike, or nobody could tell what was forgotten from what was never known.
    looks = inspect.options(**options(run.prepared.spec.cluster))
    references = [looks.remote(run.session.shared_ref, way.ref, model, task, again) for model in models.values()]
    return dict(zip(models, ray.get(references), strict=True))


def _unreachable(told: dict[str, Any], holds: bool) -> str:
    """Why a task cannot be forgotten, and all that was tried. `holds`: whether the others were kept at all."""
    task = told["task"]
    curve = told["curve"]
    # With the number that could be had, so that whoever reads it can decide and need not search again.
    if not holds:
        nearest_one = max(curve, key=lambda attempt: attempt["kept"])
        reached = (
            f"under no pressure does every other task keep {told['keep']:.0%}; {nearest_one['worst']} keeps "
            f"{nearest_one['kept']:.1%} at best"
        )
        fix = "lower keep, or `talos remove` it"
    else:
        reached = f"{told['after']:.3f} is the lowest accuracy at which all others keep {told['keep']:.0%}"
        fix = f"accept that with at_most={told['after'] + 5e-4:.3f}, or lower keep"
    lines = []
    strength = "pressure" if "pressure" in curve[0] else "coefficient"
    for attempt in curve:
        lines.append(
            f"  {attempt[strength]:6g}: {attempt['target']:.3f}, {attempt['worst']} keeps {attempt['kept']:.1%}"
        )
    what = {"pressure": "pressure of the others", "coefficient": "coefficient of its delta"}[strength]
    return (
        f"task {task!r} cannot be forgotten: {reached}; it is {told['before']:.3f} now, wanted at most "
        f"{told['limit']:.3f} (chance is {told['chance']:.3f}); {fix}. Nothing was changed\n"
        + "\n".join([f"{what}: accuracy, and who keeps least (validation)", *lines])
    )


def robustness(uri: str, *, verbose: bool = False) -> Robustness:
    """Test accuracy of base and head under every corruption of `talos_ray.corruptions`, of every task; kept beside the
    version, and shown in its report.

    Returns:
        task -> corruption ("none" for the data as they are) -> {"base" | "merged": accuracy with its interval}.
    """
    with _opened(uri, (), verbose) as run:
        head = run.head
        session = run.session
        p = run.prepared
        in_head = sorted(head.deltas)
        way = run.way(run.deltas(in_head), head.how)
        blend, heads = run.in_head(in_head)
        session.progress.begin("robustness", "scores under corruptions")
        tasks = {task.name: task for task in (*p.spec.tasks, *p.spec.control)}
        models: dict[str, tuple[Blend, Heads]] = {"base": (Blend({}), {}), "merged": (blend, heads)}
        # All are asked for before any is waited for. Base and head side by side, so that both see the same inputs: a
        # corruption is a function of the seed.
        asked = []
        tested = Tested(session, p, "robustness", "corrupted scores")
        for name, task in tasks.items():
            for corruption in CORRUPTIONS[task.kind]:
                for model, (model_blend, own_heads) in models.items():
                    tested.ask(way.ref, model_blend, [name], own_heads, corruption)
                    asked.append((name, corruption, model))
        result: Robustness = {}
        for name, scores in head.scores.items():
            if name in tasks:  # clean ones were measured when the version was made
                result[name] = {"none": {"base": scores.base.as_dict(), "merged": scores.merged.as_dict()}}
        for (name, corruption, model), kinds in zip(asked, tested.answered(), strict=True):
            _, own_heads = models[model]
            predicted = kinds[name]["own" if name in own_heads else "words"]
            of_task = result.setdefault(name, {})
            of_task.setdefault(corruption, {})[model] = answers(p, {name: predicted}, {}).score(name).as_dict()
        assert head.number is not None  # it is on storage
        versions.add_robustness(run.folder, head.number, result)
        session.progress.end("robustness", f"{len(asked)} scores; see {run.folder.store.path('report/index.html')}")
        return result
