"""How the orchestration scales: the numbers of docs/scaling.md.

    python jobs/simulate.py             # 1,000 tasks over 200 simulated workers: pool, driver, storage, history
    python jobs/simulate.py --head      # what workers cost the driver's node, measured with the driver alone on its node

The first uses the pool, the progress view and the run folder as a run does, in a Ray of this machine; only the workers are
simulated, many of them in one process that sleeps where they would train. The other is the training stage as it is, with
real workers; only what a worker does is replaced by sleeping.
"""

import argparse
import asyncio
import io
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import psutil
import ray
import torch
from rich.console import Console

from talos_ray.config import Cluster, Task, Train
from talos_ray.core.delta import make_delta
from talos_ray.orchestrate.jobs import Job
from talos_ray.orchestrate.pool import Hired, Pool
from talos_ray.orchestrate.train import train
from talos_ray.progress import Progress
from talos_ray.storage import history
from talos_ray.storage.run_folder import RunFolder

TASKS, WORKERS = 1000, 200
CROWDS = 4  # processes that the simulated workers share
STEP = 0.05  # seconds that a simulated update takes
VALUES = 100_000  # of a simulated delta
FEW, MANY = 1, 8  # workers from whose cost on the head the rest is predicted
SHORT, LONG = 15.0, 45.0  # seconds that each of them works
CHECKED = (2, 4, 16, 32)  # workers whose cost is measured to see whether it is what was predicted
PREDICTED = (64, 200, 1000)  # and those for which it is predicted alone
HERE = Path(__file__).resolve()


class Sleeper:
    """What a worker does, slept away; it tells how far it is as a real one does."""

    def __init__(self, shared_ref, arms_ref) -> None: ...

    def train(self, job: Job, rank: int, world: int, tell) -> tuple[float, float]:
        for step in range(1, job.settings.steps + 1):
            time.sleep(STEP)
            if step % round(0.5 / STEP) == 0:
                tell(step, 1.0 / step)
        return job.settings.steps * STEP, 0.0


