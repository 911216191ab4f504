"""What a worker process keeps warm: the shared base (zero-copy), masks, deltas, heads and decoded examples.

The driver puts one `Shared` into the object store; every worker process of a node maps it read-only. Model
weights alias that memory, except the masked ones, which an edit will write to.
"""

from __future__ import annotations

import functools
import os
import socket
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import ray
import torch
from numpy.typing import NDArray
from ray import ObjectRef

from talos_ray.config import Spec, Task
from talos_ray.core.compose import Composer
from talos_ray.core.delta import Delta
from talos_ray.core.layout import Layout
from talos_ray.core.mask import Mask
from talos_ray.core.metrics import strata_of
from talos_ray.core.probe import fitted_head, scored
from talos_ray.core.seeds import sampled_rows
from talos_ray.core.segments import Blend
from talos_ray.corruptions import corrupted
from talos_ray.demo.tasks import cache_folder
from talos_ray.inputs import Examples, Node
from talos_ray.models import Family, build_model
from talos_ray.models.heads import as_linear, scorer
from talos_ray.models.lean import import_lean
from talos_ray.storage.files import be_patient
from talos_ray.storage.run_folder import RunFolder
from talos_ray.tasks import load_task, state_of_examples

Bits = NDArray[np.uint8]  # a mask, packed
Frozen = dict[str, tuple[NDArray[np.uint8], str]]  # tensors as Ray stores them without a copy
StoredValues = Frozen | ObjectRef[Frozen]
Precision = Literal["float32", "bf16"]


def freeze(tensors: Mapping[str, torch.Tensor]) -> Frozen:
    """Tensors as numpy arrays of plain bytes (numpy has no bfloat16) with their dtypes' names."""
    return {name: _frozen(tensor) for name, tensor in tensors.items()}


def _frozen(tensor: torch.Tensor) -> tuple[NDArray[np.uint8], str]:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    array = flat.view(torch.uint8).numpy().reshape(*tensor.shape, tensor.element_size())
    return array, str(tensor.dtype).removeprefix("torch.")


def thaw(frozen: Frozen) -> dict[str, torch.Tensor]:
    """The same tensors, aliasing the arrays' memory. Read-only by agreement: copy before writing."""
    # The object store's memory is read-only, of which torch warns at each tensor.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*not writable.*")
        return {name: _thawed(array, dtype) for name, (array, dtype) in frozen.items()}


def _thawed(array: NDArray[np.uint8], dtype: str) -> torch.Tensor:
    # The last dimension holds an element's bytes, and becomes one element of the tensor's own type.
    whole = torch.from_numpy(array).view(getattr(torch, dtype))
    return whole.view(array.shape[:-1])


@dataclass(frozen=True)
class Shared:
    """All that workers need and that does not change during a run; lives once in the object store."""

    spec: Spec
    base: str  # fingerprint
    tensors: Frozen | tuple[str, str]  # the base, or (URI of a run's folder, name of the base's file in it)
    layout: Layout
    heads: dict[str, NDArray[np.generic]]  # task -> its head, `models.heads`
    # What each task's files were when this was made: a later run of the session may find others.
    data: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        tasks = (*self.spec.tasks, *self.spec.control)
        states = tuple(state_of_examples(task, self.spec.seed) for task in tasks)
        object.__setattr__(self, "data", states)

    def task(self, name: str) -> Task:
        return next(task for task in (*self.spec.tasks, *self.spec.control) if task.name == name)


@dataclass(frozen=True, eq=False)
class StoredDelta(Delta):
    """A delta that lies in Ray's object store, as `ref`: its values alias that memory. Read-only by agreement."""

    ref: ObjectRef[Frozen] | None = None


def in_store(delta: Delta) -> StoredDelta:
    """The same delta in the object store, by the process that calls. What memory it had before is free to go."""
    ref = ray.put(freeze({"values": delta.values}))
    values = thaw(ray.get(ref))["values"]
    return StoredDelta(delta.task, values, delta.base, delta.mask, delta.info, ref)


