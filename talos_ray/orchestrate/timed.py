"""What pieces of a run's work take on this machine, timed with the data at hand: what `talos plan --timed` is made of.

Weights and data are loaded as a worker loads them, in this process, and no Ray is started. Every piece is done once
without being counted, because the first time also makes what later ones find; of the rest the median counts. While a
piece is timed that several workers will be at, other processes keep the other workers' CPUs busy: two workers that
share a core's caches and memory are not twice as fast as one.
"""

from __future__ import annotations

import io
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from rich.console import Console

from talos_ray.config import Spec, Task, Train
from talos_ray.core.delta import Delta
from talos_ray.core.layout import fingerprint
from talos_ray.core.mask import DATA_FREE, Mask, mask_from_flags, select
from talos_ray.core.segments import Blend
from talos_ray.errors import SpecError
from talos_ray.models import base_tensors, load_model
from talos_ray.orchestrate import cluster
from talos_ray.orchestrate.calibrate import checked_hooks, shard_scores
from talos_ray.orchestrate.forecast import (
    TaskWork,
    Work,
    Workers,
    arms,
    calibrates,
    runs_by_arm,
    seconds_by_stage,
)
from talos_ray.orchestrate.learning import Goal, LearningRun, MergeProblem, Point, Record, pool_of
from talos_ray.orchestrate.plan import Prepared, prepare, with_commits
from talos_ray.orchestrate.selection import Selection, calibration_split, selection_of
from talos_ray.orchestrate.task_training import begin, tune
from talos_ray.orchestrate.worker import Arm, Shared, Workbench, freeze, workbench
from talos_ray.progress import Progress
from talos_ray.storage.run_folder import RunFolder, mask_at
from talos_ray.tasks import encoded, load_task

MOST_TASKS = 3  # that are timed; the others are taken to be like them
TIMES = 3  # that a piece is timed at least; a short one as often as fits into `SECONDS`, but no more than `MOST_TIMES`
SECONDS = 1.5
MOST_TIMES = 50
MERGE_STEPS = 8  # of the learned merge: half of them without a checkpoint in between
FEW = 32  # inputs that are decoded and preprocessed to time it
FORWARD = 256  # inputs of one forward, as `Workbench.answered` has them
BUSY = 0.3  # load, a CPU, from which on a machine counts as busy
RAY_PROCESSES = 4  # of Ray's own that begin with it, and import it
RAY_START = 2.0  # what Ray's start takes, in times of so many imports at once: some wait for others
START = """
import sys
import ray
import talos_ray.orchestrate.task_training
from talos_ray.models import check_model
from talos_ray.models.lean import import_lean
import_lean(sys.argv[1])
check_model(sys.argv[1])
"""
# Products of the size of a small model's, until the process that started it is gone.
SPIN = """
import os, sys
import numpy as np
matrix = np.ones((256, 256), dtype=np.float32)
while os.getppid() == int(sys.argv[1]):
    matrix @ matrix
"""


@dataclass(frozen=True, kw_only=True)
class Timed:
    """Seconds by stage, for so many workers, and what there is to know of them."""

    seconds: Mapping[str, float]
    workers: int
    pieces: Mapping[str, float]  # what was timed, in seconds
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {
            "seconds": {stage: round(seconds, 2) for stage, seconds in self.seconds.items()},
            "in all": round(sum(self.seconds.values()), 2),
            "workers": self.workers,
            "pieces": self.pieces,
            "notes": list(self.notes),
        }


