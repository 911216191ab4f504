"""What a worker does: train one job after the other on a warm model, and roll back in between."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import TypedDict, Unpack

import ray
import torch
from ray import ObjectRef

from talos_ray.config import Train
from talos_ray.core.blocks import gather
from talos_ray.core.delta import make_delta
from talos_ray.core.finetune import Looks, Plan, State, balanced, finetune
from talos_ray.core.fisher import Batch
from talos_ray.core.mask import Mask
from talos_ray.core.optimizer import SparseAdamW
from talos_ray.core.recompute import blocks_of, recomputing, wrapped
from talos_ray.models import shortened
from talos_ray.models.family import AnswerFamily
from talos_ray.orchestrate.jobs import Job
from talos_ray.orchestrate.worker import Arm, Shared, Workbench, workbench
from talos_ray.storage.run_folder import RunFolder
from talos_ray.tasks import load_task


class TeamOptions(TypedDict, total=False):
    """What `core.finetune` is told of the worker's place in a team, and of where it goes on."""

    start: tuple[int, State] | None
    looks: Looks | None
    rank: int
    world: int
    on_step: Callable[[int, torch.Tensor], None]


REPORT_SECONDS = 0.5  # between two progress messages
LINES = 10  # in the worker's log, a task


def begin(bench: Workbench, mask: Mask, task: str, s: Train) -> tuple[torch.Tensor, SparseAdamW, Plan]:
    """A task's training from the model as it stands: the masked weights before it, the optimizer, and the plan."""
    module = bench.family.module
    examples = bench.examples(task, "train")
    optimizer = SparseAdamW(module, mask, s.lr, s.weight_decay, clip_norm=s.clip_norm)
    seed = bench.shared.spec.seed
    classes = len(load_task(bench.shared.task(task), seed).classes)
    plan = Plan(
        task=task,
        samples=len(examples),
        steps=s.steps,
        batch_size=s.batch_size,
        lr=s.lr,
        warmup_steps=s.warmup_steps,
        seed=seed,
        label_smoothing=s.label_smoothing,
        label_noise=s.label_noise,
        classes=classes,
        schedule=s.schedule,
        completion=s.loss == "completion",
        class_weights=balanced(examples.split.labels, classes) if s.class_weights == "balanced" else None,
    )
    # What the weights are now, in the module's own dtype: the delta is what they differ from it by at the end.
    return gather(module, mask), optimizer, plan


def looks_at(bench: Workbench, task: str, s: Train) -> Looks | None:
    """Looks at a task's validation data while the model of the workbench is trained, if the settings ask for them."""
    if s.validate_every is None:
        return None

    def loss() -> float:
        seen = bench.answered(bench.examples(task, "validation"), task)
        return float(torch.nn.functional.cross_entropy(seen.logits, seen.labels))

    return Looks(loss, s.validate_every, s.patience)


def tune(
    bench: Workbench,
    plan: Plan,
    s: Train,
    optimizer: SparseAdamW,
    batch: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]],
    **how: Unpack[TeamOptions],
) -> list[float]:
    """`core.finetune` on a warm model, as the settings of the training have it."""
    family = bench.family
    logits_of_inputs = bench.logits(plan.task)
    head = bench.head(plan.task)

    def logits(batch: Batch) -> torch.Tensor:
        if isinstance(batch, torch.Tensor):
            return logits_of_inputs(batch)
        # Of a completion only the right answer is read, and not all that there are to choose from.
        assert isinstance(family, AnswerFamily)  # the check of the spec has refused it for every other
        return family.completed(batch, head)

    def feed(index: torch.Tensor) -> tuple[Batch, torch.Tensor]:
        inputs, labels = batch(index)
        inputs = shortened(family, inputs)
        if plan.completion:
            return {"inputs": inputs, "labels": labels}, labels
        return inputs, labels

    blocks = blocks_of(family.module, family.edited) if s.gradient_checkpointing else ()
    with wrapped(blocks, recomputing):
        return finetune(
            optimizer,
            plan,
            logits,
            feed,
            autocast=bench.autocast(s.precision),
            micro_batch_size=s.micro_batch_size,
            **how,
        )


def retrain(bench: Workbench, mask: Mask, task: str, s: Train) -> torch.Tensor:
    """Train the model as it stands, by a worker alone that keeps nothing. Returns the values of the delta, as they
    would be stored.

    Raises:
        FloatingPointError: the training diverged.
    """
    before, optimizer, plan = begin(bench, mask, task, s)
    try:
        tune(bench, plan, s, optimizer, bench.examples(task, "train").batch)
        dtype = getattr(torch, s.delta_dtype)
        delta = make_delta(task, optimizer.values.detach(), before, bench.shared.base, mask.fingerprint, dtype, {})
        return delta.values
    finally:
        optimizer.close()


class _Saving:
    """Writes checkpoints of one job beside its steps, because a storage may be slow: at most one write at a time, and
    what one of them meets is raised by the next."""

    def __init__(self, folder: RunFolder, job: Job, optimizer: SparseAdamW, looks: Looks | None) -> None:
        self.folder = folder
        self.job = job
        self.optimizer = optimizer
        self.looks = looks
        self.writer = ThreadPoolExecutor(max_workers=1)
        self.written: Future[None] | None = None

    def checkpoint(self, step: int) -> None:
        """Begin to write what the optimizer holds after so many updates, and what was best so far."""
        self.finish()
        task = self.job.task.name
        # `state` copies: by the time that it is written, further steps have changed the optimizer's own tensors.
        state = self.optimizer.state()
        if self.looks is not None:
            state |= self.looks.state()
        self.written = self.writer.submit(self.folder.save_checkpoint, task, self.job.key, step, state)

    def finish(self) -> None:
        """Wait for the write that goes on. Raises what it met."""
        if self.written is not None:
            self.written.result()

    def close(self) -> None:
        self.writer.shutdown(wait=True)


