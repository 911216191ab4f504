"""Join or start Ray, and refuse at once what the cluster can never give."""

from __future__ import annotations

import logging
import math
import os
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack, cast
from urllib.parse import unquote, urlsplit

from talos_ray.config import Cluster
from talos_ray.errors import SpecError
from talos_ray.orchestrate.machine import check_machine, temporary_folder
from talos_ray.orchestrate.ray_internals import LOCAL_CONFIG, memory_used, refuses_config, was_too_slow
from talos_ray.user_files import run_around

if TYPE_CHECKING:
    from ray.actor import ActorHandle, ActorProxy

Node = tuple[dict[str, float], dict[str, str]]  # resources, labels


class WarmOptions(TypedDict):
    """What every Ray task and actor of this package is declared with."""

    runtime_env: dict[str, Any]


class TaskOptions(TypedDict, total=False):
    """What a worker takes of a node, as the `options` of a Ray task name it."""

    num_cpus: float
    num_gpus: float
    memory: int
    accelerator_type: str
    label_selector: dict[str, str]


class StartOptions(TypedDict, total=False):
    """What `ray.init` is called with."""

    address: str
    _system_config: dict[str, Any]
    log_to_driver: bool
    logging_level: int
    configure_logging: bool
    runtime_env: dict[str, Any]


QUIET = {
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "RAY_NUM_REDIS_GET_RETRIES": "60",  # seconds that a start under load may take
}
# What Tune and Train set for their own actors. Set for all, so that processes can be handed on, warm.
SHARED = {"PL_DISABLE_FORK": "1", "RAY_WARN_BLOCKING_GET_INSIDE_ASYNC": "0"}
# For `ray.remote`. It adds nothing, but has to be named: Ray hands a process on only between tasks whose environments
# are written alike, and a task of a Tune trial writes its own.
WARM: WarmOptions = {"runtime_env": {"env_vars": SHARED}}
# Only for a Ray of our own on one machine, which nothing preempts.
LOCAL = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0", "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5"}
NODE_ID = "ray.io/node-id"  # label that Ray gives every node
SMALLER = "train.micro_batch_size (calibration.memory_gb while calibrating)"  # what makes a worker take less memory
STARTS = 4  # times that a Ray of our own is started until one stands
FREE_SECONDS = 20  # to wait for GPUs whose idle processes are to be ended
ONE_SLASH = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/(?!/)")
SYSTEM = ("proc", "sys", "dev", "boot", "etc", "bin", "sbin", "lib", "lib64", "usr")
JOB_FOLDER = "runtime_resources/working_dir_files"  # where Ray unpacks a job's working folder


def remote_address(settings: Cluster) -> str | None:
    """The address of an existing cluster, or None if Ray is to start on this machine."""
    address = settings.address or os.environ.get("RAY_ADDRESS")
    return None if address == "local" else address or None


def resources(settings: Cluster) -> dict[str, float]:
    """What one worker takes of a node, as Ray names it (memory in bytes)."""
    amounts = {"CPU": settings.cpus_per_worker, "GPU": settings.gpus_per_worker}
    if settings.memory_gb_per_worker:
        amounts["memory"] = settings.memory_gb_per_worker * 1e9
    if settings.accelerator_type:
        # Ray gives a node one unit of its accelerator's type: a thousandth of it ties a worker to such nodes, and
        # leaves as many places there as the GPUs have.
        amounts[f"accelerator_type:{settings.accelerator_type}"] = 0.001
    return {kind: amount for kind, amount in amounts.items() if amount}


def options(settings: Cluster) -> TaskOptions:
    """The same for the `options` of a Ray task."""
    chosen: TaskOptions = {"num_cpus": settings.cpus_per_worker, "num_gpus": settings.gpus_per_worker}
    if settings.memory_gb_per_worker:
        chosen["memory"] = int(settings.memory_gb_per_worker * 1e9)
    if settings.accelerator_type:
        chosen["accelerator_type"] = settings.accelerator_type
    if settings.labels:
        chosen["label_selector"] = settings.labels
    return chosen


def _connected() -> bool:
    return "ray" in sys.modules and sys.modules["ray"].is_initialized()


def check_start(settings: Cluster) -> None:
    """Raises SpecError if this process is connected to no Ray, and none can be joined or started. Starts nothing."""
    if not _connected():
        check_machine(remote_address(settings))


