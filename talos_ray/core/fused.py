"""Composing in one pass over memory: each delta is read once, summed next to a core, and written to its place once.

torch has no operation that adds several bfloat16 vectors, each times a coefficient, to float32; as a chain of
conversions and additions every weight passes through a cache (on a GPU: through memory) sixteen times for eight tasks.
numba compiles the loop for a CPU, Triton for a GPU. Both round as torch does, one fused multiply-add a task in the
order of the tasks, so that the bits are the same with and without them. Where the compiler is not installed,
`core.compose` goes the long way.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from importlib import import_module
from types import ModuleType

import torch

from talos_ray.core.blocks import Block
from talos_ray.core.segments import Segments

log = logging.getLogger(__name__)

KERNELS = {"cpu": "talos_ray.core.kernels_cpu", "cuda": "talos_ray.core.kernels_gpu"}
FEWEST = {"cpu": 1 << 22, "cuda": 0}  # weights below which numba's start, a second or two, is not won back
JOB = {"cpu": 1 << 16, "cuda": 1 << 12}  # weights of one job, about
PLACES = {"cpu": {torch.float32}, "cuda": {torch.float32, torch.bfloat16, torch.float16}}  # dtypes of parameters
STORED = {torch.float32, torch.bfloat16}  # of deltas
PARAMETER, INDEX, WIDTH, PLACE, COUNT, START, SEGMENT = range(7)  # columns of the jobs


@functools.cache
def kernels(kind: str) -> ModuleType | None:
    """The compiled kernels for a kind of device, or None where their compiler is not there, or does not work (Triton
    wants a C compiler, numba a numpy that it knows)."""
    if kind not in KERNELS:
        return None
    try:
        found = import_module(KERNELS[kind])
        one = torch.ones(1, device=kind)
        probe = Fused([(one, Block("probe", 1, None, slice(0, 1)))], one.clone(), found.compose)
        probe([one.bfloat16()], torch.tensor([[2.0]]))
        if one.item() != 3.0:
            raise RuntimeError(f"1 + 2 x 1 was {one.item()}")
        return found
    except Exception as error:  # whatever keeps a compiler from working, the long way gives the same bits
        log.warning("going the long way on the %s, which is slower: %s: %s", kind, type(error).__name__, error)
        return None


class Fused:
    """The one-pass loop for one module.

    Args:
        blocks: what is written, with the parameters.
        base: values [k].
        segments: where they have coefficients of their own. Then a product is rounded before it is added, because
            torch, which has to give the same bits, adds a coefficient a weight in two steps.

    Addresses are compared at every call, because a module may have been moved.
    """

    def __init__(
        self,
        blocks: Sequence[tuple[torch.Tensor, Block]],
        base: torch.Tensor,
        run: Callable[..., None],
        segments: Segments | None = None,
    ) -> None:
        self.base = base
        self.run = run
        self.one_each = segments is None
        self.params = list({id(p): p for p, _ in blocks}.values())
        number = {id(p): i for i, p in enumerate(self.params)}
        # A GPU reads indices as they are, if all are short; a CPU converts them once.
        short = base.is_cuda and all(b.index is None or b.index.dtype == torch.int32 for _, b in blocks)
        whole = [(number[id(p)], b if short else b.fast()) for p, b in blocks]
        self.index = torch.int32 if short else torch.int64
        self.indices = [b.index for _, b in whole if b.index is not None]  # the jobs hold addresses only
        most = JOB[base.device.type]
        ends = None if segments is None else segments.lengths.cumsum(0)
        jobs = torch.cat([_jobs(n, b, most, ends) for n, b in whole])
        if segments is not None and ends is not None:
            run_of_job = torch.searchsorted(ends, jobs[:, PLACE].contiguous(), right=True)
            jobs[:, SEGMENT] = segments.owner[run_of_job]
        self.jobs = jobs.to(base.device)
        self.addresses: list[int] = []

    @staticmethod
    def of(
        blocks: Sequence[tuple[torch.Tensor, Block]],
        base: torch.Tensor,
        deltas: Sequence[torch.Tensor],
        segments: Segments | None = None,
    ) -> Fused | None:
        """For deltas [k] of one dtype, or None where torch has to do it."""
        kind = base.device.type
        places = {p.dtype for p, _ in blocks}
        stored = {d.dtype for d in deltas}
        if kind not in KERNELS or len(base) < FEWEST[kind] or len(places) != 1 or len(stored) > 1:
            return None
        if not all(p.is_contiguous() for p, _ in blocks):
            return None
        if not places <= PLACES[kind] or not stored <= STORED or (segments is not None and kind != "cpu"):
            return None
        found = kernels(kind)
        return None if found is None else Fused(blocks, base, found.compose, segments)

    def __call__(self, deltas: Sequence[torch.Tensor], coefficients: torch.Tensor) -> None:
        """base + sum of coefficient x delta, into the module; with no deltas, `base` as it stands.

        Args:
            coefficients: float32 [deltas, segments].
        """
        addresses = [t.data_ptr() for t in (*self.params, *deltas)]
        if addresses != self.addresses:
            self.addresses = addresses
            self.table = torch.tensor(addresses, dtype=torch.int64, device=self.base.device)
        places, sources = self.table.split([len(self.params), len(deltas)])
        alphas = coefficients.to(self.base.device, non_blocking=True)
        stored = deltas[0].dtype if deltas else torch.float32
        self.run(self.jobs, places, self.base, sources, alphas, stored, self.params[0].dtype, self.index, self.one_each)


def _jobs(parameter: int, block: Block, most: int, ends: torch.Tensor | None) -> torch.Tensor:
    """A block's jobs, int64 [n, 7]: parts of about `most` weights that end where a run does (`ends`, in the mask's
    order)."""
    size = block.place.stop - block.place.start
    group = block.width if block.index is not None else 1
    step = max(1, most // group) * group
    starts = torch.arange(0, size, step)
    if ends is not None:
        inside = ends[(ends > block.place.start) & (ends < block.place.stop)] - block.place.start
        starts = torch.cat([starts, inside]).unique()
    jobs = torch.zeros(len(starts), 7, dtype=torch.int64)
    jobs[:, PARAMETER] = parameter
    jobs[:, PLACE] = block.place.start + starts
    jobs[:, COUNT] = torch.cat([starts[1:], torch.tensor([size])]) - starts
    if block.index is None:
        jobs[:, START] = block.start + starts
    else:
        jobs[:, INDEX] = block.index.data_ptr() + starts // group * block.index.element_size()
        jobs[:, WIDTH] = block.width
    return jobs
