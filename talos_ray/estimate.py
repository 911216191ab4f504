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
from talos_ray.data.zero_shot import is_zero_shot_set
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
    by stage, over all tasks."""

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
    family = shape_of(spec.model, spec.tokens)
    layout = layout_of(family)
    weights = list(family.module.parameters())
    base = sum(weight.nbytes for weight in weights)
    # Where the run is to choose a mask itself, it may choose the densest of those that it tries.
    keep = max(spec.auto.keeps) if isinstance(spec.mask.keep, str) else spec.mask.keep
    masked = layout.total if spec.mask.strategy == "all" else round(keep * layout.total)
    whole_rows = spec.mask.granularity == "row" or spec.mask.strategy == "all"
    batch = _training_batch(spec, family, layout)
    deltas = _deltas(spec, layout, masked)
    stored = {"mask": layout.total // 8, **deltas}
    by_epochs = [task for task in spec.tasks if _trains_by_epochs(spec, task)]
    examples = _examples(by_epochs, spec.seed)
    unknown = [task.name for task in by_epochs if task.name not in examples]
    trainings = [spec.train_for(t, examples.get(t.name, 0)) for t in spec.tasks if t.name not in unknown]
    forwards = sum(batch.forward * train.steps * train.batch_size for train in trainings)
    return Estimate(
        parameters=sum(weight.numel() for weight in weights),
        eligible=layout.total,
        masked=masked,
        batch=batch,
        worker=_worker(spec, layout, base, batch, masked=masked, whole_rows=whole_rows),
        merging=_merging(spec, layout, base, deltas, masked) if spec.search.method == "learned" else {},
        object_store={"base": base, "scores while calibrating": _scores(spec, layout), **stored},
        storage={**stored, "base": base} if spec.cluster.base == "storage" else stored,
        work=_work(spec, layout, batch.forward, forwards, keep if whole_rows else 1.0),
        unknown=tuple(unknown),
    )


def _trains_by_epochs(spec: Spec, task: Task) -> bool:
    """Whether a task's steps depend on how many examples it has."""
    return spec.train_for(task, 1).steps != spec.train_for(task, 10**9).steps


