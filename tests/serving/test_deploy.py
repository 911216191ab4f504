"""The command: what it refuses before anything starts, and, once, all of it on a real Ray Serve."""

import json
import os
import signal
import socket
import sys
import time
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import pytest
from recorded import made, test_inputs
from served import add_version, held, single
from typer.testing import CliRunner

from talos_ray import SpecError, TalosError, cli
from talos_ray.serving import deploy


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    run = made(tmp_path_factory.mktemp("bert"), "bert")
    add_version(run, {"places": 0.5}, gate=held())
    return run


@pytest.mark.parametrize(
    "words, said",
    (
        (("--version", "2"), "version 2 is kept aside by its gate"),
        (("--canary", "2=0.1"), "version 2 is kept aside by its gate"),
        (("--version", "8"), "version 8 does not exist in this run; it has: 0, 1, 2"),
        (("--canary", "1"), "canary is '1'; wanted VERSION=SHARE"),
    ),
)
def test_what_may_not_be_served_is_refused_before_ray_starts(run, words, said):
    done = CliRunner().invoke(cli.app, ["serve", run.path, *words])
    assert done.exit_code != 0 and isinstance(done.exception, TalosError) and said in str(done.exception)


def test_without_ray_serve_a_line_says_what_to_install(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray.serve", None)
    with pytest.raises(SpecError, match=r"serving needs Ray Serve .*; pip install 'talos_ray\[serve\]'") as error:
        deploy.check_library()
    assert len(str(error.value).splitlines()) == 1


def test_a_port_that_is_taken_is_named():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(SpecError, match=rf"port {port} of 127.0.0.1 cannot be listened on .*; choose another"):
            deploy.check_port("127.0.0.1", port)
    deploy.check_port("127.0.0.1", port)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def get(url: str, body: dict | None = None, **headers: str) -> tuple[int, str]:
    data = None if body is None else json.dumps(body).encode()
    request = Request(url, data, {"Content-Type": "application/json", **headers})
    try:
        with urlopen(request, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except HTTPError as error:
        return error.code, error.read().decode()


def pid(address: str) -> int:
    """Of the replica, as its own numbers name it."""
    status, text = get(f"{address}/metrics")
    assert status == 200
    return int(text.split('replica="')[1].split('"')[0].rpartition("-")[2])


@pytest.mark.slow
def test_versions_and_edits_are_served_by_ray_and_a_killed_replica_comes_back(run, ray_here):
    texts = test_inputs(run, "animals")[0]
    with deploy.served(run.path, host="127.0.0.1", port=free_port()) as address:

        def check() -> None:
            for task in ("animals", "places", "held"):
                for version in (0, 1):
                    named = {"X-Talos-Version": str(version)}
                    status, answer = get(f"{address}/v1/tasks/{task}:predict", {"inputs": texts}, **named)
                    wanted = run.predict(texts, task, version).as_dict()
                    assert status == 200 and json.loads(answer) == {**wanted, "edit": "merged"}
            for task in ("animals", "places"):
                status, answer = get(
                    f"{address}/v1/edits/{task}:predict", {"inputs": texts}, **{"X-Talos-Version": "1"}
                )
                assert status == 200 and json.loads(answer)["predictions"] == single(run, task, texts).rows()
            status, answer = get(f"{address}/v1/tasks/places:predict", {"inputs": texts}, **{"X-Talos-Version": "2"})
            assert status == 409 and "kept aside" in answer

        check()
        first = pid(address)
        os.kill(first, signal.SIGKILL)
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            try:
                if get(f"{address}/v1/tasks/animals:predict", {"inputs": texts})[0] == 200 and pid(address) != first:
                    break
            except (URLError, OSError):
                pass
            time.sleep(0.5)
        assert pid(address) != first
        check()

        run.folder.set_head(0, "rollback")
        time.sleep(1.5)
        status, answer = get(f"{address}/v1/tasks/animals:predict", {"inputs": texts})
        assert status == 200 and json.loads(answer)["version"] == 0
    with pytest.raises((URLError, OSError)):
        for _ in range(60):  # the door stays open a while
            status, _ = get(f"{address}/healthz")
            assert status in (200, 404, 503)
            if status == 404:
                raise URLError("nobody is there")
            time.sleep(0.5)
