"""What a worker does: train one job after the other on a warm model, and roll back in between."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypedDict, Unpack

import ray
import torch
from ray import ObjectRef

from talos_ray.config import Train
from talos_ray.core.blocks import gather
from talos_ray.core.delta import make_delta
from talos_ray.core.finetune import Plan, State, finetune
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
    rank: int
    world: int
    on_step: Callable[[int, torch.Tensor], None]


REPORT_SECONDS = 0.5  # between two progress messages
LINES = 10  # in the worker's log, a task


def begin(bench: Workbench, mask: Mask, task: str, s: Train) -> tuple[torch.Tensor, SparseAdamW, Plan]:
    """A task's training from the model as it stands: the masked weights before it, the optimizer, and the plan."""
    module = bench.family.module
    n = len(bench.examples(task, "train"))
    optimizer = SparseAdamW(module, mask, s.lr, s.weight_decay, clip_norm=s.clip_norm)
    seed = bench.shared.spec.seed
    classes = len(load_task(bench.shared.task(task), seed).classes)
    plan = Plan(
        task=task,
        samples=n,
        steps=s.steps,
        batch_size=s.batch_size,
        lr=s.lr,
        warmup_steps=s.warmup_steps,
        seed=seed,
        label_smoothing=s.label_smoothing,
        label_noise=s.label_noise,
        classes=classes,
        completion=s.loss == "completion",
    )
    return gather(module, mask), optimizer, plan


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

    with wrapped(blocks_of(family.module, family.edited) if s.gradient_checkpointing else (), recomputing):
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
        return make_delta(
            task, optimizer.values.detach(), before, bench.shared.base, mask.fingerprint, dtype, {}
        ).values
    finally:
        optimizer.close()


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
        mask = self.masks[job.arm]
        folder = RunFolder(job.folder)
        s = job.settings
        examples = bench.examples(job.task.name, "train")
        bench.reset()
        base_values, optimizer, plan = begin(bench, mask, job.task.name, s)
        start = folder.load_checkpoint(job.task.name, job.key)
        curve: list[list[float]] = []
        last = 0.0
        # A slow storage is written to beside the steps; the one write before must have ended, and what it met is
        # raised.
        writer = ThreadPoolExecutor(max_workers=1)
        written: Future[None] | None = None

        def checkpoint(step: int) -> None:
            nonlocal written
            if written is not None:
                written.result()
            written = writer.submit(folder.save_checkpoint, job.task.name, job.key, step, optimizer.state())

        def on_step(step: int, loss: torch.Tensor) -> None:
            nonlocal last
            if rank != 0:
                return
            if step % max(1, s.steps // 50) == 0:
                curve.append([step, round(float(loss), 5)])
            saved = step % s.checkpoint_every == 0 and step < s.steps
            if step == s.steps or step % max(1, s.steps // LINES) == 0:
                print(f"{job.name}: step {step} of {s.steps}, loss {loss:.4f}", flush=True)
            if saved:
                checkpoint(step)
            if saved or time.monotonic() - last > REPORT_SECONDS:
                last = time.monotonic()
                tell(step, float(loss))

        steps = range(start[0] if start else 0, s.steps)
        parts = [part for step in steps for part in plan.parts_at(step, rank, world, s.micro_batch_size)]
        batches = examples.each(parts, bench.loaders)
        assert isinstance(batches, Generator)  # closed at the end, so that its processes go
        try:
            losses = tune(
                bench,
                plan,
                s,
                optimizer,
                lambda index: next(batches),
                start=start,
                rank=rank,
                world=world,
                on_step=on_step,
            )
            seconds = time.perf_counter() - started
            if rank == 0:
                info = {
                    **job.info,
                    "key": job.key,
                    "settings": s.model_dump(),
                    "seconds": round(seconds, 3),
                    "curve": curve,
                    "resumed_at": start[0] if start else 0,
                    "state_bytes": optimizer.bytes(),
                }
                dtype = getattr(torch, s.delta_dtype)
                delta = make_delta(
                    job.task.name,
                    optimizer.values.detach(),
                    base_values,
                    bench.shared.base,
                    mask.fingerprint,
                    dtype,
                    info,
                )
                folder.save_delta(delta)
                if written is not None:
                    written.result()
                folder.drop_checkpoints(job.task.name)
            return seconds, losses[-1] if losses else float("nan")
        finally:
            writer.shutdown(wait=True)
            batches.close()
            optimizer.close()
            bench.reset()
