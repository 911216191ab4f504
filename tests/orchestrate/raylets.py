"""A run on three raylets of one CPU each, on this machine: `raylets.py SPEC.json [--kill-a-node]`, prints JSON.

With `--kill-a-node` one raylet ends by force, with all that runs on it, once the first delta is there.
"""

import json
import sys
import threading
import time
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

import talos_ray


def main(spec: dict, kill: bool) -> None:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        others = [cluster.add_node(num_cpus=1) for _ in range(2)]
        cluster.wait_for_nodes()
        told: dict[str, object] = {"trained_before": None}

        def strike() -> None:
            deltas = Path(spec["output"])
            while not (found := list(deltas.glob("**/deltas/*.safetensors"))):
                time.sleep(0.1)
            cluster.remove_node(others[0], allow_graceful=False)
            told["trained_before"] = len(found)

        if kill:
            threading.Thread(target=strike, daemon=True).start()
        started = time.monotonic()
        run = talos_ray.edit(**{**spec, "cluster": {"address": cluster.address}})
        told["seconds"] = round(time.monotonic() - started, 1)
        told["restarts"] = [e["restarts"] for e in run.history() if e["operation"] == "teams restarted"]
        ray.init(address=cluster.address, ignore_reinit_error=True, log_to_driver=False)
        told["nodes"] = sum(n["Alive"] for n in ray.nodes())
        ray.shutdown()
        print(json.dumps(told))
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()), "--kill-a-node" in sys.argv)
