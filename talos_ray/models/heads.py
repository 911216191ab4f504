"""What a task's classes are scored with: the family's own head of their words, or a linear layer on its features. Frozen, either way."""

from __future__ import annotations

from collections.abc import Callable

import torch

from talos_ray.core.layout import key_of
from talos_ray.core.probe import linear_head
from talos_ray.inputs import Examples
from talos_ray.models import Family
from talos_ray.tasks import TaskData

INPUTS = 1024  # training inputs that a linear head is fitted to, at most
BATCH = 64  # of them, at once
LINEAR_WORDS = "linear layer [classes, d + 1]: `features @ head[:, :-1].T + head[:, -1]` are the logits"


def head_key(base: str, data: TaskData) -> str:
    """Address of a task's head: base (a fingerprint), and what it is made of."""
    if data.task.head == "linear":
        return key_of([base, "linear", INPUTS, data.classes, data.train.fingerprint()])
    return key_of([base, data.phrases, data.task.prompts])


@torch.no_grad()
def make_head(family: Family, data: TaskData, seed: int) -> torch.Tensor:
    """A task's head, float32 [classes, d] (`words`) or [classes, d + 1] (`linear`); what else a family makes of words, it says.

    A linear head is fitted to the base before anything is edited, so that fine-tuning does not begin with a random layer, which
    would distort the features (Kumar et al., 2022, "LP-FT").
    """
    if data.task.head == "words":
        return family.head(data.phrases, data.task.prompts)
    drawn = data.train.drawn(INPUTS, seed, data.task.name, "head")
    examples = Examples(drawn, family.preprocess)
    parts = torch.arange(len(drawn)).split(BATCH)
    features = torch.cat([family.features(examples.batch(index)[0]).float() for index in parts])
    return linear_head(features, drawn.labels, len(data.classes))


def scorer(family: Family, kind: str, head: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """inputs [n, ...] -> logits [n, classes] under a task's head of a kind ('words' or 'linear')."""
    if kind == "linear":
        return lambda inputs: family.features(inputs) @ head[:, :-1].T + head[:, -1]
    return lambda inputs: family.logits(inputs, head)


def as_linear(family: Family, kind: str, head: torch.Tensor) -> torch.Tensor | None:
    """A task's head as a linear layer on the features, [classes, d + 1]; None where a family's words are scored in another way."""
    if kind == "linear":
        return head
    if not getattr(family, "words_are_linear", False):
        return None
    return torch.cat([head, head.new_zeros(len(head), 1)], 1)


def has_features(family: Family) -> bool:
    """Whether a task can have a linear head of its own. A model that writes its answers is its own head."""
    return not hasattr(family, "sampled")
