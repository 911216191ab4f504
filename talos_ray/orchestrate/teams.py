"""Training where a task needs several workers: teams, each a trainer of Ray Train, pull tasks from one queue.

A team's start-up is paid once, not once a task. Its workers checkpoint to storage by themselves: `ray.train.report`
would make all of them wait at every step worth keeping. When Ray Train restarts a team after a failure, the queue
hands it the task it was on, which resumes from its last checkpoint and ends bitwise where it would have ended.

Nothing here imports torch: the queue and Ray Train's own controllers load this file, and each is a process.
"""

from __future__ import annotations

import os
import pkgutil
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

import ray
from ray import ObjectRef
from ray.actor import ActorClass, ActorHandle
from ray.exceptions import RayActorError
from ray.util.placement_group import PlacementGroup, get_current_placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from talos_ray.config import Cluster
from talos_ray.orchestrate.cluster import WARM, end_actor, resources
from talos_ray.orchestrate.jobs import NAMESPACE, POLL_SECONDS, Board, Job, JobState, Trainer

if TYPE_CHECKING:
    from ray.train.torch import TorchTrainer

    from talos_ray.orchestrate.worker import Arm, Shared


# Many teams ask at once, and none of their calls takes long. Ray's own types leave out what only actors may be declared
# with.
QUEUE: dict[str, Any] = {"num_cpus": 0, "max_concurrency": 16, **WARM}


@ray.remote(**QUEUE)
class Queue:
    """Which job is with which team, and how far it is. Lives as long as the driver."""

    def __init__(
        self, jobs: Sequence[Job], shared_ref: list[ObjectRef[Shared]], arms_ref: list[ObjectRef[dict[str, Arm]]]
    ) -> None:
        self.board = Board(jobs)
        self.with_team: dict[int, Job] = {}
        self.references = (shared_ref[0], arms_ref[0])
        self.restarts: dict[int, int] = {}
        self.places: dict[int, PlacementGroup | None] = {}

    def objects(self) -> list[ObjectRef[Any]]:
        """References to the shared base and the arms' masks."""
        return list(self.references)

    def begin(self, team: int, place: PlacementGroup | None) -> None:
        """A team has (re)started, in this placement group."""
        self.restarts[team] = self.restarts.get(team, -1) + 1  # the first start is no restart
        self.places[team] = place

    def next(self, team: int) -> Job | None:
        """The job this team had and did not finish, else the longest one waiting, else None."""
        if team in self.with_team:
            self.board.begun(self.with_team[team], team)
        elif (job := self.board.take(team)) is not None:
            self.with_team[team] = job
        return self.with_team.get(team)

    def progress(self, name: str, step: int, loss: float, pid: int) -> None:
        self.board.progress(name, step, loss, pid)

    def done(self, team: int, error: str | None = None) -> None:
        """The team has finished (or, with `error`, given up) its job."""
        self.board.done(self.with_team.pop(team), error)

    @ray.method
    def status(self) -> tuple[dict[str, JobState], dict[int, int], dict[int, PlacementGroup | None]]:
        """Of every job how far it is, of every team how often it was started again, and where it is."""
        return self.board.state, self.restarts, self.places


QUEUES = cast("ActorClass[Queue]", Queue)  # type checkers look past a class's decorator


class _Messages:
    """How far a team is, for the queue. No step waits for it: only the message before the one that is sent must have
    come. That raises where the queue is gone, and then nobody wants the rest."""

    def __init__(self, queue: ActorHandle[Any]) -> None:
        self.queue = queue
        self.last: ObjectRef[Any] | None = None

    def about(self, job: Job) -> Callable[[int, float], None]:
        """What tells of a job: called with its updates that are done, and the loss."""

        def tell(step: int, loss: float) -> None:
            if self.last is not None:
                ray.get(self.last)
            self.last = self.queue.progress.remote(job.name, step, loss, os.getpid())

        return tell


