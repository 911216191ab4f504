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
        return tuple((shape[0], size // shape[0]) for shape, size in zip(self.shapes, self.sizes, strict=True))

    @property
    def total(self) -> int:
        """P, the number of eligible weights."""
        return sum(self.sizes)

    def split(self, flat: torch.Tensor) -> dict[str, torch.Tensor]:
        """Views of a flat [P] tensor, one a parameter."""
        return dict(zip(self.names, flat.split(self.sizes), strict=True))

    def without(self, names: Collection[str]) -> Layout:
        """The same without some parameters."""
        places = [i for i, name in enumerate(self.names) if name not in names]
        return Layout(tuple(self.names[i] for i in places), tuple(self.shapes[i] for i in places))

    def closed(self, layers: float) -> set[str]:
        """Parameters that stay as they are where only a share of the blocks, those nearest the output, may change. The
        last one always may; what stands outside the blocks goes with the first."""
        depth = depths(self.names)
        last = max(depth.values(), default=0)
        lowest_open = min(round((1 - layers) * (1 + last)), last)
        return {name for name, block in depth.items() if block < lowest_open}

    def room(self, layers: float) -> float:
        """Share of the P weights that a share of the blocks leaves open, in (0, 1]."""
        return self.without(self.closed(layers)).total / self.total

    def cut(self, most: int) -> Iterator[Layout]:
        """Parts of whole parameters, in order, with at most `most` weights each, or one larger parameter."""
        start = 0
        weights = 0
        for i, size in enumerate(self.sizes):
            if weights and weights + size > most:
                yield Layout(self.names[start:i], self.shapes[start:i])
                start = i
                weights = 0
            weights += size
        yield Layout(self.names[start:], self.shapes[start:])


def depths(names: Sequence[str]) -> dict[str, int]:
    """Parameter -> its block, by the first number between dots in its name, or after the word for a layer
    (`layer3.0.conv1`); 0 where there is none."""
    depth = {}
    for name in names:
        match = re.search(r"(?:^|\.)(?:layer|stage|block)?(\d+)\.", name)
        depth[name] = int(match[1]) if match else 0
    return depth


_KINDS = (
    nn.Linear, nn.MultiheadAttention, nn.LayerNorm, nn.GroupNorm,
    nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase, nn.RMSNorm,
)  # fmt: skip


def is_rms_norm(m: nn.Module) -> bool:
    """Every library writes a class of its own; they are known by their names' ends."""
    if not type(m).__name__.endswith(("RMSNorm", "T5LayerNorm")):
        return False
    own = list(m.named_parameters(recurse=False))
    # A namesake may have a bias, or a weight that is no vector: it computes something else.
    if [name for name, _ in own] != ["weight"]:
        return False
    _, weight = own[0]
    return weight.ndim == 1


def eligible_layout(module: nn.Module, prefix: str | tuple[str, ...] = "") -> Layout:
    """Linear, attention, convolution and normalisation parameters under `prefix` (one of them), in canonical order.

    Embeddings, class tokens and bare projection parameters are not eligible (design, section 2). A
    parameter that is also somebody's embedding (tied weights) is not eligible either.
    """
    # By identity, because a tied weight has one name only, and it may be that of the linear layer.
    embedded: set[int] = set()
    layered: set[int] = set()
    for layer in module.modules():
        if isinstance(layer, nn.Embedding | nn.EmbeddingBag):
            embedded.update(map(id, layer.parameters()))
        # transformers' GPT-2 has a Conv1D of its own, which is a linear layer.
        if isinstance(layer, _KINDS) or type(layer).__name__ == "Conv1D" or is_rms_norm(layer):
            layered.update(map(id, layer.parameters()))
    eligible = layered - embedded
    shapes: dict[str, tuple[int, ...]] = {}
    for name, parameter in module.named_parameters():
        if name.startswith(prefix) and id(parameter) in eligible:
            shapes[name] = tuple(parameter.shape)
    names = tuple(sorted(shapes))
    return Layout(names, tuple(shapes[name] for name in names))


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """The raw bytes of a tensor, row-major, without a copy where it is contiguous on the CPU."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    # numpy knows no bfloat16, so every dtype is read as bytes; it gives no buffer of an empty array.
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")


def fingerprint(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 (hex) over names, dtypes, shapes and bytes in canonical order."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        # Without the header, two tensors side by side would have the hash of one that is as long as both.
        header = json.dumps([name, str(tensor.dtype), list(tensor.shape)])
        digest.update(header.encode() + b"\n")
        digest.update(tensor_bytes(tensor))
    return digest.hexdigest()


def key_of(value: object) -> str:
    """SHA-256 (hex) of a JSON value: the address of a stage's result by its inputs."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