def _training_batch(spec: Spec, family: Family, layout: Layout) -> Batch:
    """One backward of a training worker, of the task with the most classes."""
    train = spec.train
    widest = max(spec.tasks, key=lambda task: len(task.classes or task.phrases or ()))
    size = min(train.micro_batch_size or train.batch_size, train.batch_size)
    samples = -(-size // spec.cluster.workers_per_task)  # of the worker with the most
    return batch_of(family, widest, layout, samples, train.gradient_checkpointing, train.loss == "completion")


def _deltas(spec: Spec, layout: Layout, masked: int) -> dict[str, int]:
    """Bytes of all tasks' deltas, by arm."""
    tasks = len(spec.tasks)
    value = 2 if spec.train.delta_dtype == "bfloat16" else 4
    sizes = {"deltas": tasks * masked * value}
    if spec.baseline.enabled:  # dense deltas are float32, whatever those of the mask are
        sizes["dense deltas"] = tasks * layout.total * FLOAT
    return sizes


def _worker(spec: Spec, layout: Layout, base: int, batch: Batch, *, masked: int, whole_rows: bool) -> dict[str, int]:
    """Bytes of a training worker by part. The larger arm decides: the dense one trains every eligible weight."""
    trained = layout.total if spec.baseline.enabled else masked
    values = trained * FLOAT * (1 + MOMENTS)
    # Scattered weights have their positions beside them.
    if not whole_rows and trained <= masked:
        values += masked * INDEX
    # The gradient of whole rows is computed of these rows alone; of scattered weights it is that of the whole tensor,
    # of which one is there at a time.
    largest = max(math.prod(shape) for shape in layout.shapes)
    passing = batch.passing + (0 if whole_rows else largest * FLOAT)
    return {
        "weights": base,
        "values, gradient, moments": values,
        "kept for the backward": batch.kept,
        "passing in the backward": passing,
    }


def _merging(spec: Spec, layout: Layout, base: int, deltas: Mapping[str, int], masked: int) -> dict[str, int]:
    """Bytes of a learning run by part. The deltas are those of the larger arm; on a CPU its workers share them in the
    object store."""
    trained = layout.total if spec.baseline.enabled else masked
    return {
        "weights": base,
        "deltas": deltas.get("dense deltas", deltas["deltas"]),
        "values, gradient, product": 3 * trained * FLOAT,
    }


def _scores(spec: Spec, layout: Layout) -> int:
    """Bytes of sensitivity scores, float32, while they are summed up; none where the mask asks for none."""
    if spec.mask.path is not None or spec.mask.strategy in DATA_FREE:
        return 0
    return (len(spec.tasks) + UNDER_WAY) * layout.total * FLOAT


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
        # A mask is calibrated once, however many learning rates are tried with it.
        tried = both_rounds(spec, layout)
        masks = {setting.mask for setting in tried if setting.strategy not in DATA_FREE}
        work["choose"] = len(masks) * mask + len(tried) * share_of_each(spec, layout) * dense
    elif spec.mask.path is None and spec.mask.strategy not in DATA_FREE:
        work["calibrate"] = mask
    # Below the first layer that may change nothing asks for a gradient, and the backward ends there.
    passed = 1.0 if isinstance(spec.mask.layers, str) else layout.room(spec.mask.layers)
    work["train"] = (1 + passed + again + gradients) * forwards
    if spec.baseline.enabled:
        work["train, dense"] = dense
    if spec.search.method == "learned":
        search = spec.search
        arms = 1 + spec.baseline.enabled
        # Each with each of what the spec lists, and what the search then tries by itself.
        listed = [len(search.several(key)) for key in ("granularity", "lr", "pressure")]
        runs = math.prod(listed) + search.trials
        a_step = search.batch_size * len(spec.tasks) + (search.control_batch_size if spec.control else 0)
        samples = runs * search.steps * a_step
        teachers = search.inputs * (len(spec.tasks) + len(spec.control))
        work["merge"] = (1 + passed + again + gradients) * forward * samples + arms * forward * teachers
        if spec.baseline.enabled:
            work["merge"] += (3 + again) * forward * samples
    return work


def _examples(tasks: Sequence[Task], seed: int) -> dict[str, int]:
    """Training examples of the tasks whose data lie here, or of which the Hub says how many there are. Downloads
    none."""
    import datasets

    counts = {}
    reached = True
    for task in tasks:
        if is_here(task) or is_harness(task.data):
            try:
                counts[task.name] = len(load_task(task, seed).train)
            except SpecError:  # `check` tells; a plan needs no sound data
                continue
        elif reached and not is_zero_shot_set(task.data):
            try:
                splits = datasets.load_dataset_builder(task.data, task.config).info.splits
                counts[task.name] = splits[task.train_split].num_examples
            except Exception:  # no such set, or no way there, or it does not say: the plan goes on without
                # Where nothing was found yet there may be no way there, and every further look-up would wait as long.
                reached = bool(counts)
    return counts


def batch_of(
    family: Family, task: Task, layout: Layout, samples: int, again: bool = False, completion: bool = False
) -> Batch:
    """One training batch of a family whose module is on the meta device, every input as long as the model reads;
    `again`: with gradient checkpointing; `completion`: of the right answers alone."""
    inputs = family.preprocess([_longest(task)] * 2)[:1].to("meta")
    inputs = inputs.expand(samples, *inputs.shape[1:])
    params = dict(family.module.named_parameters())
    # Weights are there anyhow, and are no part of what a forward adds.
    own = {tensor.untyped_storage()._cdata for tensor in (*params.values(), *family.module.buffers())}
    kept = _Kept(own)
    inside = [_Kept(own)]  # by block, where blocks are computed again; of all of these one at a time is there

    def apart(forward: Callable[..., Any]) -> Callable[..., Any]:
        """What a block keeps, but for its inputs, is there only while the backward passes it."""

        def run(*args: Any, **named: Any) -> Any:
            inside.append(_Kept(own))
            for value in (*args, *named.values()):
                if isinstance(value, torch.Tensor):
                    kept.add(value)
            with torch.autograd.graph.saved_tensors_hooks(inside[-1].add, lambda t: t):
                return forward(*args, **named)

        return run

    for name, weight in params.items():
        weight.requires_grad_(name in layout.names)
    with (
        FlopCounterMode(display=False) as counter,
        torch.autograd.graph.saved_tensors_hooks(kept.add, lambda t: t),
        wrapped(blocks_of(family.module, family.edited) if again else (), apart),
        mock.patch("torch.nn.functional.scaled_dot_product_attention", _attention),
    ):
        _scored(family, task, inputs, completion).logsumexp(-1)
    largest = AT_ONCE * max(kept.sizes.values(), default=0)
    return Batch(
        samples=samples,
        kept=kept.total,
        passing=max(largest, *(block.total for block in inside)),
        forward=counter.get_total_flops() / samples,
    )


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
    if task.kind == "text":  # cut by the tokenizer to what the model reads
        return CHOICE.join([WORD * 4096] * (1 + len(task.choices or ())))
    from PIL import Image

    return Image.new("RGB", (256, 256))


def _scored(family: Family, task: Task, inputs: torch.Tensor, completion: bool) -> torch.Tensor:
    head = _head(family, task, inputs)
    if completion:
        assert isinstance(family, AnswerFamily)  # a spec is refused that wants it of another
        labels = torch.zeros(len(inputs), dtype=torch.int64, device="meta")
        return family.completed({"inputs": inputs, "labels": labels}, head)
    return scorer(family, task.scoring, head)(inputs)


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
    device = "cuda" if gpu else "cpu"
    dtype = torch.bfloat16 if gpu else torch.float32
    side = 4096 if gpu else 1024
    matrix = torch.randn(side, side, device=device, dtype=dtype)
    matrix @ matrix  # the first product also loads its kernel
    products = 0
    started = time.perf_counter()
    while time.perf_counter() - started < seconds:
        matrix @ matrix
        products += 1
        if gpu:  # a launch returns before the product is there
            torch.cuda.synchronize()
    return 2 * side**3 * products / (time.perf_counter() - started)
