"""The mask: the k weights that may change, the same for every task. Selection is exact and deterministic.

Scores are non-negative float32, so their order is the order of their bits; two histograms of 16 bits find
the k-th smallest exactly, in chunks, without sorting or copying the scores.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch

from talos_ray.core.layout import Layout, fingerprint

CHUNK = 1 << 20  # scores looked at together

WIDENED = ", widened"  # behind the strategy of a mask to which weights were added later
DATA_FREE = ("random", "magnitude", "all")  # strategies that need no sensitivity, and so no calibration
Granularity = Literal["element", "row"]
Strategy = Literal["least_sensitive", "least_sensitive_per_tensor", "random", "magnitude", "most_sensitive", "all"]


@dataclass(frozen=True, eq=False)
class Mask:
    """Which of the P eligible weights may change.

    Args:
        layout: the eligible weights.
        bits: uint8 [ceil(P / 8)], packed in canonical order, first weight in the highest bit.
        info: what it was made from (strategy, keep, seed, rounds, samples); stored beside it, not part of its identity.
    """

    layout: Layout
    bits: np.ndarray
    info: Mapping[str, object] = field(default_factory=dict)

    @property
    def flags(self) -> torch.Tensor:
        """bool [P] in canonical order; made from the bits at each call, because it is eight times their size."""
        return torch.from_numpy(np.unpackbits(self.bits, count=self.layout.total).view(bool))

    @property
    def indices(self) -> dict[str, torch.Tensor]:
        """Positions (int64, ascending, row-major in the parameter) of the masked weights, for parameters that hold
        any."""
        flags = self.layout.split(self.flags)
        indices = {}
        for name in self.layout.names:
            index = flags[name].nonzero().view(-1)
            if index.numel():
                indices[name] = index
        return indices

    @functools.cached_property
    def k(self) -> int:
        """How many weights may change."""
        return int(np.count_nonzero(np.unpackbits(self.bits, count=self.layout.total)))

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the names, shapes and bits of the mask."""
        return fingerprint(self.packed())

    @property
    def narrower(self) -> list[str]:
        """Fingerprints of the masks that it was widened from, the first one first."""
        found = self.info.get("narrower")
        return list(map(str, found)) if isinstance(found, list) else []

    def packed(self) -> dict[str, torch.Tensor]:
        """One uint8 tensor of packed bits a parameter: the stored form."""
        split = self.layout.split(self.flags)
        return {name: torch.from_numpy(np.packbits(flags.numpy())) for name, flags in split.items()}

    def density(self) -> dict[str, float]:
        """Share of masked weights in each parameter."""
        return {name: float(flags.numpy().mean()) for name, flags in self.layout.split(self.flags).items()}


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """Overlap |A and B| / |A or B| of two masks given by their packed bits; 1 where both are empty."""
    # numpy counts the bits of a byte in a byte, and would add these up in a narrow integer.
    either = int(np.bitwise_count(a | b).sum(dtype=np.int64))
    both = int(np.bitwise_count(a & b).sum(dtype=np.int64))
    return both / either if either else 1.0


def mask_from_flags(layout: Layout, flags: torch.Tensor, info: Mapping[str, object] | None = None) -> Mask:
    """Build a mask from bool [P]."""
    return Mask(layout, np.packbits(flags.cpu().numpy()), info or {})


def widened(mask: Mask, flags: torch.Tensor) -> Mask:
    """A mask with further weights, bool [P]."""
    strategy = str(mask.info.get("strategy")).removesuffix(WIDENED)
    narrower = [*mask.narrower, mask.fingerprint]
    return mask_from_flags(mask.layout, mask.flags | flags, {"strategy": f"{strategy}{WIDENED}", "narrower": narrower})


def mask_from_packed(
    layout: Layout, packed: Mapping[str, torch.Tensor], info: Mapping[str, object] | None = None
) -> Mask:
    """Build a mask from its stored form (see `Mask.packed`)."""
    # Every parameter was packed alone, its last byte filled up: side by side the bits stand elsewhere.
    parts = []
    for name, size in zip(layout.names, layout.sizes, strict=True):
        parts.append(np.unpackbits(packed[name].numpy(), count=size))
    return Mask(layout, np.packbits(np.concatenate(parts)), info or {})


def _order_bits(chunk: torch.Tensor, largest: bool) -> np.ndarray:
    """uint32 that sort as the scores do (or the other way round)."""
    if not bool((chunk >= 0).all()):  # also false for NaN
        raise ValueError("sensitivity scores hold negative or NaN values; wanted non-negative numbers; calibrate again")
    positive = chunk + 0.0  # turns -0.0, whose bits are those of a large number, into 0.0
    bits = positive.cpu().numpy().view(np.uint32)
    return np.uint32(0xFFFFFFFF) - bits if largest else bits


