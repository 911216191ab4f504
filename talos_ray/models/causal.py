"""Causal language models (GPT-2, Llama, Qwen and their kin): a class is a continuation of the text, ranked by its likelihood."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from talos_ray.models.hf import PAD, answer_scores, answers, attended, blocks, cut, one_template, padded

AUTO = AutoModelForCausalLM


class Causal:
    """A decoder and its tokenizer (see `models.Family`). Multiple choice by likelihood.

    Inputs are token ids int64 [n, length]; a head holds the continuations' token ids int64 [classes, a]; PAD stands for none.
    A text that is too long loses its beginning, because the answer follows its end.
    """

    head_words = "token ids [classes, a] of every class's continuation, -1 where it ends sooner; logits are mean log-probabilities of its tokens"

    def __init__(self, module: nn.Module, tokenizer, length: int) -> None:
        self.module, self.tokenizer, self.length = module.eval(), tokenizer, length
        name = next(n for n, m in module.named_modules() if m is module.get_decoder())
        self.edited = (f"{name}.{blocks(module.get_decoder())}.",)

    def preprocess(self, examples: list) -> torch.Tensor:
        first = self.tokenizer.bos_token_id if self.tokenizer.bos_token_id is not None else self.tokenizer.eos_token_id
        rows = [row[-self.length :] or [first or 0] for row in self.tokenizer(list(examples)).input_ids]
        return padded(rows, self.length)

    def features(self, inputs: torch.Tensor) -> torch.Tensor:
        """The last token's state."""
        ids, there = cut(inputs)
        states = self._states(ids, there)
        return states[torch.arange(len(ids)), there.sum(1) - 1]

    def _states(self, ids: torch.Tensor, there: torch.Tensor) -> torch.Tensor:
        """Token ids and where there are any, [n, l] -> the last block's states [n, l, d]."""
        # No cache, because nothing is generated; but without one transformers looks at values, and here may be shapes only.
        read = self.module.get_decoder()(input_ids=ids, attention_mask=attended(there), use_cache=ids.is_meta)
        return read.last_hidden_state

    def head(self, phrases: Sequence[str], prompts: Sequence[str]) -> torch.Tensor:
        """A continuation begins with a space, as words inside a text do."""
        template = one_template("a causal language model", prompts)
        texts = [f" {template.format(p)}" for p in phrases]
        return answers(phrases, self.tokenizer(texts, add_special_tokens=False).input_ids)

    def logits(self, inputs: torch.Tensor, head: torch.Tensor) -> torch.Tensor:
        ids, there = cut(inputs)
        n, (classes, a) = len(ids), head.shape
        text = torch.where(there, ids, PAD)
        whole = torch.cat([text, text.new_full((n, a), PAD)], 1)[:, None].repeat(1, classes, 1)  # [n, classes, l + a]
        at = (there.sum(1)[:, None] + torch.arange(a, device=ids.device))[:, None].expand(n, classes, a)
        whole = whole.scatter(2, at, head.expand(n, classes, a)).flatten(0, 1)
        there = whole != PAD
        states = self._states(whole.clamp(min=0), there)
        before = (at.flatten(0, 1) - 1)[..., None].expand(-1, -1, states.shape[-1])  # a token is predicted one earlier
        out = self.module.get_output_embeddings()(states.gather(1, before))  # [n * classes, a, V]
        return answer_scores(out, whole.gather(1, at.flatten(0, 1))).view(n, classes)

    def save(self, folder: Path) -> None:
        """For `AutoModelForCausalLM.from_pretrained(FOLDER)`."""
        self.module.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


def make(module: nn.Module, tokenizer, where: str, length: int) -> Causal:
    return Causal(module, tokenizer, length)
