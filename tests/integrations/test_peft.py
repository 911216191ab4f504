"""Adapters of peft, in and out, against peft itself."""

import copy
import json
import sys

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from texts import save_model
from torch import nn
from transformers import AutoModelForCausalLM

from talos_ray import SpecError
from talos_ray.config import Task
from talos_ray.core.compose import Composer
from talos_ray.core.delta import imported, make_delta
from talos_ray.core.mask import mask_from_flags, select
from talos_ray.integrations.peft import changed, entries, merged, other_base, save_shira
from talos_ray.models import Family, base_fingerprint, base_tensors, check_model, layout_of, load_model
from talos_ray.orchestrate.plan import weights_of

SOME = ["q_proj", "k_proj", "up_proj"]
ADAPTERS = {
    "LoRA": peft.LoraConfig(r=4, target_modules=SOME, init_lora_weights=False),
    "LoRA of everything": peft.LoraConfig(
        r=2, target_modules="all-linear", bias="all", modules_to_save=["lm_head", "score"]
    ),
    "DoRA": peft.LoraConfig(r=4, target_modules=SOME, use_dora=True, init_lora_weights=False),
    "SHiRA": peft.ShiraConfig(r=3, target_modules=SOME, init_weights=False),
    "IA3": peft.IA3Config(
        target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"], init_ia3_weights=False
    ),
    "LoHa": peft.LoHaConfig(r=2, target_modules=SOME, init_weights=False),
    "LoKr": peft.LoKrConfig(r=2, target_modules=SOME, init_weights=False),
    "OFT": peft.OFTConfig(oft_block_size=4, target_modules=SOME, init_weights=False),
    "VeRA": peft.VeraConfig(r=4, target_modules=["up_proj"], init_weights=False),
    "VB-LoRA": peft.VBLoRAConfig(target_modules=SOME, vector_length=4, num_vectors=8, topk=2),
    "norms": peft.LNTuningConfig(target_modules=["input_layernorm", "post_attention_layernorm"]),
}
UNMERGED = {
    "PROMPT_TUNING": peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    "PREFIX_TUNING": peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    "P_TUNING": peft.PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=3, encoder_hidden_size=8),
    "ADAPTION_PROMPT": peft.AdaptionPromptConfig(task_type="CAUSAL_LM", adapter_len=3, adapter_layers=1),
}


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> tuple[str, Family]:
    """A tiny Llama with grouped-query attention, whose key and value layers are half as wide; and its name."""
    name = save_model(tmp_path_factory.mktemp("llama"), "llama")
    return name, load_model(name)


def refused(call, match: str) -> None:
    with pytest.raises(SpecError, match=match) as caught:
        call()
    assert len(str(caught.value).splitlines()) == 1


def saved(family: Family, config, folder) -> dict[str, torch.Tensor]:
    """Save an adapter that has been "trained", and give the weights that peft makes with it."""
    torch.manual_seed(1)
    model = peft.get_peft_model(copy.deepcopy(family.module), copy.deepcopy(config))
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p += 0.03 * torch.randn(p.shape)
    model.save_pretrained(folder, save_embedding_layers=False)
    return (
        {}
        if config.is_prompt_learning or config.peft_type == "ADAPTION_PROMPT"
        else model.merge_and_unload().state_dict()
    )


@pytest.mark.parametrize("kind", ADAPTERS)
def test_an_adapter_is_what_peft_makes_of_the_base_and_comes_in_whole_on_a_mask_of_all(llama, kind, tmp_path):
    name, family = llama
    wanted, base = saved(family, ADAPTERS[kind], tmp_path), base_tensors(family)
    layout = layout_of(family)
    found = weights_of(Task(name="t", data="x", checkpoint=str(tmp_path)), layout, name, base)
    assert set(found) == set(base) and all(torch.equal(found[n], t) for n, t in wanted.items())
    mask = mask_from_flags(layout, torch.ones(layout.total, dtype=torch.bool))
    after, before, lost = imported(found, base, mask)
    mark = base_fingerprint(family)
    assert len(changed(base, found)) >= 2 and base_fingerprint(load_model(name)) == mark  # the base itself is as it was
    delta = make_delta("t", after, before, mark, mask.fingerprint, torch.float32, {})
    edited = load_model(name)
    Composer(edited.module, mask, [delta], mark).compose({"t": 1.0})
    for tensor in layout.names:
        torch.testing.assert_close(base_tensors(edited)[tensor], wanted[tensor], rtol=1e-6, atol=1e-7)
    assert lost < 1e-6 or kind == "LoRA of everything"  # which changed the head, too


