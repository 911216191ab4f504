"""Text encoders through Hugging Face transformers: the blocks are edited, the base's own features make zero-shot
heads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModel

from talos_ray.config import filled
from talos_ray.errors import SpecError
from talos_ray.models.hf import LENGTH, PAD, Model, Tokenizer, attended, beside, blocks, cut, filler, padded, used

AUTO = AutoModel
SCALE = (
    20.0  # of the cosine between a text and a class, as sentence-transformers trains with it (Reimers & Gurevych, 2019)
)
# as sentence-transformers names them
POOLING = "1_Pooling/config.json"
MODULES = "modules.json"
READ = ("Transformer", "Pooling", "Normalize")
POOLINGS = {"cls_token": "cls", "mean_tokens": "mean", "lasttoken": "lasttoken"}  # from its older versions' words


class Encoder:
    """A transformer that reads text, its tokenizer, and how token features become one (see `models.Family`).

    Inputs are token ids int64 [n, length], PAD where a text ends. No token of the tokenizer's own stands for that: its
    padding may also be the end of a text, or a word that it does not know, and these are read.
    """

    words_are_linear = True
    unread = ("pooler.",)  # weights that a checkpoint may lack
    head_words = (
        "class features [classes, d], scaled: `features / features.norm(dim=-1, keepdim=True) @ head.T` are a task's "
        "logits"
    )

    def __init__(self, module: Model, tokenizer: Tokenizer, pooling: str, length: int) -> None:
        self.module: Model = module.eval()
        self.tokenizer = tokenizer
        self.pooling = pooling
        self.length = length
        self.edited = (f"{blocks(module)}.",)
        self.filler = filler(module, tokenizer.pad_token_id)

    def preprocess(self, examples: list[Any]) -> torch.Tensor:
        ids = self.tokenizer(list(examples), truncation=True, max_length=self.length).input_ids
        return padded(ids, self.length)

    def shorten(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs[:, : used(inputs != PAD)]

    def features(self, inputs: torch.Tensor) -> torch.Tensor:
        ids, there = cut(inputs, self.filler)
        tokens = self.module(input_ids=ids, attention_mask=attended(there)).last_hidden_state  # [n, l, d]
        lengths = there.sum(1)
        # An empty text has no token at all: clamped, its features are finite.
        if self.pooling == "cls":
            pooled = tokens[:, 0]
        elif self.pooling == "lasttoken":
            rows = torch.arange(len(tokens), device=tokens.device)
            pooled = tokens[rows, lengths.clamp(min=1) - 1]
        else:
            pooled = (tokens * there[..., None]).sum(1) / lengths[:, None].clamp(min=1)
        return nn.functional.normalize(pooled.float(), dim=-1)

    @torch.no_grad()
    def head(self, phrases: Sequence[str], prompts: Sequence[str]) -> torch.Tensor:
        """Mean of the normalised features over the templates, normalised again, times SCALE."""
        rows = []
        for phrase in phrases:
            texts = [filled(prompt, phrase) for prompt in prompts]
            rows.append(self.features(self.preprocess(texts)).mean(0))
        return nn.functional.normalize(torch.stack(rows), dim=-1) * SCALE

    def logits(self, inputs: torch.Tensor, head: torch.Tensor) -> torch.Tensor:
        return self.features(inputs) @ head.T

    def save(self, folder: Path) -> None:
        """For `AutoModel.from_pretrained(FOLDER)`; how to pool goes beside it, as sentence-transformers reads it."""
        self.module.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        (folder / POOLING).parent.mkdir()
        pooling = {"word_embedding_dimension": self.module.config.hidden_size}
        pooling |= {f"pooling_mode_{old}": self.pooling == mode for old, mode in POOLINGS.items()}
        _write_json(folder / POOLING, pooling)
        _write_json(folder / LENGTH, {"max_seq_length": self.length, "do_lower_case": False})
        modules = []
        for i, (place, kind) in enumerate(
            [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
        ):
            modules.append({"idx": i, "name": str(i), "path": place, "type": f"sentence_transformers.models.{kind}"})
        _write_json(folder / MODULES, modules)


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value) + "\n")


def make(module: Model, tokenizer: Tokenizer, where: str, length: int) -> Encoder:
    """Raises SpecError where sentence-transformers would make something else of the tokens than `Encoder` can."""
    modes = _pooling_modes(where)
    modules = beside(where, MODULES, list)
    if len(modes) > 1 or not set(modes) <= set(POOLINGS.values()):
        raise SpecError(
            f"model {where!r} pools its tokens by {' and '.join(modes)}; wanted one of {', '.join(POOLINGS.values())};"
            " take another encoder"
        )
    more = []
    for entry in modules:
        # A class by its full name; which module of a library it is in differs between versions.
        kind = entry.get("type", "?") if isinstance(entry, dict) else entry
        name = str(kind).rpartition(".")[2]
        if name not in READ:
            more.append(name)
    if more:
        raise SpecError(
            f"model {where!r} goes on with {', '.join(more)} behind its transformer, which is not read; wanted "
            f"{', '.join(READ)} only; take another encoder"
        )
    return Encoder(module, tokenizer, modes[0] if modes else "mean", length)


def _pooling_modes(where: str) -> list[str]:
    """How sentence-transformers pools a model's tokens: one way, several side by side, or none that is named."""
    config = beside(where, POOLING)
    named = config.get("pooling_mode")
    if named:
        return [named] if isinstance(named, str) else list(named)
    # Its older versions wrote a switch for each way.
    modes = []
    for key, on in config.items():
        if on is True and key.startswith("pooling_mode_"):
            old = key.removeprefix("pooling_mode_")
            modes.append(POOLINGS.get(old, old))
    return modes
