"""Which files of a folder are the model, and what is wrong with one, in a line."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from texts import save_model, write_texts

import talos_ray
from talos_ray import SpecError, Task
from talos_ray.models import base_tensors, checkpoint_tensors, layout_of, load_model
from talos_ray.models.heads import check_head, make_head
from talos_ray.models.weights import compared, told_left_out
from talos_ray.orchestrate.plan import weights_of
from talos_ray.smoke import tiny_model
from talos_ray.spec import make_spec
from talos_ray.tasks import load_task


def refused(call, match: str) -> None:
    with pytest.raises(SpecError, match=match) as caught:
        call()
    assert len(str(caught.value).splitlines()) == 1


def test_the_model_of_a_folder_is_what_its_index_names(tmp_path):
    a, b = {"x": torch.ones(3)}, {"y": torch.full((2,), 2.0)}
    save_file(a, tmp_path / "m-1.safetensors")
    save_file(b, tmp_path / "m-2.safetensors")
    refused(
        lambda: checkpoint_tensors(str(tmp_path)),
        r"holds 2 safetensors files \(m-1.safetensors, m-2.safetensors\) and neither",
    )
    save_file({"x": torch.zeros(3)}, tmp_path / "old-backup.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"x": "m-1.safetensors", "y": "m-2.safetensors"}})
    )
    found = checkpoint_tensors(str(tmp_path))
    assert torch.equal(found["x"], a["x"]) and torch.equal(found["y"], b["y"]) and len(found) == 2
    (tmp_path / "m-2.safetensors").unlink()
    refused(
        lambda: checkpoint_tensors(str(tmp_path)), "1 of the 2 files .* are missing, the first is 'm-2.safetensors'"
    )
    save_file({"q.lora_A.weight": torch.ones(2, 2)}, tmp_path / "lora.safetensors")
    refused(lambda: checkpoint_tensors(str(tmp_path / "lora.safetensors")), "weights of an adapter alone; wanted its folder")
    both = tmp_path / "both"
    both.mkdir()
    save_file({"q.weight": torch.ones(2, 2)}, both / "model.safetensors")
    (both / "adapter_config.json").write_text("{}")
    refused(
        lambda: checkpoint_tensors(str(both)),
        r"an adapter \(adapter_config.json\) and whole weights \(model.safetensors\); wanted one of the two",
    )


def test_an_index_that_does_not_say_where_tensors_are(tmp_path):
    index = tmp_path / "model.safetensors.index.json"

    def says(places: dict) -> None:
        index.write_text(json.dumps({"weight_map": places}))

    def read() -> dict:
        return checkpoint_tensors(str(tmp_path))

    save_file({"x": torch.ones(3), "z": torch.ones(1)}, tmp_path / "m-1.safetensors")
    save_file({"y": torch.ones(2)}, tmp_path / "m-2.safetensors")
    right = {"x": "m-1.safetensors", "z": "m-1.safetensors", "y": "m-2.safetensors"}
    says(right)
    assert sorted(read()) == ["x", "y", "z"]
    says({**right, "y": "m-1.safetensors", "x": "m-2.safetensors"})
    refused(read, "2 tensors are not in the files that .* names for them, the first is 'x' in 'm-2.safetensors'")
    for elsewhere in ("../m-1.safetensors", str(tmp_path / "m-1.safetensors"), "m.bin"):
        says({**right, "x": elsewhere})
        refused(read, f"names the file '{elsewhere}'; wanted safetensors files that lie beside it")
    says(right)
    save_file({"y": torch.ones(2), "x": torch.zeros(3)}, tmp_path / "m-2.safetensors")  # one of them is stale
    refused(read, "tensor 'x' stands in 'm-1.safetensors' and in 'm-2.safetensors'")
    save_file({"y": torch.ones(2)}, tmp_path / "m-2.safetensors")
    save_file({"x": torch.zeros(3), "y": torch.ones(2), "z": torch.ones(1)}, tmp_path / "model.safetensors")
    refused(read, "holds model.safetensors and model.safetensors.index.json, which names other files")
    says(dict.fromkeys(right, "model.safetensors"))
    assert torch.equal(read()["x"], torch.zeros(3))


def test_files_that_are_not_what_they_look_like(tmp_path):
    model = save_model(tmp_path, "bert")
    weights, whole = tmp_path / "model.safetensors", (tmp_path / "model.safetensors").read_bytes()
    for content, match in (
        (b"version https://git-lfs.github.com/spec/v1\n", "is a pointer of Git LFS .*run `git lfs pull`"),
        (whole[:-100], "is cut off: it has .* bytes, and its header says"),
        (whole[:6], "is cut off"),
        (b"PK\x03\x04" + whole, "begins with b'PK.*, as no safetensors file does"),
        (b"\x10" + b"\0" * 7 + b"no JSON at all.." + whole, "is no safetensors"),
    ):
        weights.write_bytes(content)
        refused(lambda: load_model(model), match)
    weights.write_bytes(whole)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "gptq"}}))
    refused(lambda: load_model(model), r"is quantised \(gptq\)")


def changed(folder: Path, **more) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **more}))


def junk(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"junk")


def as_integers(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    whole = {n: t.to(torch.int8) if t.dim() == 2 else t for n, t in weights.items()}
    save_file(whole, folder / "model.safetensors", {"format": "pt"})


def without(part: str):
    def take_out(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        save_file({n: t for n, t in weights.items() if part not in n}, folder / "model.safetensors", {"format": "pt"})

    return take_out


@pytest.mark.parametrize(
    ("break_it", "match"),
    [
        (without("word_embeddings"), "lacks 1 of the weights that are read, the first is 'embeddings.word_embeddings"),
        (without("embeddings.LayerNorm"), "lacks 2 of the weights that are read"),
        (without("layer.0.output.dense.bias"), "lacks 1 of the weights to be edited"),
        (
            lambda f: changed(f, intermediate_size=48),
            r"tensor 'encoder.*' of its weights has shape \[64\]; wanted \[48\], as its config.json says",
        ),
        (lambda f: [p.unlink() for p in f.glob("tokenizer*")], "its tokenizer knows no words"),
        (lambda f: (f / "config.json").write_text("[]"), "config.json holds list; wanted dict"),
        (lambda f: (f / "config.json").write_text("[" * 100_000), "config.json is no JSON"),
        (lambda f: (f / "model.safetensors.index.json").write_text("[]"), "index.json holds list; wanted dict"),
        (lambda f: (f / "model.safetensors.index.json").write_text('{"weight_map": ["a"]}'), "has no weight_map"),
        (lambda f: (f / "sentence_bert_config.json").write_text("[1]"), "config.json holds list; wanted dict"),
        (lambda f: (f / "modules.json").write_text('{"a": 1}'), "modules.json holds dict; wanted list"),
        (lambda f: (f / "modules.json").write_text("[1]"), "goes on with 1 behind its transformer"),
        (junk, "its weights cannot be read: .*download them again"),
        (as_integers, r"weights of model.safetensors are of other dtypes .*the first is '.*' of I8; wanted float32"),
        (
            lambda f: changed(f, num_hidden_layers=1),
            "its weights hold 2 layers of 'encoder.layer', and its config.json says 1",
        ),
    ],
    ids=["words", "norm", "bias", "shape", "no-words", "config", "deep", "index", "map", "length", "modules", "module", "pickle", "int8", "layers"],
)
def test_folders_that_are_no_model(tmp_path, break_it, match):
    model = save_model(tmp_path, "bert")
    break_it(tmp_path)
    refused(lambda: load_model(model), match)


def test_a_tokenizer_of_another_model_and_a_path_that_is_none(tmp_path):
    model = save_model(tmp_path, "bert")
    known = len(load_model(model).module.get_input_embeddings().weight)
    told = json.loads((tmp_path / "tokenizer.json").read_text())
    words = told["model"]["vocab"]
    words |= {f"more{i}": known + i for i in range(3)}
    (tmp_path / "tokenizer.json").write_text(json.dumps(told))
    refused(lambda: load_model(model), f"knows {known} words, but its tokenizer has {known + 3}")
    refused(lambda: load_model("hf:./nowhere"), "'./nowhere' is no folder and no name of the Hub")


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_two_towers_want_all_that_they_read(tmp_path, kind):
    model = tiny_model(kind, ["a", "left", "right"], tmp_path)
    load_model(model)
    without("logit_bias")(tmp_path)
    load_model(model)
    place = tmp_path / "preprocessor_config.json"
    whole = place.read_text()
    for content in ("{", None):
        place.write_text(content) if content else place.unlink()
        refused(lambda: load_model(model), "how it wants its images cannot be read: .*; wanted the preprocessor_config")
    place.write_text(whole)
    without("text_model.embeddings.token")(tmp_path)
    refused(lambda: load_model(model), "lacks 1 of the weights that are read, the first is 'text_model.embeddings.token")


def test_what_is_not_read_may_be_lost(tmp_path):
    model = save_model(tmp_path, "bert")
    wanted = load_model(model)
    without("pooler")(tmp_path)
    family = load_model(model)
    assert torch.equal(family.features(family.preprocess(["horse"])), wanted.features(wanted.preprocess(["horse"])))


def test_padding_that_the_model_has_no_embedding_of_is_not_read(tmp_path):
    model = save_model(tmp_path, "bert")
    texts = ["horse", "the horse and the hammer of a meadow"]
    wanted = load_model(model)
    told = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**told, "pad_token": "<nope>"}))
    family = load_model(model)
    assert family.tokenizer.pad_token_id >= len(family.module.get_input_embeddings().weight)
    assert torch.equal(family.features(family.preprocess(texts)), wanted.features(wanted.preprocess(texts)))


def test_what_a_checkpoint_has_changed_is_told():
    base = {"w": torch.randn(8, 8), "b": torch.randn(8)}
    assert "is the base itself" in compared(dict(base), base, "x")
    assert "but for rounding" in compared({n: t.bfloat16().float() for n, t in base.items()}, base, "x")
    assert "but for rounding" in compared({n: t.half() for n, t in base.items()}, base, "x")
    assert compared({"w": base["w"] + 1e-3, "b": base["b"]}, base, "x") is None
    refused(lambda: compared({"w": base["w"] * float("nan"), "b": base["b"]}, base, "x"), "x: tensor 'w' holds NaN")


def test_a_checkpoint_s_names_dtypes_and_other_tensors(tmp_path):
    model = save_model(tmp_path / "m", "bert")
    family = load_model(model)
    base, layout = base_tensors(family), layout_of(family)
    file = tmp_path / "tuned.safetensors"
    task = Task(**write_texts(tmp_path, "animals", 4), kind="text", checkpoint=str(file))

    def tensors(**more: torch.Tensor) -> dict[str, torch.Tensor]:
        save_file({**{n: t.contiguous() for n, t in base.items()}, **more}, file)
        return weights_of(task, layout, model, base)

    name = next(n for n in layout.names if n.endswith("bias"))
    for odd in (torch.int8, torch.float8_e4m3fn, torch.complex64):
        refused(lambda odd=odd: tensors(**{name: base[name].to(odd)}), f"tensor '{name}' is of {odd}; wanted float32")
    assert torch.equal(tensors(**{name: base[name].bfloat16()})[name], base[name].bfloat16())
    words = "embeddings.word_embeddings.weight"
    assert told_left_out(tensors(), base, layout.names, "x") is None
    assert told_left_out(tensors(**{words: base[words].half()}), base, layout.names, "x") is None
    told = told_left_out(tensors(**{words: base[words] + 1}), base, layout.names, "x")
    assert "1 of its tensors that no run changes differ from the base, the first is " + repr(words) in told
    save_file({f"module.{n}": t.contiguous() for n, t in base.items()}, file)
    refused(lambda: weights_of(task, layout, model, base), "take 'module.' off its tensors' names")
    torch.save({}, tmp_path / "x.PT")
    refused(lambda: checkpoint_tensors(str(tmp_path / "x.PT")), "is a .PT file, which may hold code")


def test_a_base_that_is_not_finite_and_heads_that_cannot_work(tmp_path):
    model = save_model(tmp_path / "m", "bert")
    task = write_texts(tmp_path, "animals", 40)

    def checked(**more) -> None:
        talos_ray.check(make_spec({"model": model, "tasks": [{**task, **more}], "output": str(tmp_path / "run")}))

    checked()
    refused(
        lambda: checked(phrases=["zebra", "giraffe"]),
        r"classes 'yes' \('zebra'\), 'no' \('giraffe'\) have the same head",
    )
    refused(
        lambda: checked(phrases=["zebra giraffe", "okapi"]), "made of words that the model's tokenizer does not know"
    )
    long = "the old one " * 20
    refused(
        lambda: checked(phrases=[f"{long}horse", f"{long}hammer"]),
        "have the same head: .*behind the end of what it reads",
    )
    family, data = load_model(model), load_task(make_spec({"model": model, "tasks": [task], "output": "x"}).tasks[0], 0)
    head = make_head(family, data, 0)
    check_head(family, data, head)
    for odd in (float("nan"), float("inf")):
        broken = head.clone()
        broken[1, 2] = odd
        refused(lambda broken=broken: check_head(family, data, broken), r"head of classes 'no' .*holds NaN or infinite")
    weights = load_file(tmp_path / "m" / "model.safetensors")
    weights["embeddings.word_embeddings.weight"][3, 5] = float("inf")
    save_file(weights, tmp_path / "m" / "model.safetensors", {"format": "pt"})
    refused(checked, "1 values of its tensor 'embeddings.word_embeddings.weight' are NaN or infinite")
    assert not Path(tmp_path / "run").exists()
