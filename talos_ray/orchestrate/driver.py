"""`edit`, stage by stage: calibrate, train, search, test, version, report.

A second run of the same spec does nothing, a run that was killed goes on where it stood, and a changed task is the
only one that is trained again. A spec with more tasks than its run has is an addition: the mask stays.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from typing import TYPE_CHECKING

import torch

from talos_ray.config import Spec, Task
from talos_ray.core.delta import Delta, imported, make_delta
from talos_ray.core.mask import Mask
from talos_ray.core.paired import Answers
from talos_ray.errors import TalosError
from talos_ray.integrations import hub
from talos_ray.models.heads import head_key
from talos_ray.orchestrate.plan import (
    DENSE,
    SPARSE,
    ArmPlan,
    Prepared,
    arms_of,
    prepare,
    version_key,
    weights_of,
    with_commits,
)
from talos_ray.progress import STARTING, Progress
from talos_ray.storage.run_folder import RunFolder, mask_at
from talos_ray.storage.version import Stages, Version
from talos_ray.trust import versions

MOST_COUNTED = 40  # tasks whose number of classes `check` tells

if TYPE_CHECKING:
    from talos_ray.orchestrate.jobs import Job, JobState
    from talos_ray.orchestrate.pool import Loss
    from talos_ray.orchestrate.search import Approved
    from talos_ray.orchestrate.session import Session


def run_edit(
    spec: Spec, *, verbose: bool = False, progress: Progress | None = None, approved: Approved | None = None
) -> RunFolder:
    """Do whatever of the spec is not done yet. Returns the run's folder.

    Args:
        approved: what tasks keep that another run has in force, where this one has no version yet.

    Raises:
        TalosError: bad input (before any work), or a stage that could not be finished; what was finished is kept.
    """
    with progress or Progress() as progress, ExitStack() as stack:
        known = None
        spec = with_commits(spec)
        # Ray's processes take seconds to load torch, and the check of the spec takes as long: they do it meanwhile.
        if "ray" in sys.modules and sys.modules["ray"].is_initialized():
            from talos_ray.orchestrate.calibrate import ahead

            ahead(spec)
        if spec.mask.open:
            from talos_ray.orchestrate.automatic import resolved

            spec, known = resolved(spec, progress, verbose, stack)
        prepared = prepare(spec, progress)
        folder = RunFolder(spec.output)
        # A version's key holds everything that decides it, so the same spec finds its version before Ray is asked.
        mask = folder.load_mask(prepared.base)
        if mask is not None and (number := _made(prepared, folder, mask)) is not None:
            progress.say(
                f"Nothing to do: {spec.output} already holds this edit as version {number} (head is version "
                f"{folder.head})."
            )
            return folder
        from talos_ray.orchestrate.session import on_ray

        # From here on Ray is started and something written: whatever can be refused without it has been.
        started_at = time.monotonic()
        with on_ray(prepared, folder, verbose, progress) as session:
            _begin(prepared, folder)
            session.share()
            mask = mask or _calibrate(session, known)
            arms = arms_of(prepared, mask)
            _finish(session, arms, _train(session, arms), started_at, approved)
        return folder


def _begin(p: Prepared, folder: RunFolder) -> None:
    """Put on storage whose folder it is from now on, and the heads that everything after is computed with."""
    heads = {task: torch.from_numpy(head) for task, head in p.heads.items()}
    classes = {task: data.classes for task, data in p.data.items()}
    keys = {task: head_key(p.base, data) for task, data in p.data.items()}
    folder.begin(p.spec.model_dump(mode="json"), p.base, p.identity, heads, classes, keys)


def check(spec: Spec) -> None:
    """All that `run_edit` checks before it starts anything, and nothing else.

    Raises:
        SpecError: a line for everything that is wrong. TalosError: no token for the Hub, where it is to be pushed.
    """
    if spec.push is not None:
        hub.check_token(spec.push)
    with Progress() as progress:
        if spec.mask.open:
            from talos_ray.orchestrate.automatic import checkable

            spec = checkable(spec)
        prepared = prepare(with_commits(spec), progress)
        # A count tells at a look whether these are the data that were meant.
        counts = [f"{name} {len(data.classes)}" for name, data in prepared.data.items()]
        rest = f" and {len(counts) - MOST_COUNTED} tasks more" if len(counts) > MOST_COUNTED else ""
        progress.say(f"classes: {', '.join(counts[:MOST_COUNTED])}{rest}")


def _made(p: Prepared, folder: RunFolder, mask: Mask) -> int | None:
    """The version that this spec would make again."""
    arms = arms_of(p, mask)
    done = {arm.name: arm.done() for arm in arms}
    # Without all deltas there is no key to look for.
    if any(len(done[arm.name]) < len(arm.keys) for arm in arms):
        return None
    key = version_key(p, done[SPARSE], done.get(DENSE, {}))
    return next((number for number in folder.versions() if folder.load_version(number).key == key), None)


def _calibrate(session: Session, known: Mask | None) -> Mask:
    """The run's mask: `known`, from a file, or made now."""
    from talos_ray.orchestrate.calibrate import mask_of

    p = session.p
    progress = session.progress
    spec = session.spec
    progress.begin("calibrate", "sensitivity of every weight")
    if known is not None:
        mask = known
    elif spec.mask.path is not None:
        mask = mask_at(spec.mask.path, p.base)
    else:
        workers = session.slots_of("calibrate", 1, spec.cluster.calibration_workers)

        def on_shard(done: int, total: int) -> None:
            progress.update("calibrate", done / total, f"shard {done} of {total}")

        mask = mask_of(session, spec.mask, [p.data[task] for task in p.targets], workers, on_shard)
    # Also one that came from a file: the run is whole in its folder, wherever that is copied to.
    session.folder.save_mask(mask, p.base)
    session.folder.record(
        "calibrate", ["mask.safetensors"], base=p.base, mask=mask.fingerprint, k=mask.k, inputs=p.mask_key
    )
    progress.end("calibrate", f"mask {mask.fingerprint[:12]}, {mask.k:,} of {mask.layout.total:,} weights")
    return mask


