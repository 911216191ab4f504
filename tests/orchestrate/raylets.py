"""A run on three raylets of one CPU each, on this machine: `raylets.py SPEC.json nothing|calibration|training`, prints JSON.

One raylet ends by force, with all that runs on it, while the first shards are scored or once the first delta is there.
"""

import contextlib
import json
import sys
import threading
import time
from pathlib import Path

import psutil
import ray
from ray.cluster_utils import Cluster

import talos_ray


def scoring(nodes: list) -> list:
    """Those of the nodes that are at a shard."""
    at_it = set()
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # it may be gone by now
            if process.name().startswith("ray::score_shar"):
                at_it.add(process.ppid())
    return [n for n in nodes if n.all_processes["raylet"][0].process.pid in at_it]


def main(spec: dict, kill: str) -> None:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        others = [cluster.add_node(num_cpus=1) for _ in range(2)]
        cluster.wait_for_nodes()
        told: dict[str, object] = {"trained_before": None}

        def trained() -> list[Path]:
            return list(Path(spec["output"]).glob("**/deltas/*.safetensors"))

        def strike() -> None:
            while not (at_it := scoring(others) if kill == "calibration" else others[: len(trained())]):
                time.sleep(0.02)
            cluster.remove_node(at_it[0], allow_graceful=False)
            told["trained_before"] = len(trained())

        if kill != "nothing":
            threading.Thread(target=strike, daemon=True).start()
        started = time.monotonic()
        run = talos_ray.edit(**{**spec, "cluster": {"address": cluster.address}})
        told["seconds"] = round(time.monotonic() - started, 1)
        told["restarts"] = [e["task"] for e in run.history() if e["operation"] == "worker lost"]
        ray.init(address=cluster.address, ignore_reinit_error=True, log_to_driver=False)
        told["nodes"] = sum(n["Alive"] for n in ray.nodes())
        ray.shutdown()
        print(json.dumps(told))
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()), sys.argv[2])
