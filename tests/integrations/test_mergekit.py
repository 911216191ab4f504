"""Specs made of mergekit configurations, and versions that mergekit itself makes again."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from recorded import made as made_run
from safetensors.torch import load_file
from texts import save_model
from typer.testing import CliRunner

from talos_ray import SpecError
from talos_ray.cli import app
from talos_ray.core.compose import Composer
from talos_ray.core.merging import merged
from talos_ray.integrations.mergekit import spec_of
from talos_ray.models import base_tensors, load_model
from talos_ray.spec import load_spec

TIES = """
models:
  - model: base
  - model: me/Maths-v1.0
    parameters: {density: 0.5, weight: 0.3}
  - model: tuned/v1.0
    parameters: {weight: 0.7}
  - base+lora
merge_method: ties
base_model: base
parameters: {density: 0.3, normalize: true, int8_mask: true}
dtype: bfloat16
"""


def made(tmp_path: Path, config: str):
    (tmp_path / "mergekit.yaml").write_text(config)
    (tmp_path / "spec.yaml").unlink(missing_ok=True)
    done = CliRunner().invoke(app, ["init", str(tmp_path), "--from-mergekit", str(tmp_path / "mergekit.yaml")])
    assert done.exit_code == 0, done.exception
    return load_spec(tmp_path / "spec.yaml"), (tmp_path / "spec.yaml").read_text()


def test_models_become_tasks_that_were_trained_elsewhere(tmp_path):
    for folder in ("base", "tuned/v1.0"):
        save_model(tmp_path / folder, "llama")
    spec, text = made(tmp_path, TIES)
    assert spec.model == f"hf:{tmp_path}/base" and spec.mask.strategy == "all"
    checkpoints = {t.name: t.checkpoint for t in spec.tasks}
    assert checkpoints == {
        "Maths-v1.0": "hf:me/Maths-v1.0",
        "v1.0": f"hf:{tmp_path}/tuned/v1.0",
        "base_lora": f"{tmp_path}/lora",
    }
    assert spec.search.merge.method == "ties" and spec.search.merge.density == pytest.approx((0.5 + 0.3 + 0.3) / 3)
    assert "the mean of mergekit's" in text and "mergekit's weight was 0.7; here coefficients are learned" in text
    assert {t.data for t in spec.tasks} == {"CHANGE.csv"} and spec.tasks[0].kind == "text"


@pytest.mark.parametrize(
    ("method", "density", "wanted"),
    [
        ("task_arithmetic", None, ("linear", 0.2, "")),
        ("linear", None, ("linear", 0.2, "an average of models")),
        ("dare_linear", 0.4, ("dare", 0.4, "")),
        ("dare_ties", [0.1, 0.9], ("dare", 0.2, "CHANGE density")),
    ],
)
def test_methods_and_densities(tmp_path, method, density, wanted):
    models = [{"model": f"me/{name}", "parameters": {"density": density} if density else {}} for name in "aa"]
    config = {"models": models, "merge_method": method, "base_model": "me/base"}
    spec, text = made(tmp_path, yaml.safe_dump(config))
    assert (spec.search.merge.method, spec.search.merge.density) == wanted[:2] and wanted[2] in text
    assert [t.name for t in spec.tasks] == ["a", "a_2"]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"merge_method": "slerp"}, "merge_method is 'slerp'.*; wanted one of linear, task_arithmetic"),
        ({"merge_method": "tise"}, "did you mean 'ties'"),
        ({"base_model": None}, "base_model is None; wanted the model that the others"),
        ({"models": None, "slices": []}, "has no list of models; .*slices have no counterpart"),
        ({"models": ["base"]}, "names no model but its base"),
        ({"models": [{"model": {"path": "x"}}]}, "a model is .*; wanted a name or a path"),
        ({"models": ["x", "  "]}, "a model is '  '; wanted a name or a path"),
        ({"base_model": "a/b+c/d"}, r"base_model 'a/b\+c/d' is a model with an adapter; wanted a model alone"),
        ({"parameters": 3}, "parameters are '3'; wanted names and values"),
        ({"models": [{"model": "x", "parameters": ["weight"]}]}, r"parameters are \"\['weight'\]\"; wanted names"),
        *(({"parameters": {"density": d}}, "density is .*; wanted a number above 0 and up to 1") for d in (0, 2, True, "0.5", float("nan"))),
        ({"models": ["other+lora"]}, "'other\\+lora' is an adapter on another model than the base 'base'"),
    ],
)
def test_what_has_no_counterpart_is_refused(tmp_path, change, match):
    (tmp_path / "mergekit.yaml").write_text(yaml.safe_dump({**yaml.safe_load(TIES), **change}))
    with pytest.raises(SpecError, match=match) as caught:
        spec_of(tmp_path / "mergekit.yaml")
    assert len(str(caught.value).splitlines()) == 1


def test_adapters_lie_here_or_on_the_hub_and_the_base_is_known_in_other_words(tmp_path):
    (tmp_path / "me/mine").mkdir(parents=True)
    models = ["./base/", "base+me/mine", "./base+they/theirs@v1", "base+../theirs"]
    (tmp_path / "base").mkdir()
    (tmp_path / "mergekit.yaml").write_text(yaml.safe_dump({"merge_method": "ties", "base_model": "base", "models": models}))
    spec = yaml.safe_load(spec_of(tmp_path / "mergekit.yaml"))
    assert [task["checkpoint"] for task in spec["tasks"]] == [f"{tmp_path}/me/mine", "hub:they/theirs@v1", f"{tmp_path.parent}/theirs"]


def test_a_spec_may_go_to_a_folder_that_is_not_there(tmp_path):
    (tmp_path / "mergekit.yaml").write_text(TIES)
    done = CliRunner().invoke(app, ["init", str(tmp_path / "new/merge"), "--from-mergekit", str(tmp_path / "mergekit.yaml")])
    assert done.exit_code == 0 and (tmp_path / "new/merge/spec.yaml").is_file()


def by_mergekit(config: Path, out: Path) -> dict[str, torch.Tensor]:
    """What mergekit's own command makes of a configuration."""
    command = [str(Path(sys.executable).with_name("mergekit-yaml")), str(config), str(out), "--no-copy-tokenizer"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=config.parent)
    assert done.returncode == 0, done.stderr[-2000:]
    return load_file(out / "model.safetensors")


