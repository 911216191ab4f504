"""Randomness that is a function of what it is for, never of what ran before."""

from __future__ import annotations

import hashlib

import torch


def derive_seed(*parts: object) -> int:
    """A 63-bit seed from any parts, the same on every machine and Python process."""
    # Not by `hash`, which Python salts anew in every process.
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def sampled_rows(n: int, most: int) -> torch.Tensor:
    """At most `most` of n row numbers (int64, ascending), always the same ones. Drawn, because every second row of
    data whose classes take turns has half of the classes."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(n))
    return order[:most].sort().values
