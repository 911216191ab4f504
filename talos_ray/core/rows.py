"""Weight gradients of masked rows and columns only: an autograd function of our own in place of the full product.

The gradient of y = x W^T + b in W is g^T x: one row of it for each column of g, one column for each column of x.
Where a mask touches few rows or columns of a matrix, only that part is computed and goes straight into the
optimizer's flat buffer: the dense gradient never exists, and backward costs 1 + (share touched) products, not 2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import MethodType
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import nn

from talos_ray.core.attention import attention
from talos_ray.core.blocks import Block, Touched, blocks
from talos_ray.core.layout import depths
from talos_ray.core.mask import Mask

GROUP = 8  # rows or columns that a GPU's tensor cores take together
WORTH_IT = 0.7  # share touched above which the full product is as cheap


def gradient_share(mask: Mask) -> float:
    """Multiplications of the weight gradients that training under a mask computes, as a share of dense training's, in
    [0, 1]."""
    shapes = dict(zip(mask.layout.names, map(torch.Size, mask.layout.shapes), strict=True))
    computed = 0.0
    for block in blocks(mask):
        shape = shapes[block.name]
        share = 1.0
        if len(shape) == 2 and block.index is not None:
            share = block.touched(shape).share
        computed += shape.numel() * (share if share <= WORTH_IT else 1.0)
    return computed / sum(shape.numel() for shape in shapes.values())


def step_share(mask: Mask) -> float:
    """Multiplications of a training step under a mask, as a share of a dense step's, in (1/3, 1]: the forward, the
    gradients of inputs down to the lowest block that holds masked weights, and those of weights."""
    depth = depths(mask.layout.names)
    lowest = min(depth[block.name] for block in blocks(mask))
    passed = 0  # weights that the gradients of inputs go through
    for name, size in zip(mask.layout.names, mask.layout.sizes, strict=True):
        if depth[name] >= lowest:
            passed += size
    return (1 + passed / mask.layout.total + gradient_share(mask)) / 3


@dataclass(frozen=True, eq=False)
class Route:
    """How a matrix's gradient is computed.

    Args:
        touched: the part that is.
        take: receives it, [r, c].
        rows, columns: those of the part; on a GPU filled up to whole groups, which its tensor cores take at up to three
            times the speed.
    """

    touched: Touched
    take: Callable[[torch.Tensor], None]
    rows: torch.Tensor | None
    columns: torch.Tensor | None

    @staticmethod
    def of(touched: Touched, take: Callable[[torch.Tensor], None]) -> Route:
        return Route(touched, take, rows=_filled(touched.rows), columns=_filled(touched.columns))

    def product(self, g: torch.Tensor, x: torch.Tensor) -> None:
        """The touched part of g^T x for g [positions, out] and x [positions, in]."""
        left = g if self.rows is None else g.index_select(1, self.rows)
        right = x if self.columns is None else x.index_select(1, self.columns)
        part = left.T @ right  # [r, c]
        # Without what was filled up to whole groups.
        if self.touched.rows is not None:
            part = part[: len(self.touched.rows)]
        if self.touched.columns is not None:
            part = part[:, : len(self.touched.columns)]
        self.take(part)


def _filled(numbers: torch.Tensor | None) -> torch.Tensor | None:
    """On a GPU with zeros up to a multiple of GROUP: row 0 is computed again, and thrown away."""
    if numbers is None or not numbers.is_cuda:
        return numbers
    return F.pad(numbers, (0, -len(numbers) % GROUP))


class _RowLinear(torch.autograd.Function):
    """y = x W^T + b for x [..., in], W [out, in]; the gradient of W goes by its route."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, route: Route
    ) -> torch.Tensor:
        narrow = weight
        # Autocast does not reach into a function of our own, which therefore converts as F.linear would.
        if torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
            x = x.to(dtype)
            narrow = weight.to(dtype)
            bias = None if bias is None else bias.to(x.dtype)
        ctx.save_for_backward(x, weight)  # as it is stored: converting it again costs less than a copy kept until then
        ctx.route = route
        flat = F.linear(x.reshape(-1, x.shape[-1]), narrow, bias)
        # Not a view: some models (DeBERTa) go on in place, which autograd forbids for a view that a function made.
        y: torch.Tensor = torch.ops.aten._unsafe_view(flat, (*x.shape[:-1], flat.shape[-1]))
        return y

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> tuple[torch.Tensor | None, None, torch.Tensor | None, None]:
        x, weight = ctx.saved_tensors
        # Every position of every sample is one row of the product: [positions, out] and [positions, in].
        flat = g.reshape(-1, g.shape[-1])
        ctx.route.product(flat, x.reshape(-1, x.shape[-1]))
        back = g @ weight.to(g.dtype) if ctx.needs_input_grad[0] else None
        bias_grad = flat.sum(0) if ctx.needs_input_grad[2] else None
        # None for the weight, whose gradient has gone to the optimizer's buffer already.
        return back, None, bias_grad, None


