"""Processes killed in the middle of a run, live: what comes out is bitwise what an undisturbed run gives."""

import copy
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import psutil
import pytest

import talos_ray
from jobs import faults
from jobs.faults import at_work


def bits(run) -> dict[str, object]:
    """All that must not depend on what was killed."""
    version = run.folder.load_version(1)
    return {
        "mask": run.mask.fingerprint,
        "deltas": version.deltas,
        "dense": version.baseline.coefficients,
        "coefficients": version.coefficients,
        "model": version.model,
        "scores": version.scores,
    }


class Killer(threading.Thread):
    """Ends the first process of this session's Ray that runs each of some Ray functions, by SIGKILL, once `ready()`,
    and looks how long it takes until a process runs the same function that did not before."""

    def __init__(self, titles: dict[str, Callable[[], bool]]) -> None:
        super().__init__(daemon=True)
        self.titles, self.over = titles, threading.Event()
        self.seen: dict[str, set[int]] = {title: set() for title in titles}  # process ids, until one was killed
        self.killed: dict[str, float] = {}  # title -> when
        self.recovered: dict[str, float] = {}  # title -> seconds

    def run(self) -> None:
        while not self.over.wait(0.1):
            for wanted, process in at_work(*self.titles):
                if wanted in self.killed:
                    if process.pid not in self.seen[wanted]:
                        self.recovered.setdefault(wanted, round(time.time() - self.killed[wanted], 1))
                    continue
                self.seen[wanted].add(process.pid)
                if self.titles[wanted]():
                    process.kill()
                    process.wait()
                    self.killed[wanted] = time.time()


@pytest.mark.slow
def test_a_calibration_task_a_training_worker_and_a_trial_are_killed(finished, tmp_path):
    calm, values = finished
    output = tmp_path / "run"
    killer = Killer(
        {
            "score_shard": lambda: True,
            "TrainingWorker": lambda: any(output.glob("**/deltas/*.safetensors")),  # in the middle of training
            "ResourceTrainable": lambda: True,  # what Ray Tune makes of a trial
            "evaluate": lambda: True,
        }
    )
    killer.start()
    run = talos_ray.edit(**{**copy.deepcopy(values), "output": str(output)})
    killer.over.set()
    killer.join()
    assert sorted(killer.killed) == ["ResourceTrainable", "TrainingWorker", "evaluate", "score_shard"]
    assert bits(run) == bits(calm)
    (lost,) = [e for e in run.history() if e["operation"] == "worker lost"]
    assert lost["task"] and lost["node"] and not lost["preempted"] and "killed" in lost["reason"]
    print("seconds until another process did the same:", killer.recovered)


@pytest.mark.slow
def test_what_hands_out_tasks_and_what_controls_a_team_are_killed(finished, tmp_path):
    _, values = finished
    values = {**copy.deepcopy(values), "cluster": {"workers_per_task": 2, "cpus_per_worker": 0.5}}
    calm = talos_ray.edit(**{**copy.deepcopy(values), "output": str(tmp_path / "calm")})
    output = tmp_path / "run"

    def there(pattern: str, n: int) -> Callable[[], bool]:
        return lambda: len(list(output.glob(pattern))) >= n

    killer = Killer(
        {
            "Queue": there("**/deltas/*.safetensors", 1),
            "TrainController": there("**/deltas/*.safetensors", 4),
        }
    )
    killer.start()
    run = talos_ray.edit(**{**copy.deepcopy(values), "output": str(output)})
    killer.over.set()
    killer.join()
    assert sorted(killer.killed) == ["Queue", "TrainController"]
    assert bits(run) == bits(calm)
    told = {e["operation"]: e for e in run.history()}
    assert 0 < len(told["teams begun anew"]["tasks"]) < 6 and told["teams restarted"]["restarts"] == 1
    print("seconds until another process did the same:", killer.recovered)


