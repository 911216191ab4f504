"""A run on nodes that Ray's autoscaler brings and takes away: `fake_nodes.py OUTPUT`, prints JSON. To be run on a machine
of its own (hosts.py), for Ray's helper begins by stopping every Ray that it sees."""

import json
import sys
import threading
import time

import ray
from ray.cluster_utils import AutoscalingCluster

import talos_ray

SPEC = {
    "model": "demo",
    "tasks": ["demo:pointers", "demo:lighting"],
    "control": ["demo:coloured_shapes"],
    "calibration": {"samples_per_task": 32, "shards_per_task": 1, "rounds": 1},
    "train": {"steps": 20, "batch_size": 16, "lr": 1.2e-3, "warmup_steps": 2, "checkpoint_every": 10},
    "search": {"steps": 20},
    # A worker fills a node, and the head has room for none: each one has to be brought.
    "cluster": {"teams": 2, "cpus_per_worker": 2, "wait_minutes": 5},
}


def main(output: str) -> None:
    node = {"resources": {"CPU": 2}, "node_config": {}, "min_workers": 0, "max_workers": 2}
    cluster = AutoscalingCluster({"CPU": 0}, {"worker": node}, autoscaler_v2=True, idle_timeout_minutes=0.2)
    cluster.start()
    try:
        ray.init("auto", log_to_driver=False)
        alive: list[int] = []

        def look() -> None:
            while True:
                alive.append(sum(n["Alive"] for n in ray.nodes()))
                time.sleep(1)

        threading.Thread(target=look, daemon=True).start()
        run = talos_ray.edit(**SPEC, output=output)
        deadline = time.monotonic() + 180
        while alive[-1] > 1 and time.monotonic() < deadline:
            time.sleep(1)
        print(json.dumps({"version": run.head, "first": alive[0], "most": max(alive), "last": alive[-1]}))
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
