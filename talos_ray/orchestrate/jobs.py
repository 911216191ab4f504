"""What is to be trained, and how far each of it is.

Nothing here imports torch or Ray: whoever hands out work keeps a `Board`, be it the driver or an actor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from talos_ray.config import Task, Train

# What a worker does; by name, so that only the workers load it.
TASK_TRAINER = "talos_ray.orchestrate.task_training:TaskTrainer"
NAMESPACE = "talos_ray"
POLL_SECONDS = 0.5  # between two looks of the driver
JobState = dict[str, Any]  # how far a job is, as JSON: step, steps, loss, state; worker, pid and error once known


@dataclass(frozen=True, kw_only=True)
class Job:
    """One task to be trained under one arm. `key` addresses the result by everything that decides it."""

    task: Task
    arm: str
    settings: Train
    key: str
    folder: str
    mask: str
    info: Mapping[str, object] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.arm}/{self.task.name}"

    @property
    def cost(self) -> int:
        return self.settings.steps * self.settings.batch_size


class Trainer(Protocol):
    """What a worker loads by the name of `TASK_TRAINER`, or of what a simulation gives instead."""

    def train(self, job: Job, rank: int, world: int, tell: Callable[[int, float], None]) -> tuple[float, float]:
        """Train one job, as `rank` of `world` workers. Returns (seconds, last loss)."""


class Board:
    """Which jobs wait, the longest first, and how far every job is."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.waiting = sorted(jobs, key=lambda j: (-j.cost, j.name))
        self.state: dict[str, JobState] = {}
        for job in jobs:
            self.state[job.name] = {"step": 0, "steps": job.settings.steps, "loss": None, "state": "waiting"}

    def take(self, worker: int) -> Job | None:
        """The longest job that waits is this worker's from now on."""
        if not self.waiting:
            return None
        job = self.waiting.pop(0)
        self.begun(job, worker)
        return job

    def begun(self, job: Job, worker: int) -> None:
        """The job is (again) with this worker."""
        self.state[job.name].update(state="training", worker=worker)

    def give_back(self, job: Job) -> None:
        """Its worker was lost: it is the next to be taken."""
        self.waiting.insert(0, job)
        self.state[job.name].update(state="waiting")

    def progress(self, name: str, step: int, loss: float | None, pid: int) -> None:
        self.state[name].update(step=step, loss=loss, pid=pid)

    def done(self, job: Job, error: str | None = None) -> None:
        """The job is finished or, with `error`, given up."""
        self.state[job.name].update(state="failed" if error else "done", error=error)

    @property
    def open(self) -> bool:
        """Whether a job waits or is under way."""
        return any(s["state"] in ("waiting", "training") for s in self.state.values())
