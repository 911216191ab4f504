"""An encoder's embeddings are its model's own, whatever its tokenizer pads with."""

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertModel,
    GPT2Config,
    LlamaConfig,
    MPNetConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3Model,
    RobertaConfig,
)

from talos_ray.models import load_model

WORDS = ["<eos>", "<pad>", "<unk>", "<cls>", "the", "horse", "was", "seen", "near", "us"]
TEXTS = ["the horse was seen near us", "the zebra was seen", "horse", "the <pad> was <eos> seen <unk>"]
SETUPS = {  # padding token, side
    "pad of its own": ("<pad>", "right"),
    "pad is the end": ("<eos>", "right"),
    "pad is the unknown word": ("<unk>", "right"),
    "padded on the left": ("<pad>", "left"),
    "left, and pad is the end": ("<eos>", "left"),
    "no pad": (None, "right"),
}


def save(where: Path, kind: str, pooling: str, pad: str | None, side: str):
    tokens = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    tokens.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokens.post_processor = processors.TemplateProcessing("<cls> $A <eos>", None, [("<cls>", 3), ("<eos>", 0)])
    named = {"eos_token": "<eos>", "unk_token": "<unk>", "cls_token": "<cls>", "padding_side": side}
    PreTrainedTokenizerFast(tokenizer_object=tokens, model_max_length=32, pad_token=pad, **named).save_pretrained(where)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    shape |= {"vocab_size": len(WORDS), "max_position_embeddings": 48, "initializer_range": 0.2}
    torch.manual_seed(0)
    if kind == "bert":
        model = BertModel(BertConfig(**shape)).eval()
    else:
        model = Qwen3Model(Qwen3Config(**shape, num_key_value_heads=2, head_dim=8, eos_token_id=0)).eval()
    model.config.architectures = [type(model).__name__]
    model.save_pretrained(where)
    (where / "1_Pooling").mkdir()
    (where / "1_Pooling/config.json").write_text(json.dumps({f"pooling_mode_{pooling}": True}))
    return model


@pytest.mark.parametrize(("kind", "pooling"), [("bert", "mean_tokens"), ("bert", "cls_token"), ("qwen3", "lasttoken")])
@pytest.mark.parametrize("setup", SETUPS)
def test_embeddings_are_the_models_own(tmp_path, setup, kind, pooling):
    model = save(tmp_path, kind, pooling, *SETUPS[setup])
    tokenizer, family = AutoTokenizer.from_pretrained(tmp_path), load_model(f"hf:{tmp_path}")
    with torch.inference_mode():
        found = family.features(family.preprocess(TEXTS))  # a batch of several lengths
        for text, mine in zip(TEXTS, found, strict=True):
            states = model(**tokenizer([text], return_tensors="pt")).last_hidden_state[0]
            own = {"mean_tokens": states.mean(0), "cls_token": states[0], "lasttoken": states[-1]}[pooling]
            assert torch.nn.functional.cosine_similarity(mine, own, dim=0) >= 0.99999


@pytest.mark.parametrize("kind", [GPT2Config, LlamaConfig])
@pytest.mark.parametrize("setup", SETUPS)
def test_a_decoder_without_padding_is_read_at_its_last_token(tmp_path, setup, kind):
    save(tmp_path, "bert", "mean_tokens", *SETUPS[setup])  # for its tokenizer, which ends every text with <eos>
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "initializer_range": 0.2}
    config = kind(**shape, vocab_size=len(WORDS), pad_token_id=None, eos_token_id=0, bos_token_id=3)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    model.config.architectures = [type(model).__name__]
    model.save_pretrained(tmp_path)
    tokenizer, family = AutoTokenizer.from_pretrained(tmp_path), load_model(f"hf:{tmp_path}")
    with torch.inference_mode():
        found = family.logits(family.preprocess(TEXTS), torch.tensor([0, 1]))
        own = [model(input_ids=tokenizer([text], return_tensors="pt").input_ids).logits[0] for text in TEXTS]
    torch.testing.assert_close(found, torch.stack(own))


@pytest.mark.parametrize("kind", [RobertaConfig, MPNetConfig])
def test_positions_that_begin_behind_the_padding_are_fewer(tmp_path, kind):
    save(tmp_path, "bert", "mean_tokens", "<pad>", "right")
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    model = AutoModel.from_config(kind(**shape, vocab_size=len(WORDS), max_position_embeddings=18, pad_token_id=1)).eval()
    model.config.architectures = [type(model).__name__]
    model.save_pretrained(tmp_path)
    family = load_model(f"hf:{tmp_path}")
    assert family.length == 16
    ids = AutoTokenizer.from_pretrained(tmp_path)(["the horse " * 20], truncation=True, max_length=16, return_tensors="pt")
    with torch.inference_mode():
        own = model(input_ids=ids.input_ids).last_hidden_state[0].mean(0)
        found = family.features(family.preprocess(["the horse " * 20, "horse"]))[0]
    assert torch.nn.functional.cosine_similarity(found, own, dim=0) >= 0.99999
