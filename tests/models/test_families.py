"""What every family must do, and what is said of models that cannot be used."""

import json
import os
import zlib
from collections import OrderedDict
from pathlib import Path

import open_clip
import pytest
import torch
from images import write_images
from PIL import Image
from safetensors.torch import load_file, save_file
from texts import save_model, write_texts
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    CLIPConfig,
    ViTConfig,
    ViTModel,
)

from talos_ray import SpecError
from talos_ray.core import replay
from talos_ray.core.blocks import gather
from talos_ray.core.compose import Composer
from talos_ray.core.delta import make_delta
from talos_ray.core.finetune import Plan, finetune
from talos_ray.core.fisher import SquaredGradients
from talos_ray.core.layout import fingerprint
from talos_ray.core.mask import mask_from_flags, select
from talos_ray.core.optimizer import SparseAdamW
from talos_ray.core.recompute import blocks_of, recomputing, wrapped
from talos_ray.inputs import Examples
from talos_ray.models import base_fingerprint, base_tensors, build_model, check_model, layout_of, load_model, shortened
from talos_ray.smoke import shrunk, tiny_model
from talos_ray.spec import make_spec
from talos_ray.tasks import decoded, encoded, load_task

HALF = "bfloat16"
FAMILIES = (
    "demo", "clip", "siglip", "bert", "classifier", "t5", "gpt2", "llama", "qwen3", "python",
    f"siglip {HALF}", f"bert {HALF}", f"classifier {HALF}", f"t5 {HALF}", f"llama {HALF}",
)  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def allowed():
    """The `python:` models of this file may run: Ray's processes inherit the variable."""
    before = os.environ.get("TALOS_ALLOW_CODE")
    os.environ["TALOS_ALLOW_CODE"] = "test_families,nowhere"
    yield
    os.environ.pop("TALOS_ALLOW_CODE")
    if before is not None:
        os.environ["TALOS_ALLOW_CODE"] = before


def operation(*names: str):
    """Marks what a test of every family shows that it can do."""
    return pytest.mark.operation(*names)


def test_the_table_in_the_docs_is_what_is_tested():
    done = [
        m.args for f in globals().values() if callable(f) for m in getattr(f, "pytestmark", ()) if m.name == "operation"
    ]
    operations = [name for names in done for name in names]
    lines = [
        ["family", *operations],
        ["---"] * (1 + len(operations)),
        *([name, *["yes"] * len(operations)] for name in FAMILIES),
    ]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    assert table in (Path(__file__).parents[2] / "docs/models.md").read_text(), f"docs/models.md wants:\n{table}"


class Bag:
    """A model of the user's own, as the escape hatch takes it."""

    edited = ("body.",)

    def __init__(self):
        torch.manual_seed(0)
        self.module = nn.Sequential(
            OrderedDict(
                words=nn.EmbeddingBag(64, 32, mode="sum"),
                body=nn.Sequential(nn.Linear(32, 48), nn.ReLU(), nn.Linear(48, 8)),
            )
        )

    def preprocess(self, examples):
        return torch.tensor([[zlib.crc32(w.encode()) % 64 for w in (e.split() * 12)[:12]] for e in examples])

    def head(self, phrases, prompts):
        return torch.arange(len(phrases))

    def features(self, inputs):
        return self.module(inputs)

    def logits(self, inputs, head):
        return self.features(inputs)[:, head]


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory):
    """(name, the family, one task's data)."""
    kind, _, dtype = request.param.partition(" ")
    folder = tmp_path_factory.mktemp(kind)
    if kind in ("demo", "clip", "siglip"):
        path = write_images(folder, 40)
        name, task = "demo", {"name": "sides", "data": path, "input": "file", "label": "side"}
        if kind != "demo":
            name = tiny_model(kind, ["a", "photo", "of", ".", "left", "right"], folder / "model")
    else:
        task = {**write_texts(folder, "animals", 40), "kind": "text", "input": "text", "prompts": ["{}"]}
        if kind == "classifier":
            task = {**task, "phrases": ["No", "Yes"]}
        name = "python:test_families:Bag" if kind == "python" else save_model(folder / "model", kind)
    name = name.replace("hf:", "hf-bf16:") if dtype == HALF else name
    spec = make_spec({"model": name, "tasks": [task], "output": "x"})
    loaded = load_model(spec.model)
    assert {p.dtype for p in loaded.module.parameters()} == {getattr(torch, dtype or "float32")}
    return name, loaded, load_task(spec.tasks[0], 0)


