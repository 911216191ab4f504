"""Edits of a finished run that train nothing: merge some of its tasks, remove one, forget one.

Each makes a new version from deltas that are on storage; nothing that another version needs is touched.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import ray
import torch

from talos_ray.config import Merge, Spec, validated
from talos_ray.core.delta import Delta
from talos_ray.core.merging import coefficients_of, task_of
from talos_ray.core.metrics import ForgetObjective, accuracy, worst_kept
from talos_ray.core.paired import Answers
from talos_ray.core.surrogate import Surrogate
from talos_ray.corruptions import CORRUPTIONS
from talos_ray.errors import TalosError, nearest
from talos_ray.orchestrate.cluster import options
from talos_ray.orchestrate.desk import open_desk
from talos_ray.orchestrate.driver import publish
from talos_ray.orchestrate.evaluation import Candidate, Coefficients, Found, Problem, inspect
from talos_ray.orchestrate.plan import SPARSE, ArmPlan, Prepared, arms_of, prepare, shortened, version_key
from talos_ray.orchestrate.proposals import sampled_labels, slopes_at
from talos_ray.orchestrate.search import Generations
from talos_ray.orchestrate.session import Session, on_ray
from talos_ray.orchestrate.verify import Judge
from talos_ray.progress import Progress
from talos_ray.storage.run_folder import RunFolder, coefficient_of
from talos_ray.trust import versions

LOWEST = -1.0  # coefficient, and number of points down to it: Iurada et al., 2025
POINTS = 21
FINER = 4  # points between the best of them and the next
FURTHER = (-2.0, -4.0)  # where the grid goes on if all others still hold at its end: short training makes short deltas
MOST = POINTS * (1 + len(FURTHER)) + FINER
MOST_LAYERED = 24  # candidates in which groups of layers part from their common coefficient
HALVED = 3  # times that the surrogate's reach in that, at first the coefficient itself, is halved
RETRAINED = 0.1  # share of its training that a forgotten task is given again, to see how fast it comes back
NEAR = 0.05  # accuracy above chance that still counts as forgotten


@dataclass(frozen=True)
class _Open:
    """A finished run, ready for an operation."""

    prepared: Prepared
    folder: RunFolder
    arm: ArmPlan
    head: dict
    how: Merge  # that head was made by, with the groups of layers that are asked for
    session: Session

    def of(self, targets: Sequence[str]) -> Prepared:
        """As if only these were its target tasks."""
        tasks = tuple(t for t in self.prepared.spec.tasks if t.name in targets)
        return replace(self.prepared, spec=self.prepared.spec.model_copy(update={"tasks": tasks}))

    def deltas(self, tasks: Sequence[str]) -> dict[str, Delta]:
        """Those that head is made of, or the newest."""
        found = {t: self.folder.load_delta(t, self.head["deltas"].get(t)) for t in tasks}
        if missing := [t for t, d in found.items() if d is None]:
            raise TalosError(
                f"run {self.folder.store.uri!r} misses the delta of task {missing[0]!r}; restore deltas/ from a copy, or finish the run"
            )
        return found

    def judge(self, targets: Sequence[str]) -> Judge:
        """Of a version of these; all other tasks of the run are looked at too."""
        return self.session.judge(self.of(targets), [t for t in self.prepared.targets if t not in targets])

    def verified(
        self, judge: Judge, deltas: dict[str, Delta], coefficients: Coefficients
    ) -> tuple[dict, Answers, Answers]:
        """A version and its answers: what the judge's shared `deltas` make under coefficients that need no search."""
        return judge.verify([self.arm], {SPARSE: deltas}, {SPARSE: {"way": SPARSE, "coefficients": coefficients}})

    def publish(self, found: tuple[dict, Answers, Answers], operation: str, **details: object) -> int:
        """Number of the version, if head is still what the operation began with."""
        return publish(self.session, *found, operation, at=self.head["version"], **details)