def smallest(scores: torch.Tensor, k: int, largest: bool = False) -> torch.Tensor:
    """bool [P] with exactly k entries set: the k smallest of `scores` (float32 [P], non-negative).

    Ties go to the earlier weight. Works in chunks: beside the scores only the result is held, a quarter of their bytes.

    Raises:
        ValueError: k is outside [0, P], or a score is negative or NaN.
    """
    total = scores.numel()
    if not 0 <= k <= total:
        raise ValueError(f"cannot select k={k} of {total} weights; wanted 0 <= k <= {total}")
    chunks = scores.float().split(CHUNK)
    threshold, ties = _threshold(chunks, k, largest)
    chosen = np.empty(total, dtype=bool)
    for start, chunk in zip(range(0, total, CHUNK), chunks, strict=True):
        bits = _order_bits(chunk, largest)
        flags = chosen[start : start + CHUNK]
        np.less(bits, threshold, out=flags)
        equal = np.flatnonzero(bits == threshold)
        flags[equal[:ties]] = True
        ties -= min(ties, len(equal))
    return torch.from_numpy(chosen)


def _threshold(chunks: Sequence[torch.Tensor], k: int, largest: bool) -> tuple[np.uint32, int]:
    """The bits of the k-th score in order, and how many of the scores that are equal to it are among the first k."""
    # By the upper 16 bits all scores fall into buckets, one of which holds the k-th.
    high = np.zeros(1 << 16, dtype=np.int64)
    for chunk in chunks:
        high += np.bincount(_order_bits(chunk, largest) >> 16, minlength=1 << 16)
    bucket = int(np.searchsorted(np.cumsum(high), k))
    before = int(high[:bucket].sum())
    # Within this bucket the lower 16 bits tell the scores apart.
    low = np.zeros(1 << 16, dtype=np.int64)
    for chunk in chunks:
        bits = _order_bits(chunk, largest)
        within = bits[bits >> 16 == bucket] & 0xFFFF
        low += np.bincount(within, minlength=1 << 16)
    rest = int(np.searchsorted(np.cumsum(low), k - before))
    ties = k - before - int(low[:rest].sum())
    return np.uint32(min((bucket << 16) | rest, 0xFFFFFFFF)), ties


def shares(sizes: Sequence[int], k: int) -> list[int]:
    """k split over tensors in proportion to their sizes, by largest remainder, so that the parts sum to k."""
    total = sum(sizes)
    exact = [k * size / total for size in sizes]
    parts = [int(share) for share in exact]
    # Those that rounding down costs most come first; of equal ones the earlier tensor.
    order = sorted(range(len(sizes)), key=lambda i: (parts[i] - exact[i], i))
    for i in order[: k - sum(parts)]:
        parts[i] += 1
    return parts


def _smallest_rows(layout: Layout, keys: torch.Tensor, k: int, largest: bool) -> torch.Tensor:
    """bool [P]: whole rows in the order of `keys` (one a row, ties by canonical order), as many as fit into k
    weights."""
    widths = torch.cat([torch.full((rows,), width) for rows, width in layout.rows])
    order = torch.argsort(keys, stable=True, descending=largest)
    fitting = widths[order].cumsum(0) <= k
    chosen = torch.zeros(len(keys), dtype=torch.bool)
    chosen[order[fitting]] = True
    # Tensor by tensor, because `repeat_interleave` would want eight bytes a weight.
    flags = torch.empty(layout.total, dtype=torch.bool)
    chosen_of = chosen.split([rows for rows, _ in layout.rows])
    for part, shape, rows_chosen in zip(flags.split(layout.sizes), layout.rows, chosen_of, strict=True):
        part.view(shape).copy_(rows_chosen[:, None])
    return flags