def _train(session: Session, arms: list[ArmPlan]) -> dict[str, dict[str, Delta]]:
    """Train whatever is not on storage yet. Returns the deltas of all arms, by arm and task."""
    from talos_ray.orchestrate.worker import in_store

    # Asked of the storage, and not of any note on what was done: so a run that was killed goes on where it stood.
    finished = {arm.name: arm.done() for arm in arms}
    jobs = _jobs(session.p, arms, finished)
    imports = _bring_checkpoints(session, arms, finished)
    if jobs:
        in_all = sum(len(arm.keys) for arm in arms)
        _train_jobs(session, arms, jobs, in_all - len(jobs) - imports)
    # In the object store, where workers map them too: this process holds one at a time for itself.
    deltas: dict[str, dict[str, Delta]] = {}
    for arm in arms:
        deltas[arm.name] = {delta.task: in_store(delta) for delta in arm.finished()}
    for arm in arms:
        if missing := sorted(set(arm.keys) - set(deltas[arm.name])):
            raise TalosError(
                f"no delta of {arm.name}/{missing[0]} on storage after training; check that every worker can write to "
                f"{arm.folder.store.uri!r}"
            )
    if jobs:
        trained = [job.task.name for job in jobs if job.arm == SPARSE]
        fingerprints = {task: deltas[SPARSE][task].fingerprint for task in trained}
        files = [_delta_file(job.arm, job.task.name) for job in jobs]
        session.folder.record("train", files, mask=arms[0].mask.fingerprint, deltas=fingerprints)
    return deltas


def _jobs(p: Prepared, arms: list[ArmPlan], finished: Mapping[str, Collection[str]]) -> list[Job]:
    """What has to be trained: all that is not on storage, and of which no checkpoint was given."""
    from talos_ray.orchestrate.jobs import Job

    jobs = []
    for arm in arms:
        for task in p.spec.tasks:
            if task.name in finished[arm.name] or task.checkpoint is not None:
                continue
            job = Job(
                task=task,
                arm=arm.name,
                settings=arm.settings[task.name],
                key=arm.keys[task.name],
                folder=arm.folder.store.uri,
                mask=arm.mask.fingerprint,
                info={"data": p.data[task.name].train.fingerprint()},
            )
            jobs.append(job)
    return jobs


