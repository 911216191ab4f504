"""A delta (task vector): k values on the mask, fine-tuned minus base, and what they belong to."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from talos_ray.core.blocks import blocks
from talos_ray.core.layout import Layout, fingerprint
from talos_ray.core.mask import Mask
from talos_ray.errors import MismatchError


@dataclass(frozen=True, eq=False)
class Delta:
    """One task's edit.

    Args:
        task: its name.
        values: [k] in the mask's canonical order, bfloat16 or float32. The stored value *is* the delta: every
            score is computed from it.
        base, mask: fingerprints of what it belongs to.
        info: data fingerprint, settings, training curve, seconds; not part of its identity.
    """

    task: str
    values: torch.Tensor
    base: str
    mask: str
    info: Mapping[str, object] = field(default_factory=dict)

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the values and the base's and mask's fingerprints."""
        return fingerprint({f"{self.base}/{self.mask}": self.values})

    def check(self, base: str, mask: str) -> None:
        """Raises MismatchError, naming both fingerprints, unless the delta belongs to this base and mask."""
        for word, own, wanted in (("base", self.base, base), ("mask", self.mask, mask)):
            if own != wanted:
                raise MismatchError(
                    f"delta of task {self.task!r} belongs to {word} {own[:12]}, but this run's {word} is "
                    f"{wanted[:12]}; open the run that it came from, or train the task again in this one"
                )


def imported(
    tuned: Mapping[str, torch.Tensor], base: Mapping[str, torch.Tensor], mask: Mask
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """What a checkpoint that was fine-tuned elsewhere says of a mask: its values and the base's, float32 [k] each, and
    the share of the squared length of its change that lies off the mask and is lost, in [0, 1]. Weights that only one
    of the two has do not count.

    Args:
        tuned, base: weights by name; both hold every tensor of the mask's layout, in the same shapes.
    """
    places = blocks(mask)
    after = torch.cat([block.gather(tuned[block.name]).float() for block in places])
    before = torch.cat([block.gather(base[block.name]).float() for block in places])
    # In double precision: the sum goes over all weights of a model, and single ones would vanish in it.
    changes = []
    for name, weights in base.items():
        if name in tuned and weights.shape == tuned[name].shape and weights.is_floating_point():
            change = tuned[name].double() - weights.double()
            changes.append(float(change.square().sum()))
    everywhere = sum(changes)
    if not everywhere:
        return after, before, 0.0
    on_mask = float((after.double() - before.double()).square().sum())
    # Rounding may put the mask's own share above 1.
    return after, before, max(0.0, 1.0 - on_mask / everywhere)


def changed(tuned: Mapping[str, torch.Tensor], base: Mapping[str, torch.Tensor], layout: Layout) -> torch.Tensor:
    """bool [P]: the eligible weights that a checkpoint has otherwise than its base.

    Args:
        tuned, base: weights by name, as `imported` takes them.
    """
    flags = torch.empty(layout.total, dtype=torch.bool)
    for name, part in layout.split(flags).items():
        part.copy_((tuned[name].float() != base[name].float()).flatten())  # in float32, as `imported` subtracts them
    return flags


def carried(delta: Delta, mask: Mask, wider: Mask) -> Delta:
    """The same edit on a mask that holds all weights of its own and more: under any coefficient above 0, what is
    composed of it is the same to the bit.

    Raises:
        MismatchError: the delta belongs to another mask.
    """
    delta.check(delta.base, mask.fingerprint)
    # Not 0.0, which would make 0.0 of a base's -0.0: adding -0.0 changes no number's bits.
    values = torch.full((wider.k,), -0.0, dtype=delta.values.dtype)
    values[mask.flags[wider.flags]] = delta.values
    return Delta(delta.task, values, delta.base, wider.fingerprint, delta.info)


def make_delta(
    task: str,
    tuned: torch.Tensor,
    base_values: torch.Tensor,
    base: str,
    mask: str,
    dtype: torch.dtype,
    info: Mapping[str, object],
) -> Delta:
    """Fine-tuned minus base on the mask (both [k]), rounded to the stored dtype.

    Raises:
        ValueError: the training diverged and a value is not finite.
    """
    # Subtracted in float32: in the base's own bfloat16 a small change would be rounded twice.
    change = tuned.float() - base_values.float()
    values = change.to(dtype).cpu()
    if not torch.isfinite(values).all():
        raise ValueError(
            f"training of task {task!r} diverged: its delta holds values that are not finite; lower train.lr"
        )
    return Delta(task, values, base, mask, info)