def test_logits_of_a_batch_are_those_of_its_members(family):
    _, f, data = family
    head = f.head(data.phrases, data.task.prompts)
    inputs, _ = Examples(data.train, f.preprocess).batch(torch.arange(8))
    logits = f.logits(inputs, head)
    assert head.shape[0] == 2 and logits.shape == (8, 2) and logits.std() > 0
    assert torch.equal(f.logits(shortened(f, inputs), head), logits)
    alone = torch.cat([f.logits(inputs[i : i + 1], head) for i in range(8)])
    half = next(f.module.parameters()).dtype == torch.bfloat16
    assert torch.allclose(alone, logits, atol=0.1 if half else 1e-4)
    assert torch.equal(f.preprocess(decoded(encoded(data.train.select(range(8))))), inputs)


def test_every_eligible_weight_matters(family):
    _, f, data = family
    layout, params = layout_of(f), dict(f.module.named_parameters())
    assert layout.total > 1000 and all(n.startswith(f.edited) for n in layout.names)
    inputs, _ = Examples(data.train, f.preprocess).batch(torch.arange(8))
    (f.logits(inputs, f.head(data.phrases, data.task.prompts)) ** 2).sum().backward()
    unused = [n for n in layout.names if params[n].grad is None or not params[n].grad.any()]
    f.module.zero_grad(set_to_none=True)
    # The bias of a key adds the same to all scores of a query, so softmax ignores it.
    assert all(n.endswith(("key.bias", "k_proj.bias")) for n in unused)


@operation("calibrate")
def test_every_score_comes_from_hooks(family):
    """Not even a key's bias, whose gradients are rounding errors, makes calibration go sample by sample."""
    _, f, data = family
    head = f.head(data.phrases, data.task.prompts)
    inputs, _ = Examples(data.train, f.preprocess).batch(torch.arange(4))
    assert SquaredGradients(f.module, layout_of(f)).check(lambda x: f.logits(x, head), inputs).looped == ()


@operation("share one base")
def test_a_model_is_built_from_shared_tensors_without_a_copy(family):
    name, f, data = family
    tensors, layout, raw = base_tensors(f), layout_of(f), decoded(encoded(data.test)[:4])
    again = build_model(name, tensors, private=layout.names)
    assert base_fingerprint(again) == base_fingerprint(f)
    shared = {n for n, t in base_tensors(again).items() if t.data_ptr() == tensors[n].data_ptr()}
    assert shared == set(tensors) - set(layout.names)
    head = f.head(data.phrases, data.task.prompts)
    with torch.inference_mode():
        assert torch.equal(*(m.logits(m.preprocess(raw), head) for m in (f, again)))


@operation("resume")
def test_a_training_that_was_cut_off_ends_on_the_same_bits(family):
    _, f, data = family
    layout, before = layout_of(f), {n: t.clone() for n, t in base_tensors(f).items()}
    mask = mask_from_flags(layout, select(layout, "random", 0.3))
    head, examples = f.head(data.phrases, data.task.prompts), Examples(data.train, f.preprocess)
    plan, saved, ends = Plan(data.task.name, len(data.train), 6, 8, 1e-2, 2, 0), {}, []

    def on_step(step: int, loss: float) -> None:
        saved.setdefault(step, {n: t.clone() for n, t in optimizer.state().items()})

    for start in (None, 3):
        optimizer = SparseAdamW(f.module, mask, 1e-2)
        begin = None if start is None else (start, saved[start])
        finetune(optimizer, plan, lambda x: f.logits(x, head), examples.batch, start=begin, on_step=on_step)
        ends.append(optimizer.values.detach().clone())
        optimizer.close()
        for name, t in base_tensors(f).items():
            t.copy_(before[name])
    assert torch.equal(*ends)


