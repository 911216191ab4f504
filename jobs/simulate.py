"""How the orchestration scales: the numbers of docs/scaling.md.

    python jobs/simulate.py             # 1,000 tasks over 200 simulated teams: queue, driver, history
    python jobs/simulate.py --raylets   # Ray Train's own teams on 1, 2 and 4 raylets, whose work is to sleep

The first uses the queue, the progress view and the run folder as a run does, in a Ray of this machine; only the
teams are simulated, each a coroutine that sleeps where a worker would train. The second is the training stage as it
is, with real teams; only what a worker does is replaced by sleeping.
"""

import argparse
import asyncio
import io
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import ray
import torch
from rich.console import Console

from talos_ray.config import Cluster, Task, Train
from talos_ray.core.delta import make_delta
from talos_ray.orchestrate.train import POLL_SECONDS, Job, Queue, train
from talos_ray.progress import Progress
from talos_ray.storage import history
from talos_ray.storage.run_folder import RunFolder

TASKS, TEAMS = 1000, 200
SLEEPERS = 12  # tasks of the runs on raylets
STEP = 0.05  # seconds that a simulated update takes
VALUES = 100_000  # of a simulated delta
HERE = Path(__file__).resolve()


class Sleeper:
    """A team's worker that sleeps its updates away, and tells the queue as a real one does."""

    def __init__(self, shared_ref, arms_ref) -> None: ...

    def train(self, job: Job, rank: int, world: int, queue) -> tuple[float, float]:
        for step in range(1, job.settings.steps + 1):
            time.sleep(STEP)
            if step % round(0.5 / STEP) == 0:
                queue.progress.remote(job.name, step, 1.0 / step, os.getpid())
        return job.settings.steps * STEP, 0.0