def check_local(settings: Cluster) -> None:
    """Raises SpecError if this machine (or the cluster that is connected already) can never give one team what it asks
    for. Starts nothing."""
    if _connected():
        check_connected(settings)
    elif remote_address(settings) is None:
        import torch

        # Of memory, accelerators and labels only a Ray that runs can tell.
        here = {"CPU": float(os.cpu_count() or 1), "GPU": float(torch.cuda.device_count())}
        known = settings.model_copy(update={"memory_gb_per_worker": None, "accelerator_type": None, "labels": {}})
        check_room(known, [(here, {})], "this machine")


def check_connected(settings: Cluster) -> None:
    """Raises SpecError if the spec names another cluster than the one that this process is connected to already."""
    import ray

    here = ray.get_runtime_context().gcs_address
    named = settings.address
    if named is not None and named.startswith("ray://"):
        # A client sees the address inside the cluster, never the one that it was given.
        fits = ray.util.client.ray.is_connected()
    else:
        fits = named in (None, "auto", here)
    if not fits:
        raise SpecError(
            f"cluster.address is {named!r}, but this process is connected to the Ray at {here!r}; wanted one of the "
            "two; leave cluster.address out, or call ray.shutdown() first"
        )
    # Where nodes may yet come, what there is now says nothing.
    if not settings.wait_minutes:
        check_room(settings, nodes(), "the connected cluster")


def check_output(output: str, data: Sequence[str] = ()) -> None:
    """Raises SpecError if the run would be written into the folder that Ray unpacks for a job and deletes after it, or
    where it would stand among what is somebody's own: a home folder, the system's, the tasks' `data`."""
    if ONE_SLASH.match(output):
        raise SpecError(
            f"output {output!r} is neither a path nor a URI; wanted two slashes, like "
            f"{output.replace(':/', '://', 1)!r}; correct it"
        )
    if "://" not in output or _is_file_uri(output):
        _check_place(output, data)
    if JOB_FOLDER in os.getcwd() and "://" not in output and not os.path.isabs(output):
        raise SpecError(
            f"output {output!r} is relative, and this job's own folder is deleted when the job ends; "
            f"give an absolute path that every node sees, or a URI like s3://bucket/run (--output)"
        )


def _is_file_uri(output: str) -> bool:
    return output.lower().startswith("file:")  # a scheme may be written in capitals


def _check_place(output: str, data: Sequence[str]) -> None:
    named = unquote(urlsplit(output).path) if _is_file_uri(output) else output
    # As it really is, behind links and `..`: a rule that goes by the letters could be walked around by accident.
    try:
        place = Path(named).expanduser().resolve()
        lies_in_file = any(folder.is_file() for folder in (place, *place.parents))
    except (OSError, RuntimeError, ValueError) as error:  # too long, links in a circle, a home of nobody
        raise SpecError(f"output {output[:200]!r} is no place for a folder: {error}; choose another") from None
    home = Path(os.path.expanduser("~")).resolve()
    # A run is deleted, copied and moved as a folder, so nothing that is not the run's may lie in it.
    if lies_in_file:
        raise SpecError(f"output {output!r} is a file, or lies in one; wanted a new folder; choose another")
    if (run := run_around(place)) is not None:
        raise SpecError(f"output {output!r} lies in the run {str(run)!r}; wanted a folder of its own; choose another")
    if place == Path("/") or place == home or place in home.parents:
        raise SpecError(
            f"output {output!r} is {str(place)!r}, which is not for a run alone; wanted a new folder; add a name"
        )
    if place.parts[1] in SYSTEM:
        raise SpecError(
            f"output {output!r} lies in /{place.parts[1]}, which belongs to the system; wanted a folder on a disk; "
            "choose another"
        )
    for name in data:
        if name.startswith("demo:"):
            continue
        data_place = Path(name).expanduser().resolve()  # which `is_here` has found
        if place == data_place or data_place in place.parents:
            raise SpecError(
                f"output {output!r} lies in the data {name!r}; wanted a folder of its own; choose another output"
            )
        if place in data_place.parents:
            raise SpecError(
                f"output {output!r} contains the data {name!r}; wanted a folder of its own; choose another output"
            )


