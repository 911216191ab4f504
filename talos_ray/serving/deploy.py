"""The same on Ray Serve: replicas, restarts of what dies, one port."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from talos_ray.config import Cluster
from talos_ray.errors import SpecError
from talos_ray.orchestrate import cluster
from talos_ray.serving.record import Record

if TYPE_CHECKING:
    from fastapi import FastAPI
    from ray.serve import Application

NAME = "talos"  # of the application, and of its deployment
AT_ONCE = 40  # requests that one replica takes: as many as it has threads for; further ones wait at the door
WAIT_SECONDS = 1.0


def check_library() -> None:
    """Raises SpecError, in a line, unless Ray Serve is installed."""
    try:
        import ray.serve  # noqa: F401
    except ImportError as error:
        raise SpecError(
            f"serving needs Ray Serve ({str(error).splitlines()[0]}); wanted it installed; "
            "pip install 'talos_ray[serve]'"
        ) from None


def check_port(host: str, port: int) -> None:
    """Raises SpecError unless something can listen there. Ray Serve itself would say so in many lines."""
    with socket.socket() as door:
        # As servers do: a port that one has just left counts as free.
        door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            door.bind((host, port))
        except (OSError, OverflowError) as error:
            raise SpecError(
                f"port {port} of {host} cannot be listened on ({error}); wanted a free one; choose another with --port"
            ) from None


def application(path: str, *, replicas: int = 1, cpus: float = 1, gpus: float = 0, **settings: Any) -> Application:
    """A run as an application of Ray Serve, for `serve.run`.

    Args:
        path: of the run, which every node sees; a local path or a URI.
        replicas: processes with a model each.
        cpus, gpus: that one of them takes; with a GPU its model is there.
        settings: as `Server` takes them.
    """
    from ray import serve

    device = "cuda" if gpus else "cpu"

    def build() -> FastAPI:  # on a replica, when it starts
        from talos_ray.serving.http import api
        from talos_ray.serving.server import Server

        return api(Server(path, device=device, **settings))

    deployed = serve.deployment(
        name=NAME,
        num_replicas=replicas,
        max_ongoing_requests=AT_ONCE,
        ray_actor_options={"num_cpus": cpus, "num_gpus": gpus},
    )
    return deployed(serve.ingress(build)()).bind()


@contextmanager
def served(
    path: str, *, host: str, port: int, allow_code: Sequence[str] = (), verbose: bool = False, **settings: Any
) -> Iterator[str]:
    """While this lasts, a run is served on the cluster at hand or on a Ray started here. Gives the address.

    Args:
        settings: as `application` takes them.

    Raises:
        SpecError: Ray Serve is not installed, or the port is taken. TalosError: as `Record`, before anything starts.
    """
    # Read here once, or what is wrong with it would be told by a replica, in the midst of its start.
    Record(path, version=settings.get("version"), canary=settings.get("canary"), allow_code=allow_code)
    check_library()
    import ray
    from ray import serve

    # On a cluster at hand the port is that of its nodes, which nobody can try from here.
    if not ray.is_initialized() and cluster.remote_address(Cluster()) is None:
        check_port(host, port)
    started = cluster.connect(Cluster(), verbose)
    try:
        serve.start(http_options={"host": host, "port": port}, logging_config={"enable_access_log": verbose})
        serve.run(application(path, allow_code=allow_code, **settings), name=NAME, route_prefix="/")
        yield f"http://{host}:{port}"
    finally:
        # Of a cluster at hand only what is ours is taken down.
        if started:
            serve.shutdown()
            ray.shutdown()
        else:
            serve.delete(NAME)


def wait() -> None:
    """Until somebody interrupts it, which is how it is meant to end."""
    with suppress(KeyboardInterrupt):
        while True:
            time.sleep(WAIT_SECONDS)
