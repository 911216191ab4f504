"""A checkpoint that loses nothing: a new run on a wider mask, beside the one that it was imported into."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

import talos_ray
from talos_ray import SpecError, TalosError
from talos_ray.api import verify
from talos_ray.cli import app
from talos_ray.core.compose import Composer
from talos_ray.models import base_tensors, load_model
from talos_ray.orchestrate import widen as widening
from talos_ray.orchestrate.plan import arms_of, prepare
from talos_ray.progress import Progress
from talos_ray.spec import make_spec, resolve_task

DOTS = resolve_task("demo:counts").model_copy(update={"name": "dots", "train": {"delta_dtype": "float32"}})


@pytest.fixture
def run(finished, tmp_path, monkeypatch):
    """A copy of the finished run, at its first edit."""
    shutil.copytree(finished[0].path, tmp_path / "run")
    copied = talos_ray.open_run(str(tmp_path / "run"))
    copied.folder.set_head(1, "rollback")  # whatever other tests left
    monkeypatch.chdir(tmp_path)
    return copied


def contents(folder) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(Path(folder).rglob("*")) if p.is_file()}


def alone(run, task: str) -> dict[str, torch.Tensor]:
    """The base and one task's edit, whole."""
    family = load_model("demo")
    Composer(family.module, run.mask, [run.deltas[task]], run.info["base"]).compose({task: 1.0})
    return {name: tensor.clone() for name, tensor in base_tensors(family).items()}


def bits(tensors: dict[str, torch.Tensor]) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}


def lora(folder: str) -> dict[str, torch.Tensor]:
    """An adapter in a folder, and the weights that it makes."""
    import peft

    torch.manual_seed(0)
    how = peft.LoraConfig(r=4, target_modules=r"visual\..*\.(c_fc|c_proj)", init_lora_weights=False)
    adapted = peft.get_peft_model(load_model("demo").module, how)
    adapted.save_pretrained(folder)
    return adapted.merge_and_unload().state_dict()


@pytest.mark.slow
def test_an_adapter_comes_in_whole_and_the_run_stays_as_it_is(run, tmp_path, capsys):
    tuned, base = lora("lora"), base_tensors(load_model("demo"))
    run.remove("sides")  # comes along, out of force
    before, approved = contents(run.path), run.folder.load_learned(run.version)
    capsys.readouterr()
    wide = run.import_(DOTS, "lora", widen="wide")
    said = capsys.readouterr().out
    assert contents(run.path) == before
    # The mask is the run's and what the adapter changed, and that is told.
    flags, wider = run.mask.layout.split(run.mask.flags), wide.mask.layout.split(wide.mask.flags)
    for name in flags:
        assert torch.equal(wider[name], flags[name] | (tuned[name] != base[name]).flatten())
    assert f"{run.mask.k:,} weights on the mask, {wide.mask.k - run.mask.k:,} added, {wide.mask.k:,} of " in said
    assert "of the change of dots (squared length) lay off the mask" in said
    assert "sparse/dots from lora: 0.0% of its change" in said and "keep their coefficients" in said
    # What it changed is all there, and the single edits of the others are the same to the bit.
    dots = alone(wide, "dots")
    assert all(torch.allclose(dots[n], tuned[n], rtol=1e-6, atol=1e-7) for n in base) and wide.deltas["dots"].info["lost"] < 1e-9
    for task in run.deltas:
        assert bits(alone(run, task)) == bits(alone(wide, task))
    version = wide.newest
    if wide.head != version.number:  # what an adapter of random numbers does to others is for the gate to judge
        wide.approve(version.number, by="a test", reason="a random adapter")
    (blend, heads), (now, heads_now) = approved, wide.folder.load_learned(version)
    assert now.means(wide.mask)["pointers"] == pytest.approx(blend.means(run.mask)["pointers"])
    assert all(torch.equal(heads_now[task], head) for task, head in heads.items())
    event = next(e for e in wide.history() if e["operation"] == "widen")
    assert event["source"] == {"run": run.path, "version": run.head, "mask": run.mask.fingerprint, "task": "dots"}
    assert event["mask"] == wide.mask.fingerprint and event["record"] == run.folder.last_event()[1]
    assert wide.verify(deep=True) == [] and set(wide.coefficients) == {"pointers", "scanned_digits", "dots"}
    assert "train" not in [e["operation"] for e in wide.history()]
    # Wherever it is moved to, it goes on; what was out of force can be added of the delta that came along.
    capsys.readouterr()
    shutil.move("wide", "moved")
    moved = talos_ray.open_run("moved")
    talos_ray.edit(spec=make_spec({**moved.info["spec"], "output": "moved"}))
    assert "Nothing to do" in capsys.readouterr().out
    with Progress() as progress:
        prepared = prepare(moved._with("sides"), progress)
    assert set(arms_of(prepared, moved.mask)[0].done()) == {"pointers", "scanned_digits", "sides", "dots"}


