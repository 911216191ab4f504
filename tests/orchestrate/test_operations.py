"""What can be done to a finished run: add, merge, remove, forget. Each on a copy of the small run, on the real Ray."""

import copy
import csv
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from hub_server import logged_in
from images import write_images
from safetensors.torch import save_file
from typer.testing import CliRunner

import talos_ray
from talos_ray import SpecError, TalosError
from talos_ray.cli import app
from talos_ray.core.layout import fingerprint
from talos_ray.core.segments import layer_groups
from talos_ray.models import base_tensors, load_model
from talos_ray.orchestrate.forgetting import how_far
from talos_ray.spec import make_spec, resolve_task
from talos_ray.storage.version import Version
from talos_ray.tasks import load_task
from talos_ray.trust.recompose import edit_of


@pytest.fixture
def mine(finished, tmp_path):
    """A copy of the finished run, without its dense baseline."""
    run, values = finished
    shutil.copytree(run.path, tmp_path / "run")
    copied = talos_ray.open_run(str(tmp_path / "run"))
    copied.folder.set_head(1, "rollback")  # whatever other tests left
    return copied, {**copy.deepcopy(values), "output": str(tmp_path / "run"), "baseline": {"enabled": False}}


def block_with(word: str) -> str:
    """The Python of docs/integrations.md that holds a word."""
    page = (Path(__file__).parents[2] / "docs/integrations.md").read_text()
    (found,) = [b for b in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if word in b]
    return found


def contents(run, *parts: str) -> dict[str, bytes]:
    return {
        str(p.relative_to(run.path)): p.read_bytes()
        for part in parts
        for p in sorted(Path(run.path, part).rglob("*"))
        if p.is_file()
    }


def test_a_task_is_added_on_the_runs_mask_and_touches_no_other_delta(mine, capsys):
    run, values = mine
    before, mask = contents(run, "deltas"), run.mask.fingerprint
    approved = run.folder.load_learned(run.version)
    values["tasks"] = [*values["tasks"], "demo:counts"]
    talos_ray.edit(**values)  # a spec with one task more is the same as run.add, and here without the baseline
    run = talos_ray.open_run(run.path)
    after = contents(run, "deltas")
    assert set(after) - set(before) == {"deltas/counts.safetensors"} and all(after[n] == c for n, c in before.items())
    assert run.version.mask == mask and set(run.coefficients) == {"pointers", "scanned_digits", "sides", "counts"}
    trained = [e for e in run.history() if e["operation"] == "train"][-1]
    assert set(trained["deltas"]) == {"counts"}
    (coefficients, heads), (now, heads_now) = approved, run.folder.load_learned(run.version)
    assert all(torch.equal(now.values[t], a) for t, a in coefficients.values.items())  # what was approved stays
    assert set(heads_now) >= set(heads) and all(torch.equal(heads_now[t], h) for t, h in heads.items())
    assert "keep their coefficients" in capsys.readouterr().out and now.values["counts"].std() > 0
    with pytest.raises(SpecError, match="'counts' is in head of run .* already; wanted another"):
        run.add("demo:counts")
    capsys.readouterr()
    run.rollback(1)
    assert "counts" not in run.coefficients and run.model()
    with pytest.raises(SpecError, match="another run: its tasks is"):
        talos_ray.edit(**{**values, "tasks": values["tasks"][1:]})  # fewer are another run's; `merge` is for that
    run.remove("sides").add("demo:counts")  # its delta is there; what was removed stays removed
    assert set(run.coefficients) == {"pointers", "scanned_digits", "counts"}
    assert [e["operation"] for e in run.history()].count("train") == 2  # nothing was trained for it


