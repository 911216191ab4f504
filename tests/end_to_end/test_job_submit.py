"""The main job through `ray job submit`, to a head node of this test's own, with token authentication."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest
import yaml

import talos_ray

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
    folder = tempfile.mkdtemp(prefix="ray-")  # short: Ray puts sockets into it
    env |= {
        "HOME": str(home),
        "RAY_TMPDIR": folder,
        "RAY_AUTH_MODE": "token",
        "TALOS_CACHE": os.environ.get("TALOS_CACHE") or str(Path.home() / ".cache" / "talos_ray"),
    }
    # As in an activated environment: the job's `python` is this one.
    env["PATH"] = f"{Path(RAY).parent}{os.pathsep}{env['PATH']}"
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
    shutil.rmtree(folder, ignore_errors=True)


def submit(head, *arguments: str, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess:
    address, env = head
    job = ["--", "python", "jobs/edit_all_tasks.py", *arguments]
    command = [RAY, "job", "submit", "--address", address, "--working-dir", ".", *options, *job]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=400)


def changed_at(folder: Path, pattern: str) -> dict[str, int]:
    return {p.name: p.stat().st_mtime_ns for p in folder.glob(pattern)}


@pytest.mark.slow
def test_a_stopped_job_goes_on_where_it_stood(head, tmp_path):
    address, env = head
    out, spec = tmp_path / "run", tmp_path / "spec.yaml"
    values = yaml.safe_load((ROOT / "examples/quick.yaml").read_text())
    spec.write_text(yaml.safe_dump({**values, "output": str(out), "cluster": {"teams": 1}}))
    submit(head, "--spec", str(spec), options=("--no-wait", "--submission-id", "first"))
    deadline = time.monotonic() + 180
    while not changed_at(out, "deltas/*.safetensors"):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    subprocess.run([RAY, "job", "stop", "--address", address, "first"], env=env, check=True, capture_output=True)
    kept = {**changed_at(out, "deltas/*.safetensors"), **changed_at(out, "mask.safetensors")}
    assert not list(out.glob("versions/*")) and len(kept) >= 2

    done = submit(head, "--spec", str(spec))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert kept.items() <= {**changed_at(out, "deltas/*.safetensors"), **changed_at(out, "mask.safetensors")}.items()
    assert [e["operation"] for e in talos_ray.open_run(str(out)).history()][:3] == ["start", "calibrate", "resume"]
    version = json.loads((out / "versions" / "0001.json").read_text())
    assert set(version["scores"]) == {"pointers", "lighting", "coloured_shapes"}
    assert f"targets {version['summary']['zero_shot']:.3f} -> {version['summary']['merged']:.3f}" in done.stdout
    assert len(done.stdout.splitlines()) < 120  # a line a step, not a flood


def test_a_job_that_cannot_work_says_so_and_fails(head):
    done = submit(head, "--spec", "examples/quick.yaml")
    assert done.returncode != 0 and "'runs/quick' is relative" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout


def test_without_the_token_nobody_gets_in(head):
    address, env = head
    stranger = {**env, "RAY_AUTH_MODE": "disabled"}
    done = subprocess.run([RAY, "job", "list", "--address", address], env=stranger, capture_output=True, text=True)
    assert done.returncode != 0
