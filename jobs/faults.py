"""What a fault costs a run on three raylets, live, and whether the result is the same: the table of docs/scaling.md.

    python jobs/faults.py FOLDER                    # every fault, one after the other; FOLDER is new
    python jobs/faults.py FOLDER --only driver,late

Each line is a whole run (calibration, six trainings, merge, test scores, report) of three small tasks of the demo, in a process
of its own, on a head and two more raylets of one CPU each on this machine. Processes are killed by SIGKILL.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

import talos_ray

HERE = Path(__file__).resolve()
REFUSES = 90.0  # seconds that storage refuses every write
STALL_MINUTES = 0.25  # without a step, until a worker is replaced
EVERY = 20.0  # seconds between two nodes that are taken away

TASKS = ["demo:pointers", "demo:scanned_digits", "demo:counts"]
SPEC = {
    "model": "demo",
    "tasks": [{"name": name.removeprefix("demo:"), "data": name} for name in TASKS],
    "control": ["demo:coloured_shapes"],
    "calibration": {"samples_per_task": 24, "shards_per_task": 2, "rounds": 2},
    "train": {"steps": 24, "batch_size": 32, "lr": 1e-3, "warmup_steps": 2, "checkpoint_every": 4},
    "search": {"steps": 10, "inputs": 64, "batch_size": 4, "control_batch_size": 8},
    "gate": {"strict": False},
    "baseline": {"enabled": True, "lr": 1e-4},
}


def at_work(*functions: str) -> list[tuple[str, psutil.Process]]:
    """Which processes below this one run some Ray functions: (function, process)."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it may be gone by now
            line = " ".join(process.cmdline())
            found += [(function, process) for function in functions if line.startswith(f"ray::{function}")]
    return found


class Scene:
    """A run on raylets that something happens to.

    Args:
        folder: the run's.
        spec: the file of its spec.
        cluster: the raylets; one of them is the driver's.
    """

    def __init__(self, folder: Path, spec: Path, cluster, nodes: list) -> None:
        self.folder = folder
        self.spec = spec
        self.cluster = cluster
        self.nodes = nodes  # that are not the driver's
        self.struck: list[float] = []  # when something happened
        self.start()

    def start(self) -> None:
        """The driver, in a process of its own."""
        script = "import json, sys, talos_ray; talos_ray.edit(**json.load(open(sys.argv[1])))"
        self.driver = subprocess.Popen([sys.executable, "-c", script, str(self.spec)], stdout=sys.stderr)

    def trained(self) -> bool:
        return any(self.folder.glob("**/deltas/*.safetensors"))

    def until(self, there: Callable[[], bool]) -> bool:
        """Wait; False if the run was over before."""
        while not there():
            if self.driver.poll() is not None:
                return False
            time.sleep(0.05)
        return True

    def send(self, function: str, number: int = signal.SIGKILL) -> None:
        """A signal to the first process that runs a Ray function, as soon as there is one."""
        if self.until(lambda: bool(at_work(function))):
            (_, process), *_ = at_work(function)
            process.send_signal(number)
            self.struck.append(time.time())

    def take(self, node) -> None:
        self.cluster.remove_node(node, allow_graceful=False)
        self.nodes.remove(node)
        self.struck.append(time.time())

    def come(self) -> None:
        self.nodes.append(self.cluster.add_node(num_cpus=1))
        self.struck.append(time.time())


def nothing(scene: Scene) -> None: ...


def shard(scene: Scene) -> None:
    scene.send("score_shard")


def worker(scene: Scene) -> None:
    if scene.until(scene.trained):
        scene.send("TrainingWorker")


def stopped(scene: Scene) -> None:
    if scene.until(scene.trained):
        scene.send("TrainingWorker", signal.SIGSTOP)


def trial(scene: Scene) -> None:
    scene.send("ResourceTrainable")  # what Ray Tune makes of a trial


def controller(scene: Scene) -> None:
    if scene.until(scene.trained):
        scene.send("TrainController")


def scoring_node(scene: Scene) -> None:
    def at_it() -> list:
        parents = {process.ppid() for _, process in at_work("score_shard")}
        return [n for n in scene.nodes if n.all_processes["raylet"][0].process.pid in parents]

    if scene.until(lambda: bool(at_it())):
        scene.take(at_it()[0])


def training_node(scene: Scene) -> None:
    if scene.until(scene.trained):
        scene.take(scene.nodes[0])


def late(scene: Scene) -> None:
    if scene.until(scene.trained):
        scene.come()


def taken(scene: Scene) -> None:
    while scene.driver.poll() is None:
        time.sleep(EVERY)
        scene.come()
        scene.take(scene.nodes[0])


def storage(scene: Scene) -> None:
    """A file where the deltas' folder belongs: every write below it fails, until it goes away."""
    if scene.until((scene.folder / "mask.safetensors").exists):
        way = scene.folder / "deltas"
        way.write_text("in the way")
        scene.struck.append(time.time())
        time.sleep(REFUSES)
        way.unlink()