@pytest.mark.slow
def test_what_lies_on_the_hub_is_imported_at_its_commit_and_the_history_says_which(mine, tmp_path, monkeypatch, capsys):
    run, _ = mine
    base, now = base_tensors(load_model("demo")), base_tensors(run.model())
    number = run.head
    with logged_in(monkeypatch, "hf_" + "x" * 30, tmp_path / "cache") as hub:
        first = run.push("me/mine", number)
        assert talos_ray.pull("me/mine", tmp_path / "back", deep=True).model == run.version.model
        run.import_(resolve_task("demo:counts").model_copy(update={"name": "dots"}), "hub:me/mine")
        hub.repositories["me/mine"].commit({"README.md": b"something else"})
    event = next(e for e in run.history() if e["operation"] == "import")
    assert event["sources"] == {"dots": f"hub:me/mine@{first.commit}"}
    assert run.info["spec"]["tasks"][-1]["checkpoint"] == f"hub:me/mine@{first.commit}"
    flags = run.mask.layout.split(run.mask.flags)
    moved = torch.cat([(now[n] - base[n]).flatten()[f] for n, f in flags.items()])
    delta = run.folder.load_delta("dots")
    assert torch.equal(delta.values, moved.bfloat16()) and delta.info["lost"] == 0  # it was made on this very mask
    assert run.verify(deep=True) == []
    capsys.readouterr()
    talos_ray.edit(spec=make_spec({**run.info["spec"], "output": run.path}))  # the Hub is gone, the commit's delta is here
    assert "Nothing to do" in capsys.readouterr().out


def test_a_checkpoint_from_elsewhere_becomes_a_delta_and_what_it_loses_is_told(mine, tmp_path, monkeypatch, capsys):
    run, _ = mine
    monkeypatch.chdir(tmp_path)
    base, flags = base_tensors(load_model("demo")), run.mask.layout.split(run.mask.flags)
    noise = torch.Generator().manual_seed(0)
    tuned = {n: t.clone() for n, t in base.items()}
    for name in flags:
        tuned[name] += 0.01 * torch.randn(tuned[name].shape, generator=noise)
    given = resolve_task("demo:counts").model_copy(update={"name": "dots"})
    for bad, wanted in (("tuned.pt", "may hold code"), ("nothing", "no safetensors file and no folder"), ("short.safetensors", "tensor .* has shape")):  # fmt: skip
        if bad.startswith("short"):
            save_file({n: t for n, t in tuned.items() if "visual" not in n}, tmp_path / bad)
        with pytest.raises(SpecError, match=wanted):
            run.import_(given, str(tmp_path / bad))
    before = contents(run, "deltas")
    capsys.readouterr()
    write_images(tmp_path, 60)
    rows = Path("rows.csv").read_text().replace("file,side", "image,label")
    Path("places.csv").write_text(rows.replace("left", "yes").replace("right", "no"))
    model = load_model("demo").module
    model.load_state_dict(tuned)
    exec(block_with("add_trained"), {"run": run, "model": model})
    assert "sparse/places from" in capsys.readouterr().out
    assert contents(run, "deltas").items() > before.items()
    delta = run.deltas["places"]
    moved = torch.cat([(tuned[n] - base[n]).flatten()[f] for n, f in flags.items()])
    assert torch.equal(delta.values, moved.bfloat16())
    everything = sum(float((tuned[n].double() - base[n].double()).square().sum()) for n in base)
    assert delta.info["lost"] == pytest.approx(1 - float(moved.double().square().sum()) / everything, abs=1e-6)
    assert 0.8 < delta.info["lost"] < 1 and "places" in run.coefficients
    event = run.history()[-2]
    assert event["operation"] == "import" and event["sources"]["places"].endswith(".safetensors") and run.verify() == []
    assert "Of these edits, somebody else" in Path(run.path, "report/index.html").read_text()
    talos_ray.edit(spec=make_spec({**run.info["spec"], "output": run.path}))
    assert "Nothing to do" in capsys.readouterr().out  # the delta is here: its checkpoint is not needed any more


