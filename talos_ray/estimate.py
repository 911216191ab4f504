"""What a spec will need, before anything is downloaded or started: memory a worker, the object store, storage, and
work.

The model is built on torch's meta device, where tensors have shapes and no data, and one training batch is sent
through it: so what the forward pass keeps for the backward is counted and not guessed, for a model of any size, in
    seconds.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch.utils.flop_counter import FlopCounterMode

from talos_ray.choice import both_rounds, share_of_each
from talos_ray.config import CHOICE, Spec, Task
from talos_ray.core.layout import Layout
from talos_ray.core.mask import DATA_FREE
from talos_ray.core.recompute import blocks_of, wrapped
from talos_ray.data.harness import is_harness
from talos_ray.data.readers import is_here
from talos_ray.errors import SpecError
from talos_ray.models import Family, layout_of, shape_of
from talos_ray.models.family import AnswerFamily
from talos_ray.models.heads import scorer
from talos_ray.tasks import load_task

# bytes of a weight; gradient and two moments beside each value; bytes of a scattered position
FLOAT = 4
MOMENTS = 3
INDEX = 4
UNDER_WAY = 3  # scores of all weights beside the tasks' sums: a shard's, a sum's next, and the mean
AT_ONCE = 2  # gradients of the largest kept tensor that are there together while the backward passes it
WORD = "the "  # makes a text as long as the model reads


@dataclass(frozen=True)
class Batch:
    """One backward of a worker: what its forward keeps, what its backward holds at most beside that, both in bytes,
    and the floating-point operations of one sample's forward."""

    samples: int
    kept: int
    passing: int
    forward: float


