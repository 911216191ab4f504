"""Where masked weights stand in each tensor, as blocks: the widest contiguous pieces that the mask allows.

A whole tensor moves by one copy, whole rows by copies of rows, anything else by index. Hardware likes them in
that order: a row is a `memcpy`, an index is a gather.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from talos_ray.core.mask import Mask


@dataclass(frozen=True, eq=False)
class Block:
    """One tensor's masked weights.

    Args:
        name: of the parameter.
        width: weights that move together: 1 (elements), the length of a row, or the whole tensor.
        index: [m], which groups of `width` weights, ascending; None for all of them, side by side. int32, which halves
            the memory of single weights; see `fast`.
        place: where their m * width values stand in the flat order of the mask.
        start: of a part that was cut from a whole tensor, its first weight.
    """

    name: str
    width: int
    index: torch.Tensor | None
    place: slice
    start: int = 0

    def fast(self) -> Block:
        """The same with an int64 index, as a scatter wants it: twice the memory, no conversion each time."""
        return self if self.index is None else replace(self, index=self.index.long())

    def cut(self, most: int) -> Iterator[Block]:
        """The same weights as parts of about `most` weights, in order."""
        # A whole tensor is cut anywhere; all else between the groups of weights that move together.
        if self.index is None:
            total = self.width
            group = 1
        else:
            total = len(self.index)
            group = self.width
        step = max(1, most // group)
        for first in range(0, total, step):
            end = min(first + step, total)
            place = slice(self.place.start + first * group, self.place.start + end * group)
            if self.index is None:
                yield Block(self.name, end - first, None, place, self.start + first)
            else:
                yield Block(self.name, self.width, self.index[first:end], place)

    def gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """The masked values [m * width] of a tensor of the parameter's shape; a view where the whole tensor is
        masked."""
        if self.index is None:
            return tensor.reshape(-1)[self.start : self.start + self.width]
        groups = tensor.reshape(-1, self.width)
        return groups.index_select(0, self.index).reshape(-1)

    def scatter(self, tensor: torch.Tensor, values: torch.Tensor) -> None:
        """Write values [m * width] into a contiguous tensor of the parameter's shape, in place."""
        if self.index is None:
            tensor.view(-1)[self.start : self.start + self.width].copy_(values)
        else:
            # `index_copy_` wants int64 numbers and values of the tensor's own dtype; `copy_` converts by itself.
            rows = values.view(-1, self.width).to(tensor.dtype)
            tensor.view(-1, self.width).index_copy_(0, self.index.long(), rows)

    def touched(self, shape: torch.Size) -> Touched:
        """Where the masked weights of a matrix [out, in] stand: what a partial gradient has to cover."""
        columns = shape[1]
        if self.width == columns:
            return Touched(shape, self.index, None)
        assert self.index is not None  # only a part of a matrix is asked for: the whole one needs no smaller product
        return Touched(
            shape,
            rows=_some(self.index // columns, shape[0]),
            columns=_some(self.index % columns, columns),
        )


def _some(numbers: torch.Tensor, of: int) -> torch.Tensor | None:
    """The different numbers, int64, ascending; None where they are all of 0 ... of - 1."""
    # By marks, not by `unique`, which would sort as many numbers as there are masked weights.
    seen = torch.zeros(of, dtype=torch.bool, device=numbers.device)
    seen[numbers.long()] = True
    return None if bool(seen.all()) else seen.nonzero().view(-1)


@dataclass(frozen=True, eq=False)
class Touched:
    """The smallest part of a matrix, whole rows by whole columns, that holds all of its masked weights.

    Args:
        shape: of the matrix.
        rows, columns: int64, ascending; None where they are all of them.
    """

    shape: torch.Size
    rows: torch.Tensor | None
    columns: torch.Tensor | None

    @property
    def share(self) -> float:
        """Weights of the part / weights of the matrix."""
        share = 1.0
        for numbers, size in zip((self.rows, self.columns), self.shape, strict=True):
            if numbers is not None:
                share *= len(numbers) / size
        return share

    def inner(self, block: Block) -> torch.Tensor | None:
        """Where a block's weights stand in the flattened part, int64 [m]; None where they are all of it."""
        if block.width > 1:
            return None
        assert block.index is not None  # as in `Block.touched`
        # From places in the matrix to places in the part: the how-manieth of its rows and of its columns.
        row = block.index // self.shape[1]
        column = block.index % self.shape[1]
        if self.rows is not None:
            row = torch.searchsorted(self.rows, row)
        if self.columns is None:
            return row * self.shape[1] + column
        return row * len(self.columns) + torch.searchsorted(self.columns, column)


def _small(index: torch.Tensor) -> torch.Tensor:
    # It ascends, so the last number is the largest.
    fits = index.numel() == 0 or int(index[-1]) < 2**31
    return index.int() if fits else index


def blocks(mask: Mask, device: torch.device | str = "cpu") -> list[Block]:
    """The mask's blocks in canonical order; tensors without masked weights have none."""
    masked_blocks = []
    start = 0
    shapes = dict(zip(mask.layout.names, mask.layout.shapes, strict=True))
    for name, flat in mask.indices.items():
        place = slice(start, start + flat.numel())
        width, index = _grouped(flat, shapes[name])
        if index is not None:
            index = _small(index).to(device)
        masked_blocks.append(Block(name, width, index, place))
        start = place.stop
    return masked_blocks


def _grouped(flat: torch.Tensor, shape: Sequence[int]) -> tuple[int, torch.Tensor | None]:
    """A tensor's masked weights, by their numbers int64 [m], in the widest groups: the width, and which groups; None
    for the whole tensor."""
    total = torch.Size(shape).numel()
    if flat.numel() == total:
        return total, None
    row = total // shape[0] if len(shape) > 1 else 1
    if row == 1 or flat.numel() % row:
        return 1, flat
    rows = flat.view(-1, row)
    # Ascending numbers are a whole row where the first is its first and the last its last.
    begin = bool((rows[:, 0] % row == 0).all())
    if begin and bool((rows[:, -1] - rows[:, 0] == row - 1).all()):
        return row, rows[:, 0] // row
    return 1, flat


def gather(module: nn.Module, mask: Mask) -> torch.Tensor:
    """The masked weights of a module in canonical order, [k], in the module's dtype."""
    params = dict(module.named_parameters())
    device = params[mask.layout.names[0]].device
    values = [block.gather(params[block.name].detach()) for block in blocks(mask, device)]
    return torch.cat(values)


@torch.no_grad()
def scatter(module: nn.Module, mask: Mask, values: torch.Tensor) -> None:
    """Write the masked weights of a module, [k] as `gather` gives them."""
    params = dict(module.named_parameters())
    device = params[mask.layout.names[0]].device
    for block in blocks(mask, device):
        block.scatter(params[block.name], values[block.place].to(device))