def _bring_checkpoints(session: Session, arms: list[ArmPlan], finished: Mapping[str, Collection[str]]) -> int:
    """Make the deltas of tasks that somebody else has trained, put that on record, and say how many there were."""
    p = session.p
    files = []
    notes = []
    for arm in arms:
        for task in p.spec.tasks:
            if task.name not in finished[arm.name] and task.checkpoint is not None:
                file, words = _import(p, arm, task)
                files.append(file)
                notes.append(words)
    if files:
        # Those of the Hub with their commits, which `with_commits` has put into the spec.
        sources = {task.name: task.checkpoint for task in p.spec.tasks if task.name in p.checkpoints}
        session.folder.record(
            "import", files, mask=arms[0].mask.fingerprint, checkpoints=p.checkpoints, sources=sources
        )
        session.progress.say("; ".join(notes))
    return len(files)


def _train_jobs(session: Session, arms: list[ArmPlan], jobs: list[Job], kept: int) -> None:
    """Have jobs trained, and tell how it went. `kept`: deltas that were there already."""
    progress = session.progress
    cluster = session.spec.cluster
    progress.begin("train", STARTING)
    teams = session.slots_of("train", cluster.workers_per_task, cluster.teams)  # how many tasks are at work at once
    _train_until_done(session, arms, jobs, teams)
    again = progress.restarts
    several = cluster.workers_per_task > 1
    if again and several:
        session.folder.record("teams restarted", restarts=again)
    notes = [f"{len(jobs)} trained"]
    if kept:
        notes.append(f"{kept} kept")
    notes.append(f"{min(teams, len(jobs))} {'team(s)' if several else 'worker(s)'} at once")
    if again:
        notes.append(f"{again} restart(s)")
    progress.end("train", ", ".join(notes))


def _train_until_done(session: Session, arms: list[ArmPlan], jobs: list[Job], teams: int) -> None:
    """Train, and begin anew with what is left where the queue of the teams was lost.

    Raises:
        TalosError: a job cannot be trained. RayActorError: the queue was lost too often.
    """
    from ray.exceptions import RayActorError

    from talos_ray.orchestrate.cluster import root_cause
    from talos_ray.orchestrate.train import train
    from talos_ray.orchestrate.worker import Arm

    cluster = session.spec.cluster

    def on_status(state: dict[str, JobState], restarts: int) -> None:
        session.progress.training(state, restarts)
        session.watch.training(state, restarts)

    # Masks alone travel to the workers: deltas are what they are to make.
    bits = {arm.name: Arm(arm.name, arm.mask.bits) for arm in arms}
    todo = jobs
    # With the queue no task is lost: what was trained is on storage, and the rest begins at its checkpoints.
    for more in reversed(range(cluster.max_failures + 1)):
        try:
            train(
                shared_ref=session.shared_ref,
                arms=bits,
                jobs=todo,
                settings=cluster,
                teams=teams,
                scratch=session.scratch,
                on_status=on_status,
                on_loss=lambda loss: _tell_of_loss(session, loss),
            )
            return
        except RayActorError as error:
            if not more:
                raise
            done = {(arm.name, task) for arm in arms for task in arm.done()}
            todo = [job for job in jobs if (job.arm, job.task.name) not in done]
            session.folder.record("teams begun anew", reason=root_cause(error), tasks=[job.name for job in todo])
            session.progress.say(
                f"train: the queue of the teams was lost; {len(todo)} of {len(jobs)} tasks are begun anew"
            )


def _tell_of_loss(session: Session, loss: Loss) -> None:
    """Say that a worker was lost, and put on record where and why: what a whole cluster does shows only there."""
    what = f"{loss.task} after step {loss.step}" if loss.task else "before it had a task"
    session.progress.say(f"train: lost a worker on {loss.host or 'a node'}, {what}: {loss.reason}")
    # A process's own clock says nothing to others; whether it answered only decides how the pool counts the loss.
    details = {name: value for name, value in asdict(loss).items() if name not in ("time", "unanswered")}
    session.folder.record("worker lost", **details)


