"""What the pages show can be typed: every command and option, every call of the Python interface, every spec.

Some pages are also run as they stand: docs/quickstart.md (tests/end_to_end/test_quickstart.py), docs/integrations.md
(tests/integrations), docs/serving.md (tests/serving) and, here, docs/predict.md.
"""

import ast
import inspect
import re
import shlex
import shutil
from pathlib import Path

import pytest
import typer
import yaml
from recorded import made, recorded_run
from texts import save_model, write_texts

import talos_ray
from talos_ray.cli import app
from talos_ray.config import Spec
from talos_ray.spec import make_spec

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "README.ja.md", *sorted(ROOT.glob("docs/*.md")), ROOT / "cluster/README.md"]
COMMANDS = typer.main.get_command(app)


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.S)


def commands() -> list[tuple[str, str]]:
    """(page, a line that calls talos), of shell blocks, and of lines that are set in by four spaces."""
    found = []
    for page in PAGES:
        text = page.read_text()
        lines = "".join(blocks(page, "sh")).splitlines() + re.findall(r"^    (talos .*)$", text, re.M)
        for line in lines:
            for part in re.split(r"\||&&|>", line.partition("  #")[0].partition("# ")[0]):
                if part.strip().startswith("talos "):
                    found.append((page.name, part.strip()))
    return found


def calls() -> list[tuple[str, str, ast.Call]]:
    """(page, what is called, the call) of all that the pages' Python calls of a run, or of the package."""
    found = []
    for page in PAGES:
        for block in blocks(page, "python"):
            for node in ast.walk(ast.parse(block)):
                if isinstance(node, ast.Call) and re.match(r"(run|talos_ray)\.\w+$", name := ast.unparse(node.func)):
                    found.append((page.name, name, node))
    return found


@pytest.mark.parametrize(("page", "line"), commands(), ids=str)
def test_every_command_can_be_typed(page, line, monkeypatch):
    monkeypatch.setenv("TALOS_ALLOW_CODE", "")  # an option may write it
    name, *words = shlex.split(line)[1:]
    command = COMMANDS.commands[name]
    command.make_context(name, words)  # an option or a number of arguments that it does not know ends it


@pytest.mark.parametrize(("page", "name", "call"), calls(), ids=lambda value: value if isinstance(value, str) else "")
def test_every_call_has_the_arguments_that_are_shown(page, name, call):
    owner, _, attribute = name.partition(".")
    called = getattr(talos_ray.Run if owner == "run" else talos_ray, attribute)
    given = [None] * (len(call.args) + (owner == "run"))  # the run itself comes first
    assert not any(isinstance(a, ast.Starred) for a in call.args) and all(k.arg for k in call.keywords)
    inspect.signature(called).bind(*given, **{k.arg: None for k in call.keywords})


def test_enough_is_looked_at():
    assert len(commands()) > 60 and len(calls()) > 20


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_spec_is_one(page):
    for block in blocks(page, "yaml"):
        values = yaml.safe_load(block)
        if isinstance(values, dict) and {"model", "tasks"} <= values.keys():
            make_spec({"output": "runs/x", **values})
        elif isinstance(values, dict) and "kind" not in values:  # a part of one; Kubernetes' have a kind
            assert values.keys() <= {*Spec.model_fields, "preset", "extends", "more_tasks", *talos_ray.Task.model_fields}, values


def test_asking_goes_as_its_page_says(tmp_path):
    """docs/predict.md."""
    reviews = {
        **write_texts(tmp_path, "animals", 40),
        "name": "reviews",
        "kind": "text",
        "input": "text",
        "prompts": ["{}"],
    }
    run = recorded_run(tmp_path / "run", save_model(tmp_path / "model", "bert"), [reviews])
    (block,) = blocks(ROOT / "docs/predict.md", "python")
    names: dict = {"run": run}
    exec(block, names)
    found = names["found"]
    assert found.scores.shape == (2, 2) and set(found.labels) <= {"yes", "no"}
    assert names["pipe"](["it was fine"])[0]["label"] == found.labels[0]
    assert names["pipe"](["it was fine"])[0]["score"] == pytest.approx(float(found.scores[0, 0]))


def test_serving_without_ray_goes_as_its_page_says(tmp_path, monkeypatch):
    """docs/serving.md."""
    client = pytest.importorskip("fastapi.testclient", reason="talos_ray[serve] is not installed")
    run = made(tmp_path, "bert")
    shutil.copytree(run.path, tmp_path / "runs/demo")
    monkeypatch.chdir(tmp_path)
    (block,) = [b for b in blocks(ROOT / "docs/serving.md", "python") if "api(Server" in b]
    names: dict = {}
    exec(block, names)
    body = {"inputs": ["it was fine"], "top_k": 2}
    answer = client.TestClient(names["app"]).post("/v1/tasks/animals:predict", json=body)
    assert answer.json()["predictions"] == run.predict(["it was fine"], "animals", top_k=2).rows()


def test_what_cannot_be_typed_is_seen():
    with pytest.raises(Exception, match="No such option: --tsk"):
        COMMANDS.commands["predict"].make_context("predict", ["runs/demo", "--tsk", "a", "b.png"])