@contextmanager
def _opened(
    uri: str, tasks: Sequence[str], verbose: bool, in_head: bool = False, groups: int | Mapping[str, str] | None = None
) -> Iterator[_Open]:
    """The run in a folder, on Ray. `tasks`: those that the operation names, in head or anywhere in the run; `groups`: of layers, where
    head has none; both checked before anything starts."""
    folder = RunFolder(uri)
    spec = Spec.model_validate({**folder.info()["spec"], "output": uri})
    names = [t.name for t in spec.tasks]
    for task in tasks:
        if task not in names:
            raise TalosError(
                f"run {uri!r} has no target task {task!r}{nearest(task, names)}; it has: {', '.join(names)}"
            )
    if folder.head is None:
        raise TalosError(f"run {uri!r} has no version yet; run the same command again to finish it")
    head = folder.load_version(folder.head)
    if in_head and (absent := [t for t in tasks if t not in head["deltas"]]):
        raise TalosError(
            f"version {head['version']} of run {uri!r} holds no edit of task {absent[0]!r}; it holds: {', '.join(head['deltas']) or 'none'}"
        )
    how = Merge.model_validate(head.get("merge", {"method": "linear"}))
    if groups and how.groups not in (None, groups):
        raise TalosError(
            f"groups is {groups!r}, but version {head['version']} of run {uri!r} is made of groups {how.groups!r}; leave groups out"
        )
    how = how.model_copy(update={"groups": groups or how.groups})
    with Progress() as progress:
        prepared = prepare(spec, progress)
        arm = arms_of(prepared, folder.load_mask(prepared.base))[0]
        with on_ray(prepared, folder, verbose, progress) as session:
            session.share()
            yield _Open(prepared, folder, arm, head, how, session)


def merge(uri: str, tasks: Sequence[str], *, reason: str | None = None, verbose: bool = False) -> int:
    """Find coefficients for some of a run's tasks, by the search of its spec. Returns the version's number.

    Raises:
        TalosError: no such task, or nothing to merge.
    """
    if not tasks:
        raise TalosError("no task to merge is named; wanted one or more of the run's target tasks; add their names")
    with _opened(uri, tasks, verbose) as run:
        chosen_tasks = [t for t in run.prepared.targets if t in tasks]
        deltas = {SPARSE: run.arm.finished()}
        if missing := sorted(set(chosen_tasks) - set(deltas[SPARSE])):
            raise TalosError(
                f"task {missing[0]!r} is not trained as the run's spec says; run `talos edit` with its spec first"
            )
        deltas[SPARSE] = {t: deltas[SPARSE][t] for t in chosen_tasks}
        judge = run.judge(chosen_tasks)
        version, *answers = judge.verify([run.arm], deltas, judge.search([run.arm], deltas))
        version["key"] = version_key(judge.p, deltas[SPARSE], {})
        return run.publish((version, *answers), "merge", tasks=chosen_tasks, reason=reason)


def remove(uri: str, task: str, *, reason: str | None = None, verbose: bool = False) -> int:
    """Take one task out of head, exactly: the others keep their coefficients, and merge methods never see its delta.
    Returns the version's number.

    Raises:
        TalosError: head holds no edit of this task.
    """
    with _opened(uri, [task], verbose, in_head=True) as run:
        head = run.head
        left = [t for t in head["deltas"] if t != task]
        how = run.how if left else Merge(method="linear")
        coefficients = {row: a for row, a in head["coefficients"].items() if task_of(row) != task}
        deltas, judge = run.deltas(left), run.judge([t for t in head["targets"] if t != task])
        judge.share([run.arm], {SPARSE: deltas}, (how,))
        version, *answers = run.verified(judge, deltas, coefficients)
        version |= {"kind": "removal", "forgotten": [t for t in head.get("forgotten", []) if t != task]}
        return run.publish((version, *answers), "remove", task=task, reason=reason)