def test_what_lies_off_the_mask_is_counted(llama, tmp_path):
    name, family = llama
    wanted, base, layout = saved(family, ADAPTERS["LoRA"], tmp_path), base_tensors(family), layout_of(family)
    mask = mask_from_flags(layout, select(layout, "random", 0.2))
    after, _, lost = imported(
        weights_of(Task(name="t", data="x", checkpoint=str(tmp_path)), layout, name, base), base, mask
    )
    flags = layout.split(mask.flags)
    moved = {n: (wanted[n].double() - base[n].double()).flatten().square() for n in layout.names}
    kept = sum(float(m[flags[n]].sum()) for n, m in moved.items()) / sum(float(m.sum()) for m in moved.values())
    assert lost == pytest.approx(1 - kept) and 0.7 < lost < 0.9
    assert torch.equal(after, torch.cat([wanted[n].flatten()[flags[n]] for n in layout.names]))


@pytest.mark.parametrize("kind", UNMERGED)
def test_what_cannot_be_merged_is_refused_by_name(llama, kind, tmp_path):
    saved(llama[1], UNMERGED[kind], tmp_path)
    refused(
        lambda: merged(tmp_path, copy.deepcopy(llama[1].module), "checkpoint 'x'"),
        f"checkpoint 'x' is of type {kind}, which cannot be merged .*wanted an adapter that can be merged",
    )


def test_an_adapter_that_is_another_models_or_not_whole_is_refused(llama, tmp_path, monkeypatch):
    family = llama[1]
    config, weights = tmp_path / "adapter_config.json", tmp_path / "adapter_model.safetensors"

    def read() -> None:
        merged(tmp_path, copy.deepcopy(family.module), "checkpoint 'x'")

    assert other_base(tmp_path, "hf:me/mine") is None
    saved(family, ADAPTERS["LoRA"], tmp_path)
    assert other_base(tmp_path, llama[0]) is None and other_base(tmp_path, "hf:me/mine") in llama[0]
    whole, told = load_file(weights), config.read_text()
    renamed = {n.replace("base_model.model.", "base_model.model.wrapped."): t for n, t in whole.items()}
    save_file(renamed, weights)
    refused(read, r"tensor 'wrapped\..*lora_A.*' has no place in the model \(12 and 12 such\)")
    save_file(dict(list(whole.items())[2:]), weights)
    refused(read, r"lora_A.*has no value in the adapter \(0 and 2 such\)")
    save_file({n: t[..., :5].contiguous() for n, t in whole.items()}, weights)
    refused(read, "of type LORA, does not fit the model: .*size mismatch")
    save_file(whole, weights)
    for broken, match in (
        ({"target_modules": ["query"]}, "does not fit the model: .*query"),
        ({"peft_type": "NEWEST"}, "cannot be read by peft .*NEWEST"),
        ("{", "cannot be read by peft"),
        ("{}", "has no peft_type; wanted what `save_pretrained` writes"),
        ({"target_modules": "(("}, "does not fit the model: missing \\)"),
        ({"megatron_config": {"a": 1}, "megatron_core": "antigravity"}, "is for layers of Megatron"),
    ):
        config.write_text(broken if isinstance(broken, str) else json.dumps({**json.loads(told), **broken}))
        refused(read, match)
    assert "antigravity" not in sys.modules  # whatever a configuration names, nothing is loaded
    config.write_text(told)
    weights.write_bytes(weights.read_bytes()[:-9])
    refused(read, "adapter_model.safetensors is cut off")
    weights.unlink()
    refused(read, "is an adapter without adapter_model.safetensors; wanted weights as safetensors")
    refused(lambda: check_model(f"hf:{tmp_path}"), "is an adapter, which changes a model and is none; .*talos import")
    save_file(whole, weights)
    monkeypatch.setitem(sys.modules, "peft", None)
    refused(read, r"checkpoint 'x' needs the library peft \(.*; pip install 'talos_ray\[peft\]'")


@pytest.mark.parametrize(("layers", "first"), [([(0, 2), (1, 2)], "layers.2.input"), ([(1, 2)], "layers.1.input")])
def test_an_adapter_that_repeats_layers_or_leaves_some_out_is_refused(llama, layers, first, tmp_path):
    saved(llama[1], peft.LoraConfig(r=4, target_modules=SOME, layer_replication=layers), tmp_path)
    refused(
        lambda: merged(tmp_path, copy.deepcopy(llama[1].module), "checkpoint 'x'"),
        f"of type LORA, makes another network of the base: 9 tensors came or went, the first is 'model.{first}.*wanted the base's own layers",
    )


