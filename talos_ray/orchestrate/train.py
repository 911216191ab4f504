"""Training on Ray Train: teams pull tasks from one queue, longest first, and go from task to task by exact rollback.

A *team* is one `TorchTrainer`. Its start-up is paid once a team, not once a task. Its workers checkpoint to
storage by themselves: `ray.train.report` would make every team member wait at every step worth keeping.
When Ray Train restarts a team after a failure, the queue hands it the task it was on, which resumes from its
last checkpoint and ends bitwise where it would have ended.

Nothing here imports torch: the queue and Ray Train's own controllers load this file, and each is a process.
"""

from __future__ import annotations

import pkgutil
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import ray
from ray.exceptions import RayActorError
from ray.util.placement_group import PlacementGroup, get_current_placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from talos_ray.config import Cluster, Task, Train
from talos_ray.errors import TalosError
from talos_ray.orchestrate.cluster import WARM, free_gpus, remote_address, resources, root_cause
from talos_ray.orchestrate.ray_internals import lean_trainer

if TYPE_CHECKING:
    from talos_ray.orchestrate.worker import Arm

NAMESPACE = "talos_ray"
MEMBER = "talos_ray.orchestrate.team:Member"  # by name, so that only the workers load it
POLL_SECONDS = 0.5  # between two looks of the driver at the queue


@dataclass(frozen=True)
class Job:
    """One task to be trained under one arm. `key` addresses the result by everything that decides it."""

    task: Task
    arm: str
    settings: Train
    key: str
    folder: str
    mask: str
    info: dict = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.arm}/{self.task.name}"

    @property
    def cost(self) -> int:
        return self.settings.steps * self.settings.batch_size


@ray.remote(num_cpus=0, max_concurrency=16, **WARM)
class Queue:
    """Which job is with which team, and how far it is. Lives as long as the driver."""

    def __init__(self, jobs: Sequence[Job], shared_ref: list, arms_ref: list) -> None:
        self.waiting = sorted(jobs, key=lambda j: (-j.cost, j.name))
        self.with_team: dict[int, Job] = {}
        self.state = {j.name: {"step": 0, "steps": j.settings.steps, "loss": None, "state": "waiting"} for j in jobs}
        self.refs = (shared_ref[0], arms_ref[0])
        self.restarts: dict[int, int] = {}
        self.places: dict[int, PlacementGroup | None] = {}

    def objects(self):
        """References to the shared base and the arms' masks."""
        return list(self.refs)

    def begin(self, team: int, place: PlacementGroup | None) -> None:
        """A team has (re)started, in this placement group."""
        self.restarts[team] = self.restarts.get(team, -1) + 1
        self.places[team] = place

    def next(self, team: int) -> Job | None:
        """The job this team had and did not finish, else the longest one waiting, else None."""
        if team not in self.with_team:
            if not self.waiting:
                return None
            self.with_team[team] = self.waiting.pop(0)
        job = self.with_team[team]
        self.state[job.name].update(state="training", team=team)
        return job

    def progress(self, name: str, step: int, loss: float, pid: int) -> None:
        self.state[name].update(step=step, loss=loss, pid=pid)

    def done(self, team: int, error: str | None = None) -> None:
        """The team has finished (or, with `error`, given up) its job."""
        job = self.with_team.pop(team)
        self.state[job.name].update(state="failed" if error else "done", error=error)

    def status(self) -> tuple[dict[str, dict], dict[int, int], dict[int, PlacementGroup | None]]:
        """Of every job how far it is, of every team how often it was started again, and where it is."""
        return self.state, self.restarts, self.places


