"""Which masked weights share a coefficient: all of a task's, those of a group of layers, of a tensor, or of an output
row.

A coefficient for every weight would fit noise, one for a whole task cannot tell layers apart. In between lie
*segments*: sets of neighbouring weights, so that a sum over one of them reads memory in order.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

from talos_ray.core.layout import depths
from talos_ray.core.mask import Mask

Granularity = Literal["task", "group", "tensor", "row"]


@dataclass(frozen=True, eq=False)
class Segments:
    """The masked weights of one mask as runs of neighbours, and the segment that each run belongs to.

    Args:
        granularity: what a segment is.
        lengths: int64 [R], weights in each run, in the mask's canonical order; they add up to k.
        owner: int64 [R], the segment of each run, in [0, count). A group of layers owns many runs, everything else one.
        count: G, how many segments there are.
        tensors: int64 [R], which of the mask's parameters (a position in `mask.layout.names`) each run stands in; -1
            where a run is the whole mask.
    """

    granularity: Granularity
    lengths: torch.Tensor
    owner: torch.Tensor
    count: int
    tensors: torch.Tensor

    def expand(self, values: torch.Tensor) -> torch.Tensor:
        """Values of the segments [G] -> of their weights [k]."""
        return values[self.owner].repeat_interleave(self.lengths)

    def sums(self, weights: torch.Tensor) -> torch.Tensor:
        """Sum over every segment: float32 [k] -> [G]. The same bits each time."""
        if self.count == 1:
            return weights.sum().view(1)
        runs = torch.segment_reduce(weights, "sum", lengths=self.lengths, unsafe=True)
        if self.count == len(runs):
            return runs
        return runs.new_zeros(self.count).index_add_(0, self.owner, runs)

    def to(self, device: torch.device | str) -> Segments:
        """The same on another device."""
        return replace(
            self,
            lengths=self.lengths.to(device),
            owner=self.owner.to(device),
            tensors=self.tensors.to(device),
        )

    def mean_by_tensor(self, values: torch.Tensor, mask: Mask) -> dict[str, float]:
        """Mean over the masked weights of each parameter of what belongs to their segments: [G] -> parameter ->
        mean."""
        weights = self.lengths.double()
        if self.granularity == "task":
            return {name: float(values[0]) for name in mask.indices}
        size = len(mask.layout.names)
        total = torch.zeros(size, dtype=torch.float64).index_add_(
            0, self.tensors, weights * values.double()[self.owner]
        )
        many = torch.zeros(size, dtype=torch.float64).index_add_(0, self.tensors, weights)
        return {n: float(total[i] / many[i]) for i, n in enumerate(mask.layout.names) if many[i]}


def layer_groups(names: Sequence[str], groups: int | Mapping[str, str]) -> dict[str, str]:
    """Tensor -> its group. By depth: see `layout.depths`; what stands outside the blocks goes with the first."""
    if not isinstance(groups, int):
        return {n: next((g for g, pattern in groups.items() if re.search(pattern, n)), "rest") for n in names}
    depth = depths(names)
    blocks_there = 1 + max(depth.values(), default=0)
    return {n: str(d * min(groups, blocks_there) // blocks_there) for n, d in depth.items()}


def segments_of(mask: Mask, granularity: Granularity, groups: int | Mapping[str, str] = 4) -> Segments:
    """The segments of a mask.

    Args:
        granularity: `row` is an output row of a matrix; for a mask of single weights, those of a row that are masked.
            The rows of a vector (a bias, a normalisation) are its elements.
        groups: for `group`, as `layer_groups` takes it.
    """
    if granularity == "task":
        whole = torch.tensor([mask.k])
        nothing = torch.zeros(1, dtype=torch.int64)
        return Segments(granularity, whole, nothing, 1, nothing - 1)
    shapes = dict(zip(mask.layout.names, mask.layout.shapes, strict=True))
    number = {name: i for i, name in enumerate(mask.layout.names)}
    lengths = []
    tensors = []
    for name, index in mask.indices.items():
        runs = torch.tensor([len(index)])
        if granularity == "row":
            width = torch.Size(shapes[name][1:]).numel()
            runs = torch.unique_consecutive(index // width, return_counts=True)[1]
        lengths.append(runs)
        tensors.append(torch.full_like(runs, number[name]))
    found = torch.cat(tensors)
    owner = torch.arange(len(found))
    count = len(found)
    if granularity == "group":
        group = layer_groups(mask.layout.names, groups)
        # Groups without a masked weight get no segment: nothing could be learned for them.
        group_of_run = [group[mask.layout.names[i]] for i in found.tolist()]
        order = {name: i for i, name in enumerate(sorted(set(group_of_run)))}
        owner = torch.tensor([order[name] for name in group_of_run])
        count = len(order)
    return Segments(granularity, torch.cat(lengths), owner, count, found)


@dataclass(frozen=True, eq=False)
class Blend:
    """How much of each delta goes into a model.

    Args:
        values: task -> its coefficient; or, where weights have coefficients by segment, float32 [G].
        granularity: of the segments; None where a coefficient is a whole task's.
        groups: for `group`, as `layer_groups` takes it.
    """

    values: Mapping[str, float | torch.Tensor]
    granularity: Granularity | None = None
    groups: int | Mapping[str, str] = 4

    def segments(self, mask: Mask) -> Segments | None:
        """Of a mask; None where there are none."""
        return None if self.granularity is None else segments_of(mask, self.granularity, self.groups)

    @property
    def by_segment(self) -> dict[str, torch.Tensor]:
        """Task -> its segments' coefficients, float32 [G]; empty where a coefficient is a whole task's."""
        if self.granularity is None:
            return {}
        return {task: torch.as_tensor(values) for task, values in self.values.items()}

    def only(self, tasks: Collection[str]) -> Blend:
        """The same with the deltas of these tasks alone."""
        return replace(self, values={t: a for t, a in self.values.items() if t in tasks})

    def means(self, mask: Mask) -> dict[str, float]:
        """Task -> mean over the masked weights of their coefficient: what stands in tables."""
        if (segments := self.segments(mask)) is None:
            return {t: float(a) for t, a in self.values.items()}
        weights = torch.zeros(segments.count, dtype=torch.float64)
        weights.index_add_(0, segments.owner, segments.lengths.double())
        return {t: float(a.double() @ weights / weights.sum()) for t, a in self.by_segment.items()}

    def refined(self, mask: Mask, segments: Segments, tasks: Sequence[str]) -> torch.Tensor:
        """The same coefficients for finer segments, float32 [T, G]; a task that is not named here has 0, and one may
        have one coefficient where others have many."""
        own = self.segments(mask)
        starts = segments.lengths.cumsum(0) - segments.lengths
        rows = torch.zeros(len(tasks), segments.count)
        for row, task in zip(rows, tasks, strict=True):
            value = self.values.get(task, 0.0)
            if own is not None and isinstance(value, torch.Tensor):
                run = torch.searchsorted(own.lengths.cumsum(0), starts, right=True)
                value = value[own.owner[run]]
            row[segments.owner] = torch.as_tensor(value, dtype=torch.float32)
        return rows