@dataclass(frozen=True)
class Arm:
    """One way to edit: its name ('sparse' or 'dense'), its mask and, once trained, its deltas, each as (task, values,
    fingerprint). Values may be references into Ray's object store."""

    name: str
    bits: Bits
    deltas: tuple[tuple[str, StoredValues, str], ...] = ()

    @staticmethod
    def of(name: str, bits: Bits, deltas: Mapping[str, Delta]) -> Arm:
        """With its deltas as Ray stores them without a copy."""
        # By name, because deltas are added up in this order and every order rounds otherwise.
        packed = []
        for task, delta in sorted(deltas.items()):
            packed.append((task, freeze({"values": delta.values}), delta.fingerprint))
        return Arm(name, bits, tuple(packed))

    @staticmethod
    def stored(name: str, bits: Bits, deltas: Mapping[str, Delta]) -> Arm:
        """With its deltas in the object store, an object each: what lies there already is not put there again, and a
        node fetches none twice, whatever arms it is a part of."""
        packed: list[tuple[str, StoredValues, str]] = []
        for task, delta in sorted(deltas.items()):
            stored = delta if isinstance(delta, StoredDelta) else in_store(delta)
            assert stored.ref is not None
            packed.append((task, stored.ref, stored.fingerprint))
        return Arm(name, bits, tuple(packed))

    def unpacked(self, base: str, mask: str) -> list[Delta]:
        """Its deltas, aliasing the memory that they came in. `base`, `mask`: fingerprints of what they belong to."""
        # All references in one call, so that what other nodes hold comes at once and not one after the other.
        references = [values for _, values, _ in self.deltas if isinstance(values, ObjectRef)]
        fetched = iter(ray.get(references) if references else [])
        unpacked = []
        for task, values, _ in self.deltas:
            frozen = next(fetched) if isinstance(values, ObjectRef) else values
            unpacked.append(Delta(task, thaw(frozen)["values"], base, mask))
        return unpacked

    @property
    def key(self) -> tuple[str, ...]:
        """What it is made of: a later operation of the same run may use a name again."""
        return (self.name, *(fingerprint for _, _, fingerprint in self.deltas))


class Seen(NamedTuple):
    """What a model makes of some inputs of a task, all on the CPU: logits float32 [n, classes] under the frozen head,
    features float32 [n, d] (empty, unless they were asked for), labels int64 [n]."""

    logits: torch.Tensor
    features: torch.Tensor
    labels: torch.Tensor

    def under(self, head: torch.Tensor | None) -> torch.Tensor:
        """Logits under a linear head, or under the frozen one."""
        return self.logits if head is None or not len(self.features) else scored(self.features, head)

    def right(self, head: torch.Tensor | None = None) -> torch.Tensor:
        """Which inputs are answered as their labels say, bool [n]."""
        return self.under(head).argmax(-1) == self.labels


# What an arm is made of, and how its coefficients are shared: granularity and groups.
ComposerKey = tuple[tuple[str, ...], str | None, str]
GPU_LOADERS = 4  # processes that prepare inputs for a worker with a GPU, unless the spec says


Predicted = dict[str, NDArray[np.generic]]  # kind of head -> class numbers, `KIND_probability` -> their probabilities