class _Reports:
    """What the worker of rank 0 does after a step: the loss curve, lines in its log, checkpoints, progress messages."""

    def __init__(self, job: Job, saving: _Saving, tell: Callable[[int, float], None], resumed_at: int) -> None:
        self.job = job
        self.saving = saving
        self.tell = tell
        self.resumed_at = resumed_at
        self.curve: list[list[float]] = []
        self.last = 0.0  # when it was last told

    def on_step(self, step: int, loss: torch.Tensor) -> None:
        settings = self.job.settings
        # The loss is read only where somebody sees it: on a GPU to read it is to wait for the step.
        if step % max(1, settings.steps // 50) == 0:
            self.curve.append([step, round(float(loss), 5)])
        if step == settings.steps or step % max(1, settings.steps // LINES) == 0:
            print(f"{self.job.name}: step {step} of {settings.steps}, loss {loss:.4f}", flush=True)
        # Not after the last step: then the delta itself is stored.
        saved = step % settings.checkpoint_every == 0 and step < settings.steps
        if saved:
            self.saving.checkpoint(step)
        if saved or time.monotonic() - self.last > REPORT_SECONDS:
            self.last = time.monotonic()
            self.tell(step, float(loss))

    def info(self, seconds: float) -> dict[str, object]:
        """What is kept beside the delta, once the training is over."""
        job = self.job
        info = {
            **job.info,
            "key": job.key,
            "settings": job.settings.model_dump(),
            "seconds": round(seconds, 3),
            "curve": self.curve,
            "resumed_at": self.resumed_at,
        }
        looks = self.saving.looks
        if looks is not None:
            info |= {"validation": looks.seen, "kept_at": looks.best_at}
            print(f"{job.name}: kept is step {looks.best_at} of {looks.seen[-1][0]}, by validation", flush=True)
        return info


class TaskTrainer:
    """One worker, with the base and the masks of all arms."""

    def __init__(self, shared_ref: ObjectRef[Shared], arms_ref: ObjectRef[dict[str, Arm]]) -> None:
        shared = ray.get(shared_ref)
        arms = ray.get(arms_ref)
        self.bench = workbench(shared)
        self.masks = {name: Mask(shared.layout, arm.bits) for name, arm in arms.items()}

    def train(self, job: Job, rank: int, world: int, tell: Callable[[int, float], None]) -> tuple[float, float]:
        """Train one job from the base or its checkpoint, store the delta, roll back. Returns (seconds, last loss).

        Args:
            tell: called with the updates done and the loss, now and then, by the worker of rank 0.
        """
        started = time.perf_counter()
        bench = self.bench
        settings = job.settings
        task = job.task.name
        folder = RunFolder(job.folder)
        start = folder.load_checkpoint(task, job.key)
        bench.reset()
        before, optimizer, plan = begin(bench, self.masks[job.arm], task, settings)
        looks = looks_at(bench, task, settings)
        saving = _Saving(folder, job, optimizer, looks)
        reports = _Reports(job, saving, tell, resumed_at=start[0] if start else 0)
        batches = self._batches(plan, settings, reports.resumed_at, rank, world)

        def on_step(step: int, loss: torch.Tensor) -> None:
            if rank == 0:  # after a step all workers of a team hold the same
                reports.on_step(step, loss)

        # Undone whatever happens, the last first: the next job finds the base, and no process or hook of this one.
        with ExitStack() as undone:
            for undo in (bench.reset, optimizer.close, batches.close, saving.close):
                undone.callback(undo)
            losses = tune(
                bench,
                plan,
                settings,
                optimizer,
                lambda index: next(batches),
                start=start,
                looks=looks,
                rank=rank,
                world=world,
                on_step=on_step,
            )
            seconds = time.perf_counter() - started
            if rank == 0:
                info = {**reports.info(seconds), "state_bytes": optimizer.bytes()}
                self._store(job, optimizer.values.detach(), before, info)
                # The last write has to be over first, or it would put a checkpoint back.
                saving.finish()
                folder.drop_checkpoints(task)
            return seconds, losses[-1] if losses else float("nan")

    def _batches(
        self, plan: Plan, settings: Train, first_step: int, rank: int, world: int
    ) -> Generator[tuple[torch.Tensor, torch.Tensor]]:
        """This worker's inputs and labels of every backward from a step on. Which rows each step takes is known
        beforehand, so inputs are prepared while the steps before are computed."""
        parts: list[torch.Tensor] = []
        for step in range(first_step, plan.steps):
            parts.extend(plan.parts_at(step, rank, world, settings.micro_batch_size))
        yield from self.bench.examples(plan.task, "train").each(parts, self.bench.loaders)

    def _store(self, job: Job, values: torch.Tensor, before: torch.Tensor, info: dict[str, object]) -> None:
        """Put a job's delta on storage: what `values` differ by from what was there `before`, both [k]."""
        dtype = getattr(torch, job.settings.delta_dtype)
        mask = self.masks[job.arm].fingerprint
        delta = make_delta(job.task.name, values, before, self.bench.shared.base, mask, dtype, info)
        RunFolder(job.folder).save_delta(delta)