def edited(family: Family, names: list[str], share: float) -> dict[str, torch.Tensor]:
    """The base with some weights of some tensors changed: most a little, some to nearly nothing, zero, or turned
    round."""
    draw, tensors = torch.Generator().manual_seed(3), {n: t.clone() for n, t in base_tensors(family).items()}
    for name in names:
        flat = tensors[name].view(-1)
        where = torch.randperm(len(flat), generator=draw)[: round(share * len(flat))]
        new = flat[where] + 0.05 * torch.randn(len(where), generator=draw).to(flat.dtype)
        new[::5] = flat[where][::5] * 1e-9 * torch.rand(len(new[::5]), generator=draw).to(flat.dtype)
        new[1::50], new[2::50] = 0.0, -flat[where][2::50]
        flat[where] = new
    return tensors


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("share", [0.02, 0.2, 0.7])
def test_an_edit_of_linear_layers_goes_out_and_comes_back_bit_by_bit(llama, dtype, share, tmp_path):
    name = llama[0].replace("hf:", "hf-bf16:") if dtype == torch.bfloat16 else llama[0]
    family = load_model(name)
    base = base_tensors(family)
    after = edited(
        family, [n for n in base if n.endswith(("q_proj.weight", "k_proj.weight", "down_proj.weight"))], share
    )
    save_shira(lambda: load_model(name).module, base, after, tmp_path, "me/mine")
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["peft_type"] == "SHIRA" and config["base_model_name_or_path"] == "me/mine"
    assert bool(config["modules_to_save"]) == (
        share == 0.7
    )  # more than half of a square layer has no room beside others

    def theirs() -> peft.PeftModel:
        plain = AutoModelForCausalLM.from_pretrained(llama[0].removeprefix("hf:"), dtype=dtype)
        return peft.PeftModel.from_pretrained(plain, tmp_path)

    assert changed(after, theirs().merge_and_unload().state_dict()) == []
    ids = torch.arange(12).view(2, 6)
    ours = load_model(name).module
    ours.load_state_dict(after)
    with torch.inference_mode():
        assert torch.equal(theirs().eval()(ids).logits, ours.eval()(ids).logits)
    back = weights_of(Task(name="t", data="x", checkpoint=str(tmp_path)), layout_of(family), name, base)
    assert changed(after, back) == []


def test_entries_are_exact_whatever_the_bits():
    draw = torch.Generator().manual_seed(0)
    for dtype, whole in ((torch.float32, torch.int32), (torch.bfloat16, torch.int16), (torch.float16, torch.int16)):
        ends = torch.iinfo(whole)
        bits = torch.randint(ends.min, ends.max, (2, 40000), generator=draw).to(whole).view(dtype)
        bits = bits[:, (bits.isfinite() & (bits.abs() < 1e4)).all(0)]
        before, after = bits[0].clone(), bits[1].clone()
        after[::2] = (before[::2].float() * torch.rand(len(before[::2]), generator=draw)).to(dtype)
        after[::7] = before[::7]
        before[::11], after[::13] = -0.0, 0.0
        made = entries(before, after)
        total = before.clone().view(1, -1)
        total += torch.sparse_coo_tensor(
            torch.stack([made.index * 0, made.index]), made.values, total.shape
        )  # as peft does
        assert changed({"": after}, {"": total.view(-1)}) == [] and len(made.index) > 0.8 * len(before)


def test_an_edit_that_is_no_adapter_is_refused_by_name_and_writes_nothing(llama, tmp_path):
    family = llama[1]
    base, to = base_tensors(family), tmp_path / "out"

    def save(*ends: str, share: float = 0.1) -> None:
        after = edited(family, [n for n in base if n.endswith(ends)], share) if ends else base
        save_shira(lambda: copy.deepcopy(family.module), base, after, to, None)

    refused(
        lambda: save("q_proj.weight", "norm.weight"),
        r"and 5 other tensors changed: model\.layers\.0\.input_layernorm\.weight, .* and 2 more; .*--delta",
    )
    refused(lambda: save("embed_tokens.weight"), "1 other tensors changed: model.embed_tokens.weight; wanted none")
    refused(save, "no weight differs from the base")
    refused(
        lambda: save("up_proj.weight", share=1.0),
        "no layer .* fits .*: 'model.layers.0.mlp.up_proj' needs .* for its 2,048 weights",
    )
    assert not to.exists() and isinstance(family.module.get_submodule("model.layers.0.mlp.up_proj"), nn.Linear)
