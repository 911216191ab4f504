"""Sequence classification checkpoints of Hugging Face transformers, as they are: the blocks are edited, the classifier
is the frozen head."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification

from talos_ray.config import shortly
from talos_ray.errors import SpecError, nearest
from talos_ray.models.hf import PAD, Model, Tokenizer, attended, blocks, cut, filler, padded, stacks, used

AUTO = AutoModelForSequenceClassification


class Classifier:
    """An encoder (or a decoder, or both) with a classifier on top, and its tokenizer (see `models.Family`). Tasks
    share its labels, or some of them.

    Inputs are token ids int64 [n, length], PAD where a text ends; a head holds the numbers of a task's labels, int64
    [classes].
    """

    words_are_linear = False
    head_words = "numbers [classes] of the checkpoint's own labels; logits are its classifier's, at these"

    def __init__(self, module: Model, tokenizer: Tokenizer, length: int) -> None:
        self.module: Model = module.eval()
        self.tokenizer = tokenizer
        self.length = length
        self.frame = tokenizer("").input_ids  # what stands around every text
        self.edited = stacks(module) if module.config.is_encoder_decoder else (f"{blocks(module)}.",)
        # A decoder is read at the last token that is not its padding: so there has to be one.
        if module.config.pad_token_id is None:
            # What ends every text stands for none: the decoder would be read before it.
            known = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0, 1)
            module.config.pad_token_id = filler(module, *(token for token in known if token not in self.frame[-1:]))

    def preprocess(self, examples: list[Any]) -> torch.Tensor:
        """Raises SpecError for a text that holds the word by which an encoder-decoder tells where a text ends: it is
        read there, so there has to be one of it."""
        ids = self.tokenizer(list(examples), truncation=True, max_length=self.length).input_ids
        end = self.module.config.eos_token_id
        if self.module.config.is_encoder_decoder and end is not None:
            most = self.frame.count(end)
            pairs = zip(examples, ids, strict=True)
            if odd := [text for text, tokens in pairs if tokens.count(end) > most]:
                word = self.tokenizer.convert_ids_to_tokens(end)
                raise SpecError(
                    f"text {shortly(odd[0])} holds {word!r}, by which this model knows where a text ends; wanted texts "
                    "without it; take it out"
                )
        return padded(ids, self.length)

    def head(self, phrases: Sequence[str], prompts: Sequence[str]) -> torch.Tensor:
        """Raises SpecError if a class is none of the checkpoint's labels."""
        known = {str(label).lower(): int(i) for i, label in self.module.config.id2label.items()}
        for phrase in phrases:
            if phrase.lower() not in known:
                raise SpecError(
                    f"class {phrase!r} is no label of this classifier{nearest(phrase.lower(), known)}; it has: "
                    f"{', '.join(list(known)[:12])}; "
                    f"name the task's classes so, or give `phrases` in their order"
                )
        return torch.tensor([known[phrase.lower()] for phrase in phrases])

    def shorten(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs[:, : used(inputs != PAD)]

    def features(self, inputs: torch.Tensor) -> torch.Tensor:
        """Mean of the last block's states over the tokens."""
        ids, there = cut(inputs, self.module.config.pad_token_id)
        states = self.module.base_model(input_ids=ids, attention_mask=attended(there)).last_hidden_state
        total: torch.Tensor = (states * there[..., None]).sum(1)
        return total / there.sum(1, keepdim=True)

    def logits(self, inputs: torch.Tensor, head: torch.Tensor) -> torch.Tensor:
        ids, there = cut(inputs, self.module.config.pad_token_id)
        logits: torch.Tensor = self.module(input_ids=ids, attention_mask=attended(there)).logits
        return logits[:, head]

    def save(self, folder: Path) -> None:
        """For `AutoModelForSequenceClassification.from_pretrained(FOLDER)`."""
        self.module.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


def make(module: Model, tokenizer: Tokenizer, where: str, length: int) -> Classifier:
    return Classifier(module, tokenizer, length)
