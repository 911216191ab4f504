"""Names and order: which weights may change, where each stands in the flat order, and fingerprints.

The *canonical order* is by parameter name, and row-major inside a parameter. Masks, deltas, ties and
fingerprints all use it, so they do not depend on how a model happened to be built.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class Layout:
    """The eligible parameters in canonical order: `names[i]` fills `[offsets[i], offsets[i+1])` of the P weights."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(int(torch.Size(s).numel()) for s in self.shapes)

    @property
    def rows(self) -> tuple[tuple[int, int], ...]:
        """(output rows, weights in each) of every parameter; the rows of a vector are its elements."""
        return tuple((s[0], n // s[0]) for s, n in zip(self.shapes, self.sizes, strict=True))

    @property
    def total(self) -> int:
        """P, the number of eligible weights."""
        return sum(self.sizes)

    def split(self, flat: torch.Tensor) -> dict[str, torch.Tensor]:
        """Views of a flat [P] tensor, one a parameter."""
        return dict(zip(self.names, flat.split(self.sizes), strict=True))

    def without(self, names: Collection[str]) -> Layout:
        """The same without some parameters."""
        left = [(n, s) for n, s in zip(self.names, self.shapes, strict=True) if n not in names]
        return Layout(tuple(n for n, _ in left), tuple(s for _, s in left))

    def closed(self, layers: float) -> set[str]:
        """Parameters that stay as they are where only a share of the blocks, those nearest the output, may change. The
        last one always may; what stands outside the blocks goes with the first."""
        depth = depths(self.names)
        last = max(depth.values(), default=0)
        lowest = min(round((1 - layers) * (1 + last)), last)
        return {n for n, d in depth.items() if d < lowest}

    def room(self, layers: float) -> float:
        """Share of the P weights that a share of the blocks leaves open, in (0, 1]."""
        return self.without(self.closed(layers)).total / self.total

    def cut(self, most: int) -> Iterator[Layout]:
        """Parts of whole parameters, in order, with at most `most` weights each, or one larger parameter."""
        start = size = 0
        for i, n in enumerate(self.sizes):
            if size and size + n > most:
                yield Layout(self.names[start:i], self.shapes[start:i])
                start = i
                size = 0
            size += n
        yield Layout(self.names[start:], self.shapes[start:])


def depths(names: Sequence[str]) -> dict[str, int]:
    """Parameter -> its block, by the first number between dots in its name, or after the word for a layer
    (`layer3.0.conv1`); 0 where there is none."""
    found = {n: re.search(r"(?:^|\.)(?:layer|stage|block)?(\d+)\.", n) for n in names}
    return {n: int(match[1]) if match else 0 for n, match in found.items()}


_KINDS = (
    nn.Linear, nn.MultiheadAttention, nn.LayerNorm, nn.GroupNorm,
    nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase, nn.RMSNorm,
)  # fmt: skip


def is_rms_norm(m: nn.Module) -> bool:
    """Every library writes a class of its own; they are known by their names' ends."""
    own = list(m.named_parameters(recurse=False))
    if not type(m).__name__.endswith(("RMSNorm", "T5LayerNorm")) or [name for name, _ in own] != ["weight"]:
        return False
    _, weight = own[0]
    return weight.ndim == 1


def eligible_layout(module: nn.Module, prefix: str | tuple[str, ...] = "") -> Layout:
    """Linear, attention, convolution and normalisation parameters under `prefix` (one of them), in canonical order.

    Embeddings, class tokens and bare projection parameters are not eligible (design, section 2). A
    parameter that is also somebody's embedding (tied weights) is not eligible either.
    """
    embeddings = {
        id(p) for m in module.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag) for p in m.parameters()
    }
    owned = {
        id(p)
        for m in module.modules()
        if isinstance(m, _KINDS) or type(m).__name__ == "Conv1D" or is_rms_norm(m)
        for p in m.parameters()
    }
    found = sorted((n, p) for n, p in module.named_parameters() if n.startswith(prefix) and id(p) in owned - embeddings)
    return Layout(tuple(n for n, _ in found), tuple(tuple(p.shape) for _, p in found))


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """The raw bytes of a tensor, row-major, without a copy where it is contiguous on the CPU."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")


def fingerprint(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 (hex) over names, dtypes, shapes and bytes in canonical order."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        header = json.dumps([name, str(tensor.dtype), list(tensor.shape)])
        digest.update(header.encode() + b"\n")
        digest.update(tensor_bytes(tensor))
    return digest.hexdigest()


def key_of(value: object) -> str:
    """SHA-256 (hex) of a JSON value: the address of a stage's result by its inputs."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