def timed_plan(spec: Spec, workers: int | None = None) -> Timed:
    """Time pieces of a spec's work here, and say what its stages will take.

    Args:
        workers: at once; as many as this machine has places for, if not given.

    Raises:
        TalosError: something is wrong with the spec, or its model or data are not here.
    """
    notes = []
    if (load := _load()) is not None and load > BUSY:
        notes.append(f"this machine is busy (load {load:.2f} a CPU): what is timed now says little of a quiet one")
    spec = with_commits(spec)
    if spec.mask.open:
        raise SpecError("mask says auto, so short runs will decide what is trained; wanted a mask's settings to time")
    here = cluster.room(spec.cluster, [({"CPU": os.cpu_count() or 1, "GPU": torch.cuda.device_count()}, {})])
    places = workers or max(1, here)
    started = time.perf_counter()
    with Progress(Console(file=io.StringIO())) as quiet:  # what the check tells is of a run, and not of its plan
        prepared = prepare(spec, quiet)
    check = time.perf_counter() - started
    timer = _Timer(prepared, places, min(places, max(1, here)))
    tasks, work = timer.measured(check)
    counts = Workers(
        calibrate=min(places, spec.cluster.calibration_workers or places),
        train=max(1, min(places // spec.cluster.workers_per_task, spec.cluster.teams or places)),
        search=min(places, spec.cluster.search_workers or places),
    )
    if RunFolder(spec.output).store.exists("run.json"):
        notes.append(f"what {spec.output} holds already is not taken off")
    if spec.cluster.workers_per_task > 1:
        notes.append("what the workers of a team send each other at every step is not counted")
    if calibrates(spec) and spec.calibration.stable is not None:
        notes.append("rounds of the calibration are taken to end in the middle between the earliest wave and the last")
    if spec.search.method == "learned" and spec.control:
        notes.append("the first pressure is taken to hold the control tasks; each further one adds half of a run")
    return Timed(
        seconds=seconds_by_stage(spec, tasks, work, counts),
        workers=places,
        pieces=timer.pieces,
        notes=tuple(notes),
    )


def _load() -> float | None:
    """How many processes have wanted a CPU in the last minute, a CPU; None where the system does not say."""
    if not hasattr(os, "getloadavg"):
        return None
    return os.getloadavg()[0] / (os.cpu_count() or 1)


@contextmanager
def _busy(others: int) -> Iterator[None]:
    """So many processes at work while this lasts."""
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SPIN, str(os.getpid())]
    processes = [subprocess.Popen(command, env=one_thread) for _ in range(others)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.wait()


def _seconds_at_once(processes: int, script: str, *arguments: str) -> float:
    """Until so many processes, begun at once, have run a script."""
    started = time.perf_counter()
    command = [sys.executable, "-c", script, *arguments]
    quiet = subprocess.DEVNULL
    running = [subprocess.Popen(command, stdout=quiet, stderr=quiet) for _ in range(processes)]
    for process in running:
        process.wait()
    return time.perf_counter() - started


def _median_seconds(work: Callable[[], object], device: torch.device) -> float:
    """Seconds that work takes, after a round that is not counted."""
    times: list[float] = []
    while len(times) <= TIMES or (len(times) <= MOST_TIMES and sum(times) < SECONDS):
        started = time.perf_counter()
        work()
        if device.type == "cuda":  # a launch returns before the result is there
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


class _StepTimer(LearningRun):
    """A learning run that notes when its updates begin, and judges nothing."""

    began: list[float]

    def _backward(self, *args: Any) -> float:
        self.began.append(time.perf_counter())
        return super()._backward(*args)

    def _judged(self, heads: bool = True) -> tuple[Record, dict[str, torch.Tensor]]:
        return {"objective": 0.0, "scores": {}, "words": {}, "kept": 1.0, "worst": "", "holds": True}, {}


class _Timer:
    """Times the pieces of one prepared spec."""

    def __init__(self, prepared: Prepared, places: int, here: int) -> None:
        self.p = prepared
        self.spec = prepared.spec
        self.places = places
        self.here = here  # of the places, those of this machine: others are taken to be on machines like it
        self.pieces: dict[str, float] = {}
        self._start_a_worker()

    def _start_a_worker(self) -> None:
        """A worker's process, and its workbench, which is this process's own from here on."""
        p = self.p
        self.start_alone = self._noted("start of a worker", _seconds_at_once(1, START, self.spec.model))
        self.start = self.start_alone
        if self.here > 1:
            self.start = self._noted(
                "start of a machine's workers", _seconds_at_once(self.here, START, self.spec.model)
            )
        self.ray = self._noted("start of Ray", RAY_START * _seconds_at_once(RAY_PROCESSES, "import ray"))
        shared = Shared(self.spec, p.base, freeze(p.tensors), p.layout, p.heads)
        started = time.perf_counter()
        self.bench: Workbench = workbench(shared)
        self.build = self._noted("model of a worker", time.perf_counter() - started)
        masks = {"sparse": self._mask()}
        if self.spec.baseline.enabled:
            masks["dense"] = mask_from_flags(p.layout, torch.ones(p.layout.total, dtype=torch.bool))
        self.masks = masks

    @contextmanager
    def _others_busy(self, pieces: int) -> Iterator[None]:
        """What the other workers of this machine do to the one that is timed, where so many pieces are done at
        once."""
        others = min(self.here, pieces) - 1
        with _busy(others * max(1, int(self.spec.cluster.cpus_per_worker))):
            yield

    def _noted(self, what: str, seconds: float) -> float:
        self.pieces[what] = round(seconds, 5)
        return seconds

    def _mask(self) -> Mask:
        """A mask like the one that the run will have: as large, and of the same kind."""
        mask = self.spec.mask
        if mask.path is not None:
            return mask_at(mask.path, self.p.base)
        return self._selected("all" if mask.strategy == "all" else "random")

    def _selected(self, strategy: Any, scores: torch.Tensor | None = None) -> Mask:
        how = self._selection()
        flags = select(
            self.p.layout, strategy, how.keep, granularity=how.granularity, layers=how.layers, scores=scores,
            seed=self.spec.seed,
        )  # fmt: skip
        return mask_from_flags(self.p.layout, flags)

    def _selection(self) -> Selection:
        return selection_of(self.spec.mask)

    def measured(self, check: float) -> tuple[list[TaskWork], Work]:
        """Every task's work, and what all have in common."""
        spec = self.spec
        timed: dict[str, TaskWork] = {}
        runs = sum(runs_by_arm(spec, bool(spec.control)).values())
        for task in self._timed_tasks():
            timed[task.name] = self._task(task)
        hooks = select_ = 0.0
        if calibrates(spec):
            with self._others_busy(self.places):  # with those that load what they will need, or score already
                hooks = self._noted("check of the hooks", self._hooks())
                select_ = self._noted("selection of a mask", self._select())
        with self._others_busy(runs), tempfile.TemporaryDirectory(prefix="talos_ray-") as scratch:
            step = {}
            compose = 0.0
            ones = Blend(dict.fromkeys(self.p.targets, 1.0))
            for name, mask in self.masks.items():
                arm = Arm.of(name, mask.bits, self._deltas(mask))
                step[name] = self._noted(f"a {name} step of the merge", self._merge_step(arm, scratch))
                compose = self._noted("a candidate into the model", self._compose(arm, ones))
        work = Work(
            check=self._noted("check", check),
            ray=self.ray,
            start=self.start,
            start_alone=self.start_alone,
            build=self.build,
            hooks=hooks,
            select=select_,
            merge_step=step,
            compose=compose,
            composed=self._noted("the chosen model", self._composed()),
        )
        return [self._like(task, timed) for task in (*spec.tasks, *spec.control)], work

    def _timed_tasks(self) -> list[Task]:
        """The targets with the most, the fewest and a middling number of training inputs, and one control task."""
        trained = [task for task in self.spec.tasks if task.checkpoint is None]
        tasks = sorted(trained or self.spec.tasks, key=lambda task: len(self.p.data[task.name].train))
        places = {0, len(tasks) - 1, len(tasks) // 2}
        return [tasks[place] for place in sorted(places)][:MOST_TASKS] + list(self.spec.control[:1])

    def _like(self, task: Task, timed: Mapping[str, TaskWork]) -> TaskWork:
        """A task's work: as timed, or from the means of those that were."""
        if task.name in timed:
            return timed[task.name]
        targets = [timed[t.name] for t in self.spec.tasks if t.name in timed]
        like = [timed[t.name] for t in self.spec.control if t.name in timed] if task in self.spec.control else targets

        def mean(of: Callable[[TaskWork], float]) -> float:
            return statistics.mean(of(one) for one in like)

        shards: tuple[float, ...] = ()
        if task not in self.spec.control and calibrates(self.spec):
            # Of inputs alike, a shard costs what its inputs do.
            per_input = mean(lambda one: sum(one.shards) / max(1, min(one.train, self._samples)))
            shards = tuple(per_input * size for size in self._shard_sizes(task))
        return self._work_of(
            task,
            load=mean(lambda one: one.load),
            prepare=mean(lambda one: one.prepare),
            shards=shards,
            step={arm: statistics.mean(one.step[arm] for one in like) for arm in like[0].step},
            forward=mean(lambda one: one.forward),
            fit=mean(lambda one: one.fit),
        )

    @property
    def _jobs(self) -> int:
        """Trainings, of all arms."""
        return len(self.masks) * sum(task.checkpoint is None for task in self.spec.tasks)

    @property
    def _samples(self) -> int:
        return self.spec.calibration.samples_per_task

    def _shard_sizes(self, task: Task) -> list[int]:
        samples = min(self._samples, len(self.p.data[task.name].train))
        parts = torch.arange(samples).tensor_split(min(self.spec.calibration.shards_per_task, samples))
        return [len(part) for part in parts]

    def _work_of(self, task: Task, *, unprepared: Mapping[str, int] | None = None, **seconds: Any) -> TaskWork:
        """A task's work of its inputs' numbers and its pieces' seconds."""
        data = self.p.data[task.name]
        pool = pool_of(self.spec, task.name, len(data.train), len(data.validation))
        steps = {}
        settings = self._training(task)
        if task not in self.spec.control and task.checkpoint is None:
            steps = {arm: settings.steps for arm in arms(self.spec)}
        return TaskWork(
            name=task.name,
            train=len(data.train),
            validation=len(data.validation),
            test=len(data.test),
            learned=len(pool),
            judged=len(pool.judged),
            unprepared=self._unprepared(task) if unprepared is None else unprepared,
            steps=steps,
            batch=min(settings.batch_size, len(data.train)),
            **seconds,
        )

    def _training(self, task: Task) -> Train:
        return self.spec.train_for(task, len(self.p.data[task.name].train))

    def _unprepared(self, task: Task) -> dict[str, int]:
        """Inputs of each split that no process of this machine has prepared yet."""
        missing = {}
        for split in ("train", "validation", "test"):
            examples = self.bench.examples(task.name, split)
            kept = examples.kept if len(examples) else None
            missing[split] = len(examples) if kept is None else int((kept[1] == 0).sum())
        return missing

    # ------------------------------------------------------------------------------ pieces

    def _task(self, task: Task) -> TaskWork:
        """A task's own pieces."""
        name = task.name
        bench = self.bench
        unprepared = self._unprepared(task)  # before what is timed prepares some
        train = bench.examples(name, "train")
        few = list(range(min(FEW, len(train))))
        test = bench.examples(name, "test")
        rows = torch.arange(min(FORWARD, len(test)))
        with self._others_busy(self.places):
            prepare = _median_seconds(lambda: train.fresh(few), bench.device) / len(few)
            started = time.perf_counter()
            load_task(task, self.spec.seed + 1)  # by another seed, because this process keeps what it has loaded
            load = time.perf_counter() - started
            forward = _median_seconds(lambda: bench.answered(test, name, rows), bench.device) / max(1, len(rows))
        self._noted(f"{name}: its data", load)
        self._noted(f"{name}: an input prepared", prepare)
        self._noted(f"{name}: a forward, an input", forward)
        shards: tuple[float, ...] = ()
        step: dict[str, float] = {}
        fit = 0.0
        if task in self.spec.tasks:
            if calibrates(self.spec):
                with self._others_busy(self.places):
                    shards = self._shards(task)
            if task.checkpoint is None:
                with self._others_busy(self._jobs):
                    for arm, mask in self.masks.items():
                        step[arm] = self._noted(f"{name}: a {arm} step", self._step(task, mask))
            if self.p.own_heads and self.spec.search.heads != "words":
                fit = self._noted(f"{name}: a head", self._fit(task))
        return self._work_of(
            task, unprepared=unprepared, load=load, prepare=prepare, shards=shards, step=step, forward=forward, fit=fit
        )

    def _shards(self, task: Task) -> tuple[float, ...]:
        """Calibration shards of a task: the first one, and the others by their size."""
        sizes = self._shard_sizes(task)
        split = calibration_split(self.spec, self.p.data[task.name])
        size = min(sizes[0], self.spec.calibration.batch_size)
        examples = encoded(split.select(list(range(size))))
        checked = self._checked(task)
        pieces = [slice(0, self.p.layout.total)]
        # Rounds after the first one damp what the one before has not kept.
        kept = self.masks["sparse"].bits if self.spec.calibration.rounds > 1 else None

        def shard() -> None:
            for _ in shard_scores(self.bench, task.name, examples, checked, self._selection(), kept, 0, pieces):
                pass

        seconds = self._noted(f"{task.name}: a shard of {size}", _median_seconds(shard, self.bench.device))
        return tuple(seconds * each / size for each in sizes)

    def _checked(self, task: Task) -> Any:
        split = calibration_split(self.spec, self.p.data[task.name])
        return checked_hooks(self.bench, task.name, encoded(split.select(list(range(min(3, len(split)))))))

    def _hooks(self) -> float:
        started = time.perf_counter()
        self._checked(self.spec.tasks[0])
        return time.perf_counter() - started

    def _select(self) -> float:
        strategy = self.spec.mask.strategy
        assert strategy not in DATA_FREE

        def choose() -> None:
            scores = torch.rand(self.p.layout.total)
            for _ in self.spec.tasks:  # the mean over tasks is made anew every time
                scores += 1.0
            self._selected(strategy, scores)

        return _median_seconds(choose, self.bench.device)

    def _step(self, task: Task, mask: Mask) -> float:
        """An update of a task's training, by one worker of its team."""
        seconds = statistics.median(self._steps(task, mask, TIMES))
        if (times := min(MOST_TIMES, int(SECONDS / seconds))) > TIMES:
            seconds = statistics.median(self._steps(task, mask, times))
        return seconds

    def _steps(self, task: Task, mask: Mask, times: int) -> list[float]:
        """Seconds of so many updates, after one that is not counted."""
        bench = self.bench
        settings = self._training(task).model_copy(update={"steps": times + 1, "epochs": None, "warmup_steps": 1})
        examples = bench.examples(task.name, "train")
        bench.reset()
        _, optimizer, plan = begin(bench, mask, task.name, settings)
        world = self.spec.cluster.workers_per_task
        parts = [
            part for step in range(settings.steps) for part in plan.parts_at(step, 0, world, settings.micro_batch_size)
        ]
        for part in parts:  # what is prepared only once is counted apart
            examples.batch(part)
        batches = iter(parts)
        ended: list[float] = []

        def on_step(step: int, loss: torch.Tensor) -> None:
            float(loss)  # a GPU has to be waited for
            ended.append(time.perf_counter())

        try:
            tune(
                bench,
                plan,
                settings,
                optimizer,
                lambda index: examples.batch(next(batches)),
                rank=0,
                world=world,
                on_step=on_step,
            )
        finally:
            optimizer.close()
            bench.reset()
        return _gaps(ended)

    def _fit(self, task: Task) -> float:
        """A head of a task's own on the inputs that are learned from."""
        bench = self.bench
        name = task.name
        pool = pool_of(self.spec, name, *(len(bench.examples(name, split)) for split in ("train", "validation")))
        shown = bench.answered(bench.examples(name, "train"), name, pool.train[:FORWARD], features=True)
        judged = bench.answered(bench.examples(name, "validation"), name, pool.judged[:FORWARD], features=True)
        seconds = _median_seconds(lambda: bench.fitted(name, shown, judged), bench.device)
        return seconds * max(1.0, len(pool.train) / max(1, len(shown.labels)))

    def _deltas(self, mask: Mask) -> dict[str, Delta]:
        """Small changes by chance, as large as the tasks' own will be."""
        generator = torch.Generator().manual_seed(self.spec.seed)
        dtype = getattr(torch, self.spec.train.delta_dtype)
        deltas = {}
        for task in self.p.targets:
            values = 1e-4 * torch.randn(mask.k, generator=generator)
            deltas[task] = Delta(task, values.to(dtype), self.p.base, mask.fingerprint)
        return deltas

    def _merge_step(self, arm: Arm, scratch: str) -> float:
        """An update of the learned merge; nothing where coefficients are searched."""
        search = self.spec.search
        if search.method != "learned":
            return 0.0
        folder = RunFolder(scratch)
        goals = []
        for name, data in self.p.data.items():
            pool = pool_of(self.spec, name, len(data.train), len(data.validation))
            classes = len(self.p.heads[name])
            taught = torch.zeros(len(pool), classes).log_softmax(-1).half()
            right = torch.ones(len(pool.judged), dtype=torch.uint8)
            folder.save_trial(f"look-{name}", {}, {"taught": taught, "right": right})
            kind: Literal["learn", "hold"] = "hold" if name in self.p.controls else "learn"
            goals.append(Goal(task=name, kind=kind, before=1.0, look=f"look-{name}"))
        point = Point(
            arm=arm.name,
            merge=arm.name,
            granularity=search.several("granularity")[-1],
            lr=search.several("lr")[0],
            pressure=1.0,
        )
        gaps: list[float] = []
        # Twice over the same inputs, so that the second time all of them are prepared.
        for marks in ("first", "second"):
            problem = MergeProblem(
                goals=tuple(goals),
                deltas={name: name for name in self.p.targets},
                base=self.p.base,
                marks=marks,
                folder=scratch,
                search=search.model_copy(update={"steps": MERGE_STEPS}),
                train=self.spec.train,
                seed=self.spec.seed,
                merge=search.merge.tried[0],
                own_heads=self.p.own_heads,
            )
            run = _StepTimer(self.bench, arm, problem, point)
            run.began = []
            for _ in run.reports():
                pass
            gaps = _gaps(run.began)
        return statistics.median(gaps)

    def _compose(self, arm: Arm, blend: Blend) -> float:
        alternate = itertools.cycle([blend, blend.only(list(blend.values)[:1])])
        seconds = _median_seconds(lambda: self.bench.compose(arm, next(alternate)), self.bench.device)
        self.bench.reset()
        return seconds

    def _composed(self) -> float:
        """The driver loads the model anew, and takes its fingerprint before and after."""
        started = time.perf_counter()
        family = load_model(self.spec.model)
        for _ in range(2):
            fingerprint(base_tensors(family))
        return time.perf_counter() - started


def _gaps(times: Sequence[float]) -> list[float]:
    """Seconds between one time and the next."""
    return [after - before for before, after in itertools.pairwise(times)]
