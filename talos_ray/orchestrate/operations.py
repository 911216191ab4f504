"""Edits of a finished run that train nothing: merge some of its tasks, remove one; and what spoilt inputs do to head.

Each edit makes a new version from deltas that are on storage; nothing that another version needs is touched.
`orchestrate.forgetting` is another one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from talos_ray.config import Merge
from talos_ray.core.segments import Blend
from talos_ray.corruptions import CORRUPTIONS
from talos_ray.errors import TalosError
from talos_ray.orchestrate.opened import opened
from talos_ray.orchestrate.plan import SPARSE, version_key
from talos_ray.orchestrate.scoring import Heads, Tested, answers, score_version
from talos_ray.orchestrate.search import MergeSearch
from talos_ray.orchestrate.worker import in_store
from talos_ray.trust import versions

Robustness = dict[str, dict[str, dict[str, Any]]]  # task -> corruption -> base or merged -> its score, as JSON


def merge(uri: str, tasks: Sequence[str], *, reason: str | None = None, verbose: bool = False) -> int:
    """Find coefficients for some of a run's tasks, by the search of its spec. Returns the version's number.

    Raises:
        TalosError: no such task, or nothing to merge.
    """
    if not tasks:
        raise TalosError("no task to merge is named; wanted one or more of the run's target tasks; add their names")
    with opened(uri, tasks, verbose) as run:
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
    with opened(uri, [task], verbose, in_head=True) as run:
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


def robustness(uri: str, *, verbose: bool = False) -> Robustness:
    """Test accuracy of base and head under every corruption of `talos_ray.corruptions`, of every task; kept beside the
    version, and shown in its report.

    Returns:
        task -> corruption ("none" for the data as they are) -> {"base" | "merged": accuracy with its interval}.
    """
    with opened(uri, (), verbose) as run:
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
