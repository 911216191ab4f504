"""A text encoder learns two tasks, and they are merged: the pipeline on text, by the one call."""

from texts import save_encoder, write_texts

import talos_ray


def test_an_encoder_learns_text_tasks(tmp_path):
    tasks = [write_texts(tmp_path, name, 800) for name in ("animals", "places")]
    run = talos_ray.edit(
        model=save_encoder(tmp_path / "model"),
        tasks=tasks,
        control=[{**tasks[0], "name": "held", "phrases": ["otter", "wrench"]}],
        output=str(tmp_path / "run"),
        mask={"keep": 0.5},
        calibration={"samples_per_task": 32, "rounds": 2, "shards_per_task": 2},
        train={"steps": 120, "batch_size": 32, "lr": 1e-2, "warmup_steps": 5},
        search={"trials": 3, "control_keep": 0.0},
    )
    assert {t: s["single"]["value"] > 0.85 for t, s in run.scores.items() if t != "held"} == {
        "animals": True,
        "places": True,
    }
    summary = run.version["summary"]
    assert summary["merged"] > summary["zero_shot"] + 0.1
    assert all("encoder.layer" in name for name in run.mask.layout.names)
