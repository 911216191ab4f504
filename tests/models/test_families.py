"""What every family must do, and what is said of models that cannot be used."""

import pytest
import torch
from images import write_images
from texts import save_encoder, write_texts

from talos_ray import SpecError
from talos_ray.core.fisher import SquaredGradients
from talos_ray.models import base_fingerprint, base_tensors, build_model, check_model, layout_of, load_model
from talos_ray.spec import make_spec
from talos_ray.tasks import Examples, decoded, encoded, load_task


@pytest.fixture(scope="module", params=["demo", "hf"])
def family(request, tmp_path_factory):
    """(name, the family, one task's data)."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "demo":
        path = write_images(folder, 40)
        name, task = "demo", {"name": "sides", "data": path, "input": "file", "label": "side"}
    else:
        name, task = save_encoder(folder / "model"), write_texts(folder, "animals", 40)
    spec = make_spec({"model": name, "tasks": [task], "output": "x"})
    return name, load_model(spec.model), load_task(spec.tasks[0], 0)


def test_logits_of_a_batch_are_those_of_its_members(family):
    _, f, data = family
    head = f.head(data.phrases, data.task.prompts)
    inputs, _ = Examples(data.train, f.preprocess).batch(torch.arange(8))
    logits = f.logits(inputs, head)
    assert head.shape[0] == 2 and logits.shape == (8, 2) and logits.std() > 0
    alone = torch.cat([f.logits(inputs[i : i + 1], head) for i in range(8)])
    assert torch.allclose(alone, logits, atol=1e-4)
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
    assert all(n.endswith("key.bias") for n in unused)


def test_every_score_comes_from_hooks(family):
    """Not even a key's bias, whose gradients are rounding errors, makes calibration go sample by sample."""
    _, f, data = family
    head = f.head(data.phrases, data.task.prompts)
    inputs, _ = Examples(data.train, f.preprocess).batch(torch.arange(4))
    assert SquaredGradients(f.module, layout_of(f)).check(lambda x: f.logits(x, head), inputs).looped == ()


def test_a_model_is_built_from_shared_tensors_without_a_copy(family):
    name, f, _ = family
    tensors, layout = base_tensors(f), layout_of(f)
    again = build_model(name, tensors, private=layout.names)
    assert base_fingerprint(again) == base_fingerprint(f)
    shared = {n for n, t in base_tensors(again).items() if t.data_ptr() == tensors[n].data_ptr()}
    assert shared == set(tensors) - set(layout.names)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("hf:", "no folder and no name of the Hub"),
        ("hf:a b", "no folder and no name of the Hub"),
        ("demo:x", "is not known"),
        ("openclip:x/y", "did you mean 'open_clip'"),
    ],
)
def test_names_that_cannot_be_a_model(name, said):
    with pytest.raises(SpecError, match=said):
        check_model(name)


def test_folders_that_hold_no_encoder(tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    with pytest.raises(SpecError, match=r"no config\.json"):
        check_model(f"hf:{tmp_path}")
    GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=1, vocab_size=8)).save_pretrained(tmp_path)
    with pytest.raises(SpecError, match="is a GPT2LMHeadModel; wanted a text encoder"):
        load_model(f"hf:{tmp_path}")


def test_columns_that_hold_no_text(tmp_path):
    (tmp_path / "x.csv").write_text("text,label\n" + "some words,a\n,b\n" * 10)
    (tmp_path / "n.csv").write_text("text,label\n" + "1,a\n2,b\n" * 10)
    for file, said in (("x", "row 1 of split 'train' has no text"), ("n", "wanted texts")):
        spec = make_spec(
            {"model": "hf:a/b", "tasks": [{"name": "t", "data": str(tmp_path / f"{file}.csv")}], "output": "x"}
        )
        with pytest.raises(SpecError, match=said):
            load_task(spec.tasks[0], 0)
