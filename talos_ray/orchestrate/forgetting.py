"""Task negation (Ilharco et al., 2023): a model forgets one task as far as all others allow."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import ray

from talos_ray.config import Merge, Search, Train
from talos_ray.core.delta import Delta
from talos_ray.core.metrics import Score, strata_of
from talos_ray.core.segments import Blend
from talos_ray.errors import TalosError
from talos_ray.orchestrate.cluster import options
from talos_ray.orchestrate.learning import Goal, MergeProblem, Point
from talos_ray.orchestrate.opened import OpenRun, opened
from talos_ray.orchestrate.plan import SPARSE, Prepared, shortened
from talos_ray.orchestrate.scoring import Heads, Look, Tested, Way, answers, inspect
from talos_ray.orchestrate.search import MergeSearch, points_of
from talos_ray.orchestrate.worker import Predicted

Method = Literal["learned", "grid"]  # how the coefficients are found
NEAR = 0.05  # score above chance that still counts as forgotten
RETRAINED = 0.1  # share of its training that a forgotten task is given again, to see how fast it comes back


def forget(
    uri: str,
    task: str,
    *,
    keep: float = 0.95,
    at_most: float | None = None,
    reason: str | None = None,
    method: Method = "learned",
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
    with opened(uri, [task], verbose) as run:
        head = _head_of(run, task, method)
        aim = Aim.of(run.prepared, task, at_most)
        search, problem, records = _searched(run, head, aim, keep, method)
        record = records[0]
        told = {
            "task": task,
            "helpers": list(head.helpers),
            "keep": keep,
            "chance": aim.chance,
            "aim": aim.near,
            "limit": aim.limit,
            "before": problem.goals[0].before,
            "after": record["scores"][task],
            "curve": _curve(task, records, method),
        }
        # Before anything is scored on test data or written: a task is forgotten as was asked, or nothing is changed.
        if record["objective"] < 0 or record["scores"][task] > aim.limit:
            raise TalosError(_unreachable(told, record["objective"] >= 0))
        after = _coefficients(search, head.way, problem, record)
        run.session.progress.end("search", f"{task} {told['before']:.3f} -> {told['after']:.3f} (validation)")
        version, base, now = run.scored(head.learnt, head.deltas, head.way, after, head.heads)
        again = shortened(run.arm.settings[task], RETRAINED)
        models = {"base": Blend({}), "before": head.before, "now": after}
        beyond = _beyond(run, head.way, task, models, again)
        classes = list(run.prepared.data[task].classes)
        negation = {**told, "retrained_steps": again.steps, "beyond": beyond, "classes": classes}
        forgotten = sorted({*run.head.forgotten, task})
        version = version.with_fields(kind="negation", negation=negation, forgotten=forgotten)
        return run.publish((version, base, now), "forget", task=task, keep=keep, reason=reason)


@dataclass(frozen=True, kw_only=True)
class Aim:
    """Scores of one task on validation data.

    Args:
        chance: what always answering one class scores.
        near: near enough to it.
        limit: what is accepted as forgotten.
        learned: what is learned towards.
    """

    chance: float
    near: float
    limit: float
    learned: float

    @staticmethod
    def of(prepared: Prepared, task: str, at_most: float | None) -> Aim:
        """`at_most`: the limit; what is near chance, if not given."""
        data = prepared.data[task]
        labels = data.validation.labels
        inputs = labels.bincount()  # of each class
        # Always the most frequent class; where all count alike, any of them.
        alike = strata_of(labels, data.task.metric) is not None
        chance = 1 / int((inputs > 0).sum()) if alike else int(inputs.max()) / len(labels)
        near = min(1.0, chance + NEAR)
        limit = near if at_most is None else at_most
        # A score at the limit may be luck where validation inputs are few: what is aimed at lies a standard error
        # below.
        luck = math.sqrt(near * (1.0 - near) / len(labels))
        return Aim(chance=chance, near=near, limit=limit, learned=max(0.0, min(near - luck, limit)))


@dataclass(frozen=True, kw_only=True)
class _Head:
    """What head is made of, seen from one task.

    Args:
        learnt: targets beside it that head has learnt, and that have to hold.
        helpers: tasks whose deltas are not in head, and help.
        blend: coefficients of the others in head, which stay; `before` has the task's own, too.
        heads: of the others.
    """

    task: str
    learnt: list[str]
    helpers: list[str]
    deltas: dict[str, Delta]
    way: Way
    blend: Blend
    before: Blend
    heads: Heads


def _head_of(run: OpenRun, task: str, method: Method) -> _Head:
    head = run.head
    others = [name for name in head.deltas if name != task]
    before, _ = run.in_head([*others, task])
    if method == "grid" and before.granularity is not None:
        raise TalosError(
            f"version {head.number} has a coefficient a {before.granularity}, and method 'grid' finds one a task; "
            "wanted a version whose tasks have one each, like those of search.method 'grid'; leave out method"
        )
    helpers: dict[str, Delta] = {}
    if method == "learned":
        helpers = {delta.task: delta for delta in run.arm.finished(but=(task, *others))}
    # In the order of their names, as every version adds its deltas up: another order would round otherwise.
    deltas = dict(sorted({**run.deltas([*others, task]), **helpers}.items()))
    blend, heads = run.in_head(others)
    return _Head(
        task=task,
        learnt=[name for name in head.targets if name != task and name in head.deltas],
        helpers=list(helpers),
        deltas=deltas,
        way=run.way(deltas, head.how),
        blend=blend,
        before=before,
        heads=heads,
    )


def _searched(
    run: OpenRun, head: _Head, aim: Aim, keep: float, method: Method
) -> tuple[MergeSearch, MergeProblem, list[dict[str, Any]]]:
    """The search for coefficients, its problem, and all candidates, the best first."""
    task = head.task
    way = head.way
    session = run.session
    settings = _settings(run.prepared.spec.search, keep, method)
    search = _search_over(run, (task, *head.learnt), settings)
    session.progress.begin("search", f"how {task} can be forgotten")
    # What decides the model that must hold: head's deltas, and how much of each.
    used = [run.head.deltas, run.head.model]
    keys = {}
    for name in (task, *head.learnt):
        keys[name] = search.looks.ask(name, ref=way.ref, blend=head.before, used=used, head=head.heads.get(name))
    for control in run.prepared.controls:
        keys[control] = search.looks.ask(control)
    goals = _goals(search.looks.found(), task, aim, keys)
    # The task and its helpers move, all others stay as they are; neither has coefficients in `blend`.
    moving = (task, *head.helpers)
    problem = search.problem(way, goals, start=head.blend, moving=moving, heads=head.heads, own_heads=False)
    points = _points(settings, way, method)
    records = search.run({way.name: problem}, {way.name: (session.shared_ref, way.ref)}, {way.name: points})
    return search, problem, records[way.name]


def _goals(looks: Mapping[str, Look], task: str, aim: Aim, keys: Mapping[str, str]) -> list[Goal]:
    """That a task is forgotten, and all others hold what they score now. `keys`: of the looks at that, by task."""
    goals = [Goal(task=task, kind="forget", before=looks[keys[task]].accuracy, look=keys[task], aim=aim.learned)]
    for name, key in keys.items():
        if name != task:
            goals.append(Goal(task=name, kind="hold", before=looks[key].accuracy, look=key))
    return goals


def _settings(asked: Search, keep: float, method: Method) -> Search:
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


def _search_over(run: OpenRun, tasks: Sequence[str], settings: Search) -> MergeSearch:
    """A search over these tasks alone."""
    searched = tuple(task for task in run.prepared.spec.tasks if task.name in tasks)
    spec = run.prepared.spec.model_copy(update={"search": settings, "tasks": searched})
    return MergeSearch(run.session, replace(run.prepared, spec=spec))


def _points(settings: Search, way: Way, method: Method) -> list[Point]:
    if method == "grid":
        return points_of(settings, way, held=True)
    return [Point(arm=SPARSE, merge=way.name, granularity="row", lr=settings.several("lr")[0])]


def _coefficients(search: MergeSearch, way: Way, problem: MergeProblem, record: Mapping[str, Any]) -> Blend:
    """The coefficients of a candidate."""
    coefficient = record["point"]["coefficient"]
    if coefficient is not None:
        return problem.with_coefficient(coefficient)
    learned, _ = search.loaded(way, record)
    return learned


def _curve(task: str, records: Sequence[Mapping[str, Any]], method: Method) -> list[dict[str, Any]]:
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


def _beyond(run: OpenRun, way: Way, task: str, models: Mapping[str, Blend], again: Train) -> dict[str, Any]:
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


@dataclass(frozen=True, kw_only=True)
class Reach:
    """How far one task can be forgotten from a run's base: its chance on validation data, its score and those of the
    control tasks on test data, of the base and of the model that has forgotten it."""

    chance: float
    base: Score
    now: Score
    controls: dict[str, tuple[Score, Score]]


def how_far(uri: str, *, keep: float, method: Method = "learned", verbose: bool = False) -> dict[str, Reach]:
    """Target task -> how far the base can forget it, each by itself while all control tasks keep `keep`. All are
    searched at once, and no version is made: the run is as before.

    Raises:
        TalosError: as `forget`, but for a task that stays known.
    """
    with opened(uri, (), verbose) as run:
        p = run.prepared
        session = run.session
        deltas = dict(sorted((delta.task, delta) for delta in run.arm.finished()))
        way = run.way(deltas, Merge(method="linear"))
        settings = _settings(p.spec.search, keep, method)
        search = _search_over(run, p.targets, settings)
        session.progress.begin("search", "how far each task can be forgotten")
        keys = {name: search.looks.ask(name) for name in (*p.targets, *p.controls)}
        looks = search.looks.found()
        aims = {task: Aim.of(p, task, None) for task in p.targets}
        problems = {}
        points = {}
        for task, aim in aims.items():
            goals = _goals(looks, task, aim, {name: keys[name] for name in (task, *p.controls)})
            moving = (task,) if method == "grid" else tuple(deltas)
            problems[task] = search.problem(way, goals, start=Blend({}), moving=moving, own_heads=False)
            # A way of its own for the search, though the deltas are those of all.
            points[task] = [replace(point, merge=task) for point in _points(settings, way, method)]
        records = search.run(problems, dict.fromkeys(problems, (session.shared_ref, way.ref)), points)
        session.progress.end("search", f"{len(records)} tasks")
        blends = {task: _coefficients(search, way, problems[task], records[task][0]) for task in problems}
        return _reached(run, way, aims, blends)


def _reached(run: OpenRun, way: Way, aims: Mapping[str, Aim], blends: Mapping[str, Blend]) -> dict[str, Reach]:
    """What models that have forgotten a task each score on test data, and the base."""
    p = run.prepared
    run.session.progress.begin("test", "test scores")
    tested = Tested(run.session, p, "test", "test scores")
    tested.ask(way.ref, Blend({}), [*p.targets, *p.controls], {})
    for task, blend in blends.items():
        tested.ask(way.ref, blend, [task, *p.controls], {})
    base, *after = [answers(p, _words(kinds), {}) for kinds in tested.answered()]
    run.session.progress.end("test", f"{len(after)} models")
    found = {}
    for task, now in zip(blends, after, strict=True):
        controls = {control: (base.score(control), now.score(control)) for control in p.controls}
        found[task] = Reach(chance=aims[task].chance, base=base.score(task), now=now.score(task), controls=controls)
    return found


def _words(kinds: Mapping[str, Predicted]) -> dict[str, Any]:
    """Task -> what is answered by its frozen head."""
    return {task: found["words"] for task, found in kinds.items()}