def jobs(n: int, steps: int) -> list[Job]:
    """Tasks of five sizes, from half to one and a half times `steps`."""
    return [
        Job(
            Task(name=f"task-{i:04d}", data="demo:counts"),
            "sparse",
            Train(steps=steps * (2 + i % 5) // 4, batch_size=1, warmup_steps=0),
            f"key-{i}",
            "",
            "mask",
        )
        for i in range(n)
    ]


def longest_first(durations: Sequence[float], teams: int) -> float:
    """Seconds until the last of `teams` has finished, if each takes the longest task that waits."""
    free = [0.0] * teams
    for d in sorted(durations, reverse=True):
        i = free.index(min(free))
        free[i] += d
    return max(free)


# ------------------------------------------------------------------------ 1,000 tasks over 200 simulated teams


async def _team(queue, team: int, waits: list[float]) -> None:
    await queue.begin.remote(team, None)
    while True:
        asked = time.perf_counter()
        job = await queue.next.remote(team)
        waits.append(time.perf_counter() - asked)
        if job is None:
            return
        steps, every = job.settings.steps, round(0.5 / STEP)
        for step in range(every, steps + 1, every):
            await asyncio.sleep(every * STEP)
            queue.progress.remote(job.name, step, 1.0 / step, os.getpid())
        await asyncio.sleep(steps % every * STEP)
        await queue.done.remote(team)


async def _all_teams(queue, waits: list[float], polls: list[float]) -> None:
    progress = Progress(Console(file=io.StringIO()))
    progress.begin("train")

    async def watch() -> None:
        while True:
            await asyncio.sleep(POLL_SECONDS)
            asked = time.perf_counter()
            state, restarts, _ = await queue.status.remote()
            progress.training(state, restarts)
            polls.append(time.perf_counter() - asked)

    watching = asyncio.create_task(watch())
    await asyncio.gather(*(_team(queue, i, waits) for i in range(TEAMS)))
    watching.cancel()


def thousand() -> None:
    work = jobs(TASKS, steps=160)
    ray.init(address="local", log_to_driver=False, logging_level="ERROR", include_dashboard=False)
    queue = Queue.remote(work, [ray.put(0)], [ray.put(0)])
    waits: list[float] = []
    polls: list[float] = []
    before, started = psutil.Process().memory_info().rss, time.perf_counter()
    asyncio.run(_all_teams(queue, waits, polls))
    wall = time.perf_counter() - started
    grown = psutil.Process().memory_info().rss - before
    state, *_ = ray.get(queue.status.remote())
    assert all(s["state"] == "done" for s in state.values())
    ideal = longest_first([j.settings.steps * STEP for j in work], TEAMS)
    waits.sort()
    print(f"{TASKS} tasks over {TEAMS} simulated teams")
    print(f"  {wall:.1f} s; longest task first, with nothing lost, would take {ideal:.1f} s")
    print(
        f"  a team waits {1000 * statistics.median(waits):.0f} ms for its next task (median), {1000 * waits[-1]:.0f} ms at most; "
        f"the queue takes {2 * TEAMS} progress messages a second"
    )
    print(f"  the driver's look at all tasks, twice a second: {1000 * statistics.median(polls):.0f} ms (median)")
    print(f"  the driver grew by {grown / 1e6:.0f} MB")
    ray.shutdown()
    with tempfile.TemporaryDirectory() as folder:
        _storage(RunFolder(folder))


def _storage(folder: RunFolder) -> None:
    """A thousand deltas and a thousand events."""
    zero = torch.zeros(VALUES)
    started = time.perf_counter()
    for i in range(TASKS):
        folder.save_delta(
            make_delta(f"task-{i:04d}", torch.full((VALUES,), i + 1.0), zero, "b" * 64, "m" * 64, torch.bfloat16, {})
        )
    written = time.perf_counter() - started
    before, started = psutil.Process().memory_info().rss, time.perf_counter()
    deltas = [folder.load_delta(f"task-{i:04d}") for i in range(TASKS)]
    read, grown = time.perf_counter() - started, psutil.Process().memory_info().rss - before
    size = sum(d.values.nbytes for d in deltas)
    started = time.perf_counter()
    for d in deltas:
        history.append(folder.store, "train", deltas={d.task: d.fingerprint})
    appended = time.perf_counter() - started
    started = time.perf_counter()
    assert sum(1 for _ in history.events(folder.store)) == TASKS
    checked = time.perf_counter() - started
    print(f"  {TASKS} deltas of {VALUES:,} values: written in {written:.1f} s, read in {read:.1f} s;")
    print(f"  they hold {size / 1e6:.0f} MB and the driver grew by {grown / 1e6:.0f} MB")
    print(f"  {TASKS} events of the history: written in {appended:.1f} s, read and checked in {checked:.2f} s")


# ------------------------------------------------------------------------ real teams on raylets


def on_raylets(nodes: int) -> None:
    """In a process of its own: a cluster of some raylets of one CPU each, and one team a raylet."""
    from ray.cluster_utils import Cluster as Raylets

    raylets = Raylets(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    for _ in range(nodes - 1):
        raylets.add_node(num_cpus=1)
    raylets.wait_for_nodes()
    ray.init(address=raylets.address, log_to_driver=False, logging_level="ERROR")
    first: list[float] = []
    started = time.perf_counter()

    def on_status(state: dict, restarts: dict) -> None:
        if not first and any(s["step"] for s in state.values()):
            first.append(time.perf_counter() - started)

    with tempfile.TemporaryDirectory() as scratch:
        work = jobs(SLEEPERS, steps=100)
        train(ray.put(0), {}, work, Cluster(), nodes, scratch, on_status, member=f"{HERE.stem}:{Sleeper.__name__}")
    print("measured", f"{time.perf_counter() - started:.1f}", f"{first[0]:.1f}", flush=True)
    ray.shutdown()
    raylets.shutdown()


def teams() -> None:
    durations = [j.settings.steps * STEP for j in jobs(SLEEPERS, steps=100)]
    print(
        f"{SLEEPERS} tasks, {sum(durations):.0f} s of sleep in all, on raylets of one CPU each ({os.cpu_count()} real ones)"
    )
    for nodes in (1, 2, 4):
        done = subprocess.run(
            [sys.executable, str(HERE), "--nodes", str(nodes)], capture_output=True, text=True, check=True,
            env={**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"},
        )  # fmt: skip
        (line,) = [line for line in done.stdout.splitlines() if line.startswith("measured")]
        wall, first = map(float, line.split()[1:])
        best = longest_first(durations, nodes)
        print(
            f"  {nodes} raylet(s): {wall:.1f} s; start-up {first:.1f} s + work {best:.1f} s = {first + best:.1f} s predicted"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--raylets", action="store_true", help="real teams on 1, 2 and 4 raylets instead")
    parser.add_argument("--nodes", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.nodes:
        on_raylets(args.nodes)
    else:
        (teams if args.raylets else thousand)()


if __name__ == "__main__":
    main()
