"""Sequence-to-sequence models (T5 and its kin): a class is an answer, and the answers are ranked by their likelihood."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from transformers import AutoModelForSeq2SeqLM

from talos_ray.models.hf import answer_scores, answers, attended, blocks, cut, one_template, padded

AUTO = AutoModelForSeq2SeqLM


class Seq2Seq:
    """Encoder, decoder and tokenizer (see `models.Family`). Rank classification, as T-Few has it (Liu et al., 2022).

    Inputs are token ids int64 [n, length]; a head holds the answers' token ids int64 [classes, a]; PAD stands for none.
    The encoder runs once an input, the decoder once an input and answer.
    """

    head_words = "token ids [classes, a] of every class's answer, -1 where it ends sooner; logits are mean log-probabilities of its tokens"

    def __init__(self, module: nn.Module, tokenizer, length: int) -> None:
        self.module, self.tokenizer, self.length = module.eval(), tokenizer, length
        parts = {id(module.get_encoder()), id(module.get_decoder())}
        self.edited = tuple(f"{n}.{blocks(m)}." for n, m in module.named_modules() if id(m) in parts)

    def preprocess(self, examples: list) -> torch.Tensor:
        rows = self.tokenizer(list(examples), truncation=True, max_length=self.length).input_ids
        return padded(rows, self.length)

    def features(self, inputs: torch.Tensor) -> torch.Tensor:
        """Mean of the encoder's states over the tokens."""
        states, there = self._encoded(inputs)
        return (states * there[..., None]).sum(1) / there.sum(1, keepdim=True)

    def _encoded(self, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        ids, there = cut(inputs)
        return self.module.get_encoder()(input_ids=ids, attention_mask=attended(there)).last_hidden_state, there

    def head(self, phrases: Sequence[str], prompts: Sequence[str]) -> torch.Tensor:
        template = one_template("a sequence-to-sequence model", prompts)
        return answers(phrases, self.tokenizer(text_target=[template.format(p) for p in phrases]).input_ids)

    def logits(self, inputs: torch.Tensor, head: torch.Tensor) -> torch.Tensor:
        states, there = self._encoded(inputs)  # [n, l, d]
        n, classes = len(inputs), len(head)
        wanted = head.repeat(n, 1)  # [n * classes, a]
        start = torch.full_like(wanted[:, :1], self.module.config.decoder_start_token_id)
        out = self.module(
            encoder_outputs=(states.repeat_interleave(classes, 0),), attention_mask=attended(there.repeat_interleave(classes, 0)),
            decoder_input_ids=torch.cat([start, wanted[:, :-1].clamp(min=0)], 1), use_cache=False,
        )  # fmt: skip
        return answer_scores(out.logits, wanted).view(n, classes)

    def save(self, folder: Path) -> None:
        """For `AutoModelForSeq2SeqLM.from_pretrained(FOLDER)`."""
        self.module.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


def make(module: nn.Module, tokenizer, where: str, length: int) -> Seq2Seq:
    return Seq2Seq(module, tokenizer, length)
