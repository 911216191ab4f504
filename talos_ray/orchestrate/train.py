"""Training: every job by one worker of a pool, or by a team of workers where a task needs several."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import ray
from ray import ObjectRef

from talos_ray.config import Cluster
from talos_ray.errors import TalosError
from talos_ray.orchestrate.cluster import free_gpus, root_cause
from talos_ray.orchestrate.jobs import TASK_TRAINER, Job, JobState
from talos_ray.orchestrate.pool import Loss, train_in_pool
from talos_ray.orchestrate.teams import train_in_teams

if TYPE_CHECKING:
    from talos_ray.orchestrate.worker import Arm, Shared


def train(
    *,
    shared_ref: ObjectRef[Shared],
    arms: dict[str, Arm],
    jobs: Sequence[Job],
    settings: Cluster,
    teams: int,
    scratch: str,
    on_status: Callable[[dict[str, JobState], int], None] = lambda state, restarts: None,
    on_loss: Callable[[Loss], None] = lambda loss: None,
    trainer: str = TASK_TRAINER,
) -> None:
    """Train all jobs; deltas land in the jobs' folders.

    Args:
        teams: teams at once, where a task needs several workers.
        on_status: called twice a second with how far each job is, and how many workers (or teams) had to be replaced.
        on_loss: called for every worker of a pool that is lost.
        trainer: 'module:class' of what a worker does; a simulation gives one that sleeps.

    Raises:
        TalosError: a job's settings made it diverge, or it lost its worker more often than `cluster.max_failures`.
            What was finished is on storage and is not trained again.
        RayActorError: the teams' queue was lost: what is not on storage has to be trained by another call.
    """
    free_gpus(settings)
    # Masks once in the object store: as an argument of every worker they would be sent to each.
    arms_ref = ray.put(arms)
    failures: list[BaseException] = []
    if settings.workers_per_task == 1:
        state = train_in_pool(
            shared_ref=shared_ref,
            arms_ref=arms_ref,
            jobs=jobs,
            settings=settings,
            trainer=trainer,
            on_status=on_status,
            on_loss=on_loss,
        )
    else:
        state, failures = train_in_teams(
            shared_ref=shared_ref,
            arms_ref=arms_ref,
            jobs=jobs,
            settings=settings,
            teams=teams,
            scratch=scratch,
            trainer=trainer,
            on_status=on_status,
        )
    unfinished = [name for name, job in state.items() if job["state"] != "done"]
    if unfinished:
        # A job's own error says more than how its team ended.
        reason = next((job["error"] for job in state.values() if job.get("error")), None)
        if reason is None:
            reason = root_cause(failures[0]) if failures else "their team ended"
        raise TalosError(
            f"not trained: {', '.join(unfinished)}: {reason}\nfinished tasks are kept; mend the cause and run the "
            "same command again"
        )
