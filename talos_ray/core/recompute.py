"""Gradient checkpointing: a block keeps its inputs only, and its forward runs again in the backward (Chen et al.,
2016, arXiv 1604.06174)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

Forward = Callable[..., Any]  # of any module: what it takes and gives is the model's own


def blocks_of(module: nn.Module, edited: Sequence[str]) -> list[nn.Module]:
    """The blocks of the edited part: modules made of others, in the outermost lists of them.

    Args:
        edited: name prefixes, as `models.Family` has them.
    """
    outermost: list[str] = []
    blocks = []
    for name, part in module.named_modules():
        if not isinstance(part, nn.ModuleList | nn.Sequential) or not f"{name}.".startswith(tuple(edited)):
            continue
        # A list within a block runs again with it. Outer modules are named before those that they hold.
        if any(name.startswith(f"{outer}.") for outer in outermost):
            continue
        outermost.append(name)
        # A layer without parts keeps little for its backward: to run it again would only cost time.
        blocks += [block for block in part.children() if next(block.children(), None) is not None]
    return blocks


@contextmanager
def wrapped(blocks: Sequence[nn.Module], wrap: Callable[[Forward], Forward]) -> Iterator[None]:
    """Blocks whose forward goes through `wrap` inside."""
    for block in blocks:
        block.forward = wrap(block.forward)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


def recomputing(forward: Forward) -> Forward:
    """A forward that keeps its inputs only. Its values stay, and so do the bits of a training that is deterministic."""
    return lambda *args, **named: checkpoint(forward, *args, use_reentrant=False, **named)
