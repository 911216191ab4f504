"""docs/integrations.md, block by block: training in other libraries' loops against a loop of our own, bit by bit."""

import copy
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from texts import save_model, write_texts
from torch import nn
from transformers import Trainer, TrainingArguments

import talos_ray
from talos_ray import MismatchError, SpecError, TalosError
from talos_ray.core.layout import eligible_layout
from talos_ray.core.mask import mask_from_flags, select
from talos_ray.core.optimizer import SparseAdamW
from talos_ray.integrations.torch import MaskedAdamW
from talos_ray.models import base_fingerprint, layout_of, load_model
from talos_ray.spec import make_spec
from talos_ray.storage.run_folder import RunFolder

PAGE = Path(__file__).parents[2] / "docs/integrations.md"
LOOPS = ("TrainingArguments", "LightningModule", "Accelerator()")
LR = 1e-3  # as on the page


def block(word: str) -> str:
    """The page's Python that holds a word."""
    (found,) = [b for b in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL) if word in b]
    return found


@pytest.fixture(scope="module")
def at_home(tmp_path_factory):
    """The folder that the page is read in: a base, rows, and a run that has its mask and nothing else yet."""
    folder = tmp_path_factory.mktemp("page")
    animals, _ = ({**write_texts(folder, name, 48), "phrases": None} for name in ("animals", "places"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        save_model(folder / "bert", "classifier")
        spec = make_spec({"model": "hf:bert", "tasks": [animals], "output": "runs/animals"})
        family = load_model(spec.model)
        layout, base = layout_of(family), base_fingerprint(family)
        mask = mask_from_flags(layout, select(layout, "random", 0.3, granularity="row"))
        run = RunFolder(spec.output)
        run.begin(spec.model_dump(mode="json"), base, {}, {}, {})
        run.save_mask(mask, base)
        run.record("calibrate", ["mask.safetensors"], base=base, mask=mask.fingerprint, k=mask.k)
        yield folder


def trained_by(loop: str) -> tuple[dict, list]:
    """What the page's block with this word leaves, and every forward of it: (state of the random numbers, inputs)."""
    names, forwards = {"__name__": "page"}, []
    exec(block("open_run"), names)

    def seen(module, args, inputs) -> None:
        copied = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}
        forwards.append((torch.get_rng_state(), copied))

    handle = names["model"].register_forward_pre_hook(seen, with_kwargs=True)
    exec(block(loop), names)
    handle.remove()
    return names, forwards


@pytest.mark.parametrize("loop", LOOPS)
def test_a_loop_of_another_library_trains_the_bits_of_our_own(at_home, loop):
    names, forwards = trained_by(loop)
    run, steps = names["run"], len(forwards)
    module = load_model(run.spec.model).module.train()
    before = {n: t.clone() for n, t in module.state_dict().items()}
    optimizer = SparseAdamW(module, run.mask, lr=LR)
    for step, (drawn, inputs) in enumerate(forwards):
        torch.set_rng_state(drawn)  # dropout
        module(**inputs).loss.backward()
        optimizer.step(LR * (steps - step) / steps if loop == "TrainingArguments" else LR)  # Trainer's linear schedule
    now = names["model"].state_dict()
    assert steps == 6 and all(torch.equal(now[n], t) for n, t in module.state_dict().items())
    moved = 0
    for name, flags in run.mask.layout.split(run.mask.flags).items():
        same = now[name].flatten() == before[name].flatten()
        assert same[~flags].all()
        moved += int((~same[flags]).sum())
    assert moved > 0.9 * run.mask.k
    outside = set(before) - set(run.mask.layout.names)
    assert outside and all(torch.equal(now[n], before[n]) for n in outside)


def test_trainer_goes_on_from_its_own_checkpoint_on_the_same_bits(at_home):
    ends = []
    for resume in (None, "cut/checkpoint-4"):
        names: dict = {}
        exec(block("open_run"), names)
        how = TrainingArguments(
            "cut", num_train_epochs=1, per_device_train_batch_size=8, report_to="none", save_steps=4
        )
        optimizers = (names["run"].optimizer(names["model"], lr=LR), None)
        trainer = Trainer(names["model"], how, train_dataset=names["rows"], optimizers=optimizers)
        trainer.train(resume_from_checkpoint=resume)
        assert trainer.state.global_step == 6
        ends.append(names["model"].state_dict())
    assert all(torch.equal(ends[1][n], t) for n, t in ends[0].items())


def test_an_optimizer_is_for_the_runs_own_base(at_home):
    run = talos_ray.open_run("runs/animals")
    model = load_model(run.spec.model).module
    with pytest.raises(MismatchError, match=r"module BertModel: parameter 'bert\..*' has shape none; wanted"):
        run.optimizer(model.bert, lr=LR)
    with torch.no_grad():
        model.classifier.bias += 1
    with pytest.raises(MismatchError, match="weights of module BertForSequenceClassification are .* was made from"):
        run.optimizer(model, lr=LR)


@pytest.mark.parametrize("weights", ["trained.safetensors", None, {"x": 1}])
def test_trained_weights_are_a_module_or_tensors_by_name(at_home, weights):
    run = talos_ray.open_run("runs/animals")
    with pytest.raises(SpecError, match="wanted a module, or tensors by name .*import_"):
        run.add_trained("places.yaml", weights)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(10, 16), nn.LayerNorm(16), nn.GELU(), nn.Linear(16, 4))


