"""The whole run, stage by stage: validate, base, calibrate, train, search, verify, version, report.

Every stage's result is addressed by what decides it, so a second run of the same spec does nothing, a run
that was killed goes on where it stood, and a changed task is the only one that is trained again. What must
be refused is refused before Ray starts.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from talos_ray.config import Spec, Task
from talos_ray.core.delta import Delta
from talos_ray.core.layout import Layout, fingerprint, key_of
from talos_ray.core.mask import DATA_FREE, Mask, mask_from_flags, select
from talos_ray.errors import TalosError
from talos_ray.models import base_tensors, check_model, layout_of, load_model
from talos_ray.progress import Progress
from talos_ray.storage import history
from talos_ray.storage.files import Store
from talos_ray.storage.run_folder import RunFolder, load_mask, software
from talos_ray.tasks import TaskData, load_task

DENSE, SPARSE = "dense", "sparse"


@dataclass(frozen=True)
class Prepared:
    """The spec with everything that can be known before any work: data, base, heads, keys."""

    spec: Spec
    data: dict[str, TaskData]
    tensors: dict[str, torch.Tensor]
    base: str
    layout: Layout
    heads: dict[str, np.ndarray]
    mask_key: str
    identity: dict[str, object]

    @property
    def targets(self) -> list[str]:
        return [t.name for t in self.spec.tasks]

    @property
    def controls(self) -> list[str]:
        return [t.name for t in self.spec.control]


def prepare(spec: Spec, progress: Progress) -> Prepared:
    """Check everything that can be wrong with a spec; touch nothing on storage and start nothing.

    Raises:
        SpecError: model, task, data, resources or output.
    """
    from talos_ray.orchestrate.calibrate import calibration_split
    from talos_ray.orchestrate.cluster import check_local, check_output
    from talos_ray.orchestrate.watch import check_tracker

    progress.begin("check", "spec, data and model")
    check_output(spec.output)
    check_tracker(spec.tracker)
    folder = RunFolder(spec.output)
    folder.check_new()
    check_model(spec.model)
    check_local(spec.cluster)
    everything = (*spec.tasks, *spec.control)
    data = {}
    for i, task in enumerate(everything):
        progress.update("check", i / len(everything), f"data of {task.name}")
        data[task.name] = load_task(task, spec.seed)
    family = load_model(spec.model)
    tensors = base_tensors(family)
    base = fingerprint(tensors)
    heads = {n: family.head(d.phrases, d.task.prompts).numpy() for n, d in data.items()}
    layout = layout_of(family)
    if spec.mask.path is not None:
        where = Path(spec.mask.path)
        if not where.is_file():
            raise TalosError(
                f"mask.path {spec.mask.path!r} does not exist; wanted a mask.safetensors; check the path, or leave it out to calibrate"
            )
        mask_key = load_mask(Store(str(where.parent)), where.name, base).fingerprint
    else:
        inputs = {t.name: calibration_split(spec, data[t.name]).fingerprint(labels=False) for t in spec.tasks}
        heads_used = fingerprint({t.name: torch.from_numpy(heads[t.name]) for t in spec.tasks})
        mask_key = key_of([base, inputs, heads_used, spec.calibration.model_dump(), spec.mask.model_dump(), spec.seed])
    identity = {
        "model": spec.model, "base": base, "tasks": [t.name for t in spec.tasks], "seed": spec.seed,
        "mask": spec.mask.model_dump(), "calibration": spec.calibration.model_dump(), "calibration inputs": mask_key,
    }  # fmt: skip
    folder.check_new(base, identity)
    prepared = Prepared(spec, data, tensors, base, layout, heads, mask_key, identity)
    k = layout.total if spec.mask.strategy == "all" else round(spec.mask.keep * layout.total)
    if k < 1:
        raise TalosError(
            f"mask.keep {spec.mask.keep:g} of {layout.total} eligible weights keeps none; wanted at least 1; raise mask.keep"
        )
    _check_stored(folder, prepared)
    progress.end(
        "check",
        f"{len(spec.tasks)} tasks, {len(spec.control)} control, base {base[:12]}, {layout.total:,} eligible weights, {k:,} may change",
    )
    return prepared


def _check_stored(folder: RunFolder, p: Prepared) -> None:
    """Mask and deltas already in the folder must belong to this base. Raises MismatchError, naming both."""
    mask = folder.load_mask(p.base)
    for task in p.targets:
        if (delta := folder.load_delta(task)) is not None:
            delta.check(p.base, mask.fingerprint if mask else delta.mask)


def delta_key(p: Prepared, task: Task, mask: str, settings) -> str:
    """Address of one task's delta: mask, data, head, training settings, and how the samples are shared out."""
    head = fingerprint({"head": torch.from_numpy(p.heads[task.name])})
    world = p.spec.cluster.workers_per_task
    return key_of(
        [
            p.base,
            mask,
            p.data[task.name].train.fingerprint(),
            head,
            settings.model_dump(exclude={"checkpoint_every"}),
            p.spec.seed,
            task.name,
            world,
        ]
    )


