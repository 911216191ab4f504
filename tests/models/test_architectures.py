"""Other people's architectures, small and with random weights: calibration, sparse training and export fit them as they come."""

import logging

import open_clip
import pytest
import torch
import torch.nn.functional as F
from texts import WORDS
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
)

from talos_ray import SpecError
from talos_ray.core.fisher import SquaredGradients
from talos_ray.core.layout import Layout, eligible_layout
from talos_ray.core.mask import mask_from_flags, select
from talos_ray.core.optimizer import SparseAdamW
from talos_ray.models import base_fingerprint, base_tensors, build_model, layout_of, load_model
from talos_ray.smoke import FILLERS, tiny_model

BERT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "max_position_embeddings": 60}  # fmt: skip
LLAMA = {**BERT, "num_key_value_heads": 2, "pad_token_id": 0}
WITH_HEADS = {**LLAMA, "head_dim": 8}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 60, "rotary_dim": 4, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}  # fmt: skip
T5 = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2, "initializer_factor": 1.0}
BART = {
    f"{part}_{name}": size
    for part in ("encoder", "decoder")
    for name, size in (("layers", 2), ("attention_heads", 4), ("ffn_dim", 64))
} | {"d_model": 32, "max_position_embeddings": 60}
DEBERTA = {**BERT, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]}
MODERN = {**BERT, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3}

ENCODERS = {
    **dict.fromkeys(("roberta", "xlm-roberta", "electra", "mpnet", "roformer", "nomic_bert", "ernie"), BERT),
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "max_position_embeddings": 60},
    "albert": {**BERT, "embedding_size": 16}, "deberta": DEBERTA, "deberta-v2": {**DEBERTA, "position_buckets": 16},
    "modernbert": MODERN, "xlnet": {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 64},
    "squeezebert": {**BERT, "embedding_size": 32},
}  # fmt: skip
WRITERS = {
    **dict.fromkeys(("bart", "mbart", "pegasus", "marian", "m2m_100"), BART),
    "mt5": {**T5, "feed_forward_proj": "gated-gelu"}, "umt5": T5, "longt5": T5,
}  # fmt: skip
DECODERS = {
    **dict.fromkeys(("mistral", "phi3", "stablelm", "olmo2", "starcoder2", "cohere", "granite", "mixtral"), LLAMA),
    **dict.fromkeys(("gemma", "gemma2", "gemma3_text", "qwen3"), WITH_HEADS),
    **dict.fromkeys(("phi", "gpt_neox", "falcon", "bloom"), BERT), **dict.fromkeys(("gptj", "gpt_bigcode"), GPT2),
    "opt": {**BERT, "ffn_dim": 64, "word_embed_proj_dim": 32}, "mamba": {**BERT, "state_size": 8},
}  # fmt: skip
CLASSIFIERS = {
    **{k: ENCODERS[k] for k in ("roberta", "distilbert", "deberta-v2", "modernbert", "albert")},
    "bart": BART, "llama": LLAMA, "gemma2": WITH_HEADS,
}  # fmt: skip
KINDS = {  # the tokenizer's kind, what builds it, sizes
    "encoder": ("bert", AutoModel, ENCODERS),
    "sequence to sequence": ("t5", AutoModelForSeq2SeqLM, WRITERS),
    "causal": ("llama", AutoModelForCausalLM, DECODERS),
    "classifier": ("bert", AutoModelForSequenceClassification, CLASSIFIERS),
}
LOOPED = {  # what is used in a way of its own, and scored one sample at a time
    "deberta": "pos_", "deberta-v2": "pos_", "mamba": "mixer.", "xlnet": "", "squeezebert": "",
}  # fmt: skip
TEXTS = ["the old horse was seen", "by us again", "hammer is not far from here", "one near us and it is the otter"]
LABELS = torch.tensor([0, 1, 0, 1])


