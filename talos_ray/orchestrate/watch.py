"""What others see of a run while it goes on: gauges on Ray's dashboard, a tracker of the user's choice, and how full
the object store became. All of it from the driver, so that no worker needs a tracker's package or its keys.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import threading
from collections.abc import Callable, Mapping
from typing import Any

from talos_ray.errors import SpecError
from talos_ray.orchestrate.jobs import JobState
from talos_ray.storage.version import Version

SAMPLE_SECONDS = 0.25  # between two looks at the object store


def check_tracker(name: str | None) -> None:
    """Raises SpecError if the tracker's package is not installed."""
    if name is not None and importlib.util.find_spec(name) is None:
        raise SpecError(
            f"tracker is {name!r}, but its package is not installed; `pip install talos_ray[{name}]`, or leave "
            "tracker out"
        )


class Tracker:
    """Metrics to MLflow, TensorBoard or Weights & Biases, which find where to send them in their own environment
    variables.

    A tracker that fails is told once to `say` and left alone: it never costs a run.
    """

    def __init__(self, name: str | None, run: str, params: Mapping[str, Any], say: Callable[[str], None]) -> None:
        self.name = name
        self.say = say
        self._log: Callable[[dict[str, float], int | None], object]
        self._close: Callable[[], object]
        self._try(lambda: getattr(self, f"_open_{name}")(run, params))

    def log(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """`step` counts a task's own updates."""
        self._try(lambda: self._log(dict(metrics), step))

    def close(self) -> None:
        # A lambda, because a tracker that did not open has no `_close`, and only `_try` may meet that.
        self._try(lambda: self._close())

    def _try(self, what: Callable[[], object]) -> None:
        if self.name is None:
            return
        try:
            what()
        except Exception as error:  # whatever a tracker can raise
            self.say(f"tracker {self.name}: {error}; the run goes on without it")
            self.name = None

    def _open_mlflow(self, run: str, params: Mapping[str, Any]) -> None:
        import mlflow

        mlflow.start_run(run_name=run)
        mlflow.log_params(dict(params))
        self._log = lambda metrics, step: mlflow.log_metrics(metrics, step=step)
        self._close = mlflow.end_run

    def _open_tensorboard(self, run: str, params: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # Not into the run, which keeps only its own files.
        folder = os.environ.get("TENSORBOARD_LOGDIR", "tensorboard")
        name = re.sub(r"[^\w.-]+", "-", run).strip("-")  # a URI is no folder's name
        writer = SummaryWriter(os.path.join(folder, name))
        writer.add_text("settings", "".join(f"    {key}: {value}\n" for key, value in params.items()))

        def log(metrics: Mapping[str, float], step: int | None) -> None:
            for metric, value in metrics.items():
                writer.add_scalar(metric, value, step)
            writer.flush()  # somebody watches

        self._log = log
        self._close = writer.close

    def _open_wandb(self, run: str, params: Mapping[str, Any]) -> None:
        import wandb

        session = wandb.init(name=run, config=dict(params))
        # Tasks train at once and each has steps of its own, so a step is a metric and not wandb's own counter.
        self._log = lambda metrics, step: session.log(metrics if step is None else {**metrics, "step": step})
        self._close = session.finish


class Watch:
    """One run, watched. Use as a context manager, with Ray connected."""

    def __init__(self, tracker: Tracker, run: str) -> None:
        from ray.util.metrics import Gauge

        def gauge(name: str, what: str, *tags: str) -> Gauge:
            """One of this run's; several runs of a cluster are told apart by `run`."""
            made = Gauge(f"talos_ray_{name}", what, ("run", *tags))
            made.set_default_tags({"run": run})
            return made

        self.tracker = tracker
        self.peak = 0  # most bytes in the object stores of all nodes together
        self.told: dict[str, tuple[int, float]] = {}  # job -> update and loss that were told last
        self.over = threading.Event()
        self.tasks = gauge("tasks", "Tasks of the run by state", "state")
        self.step = gauge("step", "Updates of a task so far", "task")
        self.steps = gauge("steps", "Updates of all tasks so far")
        self.wanted = gauge("steps_wanted", "Updates of all tasks in all")
        self.loss = gauge("loss", "Training loss of a task", "task")
        self.restarts = gauge("restarts", "Workers, or teams, of the training that had to be replaced")
        self.objective = gauge("objective", "Best objective of the merge search", "arm")

    def __enter__(self) -> Watch:
        self.thread = threading.Thread(target=self._sample, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.over.set()
        self.thread.join()
        self.tracker.close()

    def training(self, state: Mapping[str, JobState], restarts: int) -> None:
        """How far all jobs are; what has not changed is not told again."""
        states = [job["state"] for job in state.values()]
        # Each kind, also where there is none of it: a gauge that is not set keeps what it had.
        for kind in ("waiting", "training", "done", "failed"):
            self.tasks.set(states.count(kind), {"state": kind})
        self.restarts.set(restarts)
        # The last message of a job may have come before its last step, so what is done counts in full.
        self.steps.set(sum(job["steps"] if job["state"] == "done" else job["step"] for job in state.values()))
        self.wanted.set(sum(job["steps"] for job in state.values()))
        for name, job in state.items():
            if job["loss"] is not None and self.told.get(name) != (job["step"], job["loss"]):
                self.told[name] = (job["step"], job["loss"])
                self.step.set(job["step"], {"task": name})
                self.loss.set(job["loss"], {"task": name})
                self.tracker.log({f"{name}/loss": job["loss"]}, job["step"])

    def candidate(self, arm: str, number: int, objective: float, best: float) -> None:
        """The `number`-th candidate of the search was scored."""
        self.objective.set(best, {"arm": arm})
        self.tracker.log({f"search/{arm}/objective": objective}, number)

    def version(self, version: Version) -> None:
        """Test scores of the version that was made."""
        metrics = {f"test/{name}": mean for name, mean in version.summary if isinstance(mean, float)}
        for task, scores in version.scores.items():
            metrics |= {f"test/{task}/{kind}": score.value for kind, score in scores.measured().items()}
        self.tracker.log(metrics)  # without a step: tasks have counted theirs, each its own

    def _sample(self) -> None:
        import ray

        while not self.over.wait(SAMPLE_SECONDS):
            with contextlib.suppress(Exception):  # a cluster that is going down answers no more
                total = ray.cluster_resources()
                free = ray.available_resources()
                used = total.get("object_store_memory", 0) - free.get("object_store_memory", 0)
                self.peak = max(self.peak, int(used))
