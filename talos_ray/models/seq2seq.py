"""Sequence-to-sequence models (T5 and its kin): a class is an answer, and the answers are ranked by their
likelihood."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForSeq2SeqLM

from talos_ray.models.hf import Model, Tokenizer, attended, cut, stacks
from talos_ray.models.ranked import Ranked

AUTO = AutoModelForSeq2SeqLM


class Seq2Seq(Ranked):
    """Encoder, decoder and tokenizer (see `models.Family`). The encoder runs once an input, the decoder once an input
    and answer."""

    head_words = (
        "token ids [classes, a] of every class's answer, -1 where it ends sooner; logits are mean log-probabilities "
        "of its tokens"
    )

    def __init__(self, module: Model, tokenizer: Tokenizer, length: int) -> None:
        self.module: Model = module.eval()
        self.tokenizer = tokenizer
        self.length = length
        self.edited = stacks(module)

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        ids: list[list[int]] = self.tokenizer(list(texts), truncation=True, max_length=self.length).input_ids
        return ids

    def answer_tokens(self, answers: Sequence[str]) -> list[list[int]]:
        ids: list[list[int]] = self.tokenizer(text_target=list(answers)).input_ids
        return ids

    def features(self, inputs: torch.Tensor) -> torch.Tensor:
        """Mean of the encoder's states over the tokens."""
        states, there = self._encoded(inputs[:, : self.length])
        return (states * there[..., None]).sum(1) / there.sum(1, keepdim=True)

    def _encoded(self, text: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        ids, there = cut(text)
        encoder = self.module.get_encoder()
        return encoder(input_ids=ids, attention_mask=attended(there)).last_hidden_state, there

    def answered(self, text: torch.Tensor, said: torch.Tensor) -> torch.Tensor:
        states, there = self._encoded(text)  # [n, l, d], [n, l]
        classes = said.shape[1]
        answers = said.flatten(0, 1)  # [n * c, a]
        # The decoder reads every token of an answer but the last, and tells of each what comes next.
        start = torch.full_like(answers[:, :1], self.module.config.decoder_start_token_id)
        shifted = torch.cat([start, answers[:, :-1].clamp(min=0)], 1)
        output = self.module(
            encoder_outputs=(states.repeat_interleave(classes, 0),),
            attention_mask=attended(there.repeat_interleave(classes, 0)),
            decoder_input_ids=shifted,
            use_cache=False,
        )
        logits: torch.Tensor = output.logits
        return logits

    def save(self, folder: Path) -> None:
        """For `AutoModelForSeq2SeqLM.from_pretrained(FOLDER)`."""
        self.module.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


def make(module: Model, tokenizer: Tokenizer, where: str, length: int) -> Seq2Seq:
    return Seq2Seq(module, tokenizer, length)