@operation("gradient checkpointing")
def test_recomputed_blocks_keep_less_and_train_the_same_bits(family):
    _, f, data = family
    layout, before = layout_of(f), {n: t.clone() for n, t in base_tensors(f).items()}
    mask = mask_from_flags(layout, select(layout, "random", 0.3, granularity="row"))
    head, examples = f.head(data.phrases, data.task.prompts), Examples(data.train, f.preprocess)
    blocks, ends, kept = blocks_of(f.module, f.edited), [], []
    assert blocks or type(f).__name__ == "Bag"
    for chosen in ((), blocks):
        optimizer, saved = SparseAdamW(f.module, mask, 1e-2), []
        with (
            wrapped(chosen, recomputing),
            torch.autograd.graph.saved_tensors_hooks(lambda t, saved=saved: saved.append(t.nbytes) or t, lambda t: t),
        ):
            finetune(
                optimizer,
                Plan(data.task.name, len(data.train), 3, 8, 1e-2, 1, 0),
                lambda x: f.logits(x, head),
                examples.batch,
            )
        kept.append(sum(saved))
        ends.append(optimizer.values.detach().clone())
        optimizer.close()
        for name, t in base_tensors(f).items():
            t.copy_(before[name])
    assert torch.equal(*ends) and not any("forward" in vars(m) for m in f.module.modules())
    assert kept[1] < 0.5 * kept[0] or not blocks


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
def test_a_gpu_replays_the_step_of_every_family(family, autocast, monkeypatch):
    _, f, data = family
    layout, before = layout_of(f), {n: t.clone() for n, t in base_tensors(f).items()}
    mask = mask_from_flags(layout, select(layout, "random", 0.3, granularity="row"))
    head = f.head(data.phrases, data.task.prompts).cuda()
    f.module.cuda()
    examples, ends, made = Examples(data.train, f.preprocess, "cuda"), [], []
    record = replay._Recording.__init__
    monkeypatch.setattr(replay._Recording, "__init__", lambda self, *a: record(self, *a) or made.append(self))

    def batch(index: torch.Tensor):
        inputs, labels = examples.batch(index)
        return shortened(f, inputs), labels

    for patience in (replay.AS_IT_IS, 1 << 30):
        monkeypatch.setattr(replay, "AS_IT_IS", patience)
        optimizer = SparseAdamW(f.module, mask, 1e-2)
        plan = Plan(data.task.name, len(data.train), 12, 8, 1e-2, 2, 0)
        finetune(optimizer, plan, lambda x: f.logits(x, head), batch, autocast=autocast)
        ends.append(optimizer.values.detach().clone())
        optimizer.close()
        for name, t in base_tensors(f).items():
            t.copy_(before[name])
    f.module.cpu()
    assert made and torch.equal(*ends)


@operation("train", "compose", "negate", "roll back")
def test_training_moves_masked_weights_only_and_is_undone_bit_by_bit(family):
    _, f, data = family
    layout, before = layout_of(f), {n: t.clone() for n, t in base_tensors(f).items()}
    mask = mask_from_flags(layout, select(layout, "random", 0.3, granularity="row"))
    head, examples = f.head(data.phrases, data.task.prompts), Examples(data.train, f.preprocess)
    values = gather(f.module, mask)
    optimizer = SparseAdamW(f.module, mask, 1e-2)
    losses = finetune(
        optimizer, Plan(data.task.name, len(data.train), 40, 8, 1e-2, 4, 0), lambda x: f.logits(x, head), examples.batch
    )
    delta = make_delta(
        data.task.name, optimizer.values.detach(), values, fingerprint(before), mask.fingerprint, torch.bfloat16, {}
    )
    optimizer.close()
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
    flags = layout.split(mask.flags)
    for name, t in base_tensors(f).items():
        moved = (t != before[name]).flatten()
        assert not (moved & ~flags[name]).any() if name in flags else not moved.any()
        t.copy_(before[name])
    composer = Composer(f.module, mask, [delta], fingerprint(before))
    for alpha in (1.0, -1.0):  # learn, forget
        composer.compose({data.task.name: alpha})
        assert base_fingerprint(f) != fingerprint(before)
        composer.rollback()
        assert base_fingerprint(f) == fingerprint(before)


