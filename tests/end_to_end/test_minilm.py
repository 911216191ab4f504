"""A real text encoder: MiniLM learns text tasks made of CLDR names."""

import sys
from pathlib import Path

import pytest

import talos_ray

sys.path.insert(0, str(Path(__file__).parents[2] / "jobs"))
import text_tasks

ROWS = ("kinds", "continents", "tongues", "calendar", "scripts", "cities", "currencies", "units")


def test_the_text_tasks_hold_what_they_say(tmp_path):
    tasks = {t["name"]: Path(t["data"]).read_text().splitlines()[1:] for t in text_tasks.write(tmp_path)}
    assert tuple(tasks) == ROWS and all(200 < len(rows) <= text_tasks.MOST for rows in tasks.values())
    assert "Norwegian Krone,Europe" in tasks["currencies"] and "donderdag,weekday" in tasks["calendar"]
    texts = [row.rpartition(",")[0] for row in tasks["tongues"]]
    assert len(set(texts)) == len(texts)


@pytest.mark.slow
def test_minilm_learns_and_keeps_what_it_knew(tmp_path):
    tasks = {t["name"]: t for t in text_tasks.write(tmp_path)}
    run = talos_ray.edit(
        model=text_tasks.minilm(),
        tasks=[tasks["calendar"], tasks["units"]],
        control=[tasks["currencies"]],
        output=str(tmp_path / "run"),
        gate={"strict": False},  # its few test inputs show hardly anything
        calibration={"samples_per_task": 64, "rounds": 2},
        train={"steps": 60, "batch_size": 32, "lr": 1e-3, "warmup_steps": 5},
    )
    summary = run.version.summary
    assert summary.zero_shot > 0.3  # it knows something: seven and two classes
    assert summary.single > summary.zero_shot + 0.1 and summary.merged > summary.zero_shot + 0.05
    assert summary.control_kept["currencies"] >= 0.9
