"""Text encoders through Hugging Face transformers: the blocks are edited, the base's own features make zero-shot heads."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoTokenizer, PretrainedConfig
from transformers.utils import cached_file
from transformers.utils.logging import disable_progress_bar

from talos_ray.errors import SpecError

SCALE = (
    20.0  # of the cosine between a text and a class, as sentence-transformers trains with it (Reimers & Gurevych, 2019)
)
LONGEST = 512  # tokens, where neither the model nor its tokenizer says less
POOLING, LENGTH = "1_Pooling/config.json", "sentence_bert_config.json"  # as sentence-transformers names them
HUB_NAME = re.compile(r"^[\w.-]+(/[\w.-]+)?$")


class Encoder:
    """A transformer that reads text, its tokenizer, and how token features become one (see `models.Family`).

    Inputs are token ids int64 [n, length], padded on the right; batches are cut to their longest text.
    """

    def __init__(self, module: nn.Module, tokenizer, pooling: str, length: int) -> None:
        self.module, self.tokenizer, self.pooling, self.length = module.eval(), tokenizer, pooling, length
        self.edited = f"{_blocks(module)}."

    def preprocess(self, examples: list) -> torch.Tensor:
        return self.tokenizer(
            list(examples),
            padding="max_length",
            truncation=True,
            max_length=self.length,
            padding_side="right",
            return_tensors="pt",
        ).input_ids

    def _features(self, inputs: torch.Tensor) -> torch.Tensor:
        """Unit vectors [n, d]."""
        there = inputs != self.tokenizer.pad_token_id
        longest = max(1, int(there.sum(1).max()))
        inputs, there = inputs[:, :longest], there[:, :longest]
        tokens = self.module(input_ids=inputs, attention_mask=there.long()).last_hidden_state
        if self.pooling == "cls":
            pooled = tokens[:, 0]
        else:
            pooled = (tokens * there[..., None]).sum(1) / there.sum(1, keepdim=True).clamp(min=1)
        return nn.functional.normalize(pooled, dim=-1)

    @torch.no_grad()
    def head(self, phrases: Sequence[str], prompts: Sequence[str]) -> torch.Tensor:
        """Mean of the normalised features over the templates, normalised again, times SCALE."""
        rows = [self._features(self.preprocess([p.format(phrase) for p in prompts])).mean(0) for phrase in phrases]
        return (nn.functional.normalize(torch.stack(rows), dim=-1) * SCALE).float()

    def logits(self, inputs: torch.Tensor, head: torch.Tensor) -> torch.Tensor:
        return self._features(inputs) @ head.T

    def save(self, folder: Path) -> None:
        """For `AutoModel.from_pretrained(FOLDER)`; how to pool goes beside it, as sentence-transformers reads it."""
        self.module.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        (folder / POOLING).parent.mkdir()
        modes = {"pooling_mode_cls_token": self.pooling == "cls", "pooling_mode_mean_tokens": self.pooling == "mean"}
        width = self.module.config.hidden_size
        (folder / POOLING).write_text(json.dumps({"word_embedding_dimension": width, **modes}) + "\n")
        (folder / LENGTH).write_text(json.dumps({"max_seq_length": self.length, "do_lower_case": False}) + "\n")
        kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
        told = [
            {"idx": i, "name": str(i), "path": at, "type": f"sentence_transformers.models.{k}"}
            for i, (at, k) in enumerate(kinds)
        ]
        (folder / "modules.json").write_text(json.dumps(told) + "\n")


def _blocks(module: nn.Module) -> str:
    """Name of the list of transformer blocks. What stands outside (a pooler, for instance) may not be used at all, and
    an unused weight would look like the least sensitive one."""
    lists = {
        n: sum(p.numel() for p in m.parameters()) for n, m in module.named_modules() if isinstance(m, nn.ModuleList)
    }
    return max(lists, key=lists.get)


def check(name: str) -> None:
    """Raises SpecError unless `name` is a folder with a model, or could be one of the Hugging Face Hub."""
    path = Path(name).expanduser()
    if name and path.is_dir():
        if not (path / "config.json").is_file():
            raise SpecError(
                f"model 'hf:{name}': folder {name!r} has no config.json; wanted what save_pretrained writes; check the path"
            )
    elif not HUB_NAME.match(name):
        raise SpecError(
            f"model 'hf:{name}': {name!r} is no folder and no name of the Hub; wanted a path, or OWNER/NAME; check it"
        )


def load(name: str, pretrained: bool = True) -> Encoder:
    """Build `hf:NAME`; with `pretrained=False` the weights are left random.

    Raises:
        SpecError: it cannot be reached or read, or is no text encoder.
    """
    where = str(Path(name.removeprefix("hf:")).expanduser()) if name.startswith("hf:~") else name.removeprefix("hf:")
    disable_progress_bar()
    try:
        config = AutoConfig.from_pretrained(where)
        _check_encoder(name, config)
        tokenizer = AutoTokenizer.from_pretrained(where)
        if pretrained:
            module = AutoModel.from_pretrained(where, config=config, dtype=torch.float32)
        else:
            module = AutoModel.from_config(config, dtype=torch.float32)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise SpecError(f"model {name!r} cannot be loaded: {' '.join(str(error).split())[:300]}") from None
    pooling = "cls" if _file(where, POOLING).get("pooling_mode_cls_token") else "mean"
    longest = _file(where, LENGTH).get("max_seq_length") or LONGEST
    return Encoder(module, tokenizer, pooling, min(longest, LONGEST, tokenizer.model_max_length))


def _check_encoder(name: str, config: PretrainedConfig) -> None:
    made_for = (config.architectures or ["?"])[0]
    if (
        config.is_encoder_decoder
        or getattr(config, "is_decoder", False)
        or "CausalLM" in made_for
        or "LMHead" in made_for
    ):
        raise SpecError(
            f"model {name!r} is a {made_for}; wanted a text encoder (BERT, MiniLM, MPNet, …); choose one of those"
        )


def _file(where: str, name: str) -> dict:
    """A JSON file beside the model, as sentence-transformers puts there; empty if there is none."""
    found = cached_file(
        where, name, _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False
    )
    return json.loads(Path(found).read_text()) if found else {}
