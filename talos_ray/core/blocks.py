"""Where masked weights stand in each tensor, as blocks: the widest contiguous pieces that the mask allows.

A whole tensor moves by one copy, whole rows by copies of rows, anything else by index. Hardware likes them in
that order: a row is a `memcpy`, an index is a gather.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from talos_ray.core.mask import Mask


@dataclass(frozen=True, eq=False)
class Block:
    """One tensor's masked weights.

    Args:
        name: of the parameter.
        width: weights that move together: 1 (elements), the length of a row, or the whole tensor.
        index: int64 [m], which groups of `width` weights, ascending; None for the whole tensor.
        place: where their m * width values stand in the flat order of the mask.
    """

    name: str
    width: int
    index: torch.Tensor | None
    place: slice

    def gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """The masked values [m * width] of a tensor of the parameter's shape; a view where the whole tensor is masked."""
        if self.index is None:
            return tensor.reshape(-1)
        return tensor.reshape(-1, self.width).index_select(0, self.index).reshape(-1)

    def scatter(self, tensor: torch.Tensor, values: torch.Tensor) -> None:
        """Write values [m * width] into a contiguous tensor of the parameter's shape, in place."""
        if self.index is None:
            tensor.view(-1).copy_(values)
        else:
            tensor.view(-1, self.width).index_copy_(0, self.index, values.view(-1, self.width).to(tensor.dtype))

    def touched(self, shape: torch.Size) -> tuple[torch.Tensor, torch.Tensor | None]:
        """For a matrix [out, in]: the rows that hold masked weights, int64 [r], and where those weights stand in the
        r * in weights of these rows (None where they are all of them)."""
        if self.width == shape[1]:
            return self.index, None
        rows, inverse = torch.unique(self.index // shape[1], return_inverse=True)
        return rows, inverse * shape[1] + self.index % shape[1]


def blocks(mask: Mask, device: torch.device | str = "cpu") -> list[Block]:
    """The mask's blocks in canonical order; tensors without masked weights have none."""
    found, start = [], 0
    shapes = dict(zip(mask.layout.names, mask.layout.shapes, strict=True))
    for name, flat in mask.indices.items():
        total = torch.Size(shapes[name]).numel()
        row = total // shapes[name][0] if len(shapes[name]) > 1 else 1
        width, index = 1, flat
        if flat.numel() == total:
            width, index = total, None
        elif row > 1 and flat.numel() % row == 0:
            heads = flat.view(-1, row)
            if bool((heads[:, 0] % row == 0).all()) and bool((heads[:, -1] - heads[:, 0] == row - 1).all()):
                width, index = row, heads[:, 0] // row
        found.append(
            Block(name, width, None if index is None else index.to(device), slice(start, start + flat.numel()))
        )
        start += flat.numel()
    return found


def gather(module: nn.Module, mask: Mask) -> torch.Tensor:
    """The masked weights of a module in canonical order, [k], in the module's dtype."""
    params = dict(module.named_parameters())
    device = params[mask.layout.names[0]].device
    return torch.cat([b.gather(params[b.name].detach()) for b in blocks(mask, device)])