def forget(
    uri: str, task: str, *, keep: float = 0.95, at_most: float | None = None, groups: int | Mapping[str, str] | None = None,
    reason: str | None = None, verbose: bool = False,
) -> int:  # fmt: skip
    """Task negation: the coefficient of `task`, from 0 to -1 and on to -4 while all hold, that lowers it most while every control task keeps `keep` of
    the base's score, and every task that head has learnt `keep` of head's (Ilharco et al., 2023). Chosen on validation data.
    Returns the version's number.

    Args:
        at_most: validation accuracy that is accepted as forgotten; by default the one that is aimed at: chance, which is what always answering the most
            frequent class scores, and 0.05.
        groups: of layers (as `search.merge.groups`) that then get coefficients of their own, as long as it is above that aim; those of
            head, if not given.

    Raises:
        SpecError: the groups. TalosError: not reachable; with the best pair there is, and the whole curve. Nothing is changed.
    """
    if not 0 < keep <= 1:
        raise TalosError(f"keep is {keep:g}; wanted a share in (0, 1]; 0.95 is the usual one")
    validated(Merge, {"groups": groups}, "forget")
    with _opened(uri, [task], verbose, groups=groups) as run:
        head = run.head
        learnt = [t for t in head["targets"] if t != task and t in head["deltas"]]
        deltas = run.deltas(sorted({*head["deltas"], task}))
        judge, progress, desk = run.judge(learnt), run.session.progress, open_desk()
        judge.share([run.arm], {SPARSE: deltas}, (run.how,))
        way = judge.ways[SPARSE]
        evaluator, told_by = judge.evaluator(way.ref, way.rows), head["coefficients"]
        at_head = {r: told_by.get(r, told_by.get(task_of(r), 0.0)) for r in way.rows}
        progress.begin("search", f"how {task} can be forgotten")
        held = (*learnt, *run.prepared.controls)
        before = evaluator.counts(evaluator.submit(at_head, (task, *learnt)))
        before |= evaluator.counts(evaluator.submit({}, run.prepared.controls))
        scores = {t: right / n for t, (right, n) in before.items()}
        labels = {t: run.prepared.data[t].validation.labels for t in (task, *held)}
        chance = float(labels[task].bincount().max()) / len(labels[task])
        aim = min(1.0, chance + NEAR)
        limit = aim if at_most is None else at_most
        objective = ForgetObjective({task: scores[task]}, {t: scores[t] for t in held}, keep)
        problem = Problem(evaluator, objective, 1)
        candidates = _downwards(problem, labels, at_head, task, min(aim, limit))
        found = judge.run({SPARSE: (problem, candidates)}, MOST + MOST_LAYERED, desk)[SPARSE]
        best, curve = found.candidates[0], _curve(found, objective, task)
        told = {
            "task": task,
            "keep": keep,
            "chance": chance,
            "aim": aim,
            "limit": limit,
            "before": scores[task],
            "after": best.scores[task],
            "curve": curve,
            "layers": None if _shared(best, task) else coefficients_of(best.coefficients, task),
        }
        if best.objective < 0 or best.scores[task] > limit:
            raise TalosError(_unreachable(told, best if best.objective >= 0 else None))
        progress.end(
            "search",
            f"{task} {scores[task]:.3f} -> {best.scores[task]:.3f} at {_words(best, task)} (validation)",
        )
        version, *answers = run.verified(judge, deltas, {t: a for t, a in best.coefficients.items() if a})
        again = shortened(run.arm.settings[task], RETRAINED)
        told["retrained_steps"] = again.steps
        looks = inspect.options(**options(run.prepared.spec.cluster))
        models = {"base": {}, "before": at_head, "now": best.coefficients}
        seen = {name: looks.remote(run.session.shared_ref, way.ref, a, task, again) for name, a in models.items()}
        told["beyond"] = dict(zip(seen, ray.get(list(seen.values())), strict=True))
        told["classes"] = list(run.prepared.data[task].classes)
        version |= {
            "kind": "negation", "negation": told, "forgotten": sorted({*head.get("forgotten", []), task}),
        }  # fmt: skip
        return run.publish((version, *answers), "forget", task=task, keep=keep, reason=reason)


def _at(candidate: Candidate, task: str) -> float:
    """The coefficient of the task that is to be forgotten, where all groups of layers have the same."""
    return next(iter(coefficients_of(candidate.coefficients, task).values()))


def _shared(candidate: Candidate, task: str) -> bool:
    return len(set(coefficients_of(candidate.coefficients, task).values())) == 1


def _words(candidate: Candidate, task: str) -> str:
    if _shared(candidate, task):
        return f"{_at(candidate, task):g}"
    return coefficient_of({"coefficients": candidate.coefficients}, task)


def _downwards(
    problem: Problem, labels: Mapping[str, torch.Tensor], head: Coefficients, task: str, aim: float
) -> Generations:
    """The grid from 0 down to the lowest coefficient, and on while everyone holds and the task is still above `aim`; then
    finer steps below the best that holds, and groups of layers by themselves, if there are any."""

    def points(values: Sequence[float]) -> list[tuple[Coefficients, None]]:
        return [
            (problem.point({r: a if task_of(r) == task else head.get(r, 0.0) for r in problem.targets}), None)
            for a in values
        ]

    def best() -> Candidate:
        return min(found, key=lambda c: c.rank)

    step, end = LOWEST / (POINTS - 1), LOWEST
    found = yield points([i * step + 0.0 for i in range(POINTS)])
    for further in FURTHER:
        lowest = min(found, key=lambda c: _at(c, task))
        if lowest.objective < 0 or best().scores[task] <= aim:
            break
        step = (further - end) / (POINTS - 1)
        found += yield points([end + step * (i + 1) for i in range(POINTS - 1)])
        end = further
    at = _at(best(), task)
    if best().objective >= 0 and at > end:
        found += yield points([at + step * (i + 1) / (FINER + 1) for i in range(FINER)])
    found += yield from _by_layers(problem, labels, best(), task, aim)
    return Found(sorted(found, key=lambda c: c.rank))