def test_an_adapter_comes_in_and_goes_out(mine, tmp_path, monkeypatch, capsys):
    import peft

    run, _ = mine
    monkeypatch.chdir(tmp_path)
    for how, match in (
        ({"peft": True}, "45 other tensors changed: visual.*wanted none"),
        ({"peft": True, "task": "side"}, "holds no edit of task 'side' .did you mean 'sides'"),
        ({"peft": True, "delta_only": True}, "several forms at once; wanted one of delta_only, peft and mergekit"),
        ({"task": "sides"}, "export of task 'sides' alone is as an adapter; wanted peft=True"),
    ):
        with pytest.raises(TalosError, match=match):
            run.export("refused", **how)
    assert not Path("refused").exists()
    family = load_model("demo")
    base = {n: t.clone() for n, t in base_tensors(family).items()}
    torch.manual_seed(0)
    lora = peft.LoraConfig(r=4, target_modules=r"visual\..*\.(c_fc|c_proj)", init_lora_weights=False)
    adapted = peft.get_peft_model(family.module, lora)
    adapted.save_pretrained("lora")
    tuned = adapted.merge_and_unload().state_dict()

    run.rollback(0)
    capsys.readouterr()
    given = resolve_task("demo:counts").model_copy(update={"name": "dots"})
    run.import_(given, "lora")
    said = capsys.readouterr().out
    delta, flags = run.deltas["dots"], run.mask.layout.split(run.mask.flags)
    assert f"sparse/dots from lora: {delta.info['lost']:.1%} of its change (squared length) lies off the mask" in said
    moved = torch.cat([(tuned[n] - base[n]).flatten()[f] for n, f in flags.items()])
    assert torch.equal(delta.values, moved.bfloat16()) and 0.7 < delta.info["lost"] < 0.9
    talos_ray.edit(spec=make_spec({**run.info["spec"], "output": run.path}))
    assert "Nothing to do" in capsys.readouterr().out

    def loaded(folder: str) -> dict[str, torch.Tensor]:
        return peft.PeftModel.from_pretrained(load_model("demo").module, folder).merge_and_unload().state_dict()

    done = CliRunner().invoke(app, ["export", run.path, "out", "--peft", "--json"])
    files = ["README.md", "adapter_config.json", "adapter_model.safetensors"]
    assert json.loads(done.stdout) == [*files, "heads.safetensors"]
    assert fingerprint(loaded("out")) == run.version.model and "a SHiRA adapter" in Path("out/README.md").read_text()
    assert run.export("alone", peft=True, task="dots") == files
    alone = loaded("alone")
    before, after = (torch.cat([t[n].flatten()[f] for n, f in flags.items()]) for t in (base, alone))
    assert torch.equal(after, before + delta.values.float())
    assert all(torch.equal(alone[n].flatten()[~f], base[n].flatten()[~f]) for n, f in flags.items())


def test_some_tasks_are_merged_and_the_others_are_still_looked_at(mine):
    run, _ = mine
    deltas = contents(run, "deltas")
    run.merge(["sides", "pointers"], reason="a test")
    assert set(run.coefficients) == {"sides", "pointers"} and run.version.targets == ["pointers", "sides"]
    assert run.version.others == ["scanned_digits"] and "single" not in run.scores["scanned_digits"]
    assert run.history()[-1]["operation"] == "merge" and run.history()[-1]["reason"] == "a test"
    assert fingerprint(base_tensors(run.model())) == run.version.model and contents(run, "deltas") == deltas
    page = Path(run.path, "report/index.html").read_text()
    assert "<td>scanned_digits</td><td>other</td>" in page
    with pytest.raises(TalosError, match="no target task 'side'.*did you mean 'sides'"):
        run.merge(["side"])


@pytest.mark.slow
def test_layers_may_have_coefficients_of_their_own(mine):
    run, values = mine
    values["search"] = {**values["search"], "granularity": "group", "merge": {"method": "linear", "groups": 2}}
    run = talos_ray.edit(**values)
    found = run.newest
    assert found.learned.granularity == "group" and found.learned.count == 2
    if run.head != found.number:
        run.approve(found.number, by="a test", reason="groups")
    before, _ = run.folder.load_learned(found)
    run.remove("sides")
    left, _ = run.folder.load_learned(run.newest)
    assert set(left.values) == {"pointers", "scanned_digits"}
    assert all(torch.equal(left.values[t], before.values[t]) for t in left.values)
    assert run.verify(deep=True) == []


def test_a_version_of_an_earlier_release_with_groups_of_layers_keeps_its_bits(mine):
    """It has a row a task and group, and no file of coefficients."""
    run, _ = mine
    version = run.folder.load_version(1)
    old = {k: v for k, v in version.as_dict().items() if k not in ("learned", "rows")}
    old |= {"merge": {**version.merge, "groups": 2}, "coefficients": {f"{t}@{g}": 0.25 * (1 + int(g)) for t in run.deltas for g in "01"}}  # fmt: skip
    family = load_model("demo")
    edit_of(run.folder, Version.model_validate(old), run.mask, run.deltas).put(family, run.info["base"])
    by_row = fingerprint(base_tensors(family))
    group = layer_groups(run.mask.layout.names, 2)
    params, wanted = dict(load_model("demo").module.named_parameters()), dict(family.module.named_parameters())
    place = 0
    for name, index in run.mask.indices.items():
        value = params[name].detach().flatten()[index]
        for task in sorted(run.deltas):
            delta = run.deltas[task].values[place : place + len(index)].float()
            value = value.add(delta, alpha=0.25 * (1 + int(group[name])))
        place += len(index)
        assert torch.equal(value, wanted[name].detach().flatten()[index]), name
    assert by_row != run.info["base"]


