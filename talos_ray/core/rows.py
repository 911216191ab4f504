"""Weight gradients of masked rows and columns only: an autograd function of our own in place of the full product.

The gradient of y = x W^T + b in W is g^T x: one row of it for each column of g, one column for each column of x.
Where a mask touches few rows or columns of a matrix, only that part is computed and goes straight into the
optimizer's flat buffer: the dense gradient never exists, and backward costs 1 + (share touched) products, not 2.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from talos_ray.core.attention import attention
from talos_ray.core.blocks import Block, Touched, blocks
from talos_ray.core.mask import Mask

WORTH_IT = 0.7  # share touched above which the full product is as cheap


def gradient_share(mask: Mask) -> float:
    """Multiplications of the weight gradients that training under a mask computes, as a share of dense training's, in [0, 1]."""
    shapes = dict(zip(mask.layout.names, map(torch.Size, mask.layout.shapes), strict=True))
    computed = 0.0
    for block in blocks(mask):
        shape = shapes[block.name]
        share = block.touched(shape).share if len(shape) == 2 and block.index is not None else 1.0
        computed += shape.numel() * (share if share <= WORTH_IT else 1.0)
    return computed / sum(s.numel() for s in shapes.values())


class _RowLinear(torch.autograd.Function):
    """y = x W^T + b for x [..., in], W [out, in]; `sink` receives the gradient of the touched part of W, [r, c]."""

    @staticmethod
    def forward(ctx, x, weight, bias, touched, sink):
        if torch.is_autocast_enabled(x.device.type):
            x, weight = (t.to(torch.get_autocast_dtype(x.device.type)) for t in (x, weight))
            bias = None if bias is None else bias.to(x.dtype)
        ctx.save_for_backward(x, weight)
        ctx.touched, ctx.sink = touched, sink
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx, g):
        x, weight = ctx.saved_tensors
        rows, columns = ctx.touched.rows, ctx.touched.columns
        flat, seen = g.reshape(-1, g.shape[-1]), x.reshape(-1, x.shape[-1])  # [positions, out], [positions, in]
        left = flat if rows is None else flat.index_select(1, rows)
        ctx.sink(left.T @ (seen if columns is None else seen.index_select(1, columns)))
        back = g @ weight if ctx.needs_input_grad[0] else None
        return back, None, flat.sum(0) if ctx.needs_input_grad[2] else None, None, None


class RowGradients:
    """Sends the matrix products of one module's `nn.Linear` and `nn.MultiheadAttention` layers through `_RowLinear`
    where `blocks` touch few enough rows and columns. Gradients are added to `grad`, the flat float32 [k] buffer.

    Weights used in any other way keep their ordinary gradients, so this changes the cost of a step and nothing else.
    """

    def __init__(self, module: nn.Module, blocks: list[Block], grad: torch.Tensor) -> None:
        self.grad = grad
        self.patched: list[nn.Module] = []
        params = dict(module.named_parameters())
        self.routes: dict[int, tuple[Touched, Callable]] = {}  # by id of a weight
        for block in blocks:
            weight = params[block.name]
            if weight.ndim == 2 and block.index is not None:
                touched = block.touched(weight.shape)
                if touched.share <= WORTH_IT:
                    self.routes[id(weight)] = (touched, self._sink(block, touched.inner(block)))
        for m in module.modules():
            if isinstance(m, nn.MultiheadAttention):
                if m.in_proj_weight is not None and {id(m.in_proj_weight), id(m.out_proj.weight)} & set(self.routes):
                    self._patch(m, attention(m, self.linear))
            elif type(m) is nn.Linear and id(m.weight) in self.routes:
                self._patch(m, lambda x, m=m: self.linear(x, m.weight, m.bias))

    def _patch(self, m: nn.Module, forward: Callable) -> None:
        m.forward = forward
        self.patched.append(m)

    def _sink(self, block: Block, inner: torch.Tensor | None) -> Callable[[torch.Tensor], None]:
        def add(part: torch.Tensor) -> None:
            flat = part.reshape(-1)
            self.grad[block.place] += flat if inner is None else flat.index_select(0, inner)

        return add

    def linear(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """F.linear, by the route of `weight` where it has one."""
        if id(weight) in self.routes and torch.is_grad_enabled():
            return _RowLinear.apply(x, weight, bias, *self.routes[id(weight)])
        return F.linear(x, weight, bias)

    def close(self) -> None:
        """Give the layers their own forward back."""
        for m in self.patched:
            del m.forward
        self.patched.clear()
