"""Join or start Ray, and refuse at once what the cluster can never give."""

from __future__ import annotations

import logging
import math
import os

from talos_ray.config import Cluster
from talos_ray.errors import SpecError

QUIET = {
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
}
JOB_FOLDER = "runtime_resources/working_dir_files"  # where Ray unpacks a job's working folder


def remote_address(settings: Cluster) -> str | None:
    """The address of an existing cluster, or None if Ray is to start on this machine."""
    return settings.address or os.environ.get("RAY_ADDRESS")


def check_local(settings: Cluster) -> None:
    """Raises SpecError if this machine can never give one team what it asks for. Starts nothing."""
    if remote_address(settings) is None:
        import torch

        _check(settings, {"CPU": os.cpu_count() or 1, "GPU": torch.cuda.device_count()}, "this machine")


def check_output(output: str) -> None:
    """Raises SpecError if the run would be written into the folder that Ray unpacks for a job and deletes after it."""
    if JOB_FOLDER in os.getcwd() and "://" not in output and not os.path.isabs(output):
        raise SpecError(
            f"output {output!r} is relative, and this job's own folder is deleted when the job ends; "
            f"give an absolute path that every node sees, or a URI like s3://bucket/run (--output)"
        )


def connect(settings: Cluster, verbose: bool) -> bool:
    """Join the cluster that `address` or RAY_ADDRESS names, or start Ray here. True if it was started by this call.

    Raises:
        SpecError: no cluster answers at the address, or it can never give one team what it asks for.
    """
    for key, value in QUIET.items():
        os.environ.setdefault(key, value)
    import ray

    if not verbose:
        for name in ("ray", "ray.tune", "ray.train", "ray.data"):
            logging.getLogger(name).setLevel(logging.ERROR)
    started = not ray.is_initialized()
    if started:
        address = remote_address(settings)
        level = logging.INFO if verbose else logging.ERROR
        try:
            ray.init(
                address=address or "local",  # None would join whatever cluster last ran on this machine, alive or not
                log_to_driver=verbose,
                logging_level=level,
                configure_logging=True,
                runtime_env={"env_vars": _worker_env()},
            )
        except ConnectionError as error:
            raise SpecError(
                f"no Ray cluster answers at {address!r}: {error}; start one with `ray start --head`, or leave cluster.address out"
            ) from None
    try:
        _check(settings, ray.cluster_resources(), "the cluster")
    except SpecError:
        if started:
            ray.shutdown()
        raise
    return started


def _worker_env() -> dict[str, str]:
    passed = ("TALOS_CACHE", "HF_HOME", "HF_TOKEN", "HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_ENDPOINT")
    return {**QUIET, **{k: os.environ[k] for k in passed if k in os.environ}}


def _check(settings: Cluster, have: dict[str, float], who: str) -> None:
    for kind, each in (("CPU", settings.cpus_per_worker), ("GPU", settings.gpus_per_worker)):
        wanted, there = each * settings.workers_per_task, have.get(kind, 0)
        if wanted > there:
            key = f"{kind.lower()}s_per_worker"
            raise SpecError(
                f"one team needs {wanted:g} {kind}s (cluster.workers_per_task {settings.workers_per_task} x {key} {each:g}), "
                f"but {who} has {there:g}; lower cluster.{key} or workers_per_task, or join a larger cluster with cluster.address"
            )


def slots(settings: Cluster, workers: int, limit: int | None) -> int:
    """How many groups of `workers` fit into the cluster at once, at most `limit`, at least 1."""
    import ray

    have = ray.cluster_resources()
    fits = have.get("CPU", 1) / (settings.cpus_per_worker * workers)
    if settings.gpus_per_worker:
        fits = min(fits, have.get("GPU", 0) / (settings.gpus_per_worker * workers))
    return max(1, min(math.floor(fits + 1e-9), limit or 1 << 30))


def root_cause(error: BaseException) -> str:
    """The last line of the innermost cause: what a person needs of Ray's nested tracebacks."""
    cause = getattr(error, "cause", None) or error
    lines = [line for line in str(cause).strip().splitlines() if line.strip()]
    text = lines[-1].strip() if lines else type(cause).__name__
    if "OutOfMemory" in type(error).__name__ + text:
        text += "; a worker ran out of memory: lower train.batch_size, or give fewer workers a node"
    return text