@operation("export", "reload in its own library")
def test_a_saved_model_loads_in_its_own_library_and_answers_alike(family, tmp_path):
    _, f, data = family
    f.save(tmp_path)
    head, (inputs, _) = (
        f.head(data.phrases, data.task.prompts),
        Examples(data.train, f.preprocess).batch(torch.arange(8)),
    )
    kind = type(f).__name__
    if kind == "Clip":
        module = open_clip.create_model_from_pretrained(f"local-dir:{tmp_path}")[0]
    elif kind == "Bag":
        module = Bag().module
        module.load_state_dict(load_file(tmp_path / "model.safetensors"))
    else:
        auto = {
            "Encoder": AutoModel,
            "Vision": AutoModel,
            "Classifier": AutoModelForSequenceClassification,
            "Seq2Seq": AutoModelForSeq2SeqLM,
            "Causal": AutoModelForCausalLM,
        }[kind]
        module = auto.from_pretrained(tmp_path)
        again = load_model(f"hf:{tmp_path}")
        raw = decoded(encoded(data.test)[:2])
        assert torch.equal(again.preprocess(raw), f.preprocess(raw))
    assert fingerprint(dict(module.state_dict())) == base_fingerprint(f)
    with torch.inference_mode():
        wanted, own = f.logits(inputs, head), f.module
        f.module = module.eval()
        found = f.logits(inputs, head)
        f.module = own
    assert torch.equal(found, wanted)


def test_an_answers_score_is_its_likelihood(tmp_path):
    """Of a causal and of a sequence-to-sequence model, against the library's own loss, one text and answer at a time."""
    for name in (save_model(tmp_path / "llama", "llama"), save_model(tmp_path / "t5", "t5")):
        f = load_model(name)
        texts, phrases = (
            ["the old horse was seen", "by us", "it is not far from here again"],
            ["heron and otter", "wrench"],
        )
        with torch.inference_mode():
            found = f.logits(f.preprocess(texts), f.head(phrases, ["{}"]))
            for i, text in enumerate(texts):
                for j, phrase in enumerate(phrases):
                    words = f.tokenizer(text, return_tensors="pt").input_ids
                    answer = f.tokenizer(phrase, return_tensors="pt").input_ids
                    if "llama" in name:
                        whole = torch.cat([words, answer], 1)
                        loss = f.module(whole, labels=torch.cat([torch.full_like(words, -100), answer], 1)).loss
                    else:
                        loss = f.module(words, labels=answer).loss
                    assert float(found[i, j]) == pytest.approx(-float(loss), abs=1e-4)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("python:test_families:Bog", "no attribute 'Bog'"),
        ("python:nowhere:X", "No module named 'nowhere'"),
        ("hf:", "no folder and no name of the Hub"),
        ("hf:a b", "no folder and no name of the Hub"),
        ("demo:x", "is not known"),
        ("open_clip:local-dir:nowhere", "folder 'nowhere' has no open_clip_config.json"),
        ("open_clip:hf-hub:a b", "'a b' is no name of the Hub"),
        ("openclip:x/y", "did you mean 'open_clip'"),
    ],
)
def test_names_that_cannot_be_a_model(name, said):
    with pytest.raises(SpecError, match=said):
        check_model(name)


def test_folders_that_hold_no_model_of_ours(tmp_path):
    with pytest.raises(SpecError, match=r"no config\.json"):
        check_model(f"hf:{tmp_path}")
    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    ViTModel(ViTConfig(**small)).save_pretrained(tmp_path)
    with pytest.raises(
        SpecError, match=r"class 'ye' is no label of this classifier \(did you mean 'yes'\?\); it has: yes, no"
    ):
        load_model(save_model(tmp_path / "sorts", "classifier")).head(["ye"], ["{}"])
    with pytest.raises(SpecError, match="is a ViTModel, which reads images and knows no words; wanted CLIP or SigLIP"):
        load_model(f"hf:{tmp_path}")
    with pytest.raises(SpecError, match="2 prompts are given; wanted one"):
        load_model(save_model(tmp_path / "gpt2", "gpt2")).head(["a"], ["{}", "a {}"])


