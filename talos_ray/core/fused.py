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
        module = import_module(KERNELS[kind])
        # That it can be imported says little: only a first call compiles.
        one = torch.ones(1, device=kind)
        probe = Fused([(one, Block("probe", 1, None, slice(0, 1)))], one.clone(), module.compose)
        probe([one.bfloat16()], torch.tensor([[2.0]]))
        if one.item() != 3.0:
            raise RuntimeError(f"1 + 2 x 1 was {one.item()}")
        return module
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
        # Blocks may share a parameter; the jobs name it by its number.
        self.params = list({id(parameter): parameter for parameter, _ in blocks}.values())
        number = {id(parameter): i for i, parameter in enumerate(self.params)}
        # A GPU reads indices as they are, if all are short; a CPU converts them once.
        short = base.is_cuda and all(b.index is None or b.index.dtype == torch.int32 for _, b in blocks)
        self.index = torch.int32 if short else torch.int64
        self.indices: list[torch.Tensor] = []  # held here, because the jobs hold addresses only
        ends = None if segments is None else segments.lengths.cumsum(0)
        jobs_of = []
        for parameter, stored in blocks:
            block = stored if short else stored.fast()
            if block.index is not None:
                self.indices.append(block.index)
            jobs_of.append(_jobs(number[id(parameter)], block, JOB[base.device.type], ends))
        jobs = torch.cat(jobs_of)  # int64 [jobs, 7]
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
        if kind not in KERNELS or len(base) < FEWEST[kind]:
            return None
        # A kernel is compiled for one dtype of the parameters and one of the deltas.
        places = {parameter.dtype for parameter, _ in blocks}
        stored = {delta.dtype for delta in deltas}
        if len(places) != 1 or len(stored) > 1 or not places <= PLACES[kind] or not stored <= STORED:
            return None
        # It goes by addresses, which say where a weight is only if a parameter lies in one piece.
        if not all(parameter.is_contiguous() for parameter, _ in blocks):
            return None
        if segments is not None and kind != "cpu":
            return None
        compiled = kernels(kind)
        return None if compiled is None else Fused(blocks, base, compiled.compose, segments)

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
    first = block.place.start
    size = block.place.stop - first
    # A job holds whole groups of weights that move together: its index has one number for each.
    group = block.width if block.index is not None else 1
    step = max(1, most // group) * group
    starts = torch.arange(0, size, step)
    if ends is not None:
        within = (ends > first) & (ends < block.place.stop)
        starts = torch.cat([starts, ends[within] - first]).unique()
    stops = torch.cat([starts[1:], torch.tensor([size])])
    jobs = torch.zeros(len(starts), 7, dtype=torch.int64)
    jobs[:, PARAMETER] = parameter
    jobs[:, PLACE] = first + starts
    jobs[:, COUNT] = stops - starts
    if block.index is None:
        jobs[:, START] = block.start + starts
    else:
        number_bytes = block.index.element_size()
        jobs[:, INDEX] = block.index.data_ptr() + starts // group * number_bytes
        jobs[:, WIDTH] = block.width
    return jobs