@pytest.mark.slow
def test_what_leaves_the_mask_is_stored_as_what_it_is(mine):
    run, values = mine
    values["search"] = {**values["search"], "merge": {"method": "tsv"}}
    run = talos_ray.edit(**values)
    found = run.newest
    mask, rows = run.folder.load_merged(found.rows, run.mask.layout)
    assert mask.k > run.mask.k and found.cost.weights_changed == mask.k and set(rows) == set(run.deltas)
    assert found.cost.merged_bytes == Path(run.path, found.rows).stat().st_size > mask.k * 4 * len(rows)
    assert run.model(found.number) and run.verify(deep=True) == []
    run.rollback(found.number)
    run.remove("sides")
    left = run.newest
    assert left.how.method == "tsv" and left.rows != found.rows and "sides" not in left.coefficients
    Path(run.path, left.rows).write_bytes(b"x")
    assert any(left.rows in p for p in run.verify())


def test_a_removed_task_leaves_no_trace(mine):
    run, _ = mine
    before, heads, scores = run.coefficients, run.heads(), run.scores
    run.remove("sides")
    assert run.coefficients == {t: a for t, a in before.items() if t != "sides"}
    assert all(torch.equal(h, heads[t]) for t, h in run.heads().items())
    assert run.scores["pointers"]["single"] == scores["pointers"]["single"]
    left = {t: d for t, d in run.deltas.items() if t != "sides"}
    family = load_model("demo")
    edit = edit_of(run.folder, run.version, run.mask, left)
    edit.put(family, run.info["base"])
    assert set(edit.rows) == set(edit.blend.values) == set(left) and "sides" not in run.heads()
    assert fingerprint(base_tensors(family)) == run.version.model == fingerprint(base_tensors(run.model()))
    with pytest.raises(TalosError, match="holds no edit of task 'sides'"):
        run.remove("sides")
    run.remove("pointers").remove("scanned_digits")
    assert run.version.model == run.info["base"] and run.coefficients == {}
    assert all(s["merged"] == s["base"] for s in run.scores.values())


def test_forgetting_takes_the_lowest_that_holds_or_says_what_would(mine):
    run, _ = mine
    kept = contents(run, "versions", "history", "deltas"), run.head
    with pytest.raises(TalosError, match=r"'pointers' cannot be forgotten.*wanted at most 0.000.*Nothing was changed"):
        run.forget("pointers", keep=0.1, at_most=0.0)
    assert (contents(run, "versions", "history", "deltas"), run.head) == kept
    run.rollback(0)
    run.forget("pointers", keep=0.9, at_most=1.0)
    version = run.version
    told = version.negation
    curve = told.curve
    assert [p.pressure for p in curve][:2] in ([1.0], [1.0, 0.25], [1.0, 4.0])
    assert told.after == min(p.target for p in curve if p.kept >= 0.9)
    assert told.helpers == ["scanned_digits", "sides"] and run.heads() == {}
    assert set(run.coefficients) == {"pointers", "scanned_digits", "sides"}
    assert version.kind == "negation" and version.forgotten == ["pointers"] and version.targets == []
    beyond = told.beyond
    n, right = sum(beyond["now"].labels), version.scores["pointers"].merged
    assert (
        sum(beyond["now"].predicted) == n == right.n and beyond["base"] == beyond["before"]
    )  # head was the base
    assert all(0 < getattr(beyond[m], kind).value <= 1 for m in beyond for kind in ("probe", "retrained"))
    assert told.retrained_steps == 2
    page = Path(run.path, "report/index.html").read_text()
    assert f"now {beyond['now'].probe.value:.3f}. Trained again for 2 steps" in page
    assert "pointers forgotten" in page and "How pointers was forgotten" in page
    assert fingerprint(base_tensors(run.model())) == version.model
    with pytest.raises(TalosError, match="holds no edit of task 'sides'; it holds: pointers"):  # it only helps
        run.remove("sides")
    with pytest.raises(TalosError, match="keep is 1.5"):
        run.forget("pointers", keep=1.5)