def train_loop(config: dict[str, Any]) -> None:
    """What every worker of a team runs, from the first job to an empty queue.

    Args:
        config: name of the `queue`, number of the `team`, name of the `trainer`; a dict, because Ray Train wants one.
    """
    import ray.train
    import torch.distributed as dist

    context = ray.train.get_context()
    rank = context.get_world_rank()
    world = context.get_world_size()
    team = config["team"]
    try:
        queue = ray.get_actor(config["queue"], namespace=NAMESPACE)
    except ValueError:  # the driver has given up, or begins anew
        return
    # Before the libraries are loaded: a team that is lost on the way has to be known with its place.
    if rank == 0:
        ray.get(queue.begin.remote(team, get_current_placement_group()))
    make_trainer = pkgutil.resolve_name(config["trainer"])
    trainer: Trainer = make_trainer(*ray.get(queue.objects.remote()))
    messages = _Messages(queue)
    while True:
        # Only one worker asks, and the others learn of it by torch's own channel: so all have the same job.
        box = [ray.get(queue.next.remote(team)) if rank == 0 else None]
        dist.broadcast_object_list(box, src=0)
        job: Job | None = box[0]
        if job is None:
            return
        try:
            seconds, loss = trainer.train(job, rank, world, messages.about(job))
            error = None
        except (FloatingPointError, ValueError) as fault:  # of the settings: a restart would meet it again
            seconds = 0.0
            loss = float("nan")
            error = str(fault)
        if rank == 0:
            ray.get(queue.done.remote(team, error))
        ray.train.report({"task": job.task.name, "arm": job.arm, "seconds": seconds, "loss": loss})


def _trainer(config: dict[str, Any], settings: Cluster, scratch: str) -> TorchTrainer:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    return TorchTrainer(
        train_loop,
        train_loop_config=config,
        scaling_config=ScalingConfig(
            num_workers=settings.workers_per_task,
            use_gpu=settings.gpus_per_worker > 0,
            resources_per_worker=resources(settings),
            label_selector=settings.labels or None,  # type: ignore[call-arg]  # typed as Train V1, which has none
            placement_strategy="PACK",
        ),
        run_config=RunConfig(
            name=f"team-{config['team']}",
            storage_path=scratch,
            failure_config=FailureConfig(max_failures=settings.max_failures),
        ),
    )


def train_in_teams(
    *,
    shared_ref: ObjectRef[Shared],
    arms_ref: ObjectRef[dict[str, Arm]],
    jobs: Sequence[Job],
    settings: Cluster,
    teams: int,
    scratch: str,
    trainer: str,
    on_status: Callable[[dict[str, JobState], int], None],
) -> tuple[dict[str, JobState], list[BaseException]]:
    """Train all jobs in `teams` teams at once. Returns how far each job came, and what ended teams.

    Raises:
        RayActorError: the queue was lost, and all teams have ended: what is not on storage has to be trained by
            another call.
    """
    name = f"queue-{ray.get_runtime_context().get_job_id()}-{time.time_ns()}"
    # On the driver's own node: only with the driver may it be lost.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    queue = QUEUES.options(name=name, namespace=NAMESPACE, scheduling_strategy=here).remote(
        list(jobs), [shared_ref], [arms_ref]
    )
    failures: list[BaseException] = []
    places: dict[int, PlacementGroup | None] = {}
    over = threading.Event()

    def run_team(team: int) -> None:
        """In a thread, so that a team costs no process but Ray Train's own."""
        for _ in range(settings.max_failures + 1):
            try:
                _trainer({"queue": name, "team": team, "trainer": trainer}, settings, scratch).fit()
                return
            except Exception as error:  # whatever ended the team, its jobs are what the driver reports
                failures.append(error)
                if over.is_set() or not isinstance(error, RayActorError):
                    return
                # Ray Train's own controller is gone, who would have given up the team's place.
                if (place := places.pop(team, None)) is not None:
                    remove_placement_group(place)

    # Asked for, and not told: a queue that called the driver would wait for it at every step.
    def look() -> dict[str, JobState]:
        state, restarts, now = ray.get(queue.status.remote())
        places.update(now)
        on_status(state, sum(restarts.values()))
        return state

    # Daemons, so that an interrupt does not wait for a step to end.
    running = [threading.Thread(target=run_team, args=(i,), daemon=True) for i in range(min(teams, len(jobs)))]
    for team in running:
        team.start()
    try:
        while any(team.is_alive() for team in running):
            time.sleep(POLL_SECONDS)
            look()
        return look(), failures
    except RayActorError:  # without a queue the teams end, each once it notices
        for team in running:
            team.join()
        raise
    finally:
        over.set()
        end_actor(queue)
