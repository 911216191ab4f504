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
        # Runs first, whose weights lie side by side: to add by owner would take an int64 number for every weight.
        runs = torch.segment_reduce(weights, "sum", lengths=self.lengths, unsafe=True)  # [R]
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
        if self.granularity == "task":
            return {name: float(values[0]) for name in mask.indices}
        weights = self.lengths.double()  # [R]
        weighted = weights * values.double()[self.owner]
        zeros = torch.zeros(len(mask.layout.names), dtype=torch.float64)
        total = zeros.index_add(0, self.tensors, weighted)
        count = zeros.index_add(0, self.tensors, weights)
        return {name: float(total[i] / count[i]) for i, name in enumerate(mask.layout.names) if count[i]}


def layer_groups(names: Sequence[str], groups: int | Mapping[str, str]) -> dict[str, str]:
    """Tensor -> its group. By depth: see `layout.depths`; what stands outside the blocks goes with the first."""
    group_of = {}
    if not isinstance(groups, int):
        for name in names:
            matching = (group for group, pattern in groups.items() if re.search(pattern, name))
            group_of[name] = next(matching, "rest")
        return group_of
    depth = depths(names)
    blocks = 1 + max(depth.values(), default=0)
    # Of fewer blocks than groups, every block is a group.
    for name, block in depth.items():
        group_of[name] = str(block * min(groups, blocks) // blocks)
    return group_of


def segments_of(mask: Mask, granularity: Granularity, groups: int | Mapping[str, str] = 4) -> Segments:
    """The segments of a mask.

    Args:
        granularity: `row` is an output row of a matrix; for a mask of single weights, those of a row that are masked.
            The rows of a vector (a bias, a normalisation) are its elements.
        groups: for `group`, as `layer_groups` takes it.
    """
    if granularity == "task":
        whole = torch.tensor([mask.k])
        zero = torch.zeros(1, dtype=torch.int64)
        return Segments(granularity, whole, zero, 1, zero - 1)
    names = mask.layout.names
    shapes = dict(zip(names, mask.layout.shapes, strict=True))
    number = {name: i for i, name in enumerate(names)}
    lengths = []
    tensors = []
    for name, index in mask.indices.items():
        runs = torch.tensor([len(index)])
        if granularity == "row":
            width = torch.Size(shapes[name][1:]).numel()
            _, runs = torch.unique_consecutive(index // width, return_counts=True)
        lengths.append(runs)
        tensors.append(torch.full_like(runs, number[name]))
    tensor_of_run = torch.cat(tensors)  # [R]
    owner = torch.arange(len(tensor_of_run))
    count = len(tensor_of_run)
    if granularity == "group":
        group = layer_groups(names, groups)
        # Groups without a masked weight get no segment: nothing could be learned for them.
        group_of_run = [group[names[i]] for i in tensor_of_run.tolist()]
        order = {name: i for i, name in enumerate(sorted(set(group_of_run)))}
        owner = torch.tensor([order[name] for name in group_of_run])
        count = len(order)
    return Segments(granularity, torch.cat(lengths), owner, count, tensor_of_run)


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
        return replace(self, values={task: value for task, value in self.values.items() if task in tasks})

    def means(self, mask: Mask) -> dict[str, float]:
        """Task -> mean over the masked weights of their coefficient: what stands in tables."""
        segments = self.segments(mask)
        if segments is None:
            return {task: float(value) for task, value in self.values.items()}
        # A segment counts by its weights, [G].
        weights = torch.zeros(segments.count, dtype=torch.float64)
        weights.index_add_(0, segments.owner, segments.lengths.double())
        return {task: float(values.double() @ weights / weights.sum()) for task, values in self.by_segment.items()}

    def widened(self, mask: Mask, wider: Mask) -> Blend:
        """The same coefficients on a mask that holds all weights of this one and more. Segments of new weights alone
        have the mean of their task, so that tables show what they showed."""
        before = self.segments(mask)
        after = self.segments(wider)
        if before is None or after is None:
            return self
        # Of every weight of the narrow mask, the segment that it is in now.
        owner = after.expand(torch.arange(after.count))[mask.flags[wider.flags]]
        means = self.means(mask)
        values: dict[str, float | torch.Tensor] = {}
        for task, of_segment in self.by_segment.items():
            wide = torch.full((after.count,), means[task])
            wide[owner] = before.expand(of_segment)
            values[task] = wide
        return replace(self, values=values)

    def refined(self, mask: Mask, segments: Segments, tasks: Sequence[str]) -> torch.Tensor:
        """The same coefficients for finer segments, float32 [T, G]; a task that is not named here has 0, and one may
        have one coefficient where others have many."""
        coarse = self.segments(mask)
        starts = segments.lengths.cumsum(0) - segments.lengths  # [R], each run's first weight
        rows = torch.zeros(len(tasks), segments.count)
        for row, task in zip(rows, tasks, strict=True):
            value = self.values.get(task, 0.0)
            if coarse is not None and isinstance(value, torch.Tensor):
                coarse_run = torch.searchsorted(coarse.lengths.cumsum(0), starts, right=True)
                value = value[coarse.owner[coarse_run]]
            row[segments.owner] = torch.as_tensor(value, dtype=torch.float32)
        return rows
