"""Shared by all tests: a small image task made on the spot, and a small spec."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image


def write_images(folder, n: int, seed: int = 0):
    """A CSV of image paths and labels: bright left half or bright right half, plus noise."""
    folder.mkdir(parents=True, exist_ok=True)
    rng, lines = np.random.default_rng(seed), ["file,side"]
    for i in range(n):
        side = i % 2
        pixels = rng.integers(0, 90, (16, 16, 3))
        pixels[:, side * 8 : side * 8 + 8] += 120
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
        lines.append(f"{i}.png,{('left', 'right')[side]}")
    (folder / "rows.csv").write_text("\n".join(lines) + "\n")
    return str(folder / "rows.csv")


@pytest.fixture(scope="session")
def sides(tmp_path_factory) -> dict:
    """A task from a local CSV of image paths."""
    path = write_images(tmp_path_factory.mktemp("sides"), 120)
    return {"name": "sides", "data": path, "input": "file", "label": "side", "prompts": ["a ball lit from the {}"]}


@pytest.fixture(scope="session")
def small_spec(sides) -> dict:
    """Three tasks of three kinds, a control task, a few steps: the whole pipeline in a minute. Lacks `output`."""
    return {
        "model": "demo",
        "tasks": ["demo:pointers", "demo:scanned_digits", sides],
        "control": [{**sides, "name": "held", "prompts": ["a ball lit from the {}", "light from the {}"]}],
        "calibration": {"samples_per_task": 24, "shards_per_task": 2, "rounds": 2},
        "train": {"steps": 12, "batch_size": 32, "lr": 1e-3, "warmup_steps": 2, "checkpoint_every": 4},
        "search": {"shared_points": 3, "trials": 4, "generation": 2},
        "baseline": {"enabled": True, "lr": 1e-4},
    }