def _version_key(p: Prepared, deltas: Mapping[str, Delta], dense: Mapping[str, Delta]) -> str:
    held_out = {n: [d.validation.fingerprint(), d.test.fingerprint()] for n, d in p.data.items()}
    return key_of(
        [
            p.base,
            {t: d.fingerprint for t, d in deltas.items()},
            {t: d.fingerprint for t, d in dense.items()},
            p.spec.search.model_dump(),
            p.spec.baseline.model_dump(),
            p.controls,
            held_out,
        ]
    )


@dataclass(frozen=True)
class ArmPlan:
    """One arm's folder, mask and per-task settings."""

    name: str
    folder: RunFolder
    mask: Mask
    keys: dict[str, str]
    settings: dict[str, object]

    def finished(self) -> dict[str, Delta]:
        """Deltas on storage that these settings would make again."""
        found = {t: self.folder.load_delta(t) for t in self.keys}
        return {
            t: d
            for t, d in found.items()
            if d is not None and d.info.get("key") == self.keys[t] and d.mask == self.mask.fingerprint
        }


def _arms(p: Prepared, mask: Mask) -> list[ArmPlan]:
    def plan(name: str, uri: str, mask: Mask, update: dict) -> ArmPlan:
        settings = {t.name: p.spec.train_for(t).model_copy(update=update) for t in p.spec.tasks}
        keys = {t.name: delta_key(p, t, mask.fingerprint, settings[t.name]) for t in p.spec.tasks}
        return ArmPlan(name, RunFolder(uri), mask, keys, settings)

    arms = [plan(SPARSE, p.spec.output, mask, {})]
    if p.spec.baseline.enabled:
        everything = mask_from_flags(p.layout, torch.ones(p.layout.total, dtype=torch.bool))
        update = {"delta_dtype": "float32", **({"lr": p.spec.baseline.lr} if p.spec.baseline.lr else {})}
        arms.append(plan(DENSE, f"{RunFolder(p.spec.output).store.uri.rstrip('/')}/baseline", everything, update))
    return arms


def run_edit(spec: Spec, *, verbose: bool = False, progress: Progress | None = None) -> RunFolder:
    """Do whatever of the spec is not done yet. Returns the run's folder.

    Raises:
        TalosError: bad input (before any work), or a stage that could not be finished; what was finished is kept.
    """
    with progress or Progress() as progress:
        prepared = prepare(spec, progress)
        folder = RunFolder(spec.output)
        mask = folder.load_mask(prepared.base)
        if mask is not None:
            arms = _arms(prepared, mask)
            done = {a.name: a.finished() for a in arms}
            if all(len(done[a.name]) == len(a.keys) for a in arms):
                key = _version_key(prepared, done[SPARSE], done.get(DENSE, {}))
                for number in folder.versions():
                    if folder.load_version(number).get("key") == key:
                        progress.say(
                            f"Nothing to do: {spec.output} already holds this edit as version {number} (head is version {folder.head})."
                        )
                        return folder
        _Session(prepared, folder, verbose, progress).run(mask)
        return folder


