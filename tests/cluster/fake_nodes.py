"""A run on nodes that Ray's autoscaler brings and takes away: `fake_nodes.py FOLDER`, prints JSON. To be run on a machine
of its own (hosts.py), whose Ray this is."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import ray
import yaml
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID, FAKE_HEAD_NODE_TYPE

import talos_ray

NODES = {
    "cluster_name": "fake",
    "max_workers": 2,
    "idle_timeout_minutes": 0.2,
    "upscaling_speed": 1.0,
    # By its module, because the wheel lacks the file of defaults that goes with its name.
    "provider": {
        "type": "external",
        "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
        "launch_multiple": True,
        "head_node_id": FAKE_HEAD_NODE_ID,
    },
    **{key: {} for key in ("auth", "docker", "file_mounts")},
    **{f"{who}setup_commands": [] for who in ("", "head_", "worker_")},
    **{f"{who}_start_ray_commands": [] for who in ("head", "worker")},
    **{key: [] for key in ("initialization_commands", "cluster_synced_files")},
    "head_node_type": FAKE_HEAD_NODE_TYPE,
    "available_node_types": {
        FAKE_HEAD_NODE_TYPE: {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
        "worker": {"resources": {"CPU": 2}, "node_config": {}, "min_workers": 0, "max_workers": 2},
    },
}
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


def main(folder: str) -> None:
    config = Path(folder, "nodes.yaml")
    config.write_text(yaml.safe_dump(NODES))
    autoscaler = {
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
    }
    start = ["ray", "start", "--head", "--num-cpus=0", "--disable-usage-stats", f"--autoscaling-config={config}"]
    subprocess.run(start, env=os.environ | autoscaler, check=True)
    ray.init("auto", log_to_driver=False)
    alive: list[int] = []

    def look() -> None:
        while True:
            alive.append(sum(n["Alive"] for n in ray.nodes()))
            time.sleep(1)

    threading.Thread(target=look, daemon=True).start()
    run = talos_ray.edit(**SPEC, output=f"{folder}/run")
    deadline = time.monotonic() + 180
    while alive[-1] > 1 and time.monotonic() < deadline:
        time.sleep(1)
    print(json.dumps({"version": run.head, "first": alive[0], "most": max(alive), "last": alive[-1]}))


if __name__ == "__main__":
    main(*sys.argv[1:])
