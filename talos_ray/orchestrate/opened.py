"""A finished run, opened on Ray for an operation that trains nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from talos_ray.config import Merge, Spec
from talos_ray.core.delta import Delta
from talos_ray.core.merging import task_of
from talos_ray.core.paired import Answers
from talos_ray.core.segments import Blend
from talos_ray.errors import TalosError, nearest
from talos_ray.orchestrate.driver import publish
from talos_ray.orchestrate.plan import SPARSE, ArmPlan, Prepared, arms_of, prepare
from talos_ray.orchestrate.scoring import Chosen, Heads, Way, score_version, ways_of
from talos_ray.orchestrate.session import Session, on_ray
from talos_ray.progress import Progress
from talos_ray.storage.run_folder import RunFolder
from talos_ray.storage.version import Version


@dataclass(frozen=True)
class OpenRun:
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
def opened(uri: str, tasks: Sequence[str], verbose: bool, in_head: bool = False) -> Iterator[OpenRun]:
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
            yield OpenRun(prepared, folder, arm, head, session)