@pytest.mark.parametrize("kind", ["llama", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("llama bf16", "gpt2", "qwen3", "classifier"))])
def test_mergekit_makes_a_version_of_what_was_exported(tmp_path, kind):
    run = made_run(tmp_path, kind, shared_by="task")
    out = tmp_path / "out"
    files = run.export(out, mergekit=True)
    tasks = sorted(run.newest.deltas)
    assert {"mergekit.yaml", "heads.safetensors", "base/model.safetensors"} < set(files)
    assert {f"tasks/{task}/model.safetensors" for task in tasks} < set(files)
    theirs = by_mergekit(out / "mergekit.yaml", tmp_path / "merged")
    wanted = {name: tensor for name, tensor in base_tensors(run.model()).items() if name in theirs}
    base = base_tensors(run.model(0))
    assert len(wanted) > 10 and any(not torch.equal(wanted[name], base[name]) for name in wanted)
    for name, tensor in wanted.items():
        assert theirs[name].dtype == tensor.dtype
        # mergekit adds up differences of rounded models: each weight is off by some last bits of the largest.
        last = torch.finfo(tensor.dtype).eps * max(1.0, float(tensor.abs().max()))
        torch.testing.assert_close(theirs[name], tensor, rtol=0, atol=3 * last)


def test_ties_without_cutting_is_mergekits(tmp_path):
    """What mergekit cuts it cuts tensor by tensor; signs and means are the same."""
    run = made_run(tmp_path, "llama", shared_by="task")
    run.export(tmp_path / "out", mergekit=True)
    config = yaml.safe_load((tmp_path / "out" / "mergekit.yaml").read_text())
    config |= {"merge_method": "ties", "parameters": {"density": 1.0, "normalize": True}}
    # mergekit's mean is weighted; with one weight for all it is ours.
    for model in config["models"]:
        model["parameters"]["weight"] = 0.5
    (tmp_path / "out" / "ties.yaml").write_text(yaml.safe_dump(config))
    theirs = by_mergekit(tmp_path / "out" / "ties.yaml", tmp_path / "ties")
    family = run.model(0)
    mask, rows = merged(run.deltas, run.mask, method="ties", density=1.0)
    Composer(family.module, mask, list(rows.values()), run.info["base"]).compose(dict.fromkeys(rows, 1.0))
    base = base_tensors(run.model(0))
    alone = [load_file(tmp_path / "out" / "tasks" / task / "model.safetensors") for task in sorted(run.deltas)]
    for name, tensor in base_tensors(family).items():
        if name not in theirs:
            continue
        edits = [model[name] - base[name] for model in alone]
        # Edits that cancel each other have no sign in common; from rounded models mergekit sees one all the same.
        cancel = (sum(edits).abs() < 1e-6) & (edits[0] != 0)
        assert int(cancel.sum()) < 5
        torch.testing.assert_close(theirs[name][~cancel], tensor[~cancel], rtol=0, atol=4e-7)


def test_what_is_written_comes_in_again_as_the_same_models(tmp_path):
    run = made_run(tmp_path, "llama", shared_by="task")
    run.export(tmp_path / "out", mergekit=True)
    text = spec_of(tmp_path / "out" / "mergekit.yaml")
    spec = yaml.safe_load(text)
    assert spec["model"] == f"hf:{tmp_path / 'out' / 'base'}"
    assert [task["name"] for task in spec["tasks"]] == sorted(run.newest.deltas)
    for task in spec["tasks"]:
        alone = base_tensors(load_model(task["checkpoint"]))
        family = run.model(0)
        delta = run.deltas[task["name"]]
        Composer(family.module, run.mask, [delta], delta.base).compose({delta.task: 1.0})
        assert all(torch.equal(alone[name], tensor) for name, tensor in base_tensors(family).items())


@pytest.mark.parametrize(
    "kind, how, match",
    [
        ("llama", {"shared_by": "row"}, "it has a coefficient a row; wanted one a task"),
        ("llama", {"shared_by": "task", "method": "ties"}, "its merge method is 'ties'; wanted 'linear'"),
        ("demo", {"shared_by": "task"}, "the run's model is 'demo'; wanted one of transformers"),
    ],
)
def test_a_version_that_mergekit_cannot_say_is_refused_and_nothing_is_written(tmp_path, kind, how, match):
    run = made_run(tmp_path, kind, **how)
    with pytest.raises(SpecError, match=match) as caught:
        run.export(tmp_path / "out", mergekit=True)
    assert len(str(caught.value).splitlines()) == 1 and not (tmp_path / "out").exists()
    with pytest.raises(SpecError, match="several forms at once"):
        run.export(tmp_path / "out", mergekit=True, peft=True)
