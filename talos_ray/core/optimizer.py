"""Gradients of the masked weights only, and AdamW on them: values, gradients and moments are flat buffers of k numbers.

Where a mask touches few rows or columns of a matrix, only their gradient is computed (`core.rows`). Elsewhere a hook
on the parameter gathers its gradient to the mask and frees the dense one at once.
Parameters outside the mask ask for no gradient, so backward stops at the lowest masked tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.distributed as dist
from torch import nn

from talos_ray.core.blocks import Block, blocks
from talos_ray.core.fused import Fused
from talos_ray.core.mask import Mask
from talos_ray.core.rows import RowGradients


def adam_state(adam: torch.optim.Optimizer, parameter: nn.Parameter) -> dict[str, torch.Tensor]:
    """Moments of one parameter and its step count, float32 [1]: all that Adam keeps of it, zeros before the first
    update."""
    moments = adam.state.get(parameter, {})
    nothing = torch.zeros_like(parameter)
    return {
        "exp_avg": moments.get("exp_avg", nothing).clone(),
        "exp_avg_sq": moments.get("exp_avg_sq", nothing).clone(),
        "step": torch.as_tensor(moments.get("step", 0.0), dtype=torch.float32).reshape(1).clone(),
    }


def load_adam(adam: torch.optim.Optimizer, parameter: nn.Parameter, state: Mapping[str, torch.Tensor]) -> None:
    """Go back to an `adam_state()`, bitwise. A fused Adam wants its step count on the GPU, any other on the host."""
    device = parameter.device
    fused = adam.param_groups[0].get("fused") and device.type == "cuda"
    step = state["step"].reshape(())
    # Cloned, because Adam updates its state in place, and a checkpoint may be loaded again.
    adam.state[parameter] = {
        "step": step.clone().to(device if fused else "cpu"),
        "exp_avg": state["exp_avg"].to(device).clone(),
        "exp_avg_sq": state["exp_avg_sq"].to(device).clone(),
    }


class MaskedGradient:
    """Gathers what backward computes for the masked weights of a module into `flat`, float32 [k].

    Args:
        module: its parameters outside the mask ask for no gradient from here on.
        mask: which weights.
        flat: where gradients are added up.
    """

    def __init__(self, module: nn.Module, mask: Mask, flat: torch.Tensor) -> None:
        params = dict(module.named_parameters())
        self.flat = flat
        self.blocks = [(params[block.name], block) for block in blocks(mask, flat.device)]
        self.handles = []
        for parameter in module.parameters():
            parameter.requires_grad_(False)
        for parameter, block in self.blocks:
            parameter.requires_grad_(True)
            parameter.grad = None
            # Behind the accumulation, because a weight that is used twice has its gradient only then.
            handle = parameter.register_post_accumulate_grad_hook(self._gatherer(block))
            self.handles.append(handle)
        self.rows = RowGradients(module, [block for _, block in self.blocks], flat)

    def _gatherer(self, block: Block) -> Callable[[torch.Tensor], None]:
        def gather(p: torch.Tensor) -> None:
            if p.grad is not None:  # otherwise its rows have gone into the buffer already
                self.flat[block.place] += block.gather(p.grad)
                p.grad = None

        return gather

    def close(self) -> None:
        """Take the hooks off the module and give its layers their own forward back."""
        self.rows.close()
        for handle in self.handles:
            handle.remove()


class SparseAdamW:
    """AdamW (Loshchilov and Hutter, 2019) on the k masked weights of a module, decoupled weight decay included.

    Args:
        module: holds the base; only its masked weights will ever change, in place.
        mask: which weights.
        lr: peak learning rate. weight_decay, betas, eps: as in torch.optim.AdamW.
        clip_norm: largest norm of the *masked* gradient (what a sparse optimizer can know), or None.

    Everything outside the mask stays bitwise what it was. Values are float32 whatever the model's dtype.
    In a process group, `step` averages the packed gradient over the ranks: k numbers on the wire, not P.
    """

    def __init__(
        self, module: nn.Module, mask: Mask, lr: float, weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, clip_norm: float | None = 1.0,
    ) -> None:  # fmt: skip
        self.clip_norm = clip_norm
        self.lr = lr
        params = dict(module.named_parameters())
        device = params[mask.layout.names[0]].device
        self.values = nn.Parameter(torch.empty(mask.k, dtype=torch.float32, device=device))
        self.grad = torch.zeros_like(self.values)  # float32 [k], always the same tensor
        self.values.grad = self.grad
        self.adam = torch.optim.AdamW([self.values], lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, fused=True)
        self.gradient = MaskedGradient(module, mask, self.grad)
        self.blocks = self.gradient.blocks
        # On a GPU all is written at once: a launch a tensor would cost more than the bytes.
        self.write = Fused.of(self.blocks, self.values.detach(), ()) if device.type == "cuda" else None
        self.pull()

    @torch.no_grad()
    def pull(self) -> None:
        """Read the values from the module."""
        for parameter, block in self.blocks:
            self.values[block.place] = block.gather(parameter.detach()).float()

    @torch.no_grad()
    def push(self) -> None:
        """Write the values into the module."""
        if self.write is not None:
            return self.write((), torch.empty(0, 1))
        for parameter, block in self.blocks:
            block.scatter(parameter, self.values[block.place])

    def step(self, lr: float | None = None) -> torch.Tensor:
        """One update with the gathered gradient, which is then cleared. Returns the gradient's norm before clipping, a
        number on the model's device."""
        grad = self.grad
        # Every worker of a team has the gradient of its own samples; all take the step of their mean.
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(grad)
            grad /= dist.get_world_size()
        norm: torch.Tensor = grad.norm()
        # Clipped without a look at the norm: a GPU would have to be waited for.
        if self.clip_norm is not None:
            scale = self.clip_norm / (norm + 1e-6)
            grad *= scale.clamp(max=1.0)
        self.adam.param_groups[0]["lr"] = self.lr if lr is None else lr
        self.adam.step()
        grad.zero_()
        self.push()
        return norm

    def state(self) -> dict[str, torch.Tensor]:
        """Values, moments (float32 [k]) and step count: all that a restart needs."""
        return {"values": self.values.detach().clone(), **adam_state(self.adam, self.values)}

    @torch.no_grad()
    def load(self, state: dict[str, torch.Tensor]) -> None:
        """Go back to a `state()`, bitwise, and write its values into the module."""
        self.values.copy_(state["values"])
        load_adam(self.adam, self.values, state)
        self.grad.zero_()
        self.push()

    def bytes(self) -> int:
        """Bytes of values, gradient and moments that this optimizer holds."""
        tensors = [*self.state().values(), self.grad]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def close(self) -> None:
        """Take the hooks off the module and give its layers their own forward back."""
        self.gradient.close()
