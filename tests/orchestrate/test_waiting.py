"""Nodes that come later: the run waits for them, says for what, and goes on when they are there."""

import os
import subprocess
import sys

SCRIPT = """
from ray.cluster_utils import Cluster
from talos_ray import SpecError
from talos_ray.config import Cluster as Settings
from talos_ray.orchestrate.cluster import connect, slots
import ray

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
try:
    notes = []
    settings = Settings(address=cluster.address, cpus_per_worker=2, labels={"kind": "late"}, teams=2, wait_minutes=0.05)
    try:
        connect(settings, False, notes.append)
    except SpecError as error:
        print("refused:", error)
    print("notes:", notes[0])
    before = len(notes)

    def on_wait(note):  # in the main thread, where alone Ray can start a node
        notes.append(note)
        if len(notes) == before + 2:
            cluster.add_node(num_cpus=5, labels={"kind": "late"})

    connect(settings.model_copy(update={"wait_minutes": 1.0}), False, on_wait)
    print("slots:", slots(settings, 1, settings.teams), slots(settings, 1, None))
    ray.shutdown()
finally:
    cluster.shutdown()
"""


def test_waiting_for_nodes_is_shown_and_ends(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        capture_output=True, text=True, timeout=240, cwd=tmp_path, env={**os.environ, "RAY_AUTH_MODE": "disabled"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    told = dict(line.split(": ", 1) for line in done.stdout.splitlines() if ": " in line)
    assert "one team needs" in told["refused"] and "has 1" in told["refused"]
    assert told["notes"].startswith("waiting for nodes: 2 worker(s) with 2 CPU, label kind=late, places for 0")
    assert told["slots"] == "2 2"