def jobs(n: int, steps: int) -> list[Job]:
    """Tasks of five sizes, from half to one and a half times `steps`."""
    return [
        Job(
            task=Task(name=f"task-{i:04d}", data="demo:counts"),
            arm="sparse",
            settings=Train(steps=steps * (2 + i % 5) // 4, batch_size=1, warmup_steps=0),
            key=f"key-{i}",
            folder="",
            mask="mask",
        )
        for i in range(n)
    ]


def longest_first(durations: Sequence[float], workers: int) -> float:
    """Seconds until the last of `workers` has finished, if each takes the longest task that waits."""
    free = [0.0] * workers
    for d in sorted(durations, reverse=True):
        i = free.index(min(free))
        free[i] += d
    return max(free)


# ------------------------------------------------------------------------ 1,000 tasks over 200 simulated workers


@ray.remote(num_cpus=0, max_concurrency=1000)
class Crowd:
    """Many simulated workers in one process."""

    def __init__(self) -> None:
        self.now: dict[int, tuple[str, int, float | None]] = {}

    async def place(self, worker: int) -> tuple[str, str, int]:
        return ray.get_runtime_context().get_node_id(), f"node-{worker}", os.getpid()

    async def progress(self, worker: int) -> tuple[str, int, float | None]:
        return self.now.get(worker, ("", 0, None))

    async def train(self, worker: int, job: Job) -> tuple[float, str | None]:
        every = round(0.5 / STEP)
        for step in range(every, job.settings.steps + 1, every):
            await asyncio.sleep(every * STEP)
            self.now[worker] = (job.name, step, 1.0 / step)
        await asyncio.sleep(job.settings.steps % every * STEP)
        return 0.0, None


class Method:
    """A method of a crowd, for one of its workers."""

    def __init__(self, method, worker: int) -> None:
        self.method = method
        self.worker = worker

    def remote(self, *given):
        return self.method.remote(self.worker, *given)


class Simulated:
    """A worker as the pool calls it, and who plays it."""

    def __init__(self, crowd, worker: int) -> None:
        self.place = Method(crowd.place, worker)
        self.progress = Method(crowd.progress, worker)
        self.train = Method(crowd.train, worker)


class SimulatedPool(Pool):
    """A pool whose workers are no processes, so that none is ended."""

    def _dismiss(self, worker: Hired) -> None:
        self.workers.remove(worker)


def thousand() -> None:
    work = jobs(TASKS, steps=160)
    ray.init(address="local", log_to_driver=False, logging_level="ERROR", include_dashboard=False)
    crowds = [Crowd.remote() for _ in range(CROWDS)]
    hired: list[Simulated] = []

    def start() -> Simulated:
        hired.append(Simulated(crowds[len(hired) % CROWDS], len(hired)))
        return hired[-1]

    progress = Progress(Console(file=io.StringIO()))
    progress.begin("train")
    looks: list[float] = []

    def on_status(state: dict, restarts: int) -> None:
        started = time.perf_counter()
        progress.training(state, restarts)
        looks.append(time.perf_counter() - started)

    pool = SimulatedPool(
        jobs=work, settings=Cluster(address="auto", teams=WORKERS), start=start, on_loss=lambda loss: None
    )
    here = psutil.Process()
    before, busy, started = here.memory_info().rss, sum(here.cpu_times()[:2]), time.perf_counter()
    pool.run(on_status)
    wall = time.perf_counter() - started
    grown, busy = here.memory_info().rss - before, sum(here.cpu_times()[:2]) - busy
    assert all(s["state"] == "done" for s in pool.board.state.values())
    ideal = longest_first([j.settings.steps * STEP for j in work], WORKERS)
    print(f"{TASKS} tasks over {WORKERS} simulated workers")
    print(f"  {wall:.1f} s; longest task first, with nothing lost, would take {ideal:.1f} s")
    print(
        f"  the driver was busy for {busy:.1f} s of it, {sum(looks):.1f} s with the view of all tasks, and grew by {grown / 1e6:.0f} MB"
    )
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


# ------------------------------------------------------------------------ real workers on raylets


def on_raylets(workers: int, seconds: float) -> None:
    """In a process of its own: the training stage with workers that sleep so long, on a raylet beside the driver's own, which has no
    place for a worker. Prints what the driver's node took of memory (MB) and CPU seconds, and how many seconds all of it took."""
    from ray.cluster_utils import Cluster as Raylets

    raylets = Raylets(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    raylets.add_node(num_cpus=workers)
    raylets.wait_for_nodes()
    ray.init(address=raylets.address, log_to_driver=False, logging_level="ERROR")
    # Raylets of this machine are told apart by their children; GCS and the driver belong to the head.
    head = {psutil.Process(), *_family(raylets.head_node)}
    most = 0.0
    used = _used(head)

    def on_status(state: dict, restarts: int) -> None:
        nonlocal most
        most = max(most, _held(head | set(_family(raylets.head_node))))

    before = _held(head)
    began = time.monotonic()
    steps = round(seconds / STEP)
    work = [
        Job(
            task=Task(name=f"task-{i:04d}", data="demo:counts"),
            arm="sparse",
            settings=Train(steps=steps, batch_size=1, warmup_steps=0),
            key=f"key-{i}",
            folder="",
            mask="mask",
        )
        for i in range(workers)
    ]
    with tempfile.TemporaryDirectory() as scratch:
        train(
            shared_ref=ray.put(0), arms={}, jobs=work, settings=Cluster(address=raylets.address, teams=workers), teams=workers,
            scratch=scratch, on_status=on_status, trainer=f"{HERE.stem}:{Sleeper.__name__}",
        )  # fmt: skip
    busy = _used(head) - used
    print("measured", f"{(most - before) / 1e6:.1f}", f"{busy:.2f}", f"{time.monotonic() - began:.1f}", flush=True)
    ray.shutdown()
    raylets.shutdown()


def _family(node) -> list[psutil.Process]:
    """Processes of a node: what Ray started for it, and the workers of its raylet."""
    found = []
    for processes in node.all_processes.values():
        for info in processes:
            process = psutil.Process(info.process.pid)
            found += [process, *process.children(recursive=True)]
    return found


def _held(processes: set[psutil.Process]) -> float:
    """Bytes that nobody else has, of all of them."""
    found = 0
    for process in processes:
        try:
            found += process.memory_full_info().uss
        except psutil.Error:  # it has ended
            continue
    return found


def _used(processes: set[psutil.Process]) -> float:
    """CPU seconds."""
    found = 0.0
    for process in processes:
        try:
            found += sum(process.cpu_times()[:2])
        except psutil.Error:
            continue
    return found


def measured(workers: int, seconds: float) -> list[float]:
    done = subprocess.run(
        [sys.executable, str(HERE), "--workers", str(workers), "--seconds", str(seconds)],
        capture_output=True, text=True,
        env={**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE.parents[1])])},
    )  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if line.startswith("measured")]
    if done.returncode or not lines:
        raise SystemExit(done.stdout[-2000:] + done.stderr[-4000:])
    return [float(word) for word in lines[0].split()[1:]]