def _cuts_patches(m: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Whether a layer is a convolution over patches side by side, as vision transformers begin: a matrix product."""
    if type(m) is not nn.Conv2d or m.padding not in ((0, 0), "valid"):
        return False
    return m.kernel_size == m.stride and m.dilation == (1, 1) and m.groups == 1


class RowGradients:
    """Sends the matrix products of one module's `nn.Linear`, `nn.MultiheadAttention` and patch convolution layers
    through `_RowLinear` where `blocks` touch few enough rows and columns. Gradients are added to `grad`, the flat
    float32 [k] buffer.

    Weights used in any other way keep their ordinary gradients, so this changes the cost of a step and nothing else.
    """

    def __init__(self, module: nn.Module, blocks: list[Block], grad: torch.Tensor) -> None:
        self.grad = grad
        self.patched: list[nn.Module] = []
        self.routes: dict[int, Route] = {}  # by id of a weight
        params = dict(module.named_parameters())
        kernels = {id(layer.weight) for layer in module.modules() if _cuts_patches(layer)}
        for block in blocks:
            weight = params[block.name]
            # Whole matrices and vectors keep their ordinary gradients: nothing can be left out of them.
            if block.index is None or (weight.ndim != 2 and id(weight) not in kernels):
                continue
            touched = block.touched(weight.flatten(1).shape)
            if touched.share <= WORTH_IT:
                self.routes[id(weight)] = Route.of(touched, self._sink(block, touched.inner(block)))
        for layer in module.modules():
            self._send(layer)

    def _send(self, m: nn.Module) -> None:
        """Give a layer a forward that goes by the routes of its weights, if they have any."""
        if isinstance(m, nn.MultiheadAttention):
            weights = (m.in_proj_weight, m.out_proj.weight)
            if m.in_proj_weight is not None and any(id(weight) in self.routes for weight in weights):
                self._patch(m, lambda m, *given, **named: attention(m, self.linear)(*given, **named))
        # No subclass: its forward may do more than the product.
        elif type(m) is nn.Linear and id(m.weight) in self.routes:
            self._patch(m, lambda m, x: self.linear(x, m.weight, m.bias))
        elif _cuts_patches(m) and id(m.weight) in self.routes:
            self._patch(m, self._patches)

    def _patch(self, m: nn.Module, forward: Callable[..., object]) -> None:
        # A method, which a copy of the module makes its own: the copy then computes with its own weights, which have no
        # routes. A function would go on with those of the original.
        m.forward = MethodType(forward, m)
        self.patched.append(m)

    def _sink(self, block: Block, inner: torch.Tensor | None) -> Callable[[torch.Tensor], None]:
        def add(part: torch.Tensor) -> None:
            flat = part.reshape(-1)
            self.grad[block.place] += flat if inner is None else flat.index_select(0, inner)

        return add

    def linear(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """F.linear, by the route of `weight` where it has one."""
        if id(weight) in self.routes and torch.is_grad_enabled():
            y: torch.Tensor = _RowLinear.apply(x, weight, bias, self.routes[id(weight)])
            return y
        return F.linear(x, weight, bias)

    def _patches(self, m: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
        """A convolution over patches side by side as the product that it is: x [n, in, h, w] -> [n, out, rows,
        columns]."""
        if not torch.is_grad_enabled() or x.ndim != 4 or id(m.weight) not in self.routes:
            plain: torch.Tensor = m._conv_forward(x, m.weight, m.bias)
            return plain
        high, wide = m.kernel_size
        h, w = x.shape[-2:]
        # What is left over at the right and at the bottom fills no patch, and the convolution passes it over.
        whole = x[..., : h // high * high, : w // wide * wide]
        cut = whole.unfold(-2, high, high).unfold(-2, wide, wide)  # [n, in, rows, high, columns, wide]
        flat = cut.permute(0, 2, 3, 1, 4, 5).flatten(3)  # [n, rows, columns, in * high * wide]
        y: torch.Tensor = _RowLinear.apply(flat, m.weight.flatten(1), m.bias, self.routes[id(m.weight)])
        return y.permute(0, 3, 1, 2)

    def close(self) -> None:
        """Give the layers their own forward back."""
        for m in self.patched:
            del m.forward
        self.patched.clear()
