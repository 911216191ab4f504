"""One driver's time on Ray: it connects, shares the base, and leaves nothing behind."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import ray

from talos_ray.config import Cluster
from talos_ray.errors import TalosError
from talos_ray.orchestrate import cluster
from talos_ray.orchestrate.plan import Prepared
from talos_ray.orchestrate.watch import Tracker, Watch
from talos_ray.orchestrate.worker import Frozen, Shared, freeze, thaw
from talos_ray.progress import Progress
from talos_ray.storage.files import patient
from talos_ray.storage.history import NOW
from talos_ray.storage.run_folder import RunFolder

TELL_SECONDS = 2.0  # between two writes of how far the run is
TELL_FAR_SECONDS = 15.0  # the same where each is a request


class Session:
    """What every stage needs: the prepared spec, the run's folder, and the base in the object store."""

    def __init__(self, prepared: Prepared, folder: RunFolder, progress: Progress, watch: Watch, scratch: str) -> None:
        self.p = prepared
        self.folder = folder
        self.progress = progress
        self.watch = watch
        self.scratch = scratch
        self.spec = prepared.spec
        self.slots: dict[str, int] = {}  # stage -> how much of it runs at once

    def share(self) -> None:
        """The base, once, to where every worker finds it."""
        if self.spec.cluster.base == "storage":
            name = self.folder.save_base(self.p.base, self.p.tensors)
            tensors: Frozen | tuple[str, str] = (self.folder.store.uri, name)
        else:
            tensors = freeze(self.p.tensors)
        self.shared = Shared(self.spec, self.p.base, tensors, self.p.layout, self.p.heads)
        self.shared_ref = ray.put(self.shared)
        if not isinstance(tensors, tuple):  # from here on the driver, too, reads the copy that all share
            self.shared = ray.get(self.shared_ref)
            assert isinstance(self.shared.tensors, dict)
            self.p.tensors.update(thaw(self.shared.tensors))

    def slots_of(self, stage: str, workers: int, limit: int | None) -> int:
        self.slots[stage] = cluster.slots(self.spec.cluster, workers, limit)
        return self.slots[stage]


@contextmanager
def connected(settings: Cluster, verbose: bool, progress: Progress) -> Iterator[None]:
    """Ray, on the cluster at hand or started here; what was started here ends with this.

    Raises:
        SpecError: the cluster can never give what the settings want.
    """
    if first := "ray" not in progress.stages:  # of the sessions of a command
        joining = "joining a cluster" if cluster.remote_address(settings) else "starting on this machine"
        progress.begin("ray", "the one that this process is connected to" if ray.is_initialized() else joining)
    started = cluster.connect(settings, verbose, lambda note: progress.update("ray", 0.0, note))
    try:
        if first:
            have = ray.cluster_resources()
            progress.end("ray", f"{have.get('CPU', 0):g} CPUs, {have.get('GPU', 0):g} GPUs, {len(ray.nodes())} node(s)")
        yield
    finally:
        if started:
            ray.shutdown()


@contextmanager
def _telling(folder: RunFolder, progress: Progress) -> Iterator[None]:
    """While this lasts, a file in the run's folder says how far it is (`talos top`). A storage that refuses it costs
    nothing."""
    every = TELL_SECONDS if folder.store.local else TELL_FAR_SECONDS
    last = 0.0

    def tell(news: dict[str, Any]) -> None:
        nonlocal last
        if time.monotonic() - last < every:
            return
        last = time.monotonic()
        # The run goes on meanwhile: nothing of this is worth another try. Without its file there is no run yet.
        with suppress(TalosError, OSError), patient(0):
            if folder.store.exists("run.json"):
                folder.store.write_json(NOW, {**news, "time": time.time()})

    progress.on_news = tell
    try:
        yield
    finally:
        progress.on_news = lambda news: None
        with suppress(TalosError, OSError):
            folder.store.delete(NOW)


@contextmanager
def on_ray(prepared: Prepared, folder: RunFolder, verbose: bool, progress: Progress) -> Iterator[Session]:
    """A session on the cluster at hand, or on one of our own that ends with it.

    Raises:
        SpecError: the cluster can never give what the spec wants. TalosError: what Ray raised, in our words.
    """
    spec = prepared.spec
    scratch = tempfile.mkdtemp(prefix="talos_ray-")
    try:
        with connected(spec.cluster, verbose, progress):
            params = {"model": spec.model, "base": prepared.base, "seed": spec.seed, "keep": spec.mask.keep}
            tracker = Tracker(spec.tracker, spec.output, params, progress.say)
            patience = patient(60 * spec.cluster.storage_minutes)
            with Watch(tracker, spec.output) as watch, _telling(folder, progress), patience:
                yield Session(prepared, folder, progress, watch, scratch)
            cluster.free_gpus(spec.cluster)
    except ray.exceptions.RayError as error:
        raise TalosError(
            f"{cluster.root_cause(error)}\nfinished stages and tasks are kept; mend the cause and run the same "
            "command again"
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
