"""Every recipe in examples/, shrunk: the same path, on a tiny model of the same class and made-up rows with its columns and classes."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import talos_ray
from talos_ray import SpecError
from talos_ray.cli import app
from talos_ray.models import load_model
from talos_ray.smoke import shrunk
from talos_ray.spec import load_spec
from talos_ray.tasks import load_task

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.yaml"))
EPOCHS = {"cars": 35, "dtd": 76, "eurosat": 12, "gtsrb": 11, "mnist": 5, "resisc45": 15, "sun397": 14, "svhn": 4}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_a_recipe_is_checked_on_made_up_rows(path, tmp_path):
    asked = load_spec(path)
    spec = shrunk(asked, tmp_path)
    assert [t.name for t in spec.tasks] == [t.name for t in asked.tasks]
    gate = asked.gate.model_copy(update={"strict": False})  # a few made-up rows show nothing
    assert (spec.mask, spec.gate, spec.search.method) == (asked.mask, gate, asked.search.method)
    talos_ray.check(spec)
    for was, task in zip((*asked.tasks, *asked.control), (*spec.tasks, *spec.control), strict=True):
        data = load_task(task, spec.seed)
        assert (task.input, task.label) == (was.input, was.label)
        if not asked.model.startswith("open_clip:"):  # there a model that reads little stands in, and gets short words
            assert (task.prompts, task.phrases) == (was.prompts, was.phrases)
        assert was.classes is None or data.classes == was.classes
        assert len(data.train) >= 2 * len(data.classes) and set(data.test.labels.tolist()) == set(
            range(len(data.classes))
        )
    families = {"open_clip": "Clip", "demo": "Clip", "hf": ("Encoder", "Seq2Seq", "Causal")}
    assert type(load_model(spec.model)).__name__ in families[asked.model.partition(":")[0]]


@pytest.mark.slow
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_a_recipe_runs_shrunk(path, tmp_path):
    out = tmp_path / "run"
    told = CliRunner().invoke(app, ["edit", str(path), "--smoke", "--json", "-o", str(out)])
    assert told.exit_code in (0, 3), told.output  # made-up rows may not satisfy a gate
    assert json.loads(told.stdout)["kind"]
    run = talos_ray.open_run(f"{out}-smoke/run")
    assert set(run.newest.coefficients) == {t.name for t in load_spec(path).tasks} and run.verify() == []


def test_the_vision_recipes_are_as_published():
    for name, arch in (("clip_vit_b32", "ViT-B-32"), ("clip_vit_b16", "ViT-B-16"), ("clip_vit_l14", "ViT-L-14")):
        spec = load_spec(next(p for p in EXAMPLES if p.stem.startswith(name)))
        assert (
            spec.model == f"open_clip:{arch}-quickgelu/openai"
            and {t.name: t.train["epochs"] for t in spec.tasks} == EPOCHS
        )
        t = spec.train
        assert (t.batch_size, t.lr, t.weight_decay, t.warmup_steps, t.precision) == (128, 1e-5, 0.1, 500, "bf16")
        assert spec.search.method == "grid" and spec.search.shared_points == 21
        sizes = {t.name: spec.train_for(t, 1280).steps for t in spec.tasks}
        assert sizes["cars"] == 350 and all(spec.train_for(t, 1).epochs is None for t in spec.tasks)


def test_a_spec_that_extends_itself_is_refused(tmp_path):
    (tmp_path / "a.yaml").write_text("extends: b.yaml\n")
    (tmp_path / "b.yaml").write_text("extends: a.yaml\n")
    with pytest.raises(SpecError, match="extends itself"):
        load_spec(tmp_path / "a.yaml")