def sparse_gradients_are_the_dense_ones(module: torch.nn.Module, layout: Layout, logits, inputs) -> None:
    """For single weights and for rows."""
    params = dict(module.named_parameters())
    for p in params.values():
        p.requires_grad_(True)
    F.cross_entropy(logits(inputs), LABELS).backward()
    dense = torch.cat([torch.zeros(p.numel()) if p.grad is None else p.grad.flatten() for p in map(params.get, layout.names)])  # fmt: skip
    module.zero_grad(set_to_none=True)
    assert dense.any()
    for granularity in ("element", "row"):
        mask = mask_from_flags(layout, select(layout, "random", 0.2, granularity=granularity))
        optimizer = SparseAdamW(module, mask, 1e-3)
        F.cross_entropy(logits(inputs), LABELS).backward()
        torch.testing.assert_close(
            optimizer.values.grad, dense[mask.flags], rtol=1e-4, atol=1e-5 * float(dense.abs().max())
        )
        optimizer.close()


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, (_, _, shapes) in KINDS.items() for name in shapes])
def test_text_models(kind, name, tmp_path):
    tokens, auto, shapes = KINDS[kind]
    words = [w for said in WORDS["animals"] for w in said.split()]
    tiny_model(tokens, [*words, *FILLERS], tmp_path)
    size = AutoConfig.from_pretrained(tmp_path).vocab_size
    own = {"encoder": {}, "classifier": {"id2label": {0: "no", 1: "yes"}}, "causal": {"bos_token_id": None, "eos_token_id": 0}}  # fmt: skip
    ends = own.get(kind, {"decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1})
    torch.manual_seed(0)
    model = auto.from_config(AutoConfig.for_model(name, **{**ends, "vocab_size": size, **shapes[name]}))
    model.config.architectures = [type(model).__name__]
    model.save_pretrained(tmp_path)
    f = load_model(f"hf:{tmp_path}")
    phrases = ["no", "yes"] if kind == "classifier" else ["heron", "wrench"]
    layout, head, inputs = layout_of(f), f.head(phrases, ["{}"]), f.preprocess(TEXTS)
    with torch.inference_mode():
        together = f.logits(inputs, head)
        alone = torch.cat([f.logits(inputs[i : i + 1], head) for i in range(len(inputs))])
    torch.testing.assert_close(alone, together, rtol=0, atol=1e-4)
    gradients = SquaredGradients(f.module, layout)
    gradients.add(lambda x: f.logits(x, head), inputs, torch.Generator().manual_seed(0))
    assert {n for n in gradients.checked.looped if LOOPED.get(name, "nothing") not in n} == set()
    sparse_gradients_are_the_dense_ones(f.module, layout, lambda x: f.logits(x, head), inputs)
    if (kind, name) == ("classifier", "bart"):
        end = f.tokenizer.convert_ids_to_tokens(f.module.config.eos_token_id)
        with pytest.raises(SpecError, match="text 'by us .* again' holds .*knows where a text ends"):
            f.preprocess([TEXTS[0], f"by us {end} again"])
    (tmp_path / "out").mkdir()
    f.save(tmp_path / "out")
    again = load_model(f"hf:{tmp_path / 'out'}")
    assert base_fingerprint(again) == base_fingerprint(f)
    built = build_model(f"hf:{tmp_path}", base_tensors(f), layout.names)  # as every worker does
    with torch.inference_mode():
        assert torch.equal(again.logits(inputs, head), together) and torch.equal(built.logits(inputs, head), together)


IMAGES = {  # open_clip's image towers, and what is scored one sample at a time
    "resnet": ({"layers": [1, 1, 1, 1], "width": 16, "image_size": 32}, "attnpool."),
    "convnext": ({"timm_model_name": "convnext_atto", "timm_pool": "", "timm_proj": "linear", "image_size": 32}, "nothing"),
    "mobileclip": ({"timm_model_name": "fastvit_t8", "timm_pool": "avg", "timm_proj": None, "image_size": 64}, "nothing"),
    "coca": ({"layers": 2, "width": 64, "head_width": 32, "patch_size": 8, "image_size": 32, "attentional_pool": True, "attn_pooler_heads": 4, "attn_pooler_queries": 8}, "attn_pool."),
}  # fmt: skip


@pytest.mark.parametrize("name", IMAGES)
def test_image_towers(name, caplog):
    config, looped = IMAGES[name]
    torch.manual_seed(0)
    texts = {"context_length": 8, "vocab_size": 40, "width": 16, "heads": 2, "layers": 1}
    model = open_clip.model.CLIP(48 if name != "mobileclip" else 768, config, texts).eval()
    with torch.no_grad():
        for p in model.parameters():  # open_clip's residual branches begin at 0
            p += 0.02 * torch.randn_like(p)
    inputs = torch.randn(4, 3, config["image_size"], config["image_size"])
    layout, width = eligible_layout(model, "visual."), model.encode_image(inputs[:1]).shape[1]
    head = F.normalize(torch.randn(2, width), dim=-1) * 20

    def logits(x: torch.Tensor) -> torch.Tensor:
        return model.encode_image(x, normalize=True) @ head.T

    gradients = SquaredGradients(model, layout)
    with caplog.at_level(logging.WARNING):
        gradients.add(logits, inputs, torch.Generator().manual_seed(0))
    assert {n for n in gradients.checked.looped if looped not in n} == set()
    assert ("one sample at a time" in caplog.text) == bool(gradients.checked.looped)
    unused = {n for n, scores in layout.split(gradients.sums).items() if not scores.any()}
    assert all(n.endswith("k_proj.bias") for n in unused)  # which softmax ignores
    before = {n: b.clone() for n, b in model.named_buffers()}
    sparse_gradients_are_the_dense_ones(model, layout, logits, inputs)
    assert all(torch.equal(b, before[n]) for n, b in model.named_buffers())  # no batch statistics move