def connect(settings: Cluster, verbose: bool, on_wait: Callable[[str], None] = lambda note: None) -> bool:
    """Join the cluster that `address` or RAY_ADDRESS names, or start Ray here. True if it was started by this call.

    Waits up to `cluster.wait_minutes` for nodes, telling `on_wait` for what and how long.

    Raises:
        SpecError: no cluster answers at the address, or it can never give one team what it asks for.
    """
    # Ray reads some of these when it is imported, and hands all of them to the processes that it starts.
    for key, value in QUIET.items():
        os.environ.setdefault(key, value)
    import ray

    if not verbose:
        for name in ("ray", "ray.tune", "ray.train", "ray.data"):
            logging.getLogger(name).setLevel(logging.ERROR)
    started = not ray.is_initialized()
    if started:
        _join_or_start(remote_address(settings), verbose)
    try:
        _wait(settings, on_wait)
        check_room(settings, nodes(), "the cluster")
    except SpecError:
        # Only what this call has started: a notebook's own Ray stays, whatever is wrong with a spec.
        if started:
            ray.shutdown()
        raise
    return started


def _join_or_start(address: str | None, verbose: bool) -> None:
    """The Ray at an address, or one of our own."""
    how: StartOptions = {
        "address": address or "local",  # None would join whatever cluster last ran on this machine, alive or not
        "log_to_driver": verbose,
        "logging_level": logging.INFO if verbose else logging.ERROR,
        "configure_logging": True,
    }
    # Internals are set for a Ray of our own only: a cluster that others started keeps its settings.
    if not address:
        how["_system_config"] = LOCAL_CONFIG
        for key, value in LOCAL.items():
            os.environ.setdefault(key, value)
    # Last, because what was just set for a Ray of our own is handed on to its workers.
    how["runtime_env"] = {"env_vars": _worker_env()}
    _start(STARTS if address is None else 1, **how)


def _start(times: int, **how: Unpack[StartOptions]) -> None:
    """`ray.init`. A machine under load may need longer than the half minute that Ray waits for its own processes: so
    it is asked again.

    Raises:
        SpecError: why Ray did not start, in a line.
    """
    import ray

    for more in reversed(range(times)):  # tries that are left after this one
        try:
            ray.init(**how)
            return
        except ConnectionError as error:
            raise SpecError(
                f"no Ray cluster answers at {how['address']!r}: {error}; start one with `ray start --head`, or leave "
                "cluster.address out"
            ) from None
        except Exception as error:  # Ray raises plain ones for whatever its processes met
            ray.shutdown()
            why = " ".join(str(error).split())[:300] or type(error).__name__
            # The internal settings only save time, so a release of Ray that knows them no longer does without.
            if "_system_config" in how and refuses_config(why):
                del how["_system_config"]
                continue
            if not more or not was_too_slow(why):
                raise SpecError(
                    f"Ray did not start on this machine: {why}; see the logs in "
                    f"{temporary_folder() / 'ray/session_latest/logs'}, free memory or CPUs, and run the same command "
                    "again"
                ) from None


def _worker_env() -> dict[str, str]:
    # Workers of a cluster do not inherit the driver's environment. No more of it than they need: a runtime environment
    # is shown on Ray's dashboard.
    passed = ("TALOS_CACHE", "HF_HOME", "HF_TOKEN", "HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_ENDPOINT", *LOCAL)
    of_driver = {name: os.environ[name] for name in passed if name in os.environ}
    return {**QUIET, **SHARED, **of_driver}


def nodes() -> list[Node]:
    """Resources and labels of every node that is alive."""
    import ray

    return [(node["Resources"], node.get("Labels", {})) for node in ray.nodes() if node["Alive"]]


def room(settings: Cluster, there: Sequence[Node]) -> int:
    """How many workers fit at once; a worker has to fit on one node."""
    places = 0
    for have, labels in there:
        if all(labels.get(name) == value for name, value in settings.labels.items()):
            places += _places_on_node(have, resources(settings))
    return places


def _places_on_node(have: Mapping[str, float], each: Mapping[str, float]) -> int:
    """How many workers that take `each` fit on a node: what is scarcest decides."""
    scarcest = min(have.get(kind, 0) / amount for kind, amount in each.items())
    return math.floor(scarcest + 1e-9)  # shares of a CPU, like 0.1, are no exact binary fractions


def check_room(settings: Cluster, there: Sequence[Node], who: str) -> None:
    """Raises SpecError, with what there is, unless one team fits."""
    # CPUs and GPUs first, over all nodes, because their message can name the one setting to lower.
    for kind in ("CPU", "GPU"):
        each = resources(settings).get(kind, 0)
        of_all_nodes = sum(have.get(kind, 0) for have, _ in there)
        if (wanted := each * settings.workers_per_task) > of_all_nodes:
            key = f"{kind.lower()}s_per_worker"
            raise SpecError(
                f"one team needs {wanted:g} {kind}s (cluster.workers_per_task {settings.workers_per_task} x {key} "
                f"{each:g}), "
                f"but {who} has {of_all_nodes:g}; lower cluster.{key} or workers_per_task, or join a larger cluster "
                "with cluster.address"
            )
    if (places := room(settings, there)) < settings.workers_per_task:
        raise SpecError(
            f"one team needs {settings.workers_per_task} worker(s) with {_words(settings)} on one node each, but {who} "
            f"({len(there)} node(s)) has places for {places}; lower what cluster asks for a worker, or join a larger "
            "cluster"
        )