def _by_layers(
    problem: Problem, labels: Mapping[str, torch.Tensor], best: Candidate, task: str, aim: float
) -> Generator[list[tuple[Coefficients, float]], list[Candidate], list[Candidate]]:
    """Groups of layers of the task part from the coefficient that is best for all: by the surrogate, with slopes taken at the best so
    far; where it leads to nothing better, it reaches half as far."""
    p, known, found, anchor = problem, [], [], None
    own = [r for r in p.targets if task_of(r) == task]
    reach = max(-_at(best, task), -LOWEST)
    least = reach / 2**HALVED
    while len(own) > 1 and len(found) < MOST_LAYERED and reach > least and best.scores[task] > aim:
        if anchor is not best:
            anchor, at = best, torch.tensor([best.coefficients[r] for r in own])
            slopes, here = slopes_at(p, best.coefficients, own), p.evaluator.logits(best.coefficients, p.tasks)
            surrogate = Surrogate(here, slopes, sampled_labels(p, labels), p.objective, FURTHER[-1], 0.0)
            surrogate = surrogate.around(at, here, best.scores)
        points = surrogate.within(at, reach).propose([at], [at, *known], p.search.generation)
        if not points:
            break
        known += [a for _, a in points]
        tried = yield [
            (p.point({**best.coefficients, **dict(zip(own, a.tolist(), strict=True))}), v) for v, a in points
        ]
        found += tried
        better = min(tried, key=lambda c: c.rank)
        if better.objective > best.objective:
            best = better
        else:
            reach /= 2
    return found


def _curve(found: Found, objective: ForgetObjective, task: str) -> list[dict]:
    """Every candidate with one coefficient, from 0 downwards: accuracy of the task, and the task that kept least."""
    curve = []
    for c in sorted((c for c in found.candidates if _shared(c, task)), key=lambda c: -_at(c, task)):
        kept, worst = worst_kept(c.scores, objective.control)
        curve.append({"coefficient": _at(c, task), "target": c.scores[task], "kept": kept, "worst": worst})
    return curve


def _unreachable(told: dict, best: Candidate | None) -> str:
    task, curve = told["task"], told["curve"]
    if best is None:
        nearest_one = max(curve, key=lambda p: p["kept"])
        reached = f"no coefficient lets every other task keep {told['keep']:.0%}; {nearest_one['worst']} keeps {nearest_one['kept']:.1%} at best, at {nearest_one['coefficient']:g}"
        fix = "lower keep, or `talos remove` it"
    else:
        reached = f"{best.scores[task]:.3f} is the lowest accuracy at which all others keep {told['keep']:.0%}, at coefficient {_words(best, task)}"
        fix = f"accept that with at_most={best.scores[task] + 5e-4:.3f}, or lower keep"
    lines = [f"  {p['coefficient']:6.3f}: {p['target']:.3f}, {p['worst']} keeps {p['kept']:.1%}" for p in curve]
    return (
        f"task {task!r} cannot be forgotten: {reached}; it is {told['before']:.3f} now, wanted at most {told['limit']:.3f} (chance is {told['chance']:.3f}); {fix}. Nothing was changed\n"
        + "\n".join(["coefficient: accuracy, and who keeps least (validation)", *lines])
    )


def robustness(uri: str, *, verbose: bool = False) -> dict:
    """Test accuracy of base and head under every corruption of `talos_ray.corruptions`, of every task; kept beside the version, and
    shown in its report.

    Returns:
        task -> corruption ("none" for the data as they are) -> {"base" | "merged": accuracy with its interval}.
    """
    with _opened(uri, (), verbose) as run:
        head, progress, p = run.head, run.session.progress, run.prepared
        deltas, judge = run.deltas(sorted(head["deltas"])), run.judge(head["targets"])
        judge.share([run.arm], {SPARSE: deltas}, (run.how,))
        progress.begin("robustness", "scores under corruptions")
        tasks = {t.name: t for t in (*p.spec.tasks, *p.spec.control)}
        asked = [(t, c, m) for t, task in tasks.items() for c in CORRUPTIONS[task.kind] for m in ("base", "merged")]
        refs = [
            judge.evaluate.remote(
                run.session.shared_ref, judge.ways[SPARSE].ref, head["coefficients"] if m == "merged" else {}, [t], c
            )
            for t, c, m in asked
        ]
        answers = judge.wait(refs, "corrupted", "robustness")
        found: dict = {
            t: {"none": {m: head["scores"][t][m] for m in ("base", "merged")}} for t in tasks if t in head["scores"]
        }
        for (t, c, m), answer in zip(asked, answers, strict=True):
            found.setdefault(t, {}).setdefault(c, {})[m] = accuracy(*judge.answers(answer, {}).counts(t)).as_dict()
        versions.add_robustness(run.folder, head["version"], found)
        progress.end("robustness", f"{len(asked)} scores; see {run.folder.store.path('report/index.html')}")
        return found
