"""Versions that can be believed and undone: gates, approval, comparison, exports, verification. On copies of the small run."""

import csv
import io
import json
import random
import shutil
from pathlib import Path

import open_clip
import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file
from typer.testing import CliRunner

import talos_ray
from talos_ray import ConflictError, SpecError, TalosError, gate
from talos_ray.cli import app
from talos_ray.core.layout import fingerprint
from talos_ray.models import base_tensors, load_model
from talos_ray.tasks import load_task
from talos_ray.trust import versions


@pytest.fixture
def mine(finished, tmp_path):
    """A copy of the finished run, at its first edit."""
    run, _ = finished
    shutil.copytree(run.path, tmp_path / "run")
    copied = talos_ray.open_run(str(tmp_path / "run"))
    if copied.head != 1:
        copied.rollback(1)
    return copied


@pytest.fixture
def held(finished, tmp_path):
    """A copy of the finished run whose gate asks for more than there is, edited anew: nothing is trained."""
    run, values = finished
    shutil.copytree(run.path, tmp_path / "run")
    values = {**values, "output": str(tmp_path / "run"), "gate": {"target_gain": 0.95}}
    return talos_ray.edit(**values), values


def test_a_version_that_its_gate_keeps_aside_needs_an_approval(held, capsys):
    run, values = held
    number = run.folder.versions()[-1]
    before, version = run.head, run.folder.load_version(number)
    assert before != number and run.held() and version.gate.result == gate.FAIL
    page = Path(run.path, f"report/{number:04d}.html").read_text()
    assert "Hold: mean gain of the targets is" in page and "Hold" not in Path(run.path, "report/index.html").read_text()
    talos_ray.edit(**values)
    assert "Nothing to do" in capsys.readouterr().out and run.folder.versions()[-1] == number
    with pytest.raises(TalosError, match="was never in force: mean gain of the targets is.*wanted 0.950"):
        run.rollback(number)
    with pytest.raises(TalosError, match="wanted both"):
        run.approve(number, by=" ", reason="because")
    with pytest.raises(TalosError, match="needs no approval"):
        run.approve(before, by="me", reason="because")
    shown = CliRunner().invoke(app, ["status", run.path])
    assert shown.exit_code == 3 and f"talos approve {run.path} {number}" in shown.output.replace("\n", "")
    run.approve(number, by="J. Doe", reason="the goal was set too high")
    assert run.head == number and not run.held()
    event = run.history()[-1]
    assert (event["operation"], event["by"], event["gate"]) == ("approve", "J. Doe", gate.FAIL)
    log = CliRunner().invoke(app, ["log", run.path]).output
    assert "J. Doe: the goal was set too high" in " ".join(log.replace("│", " ").split())
    assert "Approved by J. Doe (the goal was set too high)" in Path(run.path, "report/index.html").read_text()
    run.rollback(before).rollback(number)  # once approved, it may come back
    assert run.verify(deep=True) == []


def test_every_file_of_a_run_is_watched_over(mine):
    assert mine.verify(deep=True) == []
    recorded = {name for e in mine.history() for name in e["files"]}
    log = Path(mine.path, "logs/0001.txt").read_text()
    assert "logs/0001.txt" in recorded and "calibrate: mask" in log and "train: 6 trained" in log
    for path in sorted(p for p in Path(mine.path).rglob("*") if p.is_file()):
        name = str(path.relative_to(mine.path))
        assert name in recorded or name == "head.json" or name.startswith("history/"), name
        data = path.read_bytes()
        path.write_bytes(data[:-2] + bytes([data[-2] ^ 4]) + data[-1:])
        assert any(name in problem for problem in mine.verify()), name
        path.write_bytes(data)
    result = CliRunner().invoke(app, ["verify", mine.path])
    assert result.exit_code == 0 and "every file is as recorded" in result.output
    Path(mine.path, "versions/0000.json").unlink()
    result = CliRunner().invoke(app, ["verify", mine.path])
    assert result.exit_code == 1 and "versions/0000.json is missing" in result.output


def test_an_operation_on_a_head_that_has_moved_is_told(mine, monkeypatch):
    other = talos_ray.open_run(mine.path)
    head = mine.folder.head
    other.rollback(0, reason="somebody else")
    monkeypatch.setattr(type(mine.folder), "head", property(lambda self: head))  # what the first one saw
    with pytest.raises(ConflictError, match=r"was version 1 when this began and is 0 now \(rollback by"):
        mine.rollback(0)
    monkeypatch.undo()
    assert mine.history()[-1]["reason"] == "somebody else"