class Workbench:
    """One process's warm model and data.

    Nothing here runs in inference mode: what it makes once (inputs, heads, features) serves training too, whoever asks
        first.
    """

    def __init__(self, shared: Shared) -> None:
        self.shared = shared
        settings = shared.spec.cluster
        self.device = torch.device("cuda" if settings.gpus_per_worker else "cpu")
        by_device = GPU_LOADERS if self.device.type == "cuda" else 0
        self.loaders = by_device if settings.loaders_per_worker is None else settings.loaders_per_worker
        reader = shared.spec.model
        if shared.spec.tokens is not None:
            reader = f"{reader}, {shared.spec.tokens} tokens"
        # A home folder may be shared by many nodes.
        self.node = Node(cache_folder() / "inputs" / socket.gethostname(), round(settings.input_cache_gb * 1e9), reader)
        if isinstance(shared.tensors, tuple):
            uri, name = shared.tensors
            self.tensors = RunFolder(uri).load_base(name, cache_folder() / "base")
        else:
            self.tensors = thaw(shared.tensors)
        # On a GPU the module is a copy anyway.
        private = shared.layout.names if self.device.type == "cpu" else ()
        self.family: Family = build_model(shared.spec.model, self.tensors, private, shared.spec.tokens)
        self.family.module.to(self.device)
        self.composers: dict[ComposerKey, Composer] = {}
        self.composed: ComposerKey | None = None  # key of the composer whose edit may be in the model

    @functools.cache  # noqa: B019 - one workbench a process, for its whole life
    def head(self, task: str) -> torch.Tensor:
        return torch.tensor(self.shared.heads[task], device=self.device)

    @functools.cache  # noqa: B019
    def examples(self, task: str, split: str) -> Examples:
        data = load_task(self.shared.task(task), self.shared.spec.seed)
        return Examples(getattr(data, split), self.family.preprocess, self.device, self.node)

    def autocast(self, precision: str) -> torch.dtype | None:
        """The dtype of products under a `precision` setting; None for the model's own."""
        return torch.bfloat16 if precision == "bf16" and self.device.type == "cuda" else None

    def logits(self, task: str) -> Callable[[torch.Tensor], torch.Tensor]:
        """inputs -> logits [n, classes] under the task's head."""
        return scorer(self.family, self.shared.task(task).scoring, self.head(task))

    def reset(self) -> None:
        """Every eligible weight back to the base, bitwise."""
        # From the shared memory, whatever has been written meanwhile: to undo a training step by step would round.
        params = dict(self.family.module.named_parameters())
        with torch.no_grad():
            for name in self.shared.layout.names:
                params[name].copy_(self.tensors[name])
        # Composers remember what is in the model, which is now not so.
        self.composers.clear()
        self.composed = None

    def compose(self, arm: Arm, blend: Blend) -> None:
        """Put one candidate of one arm into the model."""
        key: ComposerKey = (arm.key, blend.granularity, repr(blend.groups))
        # Every composer writes on the base, so the edit of another one has to be taken back first.
        if self.composed is None:
            self.reset()
        elif self.composed != key:
            self.composers[self.composed].rollback()
        self.composed = key
        if key not in self.composers:
            # An arm of the same name with other deltas is one of an operation before: its memory is free to go.
            for old in [known for known in self.composers if known[0][0] == arm.name and known[0] != arm.key]:
                del self.composers[old]
            mask = Mask(self.shared.layout, arm.bits)
            deltas = arm.unpacked(self.shared.base, mask.fingerprint)
            self.composers[key] = Composer(self.family.module, mask, deltas, self.shared.base, blend.segments(mask))
        self.composers[key].compose(blend.values)

    def linear_head(self, task: str) -> torch.Tensor | None:
        """A task's frozen head as a linear layer on the features, if it is one."""
        return as_linear(self.family, self.shared.task(task).head, self.head(task))

    @torch.no_grad()
    def answered(
        self,
        examples: Examples,
        task: str,
        rows: torch.Tensor | None = None,
        *,
        features: bool = False,
        batch_size: int = 256,
    ) -> Seen:
        """What the model as it stands makes of a task's inputs.

        Args:
            rows: row numbers; all, if not given.
        """
        head = self.linear_head(task)
        logits = self.logits(task)
        wanted = torch.arange(len(examples)) if rows is None else rows
        parts = [part for part in wanted.split(batch_size) if len(part)]
        batches: list[tuple[torch.Tensor, ...]] = []
        for inputs, labels in examples.each(parts, self.loaders):
            seen = self.family.features(inputs).float() if features or head is not None else labels[:0]
            # Where the head is a linear layer, one forward gives features and logits.
            out = scored(seen, head) if head is not None else logits(inputs).float()
            batches.append((out.cpu(), seen.cpu() if features else labels[:0].cpu(), labels.cpu()))
        # No rows, as of a control task that lends nothing: shapes are right all the same, for whoever joins them.
        if not batches:
            return Seen(
                torch.zeros(0, len(self.shared.heads[task])), torch.zeros(0, 0), torch.zeros(0, dtype=torch.int64)
            )
        all_logits, all_features, all_labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
        return Seen(logits=all_logits, features=all_features, labels=all_labels)

    def fitted(
        self,
        task: str,
        train: Seen,
        judged: Seen,
        start: torch.Tensor | None = None,
        taught: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """A head of a task's own, float32 [classes, d + 1], fitted to the features of training inputs.

        Args:
            judged: validation inputs, which say how close it stays to its start.
            start: head that it begins at and is drawn to; the frozen one, if not given.
            taught: log-probabilities of a teacher on the training inputs [n, classes], instead of their labels.
        """
        if start is None:
            start = self.linear_head(task)
        if start is None:  # the frozen head is no linear layer, so there is nothing to be drawn to but zero
            start = torch.zeros(len(self.shared.heads[task]), train.features.shape[1] + 1)
        answers = train.labels if taught is None else taught.float().exp()
        begun = start.detach().float().cpu()
        balanced = self.strata(task, judged) is not None
        return fitted_head(train.features, answers, begun, judged.features, judged.labels, balanced)

    def strata(self, task: str, seen: Seen) -> torch.Tensor | None:
        """What each of these inputs counts in, in the task's score: `strata_of`."""
        return strata_of(seen.labels, self.shared.task(task).metric)

    @functools.cache  # noqa: B019
    def spoilt(self, task: str, corruption: str) -> Examples:
        """Test data under a corruption."""
        kind = self.shared.task(task).kind
        seed = self.shared.spec.seed
        clean = self.examples(task, "test").split
        return Examples(
            clean, lambda batch: self.family.preprocess(corrupted(kind, corruption, batch, seed)), self.device
        )

    def predicted(
        self, task: str, head: torch.Tensor | None = None, corruption: str | None = None, rows: range | None = None
    ) -> Predicted:
        """Class numbers, int32 [n], that the model as it stands predicts on test data: by the task's frozen head
        (`words`), and by another one (`own`), if it is given; and their probabilities, float32 [n]
        (`words_probability`, `own_probability`).

        Args:
            rows: of the test data; all, if not given.
        """
        examples = self.spoilt(task, corruption) if corruption else self.examples(task, "test")
        index = None if rows is None else torch.arange(rows.start, rows.stop)
        seen = self.answered(examples, task, index, features=head is not None)
        logits = {"words": seen.logits}
        if head is not None:
            logits["own"] = seen.under(head)
        predicted: Predicted = {}
        for name, out in logits.items():
            predicted[name] = out.argmax(-1).int().numpy()
        for name, out in logits.items():
            predicted[f"{name}_probability"] = out.softmax(-1).amax(-1).numpy()
        return predicted

    def outputs(self, task: str, split: str, most: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Features float32 [n, d], predicted classes and labels int64 [n] of at most `most` inputs."""
        examples = self.examples(task, split)
        seen = self.answered(examples, task, sampled_rows(len(examples), most), features=True)
        return seen.features, seen.logits.argmax(-1), seen.labels


_benches: dict[str, Workbench] = {}


def workbench(shared: Shared) -> Workbench:
    """This process's workbench for a run; built at the first call, kept for the next Ray task, whatever mask it is
    about."""
    # Only what a workbench is made of: a run's search and gate may change while its model stays warm.
    uses = shared.spec.model_dump_json(
        include={"model", "tokens", "tasks", "control", "seed", "cluster", "calibration"}
    )
    key = f"{shared.base}-{uses}-{shared.data}"
    be_patient(60 * shared.spec.cluster.storage_minutes)
    if key not in _benches:
        _benches.clear()  # one model fits into the memory, two may not
        import_lean(shared.spec.model)
        settings = shared.spec.cluster
        # Of worker processes only: who makes a workbench for something else keeps its own place on the CPU.
        if not settings.gpus_per_worker:
            torch.set_num_threads(max(1, int(settings.cpus_per_worker)))
            os.nice(max(0, 5 - os.nice(0)))  # a saturated CPU must not starve Ray's own processes
        _benches[key] = Workbench(shared)
    return _benches[key]