@dataclass(frozen=True)
class Estimate:
    """Bytes and floating-point operations. `worker`, of training, and `merging`, of a learning run: by part; `work`:
    by stage, over all
    tasks."""

    parameters: int
    eligible: int
    masked: int
    batch: Batch
    worker: Mapping[str, int]
    merging: Mapping[str, int]
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
    layout = layout_of(family)
    tasks = len(spec.tasks)
    total = sum(p.numel() for p in family.module.parameters())
    keep = max(spec.auto.keeps) if isinstance(spec.mask.keep, str) else spec.mask.keep
    masked = layout.total if spec.mask.strategy == "all" else round(keep * layout.total)
    rows = spec.mask.granularity == "row" or spec.mask.strategy == "all"
    widest = max(spec.tasks, key=lambda t: len(t.classes or t.phrases or ()))
    size = min(spec.train.micro_batch_size or spec.train.batch_size, spec.train.batch_size)
    again = spec.train.gradient_checkpointing
    batch = batch_of(
        family, widest, layout, -(-size // spec.cluster.workers_per_task), again, spec.train.loss == "completion"
    )
    weights = sum(p.nbytes for p in family.module.parameters())
    value = 2 if spec.train.delta_dtype == "bfloat16" else 4
    largest = max(math.prod(s) for s in layout.shapes)
    trained = layout.total if spec.baseline.enabled else masked
    worker = {
        "weights": weights,
        "values, gradient, moments": trained * FLOAT * (1 + MOMENTS)
        + (0 if rows or trained > masked else masked * INDEX),
        "kept for the backward": batch.kept,
        "passing in the backward": batch.passing + (0 if rows else largest * FLOAT),
    }
    # The deltas are those of the larger arm; on a CPU its workers share them in the object store.
    merging = {
        "weights": weights,
        "deltas": tasks * (layout.total * FLOAT if spec.baseline.enabled else masked * value),
        "values, gradient, product": 3 * trained * FLOAT,
    }
    by_epochs = [t for t in spec.tasks if spec.train_for(t, 1).steps != spec.train_for(t, 10**9).steps]
    examples = _examples(by_epochs, spec.seed)
    unknown = [t.name for t in by_epochs if t.name not in examples]
    steps = [spec.train_for(t, examples.get(t.name, 0)) for t in spec.tasks if t.name not in unknown]
    forwards = sum(batch.forward * s.steps * s.batch_size for s in steps)
    kept = {"mask": layout.total // 8, "deltas": tasks * masked * value}
    kept |= {"dense deltas": tasks * layout.total * FLOAT} if spec.baseline.enabled else {}
    calibrated = spec.mask.path is None and spec.mask.strategy not in DATA_FREE
    return Estimate(
        total,
        layout.total,
        masked,
        batch,
        worker,
        merging if spec.search.method == "learned" else {},
        {
            "base": weights,
            "scores while calibrating": (tasks + UNDER_WAY) * layout.total * FLOAT if calibrated else 0,
            **kept,
        },
        {**kept, **({"base": weights} if spec.cluster.base == "storage" else {})},
        _work(spec, layout, batch.forward, forwards, keep if rows else 1.0),
        tuple(unknown),
    )


def _work(spec: Spec, layout: Layout, forward: float, forwards: float, gradients: float) -> dict[str, float]:
    """Operations by stage. A step is a forward, as much again for the gradients of inputs, and for those of weights
    what the mask needs of it.

    Args:
        forward: of one sample. forwards: of the whole training. gradients: share of the weights' gradients that the
            mask needs.
    """
    again = spec.train.gradient_checkpointing
    mask = 4 * forward * spec.calibration.rounds * spec.calibration.samples_per_task * len(spec.tasks)
    dense = (3 + again) * forwards
    work = {}
    if spec.mask.open:
        tried = both_rounds(spec, layout)
        masks = {s.mask for s in tried if s.strategy not in DATA_FREE}
        work["choose"] = len(masks) * mask + len(tried) * share_of_each(spec, layout) * dense
    elif spec.mask.path is None and spec.mask.strategy not in DATA_FREE:
        work["calibrate"] = mask
    passed = 1.0 if isinstance(spec.mask.layers, str) else layout.room(spec.mask.layers)
    work["train"] = (1 + passed + again + gradients) * forwards
    if spec.baseline.enabled:
        work["train, dense"] = dense
    if spec.search.method == "learned":
        s = spec.search
        arms = 1 + spec.baseline.enabled
        runs = len(s.several("granularity")) * len(s.several("lr")) * len(s.several("pressure")) + s.trials
        samples = runs * s.steps * (s.batch_size * len(spec.tasks) + (s.control_batch_size if spec.control else 0))
        teachers = s.inputs * (len(spec.tasks) + len(spec.control))
        work["merge"] = (1 + passed + again + gradients) * forward * samples + arms * forward * teachers
        if spec.baseline.enabled:
            work["merge"] += (3 + again) * forward * samples
    return work


def _examples(tasks: Sequence[Task], seed: int) -> dict[str, int]:
    """Training examples of the tasks whose data lie here, or of which the Hub says how many there are. Downloads
    none."""
    import datasets

    found = {}
    reached = True
    for task in tasks:
        if is_here(task) or is_harness(task.data):
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


def batch_of(
    family: Family, task: Task, layout: Layout, samples: int, again: bool = False, completion: bool = False
) -> Batch:
    """One training batch of a family whose module is on the meta device, every input as long as the model reads;
    `again`: with gradient checkpointing; `completion`: of the right answers alone."""
    inputs = family.preprocess([_longest(task)] * 2)[:1].to("meta")
    inputs = inputs.expand(samples, *inputs.shape[1:])
    params = dict(family.module.named_parameters())
    own = {t.untyped_storage()._cdata for t in (*params.values(), *family.module.buffers())}
    kept = _Kept(own)
    inside = [_Kept(own)]

    def apart(forward: Callable[..., Any]) -> Callable[..., Any]:
        """What a block keeps, but for its inputs, is there only while the backward passes it."""

        def run(*args: Any, **named: Any) -> Any:
            inside.append(_Kept(own))
            for tensor in (t for t in (*args, *named.values()) if isinstance(t, torch.Tensor)):
                kept.add(tensor)
            with torch.autograd.graph.saved_tensors_hooks(inside[-1].add, lambda t: t):
                return forward(*args, **named)

        return run

    for name, p in params.items():
        p.requires_grad_(name in layout.names)
    with (
        FlopCounterMode(display=False) as counter,
        torch.autograd.graph.saved_tensors_hooks(kept.add, lambda t: t),
        wrapped(blocks_of(family.module, family.edited) if again else (), apart),
        mock.patch("torch.nn.functional.scaled_dot_product_attention", _attention),
    ):
        _scored(family, task, inputs, completion).logsumexp(-1)
    most = AT_ONCE * max(kept.sizes.values(), default=0)
    return Batch(samples, kept.total, max(most, *(k.total for k in inside)), counter.get_total_flops() / samples)


def _attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, attn_mask: torch.Tensor | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
) -> torch.Tensor:  # fmt: skip
    """Attention by a kernel that keeps no probabilities, as it runs on CPUs and GPUs; tensors without data would go
    the long way."""
    if enable_gqa:
        k, v = (t.repeat_interleave(q.shape[-3] // t.shape[-3], -3) for t in (k, v))
    run = torch.ops.aten._scaled_dot_product_efficient_attention
    out: torch.Tensor = run(q, k, v, attn_mask, True, dropout_p, is_causal, scale=scale)[0]
    return out


class _Kept:
    """Storages that are held until a backward, with their sizes in bytes; those of `own` numbers do not count."""

    def __init__(self, own: set[int]) -> None:
        self.own = own
        self.sizes: dict[int, int] = {}
        self.alive: list[torch.UntypedStorage] = []

    @property
    def total(self) -> int:
        return sum(self.sizes.values())

    def add(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self.own:
            self.sizes[storage._cdata] = storage.nbytes()
            self.alive.append(storage)  # its number must not be given to another
        return tensor


def _longest(task: Task) -> object:
    if task.kind == "text":
        return CHOICE.join([WORD * 4096] * (1 + len(task.choices or ())))
    from PIL import Image

    return Image.new("RGB", (256, 256))


def _scored(family: Family, task: Task, inputs: torch.Tensor, completion: bool) -> torch.Tensor:
    head = _head(family, task, inputs)
    if completion:
        assert isinstance(family, AnswerFamily)  # a spec is refused that wants it of another
        labels = torch.zeros(len(inputs), dtype=torch.int64, device="meta")
        return family.completed({"inputs": inputs, "labels": labels}, head)
    return scorer(family, task.head, head)(inputs)


def _head(family: Family, task: Task, inputs: torch.Tensor) -> torch.Tensor:
    phrases = list(task.phrases or task.classes or ("a", "b"))
    linear = task.head == "linear"
    if linear or family.head_words.startswith("class features"):
        with torch.no_grad():
            return torch.empty(len(phrases), family.features(inputs).shape[-1] + linear, device="meta")
    return family.head(phrases, task.prompts).to("meta")


def product_rate(seconds: float = 1.0) -> float:
    """Floating-point operations a second of a matrix product, on this machine's GPU (bfloat16) or CPU (float32): what
    no model exceeds."""
    gpu = torch.cuda.is_available()
    n = 4096 if gpu else 1024
    a = torch.randn(n, n, device="cuda" if gpu else "cpu", dtype=torch.bfloat16 if gpu else torch.float32)
    a @ a
    done = 0
    started = time.perf_counter()
    while time.perf_counter() - started < seconds:
        a @ a
        done += 1
        if gpu:
            torch.cuda.synchronize()
    return 2 * n**3 * done / (time.perf_counter() - started)
