"""The page's way to workstations, word for word, on two hosts and a laptop that share nothing but a folder."""

import json
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hosts import HOME, SHARED, machines

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
ADDRESS = "--address http://127.0.0.1:8265"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]


@pytest.fixture(scope="module")
def place():
    with machines("north", "south") as made:
        laptop, north, south = made
        checkout = laptop.home / "talos_ray"
        files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
        for name in filter(None, files.split("\0")):
            target = checkout / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target)
        # What the file marks CHANGE, and nothing else.
        cluster = checkout / "cluster" / "workstations.yaml"
        changed = cluster.read_text()
        for old, new in {
            "192.0.2.10 ": f"{north.address} ",
            "[192.0.2.11]": f"[{south.address}]",
            "ssh_user: ubuntu": "ssh_user: root",
            '"3.11.11"': f'"{platform.python_version()}"',
        }.items():
            assert changed.count(old) == 1
            changed = changed.replace(old, new)
        cluster.write_text(changed)
        yield laptop, north, south


def on_laptop(laptop, script: str, timeout: float = 600) -> str:
    """What the page's lines say there; they have to end well."""
    prepared = f"cd {HOME}/talos_ray && export PATH={BIN}:$PATH RAY_AUTH_MODE=token && {script}"
    done = laptop.run(prepared, timeout)
    assert done.returncode == 0, done.stdout[-6000:]
    return done.stdout


def test_a_laptop_makes_a_cluster_of_two_hosts_and_a_job_uses_both(place):
    laptop, north, south = place
    on_laptop(laptop, "ray get-auth-token --generate")
    on_laptop(laptop, "ray up --yes cluster/workstations.yaml", timeout=1200)
    on_laptop(laptop, "(setsid ray dashboard cluster/workstations.yaml > ~/dashboard.log 2>&1 &)")
    on_laptop(laptop, f"for i in $(seq 60); do ray job list {ADDRESS} > /dev/null 2>&1 && exit; sleep 2; done; cat ~/dashboard.log; false")

    # A worker takes all CPUs of its host, so that two tasks at once are on two hosts; the second may still be coming.
    cluster = f"{{teams: 2, cpus_per_worker: {os.cpu_count()}, wait_minutes: 10}}"
    spec = f"extends: examples/quick.yaml\ncluster: {cluster}\n"
    laptop.home.joinpath("talos_ray", "both.yaml").write_text(spec)
    job = f"python jobs/edit_all_tasks.py --spec both.yaml --output {SHARED}/runs/both"
    told = on_laptop(laptop, f"ray job submit {ADDRESS} --working-dir . -- {job}", timeout=1500)
    assert "2 worker(s) at once" in told and "succeeded" in told, told
    record = f"{SHARED}/runs/both"
    assert json.loads(on_laptop(laptop, f"talos status {record} --json"))
    on_laptop(laptop, f"talos verify {record}")

    # Without the token no host is let in, and it is told why.
    start = f"RAY_AUTH_MODE=token ~/talos_ray_venv/bin/ray start --address={north.address}:6379"
    refused = south.run(f"mkdir /tmp/none && HOME=/tmp/none {start.replace('~', HOME)}")
    assert refused.returncode != 0 and "no authentication token was found" in refused.stdout

    on_laptop(laptop, "ray down --yes cluster/workstations.yaml")
    # The head is stopped; the others miss it, and end too.
    for host in (north, south):
        deadline = time.monotonic() + 180
        while "raylet" in (left := host.run("ps ax").stdout) and time.monotonic() < deadline:
            time.sleep(3)
        assert "raylet" not in left, f"on {host.name}: {left}"