def test_two_versions_are_compared_input_by_input(mine):
    found = mine.diff(0, 1)
    assert found["versions"] == [0, 1] and not found["same model"] and found["not comparable"] == []
    for task, c in found["tasks"].items():
        s = mine.scores[task]
        assert (c["before"], c["after"], c["n"]) == (
            s["base"]["value"],
            s["merged"]["value"],
            s["base"]["n"],
        )
        assert c["after"] - c["before"] == pytest.approx((c["won"] - c["lost"]) / c["n"])
    found, changed = mine.compare(0, 1)
    rows = list(csv.DictReader(io.StringIO(changed)))
    for task, c in found["tasks"].items():
        became = [r["became"] for r in rows if r["task"] == task]
        assert (became.count("right"), became.count("wrong")) == (c["won"], c["lost"])
        assert len(became) / c["n"] == pytest.approx(mine.version.impact.flipped[task])
    assert all(Path(r["input"]).is_file() for r in rows if r["task"] == "sides")


def test_predictions_are_what_workers_recorded_and_one_edit_alone_scores_as_single(mine):
    for task, score in mine.scores.items():
        split = load_task(talos_ray.Task.model_validate(mine._tasks[task]), 0).test
        for version in (0, 1):
            found = mine.predict(list(split.rows[:][split.column]), task, version)
            assert found.best[:, 0].tolist() == mine.folder.load_answers(version).predicted[task].tolist()
        if task in mine.version.targets:
            pipe = mine.pipeline(task, version=0)  # under the words' head
            with mine.only(task, on=pipe):
                alone = pipe.answer(split, labelled=True).accuracy
            assert alone.as_dict() == score.get("single_words", score["single"])


def test_the_report_folds_away_what_stands_behind_each_score(mine):
    page = Path(mine.path, "report/0001.html").read_text()
    for task, score in mine.scores.items():
        found = mine.class_scores(task)
        right = sum(row[i] for i, row in enumerate(found.confusion))
        assert right / score["merged"]["n"] == score["merged"]["value"]
        part = page.partition(f"<details><summary>{task}</summary>")[2].partition("</details>")[0]
        assert part.count("<tr>") == 1 + len(mine.classes[task]) and f"macro F1 {found.macro_f1:.3f}" in part
        assert f"calibration error {found.calibration_error:.3f}, in 15 bins" in part


def test_two_versions_are_asked_about_new_data(mine, sides, tmp_path):
    rows = list(csv.DictReader(Path(sides["data"]).read_text().splitlines()))[:30]
    folder = Path(sides["data"]).parent
    with open(tmp_path / "new.csv", "w", newline="") as out:
        writer = csv.DictWriter(out, ["file", "side"])
        writer.writeheader()
        writer.writerows({"file": str(folder / r["file"]), "side": r["side"]} for r in rows)
    found, _ = mine.compare(0, 1, "sides", str(tmp_path / "new.csv"))
    assert found["tasks"]["sides"]["n"] == 30 and set(found["tasks"]) == {"sides"}
    with pytest.raises(TalosError, match="'side' is none.*did you mean 'sides'"):
        mine.compare(0, 1, "side", str(tmp_path / "new.csv"))
    result = CliRunner().invoke(
        app, ["compare", mine.path, "0", "1", "--task", "sides", "--data", str(tmp_path / "new.csv"), "--json", "--out", str(tmp_path / "c.csv")]
    )  # fmt: skip
    assert result.exit_code == 0 and json.loads(result.output) == found and (tmp_path / "c.csv").is_file()


def test_data_that_arrive_later_are_scored_once(mine, sides, tmp_path):
    rows, images = list(csv.DictReader(Path(sides["data"]).read_text().splitlines())), Path(sides["data"]).parent
    answer = {mine.folder.load_heads()[1]["sides"][i] for i in (0, 1)}
    where = tmp_path / "incoming"
    where.mkdir()

    def arrive(name: str, label) -> None:
        with open(where / name, "w", newline="") as out:
            csv.writer(out).writerows([("file", "side"), *((str(images / r["file"]), label(r["side"])) for r in rows)])

    arrive("sides-march.csv", lambda side: side)
    arrive("held-march.csv", lambda side: side)
    first = CliRunner().invoke(app, ["watch", mine.path, str(where), "--json"])
    found = {e["data"]: e for e in json.loads(first.output)}
    assert set(found) == {"sides-march.csv", "held-march.csv"} and found["sides-march.csv"]["scores"]["now"]["n"] == 120
    assert mine.watch(where) == [] and mine.verify() == []
    (other,) = answer - {"x"} - {rows[0]["side"]}
    arrive("sides-april.csv", lambda side: other if side == rows[0]["side"] else rows[0]["side"])
    (april,) = mine.watch(where)
    assert april["scores"]["now"]["value"] == pytest.approx(1 - found["sides-march.csv"]["scores"]["now"]["value"])
    assert mine.history()[-1]["operation"] == "watch" and mine.head == 1
    (where / "strange.csv").write_text("x")
    with pytest.raises(SpecError, match="belongs to no task.*begins with one: pointers"):
        mine.watch(where)