@pytest.fixture
def heard():
    """An interrupt is, even where the tests run in the background of a shell that has them ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.slow
def test_an_interrupt_ends_a_run_at_once_and_leaves_nobody_at_work(finished, heard, tmp_path):
    calm, values = finished
    output = tmp_path / "run"

    def interrupt(pattern: str, n: int) -> None:
        while len(list(output.glob(pattern))) < n:
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)

    actors = ("TrainingWorker", "ResourceTrainable")
    for pattern, n in (("**/deltas/*.safetensors", 1), ("trials/*", 10)):  # while it trains, while it searches
        threading.Thread(target=interrupt, args=(pattern, n), daemon=True).start()
        with pytest.raises(KeyboardInterrupt):
            talos_ray.edit(**{**copy.deepcopy(values), "output": str(output)})
        assert not (output / "versions").exists()
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and at_work(*actors):
            time.sleep(0.5)
        assert not at_work(*actors)
    assert bits(talos_ray.edit(**{**copy.deepcopy(values), "output": str(output)})) == bits(calm)


@pytest.mark.slow
def test_a_killed_driver_goes_on_where_it_stood(finished, tmp_path):
    calm, values = finished
    output = tmp_path / "run"
    spec = tmp_path / "spec.json"
    spec.write_text(json.dumps({**values, "output": str(output)}))
    command = [sys.executable, "-c", f"import json, talos_ray; talos_ray.edit(**json.load(open({str(spec)!r})))"]
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=tmp_path)
    children: list[psutil.Process] = []
    deadline = time.monotonic() + 300
    while not list(output.glob("deltas/*.safetensors")) and time.monotonic() < deadline:
        children = psutil.Process(first.pid).children(recursive=True)
        time.sleep(0.2)
    first.kill()
    first.wait()
    done = {p: p.stat().st_mtime_ns for p in (*output.glob("deltas/*.safetensors"), output / "mask.safetensors")}
    assert len(done) >= 2 and not (output / "versions").exists()
    _, alive = psutil.wait_procs(children, timeout=60)
    left = [p for p in alive if not p.name().endswith("Agent")]  # Ray's own agents end by themselves, later
    assert not left  # nothing else of the killed driver's Ray is left
    subprocess.run(command, check=True, capture_output=True, timeout=400, cwd=tmp_path)
    run = talos_ray.open_run(str(output))
    assert all(p.stat().st_mtime_ns == before for p, before in done.items())
    assert bits(run) == bits(calm)
    assert [e["operation"] for e in run.history()][:3] == ["start", "calibrate", "resume"]


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    """What `jobs/faults.py` tells of runs that nothing happens to, on three raylets: with a worker a task, and with two."""
    folder = tmp_path_factory.mktemp("calm")
    return {name: faults.measured(name, folder / name) for name in ("nothing", "teams")}


@pytest.mark.slow
@pytest.mark.parametrize("fault", [*faults.FAULTS, *faults.OF_TEAMS])
def test_three_raylets_give_the_same_bits_whatever_happens(calm, tmp_path, fault):
    disturbed = faults.measured(fault, tmp_path / fault)
    undisturbed = calm["teams" if fault in faults.OF_TEAMS else "nothing"]
    assert disturbed["struck"] and disturbed["bits"] == undisturbed["bits"]
    lost = disturbed["events"].count("worker lost")
    if fault in ("worker", "stopped", "training_node"):
        assert lost >= 1  # on a busy machine, others may stand still for as long as one that was stopped
    print(fault, disturbed["seconds"], "s, undisturbed", undisturbed["seconds"])


LIMITED = """
import os, json, sys, psutil, talos_ray
memory = psutil.virtual_memory()
os.environ["RAY_memory_usage_threshold"] = str((memory.total - memory.available + 2.2e9) / memory.total)
os.environ["RAY_memory_monitor_refresh_ms"] = "50"
try:
    talos_ray.edit(**json.load(open(sys.argv[1])))
except talos_ray.TalosError as error:
    print("refused:", error)
"""


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["calibrate", "train"])
def test_a_worker_without_enough_memory_is_named_with_the_setting(tmp_path, stage):
    """Ray's own memory monitor, with a limit 2 GB above what this machine uses now."""
    spec = {
        "model": "demo",
        "tasks": ["demo:pointers"],
        "output": str(tmp_path / "run"),
        "cluster": {"max_failures": 1},
    }
    if stage == "train":
        spec |= {"mask": {"strategy": "random"}, "train": {"steps": 3, "batch_size": 60_000}}
    else:
        spec["calibration"] = {"samples_per_task": 4000, "shards_per_task": 1, "batch_size": 4000, "memory_gb": 1000}
    (tmp_path / "spec.json").write_text(json.dumps(spec))
    command = [sys.executable, "-c", LIMITED, str(tmp_path / "spec.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("refused:")]
    assert "ran out of memory (its node used" in line and "micro_batch_size (calibration.memory_gb" in line