class _Session:
    """One driver's work on Ray, from an open run folder to a new version."""

    def __init__(self, prepared: Prepared, folder: RunFolder, verbose: bool, progress: Progress) -> None:
        self.p, self.folder, self.verbose, self.progress = prepared, folder, verbose, progress
        self.spec = prepared.spec
        self.slots: dict[str, int] = {}  # stage -> how much of it runs at once

    def run(self, mask: Mask | None) -> None:
        import ray

        from talos_ray.orchestrate import cluster
        from talos_ray.orchestrate.watch import Tracker, Watch

        started_at = time.monotonic()
        self.progress.begin(
            "ray", "joining a cluster" if cluster.remote_address(self.spec.cluster) else "starting on this machine"
        )
        started = cluster.connect(self.spec.cluster, self.verbose, lambda note: self.progress.update("ray", 0.0, note))
        self.scratch = tempfile.mkdtemp(prefix="talos_ray-")
        try:
            have = ray.cluster_resources()
            self.progress.end(
                "ray", f"{have.get('CPU', 0):g} CPUs, {have.get('GPU', 0):g} GPUs, {len(ray.nodes())} node(s)"
            )
            self._open_folder()
            self._share()
            params = {
                "model": self.spec.model,
                "base": self.p.base,
                "seed": self.spec.seed,
                "keep": self.spec.mask.keep,
            }
            with Watch(Tracker(self.spec.tracker, self.spec.output, params, self.progress.say)) as self.watch:
                mask = mask or self._calibrate()
                arms = _arms(self.p, mask)
                deltas = self._train(arms)
                self._finish(arms, deltas, started_at)
        except ray.exceptions.RayError as error:
            raise TalosError(
                f"{cluster.root_cause(error)}\nfinished stages and tasks are kept; mend the cause and run the same command again"
            ) from error
        finally:
            shutil.rmtree(self.scratch, ignore_errors=True)
            if started:
                ray.shutdown()

    def _share(self) -> None:
        import ray

        from talos_ray.orchestrate.worker import Shared, freeze

        if self.spec.cluster.base == "storage":
            tensors = (self.folder.store.uri, self.folder.save_base(self.p.base, self.p.tensors))
        else:
            tensors = freeze(self.p.tensors)
        self.shared = Shared(self.spec, self.p.base, tensors, self.p.layout, self.p.heads)
        self.shared_ref = ray.put(self.shared)

    def _open_folder(self) -> None:
        fresh = not self.folder.store.exists("run.json")
        self.folder.write_info(self.spec.model_dump(mode="json"), self.p.base, self.p.identity)
        history.append(
            self.folder.store,
            "start" if fresh else "resume",
            base=self.p.base,
            spec=self.spec.model_dump(mode="json"),
            software=software(),
        )

    def _slots(self, stage: str, workers: int, limit: int | None) -> int:
        from talos_ray.orchestrate.cluster import slots

        self.slots[stage] = slots(self.spec.cluster, workers, limit)
        return self.slots[stage]

    def _calibrate(self) -> Mask:
        from talos_ray.orchestrate.calibrate import calibrate

        progress, spec = self.progress, self.spec
        progress.begin("calibrate", "sensitivity of every weight")
        started = time.perf_counter()
        if spec.mask.path is not None:
            where = Path(spec.mask.path)
            mask = load_mask(Store(str(where.parent)), where.name, self.p.base)
        elif spec.mask.strategy in DATA_FREE:
            how = {**spec.mask.model_dump(exclude={"path"}), "seed": spec.seed}
            flags = select(self.p.layout, weights=self.p.tensors, **how)
            mask = mask_from_flags(self.p.layout, flags, how)
        else:
            data = [self.p.data[t] for t in self.p.targets]
            workers = self._slots("calibrate", 1, spec.cluster.calibration_workers)
            mask = calibrate(
                self.shared_ref, self.shared, data, workers,
                lambda done, total: progress.update("calibrate", done / total, f"shard {done} of {total}"),
            )  # fmt: skip
            mask = Mask(mask.layout, mask.bits, {**mask.info, "seconds": round(time.perf_counter() - started, 3)})
        self.folder.save_mask(mask, self.p.base)
        history.append(
            self.folder.store, "calibrate", base=self.p.base, mask=mask.fingerprint, k=mask.k, inputs=self.p.mask_key
        )
        progress.end("calibrate", f"mask {mask.fingerprint[:12]}, {mask.k:,} of {mask.layout.total:,} weights")
        return mask

    def _train(self, arms: list[ArmPlan]) -> dict[str, dict[str, Delta]]:
        from talos_ray.orchestrate.train import Job, train
        from talos_ray.orchestrate.worker import Arm

        jobs = []
        for arm in arms:
            finished = arm.finished()
            for task in self.spec.tasks:
                if task.name not in finished:
                    info = {"data": self.p.data[task.name].train.fingerprint()}
                    jobs.append(
                        Job(
                            task,
                            arm.name,
                            arm.settings[task.name],
                            arm.keys[task.name],
                            arm.folder.store.uri,
                            arm.mask.fingerprint,
                            info,
                        )
                    )
        kept = sum(len(a.keys) for a in arms) - len(jobs)
        if jobs:
            self.progress.begin("train", "starting teams of Ray Train workers")
            teams = self._slots("train", self.spec.cluster.workers_per_task, self.spec.cluster.teams)
            bits = {a.name: Arm(a.name, a.mask.bits) for a in arms}
            train(self.shared_ref, bits, jobs, self.spec.cluster, teams, self.scratch, self._on_status)
            again = sum(self.progress.restarts.values())
            if again:
                history.append(self.folder.store, "teams restarted", restarts=again)
            self.progress.end(
                "train",
                f"{len(jobs)} trained"
                + (f", {kept} kept" if kept else "")
                + f" by {min(teams, len(jobs))} team(s)"
                + (f", {again} restart(s)" if again else ""),
            )
        deltas = {a.name: a.finished() for a in arms}
        for arm in arms:
            missing = sorted(set(arm.keys) - set(deltas[arm.name]))
            if missing:
                raise TalosError(
                    f"no delta of {arm.name}/{missing[0]} on storage after training; check that every worker can write to {arm.folder.store.uri!r}"
                )
        if jobs:
            made = {j.task.name: deltas[SPARSE][j.task.name].fingerprint for j in jobs if j.arm == SPARSE}
            history.append(self.folder.store, "train", mask=arms[0].mask.fingerprint, deltas=made)
        return deltas

    def _on_status(self, state: dict[str, dict], restarts: dict[int, int]) -> None:
        self.progress.training(state, restarts)
        self.watch.training(state, restarts)

    def _finish(self, arms: list[ArmPlan], deltas: dict[str, dict[str, Delta]], started_at: float) -> None:
        from talos_ray.orchestrate.verify import Judge

        judge = Judge(
            self.p,
            self.shared_ref,
            self.folder,
            self.scratch,
            self.progress,
            self._slots("search", 1, self.spec.cluster.search_workers),
            self.watch,
        )
        chosen = judge.search(arms, deltas)
        version = judge.verify(arms, deltas, chosen)
        version["key"] = _version_key(self.p, deltas[SPARSE], deltas.get(DENSE, {}))
        version["seconds"] = round(time.monotonic() - started_at, 1)
        version["stages"] = {
            "seconds": self.progress.seconds(),
            "slots": self.slots,
            "first_step": self.progress.first_step,
            "candidate_overhead": round(judge.overhead, 4),
            "object_store_peak": self.watch.peak,
        }
        self.watch.version(version["scores"], version["summary"])
        if not self.folder.versions():
            self.folder.add_version(judge.base_version(version), "version")
        number = self.folder.add_version(version, "version")
        self.progress.begin("report", "tables and plots")
        from talos_ray.report.page import write_report

        write_report(self.folder)
        self.progress.end(
            "report", f"version {number} is head; report in {self.folder.store.path('report/index.html')}"
        )
