"""`talos plan`: what it says a worker needs, against the peak of a real training step of smaller models of the same shapes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from texts import write_texts
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
from typer.testing import CliRunner

from talos_ray.cli import app
from talos_ray.estimate import batch_of, estimate
from talos_ray.models import layout_of, shape_of
from talos_ray.smoke import FILLERS, tiny_model
from talos_ray.spec import load_spec, make_spec

# In a process of its own, because only a process has a peak: bytes above those before a step, for a batch of N after one of 1.
# What was freed goes back at once, so that the peak is of bytes in use, as on a GPU.
EXACT = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
STEP = """
import ctypes, sys
import torch
from talos_ray.core.mask import mask_from_flags, select
from talos_ray.core.optimizer import SparseAdamW
from talos_ray.core.recompute import blocks_of, recomputing, wrapped
from talos_ray.models import layout_of, load_model

name, samples, kind, again, classes = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4] == "True", 3
torch.set_num_threads(1)
family = load_model(name)
layout = layout_of(family)
optimizer = SparseAdamW(family.module, mask_from_flags(layout, select(layout, "random", 0.1, granularity="row")), 1e-4)
if kind == "text":
    inputs = family.preprocess(["the " * 4096] * samples)
    head = family.head(["old", "one", "near"], ["{}"])
else:
    inputs = torch.randn(samples, 3, 224, 224)
    head = torch.randn(classes, family.features(inputs[:1]).shape[-1])

def status(key):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(key))

def step(n):
    with wrapped(blocks_of(family.module, family.edited) if again else (), recomputing):
        family.logits(inputs[:n], head).logsumexp(-1).sum().backward()

step(1)
ctypes.CDLL("libc.so.6").malloc_trim(0)
open("/proc/self/clear_refs", "w").write("5")
before = status("VmRSS")
step(samples)
print(status("VmHWM") - before)
"""


def causal(folder: Path) -> str:
    tiny_model("llama", FILLERS, folder)
    small = AutoConfig.from_pretrained(folder)
    shape = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 4, "max_position_embeddings": 256}  # fmt: skip
    small.update({**shape, "head_dim": 64, "vocab_size": 8000})
    AutoModelForCausalLM.from_config(small).save_pretrained(folder)
    told = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**told, "model_max_length": 256}))
    return f"hf:{folder}"


def clip(folder: Path) -> str:
    tiny_model("clip", FILLERS, folder)
    small = AutoConfig.from_pretrained(folder)
    small.vision_config.update({"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 6, "num_attention_heads": 8, "image_size": 224, "patch_size": 16})  # fmt: skip
    AutoModel.from_config(small).save_pretrained(folder)
    told = json.loads((folder / "preprocessor_config.json").read_text())
    sizes = {"size": {"shortest_edge": 224}, "crop_size": {"height": 224, "width": 224}}
    (folder / "preprocessor_config.json").write_text(json.dumps({**told, **sizes}))
    return f"hf:{folder}"


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak of a process is read from /proc")
@pytest.mark.parametrize(
    ("make", "kind", "samples", "again"),
    [
        (causal, "text", 8, False),
        pytest.param(causal, "text", 8, True, marks=pytest.mark.slow),
        pytest.param(clip, "image", 16, False, marks=pytest.mark.slow),
        pytest.param(clip, "image", 16, True, marks=pytest.mark.slow),
    ],
)
def test_a_steps_peak_is_what_was_said(make, kind, samples, again, tmp_path):
    model = make(tmp_path / "model")
    data = write_texts(tmp_path, "animals", 40)
    task = {**data, "classes": ["a", "b", "c"], "phrases": ["old", "one", "near"]} if kind == "text" else {"name": "x", "data": "x", "classes": ["a", "b", "c"]}  # fmt: skip
    spec = make_spec(
        {
            "model": model,
            "tasks": [task],
            "output": "x",
            "mask": {"granularity": "row"},
            "train": {"batch_size": samples},
        }
    )
    family = shape_of(spec.model)
    said = batch_of(family, spec.tasks[0], layout_of(family), samples, again)
    done = subprocess.run(
        [sys.executable, "-c", STEP, model, str(samples), kind, str(again)],
        env={**os.environ, **EXACT},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = int(done.stdout.split()[-1])
    print(f"said {(said.kept + said.passing) / 1e6:.0f} MB, found {found / 1e6:.0f} MB")
    assert said.kept + said.passing == pytest.approx(found, rel=0.15)


def test_a_plan_of_a_model_of_billions_needs_no_weights(tmp_path):
    tiny_model("llama", FILLERS, tmp_path / "model")
    config = json.loads((tmp_path / "model/config.json").read_text())
    shape = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128256}  # fmt: skip
    (tmp_path / "model/config.json").write_text(json.dumps({**config, **shape}))
    task = write_texts(tmp_path, "animals", 40)
    values = {
        "model": f"hf-bf16:{tmp_path / 'model'}",
        "tasks": [task],
        "output": "x",
        "mask": {"granularity": "row", "keep": 0.05},
    }
    found = estimate(make_spec(values))
    assert found.parameters == 8_030_261_248  # Llama 3 8B
    assert found.worker["weights"] == 2 * found.parameters and found.masked == round(0.05 * found.eligible)
    assert (
        found.storage["deltas"] == 2 * found.masked and found.batch.forward > 2 * 6.9e9
    )  # two a weight and token at least


def test_the_plan_of_a_recipe_is_told_without_its_data(tmp_path):
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump({"model": "demo", "tasks": ["demo:counts", {"name": "x", "data": "nowhere.csv", "train": {"epochs": 2}}], "output": "x"}))  # fmt: skip
    told = CliRunner().invoke(app, ["plan", str(tmp_path / "spec.yaml"), "--tflops", "1"])
    assert told.exit_code == 0 and "a training worker, 128 samples a backward" in told.output
    assert "work not counted, because nobody says how many examples there are: x" in told.output
    found = json.loads(CliRunner().invoke(app, ["plan", str(tmp_path / "spec.yaml"), "--json"]).stdout)
    spec = load_spec(tmp_path / "spec.yaml")
    assert found["masked"] == round(spec.mask.keep * found["eligible"]) and found["hours of one worker"]["train"] > 0


def test_short_runs_and_the_dense_baseline_are_counted():
    values = {"model": "demo", "tasks": ["demo:counts", "demo:pointers"], "output": "x"}
    plain, auto = estimate(make_spec(values)), estimate(make_spec({**values, "preset": "auto", "auto": {"budget": 2}}))
    assert list(plain.work) == ["calibrate", "train", "merge"] and list(auto.work) == ["choose", "train", "merge"]
    assert auto.work["choose"] > 2 * plain.work["train"] + 4 * plain.work["calibrate"]
    assert auto.masked == plain.masked  # of what is tried, the most: a fifth
    beside = estimate(make_spec({**values, "baseline": {"enabled": True}}))
    assert beside.work["train, dense"] >= plain.work["train"]
    dense = {"deltas": plain.storage["deltas"], "dense deltas": 2 * 4 * plain.eligible}
    assert {k: beside.storage[k] for k in dense} == dense and dense.items() <= beside.object_store.items()
    assert beside.worker["values, gradient, moments"] == 16 * plain.eligible
    drawn = estimate(make_spec({**values, "mask": {"strategy": "random"}}))
    assert list(drawn.work) == ["train", "merge"] and drawn.object_store["scores while calibrating"] == 0
