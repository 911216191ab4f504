"""Models that write text: a class is an answer, and answers are ranked by their likelihood. What T5-like models and
causal LMs share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from talos_ray.config import CHOICE, filled
from talos_ray.core.fisher import sample_labels
from talos_ray.errors import SpecError
from talos_ray.models.hf import PAD, Model, padded, used


class Ranked:
    """Rank classification, as T-Few has it (Liu et al., 2022); a family says how a model reads a text and answers to
    it.

    Inputs are token ids int64 [n, length]; where every row brings answers of its own, `length // 4` more a class
    follow. A head holds the answers of a task whose rows bring none: token ids int64 [classes, a]. PAD stands for no
    token.
    """

    module: Model
    length: int
    words_are_linear = False

    def answered(self, text: torch.Tensor, said: torch.Tensor) -> torch.Tensor:
        """Texts [n, length] and answers to each [n, c, a] -> logits [n * c, a, V] of the answers' tokens."""
        raise NotImplementedError

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of texts."""
        raise NotImplementedError

    def answer_tokens(self, answers: Sequence[str]) -> list[list[int]]:
        """Token ids of answers."""
        raise NotImplementedError

    def preprocess(self, examples: list[Any]) -> torch.Tensor:
        texts = []
        answers: list[str] = []  # of all rows, one row's after the other's
        for example in examples:
            text, *choices = example.split(CHOICE)
            texts.append(text)
            answers += choices
        ids = padded(self.tokens(texts), self.length)
        if not answers:
            return ids
        # Every answer has the same room, and every row the same number of them: so they are parted again by a view.
        room = self.length // 4
        rows = [row[:room] for row in written(answers, self.answer_tokens(answers))]
        return torch.cat([ids, padded(rows, room).view(len(ids), -1)], 1)

    def shorten(self, inputs: torch.Tensor) -> torch.Tensor:
        """Texts alone: answers of their own stand behind the whole length."""
        return inputs[:, : used(inputs != PAD)] if inputs.shape[1] == self.length else inputs

    def head(self, phrases: Sequence[str], prompts: Sequence[str]) -> torch.Tensor:
        if len(prompts) != 1:
            raise SpecError(
                f"a model that ranks answers: {len(prompts)} prompts are given; wanted one, because answers are texts "
                "and have no mean; keep the best"
            )
        answers = [filled(prompts[0], phrase) for phrase in phrases]
        return padded(written(answers, self.answer_tokens(answers)))

    def logits(self, inputs: torch.Tensor, head: torch.Tensor) -> torch.Tensor:
        """Mean log-probability of the tokens of every answer: the mean, so that a long answer is not worse for being
        long."""
        text, said = self._parted(inputs, head)
        sums, counts = self._likelihood(text, said)
        return sums / counts

    def sums(self, inputs: torch.Tensor, head: torch.Tensor) -> torch.Tensor:
        """Log-probability of every answer, which the published TaLoS code ranks by (nlp/eval/eval.py: no length
        normalisation)."""
        return self._likelihood(*self._parted(inputs, head))[0]

    def completed(self, batch: dict[str, torch.Tensor], head: torch.Tensor) -> torch.Tensor:
        """`logits` [n, 1] of one class each: `inputs` and their `labels` [n]."""
        text, said = self._parted(batch["inputs"], head)
        rows = torch.arange(len(said), device=said.device)
        right = said[rows, batch["labels"]]  # [n, a]
        sums, counts = self._likelihood(text, right[:, None])
        return sums / counts

    @torch.no_grad()
    def sampled(self, inputs: torch.Tensor, head: torch.Tensor, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """The inputs with answers [n, 1, a] that the model writes itself: token by token, until it ends or has written
        as much as the longest of the answers there are. `generator` lives on the CPU."""
        text, said = self._parted(inputs, head)
        answers = torch.full_like(said[:, :1], PAD)
        ends = torch.tensor(self._ends(), device=said.device)
        writing = torch.ones(len(text), dtype=torch.bool, device=said.device)
        for position in range(answers.shape[-1]):
            logits = self.answered(text, answers[..., : position + 1])  # [n, position + 1, V]
            # Drawn for all rows, also for those that have ended: what one draws does not depend on the others.
            token = sample_labels(logits[:, position], generator)
            answers[writing, 0, position] = token[writing]
            writing &= ~torch.isin(token, ends)
        return {"inputs": inputs, "answers": answers}

    def likelihood(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Log-probability [n, 1] of whole answers: of what `sampled` gives."""
        return self._likelihood(batch["inputs"][:, : self.length], batch["answers"])[0]

    def _ends(self) -> list[int]:
        """The tokens that end an answer; a checkpoint may name none, one or several."""
        ends = self.module.config.eos_token_id
        if ends is None:
            return []
        return [ends] if isinstance(ends, int) else list(ends)

    def _parted(self, inputs: torch.Tensor, head: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Texts [n, length] and the answers to each [n, classes, a]: those of the rows, or the head's."""
        text = inputs[:, : self.length]
        choices = inputs[:, self.length :]
        if not choices.shape[1]:
            return text, head.expand(len(text), *head.shape)
        said = choices.unflatten(1, (-1, self.length // 4))
        # Without the columns that no answer uses; where there are only shapes, nobody can tell which.
        longest = said.shape[-1] if said.is_meta else int((said != PAD).sum(-1).max())
        return text, said[..., :longest]

    def _likelihood(self, text: torch.Tensor, said: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Sum of the log-probabilities of the tokens of answers to each text, and how many there are: [n, c] both."""
        there = said != PAD
        logits = self.answered(text, said).float()  # [n * c, a, V]
        tokens = said.clamp(min=0).flatten()  # PAD is no token: what it costs is left out of the sum
        costs = nn.functional.cross_entropy(logits.flatten(0, 1), tokens, reduction="none")
        costs = costs.view_as(said)
        return -(costs * there).sum(-1), there.sum(-1)


def written(said: Sequence[str], rows: list[list[int]]) -> list[list[int]]:
    """The answers' token ids. Raises SpecError if the tokenizer makes nothing of one."""
    for answer, row in zip(said, rows, strict=True):
        if not row:
            raise SpecError(
                f"answer {answer!r} has no tokens; wanted a text; give the task other phrases, or correct the row's "
                "choices"
            )
    return rows