def test_it_is_refused_before_anything_where_it_cannot_be(run, tmp_path):
    tuned = {name: tensor.clone() for name, tensor in base_tensors(load_model("demo")).items()}
    flags = run.mask.layout.split(run.mask.flags)
    for name, flagged in flags.items():
        tuned[name].view(-1)[flagged] += 0.01
    save_file(tuned, "on_mask.safetensors")
    Path("full").mkdir()
    Path("full/mine.txt").write_text("x")
    before = contents(tmp_path)
    for folder, match in (
        ("new", "changes no eligible weight off the mask of run .*import it without --widen"),
        ("full", "'full' is not empty; wanted a new or empty folder"),
        ("run/inside", "lies in the run"),
        ("run", "lies in the run"),
        ("s3://bucket/run", "is a URI; wanted a local folder"),
    ):
        with pytest.raises(SpecError, match=match):
            run.import_(DOTS, "on_mask.safetensors", widen=folder)
    done = CliRunner().invoke(app, ["import", "run", "demo:counts", "on_mask.safetensors", "--widen", "full"])
    assert isinstance(done.exception, SpecError) and "is not empty" in str(done.exception)
    assert contents(tmp_path) == before and not Path("new").exists()


def test_cut_off_it_leaves_nothing_or_goes_on(run, tmp_path, monkeypatch):
    tuned = {name: tensor.clone() for name, tensor in base_tensors(load_model("demo")).items()}
    for name in run.mask.layout.names[:3]:
        tuned[name] += 0.01
    save_file(tuned, "tuned.safetensors")

    def cut(*_, **__):
        raise KeyboardInterrupt

    rename = os.replace
    with monkeypatch.context() as here:
        here.setattr(os, "replace", lambda old, new: cut() if str(new) == "new" else rename(old, new))
        with pytest.raises(KeyboardInterrupt):
            run.import_(DOTS, "tuned.safetensors", widen="new")
    assert sorted(os.listdir(tmp_path)) == ["run", "tuned.safetensors"]
    with monkeypatch.context() as here:
        here.setattr(widening, "run_edit", cut)
        with pytest.raises(KeyboardInterrupt):
            run.import_(DOTS, "tuned.safetensors", widen="new")
    assert verify("new") == []
    with pytest.raises(TalosError, match="new' has no version yet; wanted a finished run"):
        talos_ray.open_run("new").import_("demo:counts", "tuned.safetensors", widen="other")
    begun = contents("new/deltas")
    asked = {}
    monkeypatch.setattr(widening, "run_edit", lambda spec, **how: asked.update(spec=spec, **how))
    run.import_(DOTS, "tuned.safetensors", widen="new")  # the same command goes on
    assert contents("new/deltas") == begun and asked["spec"].output == "new"
    tuned[run.mask.layout.names[5]] += 0.01
    save_file(tuned, "tuned.safetensors")
    with pytest.raises(SpecError, match="was begun with other weights of checkpoint"):
        run.import_(DOTS, "tuned.safetensors", widen="new")
    with pytest.raises(SpecError, match="lies in the run"):  # of another task
        run.import_("demo:counts", "tuned.safetensors", widen="new")


@pytest.mark.slow
def test_a_whole_checkpoint_by_the_command_and_what_is_done_with_the_run_then(run):
    tuned = {name: tensor.clone() for name, tensor in base_tensors(load_model("demo")).items()}
    torch.manual_seed(1)
    for name in run.mask.layout.names:
        shape = tuned[name].shape
        tuned[name] += 0.001 * torch.randn(shape) * (torch.rand(shape) < 0.2)
    save_file(tuned, "tuned.safetensors")
    Path("dots.yaml").write_text("recipe: demo:counts\nname: dots\ntrain: {delta_dtype: float32}\n")
    asked = ["import", "run", "dots.yaml", "tuned.safetensors", "--widen", "runs/wide"]
    assert CliRunner().invoke(app, [*asked, "--json"]).exit_code in (0, 3)
    wide = talos_ray.open_run("runs/wide")
    if wide.head == 0:
        wide.approve(1, by="a test", reason="its gate is not what is looked at")
    dots = alone(wide, "dots")
    assert all(torch.allclose(dots[name], tuned[name], rtol=1e-6, atol=1e-7) for name in tuned)
    wide.remove("pointers")
    assert wide.verify(deep=True) == [] and set(wide.coefficients) == {"scanned_digits", "sides", "dots"}
    assert "Nothing to do" in CliRunner().invoke(app, asked).stdout  # given again
