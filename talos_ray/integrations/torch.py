"""Training in somebody else's loop, kept to a run's mask.

transformers' Trainer, Lightning and accelerate take any `torch.optim.Optimizer`: `MaskedAdamW` is ours as one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, overload
from weakref import ref

import torch
from torch import nn

from talos_ray.core.mask import Mask
from talos_ray.core.optimizer import SparseAdamW
from talos_ray.errors import MismatchError, TalosError


class MaskedAdamW(torch.optim.Optimizer):
    """`core.optimizer.SparseAdamW` for loops that want a torch.optim.Optimizer: schedulers set its learning rate,
    checkpoints hold its state, closures and gradient scalers work. What is off the mask stays bitwise what it was.

    Its one parameter is the flat buffer of the k masked values (float32 [k]). The module's own parameters keep no
    gradient, so a loop that clips their norm clips nothing: `clip_norm` is what clips. One process trains:
    DistributedDataParallel and its like would wait for the module's gradients, and there are none.

    Args:
        module: holds the base, on the device that it will train on.
        mask: which weights; every parameter of its layout is one of the module's.
        lr, weight_decay, betas, eps, clip_norm: as in `SparseAdamW`.

    Raises:
        MismatchError: the module lacks a parameter of the mask's layout, or has it in another shape.
    """

    def __init__(
        self,
        module: nn.Module,
        mask: Mask,
        lr: float,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        clip_norm: float | None = 1.0,
    ) -> None:
        check_fits(module, mask)
        self.sparse = SparseAdamW(module, mask, lr, weight_decay, betas, eps, clip_norm)
        super().__init__([self.sparse.values], self.sparse.adam.defaults)
        self._share()
        self.look = module.register_forward_pre_hook(_device_check(module, self.sparse.values))
        self.reload = module.register_load_state_dict_post_hook(_reader(module, self.sparse))

    def _share(self) -> None:
        """Groups and moments are the inner AdamW's own objects, so that what a scheduler sets is what it steps with."""
        self.param_groups = self.sparse.adam.param_groups
        self.state = self.sparse.adam.state

    @property
    def _gradient(self) -> torch.Tensor:
        gradient = self.sparse.values.grad
        assert gradient is not None  # the hooks' buffer, there from the start
        return gradient

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One update of the masked weights with the gradient gathered so far. Returns what the closure returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        # There is one parameter, so one group: whatever a scheduler has set is in it.
        self.sparse.step(self.param_groups[0]["lr"])
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gathered gradient. The buffer stays in either case: the module's hooks add to it."""
        self._gradient.zero_()

    def state_dict(self) -> dict[str, Any]:
        """AdamW's state, and `values` (float32 [k]): a module in 16 bits holds them rounded only."""
        return {**self.sparse.adam.state_dict(), "values": self.sparse.values.detach().clone()}

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go back to a `state_dict()`, bitwise, and write its values into the module."""
        self.sparse.adam.load_state_dict({part: state_dict[part] for part in ("state", "param_groups")})
        self._share()  # anew, because AdamW has made itself new ones
        self.sparse.values.copy_(state_dict["values"])
        self._gradient.zero_()
        self.sparse.push()

    def close(self) -> None:
        """Take all hooks off the module and give its layers their own forward back."""
        self.look.remove()
        self.reload.remove()
        self.sparse.close()


def _device_check(trained: nn.Module, values: torch.Tensor) -> Callable[[nn.Module, object], None]:
    """A hook that refuses a forward of a module on another device than the values'. A function, so that a copy of the
    module copies no optimizer; the copy may be on any device."""
    own = ref(trained)

    # At each forward, because `module.to` leaves the optimizer's values where they were and raises nothing.
    def check(module: nn.Module, inputs: object) -> None:
        where = next(module.parameters()).device
        if where != values.device and module is own():
            raise TalosError(
                f"the module is on {where}, but its optimizer was made when it was on {values.device}; wanted both on "
                f"one device; move the module first, then make the optimizer"
            )

    return check


def _reader(trained: nn.Module, sparse: SparseAdamW) -> Callable[[nn.Module, object], None]:
    """A hook that takes over what was loaded into a module, as from an earlier checkpoint: the next step would write
    the optimizer's own values over it. A function, and of no copy's concern, as in `_device_check`."""
    own = ref(trained)

    @torch.no_grad()
    def read(module: nn.Module, keys: object) -> None:
        if module is not own():
            return
        params = dict(module.named_parameters())
        for parameter, block in sparse.blocks:
            if params.get(block.name) is not parameter:
                raise TalosError(
                    f"parameter {block.name!r} is another than the one that its optimizer was made for; wanted the "
                    "same, with other values; load without assign=True, or make the optimizer afterwards"
                )
            loaded = block.gather(parameter)
            values = sparse.values[block.place]
            # A module in 16 bits holds the values rounded: where these are what it holds, they are the better ones.
            held = values.to(loaded.dtype) == loaded
            sparse.values[block.place] = torch.where(held, values, loaded.float())

    return read


def check_fits(module: nn.Module, mask: Mask) -> None:
    """Raises MismatchError, naming the first, unless the module has every parameter of a mask's layout in its shape."""
    params = dict(module.named_parameters())
    for name, shape in zip(mask.layout.names, mask.layout.shapes, strict=True):
        found = tuple(params[name].shape) if name in params else "none"
        if found != tuple(shape):
            raise MismatchError(
                f"module {type(module).__name__}: parameter {name!r} has shape {found}; wanted {tuple(shape)}, the "
                f"mask's; give the network that the run was made from, or the part of yours that is it, like model.bert"
            )
