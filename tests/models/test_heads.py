"""Heads: fitted to features where a task asks for it, made once a run, and refused where features are not what is scored."""

import pytest
import torch
from images import write_images
from texts import save_model, write_texts

import talos_ray
from talos_ray import SpecError
from talos_ray.core.fisher import SquaredGradients
from talos_ray.inputs import Examples
from talos_ray.models import base_fingerprint, layout_of, load_model
from talos_ray.models.heads import head_key, make_head, scorer
from talos_ray.orchestrate.plan import _heads
from talos_ray.progress import Progress
from talos_ray.smoke import tiny_model
from talos_ray.spec import make_spec
from talos_ray.storage.run_folder import RunFolder
from talos_ray.tasks import load_task


@pytest.fixture(scope="module", params=["demo", "siglip", "bert", "classifier"])
def made(request, tmp_path_factory):
    """(model, data of a task with a linear head)."""
    folder, kind = tmp_path_factory.mktemp(request.param), request.param
    if kind in ("bert", "classifier"):
        model, task = save_model(folder / "model", kind), write_texts(folder, "animals", 60)
    else:
        model = "demo" if kind == "demo" else tiny_model(kind, ["a", "photo", "of", ".", "left"], folder / "model")
        task = {"name": "sides", "data": write_images(folder, 60), "input": "file", "label": "side"}
    spec = make_spec({"model": model, "tasks": [{**task, "head": "linear"}], "output": "x"})
    return load_model(spec.model), load_task(spec.tasks[0], 0)


def test_a_linear_head_knows_its_task_and_is_calibrated_by_hooks(made):
    family, data = made
    head = make_head(family, data, 0)
    inputs, labels = Examples(data.train, family.preprocess).batch(torch.arange(len(data.train)))
    logits = scorer(family, "linear", head)
    with torch.no_grad():
        features = family.features(inputs)
        assert head.shape == (2, features.shape[1] + 1)
        assert torch.equal(logits(inputs), features @ head[:, :-1].T + head[:, -1])
        assert (logits(inputs).argmax(-1) == labels).float().mean() > 0.9
    assert torch.equal(make_head(family, data, 0), head)
    assert SquaredGradients(family.module, layout_of(family)).check(logits, inputs).looped == ()


def test_a_run_makes_each_head_once(made, tmp_path):
    family, data = made
    folder, base, name = RunFolder(str(tmp_path / "run")), base_fingerprint(family), data.task.name
    head = torch.full((2, 5), 7.0)  # not what would be fitted
    head[1] = 8
    with Progress() as progress:
        progress.begin("check", "heads")
        for key, kept in ((head_key(base, data), True), ("another", False)):
            folder.begin({}, base, {}, {name: head}, {name: data.classes}, {name: key})
            found = _heads(folder, family, base, {name: data}, 0, progress)[name]
            assert (found.shape == (2, 5) and bool((found[0] == 7).all())) == kept
        (tmp_path / "run" / "heads.safetensors").write_bytes(b"half")
        assert _heads(folder, family, base, {name: data}, 0, progress)[name].shape[1] != 5


def test_a_model_that_answers_in_words_has_no_linear_head(tmp_path):
    task = {**write_texts(tmp_path, "animals", 60), "head": "linear"}
    spec = make_spec({"model": save_model(tmp_path / "t5", "t5"), "tasks": [task], "output": str(tmp_path / "run")})
    with pytest.raises(SpecError, match=r"tasks\.animals\.head is 'linear', but model .* answers in words"):
        talos_ray.check(spec)
