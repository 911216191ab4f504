"""What a person at a terminal sees: help, and two lines at most for each mistake, before any work."""

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

import talos_ray
from talos_ray import cli

GOOD = {"model": "demo", "tasks": ["demo:pointers"], "control": ["demo:coloured_shapes"], "output": "run"}


def talos(monkeypatch, capsys, *words: str) -> tuple[int, str]:
    """Exit code and standard error of the command, run in this process."""
    monkeypatch.setattr(sys, "argv", ["talos", *words])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return end.value.code or 0, capsys.readouterr().err


BAD = {
    "a key that does not exist": ({"trian": {"steps": 3}}, "'trian' does not exist; did you mean 'train'"),
    "keep without room": ({"mask": {"keep": 0.5, "layers": 0.25}}, "mask.layers 0.25 opens"),
    "keep outside": ({"mask": {"keep": 1.5}}, "'mask.keep' is 1.5; wanted"),
    "a missing file": ({"tasks": [{"name": "a", "data": "nowhere.csv"}]}, "data 'nowhere.csv' does not exist"),
    "a column that is not there": (
        {"tasks": [{"name": "a", "data": "rows.csv", "input": "file", "label": "kind"}]},
        "column 'kind' is not in",
    ),
    "a label outside": (
        {"tasks": [{"name": "a", "data": "rows.csv", "input": "file", "label": "side", "classes": ["left", "up"]}]},
        "label 'right', which is outside its 2 classes",
    ),
    "an empty split": (
        {"tasks": [{"name": "a", "data": "empty.csv", "input": "file", "label": "side"}]},
        "holds 0 examples",
    ),
    "two tasks of one name": ({"tasks": ["demo:pointers", "demo:pointers"]}, "two tasks are named 'pointers'"),
    "an unknown model": (
        {"model": "open_clip:ViT-B-23/openai"},
        "architecture 'ViT-B-23' is not known to open_clip (did you mean 'ViT-B-32'?)",
    ),
    "no such family": ({"model": "bert"}, "model 'bert' is not known"),
    "too many GPUs": ({"cluster": {"gpus_per_worker": 64}}, "needs 64 GPUs"),
    "an output that is something else": ({"output": "full"}, "holds other files and no run"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named_in_two_lines_and_touches_nothing(name, sides, tmp_path, monkeypatch, capsys):
    change, wanted = BAD[name]
    monkeypatch.chdir(tmp_path)
    shutil.copytree(Path(sides["data"]).parent, tmp_path, dirs_exist_ok=True)
    (tmp_path / "empty.csv").write_text("file,side\n")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("my life's work")
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump({**GOOD, **change}))
    before = sorted(p.name for p in tmp_path.rglob("*"))
    started = time.monotonic()
    code, err = talos(monkeypatch, capsys, "edit", "spec.yaml")
    assert code == 2 and wanted in err and "Traceback" not in err
    assert len(err.strip().splitlines()) <= 2 and time.monotonic() - started < 30
    assert sorted(p.name for p in tmp_path.rglob("*")) == before


def test_everything_that_is_wrong_is_told_at_once(sides, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tasks = [
        {**sides, "name": "a", "label": "kind"},
        {**sides, "name": "b", "data": "nowhere.csv"},
        {**sides, "name": "c"},
    ]
    spec = {**GOOD, "tasks": tasks, "model": "open_clip:ViT-B-23/openai", "cluster": {"gpus_per_worker": 64}}
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(spec))
    code, err = talos(monkeypatch, capsys, "check", "spec.yaml")
    wanted = ["column 'kind' is not in", "'nowhere.csv' does not exist", "'ViT-B-23' is not known", "needs 64 GPUs"]
    assert code == 2 and [w for w in wanted if w not in err] == [] and "'c'" not in err
    bad = [{**sides, "name": "a", "prompts": ["no slot"]}, "demo:pionters"]
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump({**spec, "tasks": bad, "mask": {"kep": 1}}))
    code, err = talos(monkeypatch, capsys, "check", "spec.yaml")
    assert code == 2 and len(err.strip().splitlines()) == 3
    assert all(w in err for w in ("has no {}", "did you mean 'demo:pointers'", "did you mean 'keep'"))
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump({**GOOD, "mask": {"strategy": "auto", "keep": "auto"}}))
    code, _ = talos(monkeypatch, capsys, "check", "spec.yaml")
    assert code == 0 and sorted(p.name for p in tmp_path.iterdir()) == ["spec.yaml"]


def test_commands_on_what_is_no_run(tmp_path, monkeypatch, capsys):
    for words in (["status"], ["rollback"], ["log"]):
        code, err = talos(monkeypatch, capsys, *words, str(tmp_path))
        assert code == 2 and "holds no run" in err
    code, err = talos(monkeypatch, capsys, "edit", "--outptu", "x")
    assert code == 2 and "No such option" in err and "Traceback" not in err
    code, err = talos(monkeypatch, capsys, "edit", "nowhere.yaml")
    assert code == 2 and "does not exist" in err


def test_the_installed_command_shows_help_and_errors_without_a_traceback(tmp_path):
    done = subprocess.run([sys.executable, "-m", "talos_ray.cli", "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and all(word in done.stdout for word in ("edit", "demo", "status", "rollback", "log"))
    done = subprocess.run(
        [sys.executable, "jobs/edit_all_tasks.py", "--spec", str(tmp_path / "x.yaml")], capture_output=True, text=True
    )
    assert (
        done.returncode == 2 and done.stderr.startswith("edit_all_tasks: spec file") and "Traceback" not in done.stderr
    )


def test_the_version_is_told_and_the_public_names_are_seen():
    from importlib.metadata import version

    result = CliRunner().invoke(cli.app, ["--version"])
    assert result.exit_code == 0 and result.output.strip() == f"talos_ray {version('talos-ray')}"
    assert talos_ray.__version__ == version("talos-ray")
    assert set(dir(talos_ray)) == {*talos_ray.__all__, "__version__"}
    assert Path(talos_ray.__file__).with_name("py.typed").is_file()