def test_an_export_loads_in_open_clip_and_answers_bit_by_bit_alike(mine, tmp_path):
    names = mine.export(tmp_path / "whole")
    assert names == ["README.md", "heads.safetensors", "open_clip_config.json", "open_clip_model.safetensors"]
    model, transform = open_clip.create_model_from_pretrained(f"local-dir:{tmp_path / 'whole'}")
    assert fingerprint(dict(model.state_dict())) == mine.version.model
    heads, family = load_file(tmp_path / "whole/heads.safetensors"), mine.model()
    task = next(t for t in mine.info["spec"]["tasks"] if t["name"] == "pointers")
    images = load_task(talos_ray.Task.model_validate(task), 0).test.rows[:16]["image"]
    with torch.inference_mode():
        theirs = (
            model.eval().encode_image(torch.stack([transform(i) for i in images]), normalize=True) @ heads["pointers"].T
        )
        assert torch.equal(theirs, family.logits(family.preprocess(images), heads["pointers"]))
    card = (tmp_path / "whole/README.md").read_text()
    told = yaml.safe_load(card.split("---")[1])
    values = {r["dataset"]["name"]: r["metrics"][0]["value"] for r in told["model-index"][0]["results"]}
    assert values == {t: round(s["merged"]["value"], 4) for t, s in mine.scores.items()}
    assert all(getattr(mine.version, k) in card for k in ("base", "mask", "model")) and "Licence" in card
    with pytest.raises(SpecError, match="is not empty"):
        mine.export(tmp_path / "whole")


def test_a_delta_alone_makes_the_version_from_the_base(mine, tmp_path):
    assert mine.export(tmp_path / "delta", delta_only=True) == ["README.md", "delta.safetensors", "heads.safetensors"]
    delta, base = load_file(tmp_path / "delta/delta.safetensors"), dict(base_tensors(load_model("demo")))
    for name in {n.rpartition("/")[0] for n in delta}:
        base[name] = base[name].clone()
        base[name].view(-1)[delta[f"{name}/index"]] = delta[f"{name}/value"]
    assert fingerprint(base) == mine.version.model
    with safe_open(tmp_path / "delta/delta.safetensors", "pt") as f:
        assert f.metadata()["base"] == mine.info["base"]
    mine.export(tmp_path / "base", 0, delta_only=True)
    assert load_file(tmp_path / "base/delta.safetensors") == {}


def test_the_scope_of_a_change_is_what_changed(mine):
    impact, family = mine.version.impact, mine.model()
    before, after = base_tensors(load_model("demo")), base_tensors(family)
    changed = {n: int((before[n] != after[n]).sum()) for n in before if not torch.equal(before[n], after[n])}
    assert {n: t.changed for n, t in impact.tensors.items()} == changed and changed
    name, told = max(impact.tensors.items(), key=lambda t: t[1].relative)
    assert told.relative == pytest.approx(float((after[name] - before[name]).norm() / before[name].norm()), rel=1e-5)
    page = Path(mine.path, "report/index.html").read_text()
    assert (
        f"{sum(changed.values()):,} weights in {len(changed)} tensors" in page
        and "Accuracy of every task over versions" in page
    )


def test_a_version_is_scored_on_spoilt_inputs(mine):
    found = mine.robustness()
    assert set(found) == set(mine.scores) and all(
        set(k) == {"none", "noise", "blur", "contrast", "occlusion"} for k in found.values()
    )
    assert all(found[t]["none"]["merged"] == s["merged"] for t, s in mine.scores.items())
    worse = [k[c]["base"]["value"] < k["none"]["base"]["value"] for k in found.values() for c in k if c != "none"]
    assert sum(worse) > len(worse) / 2 and mine.verify() == []
    assert mine.history()[-1]["operation"] == "robustness" and mine.head == 1
    page = Path(mine.path, "report/index.html").read_text()
    assert "Is it more fragile?" in page and "On average the base keeps" in page
    mine.rollback(0).rollback(1)
    assert Path(mine.path, "report/index.html").read_text() == page


@pytest.mark.slow
def test_after_two_hundred_operations_every_version_is_what_it_was(mine):
    def size() -> int:
        return sum(p.stat().st_size for p in Path(run.path).rglob("*") if p.is_file())

    run, dice = mine, random.Random(0)
    tasks, before, marks = sorted(run.deltas), size(), {n: run.folder.load_version(n).model for n in (0, 1)}
    for _ in range(200):
        kind = dice.choices(("rollback", "merge", "remove", "approve"), (0.86, 0.06, 0.06, 0.02))[0]
        held = [v.number for v in run.versions if versions.is_held(run.folder, v)]
        if kind == "merge":
            run.merge(dice.sample(tasks, dice.randint(1, len(tasks))), reason="a throw of the dice")
        elif kind == "remove" and run.coefficients:
            run.remove(dice.choice(sorted(run.coefficients)))
        elif kind == "approve" and held:
            run.approve(held[0], by="the dice", reason="a throw")
        else:
            run.rollback(dice.choice([n for n in marks if n not in held]))
        newest = run.newest
        marks.setdefault(newest.number, newest.model)
    assert len(marks) > 15 and len(run.history()) > 200
    for number, mark in marks.items():
        found = run.model(number)
        assert fingerprint(base_tensors(found)) == mark == run.folder.load_version(number).model
    assert run.verify(deep=True) == []
    assert (size() - before) / 200 < 100_000  # bytes an operation