def test_columns_that_hold_no_text(tmp_path):
    (tmp_path / "x.csv").write_text("text,label\n" + "some words,a\n,b\n" * 10)
    (tmp_path / "n.jsonl").write_text('{"text": 1, "label": "a"}\n{"text": 2, "label": "b"}\n' * 10)
    for file, said in (("x.csv", "row 1 of split 'train' has no text"), ("n.jsonl", "wanted texts")):
        spec = make_spec({"model": "hf:a/b", "tasks": [{"name": "t", "data": str(tmp_path / file)}], "output": "x"})
        with pytest.raises(SpecError, match=said):
            load_task(spec.tasks[0], 0)


def test_how_a_tag_wants_its_images_goes_to_every_process(tmp_path, monkeypatch):
    """Also to those that are built without its weights: open_clip's SigLIP and MobileCLIP have means of their own."""
    tower = {"width": 32, "layers": 1, "image_size": 32, "patch_size": 8, "head_width": 16}
    texts = {"context_length": 8, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    sizes = {"embed_dim": 16, "vision_cfg": tower, "text_cfg": texts}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny", sizes)
    save_file(open_clip.create_model("tiny").state_dict(), tmp_path / "tiny.safetensors")
    own = {"mean": (0.5, 0.4, 0.3), "std": (0.1, 0.2, 0.3), "interpolation": "bilinear", "resize_mode": "squash"}
    tags = {"own": {"file": str(tmp_path / "tiny.safetensors"), **own}}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tiny", tags)
    whole = load_model("open_clip:tiny/own")
    built = build_model("open_clip:tiny/own", base_tensors(whole), private=())
    image, head = Image.effect_noise((48, 40), 90).convert("RGB"), torch.randn(3, 16)
    for f in (whole, built):
        mean, std = f.scale[torch.device("cpu")]
        assert (mean.flatten().tolist(), std.flatten().tolist()) == (
            pytest.approx(list(own["mean"])),
            pytest.approx(list(own["std"])),
        )
    assert torch.equal(whole.preprocess([image]), built.preprocess([image]))
    assert torch.equal(*(f.logits(whole.preprocess([image]), head) for f in (whole, built)))
    built.save(tmp_path)
    told = json.loads((tmp_path / "open_clip_config.json").read_text())["preprocess_cfg"]
    assert {k: tuple(v) if isinstance(v, list) else v for k, v in told.items() if k in own} == own
    name = make_spec({"model": f"open_clip:local-dir:{tmp_path}/.", "tasks": ["demo:counts"], "output": "x"}).model
    assert name == f"open_clip:local-dir:{tmp_path}"  # an edited model is the next one's base
    for f in (load_model(name), build_model(name, base_tensors(whole), private=())):
        assert torch.equal(f.preprocess([image]), whole.preprocess([image]))
        assert base_fingerprint(f) == base_fingerprint(whole)
    demo = tmp_path / "demo"
    demo.mkdir()
    load_model("demo").save(demo)
    with pytest.raises(SpecError, match="but open_clip's tokenizer has 49408; wanted a model with that tokenizer"):
        load_model(f"open_clip:local-dir:{demo}")
    (tmp_path / "open_clip_model.safetensors").unlink()
    (tmp_path / "tiny.safetensors").unlink()
    with pytest.raises(SpecError, match="cannot be loaded: Required pretrained weights"):
        load_model(name)


def test_checkpoints_that_lack_what_would_be_edited(tmp_path):
    save_model(tmp_path, "t5")
    weights = {n: t for n, t in load_file(tmp_path / "model.safetensors").items() if not n.startswith("decoder.block")}
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(SpecError, match=r"lacks \d+ of the weights to be edited, the first is 'decoder\.block\.0"):
        load_model(f"hf:{tmp_path}")
    CLIPConfig(architectures=["ChineseCLIPModel"]).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "chinese_clip"}))
    with pytest.raises(SpecError, match="reads images in a way of its own; wanted CLIP or SigLIP"):
        load_model(f"hf:{tmp_path}")


