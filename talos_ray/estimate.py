"""What a spec will need, before anything is downloaded or started: memory a worker, the object store, storage, and work.

The model is built on torch's meta device, where tensors have shapes and no data, and one training batch is sent through it: so what
the forward pass keeps for the backward is counted and not guessed, for a model of any size, in seconds.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from talos_ray.config import Spec, Task
from talos_ray.core.layout import Layout
from talos_ray.errors import SpecError
from talos_ray.models import Family, layout_of, shape_of
from talos_ray.tasks import is_here, load_task

FLOAT, MOMENTS, INDEX = (
    4,
    3,
    4,
)  # bytes of a weight; gradient and two moments beside each value; bytes of a scattered position
AT_ONCE = 2  # gradients of the largest kept tensor that are there together while the backward passes it
WORD = "the "  # makes a text as long as the model reads


@dataclass(frozen=True)
class Batch:
    """One backward of a worker: what its forward keeps, what its backward holds at most beside that, both in bytes, and the floating-point
    operations of one sample's forward."""

    samples: int
    kept: int
    passing: int
    forward: float


@dataclass(frozen=True)
class Estimate:
    """Bytes and floating-point operations. `worker`: by part; `work`: by stage, over all tasks."""

    parameters: int
    eligible: int
    masked: int
    batch: Batch
    worker: Mapping[str, int]
    object_store: Mapping[str, int]
    storage: Mapping[str, int]
    work: Mapping[str, float]
    unknown: tuple[str, ...]  # tasks that train by epochs and whose data could not be looked up; not in `work`


def estimate(spec: Spec) -> Estimate:
    """What a spec will need.

    Raises:
        SpecError: the model's configuration cannot be read.
    """
    family = shape_of(spec.model)
    layout, tasks = layout_of(family), len(spec.tasks)
    total = sum(p.numel() for p in family.module.parameters())
    keep = spec.auto.middle if spec.mask.keep == "auto" else spec.mask.keep
    masked = layout.total if spec.mask.strategy == "all" else round(keep * layout.total)
    rows = spec.mask.granularity == "row" or spec.mask.strategy == "all"
    widest = max(spec.tasks, key=lambda t: len(t.classes or t.phrases or ()))
    size = min(spec.train.micro_batch_size or spec.train.batch_size, spec.train.batch_size)
    batch = batch_of(family, widest, layout, -(-size // spec.cluster.workers_per_task))
    value = 2 if spec.train.delta_dtype == "bfloat16" else 4
    largest = max(math.prod(s) for s in layout.shapes)
    worker = {
        "weights": total * FLOAT,
        "values, gradient, moments": masked * FLOAT * (1 + MOMENTS) + (0 if rows else masked * INDEX),
        "kept for the backward": batch.kept,
        "passing in the backward": batch.passing + (0 if rows else largest * FLOAT),
    }
    by_epochs = [t for t in spec.tasks if spec.train_for(t, 1).steps != spec.train_for(t, 10**9).steps]
    examples = _examples(by_epochs, spec.seed)
    unknown = [t.name for t in by_epochs if t.name not in examples]
    steps = {t.name: spec.train_for(t, examples.get(t.name, 0)) for t in spec.tasks if t.name not in unknown}
    # A forward, as much again for the gradients of inputs, and for those of weights what the mask needs of it.
    weights = keep if rows else 1.0
    work = {
        "calibrate": 4 * batch.forward * spec.calibration.rounds * spec.calibration.samples_per_task * tasks,
        "train": sum((2 + weights) * batch.forward * s.steps * s.batch_size for s in steps.values()),
    }
    return Estimate(
        total, layout.total, masked, batch, worker,
        {"base": total * FLOAT, "mask": layout.total // 8, "deltas": tasks * masked * value},
        {"mask": layout.total // 8, "deltas": tasks * masked * value, **({"base": total * FLOAT} if spec.cluster.base == "storage" else {})},
        work, tuple(unknown),
    )  # fmt: skip


def _examples(tasks: Sequence[Task], seed: int) -> dict[str, int]:
    """Training examples of the tasks whose data lie here, or of which the Hub says how many there are. Downloads none."""
    import datasets

    found, reached = {}, True
    for task in tasks:
        if is_here(task):
            try:
                found[task.name] = len(load_task(task, seed).train)
            except SpecError:
                continue
        elif reached:
            try:
                told = datasets.load_dataset_builder(task.data, task.config).info.splits
                found[task.name] = told[task.train_split].num_examples
            except Exception:  # no such set, or no way there, or it does not say: the plan goes on without
                reached = bool(found)
    return found


def batch_of(family: Family, task: Task, layout: Layout, samples: int) -> Batch:
    """One training batch of a family whose module is on the meta device, every input as long as the model reads."""
    inputs = family.preprocess([_longest(task)] * 2)[:1].to("meta")
    inputs = inputs.expand(samples, *inputs.shape[1:])
    params = dict(family.module.named_parameters())
    own = {t.untyped_storage()._cdata for t in (*params.values(), *family.module.buffers())}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage.nbytes()
            alive.append(storage)  # its number must not be given to another
        return tensor

    alive: list[torch.UntypedStorage] = []
    for name, p in params.items():
        p.requires_grad_(name in layout.names)
    with (
        FlopCounterMode(display=False) as counter,
        torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t),
    ):
        family.logits(inputs, _head(family, task, inputs)).logsumexp(-1)
    most = max(kept.values(), default=0)
    return Batch(samples, sum(kept.values()), AT_ONCE * most, counter.get_total_flops() / samples)


def _longest(task: Task) -> object:
    if task.kind == "text":
        return WORD * 4096
    from PIL import Image

    return Image.new("RGB", (256, 256))


def _head(family: Family, task: Task, inputs: torch.Tensor) -> torch.Tensor:
    phrases = list(task.phrases or task.classes or ("a", "b"))
    if family.head_words.startswith("class features"):
        with torch.no_grad():
            return torch.empty(len(phrases), family.features(inputs).shape[-1], device="meta")
    return family.head(phrases, task.prompts).to("meta")


def product_rate(seconds: float = 1.0) -> float:
    """Floating-point operations a second of a matrix product, on this machine's GPU (bfloat16) or CPU (float32): what no model exceeds."""
    gpu = torch.cuda.is_available()
    n = 4096 if gpu else 1024
    a = torch.randn(n, n, device="cuda" if gpu else "cpu", dtype=torch.bfloat16 if gpu else torch.float32)
    a @ a
    done, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        a @ a
        done += 1
        if gpu:
            torch.cuda.synchronize()
    return 2 * n**3 * done / (time.perf_counter() - started)