def train_loop(config: dict) -> None:
    """What every worker of a team runs, from the first job to an empty queue."""
    import ray.train

    context = ray.train.get_context()
    rank, world, team = context.get_world_rank(), context.get_world_size(), config["team"]
    try:
        queue = ray.get_actor(config["queue"], namespace=NAMESPACE)
    except ValueError:  # the driver has given up, or begins anew
        return
    if rank == 0:
        ray.get(queue.begin.remote(team, get_current_placement_group()))
    member = pkgutil.resolve_name(config["member"])(*ray.get(queue.objects.remote()))
    while True:
        box = [ray.get(queue.next.remote(team)) if rank == 0 else None]
        if world > 1:
            import torch.distributed as dist

            dist.broadcast_object_list(box, src=0)
        job: Job | None = box[0]
        if job is None:
            return
        try:
            seconds, loss = member.train(job, rank, world, queue)
            error = None
        except (FloatingPointError, ValueError) as e:  # the settings are at fault: a restart would meet it again
            seconds, loss, error = 0.0, float("nan"), str(e)
        if rank == 0:
            ray.get(queue.done.remote(team, error))
        ray.train.report({"task": job.task.name, "arm": job.arm, "seconds": seconds, "loss": loss})


def _team(config: dict, settings: Cluster, scratch: str):
    from ray.train import FailureConfig, RunConfig, ScalingConfig

    trainer = lean_trainer(several=settings.workers_per_task > 1, here=not remote_address(settings))
    return trainer(
        train_loop,
        train_loop_config=config,
        scaling_config=ScalingConfig(
            num_workers=settings.workers_per_task,
            use_gpu=settings.gpus_per_worker > 0,
            resources_per_worker=resources(settings),
            label_selector=settings.labels or None,
            placement_strategy="PACK",
        ),
        run_config=RunConfig(
            name=f"team-{config['team']}",
            storage_path=scratch,
            failure_config=FailureConfig(max_failures=settings.max_failures),
        ),
    )


def train(
    shared_ref,
    arms: dict[str, Arm],
    jobs: Sequence[Job],
    cluster: Cluster,
    teams: int,
    scratch: str,
    on_status: Callable[[dict, dict], None],
    member: str = MEMBER,
) -> None:
    """Train all jobs in `teams` teams at once; deltas land in the jobs' folders.

    Args:
        on_status: called twice a second with the queue's view of all jobs, and the restarts of each team.
        member: 'module:class' of what a worker does; a simulation gives one that sleeps.

    Raises:
        TalosError: a job's settings made it diverge, or a team failed more often than `cluster.max_failures`.
            What was finished is on storage and is not trained again.
        RayActorError: the queue was lost, and all teams have ended: what is not on storage has to be trained by another call.
    """
    free_gpus(cluster)
    name = f"queue-{ray.get_runtime_context().get_job_id()}-{time.time_ns()}"
    # On the driver's own node: only with the driver may it be lost.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    queue = Queue.options(name=name, namespace=NAMESPACE, scheduling_strategy=here).remote(
        list(jobs), [shared_ref], [ray.put(arms)]
    )
    failures: list[BaseException] = []
    places: dict[int, PlacementGroup | None] = {}
    over = threading.Event()

    def run_team(team: int) -> None:
        """In a thread, so that a team costs no process but Ray Train's own."""
        for _ in range(cluster.max_failures + 1):
            try:
                _team({"queue": name, "team": team, "member": member}, cluster, scratch).fit()
                return
            except Exception as error:  # whatever ended the team, its jobs are what the driver reports
                failures.append(error)
                if over.is_set() or not isinstance(error, RayActorError):
                    return
                # Ray Train's own controller is gone, who would have given up the team's place.
                if (place := places.pop(team, None)) is not None:
                    remove_placement_group(place)

    def look() -> dict[str, dict]:
        state, restarts, now = ray.get(queue.status.remote())
        places.update(now)
        on_status(state, restarts)
        return state

    running = [threading.Thread(target=run_team, args=(i,), daemon=True) for i in range(min(teams, len(jobs)))]
    for team in running:
        team.start()
    try:
        while any(team.is_alive() for team in running):
            time.sleep(POLL_SECONDS)
            look()
        state = look()
    except RayActorError:  # without a queue the teams end, each once it notices
        for team in running:
            team.join()
        raise
    finally:
        over.set()
        ray.kill(queue)
    open_jobs = [n for n, s in state.items() if s["state"] != "done"]
    if open_jobs:
        reason = next((s["error"] for s in state.values() if s.get("error")), None) or (
            root_cause(failures[0]) if failures else "their team ended"
        )
        raise TalosError(
            f"not trained: {', '.join(open_jobs)}: {reason}\nfinished tasks are kept; mend the cause and run the same command again"
        )
