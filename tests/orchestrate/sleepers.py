"""A pool of workers that sleep where they would train, on raylets of one CPU each: `sleepers.py SCENARIO FOLDER`, prints JSON.

stalled   one task makes no step the first time
stopped   a worker's process is stopped (SIGSTOP)
late      the second node comes in the middle
taken     one node after the other is taken away, and another one comes; no failure is forgiven
broken    a task's worker dies each time
"""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import ray
from ray.cluster_utils import Cluster as Raylets

from talos_ray import TalosError
from talos_ray.config import Cluster, Task, Train
from talos_ray.orchestrate.jobs import Job
from talos_ray.orchestrate.train import train

STEP = 0.05
STEPS = 80


class Sleeper:
    """Sleeps its steps away from where the task's file says that it is, as a checkpoint would."""

    def __init__(self, shared_ref, arms_ref) -> None: ...

    def train(self, job: Job, rank: int, world: int, tell) -> tuple[float, float]:
        folder = Path(job.folder)
        here = folder / f"{job.task.name}.json"
        first = not here.exists()
        state = json.loads(here.read_text()) if not first else {"step": 0, "pids": [], "nodes": []}
        state["pids"].append(os.getpid())
        state["nodes"].append(ray.get_runtime_context().get_node_id())
        while state["step"] < job.settings.steps:
            if job.info.get("stalls") and first and state["step"] == 10:
                time.sleep(3600)
            if job.info.get("dies") and state["step"] == 5:
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(STEP)
            state["step"] += 1
            work = here.with_suffix(".part")
            work.write_text(json.dumps(state))
            work.replace(here)
            tell(state["step"], 1.0 / state["step"])
        return 0.0, 0.0


def jobs(folder: Path, n: int, **first: bool) -> list[Job]:
    """`first`: what is special about the first one."""
    return [
        Job(
            task=Task(name=f"t{i}", data="demo:counts"),
            arm="sparse",
            settings=Train(steps=STEPS, batch_size=1, warmup_steps=0),
            key=str(i),
            folder=str(folder),
            mask="m",
            info=first if i == 0 else {},
        )
        for i in range(n)
    ]


def main(scenario: str, folder: Path) -> None:
    raylets = Raylets(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    nodes = [raylets.add_node(num_cpus=1) for _ in range(1 if scenario == "late" else 2)]
    raylets.wait_for_nodes()
    ray.init(address=raylets.address, log_to_driver=False, logging_level="ERROR")
    losses: list[dict] = []
    started = time.monotonic()
    state: dict[str, dict] = {}

    def on_status(now: dict, restarts: int) -> None:
        state.update(now)

    def at_step(step: int) -> None:
        while not any(s["step"] >= step for s in state.values()):
            time.sleep(0.05)

    def stop() -> None:
        at_step(10)
        os.kill(next(s["pid"] for s in state.values() if s["step"] >= 10), signal.SIGSTOP)

    def come() -> None:
        at_step(10)
        raylets.add_node(num_cpus=1)

    def take() -> None:
        for node in nodes:
            time.sleep(8)
            raylets.remove_node(node, allow_graceful=False)
            raylets.add_node(num_cpus=1)

    beside: dict[str, Callable[[], None]] = {"stopped": stop, "late": come, "taken": take}
    special = {"stalled": {"stalls": True}, "broken": {"dies": True}}.get(scenario, {})
    settings = Cluster(
        address=raylets.address,
        stall_minutes=0.1 if scenario in ("stalled", "stopped") else 30,
        max_failures=0 if scenario == "taken" else 1,
    )
    errors: list[str] = []

    def run() -> None:
        try:
            train(
                shared_ref=ray.put(0),
                arms={},
                jobs=jobs(folder, 16 if scenario in ("late", "taken") else 3, **special),
                settings=settings,
                teams=2,
                scratch=str(folder),
                on_status=on_status,
                on_loss=lambda loss: losses.append(vars(loss)),
                trainer="sleepers:Sleeper",
            )
        except TalosError as met:
            errors.append(str(met))

    # Raylets can be added in the main thread alone.
    training = threading.Thread(target=run)
    training.start()
    beside.get(scenario, lambda: None)()
    training.join()
    told = {p.stem: json.loads(p.read_text()) for p in sorted(folder.glob("*.json"))}
    print(json.dumps({"losses": losses, "tasks": told, "error": "; ".join(errors) or None, "seconds": round(time.monotonic() - started, 1)}))
    sys.stdout.flush()
    ray.shutdown()
    raylets.shutdown()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
