"""Causal language models (GPT-2, Llama, Qwen and their kin): a class is a continuation of the text, ranked by its
likelihood."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from talos_ray.models.hf import PAD, Model, Tokenizer, attended, blocks, cut
from talos_ray.models.ranked import Ranked

AUTO = AutoModelForCausalLM


class Causal(Ranked):
    """A decoder and its tokenizer (see `models.Family`). Multiple choice by likelihood.

    A text that is too long loses its beginning, because the answer follows its end.
    """

    head_words = (
        "token ids [classes, a] of every class's continuation, -1 where it ends sooner; logits are mean "
        "log-probabilities of its tokens"
    )

    def __init__(self, module: Model, tokenizer: Tokenizer, length: int) -> None:
        self.module: Model = module.eval()
        self.tokenizer = tokenizer
        self.length = length
        name = next(n for n, m in module.named_modules() if m is module.get_decoder())
        self.edited = (f"{name}.{blocks(module.get_decoder())}.",)

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        first = self.tokenizer.bos_token_id if self.tokenizer.bos_token_id is not None else self.tokenizer.eos_token_id
        # An empty text, too, has to have a token that an answer can follow.
        return [row[-self.length :] or [first or 0] for row in self.tokenizer(list(texts)).input_ids]

    def answer_tokens(self, answers: Sequence[str]) -> list[list[int]]:
        """A continuation begins with a space, as words inside a text do."""
        continued = [f" {answer}" for answer in answers]
        ids: list[list[int]] = self.tokenizer(continued, add_special_tokens=False).input_ids
        return ids

    def features(self, inputs: torch.Tensor) -> torch.Tensor:
        """The last token's state."""
        ids, there = cut(inputs[:, : self.length])
        states = self._states(ids, there)
        return states[torch.arange(len(ids), device=ids.device), there.sum(1) - 1]

    def _states(self, ids: torch.Tensor, there: torch.Tensor) -> torch.Tensor:
        """Token ids and where there are any, [n, l] -> the last block's states [n, l, d]."""
        # No cache, because nothing is generated; but without one transformers looks at values, and here may be shapes
        # only.
        decoder = self.module.get_decoder()
        output = decoder(input_ids=ids, attention_mask=attended(there), use_cache=ids.is_meta)
        states: torch.Tensor = output.last_hidden_state
        return states

    def answered(self, text: torch.Tensor, said: torch.Tensor) -> torch.Tensor:
        ids, there = cut(text)
        n, c, a = said.shape
        # Every text once an answer, with room for it: PAD where there is no token.
        room = ids.new_full((n, a), PAD)
        whole = torch.cat([torch.where(there, ids, PAD), room], 1)  # [n, l + a]
        whole = whole[:, None].repeat(1, c, 1)  # [n, c, l + a]
        # An answer follows the end of its own text, without a gap: its positions are those that the model has learnt.
        ends = there.sum(1)[:, None]
        positions = ends + torch.arange(a, device=ids.device)  # [n, a]
        positions = positions[:, None].expand(n, c, a)
        whole = whole.scatter(2, positions, said).flatten(0, 1)  # [n * c, l + a]
        states = self._states(whole.clamp(min=0), whole != PAD)
        before = positions.flatten(0, 1) - 1  # a token is predicted one earlier
        before = before[..., None].expand(-1, -1, states.shape[-1])  # [n * c, a, d]
        # Only there, because logits of a whole vocabulary are the largest tensor of all.
        logits: torch.Tensor = self.module.get_output_embeddings()(states.gather(1, before))
        return logits

    def save(self, folder: Path) -> None:
        """For `AutoModelForCausalLM.from_pretrained(FOLDER)`."""
        self.module.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


def make(module: Model, tokenizer: Tokenizer, where: str, length: int) -> Causal:
    # A quarter of the text's length is left to the answer.
    return Causal(module, tokenizer, min(length, getattr(module.config, "max_position_embeddings", length) * 4 // 5))