def _import(p: Prepared, arm: ArmPlan, task: Task) -> tuple[str, str]:
    """Make a task's delta of its checkpoint. Returns the file's name, and what is told of it.

    Raises:
        TalosError: a value of the checkpoint is not finite.
    """
    started = time.perf_counter()
    tuned = weights_of(task, p.layout, p.spec.model, p.tensors)
    after, before, lost = imported(tuned, p.tensors, arm.mask)
    info = {
        "key": arm.keys[task.name],
        "imported": task.checkpoint,
        "checkpoint": p.checkpoints[task.name],
        "lost": lost,
        "seconds": round(time.perf_counter() - started, 3),
        "state_bytes": 0,
    }
    # Rounded as a trained one would be, so that nothing downstream can tell them apart.
    dtype = getattr(torch, arm.settings[task.name].delta_dtype)
    try:
        delta = make_delta(task.name, after, before, p.base, arm.mask.fingerprint, dtype, info)
    except ValueError:
        raise TalosError(
            f"checkpoint {task.checkpoint!r} of task {task.name!r} holds values that are not finite; wanted finite "
            "weights; train it again"
        ) from None
    arm.folder.save_delta(delta)
    words = (
        f"{arm.name}/{task.name} from {task.checkpoint}: {lost:.1%} of its change (squared length) lies off the mask "
        "and is left behind"
    )
    return _delta_file(arm.name, task.name), words


def _delta_file(arm: str, task: str) -> str:
    return f"{'' if arm == SPARSE else 'baseline/'}deltas/{task}.safetensors"


def _finish(
    session: Session,
    arms: list[ArmPlan],
    deltas: dict[str, dict[str, Delta]],
    started_at: float,
    approved: Approved | None,
) -> None:
    """Search the coefficients, score what they make, and publish it."""
    from talos_ray.orchestrate.scoring import score_version
    from talos_ray.orchestrate.search import MergeSearch, approved_in

    progress = session.progress
    session.slots_of("search", 1, session.spec.cluster.search_workers)
    marks = {}
    for arm, of_arm in deltas.items():
        marks[arm] = {task: delta.fingerprint for task, delta in of_arm.items()}
    # As within a run, coefficients mean something for the deltas only that they were learned for.
    if approved is not None and not approved.deltas.items() <= marks[SPARSE].items():
        approved = None
    # An addition leaves what is in force as it is: somebody has looked at it, and only the new tasks are open.
    approved = approved_in(session.folder, session.p, marks[SPARSE]) or approved
    if approved is not None:
        progress.say(
            f"search: {', '.join(sorted(approved.deltas))} keep their coefficients and heads (search.relearn: all "
            "would find them anew)"
        )
    search = MergeSearch(session, session.p, approved=approved)
    chosen = search.choose(arms, deltas)
    version, base, now = score_version(session, session.p, arms, deltas, chosen)
    stages = Stages(
        seconds=progress.seconds(),
        slots=session.slots,
        first_step=progress.first_step,
        merge_seconds=search.seconds,
        object_store_peak=session.watch.peak,
    )
    choice = session.folder.load_choice()
    version = version.with_fields(
        key=version_key(session.p, marks[SPARSE], marks.get(DENSE, {})),
        seconds=round(time.monotonic() - started_at, 1),
        stages=stages,
    )
    # A field that is not given is not in the file either, as of a run that left nothing to be tried.
    if choice is not None:
        version = version.with_fields(choice=choice)
    session.watch.version(version)
    publish(session, version, base, now, "version")


def publish(
    session: Session,
    version: Version,
    base: Answers,
    now: Answers,
    operation: str,
    *,
    at: int | None = None,
    **details: object,
) -> int:
    """Make a version, and put it in force if its gate holds. The first one of a run is preceded by the base. Returns
    its number."""

    progress = session.progress
    folder = session.folder
    progress.begin("report", "tables and plots")
    # So that head can be rolled back to no edit at all, and every version has one before it to be compared with.
    if not folder.versions():
        versions.publish(folder, versions.base_version(version), base, base, "version")
    number = versions.publish(folder, version, base, now, operation, at=at, log=progress.lines, **details)
    progress.end("report", versions.standing(folder, number))
    return number
