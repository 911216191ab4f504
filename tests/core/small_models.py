"""Text classifiers of the shapes that matter (BERT, T5, GPT-2), small enough for a test, and ids for them."""

import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    T5Config,
    T5ForSequenceClassification,
)

IDS = torch.randint(3, 50, (6, 7), generator=torch.Generator().manual_seed(1))
IDS_THAT_END = torch.cat([IDS, torch.ones(6, 1, dtype=torch.long)], 1)  # with the end of a text, as T5 wants it


def bert() -> torch.nn.Module:
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    return BertForSequenceClassification(BertConfig(**sizes, vocab_size=50, num_labels=3))


def t5() -> torch.nn.Module:
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2, "vocab_size": 50}
    return T5ForSequenceClassification(T5Config(**sizes, num_labels=3, decoder_start_token_id=0, eos_token_id=1))


def gpt2() -> torch.nn.Module:
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 50}
    return GPT2ForSequenceClassification(GPT2Config(**sizes, num_labels=3, pad_token_id=0))
