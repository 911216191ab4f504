"""Training where a task needs one worker: a pool of actors, one process each, that the driver hands tasks to.

A worker costs the driver's node a few messages a second, whereas every trainer of Ray Train keeps a controller and a
synchronising actor there (docs/scaling.md has both measured). A worker that is lost costs its own task the steps since
the last checkpoint, and the others nothing. Nodes that come late get workers, and a worker for which nothing waits
goes at once.

Nothing here imports torch: a worker loads it with what it does.
"""

from __future__ import annotations

import os
import pkgutil
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import ray
from ray import ObjectRef
from ray.actor import ActorClass, ActorProxy
from ray.exceptions import ActorUnavailableError, RayError

from talos_ray.config import Cluster
from talos_ray.errors import TalosError
from talos_ray.orchestrate.cluster import WARM, end_actor, nodes, options, remote_address, room, root_cause
from talos_ray.orchestrate.jobs import POLL_SECONDS, Board, Job, JobState, Trainer

if TYPE_CHECKING:
    from talos_ray.orchestrate.worker import Arm, Shared

LOOK_SECONDS = 5.0  # between two looks at which nodes there are
STILLBORN = 4  # workers in a row that may end before they start, as where a node goes away: more than max_failures
NODE_SECONDS = 60.0  # until Ray knows at the latest that a node is gone whose workers do not answer


Place = tuple[str, str, int]  # id of a node, its name, and a process's id
Progress = tuple[str, int, float | None]  # a job's name, its updates that are done, and the last loss
# A worker answers beside its training, in a thread that waits for no step. Ray's own types leave out what only actors
# may be declared with.
WORKER: dict[str, Any] = {"concurrency_groups": {"beside": 1}, **WARM}


@ray.remote(**WORKER)
class TrainingWorker:
    """One process that trains one job after the other, and tells beside it how far it is."""

    def __init__(
        self, trainer: str, shared_ref: list[ObjectRef[Shared]], arms_ref: list[ObjectRef[dict[str, Arm]]]
    ) -> None:
        self.trainer_name = trainer
        # In lists they come as references: this process fetches what they stand for once it has work.
        self.references = (shared_ref[0], arms_ref[0])
        self.trainer: Trainer | None = None
        self.now: Progress = ("", 0, None)

    @ray.method(concurrency_group="beside")
    def place(self) -> Place:
        """Id of the node, its name, and the process's id."""
        return ray.get_runtime_context().get_node_id(), socket.gethostname(), os.getpid()

    @ray.method(concurrency_group="beside")
    def progress(self) -> Progress:
        """The present job's name, its updates that are done, and the last loss."""
        return self.now

    @ray.method
    def train(self, job: Job) -> tuple[float, str | None]:
        """Train a job to its end. Returns its last loss, and what is wrong with its settings if they are at fault."""
        self.now = (job.name, 0, None)
        trainer = self.trainer
        if trainer is None:
            make_trainer = pkgutil.resolve_name(self.trainer_name)
            trainer = self.trainer = make_trainer(*self.references)
        try:
            _, loss = trainer.train(job, 0, 1, self._tell)
        except (FloatingPointError, ValueError) as error:  # another worker would meet it again
            return float("nan"), str(error)
        return loss, None

    def _tell(self, step: int, loss: float) -> None:
        self.now = (self.now[0], step, loss)


WORKERS = cast("ActorClass[TrainingWorker]", TrainingWorker)  # type checkers look past a class's decorator


@dataclass
class Hired:
    """A worker as the driver knows it."""

    number: int
    actor: ActorProxy[TrainingWorker]
    awaited: ObjectRef[Any]  # that it is there or, once it has a job, that job's end
    since: float  # when it was last seen to get on
    job: Job | None = None
    node: str = ""
    host: str = ""
    pid: int = 0
    step: int = 0
    asked: ObjectRef[Progress] | None = None  # how far it is


@dataclass(frozen=True, kw_only=True)
class Loss:
    """A worker that was lost, what it was at, and why."""

    task: str | None
    step: int
    node: str
    host: str
    reason: str
    preempted: bool
    unanswered: bool  # it may still run, or its node be gone without Ray's knowing yet
    time: float  # seconds of this process's clock


