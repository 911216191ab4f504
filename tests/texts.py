"""A small text encoder with random weights, and text tasks, made on the spot."""

from __future__ import annotations

import csv
import random
from pathlib import Path

WORDS = {
    "animals": ("horse heron otter beetle trout", "hammer chisel pliers wrench saw"),
    "places": ("harbour meadow canyon glacier island", "kitchen cellar attic pantry bedroom"),
}
FILLERS = [
    "the",
    "old",
    "one",
    "near",
    "here",
    "was",
    "seen",
    "again",
    "by",
    "us",
    "and",
    "it",
    "is",
    "not",
    "far",
    "from",
]


def write_texts(folder: Path, name: str, n: int) -> dict:
    """A task from a CSV: a sentence that holds a word of one of two kinds. Returns its settings."""
    draw = random.Random(name)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.csv"
    with path.open("w", newline="") as out:
        rows = csv.writer(out)
        rows.writerow(["text", "label"])
        for i in range(n):
            words = draw.choices(FILLERS, k=draw.randint(2, 12))
            words.insert(draw.randrange(len(words)), draw.choice(WORDS[name][i % 2].split()))
            rows.writerow([" ".join(words), ("yes", "no")[i % 2]])
    first = [w[0] for w in map(str.split, WORDS[name])]
    return {"name": name, "data": str(path), "classes": ["yes", "no"], "phrases": first}


def save_encoder(folder: Path) -> str:
    """A BERT of two small blocks, with a pooler that nobody uses, and its tokenizer, as save_pretrained writes them."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    words = sorted({w for kinds in WORDS.values() for k in kinds for w in k.split()} | set(FILLERS))
    vocabulary = {w: i for i, w in enumerate([*special, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, [("[CLS]", 2), ("[SEP]", 3)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        model_max_length=32,
    ).save_pretrained(folder)  # fmt: skip
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=32, architectures=["BertModel"], initializer_range=0.2,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    return f"hf:{folder}"


def _save_words(folder: Path, *special: str) -> int:
    """A tokenizer of the tasks' words, for models that answer with them. Returns its size."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = sorted({w for kinds in WORDS.values() for k in kinds for w in k.split()} | set(FILLERS))
    vocabulary = {w: i for i, w in enumerate([*special, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    named = {"unk_token": "<unk>", "eos_token": "</s>"}
    if "<pad>" in special:
        named["pad_token"] = "<pad>"
        tokenizer.post_processor = processors.TemplateProcessing("$A </s>", None, [("</s>", special.index("</s>"))])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=32, **named).save_pretrained(folder)
    return len(vocabulary)


def save_seq2seq(folder: Path) -> str:
    """A T5 of two small blocks a side, with tied embeddings, and its tokenizer."""
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    size = _save_words(folder, "<pad>", "</s>", "<unk>")
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=size, d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2, decoder_start_token_id=0, pad_token_id=0, eos_token_id=1,
        initializer_factor=1.0, architectures=["T5ForConditionalGeneration"],
    )  # fmt: skip
    T5ForConditionalGeneration(config).save_pretrained(folder)
    return f"hf:{folder}"


def save_causal(folder: Path, kind: str) -> str:
    """A GPT-2, Llama or Qwen3 of two small blocks (the last two with grouped-query attention), without a padding token."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    size = _save_words(folder, "</s>", "<unk>")
    torch.manual_seed(0)
    shape = (
        {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 48}
        if kind == "gpt2"
        else {
            "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 64,
            "max_position_embeddings": 48,
        }
    )  # fmt: skip
    tied = {"tie_word_embeddings": kind != "llama"}
    config = AutoConfig.for_model(
        kind, vocab_size=size, bos_token_id=None, eos_token_id=0, initializer_range=0.2, **shape, **tied
    )
    model = AutoModelForCausalLM.from_config(config)
    config.architectures = [type(model).__name__]
    model.save_pretrained(folder)
    return f"hf:{folder}"