def head() -> None:
    """What workers cost the driver's node: predicted from four measurements, and held against four more.

    Memory is `a + b n` for n workers. CPU seconds are what n workers cost to start and what they cost while it lasts,
    `(a + b n) + seconds (c + d n)`: many that start on few cores are slow to start, and cost more for it.
    """
    found = {(n, asked): measured(n, asked) for n in (FEW, MANY) for asked in (SHORT, LONG)}
    memory = [[1.0, n] for n, _ in found]
    cpu = [[1.0, n, seconds, n * seconds] for (n, _), (_, _, seconds) in found.items()]
    of_memory = np.linalg.lstsq(np.array(memory), np.array([m for m, _, _ in found.values()]), rcond=None)[0]
    of_cpu = np.linalg.lstsq(np.array(cpu), np.array([c for _, c, _ in found.values()]), rcond=None)[0]

    def predicted(n: int, seconds: float) -> tuple[float, float]:
        return float(of_memory @ [1.0, n]), float(of_cpu @ [1.0, n, seconds, n * seconds])

    print(f"what workers cost the driver's node beside what it takes without any, from {FEW} and {MANY} that work {SHORT:.0f} and {LONG:.0f} s each")
    print(f"  memory: {of_memory[0]:.1f} MB + {of_memory[1]:.2f} MB a worker")
    print(f"  CPU: {of_cpu[0]:.2f} s + {of_cpu[1]:.2f} s a worker to start, {60 * of_cpu[2]:.2f} s + {60 * of_cpu[3]:.2f} s a worker in every minute")
    for n in CHECKED:
        (mb, busy, seconds), (mb_said, busy_said) = (now := measured(n, LONG)), predicted(n, now[2])
        print(f"  {n:4d} workers, {seconds:.0f} s: {mb:.1f} MB, predicted {mb_said:.1f} ({mb_said / mb - 1:+.0%}); {busy:.1f} CPU s, predicted {busy_said:.1f} ({busy_said / busy - 1:+.0%})", flush=True)
    for n in PREDICTED:
        mb_said, busy_said = predicted(n, 600)
        print(f"  {n:4d} workers, ten minutes: predicted {mb_said:.0f} MB, {busy_said:.0f} CPU s ({busy_said / 600:.2f} cores)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--head", action="store_true", help="what workers cost the driver's node instead")
    parser.add_argument("--workers", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=0.0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.workers:
        on_raylets(args.workers, args.seconds)
    elif args.head:
        head()
    else:
        thousand()


if __name__ == "__main__":
    main()