def _words(settings: Cluster) -> str:
    def word(kind: str, amount: float) -> str:
        if kind.startswith("accelerator_type:"):
            return kind
        return f"{amount / 1e9:g} GB of memory" if kind == "memory" else f"{amount:g} {kind}"

    amounts = [word(kind, amount) for kind, amount in resources(settings).items()]
    labels = [f"label {name}={value}" for name, value in settings.labels.items()]
    return ", ".join([*amounts, *labels])


def _wait(settings: Cluster, on_wait: Callable[[str], None]) -> None:
    """Ask the autoscaler for the nodes of all `teams` (of one, if not given) and wait until they are there or
    `wait_minutes` are over."""
    wanted = settings.workers_per_task * (settings.teams or 1)
    if room(settings, nodes()) >= wanted or not settings.wait_minutes:
        return
    from ray.autoscaler.sdk import request_resources

    # The autoscaler is asked for CPUs and GPUs only: it decides by them which kind of node to start.
    bundle = {kind: amount for kind, amount in resources(settings).items() if kind in ("CPU", "GPU")}
    request_resources(bundles=[bundle] * wanted)
    started = time.monotonic()
    # When the time is over the caller checks what there is: fewer nodes may do for fewer teams.
    while (places := room(settings, nodes())) < wanted:
        spent = time.monotonic() - started
        if spent > settings.wait_minutes * 60:
            break
        on_wait(
            f"waiting for nodes: {wanted} worker(s) with {_words(settings)}, places for {places}; "
            f"{spent:.0f} s of at most {settings.wait_minutes:g} min"
        )
        time.sleep(1)
    # Taken back, or the nodes would be held when the run is long over.
    request_resources(bundles=[])


def slots(settings: Cluster, workers: int, limit: int | None) -> int:
    """How many groups of `workers` fit into the cluster at once, at most `limit`, at least 1."""
    return max(1, min(room(settings, nodes()) // workers, limit or 1 << 30))


def free_gpus(settings: Cluster) -> None:
    """End the idle processes of tasks that hold a model on a GPU: Ray keeps them for the next task, and their memory
    from the teams, which get processes of their own."""
    if not settings.gpus_per_worker:
        return
    import ray

    # A task that claims a GPU and ends its process after one call: Ray has to end an idle process to place it.
    leave = ray.remote(max_calls=1, num_cpus=0, num_gpus=settings.gpus_per_worker, **WARM)(lambda: None)
    leaving = []
    for node in ray.nodes():
        if not node["Alive"]:
            continue
        on_node = leave.options(label_selector={NODE_ID: node["NodeID"]})
        for _ in range(room(settings, [(node["Resources"], node.get("Labels", {}))])):
            leaving.append(on_node.remote())
    _, busy = ray.wait(leaving, num_returns=len(leaving), timeout=FREE_SECONDS)
    for ref in busy:  # others work there
        ray.cancel(ref)


def end_actor(actor: ActorProxy[Any]) -> None:
    """Kill an actor at once."""
    import ray

    # Ray types a new actor as its handle or its class, so that its methods are known; it is always a handle.
    ray.kill(cast("ActorHandle[Any]", actor))


def root_cause(error: BaseException) -> str:
    """The last line of the innermost cause: what a person needs of Ray's nested tracebacks."""
    cause = getattr(error, "cause", None) or error
    text = str(cause).strip()
    # Memory first: what the last line says of it names neither the setting nor what it would have to be.
    if (memory := memory_used(text)) is not None:
        return (
            f"a worker ran out of memory (its node used {memory[0]} of {memory[1]}), and Ray ended it; "
            f"lower {SMALLER}, or set cluster.memory_gb_per_worker so that fewer workers share a node"
        )
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    last = lines[-1] if lines else type(cause).__name__
    if "out of memory" in last:  # as torch words it, of a GPU
        last += f"; lower {SMALLER}"
    elif "OOM killer" in text:  # among Ray's guesses, where a process was ended from outside
        last = "a worker process was killed from outside, perhaps by the system for memory; see `dmesg` on its node"
    return last