class Pool:
    """The driver's side: who is at work on what.

    Args:
        start: makes a worker.
        on_loss: called for every worker that is lost.
    """

    def __init__(
        self,
        *,
        jobs: Sequence[Job],
        settings: Cluster,
        start: Callable[[], ActorProxy[TrainingWorker]],
        on_loss: Callable[[Loss], None],
    ) -> None:
        self.board = Board(jobs)
        self.settings = settings
        self.start = start
        self.on_loss = on_loss
        self.workers: list[Hired] = []
        self.losses: list[Loss] = []
        self.hired = 0
        self.stillborn = 0  # workers that ended before they had a job, since one last had
        self.places = 0
        self.next_look = 0.0

    def run(self, on_status: Callable[[dict[str, JobState], int], None]) -> None:
        """Until every job is finished or given up.

        Raises:
            TalosError: no worker can be started.
        """
        try:
            while self.board.open:
                self._hire()
                self._hear()
                self._ask()
                on_status(self.board.state, len(self.losses))
        finally:
            # Also after an interrupt: an actor that nobody ends holds its GPU as long as the driver lives.
            for worker in list(self.workers):
                self._dismiss(worker)

    def _hire(self) -> None:
        """As many workers as there is room and work for; who has no job yet and gets none any more goes."""
        if time.monotonic() >= self.next_look:
            self.places = places(self.settings)
            self.next_look = time.monotonic() + LOOK_SECONDS
        busy = sum(worker.job is not None for worker in self.workers)
        # Who trains is kept even where a node has gone and there would be room for fewer.
        wanted = max(busy, min(self.places, busy + len(self.board.waiting)))
        while len(self.workers) < wanted:
            actor = self.start()
            awaited = actor.place.remote()
            self.workers.append(Hired(number=self.hired, actor=actor, awaited=awaited, since=time.monotonic()))
            self.hired += 1
        # Still starting, and by now others have taken what they were started for.
        surplus = len(self.workers) - wanted
        idle = [worker for worker in self.workers if worker.job is None]
        for worker in idle[:surplus]:
            self._dismiss(worker)

    def _hear(self) -> None:
        """Wait a moment for workers that have come, or have finished their job."""
        awaited = {worker.awaited: worker for worker in self.workers}
        if not awaited:
            time.sleep(POLL_SECONDS)
            return
        # One wait for the first, and one that does not wait for all that are there by then.
        first, _ = ray.wait(list(awaited), timeout=POLL_SECONDS)
        ready, _ = ray.wait(list(awaited), num_returns=len(awaited), timeout=0) if first else ([], [])
        for reference in ready:
            self._answered(awaited[reference])

    def _answered(self, worker: Hired) -> None:
        try:
            answer = ray.get(worker.awaited)
        except RayError as error:
            preempted = getattr(error, "preempted", False)  # as Ray tells it only of an actor that died
            unanswered = isinstance(error, ActorUnavailableError)
            self._lose(worker, root_cause(error), preempted=preempted, unanswered=unanswered)
            return
        # What was awaited of a worker without a job is that it has come.
        if worker.job is None:
            worker.node, worker.host, worker.pid = answer
            self.stillborn = 0
        else:
            loss, fault = answer
            if fault is None:
                self.board.progress(worker.job.name, worker.job.settings.steps, loss, worker.pid)
            self.board.done(worker.job, fault)
        worker.job = self.board.take(worker.number)
        if worker.job is None:
            self._dismiss(worker)
            return
        # What it was asked about the job before is forgotten, and so is how far it was: patience begins anew.
        worker.awaited = worker.actor.train.remote(worker.job)
        worker.asked = None
        worker.step = 0
        worker.since = time.monotonic()

    def _ask(self) -> None:
        """How far everybody is. Who does not answer is asked no second time; who does not get on is replaced."""
        # Asked of all at once, and read only where the answer has come: one node that is slow holds nobody up.
        busy = [worker for worker in self.workers if worker.job is not None]
        for worker in busy:
            if worker.asked is None:
                worker.asked = worker.actor.progress.remote()
        asked = [worker.asked for worker in busy if worker.asked is not None]
        answered, _ = ray.wait(asked, num_returns=len(asked), timeout=0) if asked else ([], [])
        for worker in busy:
            if worker.asked in answered:
                self._note(worker)
            patience = self.settings.stall_minutes  # 0: none is ever taken for stuck
            if patience and time.monotonic() - worker.since > patience * 60:
                self._lose(worker, f"no step for {patience:g} minutes (cluster.stall_minutes)")
        if not busy and self.workers and self.settings.stall_minutes:
            waited = time.monotonic() - min(worker.since for worker in self.workers)
            if waited > self.settings.stall_minutes * 60:
                raise TalosError(
                    f"no worker has started for {waited / 60:.0f} minutes; wanted a node with room for one; see `ray "
                    "status`, or lower what cluster asks for a worker"
                )

    def _note(self, worker: Hired) -> None:
        assert worker.asked is not None and worker.job is not None  # `_ask` looks at no others
        try:
            name, step, loss = ray.get(worker.asked)
        except RayError:  # it is lost, as what it is awaited for tells in a moment
            return
        worker.asked = None
        # A worker that has not begun its new job yet still tells of the one before.
        if name == worker.job.name and step != worker.step:
            worker.step = step
            worker.since = time.monotonic()
            self.board.progress(worker.job.name, step, loss, worker.pid)

    def _lose(self, worker: Hired, reason: str, *, preempted: bool = False, unanswered: bool = False) -> None:
        """Its job goes to another one while attempts are left."""
        job = worker.job
        loss = Loss(
            task=job.name if job else None,
            step=worker.step,
            node=worker.node,
            host=worker.host,
            reason=reason,
            preempted=preempted,
            unanswered=unanswered,
            time=time.monotonic(),
        )
        self._dismiss(worker)
        self.losses.append(loss)
        self.on_loss(loss)
        # Without a job it was no job's fault: then it is the cluster that cannot start one.
        if job is None:
            self.stillborn += 1
            if self.stillborn > self.settings.max_failures + STILLBORN:
                raise TalosError(f"no worker can be started: {reason}")
        elif self._failures(job) > self.settings.max_failures:
            self.board.done(job, reason)
        else:
            self.board.give_back(job)

    def _failures(self, job: Job) -> int:
        """How often a job lost its worker for a reason of its own: not counted where a node was taken away, or may
        have been."""
        # Asked now and not when a worker was lost: Ray learns that a node is gone after it has lost its workers.
        alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        now = time.monotonic()
        failures = 0
        for loss in self.losses:
            of_job = loss.task == job.name and loss.node in alive and not loss.preempted
            # Of a worker that only did not answer, Ray may yet say that its node is gone.
            certain = not loss.unanswered or now - loss.time > NODE_SECONDS
            failures += of_job and certain
        return failures

    def _dismiss(self, worker: Hired) -> None:
        self.workers.remove(worker)
        end_actor(worker.actor)


def places(settings: Cluster) -> int:
    """How many workers are wanted at once: as many as `teams` says, on a cluster also those whose nodes an autoscaler
    has yet to bring; as many as fit, if it is not said."""
    fit = max(1, room(settings, nodes()))
    if settings.teams is None:
        return fit
    return settings.teams if remote_address(settings) else min(settings.teams, fit)


def train_in_pool(
    *,
    shared_ref: ObjectRef[Shared],
    arms_ref: ObjectRef[dict[str, Arm]],
    jobs: Sequence[Job],
    settings: Cluster,
    trainer: str,
    on_status: Callable[[dict[str, JobState], int], None],
    on_loss: Callable[[Loss], None],
) -> dict[str, JobState]:
    """Train all jobs, each by one worker. Returns how far each of them came."""

    def start() -> ActorProxy[TrainingWorker]:
        return WORKERS.options(**options(settings)).remote(trainer, [shared_ref], [arms_ref])

    pool = Pool(jobs=jobs, settings=settings, start=start, on_loss=on_loss)
    pool.run(on_status)
    return pool.board.state
