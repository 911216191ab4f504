"""The main job through `ray job submit`, to a head node of this test's own, with token authentication."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]
RAY = str(Path(sys.executable).parent / "ray")


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    """(dashboard address, environment) of a head node with ports, folders and a token of its own."""
    home = tmp_path_factory.mktemp("home")
    env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    env |= {
        "HOME": str(home),
        "RAY_AUTH_MODE": "token",
        "TALOS_CACHE": os.environ.get("TALOS_CACHE") or str(Path.home() / ".cache" / "talos_ray"),
    }
    env["PATH"] = (
        f"{Path(RAY).parent}{os.pathsep}{env['PATH']}"  # as an activated environment: the job's `python` is this one
    )
    subprocess.run([RAY, "get-auth-token", "--generate"], env=env, check=True, capture_output=True)
    ports = {
        name: free_port()
        for name in ("port", "ray-client-server-port", "dashboard-port", "dashboard-agent-listen-port")
    }
    command = [
        RAY,
        "start",
        "--head",
        "--block",
        "--num-cpus=2",
        "--disable-usage-stats",
        *(f"--{name}={port}" for name, port in ports.items()),
    ]
    address, log = f"http://127.0.0.1:{ports['dashboard-port']}", home / "head.log"
    with log.open("w") as out:
        process = subprocess.Popen(command, env=env, stdout=out, stderr=out, start_new_session=True)
    deadline = time.monotonic() + 90
    while subprocess.run([RAY, "job", "list", "--address", address], env=env, capture_output=True).returncode != 0:
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-2000:]
        time.sleep(1)
    yield address, env
    parent = psutil.Process(process.pid)
    for p in [*parent.children(recursive=True), parent]:
        with contextlib.suppress(psutil.NoSuchProcess):
            p.kill()
    process.wait(timeout=60)


def submit(head, *arguments: str) -> subprocess.CompletedProcess:
    address, env = head
    command = [
        RAY,
        "job",
        "submit",
        "--address",
        address,
        "--working-dir",
        ".",
        "--",
        "python",
        "jobs/edit_all_tasks.py",
        *arguments,
    ]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=400)


def test_a_job_makes_a_run_and_again_does_nothing(head, tmp_path):
    out = str(tmp_path / "run")
    done = submit(head, "--spec", "examples/quick.yaml", "--output", out)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    head_version = json.loads((tmp_path / "run" / "versions" / "0001.json").read_text())
    assert set(head_version["scores"]) == {"pointers", "lighting", "coloured_shapes"}
    assert (
        f"targets {head_version['summary']['zero_shot']:.3f} -> {head_version['summary']['merged']:.3f}" in done.stdout
    )
    assert len(done.stdout.splitlines()) < 120  # a line a step, not a flood
    again = submit(head, "--spec", "examples/quick.yaml", "--output", out)
    assert again.returncode == 0 and "Nothing to do" in again.stdout


def test_a_job_that_cannot_work_says_so_and_fails(head):
    done = submit(head, "--spec", "examples/quick.yaml")
    assert done.returncode != 0 and "'runs/quick' is relative" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout


def test_without_the_token_nobody_gets_in(head):
    address, env = head
    stranger = {**env, "RAY_AUTH_MODE": "disabled"}
    done = subprocess.run([RAY, "job", "list", "--address", address], env=stranger, capture_output=True, text=True)
    assert done.returncode != 0
