"""What a task's classes are scored with: the family's own head of their words, or a linear layer on its features.
Frozen, either way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from talos_ray.core.layout import key_of
from talos_ray.core.probe import linear_head, scored
from talos_ray.errors import SpecError
from talos_ray.inputs import Examples
from talos_ray.models.family import AnswerFamily, Family
from talos_ray.tasks import TaskData

INPUTS = 1024  # training inputs that a linear head is fitted to, at most
BATCH = 64  # of them, at once
SAME = 1e-5  # difference of two rows, as a part of the largest value, that is no difference
SHOWN = 4  # classes that a message names
REWORD = "give them other phrases (`phrases`, `prompts`)"
LINEAR_WORDS = "linear layer [classes, d + 1]: `features @ head[:, :-1].T + head[:, -1]` are the logits"


def head_key(base: str, data: TaskData) -> str:
    """Address of a task's head: base (a fingerprint), and what it is made of."""
    if data.task.head == "linear":
        return key_of([base, "linear", INPUTS, data.classes, data.train.fingerprint()])
    return key_of([base, data.phrases, data.task.prompts])


@torch.no_grad()
def make_head(family: Family, data: TaskData, seed: int) -> torch.Tensor:
    """A task's head, float32 [classes, d] (`words`) or [classes, d + 1] (`linear`); what else a family makes of words,
    it says.

    A linear head is fitted to the base before anything is edited, so that fine-tuning does not begin with a random
    layer, which would distort the features (Kumar et al., 2022, "LP-FT").
    """
    if data.task.head == "words":
        return family.head(data.phrases, data.task.prompts)
    drawn = data.train.drawn(INPUTS, seed, data.task.name, "head")
    examples = Examples(drawn, family.preprocess)
    parts = []
    for index in torch.arange(len(drawn)).split(BATCH):
        inputs, _ = examples.batch(index)
        parts.append(family.features(inputs).float())
    return linear_head(torch.cat(parts), drawn.labels, len(data.classes))


def check_head(family: Family, data: TaskData, head: torch.Tensor) -> None:
    """Raises SpecError, naming them, where two classes are scored alike, whatever the reason: one of them would never
    be answered."""
    if data.task.choices is not None:  # every row brings its own answers
        return
    rows = head.flatten(1) if head.ndim > 1 else head[:, None]  # [classes, ...]
    odd = torch.nonzero(~rows.isfinite().all(1)).flatten().tolist()
    if odd:
        raise SpecError(
            f"task {data.task.name!r}: the head of {_told(data, odd)} holds NaN or infinite values; wanted finite "
            f"ones; {REWORD}, or mend the model"
        )
    if rows.is_floating_point():
        # In steps of what rounding does, so that heads are equal that differ by less.
        largest = rows.abs().max().clamp(min=1e-30)
        rows = (rows.float() / largest / SAME).round()
    _, group, counts = torch.unique(rows, dim=0, return_inverse=True, return_counts=True)
    if (counts > 1).any():
        alike = torch.nonzero(group == counts.argmax()).flatten().tolist()
        why = "they look the same to the model, or differ only behind the end of what it reads"
        if data.task.head == "linear":
            why = "there is nothing in the training data to tell them apart"
        raise SpecError(f"task {data.task.name!r}: {_told(data, alike)} have the same head: {why}; {REWORD}")
    unknown = _unknown(family, data) if data.task.head == "words" else []
    if len(unknown) > 1:
        raise SpecError(
            f"task {data.task.name!r}: {_told(data, unknown)} are made of words that the model's tokenizer does not "
            f"know; {REWORD}"
        )


def _told(data: TaskData, classes: list[int]) -> str:
    shown = ", ".join(f"{data.classes[i]!r} ({data.phrases[i]!r})" for i in classes[:SHOWN])
    more = f" and {len(classes) - SHOWN} more" if len(classes) > SHOWN else ""
    return f"classes {shown}{more}"


def _unknown(family: Family, data: TaskData) -> list[int]:
    """Classes whose phrases are nothing but the tokenizer's token for what it does not know."""
    tokenizer: Any = getattr(family, "tokenizer", None)
    unknown = getattr(tokenizer, "unk_token_id", None)
    if unknown is None or not hasattr(tokenizer, "get_vocab") or "numbers" in family.head_words:
        return []
    rows = tokenizer(list(data.phrases), add_special_tokens=False).input_ids
    return [i for i, row in enumerate(rows) if row and set(row) == {unknown}]


def scorer(family: Family, kind: str, head: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """inputs [n, ...] -> logits [n, classes] under a task's head of a kind (`config.scoring`)."""
    if kind == "linear":
        return lambda inputs: scored(family.features(inputs).float(), head)
    if kind == "sums" and isinstance(family, AnswerFamily):
        return lambda inputs: family.sums(inputs, head)
    return lambda inputs: family.logits(inputs, head)


def answering(family: Family, kind: str, head: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """inputs [n, ...] -> logits float32 [n, classes], by the very products that versions are scored with: words that
    are linear are a linear head there, because one forward serves all heads of a task."""
    linear = as_linear(family, kind, head)
    if linear is not None:
        return scorer(family, "linear", linear)
    logits = scorer(family, kind, head)
    return lambda inputs: logits(inputs).float()


def as_linear(family: Family, kind: str, head: torch.Tensor) -> torch.Tensor | None:
    """A task's head as a linear layer on the features, [classes, d + 1]; None where a family's words are scored in
    another way."""
    if kind == "linear":
        return head
    if not family.words_are_linear:
        return None
    return torch.cat([head, head.new_zeros(len(head), 1)], 1)


def has_features(family: Family) -> bool:
    """Whether a task can have a linear head of its own. A model that writes its answers is its own head."""
    return not isinstance(family, AnswerFamily)
