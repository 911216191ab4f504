"""What the rest of the system needs to know about a model, and what some models can beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn


class Family(Protocol):
    """What the rest of the system needs to know about a model.

    `module` holds every weight; the eligible ones stand under `edited` (name prefixes). `head_words` says what a head
    is. Where `words_are_linear`, its `logits` are `features @ head.T`: one forward serves all tasks of a merge.
    """

    module: nn.Module
    edited: tuple[str, ...]
    head_words: str
    words_are_linear: bool

    def preprocess(self, examples: list[Any]) -> torch.Tensor:
        """Raw examples (PIL images, or texts) -> inputs [n, ...] on the CPU, of the same shape for every batch."""

    def head(self, phrases: Sequence[str], prompts: Sequence[str]) -> torch.Tensor:
        """What a task's classes are scored with, frozen: [classes, ...], from class phrases and prompt templates."""

    def features(self, inputs: torch.Tensor) -> torch.Tensor:
        """Inputs [n, ...] -> what the model makes of them, [n, d]; a linear probe looks at it."""

    def logits(self, inputs: torch.Tensor, head: torch.Tensor) -> torch.Tensor:
        """Inputs [n, ...] -> logits [n, classes]."""

    def save(self, folder: Path) -> None:
        """Write the whole model, as its own library loads it."""


@runtime_checkable
class TextFamily(Protocol):
    """What a family can whose inputs are padded."""

    def shorten(self, inputs: torch.Tensor) -> torch.Tensor:
        """Inputs [n, tokens] of a batch -> the same without the padding that none of them needs."""


@runtime_checkable
class AnswerFamily(Protocol):
    """What a family can that answers in words: it is its own head, and has no features that one could lie on."""

    def sampled(self, inputs: torch.Tensor, head: torch.Tensor, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Inputs [n, ...], with an answer to each that is drawn from what the model itself would say."""

    def likelihood(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Log-probability [n, 1] of the answers that `sampled` gives."""

    def sums(self, inputs: torch.Tensor, head: torch.Tensor) -> torch.Tensor:
        """Inputs [n, ...] -> log-probabilities of whole answers [n, classes], whose mean over an answer's tokens is
        `logits`."""

    def completed(self, batch: dict[str, torch.Tensor], head: torch.Tensor) -> torch.Tensor:
        """Logits [n, 1] of one class each: `inputs` and their `labels` [n]."""
