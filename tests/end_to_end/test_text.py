"""A text encoder, a sequence-to-sequence model and a causal LM (in bfloat16, with gradient checkpointing) learn two tasks, and they are merged: by the one call."""

import pytest
from texts import save_model, write_texts

import talos_ray
from talos_ray.models import base_fingerprint, load_model


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bert", "t5", "llama"])
def test_a_model_learns_text_tasks(kind, tmp_path):
    tasks = [write_texts(tmp_path, name, 800) for name in ("animals", "places")]
    family = "hf-bf16:" if kind == "llama" else "hf:"
    run = talos_ray.edit(
        model=save_model(tmp_path / "model", kind).replace("hf:", family),
        tasks=tasks,
        control=[{**tasks[0], "name": "held", "phrases": ["otter", "wrench"]}],
        output=str(tmp_path / "run"),
        mask={"keep": 0.5},
        calibration={"samples_per_task": 32, "rounds": 2, "shards_per_task": 2},
        train={
            "steps": 120,
            "batch_size": 32,
            "lr": 1e-2,
            "warmup_steps": 5,
            "gradient_checkpointing": kind == "llama",
        },
        search={"steps": 20, "inputs": 64, "control_keep": 0.0},
        gate={"control_keep": None},
    )
    assert {t: s["single"]["value"] > 0.75 for t, s in run.scores.items() if t != "held"} == {
        "animals": True,
        "places": True,
    }
    summary = run.version.summary
    assert summary.merged > summary.zero_shot + 0.1
    inside = {"bert": ("encoder.layer.",), "t5": ("encoder.block.", "decoder.block."), "llama": ("model.layers.",)}[
        kind
    ]
    assert all(name.startswith(inside) for name in run.mask.layout.names)
    run.export(tmp_path / "out")  # what its own library loads: see tests/models
    again = load_model(f"{family}{tmp_path / 'out'}")
    assert base_fingerprint(again) == run.version.model
