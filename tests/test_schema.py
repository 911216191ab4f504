"""`talos schema` against the specs that there are, and against the loader: what it refuses, the loader refuses, too."""

import json
from pathlib import Path

import jsonschema
import pytest
import yaml
from typer.testing import CliRunner

from talos_ray import SpecError
from talos_ray.cli import app
from talos_ray.scaffold import scaffold
from talos_ray.spec import load_spec, make_spec, schema

ROOT = Path(__file__).parents[1]
SPECS = [*sorted((ROOT / "examples").glob("*.yaml")), ROOT / "talos_ray/demo/spec.yaml"]
CHECK = jsonschema.Draft202012Validator(schema())
GOOD = {"model": "demo", "tasks": ["demo:pointers"], "output": "run"}
TASK = {"name": "a", "data": "a.csv"}


def with_task(**more) -> dict:
    return {**GOOD, "tasks": [{**TASK, **more}]}


RIGHT = [
    GOOD, {**GOOD, "tasks": "demo:pointers", "control": None}, {**GOOD, "control": TASK}, {**GOOD, "preset": "paper"},
    {**GOOD, "tasks": [{"recipe": "demo:pointers", "name": "mine"}]}, with_task(prompts="a {}"), with_task(train={"lr": 1e-3}),
    {**GOOD, "mask": {"keep": "auto", "layers": 0.5}}, {**GOOD, "search": {"merge": {"groups": {"a": "x"}}, "lr": [0.1, 0.2]}},
]  # fmt: skip
WRONG = [
    {}, {"model": "demo", "output": "run"}, {**GOOD, "model": 5}, {**GOOD, "tasks": []}, {**GOOD, "tasks": None}, {**GOOD, "tasks": [7]},
    {**GOOD, "tasks": ["demo:pionters"]}, {**GOOD, "tasks": [{"name": "a"}]}, {**GOOD, "nonsense": 1}, {**GOOD, "preset": "papre"},
    {**GOOD, "mask": 3}, {**GOOD, "mask": {"keep": 1.5}}, {**GOOD, "mask": {"keep": "most"}}, {**GOOD, "mask": {"strategy": "smallest"}},
    {**GOOD, "train": {"lr": 0}}, {**GOOD, "train": {"stpes": 3}}, {**GOOD, "train": {"steps": 1.5}}, {**GOOD, "gate": {"control_keep": 2}},
    {**GOOD, "search": {"method": "guess"}}, {**GOOD, "search": {"merge": {"density": 0}}}, {**GOOD, "search": {"merge": {"groups": 1}}},
    {**GOOD, "cluster": {"labels": ["a"]}}, {**GOOD, "control": 5}, {**GOOD, "extends": ["a"]}, {**GOOD, "seed": 1 << 63},
    with_task(name="../a"), with_task(name="n" * 200), with_task(kind="sound"), with_task(stream=0), with_task(train={"lr": "fast"}),
    with_task(prompts=7), with_task(recipe="demo:none"), with_task(validation_share=1),
]  # fmt: skip


@pytest.mark.parametrize("path", SPECS, ids=lambda p: p.name)
def test_every_spec_of_the_repository_is_valid(path):
    CHECK.validate(yaml.safe_load(path.read_text()))
    resolved = load_spec(path).model_dump(mode="json", exclude_defaults=True)  # what `talos spec` prints
    CHECK.validate(resolved)


@pytest.mark.parametrize("spec", RIGHT, ids=str)
def test_what_users_may_write_is_valid(spec):
    make_spec(spec)
    CHECK.validate(spec)


@pytest.mark.parametrize("spec", WRONG, ids=lambda s: str(s)[-60:])
def test_what_is_wrong_is_refused_by_both(spec, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("spec.yaml").write_text(yaml.safe_dump(spec))
    with pytest.raises(SpecError):
        load_spec("spec.yaml")
    assert not CHECK.is_valid(spec)


def test_what_init_writes_is_valid_and_the_command_prints_the_schema(tmp_path):
    (tmp_path / "t.csv").write_text("text,label\n" + "".join(f"word {i},{'ab'[i % 2]}\n" for i in range(20)))
    CHECK.validate(yaml.safe_load(scaffold(tmp_path)))
    printed = json.loads(CliRunner().invoke(app, ["schema"]).stdout)
    jsonschema.Draft202012Validator.check_schema(printed)
    assert printed == json.loads(json.dumps(schema()))
    assert "share of the eligible weights" in printed["$defs"]["Mask"]["properties"]["keep"]["description"]