def select(
    layout: Layout,
    strategy: Strategy,
    keep: float,
    *,
    granularity: Granularity = "element",
    layers: float = 1.0,
    scores: torch.Tensor | None = None,
    weights: Mapping[str, torch.Tensor] | None = None,
    seed: int = 0,
) -> torch.Tensor:
    """bool [P] with `round(keep * P)` weights set: exactly so for elements; for rows, as many whole rows as fit.

    Args:
        strategy: `least_sensitive` (TaLoS), `least_sensitive_per_tensor` (the same share of every tensor),
            `most_sensitive` (an ablation), `random`, `magnitude` (the smallest absolute values: what a
            pruning criterion without data would call unimportant), `all` (dense; `keep` is ignored).
        granularity: `element` (the paper), or `row`: whole output rows of a matrix, in the order of their *mean*
            score. So rows of different lengths compete fairly, and for a budget of k weights the total
            sensitivity is the least. A vector's rows are its elements.
        layers: share of the blocks, those nearest the output, that the weights are taken from (see `Layout.closed`).
        scores: float32 [P], for the sensitivity strategies; overwritten where `layers` is not 1.
        weights: the base by name, for `magnitude`.
        seed: for `random`.

    Raises:
        ValueError: the blocks hold fewer weights, or as `smallest`.
    """
    if closed := layout.closed(layers):
        left = layout.without(closed)
        share = keep * layout.total / left.total
        if share > 1 and strategy != "all":
            raise ValueError(
                f"cannot keep {keep:g} of {layout.total} weights in {layers:g} of the layers, which hold {left.total};"
                " keep less, or open more layers"
            )
        selected = select(
            left,
            strategy,
            share,
            granularity=granularity,
            scores=None if scores is None else _moved_to_front(layout, closed, scores),
            weights=weights,
            seed=seed,
        )
        return _spread(layout, left, selected)
    if strategy == "all":
        return torch.ones(layout.total, dtype=torch.bool)
    k = round(keep * layout.total)
    if strategy == "random":
        return _random(layout, k, granularity, seed)
    if strategy == "magnitude":
        assert weights is not None  # as the argument's description asks
        scores = _magnitudes(layout, weights)
    assert scores is not None  # the same
    if strategy == "least_sensitive_per_tensor":
        return _by_tensor(layout, scores, k, granularity)
    return _lowest(layout, scores, k, strategy == "most_sensitive", granularity)


def _spread(layout: Layout, part: Layout, flags: torch.Tensor) -> torch.Tensor:
    """bool [P] of a layout from those of a part of its parameters; no other weight is set."""
    spread = torch.zeros(layout.total, dtype=torch.bool)
    places = layout.split(spread)
    for name, selected in part.split(flags).items():
        places[name].copy_(selected)
    return spread


def _random(layout: Layout, k: int, granularity: Granularity, seed: int) -> torch.Tensor:
    """bool [P]: weights, or rows, drawn by seed."""
    generator = torch.Generator().manual_seed(seed)
    if granularity == "element":
        return smallest(torch.rand(layout.total, generator=generator), k)
    rows = sum(rows for rows, _ in layout.rows)
    return _smallest_rows(layout, torch.rand(rows, generator=generator), k, largest=False)


def _moved_to_front(layout: Layout, closed: Collection[str], scores: torch.Tensor) -> torch.Tensor:
    """The scores of the parameters that are not closed, side by side, in the memory of `scores`: a copy of them all
    may not fit in."""
    end = 0
    for name, part in layout.split(scores).items():
        if name not in closed:
            # Cloned, because a large part overlaps the place that it moves to.
            scores[end : end + len(part)] = part.clone()
            end += len(part)
    return scores[:end]


def _magnitudes(layout: Layout, weights: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """float32 [P]: the absolute values of the weights."""
    scores = torch.empty(layout.total)
    for name, part in layout.split(scores).items():
        part.copy_(weights[name].detach().reshape(-1)).abs_()
    return scores


def _by_tensor(layout: Layout, scores: torch.Tensor, k: int, granularity: Granularity) -> torch.Tensor:
    """bool [P]: the lowest of every tensor, the same share of each."""
    flags = torch.empty(layout.total, dtype=torch.bool)
    flags_of = layout.split(flags)
    scores_of = layout.split(scores)
    counts = shares(layout.sizes, k)
    for name, shape, count in zip(layout.names, layout.shapes, counts, strict=True):
        alone = Layout((name,), (shape,))
        flags_of[name].copy_(_lowest(alone, scores_of[name], count, False, granularity))
    return flags


def _lowest(layout: Layout, scores: torch.Tensor, k: int, largest: bool, granularity: Granularity) -> torch.Tensor:
    """bool [P]: the k weights of the smallest (or largest) scores, or as many whole rows as fit, by their means."""
    if granularity == "element":
        return smallest(scores, k, largest)
    means = []
    for part, (rows, width) in zip(scores.split(layout.sizes), layout.rows, strict=True):
        means.append(part.view(rows, width).mean(1))
    return _smallest_rows(layout, torch.cat(means), k, largest)


def round_keep(keep: float, r: int, rounds: int) -> float:
    """Share of weights kept after round r of R (1-based): keep^(r/R) (TaLoS, iterative calibration)."""
    share: float = keep ** (r / rounds)
    return share