@pytest.mark.parametrize("pooling", ["mean", "cls", "lasttoken"])
def test_an_encoder_pools_as_sentence_transformers_does(tmp_path, pooling):
    """As it is read, and as it is exported."""
    library = pytest.importorskip("sentence_transformers")
    parts = pytest.importorskip("sentence_transformers.sentence_transformer.modules")
    reader = parts.Transformer(save_model(tmp_path / "bert", "bert").removeprefix("hf:"))
    modules = [reader, parts.Pooling(32, pooling_mode=pooling), parts.Normalize()]
    whole = library.SentenceTransformer(modules=modules, device="cpu")
    whole.save(str(tmp_path / "saved"))
    f = load_model(f"hf:{tmp_path / 'saved'}")
    texts = ["the old horse was seen near us", "by us", "it is not far"]
    wanted = torch.tensor(whole.encode(texts))
    with torch.inference_mode():
        torch.testing.assert_close(f.features(f.preprocess(texts)), wanted, rtol=0, atol=1e-5)
    (tmp_path / "out").mkdir()
    f.save(tmp_path / "out")
    again = library.SentenceTransformer(str(tmp_path / "out"), device="cpu")
    torch.testing.assert_close(torch.tensor(again.encode(texts)), wanted, rtol=0, atol=1e-5)


def test_encoders_that_go_on_in_a_way_of_their_own(tmp_path):
    name = save_model(tmp_path, "bert")
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling/config.json").write_text('{"pooling_mode_max_tokens": true, "include_prompt": true}')
    with pytest.raises(SpecError, match=r"pools its tokens by max_tokens; wanted one of cls, mean, lasttoken"):
        load_model(name)
    (tmp_path / "1_Pooling/config.json").write_text('{"pooling_mode_cls_token": true, "include_prompt": true}')
    assert load_model(name).pooling == "cls"
    (tmp_path / "modules.json").write_text('[{"type": "sentence_transformers.models.Dense"}]')
    with pytest.raises(SpecError, match="goes on with Dense behind its transformer"):
        load_model(name)


@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "pad_token_id": None}),
        ("llama", {"num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 5}),
        (
            "t5",
            {
                "d_model": 32,
                "d_kv": 16,
                "num_layers": 2,
                "num_heads": 2,
                "pad_token_id": 0,
                "eos_token_id": 3,
                "decoder_start_token_id": 0,
            },
        ),
    ],
)
def test_a_classifier_on_a_decoder_reads_every_text_to_its_own_end(tmp_path, kind, shape):
    """Beside longer texts as alone, and as its own library does."""
    save_model(tmp_path, "classifier")  # for its tokenizer
    size = len(AutoTokenizer.from_pretrained(tmp_path))
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": size}
    config = AutoConfig.for_model(kind, **{**sizes, **shape}, id2label={0: "no", 1: "yes"})
    torch.manual_seed(0)
    module = AutoModelForSequenceClassification.from_config(config).eval()
    module.config.architectures = [type(module).__name__]
    module.save_pretrained(tmp_path)
    f = load_model(f"hf:{tmp_path}")
    texts = ["the old horse was seen near us again", "by us", "it is not far"]
    with torch.inference_mode():
        found = f.logits(f.preprocess(texts), f.head(["no", "yes"], ["{}"]))
        wanted = [module(f.tokenizer(text, return_tensors="pt").input_ids).logits for text in texts]
    torch.testing.assert_close(found, torch.cat(wanted), rtol=0, atol=1e-5)
    parts = {n.split(".")[1] for n in layout_of(f).names}
    assert parts == ({"encoder", "decoder"} if kind == "t5" else {"h"} if kind == "gpt2" else {"layers"})


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("Qwen/Qwen2.5-0.5B", "Causal"),
        ("google/gemma-2-2b", "Causal"),
        ("openai-community/gpt2", "Causal"),
        ("facebook/bart-base", "Seq2Seq"),
        ("FacebookAI/roberta-base", "Encoder"),
    ],
)
def test_what_stands_for_a_model_is_of_its_kind_and_reads(tmp_path, name, family):
    task = {**write_texts(tmp_path, "animals", 8), "prompts": ["{}"]}
    f = load_model(shrunk(make_spec({"model": f"hf:{name}", "tasks": [task], "output": "x"}), tmp_path / "tiny").model)
    assert type(f).__name__ == family and f.head(["yes", "no"], ["{}"]).shape[0] == 2
    assert f.preprocess(["the old one"]).max() > 0