def test_one_coefficient_forgets_as_the_paper_has_it(mine):
    run, _ = mine
    with pytest.raises(TalosError, match="version 1 has a coefficient a row, and method 'grid' finds one a task"):
        run.forget("pointers", method="grid")
    run.rollback(0)
    run.forget("pointers", keep=0.9, at_most=1.0, method="grid")
    told = run.version.negation
    tried = [attempt.coefficient for attempt in told.curve]
    search = run.spec.search
    assert tried[0] == -search.high and tried[-1] == 0.0 and len(tried) == search.shared_points
    assert told.helpers == [] and set(run.coefficients) == {"pointers"} and run.coefficients["pointers"] in tried
    assert told.after == min(attempt.target for attempt in told.curve if attempt.kept >= 0.9) <= told.before
    assert run.verify(deep=True) == []
    kept = contents(run, "versions", "history", "deltas"), run.head
    found = how_far(run.path, keep=0.9, method="grid")
    assert (contents(run, "versions", "history", "deltas"), run.head) == kept and set(found) == {task.name for task in run.spec.tasks}
    reach, scores = found["pointers"], run.version.scores
    assert reach.now.as_dict() == scores["pointers"].merged.as_dict() and reach.chance == told.chance
    for control, (before, now) in reach.controls.items():
        assert (before.value, now.value) == (scores[control].base.value, scores[control].merged.value)
    with pytest.raises(TalosError, match=r"cannot be forgotten(.|\n)*coefficient of its delta: accuracy"):
        run.rollback(0).forget("sides", keep=0.9, at_most=0.0, method="grid")


@pytest.mark.slow
def test_forgetting_leaves_the_coefficients_and_heads_of_every_other_task(mine):
    run, _ = mine
    before, heads = run.folder.load_learned(run.version)
    run.forget("pointers", keep=0.5, at_most=1.0)
    after, kept = run.folder.load_learned(run.newest)
    for task in set(before.values) - {"pointers"}:
        assert torch.equal(after.values[task], before.values[task])
    assert kept.keys() == heads.keys() - {"pointers"} and all(torch.equal(kept[t], heads[t]) for t in kept)
    assert not torch.equal(after.values["pointers"], before.values["pointers"]) and run.verify(deep=True) == []



def test_test_data_decide_nothing(finished, tmp_path):
    """Every label of one task's test split is wrong: mask, deltas and coefficients are bitwise those of the true data."""
    run, values = finished
    values = {**copy.deepcopy(values), "output": str(tmp_path / "run"), "baseline": {"enabled": False}}
    sides, (control,) = values["tasks"][-1], values["control"]
    task = next(t for t in make_spec(values).tasks if t.name == "sides")
    test = load_task(task, 0).test
    poisoned = {Path(v["path"]).name for v in test.rows.with_format("arrow")[:].column("file").to_pylist()}
    with open(sides["data"], newline="") as f:
        rows = list(csv.DictReader(f))
    classes = sorted({r["side"] for r in rows})
    for r in rows:
        if Path(r["file"]).name in poisoned:
            r["side"] = classes[(classes.index(r["side"]) + 1) % len(classes)]
    path = Path(sides["data"]).with_name("poisoned.csv")
    with open(path, "w", newline="") as f:
        writer = csv.DictWriter(f, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    sides["data"] = str(path)
    assert len(poisoned) == len(test) == 24 and not torch.equal(
        load_task(task.model_copy(update={"data": str(path)}), 0).test.labels, test.labels
    )
    other = talos_ray.edit(**values)
    a, b = run.folder.load_version(1), other.newest  # which the gate keeps aside: on such labels nothing was learnt
    assert (a.mask, a.deltas, a.coefficients, a.merge, a.model) == (b.mask, b.deltas, b.coefficients, b.merge, b.model)
    assert a.scores["sides"] != b.scores["sides"] and a.scores["held"] == b.scores["held"]
    assert control["name"] == "held"
