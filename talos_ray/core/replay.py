"""Forward and backward of a step recorded once and replayed: small batches keep a GPU waiting for Python, which
launches kernel by kernel.

A recording (a CUDA graph) launches the same kernels on the same addresses, so the numbers are those of the step as it
is. What a forward decides on the host (a branch that is drawn at random, a shape that depends on values) would be
frozen in it: a forward that draws random numbers there is never recorded, one that waits for the GPU cannot be, and a
recording has to give the gradients of the step that it was made from before it is used.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from talos_ray.core.fisher import Batch

if TYPE_CHECKING:
    from torch.cuda import _POOL_HANDLE

log = logging.getLogger(__name__)

Work = Callable[[Batch, torch.Tensor], torch.Tensor]
Shapes = tuple[tuple[torch.Size, torch.dtype], ...]  # of a step's inputs: what one recording is good for
AS_IT_IS = 3  # times that a shape comes before it is recorded: libraries choose and allocate in the first
MOST = 16  # shapes that are recorded
# of the GPU's memory that a step must leave: a recording keeps as much again, and a step that needs more is not short
ROOM = 0.5
NEAR = 1e-2  # share of its norm by which a gradient may change when it is computed again: some kernels add in any order


class _Recording:
    def __init__(self, work: Work, batch: Batch, labels: torch.Tensor, pool: _POOL_HANDLE | None) -> None:
        # The recording reads these addresses for ever; every step's inputs are copied to them.
        self.tensors = [tensor.clone() for tensor in _tensors(batch, labels)]
        *parts, fixed = self.tensors
        inputs = dict(zip(batch, parts, strict=True)) if isinstance(batch, dict) else parts[0]
        self.graph = torch.cuda.CUDAGraph()
        # Other threads go on meanwhile: those that load inputs ahead.
        with torch.cuda.graph(self.graph, pool=pool, capture_error_mode="thread_local"):
            self.loss = work(inputs, fixed)

    def __call__(self, batch: Batch, labels: torch.Tensor) -> torch.Tensor:
        torch._foreach_copy_(self.tensors, _tensors(batch, labels))
        self.graph.replay()
        return self.loss.clone()


class Replay:
    """`work(batch, labels)`, which adds gradients to `grads` and returns a loss that needs none, recorded a shape
    where that can be.

    Args:
        grads: where the work leaves its gradients, always the same tensors on one GPU.

    A replay gives the bits of the work as it is, where the work is deterministic.
    """

    def __init__(self, work: Work, grads: Sequence[torch.Tensor]) -> None:
        self.work = work
        self.grads = list(grads)
        self.on = self.grads[0].is_cuda
        self.seen: Counter[Shapes] = Counter()
        self.recordings: dict[Shapes, _Recording] = {}

    def __call__(self, batch: Batch, labels: torch.Tensor) -> torch.Tensor:
        if not self.on:
            return self.work(batch, labels)
        shapes = tuple((tensor.shape, tensor.dtype) for tensor in _tensors(batch, labels))
        if shapes in self.recordings:
            return self.recordings[shapes](batch, labels)
        self.seen[shapes] += 1
        if self.seen[shapes] <= AS_IT_IS or len(self.recordings) == MOST:
            return self.work(batch, labels)
        return self._record(shapes, batch, labels)

    def _record(self, shapes: Shapes, batch: Batch, labels: torch.Tensor) -> torch.Tensor:
        """This step as it is, and the same once more from a recording."""
        device = labels.device
        before = self._gradient()
        host = torch.get_rng_state()
        random_before = torch.cuda.get_rng_state(device)
        torch.cuda.empty_cache()  # so that what is taken is what this step takes
        loss = self.work(batch, labels)
        after = self._gradient()
        random_after = torch.cuda.get_rng_state(device)
        try:
            if not torch.equal(host, torch.get_rng_state()):
                raise RuntimeError("the forward draws random numbers on the host")
            free, total = torch.cuda.mem_get_info(device)
            if free < ROOM * total:
                raise RuntimeError(f"{free / 1e9:.1f} of {total / 1e9:.1f} GB are free; wanted {ROOM:.0%}")
            # All recordings share one pool of memory: only one of them runs at a time.
            pool = next((recording.graph.pool() for recording in self.recordings.values()), None)
            recording = _Recording(self.work, batch, labels, pool)
            torch._foreach_copy_(self.grads, before)
            torch.cuda.set_rng_state(random_before, device)
            recording(batch, labels)
            self._check_gradient(after)
            self.recordings[shapes] = recording
        except Exception as error:  # whatever keeps a step from being recorded, it goes on as it is
            self.on = False
            log.info("steps are launched kernel by kernel: %s", str(error).partition("\n")[0])
            # A recording that broke off leaves the generator in it.
            torch.cuda.default_generators[device.index or 0].graphsafe_set_state(torch.Generator(device))
        # Whatever the recording has done, the step counts once, as it is.
        torch._foreach_copy_(self.grads, after)
        torch.cuda.set_rng_state(random_after, device)
        return loss

    def _check_gradient(self, wanted: Sequence[torch.Tensor]) -> None:
        """Raises RuntimeError where a replayed step has left another gradient than the step as it is."""
        size = torch.stack([grad.norm() for grad in wanted]).norm()
        # One difference at a time, because each takes as much memory as a parameter.
        offs = [(grad - step_grad).norm() for grad, step_grad in zip(self._gradient(), wanted, strict=True)]
        off = torch.stack(offs).norm()
        if not off <= NEAR * size:
            raise RuntimeError(f"replayed, the gradient differs by {off:.1e}, and its norm is {size:.1e}")

    def _gradient(self) -> list[torch.Tensor]:
        """As it stands; on the host, because a GPU may have no room for it."""
        return [grad.cpu() for grad in self.grads]


def _tensors(batch: Batch, labels: torch.Tensor) -> list[torch.Tensor]:
    return [*(batch.values() if isinstance(batch, dict) else (batch,)), labels]