def driver(scene: Scene) -> None:
    if scene.until(scene.trained):
        scene.driver.kill()
        scene.driver.wait()
        scene.struck.append(time.time())
        scene.start()


# Name -> what happens, in words, what makes it happen, and what the spec says besides.
FAULTS: dict[str, tuple[str, Callable[[Scene], None], dict]] = {
    "shard": ("a worker is killed while it scores its first shard", shard, {}),
    "scoring_node": ("a raylet is killed while it scores shards", scoring_node, {}),
    "worker": ("a worker is killed in the middle of training", worker, {}),
    "stopped": (
        f"a worker is stopped (SIGSTOP) in the middle of training, stall_minutes {STALL_MINUTES}",
        stopped,
        {"cluster": {"stall_minutes": STALL_MINUTES}},
    ),
    "training_node": ("a raylet is killed in the middle of training", training_node, {}),
    "late": ("one of the raylets comes only after the first delta", late, {}),
    "taken": (f"a raylet is taken away, and another one comes, every {EVERY:.0f} s", taken, {"cluster": {"max_failures": 0}}),
    "storage": (f"storage refuses every write for {REFUSES:.0f} s", storage, {}),
    "trial": ("a trial of the merge is killed", trial, {}),
    "driver": ("the driver is killed after the first delta, and started again", driver, {}),
}
TEAMS = {"cluster": {"workers_per_task": 2, "cpus_per_worker": 0.5}}
OF_TEAMS = {"controller": ("two workers a task: Ray Train's controller of a team is killed in training", controller, TEAMS)}


def one(name: str, folder: Path) -> None:
    """A run that something happens to, on raylets that this process starts and ends. Prints JSON.

    Raises:
        SystemExit: the run failed.
    """
    from ray.cluster_utils import Cluster

    _, strike, more = {**FAULTS, **OF_TEAMS, "nothing": ("", nothing, {}), "teams": ("", nothing, TEAMS)}[name]
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        nodes = [cluster.add_node(num_cpus=1) for _ in range(1 if name == "late" else 2)]
        cluster.wait_for_nodes()
        settings = {**more.get("cluster", {}), "address": cluster.address}
        spec = folder.with_suffix(".json")
        spec.write_text(json.dumps({**SPEC, "cluster": settings, "output": str(folder)}))
        began = time.monotonic()
        scene = Scene(folder, spec, cluster, nodes)
        strike(scene)
        if scene.driver.wait():
            raise SystemExit(f"{name}: the run failed")
        seconds = time.monotonic() - began
    finally:
        cluster.shutdown()
    run = talos_ray.open_run(str(folder))
    version = run.newest
    bits = {
        "mask": run.mask.fingerprint,
        "deltas": version.deltas,
        "dense": version.baseline.coefficients,
        "coefficients": version.coefficients,
        "model": version.model,
        "scores": {task: scores.as_dict() for task, scores in version.scores.items()},
    }
    events = [event["operation"] for event in run.history()]
    print(json.dumps({"seconds": round(seconds, 1), "struck": len(scene.struck), "events": events, "bits": bits}))


def measured(name: str, folder: Path) -> dict:
    """What `one` tells, in a process of its own.

    Raises:
        SystemExit: it failed.
    """
    command = [sys.executable, str(HERE), str(folder), "--one", name]
    with folder.with_suffix(".log").open("w") as log:
        environment = {**os.environ, "RAY_AUTH_MODE": "disabled"}
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment)
    lines = [line for line in done.stdout.splitlines() if line.startswith('{"seconds"')]
    if done.returncode or not lines:
        raise SystemExit(f"{name} gave no result; see {folder.with_suffix('.log')}\n{done.stdout[-2000:]}")
    return json.loads(lines[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", help="some of the faults, with commas between them")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        one(asked.one, asked.folder)
        return
    asked.folder.mkdir(parents=True)
    names = asked.only.split(",") if asked.only else [*FAULTS, *OF_TEAMS]
    for calm, faults in (("nothing", FAULTS), ("teams", OF_TEAMS)):
        chosen = [name for name in names if name in faults]
        if not chosen:
            continue
        undisturbed = [measured(calm, asked.folder / f"{calm}_{number}") for number in (1, 2)]
        seconds = [found["seconds"] for found in undisturbed]
        print(f"{'two workers a task, ' if calm == 'teams' else ''}undisturbed, twice: {seconds[0]:.0f} and {seconds[1]:.0f} s", flush=True)
        for name in chosen:
            found = measured(name, asked.folder / name)
            same = "the same bits" if found["bits"] == undisturbed[0]["bits"] else "OTHER BITS"
            lost = found["seconds"] - sum(seconds) / len(seconds)
            note = "" if found["struck"] else " (it did not happen)"
            print(
                f"  {faults[name][0]}{note}: {found['seconds']:.0f} s, {lost:+.0f} s, {found['events'].count('worker lost')} worker(s) lost, {same}",
                flush=True,
            )


if __name__ == "__main__":
    main()
