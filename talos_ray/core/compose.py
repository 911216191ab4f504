"""Compose in place: masked weights = base + sum of coefficient x delta. Rollback copies the base's bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from talos_ray.core.blocks import blocks
from talos_ray.core.delta import Delta
from talos_ray.core.mask import Mask
from talos_ray.errors import TalosError

CHUNK = 1 << 20  # weights summed together: small enough for a cache, large enough for all cores


class Composer:
    """Swaps edits in and out of one module.

    Args:
        module: holds the base on entry.
        mask, deltas: what may change and by how much; deltas are checked against `base` (its fingerprint).

    The result depends on the coefficients only, never on what was composed before: every call starts from
    the base's values and adds the deltas in the order of their tasks' names. Tasks at 0 are left out, so
    removing a task is exact, and with nothing left the base's own bytes are copied back.
    """

    def __init__(self, module: nn.Module, mask: Mask, deltas: Sequence[Delta], base: str) -> None:
        for delta in deltas:
            delta.check(base, mask.fingerprint)
        self.deltas = {d.task: d for d in sorted(deltas, key=lambda d: d.task)}
        params = dict(module.named_parameters())
        self.blocks = [(params[b.name], b) for b in blocks(mask, params[mask.layout.names[0]].device)]
        self.base = torch.cat([b.gather(p.detach()) for p, b in self.blocks])  # [k]
        self.values = {n: d.values.to(self.base.device) for n, d in self.deltas.items()}
        self.work = torch.empty(
            mask.k, dtype=torch.float32, device=self.base.device
        )  # kept: fresh pages cost more than the sum
        self.coefficients: dict[str, float] = {}

    @torch.no_grad()
    def compose(self, coefficients: Mapping[str, float]) -> None:
        """Put base + sum of coefficient x delta into the module; tasks not named count as 0.

        Raises:
            TalosError: a coefficient names a task that has no delta here.
        """
        if unknown := sorted(set(coefficients) - set(self.deltas)):
            raise TalosError(
                f"coefficient for unknown task {unknown[0]!r}; this run has deltas of: {', '.join(self.deltas)}"
            )
        active = {t: float(coefficients[t]) for t in self.deltas if coefficients.get(t)}
        if active == self.coefficients:
            return
        flat = self._sum(active) if active else self.base
        for p, block in self.blocks:
            block.scatter(p, flat[block.place])
        self.coefficients = active

    def _sum(self, active: Mapping[str, float]) -> torch.Tensor:
        """base + sum of coefficient x delta, [k] in the base's dtype; added task by task in float32, so that a task that
        is left out leaves no trace in the bits of the others."""
        for start in range(0, len(self.base), CHUNK):
            part = slice(start, start + CHUNK)
            out = self.work[part].copy_(self.base[part])
            for task, alpha in active.items():
                out.add_(self.values[task][part], alpha=alpha)
        return self.work.to(self.base.dtype)

    def rollback(self) -> None:
        """The base, bitwise."""
        self.compose({})
