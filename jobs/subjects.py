"""The models that are measured, with random weights, and the masks they are measured under."""

from collections.abc import Callable
from dataclasses import dataclass

import open_clip
import torch
import torch.nn.functional as F
from torch import nn
from transformers import BertConfig, BertModel

from jobs.measuring import DEVICE, KEEP
from talos_ray.core.fisher import SquaredGradients
from talos_ray.core.layout import Layout
from talos_ray.core.mask import Mask, mask_from_flags, select

CLASSES = 100


@dataclass(frozen=True)
class Subject:
    """A model that is measured.

    Args:
        draw: number of samples -> inputs.
        features: inputs -> [n, d].
        width: d.
        lowest: a small parameter below every eligible matrix.
    """

    module: nn.Module
    draw: Callable[[int], torch.Tensor]
    features: Callable[[torch.Tensor], torch.Tensor]
    width: int
    lowest: str


def tower() -> Subject:
    """The image tower of open_clip's ViT-B/32: 50 positions a sample."""
    torch.manual_seed(0)
    module = open_clip.create_model("ViT-B-32", pretrained=None).visual.to(DEVICE).eval()
    return Subject(module, lambda n: torch.randn(n, 3, 224, 224, device=DEVICE), module, 512, "class_embedding")


def bert() -> Subject:
    """BERT-base, 64 tokens a sample."""
    torch.manual_seed(0)
    module = BertModel(BertConfig(), add_pooling_layer=False).to(DEVICE).eval()
    return Subject(
        module,
        lambda n: torch.randint(1000, 30000, (n, 64), device=DEVICE),
        lambda ids: module(ids).last_hidden_state[:, 0],
        768,
        "embeddings.LayerNorm.bias",
    )


def mask_of(kind: str, layout: Layout) -> Mask:
    """The layouts a mask can have: whole 'rows', whole matrices ('clustered'), single weights anywhere ('scattered'), and
    'query_key', what the paper's mask looks like on pretrained weights: single weights, in query and key matrices only."""
    flags = torch.zeros(layout.total, dtype=torch.bool)
    if kind == "clustered":
        left = round(KEEP * layout.total)
        for name, part in layout.split(flags).items():
            if name.endswith(("in_proj_weight", "query.weight", "key.weight")) and part.numel() <= left:
                part[:] = True
                left -= part.numel()
    elif kind == "query_key":
        for (name, part), shape in zip(layout.split(flags).items(), layout.shapes, strict=True):
            if name.endswith("in_proj_weight"):
                part.view(shape)[: shape[0] * 2 // 3] = True
        scores = torch.where(flags, torch.rand(layout.total, generator=torch.Generator().manual_seed(0)), 2.0)
        flags = select(layout, "least_sensitive", KEEP, scores=scores)
    else:
        flags = select(layout, "random", KEEP, granularity="row" if kind == "rows" else "element")
    return mask_from_flags(layout, flags)


def classifier(subject: Subject) -> Callable[[torch.Tensor], torch.Tensor]:
    """inputs -> logits [n, CLASSES] by a frozen head, as CLIP makes them."""
    generator = torch.Generator().manual_seed(1)
    head = F.normalize(torch.randn(subject.width, CLASSES, generator=generator), dim=0).to(DEVICE) * 100
    return lambda x: F.normalize(subject.features(x), dim=-1) @ head


def paper_mask(subject: Subject, layout: Layout) -> Mask:
    scores = SquaredGradients(subject.module, layout)
    scores.add(classifier(subject), subject.draw(16), torch.Generator().manual_seed(0))
    return mask_from_flags(layout, select(layout, "least_sensitive", KEEP, scores=scores.sums.cpu()))
