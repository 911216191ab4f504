"""Specs made of mergekit configurations."""

from pathlib import Path

import pytest
import yaml
from texts import save_model
from typer.testing import CliRunner

from talos_ray import SpecError
from talos_ray.cli import app
from talos_ray.integrations.mergekit import spec_of
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
        ({"models": ["other+lora"]}, "'other\\+lora' is an adapter on another model than the base 'base'"),
    ],
)
def test_what_has_no_counterpart_is_refused(tmp_path, change, match):
    (tmp_path / "mergekit.yaml").write_text(yaml.safe_dump({**yaml.safe_load(TIES), **change}))
    with pytest.raises(SpecError, match=match) as caught:
        spec_of(tmp_path / "mergekit.yaml")
    assert len(str(caught.value).splitlines()) == 1
