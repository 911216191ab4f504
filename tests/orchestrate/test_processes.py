"""Processes that hold a model on a GPU (numbers alone here: Ray hands out GPUs that are not there, too)."""

import json
import os
import subprocess
import sys

import pytest

SCRIPT = """
import json, os, tempfile, time
from pathlib import Path
import ray
from talos_ray.config import Cluster, Task, Train
from talos_ray.orchestrate.cluster import LOCAL, QUIET, WARM, _worker_env
from talos_ray.orchestrate.jobs import Job
from talos_ray.orchestrate.train import train

HERE = Path(__file__).parent

def alive():
    return [os.path.exists(f"/proc/{p}") for p in json.loads((HERE / "worked").read_text())]

class Trainer:
    def __init__(self, shared_ref, arms_ref): ...
    def train(self, job, rank, world, tell):
        Path(job.folder, "alive").write_text(json.dumps(alive()))
        return 0.0, 0.0

if __name__ == "__main__":
    os.environ |= QUIET | LOCAL
    ray.init(
        address="local", num_cpus=2, num_gpus=2, include_dashboard=False, log_to_driver=False,
        runtime_env={"env_vars": _worker_env() | {"PYTHONPATH": os.environ["PYTHONPATH"]}},
    )

    @ray.remote(**WARM)
    def work():
        time.sleep(1)
        return os.getpid()

    pids = ray.get([work.options(num_cpus=1, num_gpus=1).remote() for _ in range(2)])
    (HERE / "worked").write_text(json.dumps(pids))
    told = {"before": alive()}
    with tempfile.TemporaryDirectory() as folder:
        jobs = [Job(task=Task(name="a", data="demo:counts"), arm="sparse", settings=Train(), key="", folder=folder, mask="")]
        train(shared_ref=ray.put(0), arms={}, jobs=jobs, settings=Cluster(gpus_per_worker=1), teams=1, scratch=folder, trainer="processes:Trainer")
        told["while_workers_train"] = json.loads(Path(folder, "alive").read_text())
    print(json.dumps(told))
    ray.shutdown()
"""


@pytest.mark.slow
def test_no_process_of_a_task_keeps_a_gpu_from_the_workers(tmp_path):
    (tmp_path / "processes.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, "processes.py"],
        capture_output=True, text=True, timeout=240, cwd=tmp_path,
        env={**os.environ, "RAY_AUTH_MODE": "disabled", "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["before"] == [True, True], "the processes were to be idle, and not over"
    assert told["while_workers_train"] == [False, False]
