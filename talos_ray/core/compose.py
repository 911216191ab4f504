"""Compose in place: masked weights = base + sum of coefficient x delta. Rollback copies the base's bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from talos_ray.core.blocks import Block, blocks
from talos_ray.core.delta import Delta
from talos_ray.core.fused import Fused
from talos_ray.core.mask import Mask
from talos_ray.core.segments import Segments
from talos_ray.errors import TalosError

# Weights summed together: few enough for a CPU's cache, enough to keep all cores busy and to be worth a GPU's launch.
CHUNK = 1 << 20


class Composer:
    """Swaps edits in and out of one module.

    Args:
        module: holds the base on entry.
        mask, deltas: what may change and by how much; deltas are checked against `base` (its fingerprint).
        segments: which masked weights share a coefficient; all of a task's, if not given.

    The result depends on the coefficients only, never on what was composed before: every call starts from
    the base's values and adds the deltas in the order of their tasks' names. Tasks at 0 are left out, so
    removing a task is exact, and with nothing left the base's own bytes are copied back.
    """

    def __init__(
        self, module: nn.Module, mask: Mask, deltas: Sequence[Delta], base: str, segments: Segments | None = None
    ) -> None:
        for delta in deltas:
            delta.check(base, mask.fingerprint)
        self.deltas = {d.task: d for d in sorted(deltas, key=lambda d: d.task)}
        params = dict(module.named_parameters())
        device = params[mask.layout.names[0]].device
        whole = [(params[b.name], b) for b in blocks(mask, device)]
        self.base = torch.cat([b.gather(p.detach()) for p, b in whole])  # [k]
        self.values = {n: d.values.to(device).contiguous() for n, d in self.deltas.items()}
        self.segments = segments if segments is None else segments.to(device)
        self.fused = Fused.of(whole, self.base, list(self.values.values()), segments)
        parts = [(p, part) for p, b in whole for part in (b if self.fused else b.fast()).cut(CHUNK)]
        self.chunks = _chunks(parts)
        if self.segments is not None and not self.fused:
            self.pieces = [_inside(self.segments, place) for place, _ in self.chunks]
        # Kept: fresh pages would cost more than the sum. One holds the sum, one a delta in float32.
        longest = 0 if self.fused else max((place.stop - place.start for place, _ in self.chunks), default=0)
        self.work = torch.empty(2, longest, dtype=torch.float32, device=device)
        self.coefficients: dict[str, float] = {}

    @torch.no_grad()
    def compose(self, coefficients: Mapping[str, float | torch.Tensor]) -> None:
        """Put base + sum of coefficient x delta into the module; tasks not named count as 0.

        Args:
            coefficients: one a task; with segments, float32 [G] a task.

        Raises:
            TalosError: a coefficient names a task that has no delta here.
        """
        if unknown := sorted(set(coefficients) - set(self.deltas)):
            raise TalosError(
                f"coefficient for unknown task {unknown[0]!r}; this run has deltas of: {', '.join(self.deltas)}"
            )
        if self.segments is not None:
            given = {t: torch.as_tensor(coefficients[t]) for t in self.deltas if t in coefficients}
            return self._by_segment(given)
        active = {t: float(coefficients[t]) for t in self.deltas if coefficients.get(t)}
        if active == self.coefficients:
            return
        if active and self.fused is not None:
            alphas = torch.tensor(list(active.values()), dtype=torch.float32)[:, None]
            self.fused([self.values[t] for t in active], alphas)
        else:
            self._in_chunks(active)
        self.coefficients = active

    def _by_segment(self, coefficients: Mapping[str, torch.Tensor]) -> None:
        alphas = {t: a.detach().to(self.base.device, torch.float32) for t, a in coefficients.items()}
        active = {t: a for t, a in alphas.items() if bool(a.any())}
        if active and self.fused is not None:
            self.fused([self.values[t] for t in active], torch.stack(list(active.values())))
        else:
            self._in_chunks(active)

    def _in_chunks(self, active: Mapping[str, float | torch.Tensor]) -> None:
        for i, (place, parts) in enumerate(self.chunks):
            values = self._sum(active, place, i) if active else self.base[place]
            for p, block in parts:
                block.scatter(p, values[block.place.start - place.start : block.place.stop - place.start])

    def _sum(self, active: Mapping[str, float | torch.Tensor], place: slice, chunk: int) -> torch.Tensor:
        """base + sum of coefficient x delta at `place`, float32; added task by task, so that a task that is left out
        leaves no trace in the bits of the others."""
        size = place.stop - place.start
        total: torch.Tensor = self.work[0, :size]
        delta: torch.Tensor = self.work[1, :size]
        total.copy_(self.base[place])
        for task, alpha in active.items():
            # Converted by hand: an addition of mixed dtypes would convert into fresh memory each time, at twice the
            # cost.
            delta.copy_(self.values[task][place])
            if isinstance(alpha, torch.Tensor):  # [G]: a coefficient a segment
                owner, lengths = self.pieces[chunk]
                total.add_(delta.mul_(alpha[owner].repeat_interleave(lengths)))
            else:
                total.add_(delta, alpha=alpha)
        return total

    def rollback(self) -> None:
        """The base, bitwise."""
        self.compose({})


def _inside(segments: Segments, place: slice) -> tuple[torch.Tensor, torch.Tensor]:
    """The runs in a chunk: their segments, and how many of their weights are in it."""
    ends = segments.lengths.cumsum(0)
    first = int(torch.searchsorted(ends, place.start, right=True))
    last = int(torch.searchsorted(ends, place.stop))
    starts = (ends - segments.lengths)[first : last + 1].clamp(min=place.start)
    return segments.owner[first : last + 1], ends[first : last + 1].clamp(max=place.stop) - starts


def _chunks(parts: list[tuple[nn.Parameter, Block]]) -> list[tuple[slice, list[tuple[nn.Parameter, Block]]]]:
    """Neighbouring blocks together, up to CHUNK weights: what is summed is written while it is still in the cache."""
    chunks: list[tuple[slice, list[tuple[nn.Parameter, Block]]]] = []
    for p, block in parts:
        if chunks and block.place.stop - chunks[-1][0].start <= CHUNK:
            place, together = chunks[-1]
            chunks[-1] = (slice(place.start, block.place.stop), [*together, (p, block)])
        else:
            chunks.append((block.place, [(p, block)]))
    return chunks