X = torch.randn(32, 10, generator=torch.Generator().manual_seed(1))
Y = X[:, :4].argmax(-1)


def mask_of(module: nn.Module):
    layout = eligible_layout(module)
    return mask_from_flags(layout, torch.rand(layout.total, generator=torch.Generator().manual_seed(5)) < 0.3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_saved_state_goes_on_on_the_same_bits(dtype, tmp_path):
    ends, saved = [], None
    for start in (0, 4):
        module = network().to(dtype)
        optimizer = MaskedAdamW(module, mask_of(module), LR, weight_decay=0.1)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, 8)
        if start:
            optimizer.load_state_dict(saved[0])
            schedule.load_state_dict(saved[1])
        for step in range(start, 8):
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(X.to(dtype)).float(), Y).backward()
            optimizer.step()
            schedule.step()
            if step == 3:
                torch.save((optimizer.state_dict(), schedule.state_dict()), tmp_path / "state.pt")
                saved = torch.load(tmp_path / "state.pt", weights_only=True)
        ends.append({n: t.clone() for n, t in module.state_dict().items()})
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * LR)
    assert all(torch.equal(ends[1][n], t) for n, t in ends[0].items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_loaded_into_the_module_is_where_training_goes_on(dtype):
    """As Trainer does with a checkpoint that holds the model alone, and whoever goes back to the best so far."""
    module = network().to(dtype)
    optimizer = MaskedAdamW(module, mask_of(module), LR)
    trained = {n: t + 1 for n, t in module.state_dict().items()}
    module.load_state_dict(trained)
    optimizer.step()  # of a gradient of nothing
    assert all(torch.equal(t, trained[n]) for n, t in module.state_dict().items())
    module(X.to(dtype)).float().square().mean().backward()
    optimizer.step()
    values = optimizer.sparse.values.detach().clone()
    module.load_state_dict(module.state_dict())  # what it holds: nothing is rounded
    assert torch.equal(values, optimizer.sparse.values)
    copy.deepcopy(module).load_state_dict(trained)
    assert torch.equal(values, optimizer.sparse.values)
    with pytest.raises(TalosError, match="parameter '0.bias' is another .*load without assign=True"):
        module.load_state_dict(trained, assign=True)
    optimizer.close()
    module.load_state_dict(trained, assign=True)


def test_trainer_goes_on_from_a_checkpoint_without_an_optimizer(at_home):
    names: dict = {}
    exec(block("open_run"), names)
    model = names["model"]
    how = TrainingArguments("alone", num_train_epochs=1, per_device_train_batch_size=8, report_to="none", save_steps=4, save_only_model=True)
    optimizer = names["run"].optimizer(model, lr=LR)
    Trainer(model, how, train_dataset=names["rows"], optimizers=(optimizer, None)).train()
    kept = load_file("alone/checkpoint-4/model.safetensors")
    again = names["AutoModelForSequenceClassification"].from_pretrained("bert", dtype="float32")
    optimizer = names["run"].optimizer(again, lr=0.0)
    Trainer(again, how, train_dataset=names["rows"], optimizers=(optimizer, None)).train(resume_from_checkpoint="alone/checkpoint-4")
    assert all(torch.equal(t, kept[n]) for n, t in again.state_dict().items() if n in kept)


def test_a_gradient_that_is_dropped_leaves_no_trace_and_closing_gives_the_module_back():
    module, plain = network(), network()
    before = {n: t.clone() for n, t in module.state_dict().items()}
    optimizer = MaskedAdamW(module, mask_of(module), LR)
    assert torch.equal(module(X), plain(X))
    module(X).square().sum().backward()
    optimizer.zero_grad()
    optimizer.step()
    assert all(torch.equal(t, before[n]) for n, t in module.state_dict().items())
    assert optimizer.step(lambda: torch.tensor(3.0)) == 3.0
    copied = copy.deepcopy(module).to("meta")
    assert copied(X.to("meta")).shape == (32, 4)
    module.to("meta")
    with pytest.raises(
        TalosError, match="is on meta, but its optimizer was made when it was on cpu; wanted both on "
    ):
        module(X)
    optimizer.close()
    assert not any("forward" in vars(m) or m._forward_pre_hooks for m in module.modules())
